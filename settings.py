"""What the flags of `train.py` say, and whether they fit together.

Nothing here may import TensorFlow: bad flags are answered before it has loaded, and the process
that starts local workers does without it.
"""

import dataclasses
import json
import os
import pathlib
import zipfile

from absl import flags

import models
from models import inputs, recipes, vocabulary
from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.cluster import tf_config as cluster_lib

_WITHOUT_GOSSIP = {"overlap": False, "wire_dtype": "float32"}
# What an algorithm fixes of Gossip-PGA's settings; the flag of this name may not say otherwise.
ALGORITHMS = {
    "pga": {},
    "aga": {},
    "gossip": {"H": None, "optimizer_state": "local"},  # it acts at global averages
    "local": {"topology": "disconnected", **_WITHOUT_GOSSIP},
    "parallel": {"H": 1, "topology": "complete", **_WITHOUT_GOSSIP},
}
PERIODS = {"aga": 4}  # where --H is not given; 6 otherwise. The paper's.
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
    "pga: gossip with neighbours, global average every H-th step. aga: the same with an H that "
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
flags.DEFINE_float("learning_rate", None, f"The highest, after the warm-up. {_RECIPE}")
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
flags.DEFINE_float("weight_decay", None, f"Not of biases and normalisations. {_RECIPE}")
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


def setting(name: str):
    """`H` (None: never) or `topology`, as the algorithm fixes it or the flag says."""
    given = FLAGS[name].value
    if name == "H" and given is None:
        given = PERIODS.get(FLAGS.algorithm, 6)
    return ALGORITHMS[FLAGS.algorithm].get(name, given)


def find_recipe() -> recipes.Recipe:
    """The model's recipe, with the flags that were given in place of its fields."""
    recipe = recipes.RECIPES[FLAGS.model]
    names = [field.name for field in dataclasses.fields(recipe)]
    given = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    return dataclasses.replace(recipe, **given)


