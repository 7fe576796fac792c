"""Check that the flags of `train.py` fit together, before loading TensorFlow.

Each check raises `ValueError` with a message that names the flag, the accepted values, and a
remedy.
"""

import json
import os
import zipfile

import models
from job import flags, spec
from job.flags import ALGORITHMS, FLAGS, outer_optimizer, topology_name
from models import images, inputs, recipes, sources, vocabulary
from tf_gossip_pga.algorithm import schedule, topology
from tf_gossip_pga.cluster.place import Place


def check(argv: list[str], place: Place | None) -> None:
    """Check all flags, and create the output directory if this process writes to it.

    Args:
      argv: the program name and the arguments that remain after parsing flags.
      place: the place of this worker; None in the process that starts local workers.

    Raises:
      ValueError: a worker would fail because of the flags or the output directory.
    """
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}. Flags begin with --; see --help.")
    check_workers(place)
    check_algorithm()
    outer_optimizer()  # raises if the flags do not fit
    if FLAGS.resume and not FLAGS.checkpoint_every:
        raise ValueError(
            "--resume requires --checkpoint_every, because a resumed run writes checkpoints too. "
            "Give --checkpoint_every=1."
        )
    models.check(FLAGS.model)
    size = place.size if place else FLAGS.workers
    topology.resolve(topology_name(), size)
    is_fixed = FLAGS.algorithm not in ("aga", "auto")
    schedule.resolve(flags.period() if is_fixed else None, FLAGS.gossip_every)
    recipe = spec.find_recipe()
    if FLAGS.initial_model:
        check_initial_model()
    data = spec.find_data()
    check_kind(data, recipe)
    check_classes(data, size)
    if FLAGS.initial_model:
        check_sizes(data)
    check_batch_size(data, recipe, size)
    if place is None or place.rank == 0:
        make_output_dir()


def check_workers(place: Place | None) -> None:
    """Raise if `--workers` is given and differs from the number of workers that are started."""
    if place and FLAGS["workers"].present and FLAGS.workers != place.size:
        raise ValueError(
            f"--workers={FLAGS.workers}, but this process is one of {place.size} workers (found "
            f"by {place.found_by}). Leave --workers out."
        )


def check_algorithm() -> None:
    """Raise if a flag contradicts a setting that the algorithm fixes."""
    for name, fixed in ALGORITHMS[FLAGS.algorithm].items():
        if FLAGS[name].present and FLAGS[name].value != fixed:
            raise ValueError(
                f"--algorithm={FLAGS.algorithm} has "
                f"{f'no {name}' if fixed in (None, False) else f'{name}={fixed}'}, received "
                f"--{name}={FLAGS[name].value}. Leave --{name} out, or use --algorithm=pga."
            )


def check_kind(data: inputs.Data, recipe: recipes.Recipe) -> None:
    """Raise unless the model, the data and the flags are all for images or all for text."""
    kind = models.kind(FLAGS.model)
    if kind != data.kind:
        fitting = [name for name in models.MODELS if models.kind(name) == data.kind]
        raise ValueError(
            f"--model={FLAGS.model} is for {kind}, but --dataset={data.name} holds {data.kind}. "
            f"Use another data set, or one of the models {', '.join(fitting)}."
        )
    if FLAGS["sequence_length"].present and kind != "text":
        raise ValueError("--sequence_length is for text only. Leave it out.")
    if recipe.augment and kind == "text":
        raise ValueError("--augment is for images only. Leave it out.")


def check_classes(data: inputs.Data, size: int) -> None:
    """Raise if there is a class that no worker trains on."""
    # The next line raises if --classes_per_worker is given for data other than images in memory.
    data.shares(size, FLAGS.classes_per_worker)
    if not FLAGS.classes_per_worker or not isinstance(data.recipe, images.Images):
        return
    if size * FLAGS.classes_per_worker < data.recipe.classes:
        raise ValueError(
            f"--classes_per_worker={FLAGS.classes_per_worker} with {size} workers leaves classes "
            f"that nobody trains on: {data.name} has {data.recipe.classes} classes. Give each "
            "worker more classes, or use more workers."
        )


