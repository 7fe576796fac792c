"""The main job: trains a model on several workers with Gossip-PGA or a relative, and reports.

    python train.py                              # 4 local workers, ResNet-20, handwritten digits
    python train.py --model=bert_tiny            # a masked language model of Python's own manual
    python train.py --algorithm=local --H=12 --workers=2
    python train.py --model=resnet50 --data_dir=/data/tfds        # ImageNet, where it is prepared
    python train.py --help

Where `TF_CONFIG` is set this process is one worker of that cluster; start the same command on every
machine. Where it is not, this process starts `--workers` local ones. Rank 0 prints a table and
writes `results.json`, `curves.png` and `model.keras` into `--output_dir`.
"""

import dataclasses
import math
import os
import sys
import time
import zlib

from absl import app, flags, logging

import models
import results
import settings
from models import inputs, recipes
from settings import FLAGS
from tf_gossip_pga import launch
from tf_gossip_pga.cluster import tf_config as cluster_lib

flags.adopt_module_key_flags(settings)  # for --help

PATIENCE_S = 24 * 3600  # one rank may train a vocabulary, or a model, while the others wait


def main(argv):
    start(argv, worker)


def start(argv, work):
    """Calls `work` as one worker of the cluster, or starts this program once for each worker."""
    config = os.environ.get("TF_CONFIG", "").strip()
    try:
        settings.check(argv, cluster_lib.from_tf_config(config) if config else None)
    except ValueError as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {error}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if config:
        work()
    else:
        sys.exit(launch.run([sys.executable, *sys.argv], FLAGS.workers))


def worker():
    """Trains as one worker of the cluster; rank 0 reports."""
    import tf_gossip_pga as pga

    cluster = pga.initialize()  # before the first tensor
    job = settings.find_job(cluster.size)
    check_vocabularies(job.data)
    gossip = gossip_callback(job)
    callbacks = [gossip]
    if FLAGS.checkpoint_every:
        folder = os.path.join(FLAGS.output_dir, "checkpoints")
        callbacks.append(pga.Checkpoint(gossip, folder, FLAGS.checkpoint_every))
    run = train(cluster, job, callbacks, 1 if sys.stdout.isatty() else 2, FLAGS.resume)
    if FLAGS.checkpoint_every and callbacks[-1].preempted:
        if cluster.is_chief:
            print("Stopped by SIGTERM. The same command with --resume goes on.", flush=True)
        return
    content = collect(cluster, job, run, gossip)
    if cluster.is_chief:
        vocabulary = job.data.vocabulary if job.data.kind == "text" else None
        results.report(FLAGS.output_dir, run.model, content, gossip.distances, vocabulary)


