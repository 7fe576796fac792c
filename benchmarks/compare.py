"""All five algorithms side by side, in accuracy and in time, on one workload and several seeds.

    python benchmarks/compare.py --seeds=5 --workers=16 --topology=ring --model=mlp \\
        --classes_per_worker=2 --epochs=10 --steps_per_epoch=30 --output=output/compare.json

    python benchmarks/compare.py --compare=optimizer_state --output=output/optimizer_state.json

Takes every flag of `train.py`, of which the compared ones are set here. All runs take place in the
same worker processes, seed by seed, so that a change in the machine's speed meets all of them.
Writes a table, and a picture beside the JSON file. Controls stand beside the algorithms:

    one worker            plain Keras on one process with the global batch of all workers, drawn
                          from all data: what synchronous training is meant to equal
    gossip, not averaged  the workers' own models at the end of Gossip SGD, before the one global
                          average that every algorithm here ends with
"""

import dataclasses
import pathlib
import sys
import time

import numpy as np
import report
from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import results
import settings
import train
from settings import FLAGS

# Name -> flags. Adaptive periods begin at 4, so a fixed period of 4 is there to compare with.
METHODS = {
    "algorithm": {
        "parallel": {"algorithm": "parallel"},
        "pga": {"algorithm": "pga"},
        "pga, H = 4": {"algorithm": "pga", "H": 4},
        "aga": {"algorithm": "aga"},
        "local": {"algorithm": "local"},
        "gossip": {"algorithm": "gossip"},
    },
    "optimizer_state": {
        "local": {"optimizer_state": "local"},
        "average": {"optimizer_state": "average"},
        "reset": {"optimizer_state": "reset"},
    },
    "exchange": {
        "float32": {"wire_dtype": "float32", "overlap": False},
        "bfloat16": {"wire_dtype": "bfloat16", "overlap": False},
        "int8": {"wire_dtype": "int8", "overlap": False},
        "float32, overlap": {"wire_dtype": "float32", "overlap": True},
        "int8, overlap": {"wire_dtype": "int8", "overlap": True},
    },
}
ALONE, OWN = "one worker", "gossip, not averaged"  # the controls
LEGEND = """final loss, accuracy: validation of the averaged model, mean ± deviation over seeds
seconds, exchanging: after the first batch, validations included, and spent in exchanges; from
here on medians of seeds
MB sent: by one worker, mean;  global: share of the steps that average globally
distance: of the workers from their mean, relative, when they last differed before an average"""
SEED_STRIDE = 10_000  # more than the ranks that add to it

flags.adopt_module_key_flags(settings)  # for --help
flags.DEFINE_enum("compare", "algorithm", list(METHODS), "What differs from run to run.")
flags.DEFINE_integer("seeds", 3, "Runs of each.", lower_bound=2)
flags.DEFINE_string("output", None, "Write a JSON file, and a picture beside it.")


