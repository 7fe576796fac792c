"""Train a model on several workers with Gossip-PGA or a related algorithm, and report the result.

    python train.py                              # 4 local workers, ResNet-20, handwritten digits
    python train.py --model=bert_tiny            # masked language model of the Python manual
    python train.py --algorithm=local --H=12 --workers=2
    python train.py --model=resnet50 --data_dir=/data/tfds        # ImageNet, already prepared there
    python train.py --help

If `TF_CONFIG` is set, or `srun`, `mpirun` or a similar program has started this process as one of
several, it is one worker of that cluster. Otherwise, this process starts `--workers` workers on
this machine. Rank 0 prints a table and writes `results.json`, `curves.png`, `report.html` and
`model.keras` to `--output_dir`, and for a text model also `vocabulary.txt`. It writes the page
`report.html` during training too.
"""

import os
import sys
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import app, logging
from absl import flags as absl_flags

import models
from job import checks, flags, report, results
from job.flags import FLAGS
from job.spec import Job, find_job
from models import inputs, recipes
from tf_gossip_pga import launch
from tf_gossip_pga.cluster import detect

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    import tf_gossip_pga as pga

absl_flags.adopt_module_key_flags(flags)  # for --help

# Deadline for waiting for other ranks. One rank may train a vocabulary, or a model in
# benchmarks/compare.py, while the others wait.
PATIENCE_S = 24 * 3600.0


def main(argv: list[str]) -> None:
    """Train as a worker of the cluster, or start local workers that do."""
    start(argv, worker)


def start(argv: list[str], work: Callable[[], None]) -> None:
    """Call `work` if this process is a worker; otherwise start this program once per worker.

    Args:
      argv: the program name and the arguments that remain after parsing flags.
      work: function to call in each worker.
    """
    try:
        place = detect.find()
        is_worker = bool(place.found_by)
        checks.check(argv, place if is_worker else None)
    except ValueError as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {error}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if is_worker:
        work()
    else:
        sys.exit(launch.run([sys.executable, *sys.argv], FLAGS.workers, share_gpus=True))


def worker() -> None:
    """Train as one worker of the cluster, and report on rank 0."""
    import tf_gossip_pga as pga

    cluster = pga.initialize()  # before the first tensor
    job = find_job(cluster.size)
    check_vocabularies(cluster, job.data)
    gossip = gossip_callback(job)
    callbacks: list[keras.callbacks.Callback] = [gossip]
    checkpoint = None
    if FLAGS.checkpoint_every:
        folder = os.path.join(FLAGS.output_dir, "checkpoints")
        checkpoint = pga.Checkpoint(gossip, folder, FLAGS.checkpoint_every)
        callbacks.append(checkpoint)
    callbacks.append(pga.Report(os.path.join(FLAGS.output_dir, report.PAGE)))
    verbose = 1 if sys.stdout.isatty() else 2
    run = train(cluster, job, callbacks, verbose, checkpoint if FLAGS.resume else None)
    if checkpoint and checkpoint.preempted:
        if cluster.is_chief:
            print("Stopped by SIGTERM. The same command with --resume continues.", flush=True)
        checkpoint.exit_if_preempted()
    content = results.collect(cluster, job, run, gossip, PATIENCE_S)
    if cluster.is_chief:
        vocabulary = job.data.vocabulary if isinstance(job.data, inputs.Text) else None
        report.report(FLAGS.output_dir, run.model, content, gossip.distances, vocabulary)


def check_vocabularies(cluster: "pga.Cluster", data: inputs.Data) -> None:
    """Raise `ValueError` on all ranks if their vocabularies differ.

    If token ids differed, the ranks would average embedding rows of unrelated tokens.
    """
    if not isinstance(data, inputs.Text):
        return
    tokens = "\n".join(data.vocabulary).encode()
    digests = cluster.gather(zlib.crc32(tokens), PATIENCE_S)
    odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if odd:
        raise ValueError(
            f"The vocabulary of rank {odd[0]} differs from rank 0's: each was trained on its own "
            f"copy of {data.name}. Give all ranks the same file with --vocabulary."
        )


