"""The command that starts a module over ssh."""

import shlex

from tf_gossip_pga.launch import ssh


def _directory(environment):
    *_, text = ssh.command("a", "module", environment)
    return shlex.split(text)[4]


def test_the_directory_has_the_name_that_the_shell_has_for_it(monkeypatch, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "home").symlink_to("export")
    monkeypatch.chdir(tmp_path / "home")
    assert _directory({"PWD": str(tmp_path / "home")}) == str(tmp_path / "home")
    for other in ({}, {"PWD": str(tmp_path)}, {"PWD": "."}, {"PWD": str(tmp_path / "none")}):
        assert _directory(other) == str(tmp_path / "export")