def check_vocabularies(data: inputs.Data):
    """Raises `ValueError` on all ranks if they number their tokens differently."""
    if data.kind != "text":
        return
    from tf_gossip_pga.exchange import collectives

    tokens = "\n".join(data.vocabulary).encode()
    digests = collectives.active().gather(zlib.crc32(tokens), "the vocabularies", PATIENCE_S)
    odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if odd:
        raise ValueError(
            f"The vocabulary of rank {odd[0]} is not rank 0's: each was trained on its own copy of "
            f"{data.name}. Give all ranks the same file with --vocabulary."
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """What `train` leaves behind: `history` maps a name to its values per epoch.

    A resumed run has those from `first_epoch` on.
    """

    model: object
    history: dict
    seconds: float
    first_epoch: int


def train(
    cluster: cluster_lib.Cluster, job: settings.Job, callbacks, verbose: int = 0, resume=False
) -> Run:
    """One run, on this worker's part of the data.

    Args:
      cluster: this worker's place.
      job: what to train.
      callbacks: for `fit`.
      verbose: rank 0's, as in `fit`.
      resume: whether the last of the callbacks, a `Checkpoint`, restores an earlier run.
    """
    import keras

    keras.config.set_dtype_policy(FLAGS.precision)
    # Ranks differ in shuffling and augmentation; initial weights will be rank 0's everywhere.
    keras.utils.set_random_seed(FLAGS.seed + cluster.rank)
    data, recipe = job.data, job.recipe
    with cluster.strategy.scope():  # all devices of this worker
        model = models.build(FLAGS.model, **data.arguments)
        if FLAGS.initial_model:
            model.load_weights(FLAGS.initial_model)
        model.compile(
            recipes.optimizer(recipe, model, job.steps, recipe.batch_size * cluster.size),
            recipes.loss(recipe, data.kind),
            weighted_metrics=["accuracy"],
        )
    first_epoch = callbacks[-1].restore(model) if resume else 0
    if first_epoch >= recipe.epochs:
        raise ValueError(
            f"The checkpoint is of epoch {first_epoch}: nothing is left of "
            f"--epochs={recipe.epochs}. Give more, or leave --resume out to begin anew."
        )
    if first_epoch:  # not the orders of the first epochs once more
        keras.utils.set_random_seed(FLAGS.seed + cluster.rank + first_epoch * cluster.size)
    training = data.training(
        cluster.rank, cluster.size, recipe.batch_size, job.classes_per_worker, recipe.augment
    )
    # Each rank its part; logs are means over ranks.
    validation = data.validation(cluster.rank, cluster.size, recipe.batch_size)
    if next(iter(validation), None) is None:
        raise ValueError(
            f"The validation text of {data.name} gives fewer rows than there are workers, "
            f"{cluster.size}. Use fewer workers or a smaller --sequence_length."
        )
    started = time.perf_counter()
    history = model.fit(
        training,
        epochs=recipe.epochs,
        initial_epoch=first_epoch,
        steps_per_epoch=job.steps_per_epoch,
        validation_data=validation,
        shuffle=False,  # tf.data has done so
        callbacks=callbacks,
        verbose=verbose if cluster.is_chief else 0,
    )
    return Run(model, history.history, time.perf_counter() - started, first_epoch)


def gossip_callback(job: settings.Job):
    """`GossipPGA` as the flags say."""
    import tf_gossip_pga as pga

    period = settings.setting("H")
    if FLAGS.algorithm == "aga":
        longest = max(period, pga.AdaptivePeriod.maximum)
        period = pga.AdaptivePeriod(period, warmup_steps=job.steps // 3, maximum=longest)
    return pga.GossipPGA(
        period,
        settings.setting("topology"),
        FLAGS.optimizer_state,
        FLAGS.overlap,
        FLAGS.wire_dtype,
    )


def collect(cluster, job: settings.Job, run: Run, gossip) -> dict:
    """On rank 0 the content of `results.json`; the others, which it must hear, get nothing."""
    from tf_gossip_pga.exchange import collectives

    sent = collectives.active().gather(gossip.bytes_sent, "the results", PATIENCE_S)
    if not cluster.is_chief:
        return {}
    measured = evaluate(job, run.model)
    text = job.data.kind == "text"
    return {
        "algorithm": FLAGS.algorithm,
        "model": FLAGS.model,
        "dataset": job.data.name,
        "H": settings.setting("H"),
        "topology": settings.setting("topology"),
        "optimizer_state": FLAGS.optimizer_state,
        "overlap": FLAGS.overlap,
        "wire_dtype": FLAGS.wire_dtype,
        "workers": cluster.size,
        "epochs": run.first_epoch + len(run.history["loss"]),
        "steps": gossip.step,
        "gossip_steps": gossip.gossip_steps,
        "global_steps": gossip.global_steps,
        "parameters": sum(math.prod(v.shape) for v in run.model.trainable_variables),
        "train_loss": run.history["loss"][-1],
        "val_loss": measured["loss"],
        "val_accuracy": measured["accuracy"],
        "unigram_cross_entropy": job.data.unigram_cross_entropy() if text else None,
        "seconds": run.seconds,
        "compute_seconds": run.seconds - gossip.communication_seconds,
        "communication_seconds": gossip.communication_seconds,
        "bytes_sent_per_worker": sum(sent) / len(sent),
        "consensus_distance": last_distance(gossip.distances),
        "history": run.history,
    }


def last_distance(distances: list[tuple[int, float]]) -> float | None:
    """The last of replicas that had steps of their own; None with one worker.

    Of replicas that agree already, which validation and the end of training find right after a
    global average, it is 0 and tells nothing.
    """
    values = [distance for _, distance in distances]
    return next((value for value in reversed(values) if value != 0), values[-1] if values else None)


def evaluate(job: settings.Job, model) -> dict:
    """Loss and accuracy of a model on all validation examples, without label smoothing."""
    import keras

    plain = keras.Model(model.inputs, model.outputs)  # the compiled one keeps its optimizer
    loss = recipes.loss(dataclasses.replace(job.recipe, label_smoothing=0.0), job.data.kind)
    plain.compile(loss=loss, weighted_metrics=["accuracy"])
    return plain.evaluate(job.data.validation(0, 1, 256), verbose=0, return_dict=True)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # app.run alone would show what TensorFlow logs as INFO
    app.run(main)