def gossip_callback(job: Job) -> "pga.GossipPGA":
    """Return the `GossipPGA` callback that the flags describe."""
    import tf_gossip_pga as pga

    period = flags.period()
    if FLAGS.algorithm == "aga" and isinstance(period, int):
        longest = max(period, pga.AdaptivePeriod.maximum)
        period = pga.AdaptivePeriod(period, warmup_steps=job.steps // 3, maximum=longest)
    return pga.GossipPGA(
        period,
        flags.topology_name(),
        FLAGS.gossip_every,
        FLAGS.optimizer_state,
        flags.outer_optimizer(),
        FLAGS.overlap,
        FLAGS.wire_dtype,
    )


def train(
    cluster: "pga.Cluster",
    job: Job,
    callbacks: "list[keras.callbacks.Callback]",
    verbose: int = 0,
    resume_from: "pga.Checkpoint | None" = None,
) -> results.Run:
    """Build the model, and run `fit` on this worker's part of the data.

    Args:
      cluster: the cluster, as `pga.initialize` returns it.
      job: what to train.
      callbacks: callbacks for `fit`.
      verbose: verbosity of `fit` on rank 0. Other ranks print nothing. Default 0.
      resume_from: checkpoint callback from which to restore an earlier run. Default None.

    Raises:
      ValueError: the restored checkpoint is from the last epoch or a later one.
    """
    import keras

    keras.config.set_dtype_policy(FLAGS.precision)
    # Each rank shuffles and augments differently. Rank 0 broadcasts its initial weights.
    keras.utils.set_random_seed(FLAGS.seed + cluster.rank)
    model = compiled_model(cluster, job)
    first_epoch = resume_from.restore(model) if resume_from else 0
    if first_epoch >= job.recipe.epochs:
        raise ValueError(
            f"The checkpoint is of epoch {first_epoch}, and --epochs={job.recipe.epochs} has no "
            "epoch after it. Give more epochs, or leave --resume out to start over."
        )
    if first_epoch:  # with the same seed, the data would repeat the order of the first epochs
        keras.utils.set_random_seed(FLAGS.seed + cluster.rank + first_epoch * cluster.size)
    training, validation = datasets(cluster, job)
    started = time.perf_counter()
    history = model.fit(
        training,
        epochs=job.recipe.epochs,
        initial_epoch=first_epoch,
        steps_per_epoch=job.steps_per_epoch,
        validation_data=validation,
        shuffle=False,  # tf.data already shuffles, and Keras would warn
        callbacks=callbacks,
        verbose=verbose if cluster.is_chief else 0,  # pyright: ignore[reportArgumentType]
    )
    return results.Run(model, history.history, time.perf_counter() - started, first_epoch)


def compiled_model(cluster: "pga.Cluster", job: Job) -> "keras.Model":
    """Return the compiled model, built in the scope of this worker's devices."""
    recipe = job.recipe
    global_batch = recipe.batch_size * cluster.size
    with cluster.strategy.scope():
        model = models.build(FLAGS.model, **job.data.arguments)
        if FLAGS.initial_model:
            model.load_weights(FLAGS.initial_model)
        model.compile(
            recipes.optimizer(recipe, model, job.steps, global_batch, cluster.size),
            recipes.loss(recipe, job.data.kind),
            weighted_metrics=["accuracy"],
        )
    return model


def datasets(cluster: "pga.Cluster", job: Job) -> "tuple[tf.data.Dataset, tf.data.Dataset]":
    """Return this worker's endless training batches and its validation batches.

    Raises:
      ValueError: there are fewer validation examples than workers.
    """
    data, recipe = job.data, job.recipe
    training = data.training(
        cluster.rank, cluster.size, recipe.batch_size, job.classes_per_worker, recipe.augment
    )
    # Each rank validates on its own part. GossipPGA averages the logs over ranks.
    validation = data.validation(cluster.rank, cluster.size, recipe.batch_size)
    if next(iter(validation), None) is None:
        raise ValueError(
            f"The validation text of {data.name} gives fewer rows than there are workers, "
            f"{cluster.size}. Use fewer workers or a smaller --sequence_length."
        )
    return training, validation


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # otherwise, app.run shows TensorFlow's INFO messages
    app.run(main)