def find_data() -> inputs.Data:
    """The data set, not read yet."""
    tokens = FLAGS.vocabulary
    if FLAGS.initial_model and models.kind(FLAGS.model) == "text":
        tokens = tokens or vocabulary_of(FLAGS.initial_model)
    return inputs.find(find_recipe().dataset, FLAGS.data_dir, tokens, FLAGS.sequence_length)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be trained on what, and for how long."""

    data: inputs.Data
    classes_per_worker: int | None
    recipe: recipes.Recipe
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch


def find_job(size: int) -> Job:
    """For `size` workers: an epoch is one pass over the smallest share, or what the flag says."""
    data, recipe = find_data(), find_recipe()
    steps = FLAGS.steps_per_epoch
    if not steps:
        steps = min(data.shares(size, FLAGS.classes_per_worker)) // recipe.batch_size
    return Job(data, FLAGS.classes_per_worker, recipe, steps)


def vocabulary_of(initial_model: str) -> str:
    """Path of the vocabulary that was written beside a model."""
    return str(pathlib.Path(initial_model).parent / "vocabulary.txt")


def check(argv, cluster: cluster_lib.Cluster | None):
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
                f"{f'no {name}' if fixed in (None, False) else f'{name}={fixed}'}, received "
                f"--{name}={FLAGS[name].value}. Leave --{name} out, or use --algorithm=pga."
            )
    if FLAGS.resume and not FLAGS.checkpoint_every:
        raise ValueError("--resume goes on writing checkpoints. Give --checkpoint_every=1 too.")
    models.check(FLAGS.model)
    size = cluster.size if cluster else FLAGS.workers
    topology.resolve(setting("topology"), size)
    recipe = find_recipe()
    if FLAGS.initial_model:
        check_initial_model()
    data = find_data()
    check_fit(data, recipe)
    check_classes(data, size)
    if FLAGS.initial_model:
        check_sizes(data)
    check_batch_size(data, recipe, size)
    if cluster is None or cluster.is_chief:
        make_output_dir()


def check_fit(data: inputs.Data, recipe: recipes.Recipe):
    """Model, data and what is done to them must be of one kind."""
    kind = models.kind(FLAGS.model)
    if kind != data.kind:
        fitting = [name for name in models.MODELS if models.kind(name) == data.kind]
        raise ValueError(
            f"--model={FLAGS.model} is for {kind}, but --dataset={data.name} holds {data.kind}. "
            f"Use another data set, or one of the models {', '.join(fitting)}."
        )
    if FLAGS["sequence_length"].present and kind != "text":
        raise ValueError("--sequence_length is for text, images have none. Leave it out.")
    if recipe.augment and kind == "text":
        raise ValueError("--augment is for images, of which there are none in text. Leave it out.")


def check_classes(data: inputs.Data, size: int):
    """All workers together must see what is validated."""
    data.shares(size, FLAGS.classes_per_worker)
    if FLAGS.classes_per_worker and size * FLAGS.classes_per_worker < data.recipe.classes:
        raise ValueError(
            f"--classes_per_worker={FLAGS.classes_per_worker} with {size} workers leaves classes "
            f"that nobody trains on: {data.name} has {data.recipe.classes}. Use more of either."
        )


def check_batch_size(data: inputs.Data, recipe: recipes.Recipe, size: int):
    """Every worker needs a full batch, and every pass an end."""
    shares = data.shares(size, FLAGS.classes_per_worker)
    counts = {"training examples": data.training_examples}
    counts["validation examples"] = data.validation_examples
    if shares is None:
        counts = {"documents": data.source.documents}
    for what, count in counts.items():
        if size > count:
            raise ValueError(
                f"there are {size} workers, more than the {count} {what} of {data.name}. Use fewer "
                "workers."
            )
    if shares is None:
        if not FLAGS.steps_per_epoch:
            raise ValueError(
                f"how many examples {data.name} has is known only after reading it. Give "
                "--steps_per_epoch."
            )
        return
    if recipe.batch_size > min(shares):
        raise ValueError(
            f"--batch_size={recipe.batch_size} is more than a worker has: {min(shares)} of the "
            f"{data.training_examples} training examples of {data.name}, with {size} workers. Use "
            "a smaller batch or fewer workers."
        )


def check_initial_model():
    """The file must be this model, and of text have the vocabulary that is asked for."""
    path = FLAGS.initial_model
    try:
        name = read_initial_model()["name"]
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError):
        raise ValueError(
            f"--initial_model={path} is not a Keras model. Name a model.keras that train.py wrote."
        ) from None
    if name != FLAGS.model:
        raise ValueError(f"--initial_model={path} is a {name}, but --model={FLAGS.model}.")
    if models.kind(FLAGS.model) == "text":
        check_vocabulary_beside(path)


def read_initial_model() -> dict:
    """The configuration that Keras wrote of it."""
    with zipfile.ZipFile(FLAGS.initial_model) as file:
        return json.loads(file.read("config.json"))["config"]


def check_sizes(data: inputs.Data):
    """Weights fit only a model with the same inputs and outputs."""
    layers = {each["name"]: each["config"] for each in read_initial_model().get("layers", [])}
    for argument, (layer, field) in models.FOUND_IN[data.kind].items():
        wanted, has = data.arguments[argument], layers.get(layer, {}).get(field)
        has = has[1:] if isinstance(has, list) else has  # of a batch
        if has != (list(wanted) if isinstance(wanted, tuple) else wanted):
            raise ValueError(
                f"--initial_model={FLAGS.initial_model} has {argument}={has}, but {data.name} "
                f"needs {wanted}. Name a model that was trained on such data."
            )


def check_vocabulary_beside(initial_model: str):
    """A vocabulary that is given must be the one that a model of text was trained with."""
    beside = vocabulary_of(initial_model)
    if not os.path.exists(beside):
        raise ValueError(
            f"--initial_model={initial_model} must have the vocabulary that it was trained with "
            f"beside it, but there is no {beside}."
        )
    own = vocabulary.load(beside)
    if FLAGS.vocabulary and vocabulary.load(FLAGS.vocabulary) != own:
        raise ValueError(
            f"--vocabulary={FLAGS.vocabulary} is not the one that --initial_model={initial_model} "
            f"was trained with, {beside}. Leave --vocabulary out to use that one."
        )


def make_output_dir():
    """Makes `--output_dir`, so that a run does not end with nowhere to write."""
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
