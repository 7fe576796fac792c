"""Define how each model is trained: optimizer, learning rate schedule and loss.

    recipe = dataclasses.replace(recipes.RECIPES["resnet20"], epochs=10)
    model.compile(
        recipes.optimizer(recipe, model, steps=640, global_batch=128),
        recipes.loss(recipe, models.kind("resnet20")),
    )

The fields of `Recipe` have the same names as the flags of train.py. Keras is imported only to
create an optimizer, a schedule or a loss, which lets train.py check its flags without Keras.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

OPTIMIZERS = ("sgd", "adamw", "lamb")
SCHEDULES = ("cosine", "steps", "linear")
MOMENTUM = 0.9  # of "sgd", with Nesterov's correction
DROPS = (1 / 4, 1 / 2, 3 / 4)  # fractions of all steps after which "steps" divides the rate by 10


def _whole(value) -> bool:
    return isinstance(value, int) and value > 0


# Field of a recipe -> accepted values, in words and as a function. NaN fails every comparison.
_ACCEPTED = {
    "epochs": ("an integer > 0", _whole),
    "batch_size": ("an integer > 0", _whole),
    "optimizer": (f"one of {', '.join(OPTIMIZERS)}", lambda name: name in OPTIMIZERS),
    "learning_rate": ("a finite number > 0", lambda rate: 0 < rate < math.inf),
    "schedule": (f"one of {', '.join(SCHEDULES)}", lambda name: name in SCHEDULES),
    "reference_batch": ("an integer > 0, or 0: not scaled", lambda n: n == 0 or _whole(n)),
    "warmup": ("a share of all steps, 0 <= warmup < 1", lambda share: 0 <= share < 1),
    "weight_decay": ("a finite number >= 0", lambda decay: 0 <= decay < math.inf),
    "label_smoothing": ("a probability, 0 <= p < 1", lambda p: 0 <= p < 1),
    "augment": ("true or false", lambda augment: isinstance(augment, bool)),
    "clip_norm": ("a finite number > 0, or 0: no clipping", lambda norm: 0 <= norm < math.inf),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Describe a training run, except for the model. The defaults disable optional features.

    Attributes:
      dataset: a name for `inputs.find`.
      epochs: number of passes over the data, >= 1.
      batch_size: number of examples per batch on each worker, >= 1.
      optimizer: `"sgd"` (with Nesterov momentum 0.9), `"adamw"` or `"lamb"`.
      learning_rate: peak learning rate, reached at the end of the warm-up, for one process that
        trains on the global batch; see `averaging_factor`.
      reference_batch: global batch size that `learning_rate` is meant for. With another global
        batch size, the learning rate is scaled in proportion (Goyal et al. 2017, section 2.1). 0:
        not scaled.
      schedule: learning rate after the warm-up. `"cosine"` and `"linear"` decay to 0. `"steps"`
        divides it by 10 after a quarter, a half and three quarters of all steps.
      warmup: fraction of all steps during which the learning rate rises from 0.
      weight_decay: decoupled weight decay; see `optimizer`.
      label_smoothing: probability that is taken from the label and spread over all classes.
      augment: whether to randomly augment training images. No effect on text.
      clip_norm: maximum norm of a worker's gradient over all variables; 0: no clipping.

    Raises:
      ValueError: a number or name is not accepted.
    """

    dataset: str
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    schedule: str
    reference_batch: int = 0
    warmup: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augment: bool = False
    clip_norm: float = 0.0

    def __post_init__(self):
        for name, (accepted, holds) in _ACCEPTED.items():
            value = getattr(self, name)
            if not holds(value):
                raise ValueError(f"--{name}={value}: must be {accepted}.")


# Source: You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76
# minutes", arXiv 1904.00962, table of untuned LAMB, row for a global batch of 2048 (64 workers
# here): learning rate 5 / (2^2 * 10^3), warm-up 1/80. For another global batch size B, the paper
# multiplies the learning rate by sqrt(B / 2048) and the warm-up by B / 2048. The code does neither:
# set the flags --learning_rate and --warmup. Linear decay and weight decay 0.01 are from the same
# paper. Clipping is from Devlin et al., who also estimate that BERT was trained for 40 epochs.
# Departures: Wikipedia only, one task, one sequence length; see also `optimizer`.
_YOU_ET_AL = Recipe(
    dataset="wikipedia",
    epochs=40,
    batch_size=32,
    optimizer="lamb",
    learning_rate=1.25e-3,
    schedule="linear",
    warmup=1 / 80,
    weight_decay=0.01,
    clip_norm=1.0,
)

RECIPES = {
    # Our own values, tested on this data.
    "mlp": Recipe(
        dataset="digits",
        epochs=60,
        batch_size=16,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="cosine",
    ),
    # Our own values, but learning rate and reference batch are from He et al. 2016, section 4.2.
    "resnet20": Recipe(
        dataset="digits",
        epochs=60,
        batch_size=32,
        optimizer="sgd",
        learning_rate=0.1,
        reference_batch=128,
        schedule="cosine",
        warmup=0.1,
        augment=True,
    ),
    # Source: Goyal et al. 2017, arXiv 1706.02677. Departures: 120 epochs instead of 90, with drops
    # after epochs 30, 60 and 90 instead of 30, 60 and 80, as in Chen et al. 2021, arXiv 2105.09080;
    # the warm-up starts from 0 instead of 0.1.
    "resnet50": Recipe(
        dataset="imagenet2012",
        epochs=120,
        batch_size=32,
        optimizer="sgd",
        learning_rate=0.1,
        reference_batch=256,
        schedule="steps",
        warmup=5 / 120,
        weight_decay=1e-4,
        augment=True,
    ),
    # Our own values, with the schedule and clipping of BERT. Tested with four workers, for which
    # `averaging_factor` results in a learning rate of 2e-3 and a weight decay of 0.01, as in BERT.
    "bert_tiny": Recipe(
        dataset="python_docs",
        epochs=55,
        batch_size=32,
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.02,
        clip_norm=1.0,
    ),
    "bert_base": _YOU_ET_AL,
    "bert_large": _YOU_ET_AL,
}


