"""models/recipes.py: numbers worked by hand, and what a recipe makes goes through real steps."""

import dataclasses
import math
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import models
from models import bert, recipes
from tests.support import deadlines

MLP, RESNET20, RESNET50 = (recipes.RECIPES[name] for name in ("mlp", "resnet20", "resnet50"))
TINY = recipes.RECIPES["bert_tiny"]
STILL = ("bias", "gamma", "beta")


def _rates(recipe, steps: int, global_batch: int, at: list[int], workers: int = 1) -> list[float]:
    schedule = recipes.schedule(recipe, steps, global_batch, workers)
    return [float(schedule(step)) for step in at]


def test_every_model_has_a_recipe():
    assert list(recipes.RECIPES) == list(models.MODELS)


def test_recipes_are_read_without_tensorflow():
    code = "import sys, models.recipes; print({'tensorflow', 'keras'} & set(sys.modules))"
    root = pathlib.Path(models.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs=0: must be an integer > 0"),
        ({"epochs": 1.5}, "--epochs=1.5: must be an integer > 0"),
        ({"batch_size": -1}, "--batch_size=-1: must be an integer > 0"),
        ({"optimizer": "adam"}, "--optimizer=adam: must be one of sgd, adamw, lamb"),
        ({"learning_rate": 0.0}, "--learning_rate=0.0: must be a finite number > 0"),
        ({"learning_rate": math.nan}, "--learning_rate=nan: must be a finite number > 0"),
        ({"learning_rate": math.inf}, "--learning_rate=inf: must be a finite number > 0"),
        ({"schedule": "step"}, "--schedule=step: must be one of cosine, steps, linear"),
        ({"reference_batch": -1}, "--reference_batch=-1: must be an integer > 0, or 0"),
        ({"warmup": 1.0}, "--warmup=1.0: must be a share of all steps, 0 <= warmup < 1"),
        ({"warmup": -0.1}, "--warmup=-0.1: must be a share"),
        ({"weight_decay": -1e-4}, "--weight_decay=-0.0001: must be a finite number >= 0"),
        ({"weight_decay": math.nan}, "--weight_decay=nan: must be"),
        ({"label_smoothing": 1.0}, "--label_smoothing=1.0: must be a probability, 0 <= p < 1"),
        ({"clip_norm": math.inf}, "--clip_norm=inf: must be a finite number > 0, or 0"),
    ],
)
def test_what_is_not_accepted(change, message):
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(MLP, **change)
    assert message in str(caught.value)


def test_steps_fall_to_a_tenth_at_each_quarter():
    # 120 steps, of which 5 are warm-up; the batch is the reference.
    at = [0, 1, 4, 5, 29, 30, 59, 60, 89, 90, 119]
    tenths = [0, 0.2, 0.8, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    expected = [0.1 * each for each in tenths]
    assert _rates(RESNET50, 120, 256, at) == pytest.approx(expected, rel=1e-5)


def test_cosine_of_the_main_job():
    # 4 workers with 32 each; 60 epochs of 11 steps, 66 are warm-up, the other 594 half a cosine.
    rates = _rates(RESNET20, 660, 128, [0, 33, 66, 66 + 198, 66 + 297, 660])
    assert rates == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0], abs=1e-7)
    assert _rates(MLP, 100, 64, [0, 50, 100]) == pytest.approx([0.1, 0.05, 0], abs=1e-7)


def test_linear_rises_for_a_tenth_and_falls_to_zero():
    rates = _rates(TINY, 100, 64, [0, 1, 9, 10, 55, 99, 100])
    expected = [0, 1e-4, 9e-4, 1e-3, 5e-4, 1e-3 / 90, 0]
    assert rates == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_learning_rate_is_scaled_to_the_global_batch():
    # Goyal et al.: 256 workers with 32 each, 3.2.
    assert _rates(RESNET50, 120, 8192, [5]) == pytest.approx([3.2])
    assert _rates(RESNET20, 100, 64, [10]) == pytest.approx([0.05])
    assert _rates(TINY, 100, 8192, [10]) == pytest.approx([1e-3])  # no reference


