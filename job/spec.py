"""Find the job that the flags describe: model, data, recipe and number of steps."""

import dataclasses
import pathlib

import models
from job.flags import FLAGS
from models import inputs, recipes


@dataclasses.dataclass(frozen=True)
class Job:
    """Describe a training job.

    Attributes:
      data: the data set.
      classes_per_worker: number of classes that each worker trains on; None: all.
      recipe: optimizer, learning rate, loss and number of epochs.
      steps_per_epoch: number of batches per epoch on one worker.
    """

    data: inputs.Data
    classes_per_worker: int | None
    recipe: recipes.Recipe
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch


def find_job(size: int) -> Job:
    """Return the job for `size` workers."""
    data, recipe = find_data(), find_recipe()
    return Job(data, FLAGS.classes_per_worker, recipe, steps_per_epoch(data, recipe, size))


def steps_per_epoch(data: inputs.Data, recipe: recipes.Recipe, size: int) -> int:
    """Return `--steps_per_epoch`, by default one pass over the smallest of the workers' shares.

    Args:
      data: the data set.
      recipe: the recipe, with the batch size.
      size: number of workers.

    Raises:
      ValueError: the flag is not given, and the number of examples is known only after reading
        them.
    """
    if FLAGS.steps_per_epoch:
        return FLAGS.steps_per_epoch
    shares = data.shares(size, FLAGS.classes_per_worker)
    if shares is None:
        raise ValueError(
            f"the number of examples of {data.name} is known only after reading it. Give "
            "--steps_per_epoch."
        )
    return min(shares) // recipe.batch_size


def find_recipe() -> recipes.Recipe:
    """Return the model's recipe, with fields replaced by flags of the same name."""
    recipe = recipes.RECIPES[FLAGS.model]
    names = [field.name for field in dataclasses.fields(recipe)]
    given = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    return dataclasses.replace(recipe, **given)


def find_data() -> inputs.Data:
    """Return the data set that the flags specify; see `inputs.find`."""
    tokens = FLAGS.vocabulary
    if FLAGS.initial_model and models.kind(FLAGS.model) == "text":
        tokens = tokens or vocabulary_of(FLAGS.initial_model)
    return inputs.find(find_recipe().dataset, FLAGS.data_dir, tokens, FLAGS.sequence_length)


def vocabulary_of(initial_model: str) -> str:
    """Return the path of the vocabulary next to a saved model."""
    return str(pathlib.Path(initial_model).parent / "vocabulary.txt")
