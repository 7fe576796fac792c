"""models/: sizes and shapes that train.py relies on."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import models
from models import bert, resnet


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def without_weights():
    """Variables have shapes but no values: a second and a gigabyte less for a large model."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.utils.clear_session()  # which has a list of them


def _parameters(model) -> int:
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def test_resnet20_has_the_parameters_of_the_paper():
    # Convolutions, 9 weights for each pair of filters:
    #   stem                                9 *  3 * 16 =     432
    #   stage 1, 6 of 16 -> 16      6 * 9 * 16 * 16     =  13 824
    #   stage 2, 1 of 16 -> 32, 5 of 32 -> 32:
    #           9 * 16 * 32  +  5 * 9 * 32 * 32         =  50 688
    #   stage 3, 1 of 32 -> 64, 5 of 64 -> 64:
    #           9 * 32 * 64  +  5 * 9 * 64 * 64         = 202 752
    # BatchNorms, scale and offset for each of
    #   7 * 16 + 6 * 32 + 6 * 64 = 688 channels         =   1 376
    # Dense                           64 * 10 + 10      =     650
    #                                             sum     269 722
    model = resnet.resnet20((32, 32, 3), 10)
    assert _parameters(model) == 269_722
    # And a moving mean and variance for each of the 688 channels.
    assert model.count_params() == 269_722 + 1_376


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, shape) for name in ("mlp", "resnet20") for shape in ((8, 8, 1), (32, 32, 3))),
        *((name, (7, 13, 2)) for name in ("mlp", "resnet20", "resnet50")),
    ],
)
def test_classifiers_take_images_of_any_size(name, shape):
    model = models.build(name, input_shape=shape, classes=5)
    logits = model(np.ones((3, *shape), np.float32))
    assert logits.shape == (3, 5)
    assert model.name == name


def test_resnet20_begins_as_its_shortcuts():
    model = resnet.resnet20((8, 8, 1), 10)
    norms = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
    # Of the stem and, in nine blocks, one inside and one at the end.
    assert [float(each.gamma[0]) for each in norms] == [1, *[1, 0] * 9]


def test_shortcut_takes_every_other_pixel_and_adds_empty_channels():
    image = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    short = np.array(resnet._shortcut(np.repeat(image, 2, axis=-1), filters=4, strides=2))
    # 5 x 5 pixels, rows 0-4, 5-9, …; the two channels lie between one new one on either side.
    assert short[0, :, :, 1].tolist() == [[0, 2, 4], [10, 12, 14], [20, 22, 24]]
    assert short[0, :, :, 2].tolist() == [[0, 2, 4], [10, 12, 14], [20, 22, 24]]
    assert not short[..., [0, 3]].any()


def test_mlp_has_two_hidden_layers_of_64():
    # 64 * 64 + 64, the same again, 64 * 10 + 10
    assert _parameters(models.build("mlp", input_shape=(8, 8, 1), classes=10)) == 8_970


@pytest.fixture(scope="module")
def resnet50():
    return resnet.resnet50((64, 64, 3), 1000)


def test_resnet50_has_the_published_parameters(resnet50):
    assert _parameters(resnet50) == 25_557_032
    # A moving mean and variance for each of
    #   stem 64, shortcuts 256 + 512 + 1024 + 2048 and, with 3, 4, 6 and 3 blocks,
    #   (64 + 64 + 256, doubled, …): 384 * 3 + 768 * 4 + 1536 * 6 + 3072 * 3 = 22 656 channels
    assert resnet50.count_params() == 25_557_032 + 2 * (64 + 3840 + 22_656)


def test_resnet50_halves_images_in_the_3x3_convolution(resnet50):
    convolutions = [each for each in resnet50.layers if isinstance(each, layers.Conv2D)]
    halving = {(*each.kernel_size, each.filters) for each in convolutions if each.strides != (1, 1)}
    # The stem; the 3x3 of the first block of stages 2, 3 and 4, in its middle; and its shortcut,
    # which has four times the filters. In v1 the 1x1 of 128, 256 and 512 filters halve instead.
    stem, middles = {(7, 7, 64)}, {(3, 3, 128), (3, 3, 256), (3, 3, 512)}
    assert halving == stem | middles | {(1, 1, 512), (1, 1, 1024), (1, 1, 2048)}
    assert not any(each.use_bias for each in convolutions)


def test_blocks_of_resnet50_begin_as_the_identity(resnet50):
    norms = [each for each in resnet50.layers if isinstance(each, layers.BatchNormalization)]
    assert {(each.momentum, each.epsilon) for each in norms} == {(0.9, 1e-5)}
    zeros = [each for each in norms if not each.gamma.numpy().any()]
    assert (len(zeros), len(norms)) == (3 + 4 + 6 + 3, 53)
    assert all((each.gamma.numpy() == 1).all() for each in norms if each not in zeros)

    sums = [each for each in resnet50.layers if isinstance(each, layers.Add)]
    parts = keras.Model(resnet50.input, [each.input for each in sums])
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    for shortcut, branch in parts(images, training=True):
        assert np.any(shortcut)
        assert not np.any(branch)


