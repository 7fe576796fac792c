"""Define what Keras lacks: a warm-up before any schedule, and label smoothing for integer labels.

Both are saved with a compiled model. To load a model that uses either, import this module first or
load with `compile=False`, because Keras imports only its own modules when it loads a file.
"""

from typing import Any

import keras
from keras.optimizers import schedules

ops: Any = keras.ops  # has no annotations


@keras.saving.register_keras_serializable(package="models")
class WarmUp(schedules.LearningRateSchedule):
    """Raise the learning rate linearly from 0, then continue with another schedule.

        rate(step) = then(0) * step / steps   if step < steps
                   = then(step - steps)       otherwise

    Source: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv
    1706.02677, section 2.2. In the paper, the warm-up starts above 0. In Keras, only the cosine
    schedule has a warm-up.

    Args:
      steps: number of steps of the warm-up, > 0.
      then: the schedule that follows. Its step 0 is the end of the warm-up.
    """

    def __init__(self, steps: int, then: schedules.LearningRateSchedule):
        """Initialize the schedule. See the class for the arguments."""
        self.steps = steps
        self.then = then

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at a step, as float32.

        Args:
          step: number of the step, from 0.
        """
        step = ops.cast(step, "float32")
        rising = self.then(0) * step / self.steps
        return ops.where(step < self.steps, rising, self.then(step - self.steps))

    def get_config(self) -> dict:
        """Return the arguments of the constructor, with `then` serialized."""
        return {"steps": self.steps, "then": keras.saving.serialize_keras_object(self.then)}

    @classmethod
    def from_config(cls, config: dict) -> "WarmUp":
        """Return the schedule that a configuration describes.

        Args:
          config: the result of `get_config`.
        """
        return cls(config["steps"], keras.saving.deserialize_keras_object(config["then"]))


@keras.saving.register_keras_serializable(package="models")
class SmoothedCrossentropy(keras.losses.Loss):
    """Compute the cross-entropy of logits with integer labels and label smoothing.

        loss = -sum_c ((1 - label_smoothing) * [c == label] + label_smoothing / classes) * log p_c

    Keras' sparse cross-entropy has no smoothing.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    section 7.

    Args:
      label_smoothing: probability to take from the label and spread over all classes, >= 0, < 1.
      **arguments: arguments of any Keras loss, such as `reduction`.
    """

    def __init__(self, label_smoothing: float, **arguments):
        """Initialize the loss. See the class for the arguments."""
        super().__init__(**arguments)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the losses, `[batch, …]`.

        Args:
          y_true: labels, `[batch, …]` integers.
          y_pred: logits, `[batch, …, classes]`.
        """
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
