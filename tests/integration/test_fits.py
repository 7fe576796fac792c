"""A worker dies between the fits of one script, as `python tests/fits.py` has it; here one kill."""

import pytest

from tests import fits
from tests.support import nursery

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize(
    ("victim", "after_s"), [(0, 0.3), pytest.param(2, 0.8, marks=pytest.mark.slow)]
)
def test_the_survivors_of_a_kill_complete_all_fits(victim, after_s):
    with nursery.forks():
        results, exit_codes, said = fits.run(victim, after_s, fits=12)
    assert fits.problem(victim, 12, results, exit_codes) is None, said
