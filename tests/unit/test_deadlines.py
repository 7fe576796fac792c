"""Deadlines grow with what the machine shows, and end what hangs."""

import pytest

from tests.support import deadlines


def test_a_deadline_is_as_many_times_longer_as_the_machine_is_slower(monkeypatch):
    monkeypatch.setenv("TF_GOSSIP_PGA_TEST_DEADLINE_FACTOR", "2.5")
    assert deadlines.scaled(4) == 10
    monkeypatch.delenv("TF_GOSSIP_PGA_TEST_DEADLINE_FACTOR")
    assert deadlines.scaled(4) == 4


def test_no_machine_shortens_a_deadline(monkeypatch):
    monkeypatch.setenv("TF_GOSSIP_PGA_TEST_DEADLINE_FACTOR", "")  # put back afterwards
    monkeypatch.setattr(deadlines, "_NOMINAL_S", 1e9)
    assert deadlines.calibrate() == deadlines.factor() == 1
    monkeypatch.setattr(deadlines, "_NOMINAL_S", 1e-9)
    assert deadlines.calibrate() == 10


def test_a_wait_ends_with_what_happened_or_at_the_deadline():
    found = iter([None, 0, "it"])
    assert deadlines.Deadline(60).until(lambda: next(found), every_s=0) == "it"
    with pytest.raises(TimeoutError, match=r"Not within [\d.]+ s\. It sleeps"):
        deadlines.Deadline(0.01).until(lambda: False, lambda: "It sleeps", every_s=0)
