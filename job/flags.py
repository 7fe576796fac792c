"""Define the flags of `train.py`, and the settings that each algorithm fixes.

This module does not import TensorFlow, because the process that starts the local workers rejects
bad flags before TensorFlow is loaded.
"""

from typing import Any, Literal

from absl import flags

import models
from models import inputs, recipes
from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.algorithm.outer import Outer

_WITHOUT_GOSSIP = {"gossip_every": 1, "overlap": False, "wire_dtype": "float32"}
# The settings of GossipPGA that each algorithm fixes; a flag must not contradict them.
ALGORITHMS = {
    "pga": {},
    "aga": {},
    "auto": {"H": "auto", "gossip_every": 1},
    # These need global averages.
    "gossip": {"H": None, "optimizer_state": "local", "outer_learning_rate": None},
    "local": {"topology": "disconnected", **_WITHOUT_GOSSIP},
    "parallel": {"H": 1, "topology": "complete", **_WITHOUT_GOSSIP},
}
PERIODS = {"aga": 4}  # defaults of --H, from the paper; 6 for every other algorithm
_RECIPE = "Default: from the model's recipe."

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "resnet20", f"Model to train: {', '.join(models.MODELS)}.")
flags.DEFINE_string(
    "dataset",
    None,
    f"Data to train on: {', '.join(inputs.EMBEDDED)}, or a set of TensorFlow Datasets that is "
    f"already prepared in --data_dir. {_RECIPE}",
)
flags.DEFINE_string(
    "data_dir", None, "Directory of TensorFlow Datasets. Default: that of the library."
)
flags.DEFINE_string(
    "vocabulary",
    None,
    "For text: file with one token a line. Default: train a vocabulary once, and keep it next to "
    "the data.",
)
flags.DEFINE_integer("sequence_length", 64, "For text: number of tokens in an example.")
flags.DEFINE_string(
    "initial_model",
    None,
    "Saved model.keras whose weights to start from. Default: random initial weights.",
)
flags.DEFINE_enum(
    "algorithm",
    "pga",
    list(ALGORITHMS),
    "pga: gossip with neighbors, and a global average on every H-th step. aga: the same with an H "
    "that grows as the loss falls. auto: the same with an H and a --gossip_every that follow the "
    "measured times and distances. gossip: no global averages. local: no gossip. parallel: a "
    "global average on every step.",
)
flags.DEFINE_integer(
    "H",
    None,
    "Period: steps from one global average to the next. Default: 6. With aga: the first period; "
    "default: 4.",
    lower_bound=1,
)
flags.DEFINE_string(
    "topology",
    "one_peer_exponential",
    f"Graph of the workers that gossip: {', '.join(topology.BY_NAME)}.",
)
flags.DEFINE_integer(
    "gossip_every",
    1,
    "Number of steps from one gossip to the next; less than --H, unless it is 1.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "optimizer_state",
    "local",
    ["local", "average", "reset"],
    "What a global average does to the optimizer's variables, such as momentum: leave them local, "
    "average them, or reset them to 0.",
)
flags.DEFINE_float(
    "outer_learning_rate",
    None,
    "Learning rate of the outer optimizer, which takes a step at every H-th step, as in DiLoCo and "
    "SlowMo. Default: no outer optimizer.",
)
flags.DEFINE_float(
    "outer_momentum", Outer.momentum, "Momentum of the outer optimizer, at least 0 and below 1."
)
flags.DEFINE_bool("outer_nesterov", Outer.nesterov, "Use Nesterov momentum in the outer optimizer.")
flags.DEFINE_bool("overlap", False, "Gossip during the computation of the next steps.")
flags.DEFINE_enum(
    "wire_dtype",
    "float32",
    ["float32", "bfloat16", "int8"],
    "Wire format of gossips. Global averages are not compressed.",
)
flags.DEFINE_integer(
    "workers",
    4,
    "Number of local workers to start if nothing else has started them.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "classes_per_worker",
    None,
    "Number of classes that each worker trains on, to make data differ between workers. Default: "
    "all.",
)
flags.DEFINE_integer("epochs", None, f"Number of epochs. {_RECIPE}")
flags.DEFINE_integer(
    "steps_per_epoch",
    None,
    "Number of steps in an epoch. Default: one pass over the data.",
    lower_bound=1,
)
flags.DEFINE_integer("batch_size", None, f"Batch size of one worker. {_RECIPE}")
flags.DEFINE_enum("optimizer", None, recipes.OPTIMIZERS, f"Optimizer. {_RECIPE}")
flags.DEFINE_float(
    "learning_rate",
    None,
    "Highest learning rate, reached after the warm-up, for one process that trains on the global "
    "batch. With adamw and n workers it is multiplied by sqrt(n), and the weight decay divided by "
    f"sqrt(n). {_RECIPE}",
)
flags.DEFINE_integer(
    "reference_batch",
    None,
    "Global batch size for which the learning rate is meant; with another one the rate is scaled "
    f"in proportion. 0: do not scale. {_RECIPE}",
)
flags.DEFINE_enum(
    "schedule",
    None,
    recipes.SCHEDULES,
    "Learning rate after the warm-up. cosine and linear: fall to 0. steps: divided by 10 after a "
    f"quarter, a half and three quarters of all steps. {_RECIPE}",
)
flags.DEFINE_float(
    "warmup",
    None,
    f"Share of all steps, below 1, during which the learning rate rises from 0. {_RECIPE}",
)
flags.DEFINE_float(
    "weight_decay",
    None,
    f"Decoupled weight decay; biases and normalization layers have none. {_RECIPE}",
)
flags.DEFINE_float(
    "label_smoothing",
    None,
    f"Probability to take from the label and spread over all classes. {_RECIPE}",
)
flags.DEFINE_bool("augment", None, f"Change training images at random. {_RECIPE}")
flags.DEFINE_float(
    "clip_norm", None, f"Largest norm of a worker's gradient; 0: no clipping. {_RECIPE}"
)
flags.DEFINE_enum(
    "precision", "float32", ["float32", "mixed_bfloat16", "mixed_float16"], "Keras dtype policy."
)
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of initial weights, shuffling and augmentation.",
    lower_bound=0,
    upper_bound=1 << 30,
)
flags.DEFINE_string(
    "output_dir", "output", "Directory that rank 0 writes to; created if it does not exist."
)
flags.DEFINE_integer(
    "checkpoint_every",
    0,
    "Save a checkpoint in --output_dir/checkpoints each time this number of epochs has passed. 0: "
    "never.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "resume", False, "Resume from the newest checkpoint of --checkpoint_every, if there is one."
)


