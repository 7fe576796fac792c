"""The main job: trains a model on several workers with Gossip-PGA or a relative, and reports.

    python train.py                              # 4 local workers, ResNet-20, handwritten digits
    python train.py --algorithm=local --H=12 --workers=2
    python train.py --help

Where `TF_CONFIG` is set this process is one worker of that cluster; start the same command on every
machine. Where it is not, this process starts `--workers` local ones. Rank 0 prints a table and
writes `results.json`, `curves.png` and `model.keras` into `--output_dir`.
"""

import json
import math
import os
import pathlib
import sys
import time

from absl import app, flags, logging

# Nothing above `worker` may import TensorFlow: bad flags are reported before it has loaded, and the
# process that starts local workers does without it.
import models
from models import inputs
from tf_gossip_pga import cluster as cluster_lib
from tf_gossip_pga import launch, topology

# What an algorithm fixes of Gossip-PGA's settings; the flag of this name may not say otherwise.
ALGORITHMS = {
    "pga": {},
    "gossip": {"H": None},
    "local": {"topology": "disconnected"},
    "parallel": {"H": 1, "topology": "complete"},
}

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "resnet20", f"One of {', '.join(models.MODELS)}.")
flags.DEFINE_string("dataset", "digits", f"One of {', '.join(inputs.DATASETS)}.")
flags.DEFINE_enum(
    "algorithm",
    "pga",
    list(ALGORITHMS),
    "pga: gossip with neighbours, global average every H-th step. gossip: no global average. "
    "local: no gossip. parallel: a global average in every step.",
)
flags.DEFINE_integer("H", 6, "Steps from one global average to the next.", lower_bound=1)
flags.DEFINE_string(
    "topology", "one_peer_exponential", f"Who gossips with whom: {', '.join(topology.BY_NAME)}."
)
flags.DEFINE_integer("workers", 4, "Local processes, where TF_CONFIG is not set.", lower_bound=1)
flags.DEFINE_integer("epochs", 60, "Epochs to train.", lower_bound=1)
flags.DEFINE_integer(
    "steps_per_epoch", None, "Steps of an epoch; default: one pass over the data.", lower_bound=1
)
flags.DEFINE_integer("batch_size", 32, "Examples in a worker's batch.", lower_bound=1)
flags.DEFINE_float("learning_rate", 0.1, "Peak: a tenth of the steps up to it, then a cosine.")
flags.DEFINE_integer(
    "seed", 0, "Of initial weights, shuffling and augmentation.", lower_bound=0, upper_bound=1 << 30
)
flags.DEFINE_string("output_dir", "output", "Where rank 0 writes; made if it is not there.")


def main(argv):
    config = os.environ.get("TF_CONFIG", "").strip()
    try:
        check_flags(argv, cluster_lib.from_tf_config(config) if config else None)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    if config or FLAGS.workers == 1:
        worker()
    else:
        sys.exit(launch.run([sys.executable, __file__, *sys.argv[1:]], FLAGS.workers))