def check_batch_size(data: inputs.Data, recipe: recipes.Recipe, size: int) -> None:
    """Raise unless every worker has a full batch and the length of an epoch is known."""
    shares = data.shares(size, FLAGS.classes_per_worker)
    for what, count in counts(data.source).items():
        if size > count:
            raise ValueError(
                f"there are {size} workers, more than the {count} {what} of {data.name}. Use fewer "
                "workers."
            )
    if shares is None:
        spec.steps_per_epoch(data, recipe, size)  # raises if the length of an epoch is unknown
    elif recipe.batch_size > min(shares):
        raise ValueError(
            f"--batch_size={recipe.batch_size} is more than a worker has: {min(shares)} of the "
            f"{data.training_examples} training examples of {data.name}, with {size} workers. Use "
            "a smaller batch or fewer workers."
        )


def counts(source: sources.Source) -> dict[str, int]:
    """Return how many items of each kind the data have. Every worker needs at least one of each."""
    if isinstance(source, sources.Rows):
        return {"documents": source.documents}
    return {
        "training examples": source.training_examples,
        "validation examples": source.validation_examples,
    }


def check_initial_model() -> None:
    """Raise unless `--initial_model` is a saved `--model` and, for text, has its vocabulary."""
    path = FLAGS.initial_model
    try:
        name = read_initial_model()["name"]
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError):
        raise ValueError(
            f"--initial_model={path} is not a Keras model. Name a model.keras that train.py wrote."
        ) from None
    if name != FLAGS.model:
        raise ValueError(
            f"--initial_model={path} is a {name}, but --model={FLAGS.model}. Give the same model "
            "in both flags."
        )
    if models.kind(FLAGS.model) == "text":
        check_vocabulary_of(path)


def read_initial_model() -> dict:
    """Return the Keras configuration stored in `--initial_model`."""
    with zipfile.ZipFile(FLAGS.initial_model) as file:
        return json.loads(file.read("config.json"))["config"]


def check_sizes(data: inputs.Data) -> None:
    """Raise unless the inputs and outputs of `--initial_model` fit the data."""
    layers = {each["name"]: each["config"] for each in read_initial_model().get("layers", [])}
    for argument, (layer, field) in models.FOUND_IN[data.kind].items():
        wanted, has = data.arguments[argument], layers.get(layer, {}).get(field)
        has = has[1:] if isinstance(has, list) else has  # a shape; drop the batch axis
        if has != (list(wanted) if isinstance(wanted, tuple) else wanted):
            raise ValueError(
                f"--initial_model={FLAGS.initial_model} has {argument}={has}, but {data.name} "
                f"needs {wanted}. Name a model that was trained on such data."
            )


def check_vocabulary_of(initial_model: str) -> None:
    """Raise unless the model's vocabulary exists and `--vocabulary`, if given, equals it."""
    path = spec.vocabulary_of(initial_model)
    if not os.path.exists(path):
        raise ValueError(
            f"--initial_model={initial_model} needs the vocabulary that it was trained with, but "
            f"there is no {path}. Copy the vocabulary there."
        )
    own = vocabulary.load(path)
    if FLAGS.vocabulary and vocabulary.load(FLAGS.vocabulary) != own:
        raise ValueError(
            f"--vocabulary={FLAGS.vocabulary} differs from the one that "
            f"--initial_model={initial_model} was trained with, {path}. Leave --vocabulary out to "
            "use that one."
        )


def make_output_dir() -> None:
    """Create `--output_dir`, and raise now, instead of after training, if it is not writable."""
    try:
        os.makedirs(FLAGS.output_dir, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output_dir={FLAGS.output_dir} cannot be created ({error.strerror}). Name a "
            "directory that you may write to."
        ) from None
    if not os.access(FLAGS.output_dir, os.W_OK | os.X_OK):
        raise ValueError(
            f"--output_dir={FLAGS.output_dir} cannot be written to. Name a directory that you may "
            "write to."
        )
