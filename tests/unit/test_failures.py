"""Which errors of TensorFlow are failures of the network, and what they say."""

import pytest
import tensorflow as tf

from tf_gossip_pga.coordination.diagnosis import Findings
from tf_gossip_pga.exchange import failures


@pytest.mark.parametrize(
    ("kind", "message", "reason", "peer"),
    [
        (tf.errors.UnavailableError, "failed to connect.", "failed to connect", None),
        (tf.errors.CancelledError, "Step was cancelled", "Step was cancelled", None),
        (
            tf.errors.UnavailableError,
            "Socket closed\nError reported from /job:worker/task:3: Socket closed",
            "Socket closed\nError reported from /job:worker/task:3: Socket closed",
            "the worker with index 3",
        ),
        (
            tf.errors.DeadlineExceededError,
            "target /job:chief/replica:0/task:0 took too long",
            "target /job:chief/replica:0/task:0 took too long",
            "the chief with index 0",
        ),
        # An abort of ours may come out of the op as an error of any kind.
        (
            tf.errors.InternalError,
            "Collective ops is aborted by: rank 1 has ended. [type.googleapis.com/x='']",
            "rank 1 has ended",
            None,
        ),
    ],
)
def test_a_failure_of_the_network_is_a_broken_exchange(kind, message, reason, peer):
    findings = Findings((1,), True, "rank 1 has ended")
    broken = failures.broken(kind(None, None, message), "the gossip of step 7", findings)
    assert (broken.doing, broken.reason) == ("the gossip of step 7", reason)
    assert (broken.peer, broken.findings) == (peer, findings)


@pytest.mark.parametrize("kind", [tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError])
def test_an_error_of_our_own_is_not(kind):
    assert failures.broken(kind(None, None, "shapes differ"), "the gossip of step 7", None) is None