def period() -> int | Literal["auto"] | None:
    """Return the period in steps, None for no global average, or `"auto"`.

    A period that the algorithm fixes takes precedence over `--H`. Without either, the default
    applies.
    """
    default = PERIODS.get(FLAGS.algorithm, 6)
    settings: dict[str, Any] = ALGORITHMS[FLAGS.algorithm]
    return settings.get("H", FLAGS.H or default)


def outer_optimizer() -> Outer | None:
    """Return the outer optimizer that the flags describe, or None.

    Raises:
      ValueError: a flag is out of range, or there is no `--outer_learning_rate`.
    """
    rate = FLAGS.outer_learning_rate
    if rate is not None:
        try:
            return Outer(rate, FLAGS.outer_momentum, FLAGS.outer_nesterov)
        except ValueError as error:
            raise ValueError(f"--outer_learning_rate or --outer_momentum: {error}") from None
    for name in ("outer_momentum", "outer_nesterov"):
        if FLAGS[name].present:
            raise ValueError(
                f"--{name} requires --outer_learning_rate. Give --outer_learning_rate="
                f"{Outer.learning_rate}, or leave --{name} out."
            )
    return None


def topology_name() -> str:
    """Return the topology's name: the one that the algorithm fixes, or else `--topology`."""
    return ALGORITHMS[FLAGS.algorithm].get("topology", FLAGS.topology)
