"""The launcher's command line and its TOML file, with a stand-in for the launcher itself."""

import contextlib
import pathlib
import re

import pytest

from tf_gossip_pga.launch import command, job, signals
from tf_gossip_pga.launch.hosts import Host
from tf_gossip_pga.tools import report_request, timeline_request


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Run the command line, and return the number of workers and the settings of the launch."""
    script = tmp_path / "script.py"
    script.touch()

    def main(*arguments):
        seen = []

        def prepared_run(*each, **settings):
            seen.append((each, settings))
            return lambda: 0

        monkeypatch.setattr(job, "prepared_run", prepared_run)
        assert command.main([*arguments, str(script)]) == 0
        ((_, workers, restarts), settings) = seen[0]
        return {"workers": workers, "max_restarts": restarts, **settings}

    return main


@pytest.fixture
def config(tmp_path):
    def write(text):
        file = tmp_path / "run.toml"
        file.write_text(text)
        return f"--config={file}"

    return write


def test_two_local_workers_are_the_default(launched):
    found = launched()
    assert (found["workers"], found["hosts"], found["env"], found["log_dir"]) == (2, None, {}, None)


def test_an_option_after_the_script_is_pointed_out(monkeypatch, tmp_path, capsys):
    script = tmp_path / "script.py"
    script.touch()
    monkeypatch.setattr(job, "prepared_run", lambda *each, **settings: lambda: 0)
    assert command.main([str(script), "--workers=4", "--epochs=3", "--log-dir", "x"]) == 0
    note = "Note: the script receives --workers=4 --log-dir. Options of the launcher must come "
    assert capsys.readouterr().err == f"{note}before the script.\n"
    assert command.main(["--workers=4", str(script), "--epochs=3"]) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("form", [["-H", "a:2,b"], ["--hosts=a:2,b"], ["-Ha:2,b"]])
def test_hosts_replace_local_workers(launched, form):
    found = launched(*form)
    assert (found["workers"], found["hosts"]) == (None, [Host("a", 2), Host("b")])


def test_hosts_may_be_listed_in_a_file(launched, tmp_path):
    (tmp_path / "hosts").write_text("a slots=2\n")
    assert launched("--hostfile", str(tmp_path / "hosts"))["hosts"] == [Host("a", 2)]


def test_a_timeline_is_requested_by_variables(launched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = launched("--timeline=trace.json", "--timeline-steps=3:9", "--env=A=1")["env"]
    requested = {"TF_GOSSIP_PGA_TIMELINE": str(tmp_path / "trace.json")}
    requested["TF_GOSSIP_PGA_TIMELINE_STEPS"] = "3:9"
    assert found == {"A": "1", **requested}
    assert timeline_request.requested(found) == (str(tmp_path / "trace.json"), (3, 9))
    found = launched("--timeline=trace.json")["env"]
    assert timeline_request.requested(found) == (str(tmp_path / "trace.json"), (100, 120))
    # Rank 0 checks the folder of its own host.
    found = launched("--timeline=/nowhere/trace.json", "-H", "a,b")["env"]
    assert timeline_request.requested(found)[0] == "/nowhere/trace.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeline-steps=1:2"], "--timeline-steps needs --timeline=FILE, the file to write"),
        (["--timeline=x", "--timeline-steps=9"], "must be FIRST:LAST, two whole numbers such as"),
        (["--timeline=x", "--timeline-steps=9:1"], "1 <= first <= last, such as (100, 120); rec"),
        (["--timeline=x", "--timeline-steps=1:20000"], "must be at most 10,000 steps, received ("),
        (["--timeline=/nowhere/x"], "there is no folder '/nowhere'. Create it first."),
    ],
)
def test_a_timeline_that_cannot_be_written_is_an_error(launched, capsys, options, message):
    with pytest.raises(SystemExit):
        launched(*options)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_report_is_requested_by_a_variable(launched, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = launched("--report=report.html", "--timeline=trace.json")["env"]
    assert found["TF_GOSSIP_PGA_REPORT"] == str(tmp_path / "report.html")
    assert report_request.requested(found) == str(tmp_path / "report.html")
    assert timeline_request.requested(found) is not None
    assert report_request.requested(launched()["env"]) is None
    found = launched("--report=/nowhere/report.html", "-H", "a,b")["env"]
    assert report_request.requested(found) == "/nowhere/report.html"
    with pytest.raises(SystemExit):
        launched("--report=/nowhere/report.html")
    assert "--report must be a file in an existing folder" in capsys.readouterr().err


def test_variables_are_set_or_passed_on(launched, monkeypatch):
    monkeypatch.setenv("PASSED", "kept")
    found = launched("--env=A=1", "--env", "PASSED", "--env=B=x=y", "--env=A=2", "--env=C=")
    assert found["env"] == {"A": "2", "PASSED": "kept", "B": "x=y", "C": ""}


def test_a_file_has_the_options_by_name(launched, config):
    found = launched(
        config(
            'hosts = "a:2,b:2"\nmin-workers = 3\nrejoins = 1\nmax-restarts = 2\n'
            'gpus-per-worker = 2\nshare-gpus = true\nverbose = false\nlog-dir = "logs"\n'
            'env = ["A=1", "B=2"]\n'
        )
    )
    assert found == {
        "workers": None,
        "hosts": [Host("a", 2), Host("b", 2)],
        "min_workers": 3,
        "rejoins": 1,
        "max_restarts": 2,
        "gpus_per_worker": 2,
        "share_gpus": True,
        "verbose": False,
        "log_dir": "logs",
        "env": {"A": "1", "B": "2"},
    }


def test_the_command_line_takes_precedence_over_the_file(launched, config):
    file = config('hosts = "a,b"\nrejoins = 1\nenv = ["A=1", "B=1"]\n')
    found = launched("--rejoins=2", file, "--env=B=2")
    assert (found["rejoins"], found["env"]) == (2, {"A": "1", "B": "2"})
    found = launched("--workers=3", file)  # another place, so that of the file does not count
    assert (found["workers"], found["hosts"]) == (3, None)
    assert launched("-H", "c", file)["hosts"] == [Host("c")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=2", "-H", "a"], "--workers and --hosts are both given. Give --workers=N to"),
        (["-H", "a", "--hostfile=b"], "--hosts and --hostfile are both given"),
        (["-H", "a:0"], "-H must list hosts such as a:2,user@b:2, with at least one slot each"),
        (["--env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set here. Set it, or give NAME="),
        (["--env", "=1"], "--env must be NAME=VALUE or NAME; received '=1'"),
        (["--env", "TF_CONFIG={}"], "--env cannot set TF_CONFIG, which the launcher sets or"),
        (["--env", "TF_GOSSIP_PGA_CHANNEL_PORT=1"], "cannot set TF_GOSSIP_PGA_CHANNEL_PORT, wh"),
        (["--env", "TF_GOSSIP_PGA_CLUSTER=none"], "--env cannot set TF_GOSSIP_PGA_CLUSTER, whi"),
        (["--env", "TF_GOSSIP_PGA_RANK=1"], "--env cannot set TF_GOSSIP_PGA_RANK, which the lau"),
        (["--env", "TF_GOSSIP_PGA_JOIN=1"], "received 'TF_GOSSIP_PGA_JOIN=1'. Leave it out"),
        (["--config=no_such.toml"], "--config 'no_such.toml' cannot be read: "),
    ],
)
def test_bad_arguments_are_errors(launched, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        launched(*arguments)
    assert error.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_file_in_the_guide_is_accepted(launched, config, monkeypatch):
    monkeypatch.setenv("DATA_DIR", "/data")
    guide = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "ssh.md"
    example = re.search(r"^```toml\n(.*?)^```$", guide.read_text(), re.M | re.S)
    assert example and launched(config(example[1]))["min_workers"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("workers = ", "cannot be read: Invalid value"),
        ("worker = 4", "has the unknown key 'worker'. Accepted are env, gpus-per-worker, hostfile"),
        ("config = 'x'", "has the unknown key 'config'"),
        ("workers = 1.5", "workers must be text or a whole number; received 1.5"),
        (
            "log-dir = true",
            "log-dir must be text or a whole number; received True",
        ),
        ("rejoins = false", "rejoins must be text or a whole number; received Fa"),
        ("env = ['A=1', true]", "env must be text or a list of texts; received ["),
        ("hosts = ['a', 'b']", "hosts must be text or a whole number; received ['a', 'b']"),
        ("verbose = 'yes'", "verbose must be true or false; received 'yes'"),
        ("workers = 'two'", "argument --workers: invalid int value: 'two'"),
        ("workers = 2\nhosts = 'a'", "--workers and --hosts are both given"),
    ],
)
def test_a_bad_file_is_an_error(launched, config, capsys, content, message):
    with pytest.raises(SystemExit) as error:
        launched(config(content))
    assert error.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_error_of_the_launcher_itself_is_not_one_of_the_command_line(monkeypatch, tmp_path):
    def fail(prepared):
        raise ValueError("a mistake of the launcher")

    monkeypatch.setattr(job, "_follow", fail)
    monkeypatch.setattr(signals, "handled", lambda handlers: contextlib.nullcontext())
    script = tmp_path / "script.py"
    script.touch()
    with pytest.raises(ValueError, match="a mistake of the launcher"):
        command.main(["--workers=1", str(script)])


def test_a_task_of_a_scheduler_does_not_start_a_job_of_its_own(launched, monkeypatch, capsys):
    for name, text in {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_STEP_NODELIST": "a,b",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit) as ended:
        launched("--workers=2")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "this process is one of 2 workers (found by Slurm's step variables)" in said
    monkeypatch.setenv("TF_GOSSIP_PGA_CLUSTER", "none")
    assert launched("--workers=2")["workers"] == 2


def test_a_module_gets_all_its_arguments(monkeypatch):
    seen = []
    monkeypatch.setattr(job, "prepared_run", lambda command, *_, **__: seen.append(command) or int)
    command.main(["--workers=2", "-m", "module", "-x", "--", "-y"])
    assert seen[0][1:] == ["-m", "module", "-x", "--", "-y"]
