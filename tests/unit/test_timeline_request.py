"""The steps and the file of a timeline: what is accepted, and what errors say."""

import os
import pathlib
import re

import numpy as np
import pytest

from tf_gossip_pga.tools import output
from tf_gossip_pga.tools import timeline_request as request


@pytest.mark.parametrize("steps", [(1, 1), [100, 120], (np.int64(3), 9)])
def test_a_first_and_a_last_step_are_accepted(steps):
    assert request.check_steps("steps", steps) == tuple(steps)


@pytest.mark.parametrize("steps", [(0, 5), (6, 5), (1, 2, 3), (1.0, 2), (True, 2), 7, "12", None])
def test_other_steps_are_errors(steps):
    message = f"steps must be the first and the last step to record, .*; received {steps!r}. Steps"
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        request.check_steps("steps", steps)


def test_very_many_steps_are_an_error():
    assert request.check_steps("steps", (5, 10_004)) == (5, 10_004)
    message = "steps must be at most 10,000 steps, received (5, 10005), which are 10,001. Choose "
    with pytest.raises(ValueError, match=re.escape(message)):
        request.check_steps("steps", (5, 10_005))


def test_steps_are_read_from_text():
    assert request.parsed("S", "100:120") == (100, 120)
    for text in ("100", "a:b", "1:2:3", "1_0:20", ""):
        message = f"S must be FIRST:LAST, two whole numbers such as 100:120; received {text!r}."
        with pytest.raises(ValueError, match=re.escape(message)):
            request.parsed("S", text)
    with pytest.raises(ValueError, match=r"received \(5, 1\)"):
        request.parsed("S", "5:1")


def test_variables_say_what_was_requested(tmp_path):
    assert request.requested({}) is None
    assert request.requested({request.FILE: ""}) is None
    assert request.requested({request.FILE: "/a"}) == ("/a", (100, 120))
    assert request.requested(request.variables("/a/b", (1, 2))) == ("/a/b", (1, 2))
    assert request.variables("b", (1, 2))[request.FILE] == str(pathlib.Path.cwd() / "b")


def test_the_folder_of_a_file_must_exist(tmp_path, monkeypatch):
    assert output.check_path("path", tmp_path / "a.json") == tmp_path / "a.json"
    monkeypatch.chdir(tmp_path)
    assert output.check_path("path", "a.json") == pathlib.Path("a.json")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cases = {
        tmp_path: "this is a folder. Add the name of the file.",
        pipe: "this is not a regular file, and writing would replace it. Choose another one.",
        tmp_path / "b" / "a.json": f"there is no folder '{tmp_path / 'b'}'. Create it first.",
    }
    for path, problem in cases.items():
        message = f"path must be a file in an existing folder, received '{path}': {problem}"
        with pytest.raises(ValueError, match=re.escape(message)):
            output.check_path("path", path)
    with pytest.raises(ValueError, match=r"path must be the path of a file, received None\."):
        output.check_path("path", None)
    monkeypatch.setattr(request.os, "access", lambda *arguments: False)
    with pytest.raises(ValueError, match=r"may not write to the folder .*\. Choose another one"):
        output.check_path("path", tmp_path / "a.json")
