"""What is averaged, with what numbers."""

import math

import numpy as np
import pytest

from tests.support import deadlines, product
from tf_gossip_pga.exchange import averager as averager_lib

pytestmark = pytest.mark.multiprocess

# One that travels in two messages, one that travels alone, two that share one: see `bucket`.
SHAPES = [(1024, 1500), (700, 512), (31,), (5, 7)]
MATRIX = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5]])


def _values(rank: int, seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng([seed, rank])
    return [draw.normal(size=shape).astype(np.float32) for shape in SHAPES]


def _rounded(x: np.ndarray, wire_dtype: str) -> np.ndarray:
    """What arrives of a difference: NumPy's own rounding."""
    if wire_dtype == "float32":
        return x
    if wire_dtype == "bfloat16":  # to nearest, ties to even, of the upper 16 bits
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    flat = np.pad(x.ravel(), (0, -x.size % 256)).reshape(-1, 256)
    scales = np.abs(flat).max(1, keepdims=True) / np.float32(127)
    return (np.round(flat / scales) * scales).ravel()[: x.size].reshape(x.shape)


def _chunks(values: list[np.ndarray], lengths: list[int]) -> list[np.ndarray]:
    """As they travel: parts of the first, the second, the two last together."""
    first = np.split(values[0].ravel(), np.cumsum(lengths[:-2])[:-1])
    return [*first, values[1].ravel(), np.concatenate([v.ravel() for v in values[2:]])]


def _gossips(cluster):
    """For each wire, with overlap and without: errors, and how far the mean has moved."""
    import tensorflow as tf

    from tf_gossip_pga.algorithm import topology
    from tf_gossip_pga.exchange import wire

    session, errors = product.active(), {}
    variables = [tf.Variable(value) for value in _values(cluster.rank, 0)]
    for wire_dtype in ("float32", "bfloat16", "int8"):
        averager = averager_lib.Averager(
            session,
            topology.from_matrix(MATRIX),
            averager_lib.Variables(variables),
            averager_lib.Patience(deadlines.long(), deadlines.long()),
            wire.resolve(wire_dtype),
        )
        lengths = [length for length, _ in averager._parameters.layout]
        assert len(lengths) == 4
        for overlap in (False, True):
            for variable, value in zip(variables, _values(cluster.rank, 1), strict=True):
                variable.assign(value)
            averager.global_average("the test")  # what differences start from
            reference = [variable.numpy() for variable in variables]
            for variable, change in zip(variables, _values(cluster.rank, 2), strict=True):
                variable.assign_add(0.1 * change)
            before = [
                [r + np.float32(0.1) * c for r, c in zip(reference, _values(rank, 2), strict=True)]
                for rank in range(3)
            ]
            steps = 4 if overlap else 0
            if overlap:
                averager.start_gossip(0, "the test")
                # While it is under way, in place: nobody may read what changes here.
                for _ in range(steps):
                    for variable in variables:
                        variable.assign_sub(tf.ones(variable.shape))
                averager.finish_gossip()
            else:
                averager.gossip(0, "the test")
            sent = [
                [
                    _rounded(x - r, wire_dtype)
                    for x, r in zip(
                        _chunks(each, lengths), _chunks(reference, lengths), strict=True
                    )
                ]
                for each in before
            ]
            after = _chunks([variable.numpy() for variable in variables], lengths)
            error, wrong = 0.0, 0
            for chunk, value in enumerate(after):
                expected = _chunks(before[cluster.rank], lengths)[chunk].astype(np.float64) - steps
                for other, weight in enumerate(MATRIX[cluster.rank]):
                    expected += weight * (sent[other][chunk] - sent[cluster.rank][chunk])
                off = np.abs(value - expected)
                error, wrong = max(error, float(off.max())), wrong + int((off > 1e-5).sum())
            means = [float(variable.numpy().astype(np.float64).sum()) for variable in variables]
            starts = [float(each.astype(np.float64).sum()) for each in before[cluster.rank]]
            everyone = session.gather([means, starts], "the test", deadlines.long())
            drift = [
                abs(
                    sum(after[i] - start[i] for after, start in everyone) / 3 / math.prod(s) + steps
                )
                for i, s in enumerate(SHAPES)
            ]
            errors[f"{wire_dtype} {overlap}"] = [error, wrong, max(drift)]
    return errors


def test_large_variables_mix_exactly_while_they_change_and_in_fewer_bits(pools):
    for errors in pools.run(_gossips, 3):
        assert len(errors) == 6
        for label, (error, wrong, drift) in errors.items():
            # Of two million numbers some lie halfway between two of int8's, which are 0.004 apart.
            assert wrong <= (20 if "int8" in label else 0), label
            assert error < (2e-3 if "int8" in label else 1e-5), label
            assert drift < 1e-6, label
