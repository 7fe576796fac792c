"""Train a Keras 3 model with MultiWorkerMirroredStrategy, which Keras 3 does not support.

    trainer = synchronous.trainer(model, job, replicas=8)
    trainer.fit(batches, epochs=12, steps_per_epoch=20)

The training loop, the optimizer and the all-reduce of gradients are those of legacy tf_keras and
TensorFlow. A step calls the Keras 3 model as a function of its parameters
(`keras.Model.stateless_call`), so the computation is the same as in a run with `GossipPGA`, and
both train exactly the same variables.

As with `GossipPGA`, each worker keeps its own statistics of BatchNorm and its own random generators
of Dropout. The loop computes no metrics, because MultiWorkerMirroredStrategy would all-reduce each
of them in every step.
"""

import importlib
from typing import TYPE_CHECKING, Any

from benchmarks import exchanges
from models import recipes

if TYPE_CHECKING:
    import keras

    from job.spec import Job


def trainer(model: "keras.Model", job: "Job", replicas: int) -> Any:
    """Return a compiled tf_keras model with the parameters of a Keras 3 model.

    Args:
      model: the Keras 3 model. Training changes its non-trainable variables.
      job: what to train.
      replicas: number of workers.

    Returns:
      A `tf_keras.Model`. Its `trainable_variables` have the order of `model.trainable_variables`,
      and initially the values on rank 0.
    """
    import tensorflow as tf

    tf_keras = importlib.import_module("tf_keras")
    loss_of: Any = recipes.loss(job.recipe, job.data.kind)

    class Trainer(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [tf.Variable(each.value) for each in model.trainable_variables]

        def call(self, inputs):
            kept = model.non_trainable_variables
            logits, changed = model.stateless_call(  # pyright: ignore[reportAssignmentType]
                [tf.convert_to_tensor(each) for each in self.parts],
                [each.value for each in kept],
                inputs,
                training=True,
            )
            for variable, value in zip(kept, changed, strict=True):
                variable.assign(value)
            return logits

        def train_step(self, data):
            inputs, labels, weights = tf_keras.utils.unpack_x_y_sample_weight(data)
            with tf.GradientTape() as tape:
                # Keras divides this by the number of workers. The optimizer sums the gradients.
                loss: Any = loss_of(labels, self(inputs), weights)
            gradients = tape.gradient(loss, self.parts)
            self.optimizer.apply_gradients(zip(gradients, self.parts, strict=True))
            return {"loss": loss}

    with exchanges.synchronous_strategy().scope():
        made = Trainer()
        made.compile(_optimizer(tf_keras, model, made.parts, job, replicas))
        made.optimizer.build(made.parts)
    return made


def _optimizer(library: Any, model: "keras.Model", parts: list, job: "Job", replicas: int) -> Any:
    """Return the optimizer of `recipes.optimizer` for one process, as an optimizer of tf_keras.

    Args:
      library: tf_keras.
      model: the Keras 3 model, whose names tell which variables do not decay.
      parts: the variables to train, in the order of `model.trainable_variables`.
      job: what to train.
      replicas: number of workers.
    """
    recipe = job.recipe
    rate = recipes.schedule(recipe, job.steps, recipe.batch_size * replicas)

    class Rate(library.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return rate(step)

    common = {"global_clipnorm": recipe.clip_norm or None}
    if recipe.optimizer == "sgd":
        decay = recipe.weight_decay / (1 - recipes.MOMENTUM)
        made = library.optimizers.SGD(
            Rate(), recipes.MOMENTUM, nesterov=True, weight_decay=decay or None, **common
        )
    elif recipe.optimizer == "adamw":
        made = library.optimizers.AdamW(
            Rate(), weight_decay=recipe.weight_decay, epsilon=1e-6, **common
        )
    else:
        raise ValueError(
            f"tf_keras has no optimizer like {recipe.optimizer!r}. Give --optimizer=sgd or adamw."
        )
    names = ("bias", "gamma", "beta")
    pairs = zip(model.trainable_variables, parts, strict=True)
    made.exclude_from_weight_decay([part for each, part in pairs if each.name.endswith(names)])
    return made