def test_learning_rate_of_adamw_alone_goes_with_the_root_of_the_workers():
    # They share one global batch. LAMB has not been measured.
    at = [10]
    assert _rates(TINY, 100, 128, at, workers=4) == pytest.approx([2e-3])
    assert _rates(TINY, 100, 128, at, workers=16) == pytest.approx([4e-3])
    assert _rates(RESNET20, 100, 128, at, workers=4) == _rates(RESNET20, 100, 128, at)
    lamb = dataclasses.replace(TINY, optimizer="lamb")
    assert _rates(lamb, 100, 128, at, workers=4) == _rates(lamb, 100, 128, at)


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0.1), ("adamw", 0.005), ("lamb", 0.01)])
def test_what_four_workers_decay_by(optimizer, decay):
    # Learning rate times decay is that of one process: adamw has twice the one, half the other.
    recipe = _without_schedule(optimizer, weight_decay=0.01)
    made = recipes.optimizer(recipe, _small_model(), steps=10, global_batch=4, workers=4)
    assert made.weight_decay == pytest.approx(decay)


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("warmup", [None, 0.0, 0.9])
def test_short_runs_have_a_learning_rate(name, warmup):
    recipe = recipes.RECIPES[name]
    if warmup is not None:
        recipe = dataclasses.replace(recipe, warmup=warmup)
    for steps in (1, 2, 3):
        rates = _rates(recipe, steps, recipe.reference_batch or 32, list(range(steps + 1)))
        assert 0 <= min(rates) <= max(rates[:-1]) <= recipe.learning_rate * 1.00001
        assert max(rates[:-1]) > 0


def _small_model():
    images = keras.Input((4,))
    x = layers.BatchNormalization()(layers.Dense(3)(images))
    return keras.Model(images, layers.Dense(2)(x))


def _tiny_bert():
    return bert.bert_tiny(20)


def _trained_once(recipe, model, gradients=None, steps: int = 1):
    """The model's variables before and after steps with these gradients, zeros by default."""
    made = recipes.optimizer(recipe, model, steps=1000, global_batch=1)
    variables = model.trainable_variables
    if gradients is None:
        gradients = [keras.ops.zeros(v.shape) for v in variables]
    before = [v.numpy() for v in variables]
    for _ in range(steps):
        made.apply([keras.ops.convert_to_tensor(each) for each in gradients], variables)
    return before, [v.numpy() for v in variables]


def _without_schedule(optimizer: str, **changes) -> recipes.Recipe:
    """A learning rate of 0.1 that 1000 steps of schedule leave alone in the first."""
    return dataclasses.replace(MLP, optimizer=optimizer, **changes)


# Weight decay 0.01, learning rate 0.1; sgd's is 1 / (1 - 0.9) times as strong.
@pytest.mark.parametrize(("optimizer", "left"), [("sgd", 0.99), ("adamw", 0.999), ("lamb", 0.999)])
@pytest.mark.parametrize("make", [_small_model, _tiny_bert])
def test_weights_decay_and_biases_scales_and_offsets_do_not(optimizer, left, make):
    model = make()
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    _, after = _trained_once(_without_schedule(optimizer, weight_decay=0.01), model)
    names = [v.name for v in model.trainable_variables]
    assert {"kernel", "bias", "gamma", "beta"} <= set(names)
    for name, values in zip(names, after, strict=True):
        expected = 1 if name in (*STILL, "output_bias") else left
        np.testing.assert_allclose(values, expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("optimizer", recipes.OPTIMIZERS)
def test_without_weight_decay_nothing_decays(optimizer):
    before, after = _trained_once(_without_schedule(optimizer), _small_model())
    assert all((old == new).all() for old, new in zip(before, after, strict=True))


@pytest.mark.slow
def test_decay_of_sgd_is_as_strong_as_an_l2_penalty():
    steps, decay = 300, 0.002
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, kernel_initializer="ones")])
    recipe = _without_schedule("sgd", weight_decay=decay)
    _, (kernel, _) = _trained_once(recipe, model, steps=steps)

    # The penalty decay / 2 * w^2 through Nesterov momentum, and nothing else.
    schedule = recipes.schedule(recipe, 1000, 1)
    weight, velocity = 1.0, 0.0
    for step in range(steps):
        gradient, rate = decay * weight, float(schedule(step))
        velocity = 0.9 * velocity - rate * gradient
        weight += 0.9 * velocity - rate * gradient
    # About exp(-300 * 0.1 * 0.002 * 10), less what the cosine takes; they differ by some per cent,
    # rate * decay / (1 - momentum)^2 = 2 % and more while the momentum builds up.
    assert 0.5 < weight < 0.7
    assert math.log(kernel[0, 0]) == pytest.approx(math.log(weight), rel=0.05)


