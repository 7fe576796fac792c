"""Define the flags of `train.py`, and the settings that each algorithm fixes.

This module does not import TensorFlow: the process that starts the local workers rejects bad flags
before TensorFlow loads.
"""

from absl import flags

import models
from models import inputs, recipes
from tf_gossip_pga.algorithm import topology

_WITHOUT_GOSSIP = {"overlap": False, "wire_dtype": "float32"}
# The settings of GossipPGA that each algorithm fixes; a flag must not contradict them.
ALGORITHMS = {
    "pga": {},
    "aga": {},
    "gossip": {"H": None, "optimizer_state": "local"},  # other states need global averages
    "local": {"topology": "disconnected", **_WITHOUT_GOSSIP},
    "parallel": {"H": 1, "topology": "complete", **_WITHOUT_GOSSIP},
}
PERIODS = {"aga": 4}  # defaults of --H, from the paper; 6 for every other algorithm
_RECIPE = "Default: the model's."

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "resnet20", f"One of {', '.join(models.MODELS)}.")
flags.DEFINE_string(
    "dataset",
    None,
    f"One of {', '.join(inputs.EMBEDDED)}, or any set of TensorFlow Datasets that has been "
    f"prepared. {_RECIPE}",
)
flags.DEFINE_string("data_dir", None, "Of TensorFlow Datasets; default: its own.")
flags.DEFINE_string("vocabulary", None, "Of text: a file with one token a line; default: trained.")
flags.DEFINE_integer("sequence_length", 64, "Of text: tokens of an example.")
flags.DEFINE_string("initial_model", None, "A model.keras to start from, rather than at random.")
flags.DEFINE_enum(
    "algorithm",
    "pga",
    list(ALGORITHMS),
    "pga: gossip with neighbors, global average every H-th step. aga: the same with an H that "
    "grows as the loss falls. gossip: no global average. local: no gossip. parallel: a global "
    "average in every step.",
)
flags.DEFINE_integer(
    "H",
    None,
    "Steps from one global average to the next; default 6. With aga: at first; default 4.",
    lower_bound=1,
)
flags.DEFINE_string(
    "topology", "one_peer_exponential", f"Who gossips with whom: {', '.join(topology.BY_NAME)}."
)
flags.DEFINE_enum(
    "optimizer_state",
    "local",
    ["local", "average", "reset"],
    "What becomes of momentum and the like at a global average.",
)
flags.DEFINE_bool("overlap", False, "Gossip while the next step computes.")
flags.DEFINE_enum(
    "wire_dtype",
    "float32",
    ["float32", "bfloat16", "int8"],
    "In what form a gossip sends parameters; global averages are exact.",
)
flags.DEFINE_integer("workers", 4, "Local processes, where TF_CONFIG is not set.", lower_bound=1)
flags.DEFINE_integer(
    "classes_per_worker", None, "Each worker sees so many classes only; default: all."
)
flags.DEFINE_integer("epochs", None, f"Epochs to train. {_RECIPE}")
flags.DEFINE_integer(
    "steps_per_epoch", None, "Steps of an epoch; default: one pass over the data.", lower_bound=1
)
flags.DEFINE_integer("batch_size", None, f"Examples in a worker's batch. {_RECIPE}")
flags.DEFINE_enum("optimizer", None, recipes.OPTIMIZERS, _RECIPE)
flags.DEFINE_float(
    "learning_rate",
    None,
    "The highest, after the warm-up, of one process with the global batch. With adamw each of n "
    f"workers multiplies it by sqrt(n), and divides the weight decay by as much. {_RECIPE}",
)
flags.DEFINE_integer(
    "reference_batch",
    None,
    "The global batch that the learning rate is meant for; it is scaled in proportion to the real "
    f"one. 0: not scaled. {_RECIPE}",
)
flags.DEFINE_enum(
    "schedule",
    None,
    recipes.SCHEDULES,
    "Learning rate after the warm-up; steps: divided by 10 after a quarter, a half and three "
    f"quarters of all steps. {_RECIPE}",
)
flags.DEFINE_float("warmup", None, f"Share of all steps in which the rate rises. {_RECIPE}")
flags.DEFINE_float("weight_decay", None, f"Not of biases and normalizations. {_RECIPE}")
flags.DEFINE_float("label_smoothing", None, _RECIPE)
flags.DEFINE_bool("augment", None, f"Change training images at random. {_RECIPE}")
flags.DEFINE_float("clip_norm", None, f"Greatest norm of a gradient; 0: any. {_RECIPE}")
flags.DEFINE_enum(
    "precision", "float32", ["float32", "mixed_bfloat16", "mixed_float16"], "Keras' dtype policy."
)
flags.DEFINE_integer(
    "seed", 0, "Of initial weights, shuffling and augmentation.", lower_bound=0, upper_bound=1 << 30
)
flags.DEFINE_string("output_dir", "output", "Where rank 0 writes; made if it is not there.")
flags.DEFINE_integer(
    "checkpoint_every",
    0,
    "Epochs from one checkpoint in --output_dir/checkpoints to the next; 0: none.",
    lower_bound=0,
)
flags.DEFINE_bool("resume", False, "Go on from the newest of these checkpoints, if there is one.")


def period() -> int | None:
    """Return the period of the global average in steps, or None for no global average.

    A period that the algorithm fixes precedes `--H`; without either it is the default.
    """
    default = PERIODS.get(FLAGS.algorithm, 6)
    return ALGORITHMS[FLAGS.algorithm].get("H", FLAGS.H or default)


def topology_name() -> str:
    """Return the name of the topology: the one that the algorithm fixes, or else `--topology`."""
    return ALGORITHMS[FLAGS.algorithm].get("topology", FLAGS.topology)
