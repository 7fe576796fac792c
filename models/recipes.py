"""How each model is trained: optimizer, learning rate over the steps, loss.

    recipe = dataclasses.replace(recipes.RECIPES["resnet20"], epochs=10)
    model.compile(
        recipes.optimizer(recipe, model, steps=640, global_batch=128),
        recipes.loss(recipe, models.kind("resnet20")),
    )

Keras is imported when an optimizer, a schedule or a loss is made, so that train.py can check its
flags, which are named like the fields of `Recipe`, without it.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

OPTIMIZERS = ("sgd", "adamw", "lamb")
SCHEDULES = ("cosine", "steps", "linear")
MOMENTUM = 0.9  # of sgd, with Nesterov's correction
DROPS = (1 / 4, 1 / 2, 3 / 4)  # shares of all steps; from each on, "steps" is a tenth of before


def _whole(value) -> bool:
    return isinstance(value, int) and value > 0


# Field of a recipe -> what it must be, in words and as a function. NaN fails every comparison.
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
    """What a training run is made of, beside the model; the defaults switch a part off.

    Attributes:
      dataset: a name that `inputs.find` knows.
      epochs: number of passes over the data.
      batch_size: examples in one worker's batch.
      optimizer: "sgd" (Nesterov momentum 0.9), "adamw" or "lamb".
      learning_rate: the highest, at the end of the warm-up, of one process that takes the global
        batch; see `averaging_factor`.
      reference_batch: the global batch that `learning_rate` is meant for; for another one it is
        scaled in proportion (Goyal et al. 2017, section 2.1). 0: it is meant for any.
      schedule: what follows the warm-up: "cosine" and "linear" fall to 0, "steps" is divided by 10
        after a quarter, a half and three quarters of all steps.
      warmup: share of all steps in which the learning rate rises from 0.
      weight_decay: strength of the pull of weights towards 0; see `optimizer`.
      label_smoothing: probability that is taken from the label and spread over all classes.
      augment: whether training images are changed at random; of no meaning for text.
      clip_norm: greatest norm of one worker's gradient, all variables together.

    Raises:
      ValueError: a number or name is not among the accepted.
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


# You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv
# 1904.00962: from its table of untuned LAMB, the row of global batch 2048 (64 workers' here):
# learning rate 5 / (2^2 * 10^3), warm-up 1/80. For another global batch B it goes with the root,
# learning rate * sqrt(B / 2048), and warm-up with B: neither is done here, so give both. Linear
# decay and weight decay 0.01 are theirs, clipping is BERT's own, 40 epochs Devlin et al.'s estimate
# of theirs. Departures: Wikipedia alone, one task, one length of sequence; see also `optimizer`.
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
    # Ours, tried on this data.
    "mlp": Recipe(
        dataset="digits",
        epochs=60,
        batch_size=16,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="cosine",
    ),
    # Ours but for learning rate and batch, which are He et al.'s (2016, section 4.2).
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
    # Goyal et al. 2017, arXiv 1706.02677, but 120 epochs rather than 90, and a tenth from epochs
    # 30, 60 and 90 on rather than 30, 60 and 80, as in Chen et al. 2021, arXiv 2105.09080; the
    # warm-up starts from 0 rather than from 0.1.
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
    # Ours; schedule and clipping are BERT's. For four workers, with which it was tried, this is a
    # learning rate of 2e-3 and BERT's weight decay of 0.01.
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
    """By what `workers` multiply the learning rate of one process with the same global batch.

    Adam divides by the root of the squared gradients' mean, and a gradient of an n-th of the batch
    has n times the variance. Where noise prevails, each worker's step, and so the mean of all, is
    shorter by sqrt(n). SGD's steps are linear in the gradients: their mean is one process's step.
    LAMB is left alone, since it has not been measured. See docs/results/optimizers.md.
    """
    return math.sqrt(workers) if recipe.optimizer == "adamw" else 1.0


def schedule(
    recipe: Recipe, steps: int, global_batch: int, workers: int = 1
) -> "keras.optimizers.schedules.LearningRateSchedule":
    """A `keras.optimizers.schedules.LearningRateSchedule` over `steps` steps, the first is 0.

    At least one step is not of the warm-up, however short the run.

    Args:
      recipe: as it is trained.
      steps: number of all steps of the run.
      global_batch: examples in one step of all workers together.
      workers: how many share it.
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
        # A boundary is the last step of its value, and counted from the end of the warm-up.
        boundaries = [math.ceil(share * steps) - 1 - warmup for share in DROPS]
        then = schedules.PiecewiseConstantDecay(boundaries, [rate / 10**n for n in range(4)])
    return WarmUp(warmup, then) if warmup else then


def optimizer(
    recipe: Recipe, model: "keras.Model", steps: int, global_batch: int, workers: int = 1
) -> "keras.optimizers.Optimizer":
    """A `keras.optimizers.Optimizer` for this model, with `schedule` in it.

    Weight decay is decoupled in Keras, `w <- w - learning_rate * decay * w` beside the step itself,
    and the reported loss holds no penalty. Biases and the normalizations' scales and offsets do not
    decay. Not the same as in the papers:

    * adamw: `decay` is divided by `averaging_factor`, so that `learning_rate * decay` is the same
      for any number of workers.
    * sgd: an L2 penalty's gradient goes through the momentum, and each is felt 1/(1-momentum) times
      as strongly in the end; `decay` is therefore `weight_decay / (1-momentum)`.
    * lamb: in You et al. the decay is part of the update whose norm is fitted to the weight's; and
      biases and scales are not fitted there. Keras' LAMB decays apart and fits all.

    A saved optimizer forgets what does not decay: make a new one rather than train a loaded one.

    Args:
      recipe: as it is trained.
      model: a built `keras.Model`.
      steps: number of all steps of the run.
      global_batch: examples in one step of all workers together.
      workers: how many share it.
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
    # By name: a bias of an attention is a matrix, so that the rank tells nothing.
    still = [v for v in model.trainable_variables if v.name.endswith(("bias", "gamma", "beta"))]
    made.exclude_from_weight_decay(var_list=still)
    return made


def loss(recipe: Recipe, kind: str) -> "keras.losses.Loss":
    """The cross-entropy of logits `[batch, …, classes]` with integer labels `[batch, …]`.

    For text it is the mean over the weights, `sum(w * loss) / sum(w)`: a sequence has fewer masks
    than places for them, and the others, of weight 0, must not count.

    Args:
      recipe: as it is trained.
      kind: "images" or "text", see `models.kind`.
    """
    from keras import losses

    reduction = "mean_with_sample_weight" if kind == "text" else "sum_over_batch_size"
    if not recipe.label_smoothing:
        return losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)

    from models.extensions import SmoothedCrossentropy

    return SmoothedCrossentropy(recipe.label_smoothing, reduction=reduction)