def test_gradients_are_clipped_together():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    gradients = [np.float32([[3]]), np.float32([4])]  # a norm of 5
    for clip_norm, factor in [(1.0, 1 / 5), (10.0, 1), (0.0, 1)]:
        recipe = _without_schedule("sgd", clip_norm=clip_norm)
        before, after = _trained_once(recipe, model, gradients)
        # Nesterov's first step is learning rate * (1 + momentum) * gradient.
        for old, new, gradient in zip(before, after, gradients, strict=True):
            np.testing.assert_allclose(old - new, 0.19 * factor * gradient, rtol=1e-5)


LABELS = np.int32([[0, 2], [1, 0]])  # two sequences with two places for masks
LOGITS = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)


def _cross_entropies(smoothing: float) -> np.ndarray:
    """`[2, 2]`, in NumPy."""
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
    labels = np.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3
    return -(labels * np.log(probabilities)).sum(axis=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_cross_entropy(smoothing):
    recipe = dataclasses.replace(MLP, label_smoothing=smoothing)
    expected = _cross_entropies(smoothing)[0].mean()
    loss = recipes.loss(recipe, "images")
    assert float(loss(LABELS[0], LOGITS[0])) == pytest.approx(expected, rel=1e-5)
    assert float(loss(LABELS[0][:, np.newaxis], LOGITS[0])) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_text_is_the_mean_over_the_masks(smoothing):
    # Three masks; the fourth place is empty.
    loss = recipes.loss(dataclasses.replace(TINY, label_smoothing=smoothing), "text")
    received = loss(LABELS, LOGITS, sample_weight=np.float32([[1, 1], [1, 0]]))
    expected = _cross_entropies(smoothing).ravel()[:3].mean()
    assert float(received) == pytest.approx(expected, rel=1e-5)


# Keras 3.15 gives NumPy its variables when it saves them, and these have no `copy=`.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
@pytest.mark.parametrize("optimizer", recipes.OPTIMIZERS)
@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "cosine"))
        for name in recipes.SCHEDULES
    ],
)
def test_a_compiled_model_can_be_saved(optimizer, schedule, tmp_path):
    changes = {"optimizer": optimizer, "schedule": schedule, "label_smoothing": 0.1}
    recipe = dataclasses.replace(TINY, **changes)
    model = _small_model()
    model.compile(recipes.optimizer(recipe, model, 20, 32), recipes.loss(recipe, "images"))
    x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
    model.fit(x, y, batch_size=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert loaded.loss.get_config() == model.loss.get_config()
    # The fifth of 20 steps, of which 2 are warm-up, is next in both.
    assert float(loaded.optimizer.learning_rate) == float(model.optimizer.learning_rate) > 0
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(name, marks=[] if name == "adamw" else pytest.mark.slow)
        for name in recipes.OPTIMIZERS
    ],
)
def test_bert_learns_which_token_is_everywhere(optimizer):
    recipe = dataclasses.replace(TINY, optimizer=optimizer, learning_rate=0.02)
    keras.utils.set_random_seed(0)
    model = _tiny_bert()
    model.compile(
        recipes.optimizer(recipe, model, steps=8, global_batch=4),
        recipes.loss(recipe, "text"),
        run_eagerly=True,  # for 8 steps a third of the time
    )
    ones = np.ones((4, 6), np.int32)
    sentences = {
        "token_ids": ones,
        "segment_ids": 0 * ones,
        "padding_mask": ones,
        "mask_positions": np.int32([[1, 4]] * 4),
    }
    losses = model.fit(sentences, np.full((4, 2), 7), epochs=8, verbose=0).history["loss"]
    # At first the guess is even over 20 tokens.
    assert losses[0] == pytest.approx(math.log(20), abs=0.7)
    assert losses[-1] < losses[0] - 1
