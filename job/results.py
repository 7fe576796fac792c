"""The content of `results.json`, collected from all workers.

    algorithm, model, dataset, H, topology, optimizer_state, overlap, wire_dtype, workers, epochs
    steps, gossip_steps, global_steps       the steps of `local` count as gossip with no neighbor
    parameters              number of trainable parameters
    train_loss              mean over the workers in the last epoch
    val_loss, val_accuracy  of the averaged model on all validation examples; this loss is the
                            cross-entropy, without the label smoothing in the history's
    unigram_cross_entropy   of the same validation text, in nats; None for images
    seconds, compute_seconds, communication_seconds
    bytes_sent_per_worker   mean over the workers
    consensus_distance      before the last average of replicas that differed, in training, for
                            validation or at the end; None with one worker
    history                 for each logged name, a list with one value for each epoch

In a resumed run, `epochs` and `steps` count the whole run; all else covers what came after.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

from job.flags import FLAGS, period, topology_name
from job.spec import Job
from models import inputs, recipes

if TYPE_CHECKING:
    import keras

    from tf_gossip_pga import Cluster, GossipPGA


@dataclasses.dataclass(frozen=True)
class Run:
    """What one training leaves behind.

    Attributes:
      model: the trained model.
      history: for each logged name, its values from `first_epoch` on.
      seconds: duration of `fit`.
      first_epoch: where a resumed run began; 0 otherwise.
    """

    model: "keras.Model"
    history: dict
    seconds: float
    first_epoch: int


def collect(cluster: "Cluster", job: Job, run: Run, gossip: "GossipPGA", timeout_s: float) -> dict:
    """Return the content of `results.json` on rank 0, and an empty dict on the other ranks.

    All ranks must call it.
    """
    sent = cluster.gather(gossip.bytes_sent, timeout_s)
    if not cluster.is_chief:
        return {}
    measured = evaluate(job, run.model)
    data = job.data
    return {
        "algorithm": FLAGS.algorithm,
        "model": FLAGS.model,
        "dataset": data.name,
        "H": period(),
        "topology": topology_name(),
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
    """Return the consensus distance when replicas last differed; None with one worker.

    Validation and the end of training, right after a global average, find replicas that agree: a
    distance of 0 that says nothing.
    """
    values = [distance for _, distance in distances]
    return next((value for value in reversed(values) if value != 0), values[-1] if values else None)


def evaluate(job: Job, model: "keras.Model") -> dict[str, float]:
    """Return loss and accuracy on all validation examples, without label smoothing."""
    import keras

    plain = keras.Model(model.inputs, model.outputs)  # the compiled model keeps its optimizer
    loss = recipes.loss(dataclasses.replace(job.recipe, label_smoothing=0.0), job.data.kind)
    plain.compile(loss=loss, weighted_metrics=["accuracy"])
    data = job.data.validation(0, 1, 256)
    return plain.evaluate(data, verbose=0, return_dict=True)  # pyright: ignore[reportArgumentType]
