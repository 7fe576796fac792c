"""Where a command's results go, and what is refused before any work."""

import json
import math
import os
import sys

import numpy as np
import pytest

from tf_gossip_pga.tools import output


def test_a_name_is_checked_before_anything_is_written(tmp_path):
    path = tmp_path / "new" / "found.json"
    assert output.check(str(path)) == path
    assert list(tmp_path.rglob("*")) == [path.parent]
    path.write_text("old")
    output.check(str(path))
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["plan.png", "plan", "plan.json.txt"])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=f"--output={name}: the name must end in .json"):
        output.check(name)


def test_what_cannot_be_written_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"file/found\.json cannot be written: .*File exists"):
        output.check(str(file / "found.json"))
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"folder\.json cannot be written: .*Is a directory"):
        output.check(str(folder))


def test_results_and_a_picture_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["…", "--name=two words"])
    path = tmp_path / "found.json"
    output.write(path, "tf_gossip_pga.plan", {"x": [1, math.nan]}, lambda path: path.touch())
    command = "python -m tf_gossip_pga.plan '--name=two words'"
    assert json.loads(path.read_text()) == {"command": command, "x": [1, None]}
    assert path.with_suffix(".png").exists()
    assert f"Written to {path}" in capsys.readouterr().out


def test_without_matplotlib_there_is_no_picture_and_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    path = tmp_path / "found.json"
    output.write(path, "tf_gossip_pga.plan", {}, lambda path: pytest.fail("drawn"))
    assert path.exists()
    assert "matplotlib is not installed. Run pip install matplotlib" in capsys.readouterr().out


def test_json_has_no_number_that_is_none():
    value = {"a": [math.nan, (1, -math.inf)], "b": {"c": np.float64("nan"), "d": 2}, "e": "NaN"}
    assert json.loads(output.as_json(value), parse_constant=pytest.fail) == {
        "a": [None, [1, None]],
        "b": {"c": None, "d": 2},
        "e": "NaN",
    }


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    for text in ("old", "new …"):
        output.replace(path, text)
        assert path.read_text("utf-8") == text

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(output.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        output.replace(path, "newer")
    assert path.read_text("utf-8") == "new …"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_depends_on_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        output.replace(tmp_path / "report.html", "text")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == mode
