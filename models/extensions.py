"""Two things Keras lacks: a warm-up before any schedule, smoothed labels that are integers.

Both are saved with a compiled model. To load one that has them, import this room first, or load
with `compile=False`: Keras imports no module that a file names, other than its own.
"""

from typing import Any

import keras
from keras.optimizers import schedules

ops: Any = keras.ops  # has no annotations


@keras.saving.register_keras_serializable(package="models")
class WarmUp(schedules.LearningRateSchedule):
    """A straight line from 0 to where another schedule starts, then that schedule.

        rate(step) = then(0) * step / steps   if step < steps
                   = then(step - steps)       otherwise

    Source: Goyal et al. 2017, section 2.2, but from 0. Keras has it for its cosine alone.
    """

    def __init__(self, steps: int, then: schedules.LearningRateSchedule):
        """`steps` > 0 are those of the line; `then` counts from its end."""
        self.steps = steps
        self.then = then

    def __call__(self, step: Any) -> Any:
        """Return the learning rate, float32, of a step counted from 0."""
        step = ops.cast(step, "float32")
        rising = self.then(0) * step / self.steps
        return ops.where(step < self.steps, rising, self.then(step - self.steps))

    def get_config(self) -> dict:
        """Return `steps`, and `then` with its class."""
        return {"steps": self.steps, "then": keras.saving.serialize_keras_object(self.then)}

    @classmethod
    def from_config(cls, config: dict) -> "WarmUp":
        """Return the schedule that `get_config` described."""
        return cls(config["steps"], keras.saving.deserialize_keras_object(config["then"]))


@keras.saving.register_keras_serializable(package="models")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits with an integer label that is somewhat doubted.

        loss = -sum_c ((1 - label_smoothing) * [c == label] + label_smoothing / classes) * log p_c

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    section 7. Keras' own cross-entropy of integers has no smoothing.
    """

    def __init__(self, label_smoothing: float, **arguments):
        """`arguments` are those of any Keras loss, such as `reduction`."""
        super().__init__(**arguments)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return losses `[batch, …]` of labels `[batch, …]` and logits `[batch, …, classes]`."""
        labels = ops.reshape(ops.cast(y_true, "int32"), ops.shape(y_pred)[:-1])
        return keras.losses.categorical_crossentropy(
            ops.one_hot(labels, y_pred.shape[-1], dtype=y_pred.dtype),
            y_pred,
            from_logits=True,
            label_smoothing=self.label_smoothing,
        )

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