def check_flags(argv, cluster: cluster_lib.Cluster | None):
    """Raises `ValueError` for whatever would stop a worker; makes the output directory."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}. Flags begin with --; see --help.")
    if cluster and FLAGS["workers"].present and FLAGS.workers != cluster.size:
        raise ValueError(
            f"--workers={FLAGS.workers}, but TF_CONFIG names {cluster.size} workers. Leave one out."
        )
    for name, fixed in ALGORITHMS[FLAGS.algorithm].items():
        if FLAGS[name].present and FLAGS[name].value != fixed:
            raise ValueError(
                f"--algorithm={FLAGS.algorithm} has "
                f"{f'no {name}' if fixed is None else f'{name}={fixed}'}, received "
                f"--{name}={FLAGS[name].value}. Leave --{name} out, or use --algorithm=pga."
            )
    if not 0 < FLAGS.learning_rate < math.inf:
        raise ValueError(f"--learning_rate must be > 0, received {FLAGS.learning_rate}.")
    models.check(FLAGS.model)
    size = cluster.size if cluster else FLAGS.workers
    topology.resolve(setting("topology"), size)
    check_batch_size(inputs.find(FLAGS.dataset), size)
    if cluster is None or cluster.is_chief:
        make_output_dir()


def check_batch_size(data: inputs.Dataset, size: int):
    share = data.training_examples // size
    if FLAGS.batch_size > share:
        raise ValueError(
            f"--batch_size={FLAGS.batch_size} is more than a worker has: {share} of the "
            f"{data.training_examples} training examples of {data.name}, with {size} workers. Use "
            "a smaller batch or fewer workers."
        )


def make_output_dir():
    try:
        os.makedirs(FLAGS.output_dir, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output_dir={FLAGS.output_dir} cannot be made ({error.strerror}). Name a directory "
            "that you may write to."
        ) from None
    if not os.access(FLAGS.output_dir, os.W_OK | os.X_OK):
        raise ValueError(
            f"--output_dir={FLAGS.output_dir} cannot be written to. Name a directory that you may "
            "write to."
        )


def setting(name: str):
    """`H` (None: never) or `topology`, as the algorithm fixes it or the flag says."""
    return ALGORITHMS[FLAGS.algorithm].get(name, FLAGS[name].value)


def worker():
    """Trains as one worker of the cluster; rank 0 reports."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    import tf_gossip_pga as pga

    cluster = pga.initialize()  # before the first tensor
    # Ranks differ in shuffling and augmentation; initial weights will be rank 0's everywhere.
    keras.utils.set_random_seed(FLAGS.seed + cluster.rank)

    data = inputs.find(FLAGS.dataset)
    training, validation = data.load()
    batches = data.batches(cluster.shard(training), FLAGS.batch_size)
    steps_per_epoch = FLAGS.steps_per_epoch or int(batches.cardinality())
    training, validation = training.batch(256), validation.batch(256)

    model = models.build(FLAGS.model, data.input_shape, data.classes)
    model.compile(
        keras.optimizers.SGD(
            learning_rate(steps_per_epoch * FLAGS.epochs), momentum=0.9, nesterov=True
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    gossip = pga.GossipPGA(H=setting("H"), topology=setting("topology"))
    started = time.perf_counter()
    history = model.fit(
        batches.repeat(),
        epochs=FLAGS.epochs,
        steps_per_epoch=steps_per_epoch,
        validation_data=validation,
        shuffle=False,  # tf.data has done so
        callbacks=[gossip],
        verbose=(1 if sys.stdout.isatty() else 2) if cluster.is_chief else 0,
    )
    seconds = time.perf_counter() - started

    if cluster.is_chief:
        train_loss, _ = model.evaluate(training, verbose=0)
        val_loss, val_accuracy = model.evaluate(validation, verbose=0)
        losses = {"train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
        report(model, results(cluster, model, gossip, seconds, losses, history), gossip.distances)


def learning_rate(steps: int):
    """The schedule over `steps` steps: a linear warm-up, then half a cosine down to zero."""
    from keras.optimizers import schedules

    warmup = steps // 10
    return schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=FLAGS.learning_rate, warmup_steps=warmup
    )


def results(cluster, model, gossip, seconds: float, losses: dict, history) -> dict:
    """The content of `results.json`; counts and bytes are rank 0's."""
    return {
        "algorithm": FLAGS.algorithm,
        "model": FLAGS.model,
        "dataset": FLAGS.dataset,
        "H": setting("H"),
        "topology": setting("topology"),
        "workers": cluster.size,
        "epochs": FLAGS.epochs,
        "steps": gossip.step,
        "gossip_steps": gossip.gossip_steps,
        "global_steps": gossip.global_steps,
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
        **losses,
        "seconds": seconds,
        "compute_seconds": seconds - gossip.communication_seconds,
        "communication_seconds": gossip.communication_seconds,
        "bytes_sent_per_worker": gossip.bytes_sent,
        "consensus_distance": gossip.distances[-1][1] if gossip.distances else None,
        "history": history.history,
    }


def report(model, results: dict, distances: list[tuple[int, float]]):
    """Prints the table and writes the files, `results.json` last: where it is, all is."""
    directory = pathlib.Path(FLAGS.output_dir)
    print(table(results), flush=True)
    write(directory / "model.keras", model.save)
    write(directory / "curves.png", lambda path: draw(path, results, distances))
    text = json.dumps(_without_nan(results), indent=2)
    write(directory / "results.json", lambda path: path.write_text(text))
    print(f"Wrote {directory}/results.json, curves.png and model.keras.", flush=True)


def _without_nan(value):
    """JSON has no NaN or infinity: null stands for what has no value."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(path: pathlib.Path, save):
    """Calls `save` with a path beside `path`, then moves the file: half of one is never seen."""
    partial = path.with_stem(f".{path.stem}.partial")  # Keras and matplotlib go by the suffix
    save(partial)
    os.replace(partial, path)


def table(results: dict) -> str:
    distance = results["consensus_distance"]
    between = "local" if results["topology"] == "disconnected" else "gossip"
    rows = {
        "trained": describe(results),
        "validation accuracy": f"{results['val_accuracy']:.4f}, averaged model",
        "validation loss": f"{results['val_loss']:.4f}",
        "training loss": f"{results['train_loss']:.4f}, averaged model, images as they are",
        "time": f"{results['seconds']:.1f} s for {results['steps']} steps",
        "communication": f"{results['communication_seconds'] / results['seconds']:.0%} of it",
        "steps": f"{results['gossip_steps']} {between}, {results['global_steps']} global average",
        "sent": f"{results['bytes_sent_per_worker'] / 1e6:.1f} MB, rank 0",
        "consensus distance": "none, one worker"
        if distance is None
        else f"{distance:.2e}, before the last global average",
    }
    return "\n".join(["", *(f"  {name:<21}{value}" for name, value in rows.items()), ""])


def describe(results: dict) -> str:
    """One line: `resnet20 on digits, pga, H=6, one_peer_exponential, 4 workers`."""
    parts = [f"{results['model']} on {results['dataset']}", results["algorithm"]]
    parts += [f"H={results['H']}"] if results["H"] else []
    workers = results["workers"]
    return ", ".join([*parts, results["topology"], f"{workers} worker{'s' if workers > 1 else ''}"])


def draw(path: pathlib.Path, results: dict, distances: list[tuple[int, float]]):
    """Loss, validation accuracy and consensus distance against steps, side by side."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    history, blue, orange = results["history"], "#2563a8", "#d9722b"
    per_epoch = results["steps"] // results["epochs"]
    ends = [per_epoch * (epoch + 1) for epoch in range(results["epochs"])]
    figure = Figure(figsize=(13.5, 4.4), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.suptitle(describe(results), fontsize=13, fontweight="bold")
    loss, accuracy, consensus = figure.subplots(1, 3)

    loss.set(title="Loss", yscale="log")
    loss.plot(ends, history["loss"], ".-", color=blue, label="training, rank 0")
    loss.plot(ends, history["val_loss"], ".-", color=orange, label="validation, averaged model")
    loss.legend(frameon=False)

    accuracy.set(title=f"Validation accuracy, {results['val_accuracy']:.4f} at the end")
    accuracy.plot(ends, history["val_accuracy"], ".-", color=orange)

    consensus.set(title="Consensus distance before global averages")
    measured = [(step, distance) for step, distance in distances if distance > 0]
    if measured:
        consensus.plot(*zip(*measured, strict=True), ".", color=blue, alpha=0.7)
        consensus.set(yscale="log")
    else:
        consensus.text(0.5, 0.5, "one worker", transform=consensus.transAxes, ha="center")
        consensus.set(xticks=[], yticks=[])

    for axes in (loss, accuracy, consensus):
        axes.set(xlabel="step", xlim=(0, None))
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for line in axes.lines:
            line.set(markersize=4, linewidth=1.4)
    figure.savefig(path)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # app.run alone would show what TensorFlow logs as INFO
    app.run(main)
