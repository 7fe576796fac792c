"""Build masked language models: BERT without its second task, next sentence prediction.

The encoder and the head come from KerasHub, with random weights.

Source: Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding", NAACL 2019. The tiny size: Turc, Chang, Lee and Toutanova, "Well-Read
Students Learn Better", arXiv 1908.08962.
"""

from typing import Any, cast

import keras
import keras_hub

# Arguments of KerasHub's encoder. Its defaults are 512 positions, 2 segments and dropout 0.1.
SIZES = {
    "bert_tiny": {"num_layers": 2, "num_heads": 2, "hidden_dim": 128, "intermediate_dim": 512},
    "bert_base": {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072},
    "bert_large": {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024, "intermediate_dim": 4096},
}


def bert_tiny(vocabulary_size: int) -> keras.Model:
    """Return a BERT with 2 layers of width 128, which trains on a CPU within minutes.

    Args:
      vocabulary_size: number of tokens.

    Returns:
      See `masked_lm`.
    """
    return masked_lm("bert_tiny", vocabulary_size)


def bert_base(vocabulary_size: int) -> keras.Model:
    """Return a BERT with 12 layers of width 768: 109,514,298 parameters with 30,522 tokens.

    Args:
      vocabulary_size: number of tokens.

    Returns:
      See `masked_lm`.
    """
    return masked_lm("bert_base", vocabulary_size)


def bert_large(vocabulary_size: int) -> keras.Model:
    """Return a BERT with 24 layers of width 1024: 335,174,458 parameters with 30,522 tokens.

    Args:
      vocabulary_size: number of tokens.

    Returns:
      See `masked_lm`.
    """
    return masked_lm("bert_large", vocabulary_size)


def masked_lm(name: str, vocabulary_size: int) -> keras.Model:
    """Return an encoder with a head that predicts the tokens at given positions.

        logits[mask] = layer_norm(gelu(dense(encoded[position[mask]]))) @ embeddings.T + bias

    The head shares the matrix of the token embedding.

    Args:
      name: one of `SIZES`.
      vocabulary_size: number of tokens.

    Returns:
      A model from a dict of int32 tensors to logits `[batch, masks, vocabulary_size]`, which are
      float32 regardless of the dtype policy. A row has at most 512 tokens.

        token_ids       [batch, length]
        segment_ids     [batch, length]   0 or 1
        padding_mask    [batch, length]   1 for a token, 0 for padding
        mask_positions  [batch, masks]    positions to predict, 0 … length-1

      Loading a saved model requires KerasHub.
    """
    backbone = encoder(name, vocabulary_size)
    head = keras_hub.layers.MaskedLMHead(
        token_embedding=backbone.token_embedding,
        intermediate_activation="gelu",
        layer_norm_epsilon=1e-12,  # as in the encoder
        kernel_initializer=cast(Any, keras.initializers.TruncatedNormal(stddev=0.02)),
        dtype="float32",
        name="masked_lm_head",
    )
    positions = keras.Input((None,), dtype="int32", name="mask_positions")
    # Use the inputs and outputs of the encoder's graph instead of calling the encoder. This leaves
    # out the encoder's pooler, which only next sentence prediction would train and which workers
    # would average needlessly.
    inputs, outputs = cast(dict, backbone.input), cast(dict, backbone.output)
    logits = head(outputs["sequence_output"], positions)
    return keras.Model({**inputs, "mask_positions": positions}, logits, name=name)


def encoder(name: str, vocabulary_size: int) -> keras_hub.models.BertBackbone:
    """Return the published encoder, with its pooler.

    The initial weights are truncated normal with standard deviation 0.02.

    Args:
      name: one of `SIZES`.
      vocabulary_size: number of tokens.
    """
    return keras_hub.models.BertBackbone(vocabulary_size=vocabulary_size, **SIZES[name])
