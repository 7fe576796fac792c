"""What a rank checks before it trains with others; pure parts."""

import pytest

from tf_gossip_pga.coordination.joining import Invitation
from tf_gossip_pga.training import preflight

INVITATION = Invitation(1, 12, [0, 1], [2], "ring", 3, "digest", {"step": 12, "period": None})


def test_a_joining_worker_that_fits_is_taken_in():
    preflight.check_joining(2, INVITATION, "digest", None)


@pytest.mark.parametrize(
    ("invitation", "digest", "problem", "text"),
    [
        (None, "digest", None, "must know the epoch of the other workers"),
        (
            INVITATION,
            "other",
            None,
            "it differs from the other workers in the model, the optimizer",
        ),
        (INVITATION, "digest", "the dataset is empty", "the dataset is empty"),
        (None, "", "the dataset is empty", "the dataset is empty"),  # what comes first
    ],
)
def test_a_joining_worker_that_does_not_fit_gets_the_reason(invitation, digest, problem, text):
    with pytest.raises(ValueError, match="Rank 2 cannot join: ") as error:
        preflight.check_joining(2, invitation, digest, problem)
    assert text in str(error.value)


def _ranks(*facts):
    return [{"problem": None, "facts": {"H": "6", "variables": ["a"], **each}} for each in facts]


def test_ranks_that_agree_may_train():
    preflight.check(_ranks({}, {}), (0, 2), 2)


def test_the_first_difference_is_named_with_every_ranks_value():
    with pytest.raises(ValueError, match="differ in H: rank 0 has 6, rank 2 has 4"):
        preflight.check(_ranks({}, {"H": "4"}), (0, 2), 0)
    with pytest.raises(ValueError, match="variable 2 of the model and its optimizer: rank 0 has"):
        preflight.check(_ranks({}, {"variables": ["a", "b"]}), (0, 2), 0)


def test_a_ranks_own_problem_comes_first_and_others_name_the_rank():
    everyone = [{"problem": None, "facts": {}}, {"problem": "no data.", "facts": None}]
    with pytest.raises(ValueError, match=r"^no data\.$"):
        preflight.check(everyone, (0, 2), 2)
    with pytest.raises(ValueError, match=r"^Rank 2 cannot start training: no data\.$"):
        preflight.check(everyone, (0, 2), 0)