def main(argv):
    if FLAGS.compare == "algorithm" and FLAGS["algorithm"].present:
        sys.exit(f"compare.py: --algorithm={FLAGS.algorithm}, but all are compared. Leave it out.")
    if FLAGS.output:  # tried before the runs rather than after
        if pathlib.Path(FLAGS.output).suffix == ".png":
            sys.exit(f"compare.py: --output={FLAGS.output} is the JSON file; name it .json.")
        try:
            pathlib.Path(FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
            open(FLAGS.output, "a").close()
        except OSError as error:
            sys.exit(f"compare.py: --output={FLAGS.output} cannot be written ({error.strerror}).")
    train.start(argv, worker)


def worker():
    """One rank of the comparison; rank 0 reports."""
    import keras

    import tf_gossip_pga as pga

    cluster = pga.initialize()
    job = settings.find_job(cluster.size)
    train.check_vocabularies(job.data)
    period, first_seed, methods = FLAGS.H, FLAGS.seed, METHODS[FLAGS.compare]
    common_period = settings.setting("H")  # of the methods that set none themselves
    runs = {name: [] for name in (*methods, ALONE)}
    for seed in range(FLAGS.seeds):
        for name, mine in runs.items():
            keras.backend.clear_session()
            FLAGS.seed = first_seed + seed * SEED_STRIDE
            for flag, value in {"H": period, **methods.get(name, {})}.items():
                setattr(FLAGS, flag, value)
            measured = measure(cluster, job) if name in methods else alone(cluster, job)
            mine.append(measured)
            if cluster.is_chief:
                print(
                    f"seed {seed}, {name}: validation loss {measured['val_loss']:.4f}", flush=True
                )
    if cluster.is_chief:
        publish(job, cluster, runs, common_period)


def measure(cluster, job) -> dict:
    """One run of the present algorithm; on rank 0, all its figures."""
    from tf_gossip_pga.exchange import collectives

    gossip, clock = train.gossip_callback(job), _clock()
    own = _own_loss(job.data.validation(0, 1, 256))
    run = train.train(cluster, job, [own, gossip, clock])
    measured = train.collect(cluster, job, run, gossip)
    # After the collection, which takes rank 0 long where there is much to validate on.
    everyone = collectives.active().gather(own.losses, "the workers' own losses", train.PATIENCE_S)
    means = {name: float(np.mean([each[name] for each in everyone])) for name in own.losses}
    return {**measured, "own": means, "clock": clock.seconds}


def alone(cluster, job) -> dict:
    """Rank 0 trains by itself on the batches of all, while the others wait."""
    from tf_gossip_pga.cluster.tf_config import Cluster
    from tf_gossip_pga.exchange import collectives

    measured = {}
    if cluster.is_chief:
        batch_size = job.recipe.batch_size * cluster.size
        recipe = dataclasses.replace(job.recipe, batch_size=batch_size)
        job, clock = dataclasses.replace(job, recipe=recipe, classes_per_worker=None), _clock()
        run = train.train(Cluster(strategy=cluster.strategy), job, [clock])
        losses = train.evaluate(job, run.model)
        measured = {
            **{f"val_{name}": losses[name] for name in ("loss", "accuracy")},
            "history": run.history,
            "clock": clock.seconds,
        }
    collectives.active().gather(None, "the control on one worker", train.PATIENCE_S)
    return measured


def _clock():
    """A callback that notes, after each epoch, the seconds since the end of the first batch."""
    import keras

    class Clock(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.started, self.seconds = None, []

        def on_train_batch_end(self, batch, logs=None):
            self.started = self.started or time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self.started)

    return Clock()


def _own_loss(validation):
    """A callback, to stand before GossipPGA, that validates this worker's own model at the end."""
    import keras

    class OwnLoss(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.losses = self.model.evaluate(validation, verbose=0, return_dict=True)

    return OwnLoss()


# ---- Rank 0 reports -----------------------------------------------------------------------------


def publish(job, cluster, runs: dict, period: int | None):
    """Table, JSON and picture."""
    rows = [row(name, measured) for name, measured in runs.items()]
    if "gossip" in runs:
        own = [measured["own"] for measured in runs["gossip"]]
        spreads = [
            spread(f"val_{name}", [each[name] for each in own]) for name in ("loss", "accuracy")
        ]
        rows.append({"name": OWN, **spreads[0], **spreads[1]})
    title = (
        f"{FLAGS.model} on {job.data.name}, {cluster.size} workers, {FLAGS.topology}, "
        f"H = {period}, {job.steps} steps, {FLAGS.seeds} seeds"
        + f", {job.classes_per_worker} classes a worker"
        * bool(job.classes_per_worker)
    )
    print(f"\n{title}\n\n{table(rows)}\n\n{LEGEND}", flush=True)
    first, *others = (each for each in rows if each["name"] in METHODS[FLAGS.compare])
    ratios = {
        f"{each['name']}_seconds_over_{first['name']}": each["seconds"] / first["seconds"]
        for each in others
    }
    if FLAGS.output:
        picture = pathlib.Path(FLAGS.output).with_suffix(".png")
        report.write(FLAGS.output, rows=rows, ratios=ratios)
        draw(picture, title, job.steps_per_epoch, runs)
        print(f"Picture: {picture}", flush=True)


def row(name: str, measured: list[dict]) -> dict:
    """The figures of one method over its seeds."""

    def median(field: str):
        values = [each[field] for each in measured if each.get(field) is not None]
        return float(np.median(values)) if values else None

    steps = median("steps")
    return {
        "name": name,
        **spread("val_loss", [each["val_loss"] for each in measured]),
        **spread("val_accuracy", [each["val_accuracy"] for each in measured]),
        "seconds": float(np.median([each["clock"][-1] for each in measured])),
        # Of the epochs: the end of training waits for the workers' own losses.
        "communication_seconds": float(
            np.median([sum(each["history"]["communication_seconds"]) for each in measured])
        )
        if steps
        else None,
        "bytes_sent_per_worker": median("bytes_sent_per_worker"),
        "global_share": median("global_steps") / steps if steps else None,
        "consensus_distance": median("consensus_distance"),
    }


def spread(name: str, values: list[float]) -> dict:
    """Mean and standard deviation (of the sample) over seeds."""
    return {f"{name}_mean": float(np.mean(values)), f"{name}_std": float(np.std(values, ddof=1))}


def table(rows: list[dict]) -> str:
    """One line a method; a dash where a figure has no meaning."""

    def cell(each: dict, field: str, form: str, scale: float = 1.0) -> str:
        value = each.get(field)
        return "-" if value is None else format(value * scale, form)

    def plus_minus(each: dict, field: str, form: str) -> str:
        if f"{field}_mean" not in each:
            return "-"
        return " ± ".join(cell(each, f"{field}_{part}", form) for part in ("mean", "std"))

    lines = [
        ["", "final loss", "accuracy", "seconds", "exchanging", "MB sent", "global", "distance"]
    ]
    for each in rows:
        lines.append(
            [
                each["name"],
                plus_minus(each, "val_loss", ".4f"),
                plus_minus(each, "val_accuracy", ".4f"),
                cell(each, "seconds", ".1f"),
                cell(each, "communication_seconds", ".1f"),
                cell(each, "bytes_sent_per_worker", ".1f", 1e-6),
                cell(each, "global_share", ".1%"),
                cell(each, "consensus_distance", ".1e"),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{text:{'<' if n == 0 else '>'}{widths[n]}}" for n, text in enumerate(line))
        for line in lines
    )


def draw(path: pathlib.Path, title: str, steps_per_epoch: int, runs: dict):
    """Validation loss of the averaged model against steps and against seconds."""
    figure = results.new_figure(title)
    by_step, by_second = figure.subplots(1, 2, sharey=True)
    for color, (name, measured) in zip(results.PALETTE, runs.items(), strict=False):
        losses = np.array([each["history"]["val_loss"] for each in measured])  # [seeds, epochs]
        mean = losses.mean(0)
        steps = steps_per_epoch * (1 + np.arange(len(mean)))
        style = {"color": color, "label": name, "ls": ":" if name == ALONE else "-", "marker": "."}
        by_step.plot(steps, mean, **style)
        band = (losses.min(0), losses.max(0))
        by_step.fill_between(steps, *band, color=color, alpha=0.15, linewidth=0)
        if name != ALONE:  # on one process: not the same machine
            by_second.plot(np.median([each["clock"] for each in measured], 0), mean, **style)
    by_step.set(title="Validation loss, averaged model: mean and range", yscale="log")
    by_second.set(title="The same against time: median of seeds")
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside right center", frameon=False)
    results.finish(by_step, xlabel="step")
    results.finish(by_second, xlabel="seconds after the first batch")
    figure.savefig(path)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
