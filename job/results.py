"""Collect the content of `results.json` from all workers.

    algorithm, model, dataset, H, topology, gossip_every, optimizer_state, overlap, wire_dtype
    workers, epochs
    outer_optimizer         dict with the arguments of `pga.Outer`; null without an outer optimizer
    steps, gossip_steps, global_steps
                            numbers of steps; every step without a global average counts as a
                            gossip step, even if no gossip follows it
    parameters              number of trainable parameters
    train_loss              mean over workers in the last epoch
    val_loss, val_accuracy  of the averaged model on all validation examples. `val_loss` is the
                            plain cross-entropy; the losses in `history` include label smoothing
    unigram_cross_entropy   of the best model without context on the same validation text, in nats;
                            null for images
    seconds, compute_seconds, communication_seconds
                            duration of `fit`, the part without exchanges, and the part in exchanges
    bytes_sent_per_worker   mean over workers
    consensus_distance      right before the last average of replicas that differed, whether in
                            training, for validation or at the end; null with one worker
    history                 for each logged name, a list with one value per epoch

In a resumed run, `epochs` and `steps` cover the whole run. All other counts, times and logs cover
only the part after resuming.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

from job.flags import FLAGS, outer_optimizer, period, topology_name
from job.spec import Job
from models import inputs, recipes

if TYPE_CHECKING:
    import keras

    from tf_gossip_pga import Cluster, GossipPGA


@dataclasses.dataclass(frozen=True)
class Run:
    """The outcome of one `fit`.

    Attributes:
      model: the trained model.
      history: for each logged name, one value per epoch, starting at `first_epoch`.
      seconds: duration of `fit`.
      first_epoch: epoch at which `fit` resumed an earlier run; 0 for a new run.
    """

    model: "keras.Model"
    history: dict
    seconds: float
    first_epoch: int


def collect(cluster: "Cluster", job: Job, run: Run, gossip: "GossipPGA", timeout_s: float) -> dict:
    """Return the content of `results.json` on rank 0, and an empty dict on other ranks.

    Every rank must call this function.

    Args:
      cluster: the cluster.
      job: what was trained.
      run: the outcome of `fit`.
      gossip: the callback, which counted steps and bytes.
      timeout_s: seconds to wait for the other ranks.
    """
    sent = cluster.gather(gossip.bytes_sent, timeout_s)
    if not cluster.is_chief:
        return {}
    measured = evaluate(job, run.model)
    data, outer = job.data, outer_optimizer()
    return {
        "algorithm": FLAGS.algorithm,
        "model": FLAGS.model,
        "dataset": data.name,
        "H": period(),
        "topology": topology_name(),
        "gossip_every": None if FLAGS.algorithm == "auto" else FLAGS.gossip_every,
        "optimizer_state": FLAGS.optimizer_state,
        "outer_optimizer": None if outer is None else dataclasses.asdict(outer),
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
        "unigram_cross_entropy": data.unigram_cross_entropy()
        if isinstance(data, inputs.Text)
        else None,
        "seconds": run.seconds,
        "compute_seconds": run.seconds - gossip.communication_seconds,
        "communication_seconds": gossip.communication_seconds,
        "bytes_sent_per_worker": sum(sent) / len(sent),
        "consensus_distance": last_distance(gossip.distances),
        "history": run.history,
    }


def last_distance(distances: list[tuple[int, float]]) -> float | None:
    """Return the last consensus distance that is not 0; 0 if all are 0, None if there are none.

    Replicas are also averaged for validation and at the end of training. If this happens right
    after another global average, the replicas are already equal. The distance is then 0, which says
    nothing about training.

    Args:
      distances: `[(step, consensus distance), …]`.
    """
    values = [distance for _, distance in distances]
    return next((value for value in reversed(values) if value != 0), values[-1] if values else None)


def evaluate(job: Job, model: "keras.Model") -> dict[str, float]:
    """Return `loss` and `accuracy` on all validation examples, without label smoothing.

    Args:
      job: what was trained.
      model: the trained model, which is not recompiled.
    """
    import keras

    # Compile a second model with the same weights, to keep the loss and optimizer of `model`.
    plain = keras.Model(model.inputs, model.outputs)
    loss = recipes.loss(dataclasses.replace(job.recipe, label_smoothing=0.0), job.data.kind)
    plain.compile(loss=loss, weighted_metrics=["accuracy"])
    data = job.data.validation(0, 1, 256)
    return plain.evaluate(data, verbose=0, return_dict=True)  # pyright: ignore[reportArgumentType]