def averaging_factor(recipe: Recipe, workers: int) -> float:
    """Return the factor on the learning rate when workers share the batch of one process.

    Together, the workers train on the same global batch as the single process. Adam divides a step
    by the root mean square of the gradients. The gradient on 1/n of the batch has n times the
    variance. If noise dominates, each worker's step, and the mean over workers, is therefore
    shorter by a factor of sqrt(n). SGD steps are linear in the gradient, so their mean equals the
    step of one process. LAMB has not been measured, and keeps its learning rate. See
    docs/results/optimizers.md.

    Args:
      recipe: the recipe.
      workers: number of workers that share the global batch.

    Returns:
      sqrt(workers) for `"adamw"`, otherwise 1.
    """
    return math.sqrt(workers) if recipe.optimizer == "adamw" else 1.0


def schedule(
    recipe: Recipe, steps: int, global_batch: int, workers: int = 1
) -> "keras.optimizers.schedules.LearningRateSchedule":
    """Return the learning rate schedule of a run, a function of the step counted from 0.

    Even in a very short run, at least one step follows the warm-up.

    Args:
      recipe: the recipe.
      steps: number of steps of the whole run.
      global_batch: number of examples per step, over all workers.
      workers: number of workers that share the global batch. Default 1.
    """
    from keras.optimizers import schedules

    scale = global_batch / recipe.reference_batch if recipe.reference_batch else 1
    rate = recipe.learning_rate * scale * averaging_factor(recipe, workers)
    warmup = min(round(recipe.warmup * steps), steps - 1)
    if recipe.schedule == "cosine":
        return schedules.CosineDecay(0.0, steps - warmup, warmup_target=rate, warmup_steps=warmup)

    from models.extensions import WarmUp

    if recipe.schedule == "linear":
        then = schedules.PolynomialDecay(rate, steps - warmup, end_learning_rate=0.0)
    else:
        # A boundary is the last step with the old rate, counted from the end of the warm-up.
        boundaries = [math.ceil(share * steps) - 1 - warmup for share in DROPS]
        then = schedules.PiecewiseConstantDecay(boundaries, [rate / 10**n for n in range(4)])
    return WarmUp(warmup, then) if warmup else then


def optimizer(
    recipe: Recipe, model: "keras.Model", steps: int, global_batch: int, workers: int = 1
) -> "keras.optimizers.Optimizer":
    """Return an optimizer for a model, with the learning rate of `schedule`.

    Keras decouples weight decay from the gradient step: `w <- w - learning_rate * decay * w`. The
    reported loss does not include a penalty. Biases and the scales and offsets of normalization
    layers do not decay. Departures from the papers:

    - `"adamw"`: `decay` is `weight_decay / averaging_factor`, which makes `learning_rate * decay`
      independent of the number of workers.
    - `"sgd"`: in the papers, an L2 penalty is part of the gradient, and momentum multiplies its
      effect by 1 / (1 - momentum). Therefore, `decay` is `weight_decay / (1 - momentum)`.
    - `"lamb"`: in You et al., the decay is part of the update that is scaled to the norm of the
      weights, and updates of biases and scales are not scaled. Keras applies the decay separately,
      and scales the updates of all variables.

    A saved optimizer does not store which variables do not decay. To continue training, create a
    new optimizer instead of using a loaded one.

    Args:
      recipe: the recipe.
      model: a built `keras.Model`.
      steps: number of steps of the whole run.
      global_batch: number of examples per step, over all workers.
      workers: number of workers that share the global batch. Default 1.
    """
    from keras import optimizers

    rate: Any = schedule(recipe, steps, global_batch, workers)  # Keras annotates no schedule
    decay = recipe.weight_decay / averaging_factor(recipe, workers)
    clip = recipe.clip_norm or None
    if recipe.optimizer == "sgd":
        made = optimizers.SGD(
            rate,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=decay / (1 - MOMENTUM) or None,
            global_clipnorm=clip,
        )
    else:
        kind = {"adamw": optimizers.AdamW, "lamb": optimizers.Lamb}[recipe.optimizer]
        made = kind(rate, weight_decay=decay, epsilon=1e-6, global_clipnorm=clip)  # BERT's epsilon
    # Select by name, not by number of dimensions: a bias in an attention layer is a matrix.
    still = [v for v in model.trainable_variables if v.name.endswith(("bias", "gamma", "beta"))]
    made.exclude_from_weight_decay(var_list=still)
    return made


def loss(recipe: Recipe, kind: str) -> "keras.losses.Loss":
    """Return the cross-entropy of logits `[batch, …, classes]` with integer labels `[batch, …]`.

    For text, the loss is the weighted mean `sum(w * loss) / sum(w)`, because a row may not use all
    of its mask positions. Unused positions have weight 0 and must not count.

    Args:
      recipe: the recipe.
      kind: `"images"` or `"text"`, see `models.kind`.
    """
    from keras import losses

    reduction = "mean_with_sample_weight" if kind == "text" else "sum_over_batch_size"
    if not recipe.label_smoothing:
        return losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)

    from models.extensions import SmoothedCrossentropy

    return SmoothedCrossentropy(recipe.label_smoothing, reduction=reduction)
