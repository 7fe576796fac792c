"""Provide what several unit tests share."""

import logging
import re

import pytest

from tests.support import deadlines


@pytest.fixture
def said(caplog, monkeypatch):
    """What has been logged."""
    monkeypatch.setattr(logging.getLogger("tf_gossip_pga"), "propagate", True)
    return caplog


@pytest.fixture
def await_said(said):
    """Function that waits until each of the given patterns has been logged."""

    def wait(*patterns):
        def found():
            return all(re.search(each, said.text) for each in patterns)

        deadlines.Deadline(60).until(found, lambda: said.text)

    return wait