def test_resnet50_has_the_initial_weights_of_goyal(resnet50):
    middle = [each for each in resnet50.layers if isinstance(each, layers.Conv2D)][-2]
    assert middle.kernel.shape == (3, 3, 512, 512)
    assert middle.kernel.numpy().std() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert resnet50.get_layer("logits").kernel.numpy().std() == pytest.approx(0.01, rel=0.01)


def test_resnet50_consists_of_layers_of_keras(resnet50):
    assert {each["module"] for each in resnet50.get_config()["layers"]} == {"keras.layers"}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("bert_tiny", 4_385_920), ("bert_base", 109_482_240), ("bert_large", 335_141_888)],
)
def test_encoders_have_the_published_parameters(name, parameters, without_weights):
    assert bert.encoder(name, vocabulary_size=30_522).count_params() == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # The encoder's, less a pooler, width * width + width, and with a head: as much again, a
        # scale and an offset of `width`, and a bias for each token. Base is BertForMaskedLM's.
        ("bert_tiny", 4_385_920 + 2 * 128 + 30_522),
        ("bert_base", 109_514_298),
        ("bert_large", 335_141_888 + 2 * 1024 + 30_522),
    ],
)
def test_masked_lm_has_the_published_parameters(name, parameters, without_weights):
    assert _parameters(models.build(name, vocabulary_size=30_522)) == parameters


def _sentences() -> dict[str, np.ndarray]:
    """Two sentences of 8 tokens out of 50, the last two are padding; three masks in each."""
    random = np.random.default_rng(0)
    return {
        "token_ids": random.integers(1, 50, (2, 8), np.int32),
        "segment_ids": np.zeros((2, 8), np.int32),
        "padding_mask": np.int32([[1] * 6 + [0] * 2] * 2),
        "mask_positions": np.int32([[0, 3, 5], [1, 2, 4]]),
    }


def test_masks_see_all_tokens_but_padding():
    model, sentences = bert.bert_tiny(50), _sentences()
    logits = np.array(model(sentences))
    assert (logits.shape, logits.dtype) == ((2, 3, 50), np.float32)
    for position, is_seen in [(4, True), (6, False)]:
        changed = {**sentences, "token_ids": sentences["token_ids"].copy()}
        changed["token_ids"][0, position] = 0
        difference = np.abs(np.array(model(changed)) - logits)
        assert (difference[0].max(axis=-1) > 1e-3).tolist() == [is_seen] * 3
        assert difference[1].max() < 1e-6  # the other sentence


# Keras 3.15 gives NumPy its variables when it saves them, and these have no `copy=`.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
def test_head_of_bert_is_its_token_embedding(tmp_path):
    model = bert.bert_tiny(50)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        embedding = each.get_layer("token_embedding")
        assert each.get_layer("masked_lm_head").token_embedding is embedding
        assert [v.shape for v in each.trainable_variables].count((50, 128)) == 1
    np.testing.assert_array_equal(loaded(_sentences()), model(_sentences()))


def test_every_variable_of_bert_has_a_gradient():
    model = bert.bert_tiny(50)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(_sentences(), training=True) ** 2)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    # A key's bias moves all scores of a query alike, which a softmax does not notice.
    still = [
        variable.path
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
        if np.abs(tf.convert_to_tensor(gradient)).max() < 1e-4
    ]
    assert still == [f"transformer_layer_{n}/self_attention_layer/key/bias" for n in (0, 1)]


@pytest.mark.parametrize("name", ["mlp", "resnet20", "resnet50", "bert_tiny"])
def test_logits_are_float32_in_mixed_precision(name, mixed_precision):
    if models.kind(name) == "text":
        logits = models.build(name, vocabulary_size=50)(_sentences())
    else:
        logits = models.build(name, input_shape=(8, 8, 1), classes=5).output
    assert logits.dtype == "float32"


def test_kinds():
    kinds = {name: models.kind(name) for name in models.MODELS}
    assert [name for name in kinds if kinds[name] == "images"] == ["mlp", "resnet20", "resnet50"]
    assert set(kinds.values()) == {"images", "text"}


@pytest.mark.parametrize("ask", [models.check, models.kind, models.build])
def test_unknown_names_are_answered_with_the_known_ones(ask):
    with pytest.raises(ValueError, match=r"Unknown model 'resnet19'\. Known models: .*resnet20"):
        ask("resnet19")
