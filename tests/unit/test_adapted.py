"""What layers have adapted to, as ranks compare it; no process is started."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_gossip_pga.training import adapted, preflight

WORDS = [["cat dog"], ["cat bird"], ["fish"]]
NUMBERS = np.arange(24, dtype="float32").reshape(12, 2)


class _Table(keras.layers.Layer):
    """A lookup table of the user's own."""

    def __init__(self, words):
        super().__init__(name="table")
        values = tf.range(len(words), dtype=tf.int64)
        initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(words), values)
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    def call(self, x):
        return self.table.lookup(x)


def _adapt(layer, data):
    layer.adapt(data)
    return layer


def _text(part: slice):
    vectorize = keras.layers.TextVectorization(output_sequence_length=2, name="text")
    return _adapt(vectorize, tf.constant(WORDS[part]))


def _tf_idf(part: slice):
    vectorize = keras.layers.TextVectorization(output_mode="tf_idf", name="text")
    return _adapt(vectorize, tf.constant(WORDS[part]))


KINDS = {
    "TextVectorization": _text,
    "tf_idf": _tf_idf,
    "StringLookup": lambda part: _adapt(keras.layers.StringLookup(), tf.constant(WORDS[part])),
    "IntegerLookup": lambda part: _adapt(
        keras.layers.IntegerLookup(), tf.constant([[1], [2], [7]][part], tf.int64)
    ),
    "Normalization": lambda part: _adapt(keras.layers.Normalization(), NUMBERS[part]),
    "Discretization": lambda part: _adapt(keras.layers.Discretization(num_bins=3), NUMBERS[part]),
    "a table": lambda part: _Table([row[0] for row in WORDS[part]]),
}


def _model(layer):
    return keras.Sequential([layer], name="model")


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_have_adapted_to_other_data_differ_and_equal_ones_do_not(kind):
    whole, again, part = (
        adapted.described(_model(KINDS[kind](rows)))
        for rows in (slice(None), slice(None), slice(1, None))
    )
    values = [list(each.values()) for each in (whole, again, part)]
    assert values[0] == values[1] != values[2]
    assert values[0] and all("values (digest" in text for text in values[0])


def test_the_error_names_the_layer_the_ranks_and_what_to_do():
    everyone = [
        {"problem": None, "facts": {"variables": [], **adapted.described(_model(_text(rows)))}}
        for rows in (slice(None), slice(1, None))
    ]
    with pytest.raises(ValueError, match="differ in the adapted layer '") as error:
        preflight.check(everyone, (0, 1), 0)
    for part in ("rank 0 has", "rank 1 has", "Adapt it to the whole dataset, before cluster.shard"):
        assert part in str(error.value)


def test_a_mean_that_another_machine_rounds_differently_is_the_same():
    layers = [keras.layers.Normalization(mean=mean, variance=1.0) for mean in (0.1, 0.1 + 1e-8)]
    for layer in layers:
        layer.build((None, 2))
    first, second = (list(adapted.described(_model(layer)).values()) for layer in layers)
    assert first == second


def test_local_layers_and_models_that_adapt_in_another_sense_are_not_compared():
    class Meta(keras.Model):
        def adapt(self, task):
            pass

    model = Meta()
    model.examples, model.words = np.arange(3), _text(slice(None))
    assert list(adapted.described(model)) == ["the adapted layer 'text'"]
    assert adapted.described(model, ["text"]) == {}


def test_models_without_such_layers_have_nothing_to_compare():
    assert adapted.described(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])) == {}
