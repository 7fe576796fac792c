"""The report for issues, and the subcommands of the console command."""

import importlib.metadata
import subprocess
import sys

import pytest

import tf_gossip_pga as pga
from tests.support import deadlines
from tf_gossip_pga import __main__ as console
from tf_gossip_pga.launch import issue


def rows(text: str) -> dict[str, str]:
    cells = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if " | " in line]
    return {cell[0]: cell[1] for cell in cells if len(cell) == 2}


def test_the_report_has_versions_and_hardware():
    found = rows(issue.report({}))
    assert found["tf_gossip_pga"] == pga.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["tensorflow"][0].isdecimal() and found["total memory"].endswith("GiB")
    assert found["cluster"] == "none: a single worker"


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(issue, "_PACKAGES", ("no-such-package",))
    assert rows(issue.report({}))["no-such-package"] == "not installed"


@pytest.mark.parametrize("name", ["tensorflow", "tensorflow-cpu", "tf-nightly"])
def test_each_package_of_tensorflow_is_found(monkeypatch, name):
    def version(package):
        if package != name:
            raise importlib.metadata.PackageNotFoundError
        return "2.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = rows(issue.report({}))
    assert (found["tensorflow"], found["keras"]) == ("2.0", "not installed")


def test_the_report_shows_how_the_cluster_is_found_and_from_which_variables():
    variables = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29500",
        "HOME": "/somebody",
        "TF_USE_LEGACY_KERAS": "1",
    }
    text = issue.report(variables)
    assert "rank 1 of 2, found by torchrun's variables" in rows(text)["cluster"]
    assert "rendezvous at node0:" in rows(text)["cluster"]
    shown = text.partition("```sh\n")[2].partition("\n```")[0].splitlines()
    assert {line.partition("=")[0] for line in shown} == set(variables) - {"HOME"}


def test_an_error_is_one_row():
    found = rows(issue.report({"WORLD_SIZE": "2"}))["cluster"]
    assert found.startswith("error: This process is one of several (WORLD_SIZE=2)")


def test_secrets_are_not_shown():
    variables = {"TF_GOSSIP_PGA_SECRET": "x" * 20, "NCCL_TOKEN": "y", "NCCL_DEBUG": "INFO"}
    text = issue.report(variables)
    assert "TF_GOSSIP_PGA_SECRET=(not shown, 20 characters)" in text
    assert "NCCL_TOKEN=(not shown, 1 characters)" in text
    assert "NCCL_DEBUG=INFO" in text
    assert "xx" not in text
    text = issue.report({"TF_GOSSIP_PGA_SECRET_FILE": "/run/secret"})
    assert "TF_GOSSIP_PGA_SECRET_FILE=/run/secret" in text


def test_a_subcommand_gets_its_arguments(capsys):
    assert console.main(["env"]) == 0
    assert "| tf_gossip_pga | " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        console.main(["run", "--help"])
    assert capsys.readouterr().out.startswith("usage: gossip-pga run [-h]")


@pytest.mark.parametrize("arguments", [[], ["train"], ["--run"]])
def test_what_is_no_subcommand_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        console.main(arguments)
    assert error.value.code == 2
    assert "usage: gossip-pga " in capsys.readouterr().err


def test_a_subcommand_with_flags_sees_its_own_name():
    command = [sys.executable, "-m", "tf_gossip_pga", "plan"]
    done = subprocess.run(
        [*command, "--nodes=4", "--parameters=1000", "--compute_ms=1", "--mbit=1000"],
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert done.returncode == 0 and "parallel" in done.stdout.lower(), done.stderr
    done = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, timeout=deadlines.long()
    )
    assert "\ngossip-pga plan:\n" in done.stdout, done.stdout
