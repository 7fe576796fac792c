"""Workers over ssh, with a program in place of ssh that runs the agents on this machine."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tests.support import deadlines, fake_ssh, processes
from tf_gossip_pga import launch
from tf_gossip_pga.launch import hosts as hosts_lib
from tf_gossip_pga.launch import remote

pytestmark = pytest.mark.multiprocess

# Like ssh: the command gets the standard input, but not the environment. The host `closed` fails.
SSH = """
if [ "$host" = closed ]; then
    echo "ssh: connect to host closed port 22: Connection refused" >&2
    exit 255
fi
env -i HOME="$HOME" PATH="$PATH" CUDA_VISIBLE_DEVICES=-1 HOST="$host" sh -c "$*"
"""

PRELUDE = """
import json, os, pathlib, signal, subprocess, sys, time
rank = json.loads(os.environ['TF_CONFIG'])['task']['index']
"""


@pytest.fixture(autouse=True)
def _ssh(monkeypatch, tmp_path):
    fake_ssh.install(monkeypatch, tmp_path, SSH)


def _launch(script: str, hosts: str = "a:2,me@b", **settings) -> str:
    """The launcher's output for `script`, which may use `rank`."""
    output = []
    launch.launch(
        [sys.executable, "-c", PRELUDE + script],
        hosts=hosts_lib.parse(hosts),
        write=output.append,
        deadline_s=deadlines.long(),
        **settings,
    )
    return "".join(output)


def _by_rank(output: str) -> dict[int, str]:
    """The one line of each rank."""
    return {int(rank): text for rank, text in re.findall(r"^\[(\d)\] (.*)$", output, re.M)}


def test_ranks_go_by_hosts():
    output = _launch("print(os.environ['HOST'], os.environ['TF_CONFIG'])")
    assert output.splitlines()[0] == "Starting workers over ssh: 2 on a, 1 on b."
    lines = _by_rank(output)
    assert [lines[rank].split()[0] for rank in range(3)] == ["a", "a", "me@b"]
    addresses = json.loads(lines[2].partition(" ")[2])["cluster"]["worker"]
    names, ports = zip(*(address.split(":") for address in addresses), strict=True)
    assert names == ("a", "a", "b")
    first = int(ports[0])
    assert first >= 61440 and [int(port) for port in ports] == [first, first + 2, first]


def test_the_ports_can_be_chosen(monkeypatch):
    monkeypatch.setenv("TF_GOSSIP_PGA_PORT", "4000")
    output = _launch("print(os.environ['TF_CONFIG'])", "a:2")
    assert json.loads(_by_rank(output)[0])["cluster"]["worker"] == ["a:4000", "a:4002"]
    monkeypatch.setenv("TF_GOSSIP_PGA_PORT", "65533")
    with pytest.raises(ValueError, match="Set TF_GOSSIP_PGA_PORT to a lower port"):
        _launch("", "a:2")


def test_workers_get_the_variables_that_are_theirs(monkeypatch):
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_GOSSIP_PGA_COMMUNICATION", "ring")
    monkeypatch.setenv("TF_GOSSIP_PGA_CLUSTER", "none")
    monkeypatch.setenv("SOME_SETTING", "stays here")
    names = ["TF_GOSSIP_PGA_COMMUNICATION", "TF_GOSSIP_PGA_CLUSTER", "SOME_SETTING", "CHOSEN"]
    names += ["PYTHONPATH", "TF_NUM_INTRAOP_THREADS", "TF_CPP_MIN_LOG_LEVEL", "PYTHONUNBUFFERED"]
    output = _launch(f"print([os.environ.get(name) for name in {names}])", env={"CHOSEN": "y z"})
    share = str(max(1, (os.cpu_count() or 1) // 2))
    expected = ["ring", None, None, "y z", os.environ["PYTHONPATH"], share, "2", "1"]
    assert _by_rank(output)[0] == str(expected)


def test_no_secret_is_on_a_command_line():
    found = _launch("""
secret = os.environ['TF_GOSSIP_PGA_SECRET']
own = b''
for file in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
        text = file.read_bytes()
    except OSError:
        continue
    own += text * (b'launch.agent' in text)
print(secret if own and secret.encode() not in own else 'on a command line')
""")
    secrets = set(_by_rank(found).values())
    assert len(secrets) == 1 and len(secrets.pop()) == 32


@pytest.mark.parametrize(
    ("end", "ending", "code"),
    [
        ("sys.exit(3)", "exit code 3", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL", -9),
        ("sys.exit(255)", "exit code 1", 1),
    ],
)
def test_the_ending_of_a_worker_comes_back(end, ending, code):
    script = f"if rank == 2:\n    print('the last line', flush=True)\n    {end}\ntime.sleep(600)"
    with pytest.raises(launch.LaunchError) as error:
        _launch(script)
    assert f"Rank 2 failed first, with {ending}; the other workers were" in str(error.value)
    assert "the last line" in str(error.value)
    assert [each.returncode for each in error.value.outcomes] == [None, None, code]


def test_a_failure_of_ssh_is_reported_in_its_words():
    with pytest.raises(launch.LaunchError) as error:
        _launch("time.sleep(600)", "a,closed")
    text = str(error.value)
    assert (
        "Rank 1 failed first, with a failure of ssh to closed, exit code 255 (check that " in text
    )
    assert "`ssh -o BatchMode=yes closed true` works)" in text
    assert "  ssh: connect to host closed port 22: Connection refused" in text


@pytest.mark.parametrize(("workers", "hosts"), [(2, [launch.Host("a")]), (None, [])])
def test_workers_start_either_here_or_on_hosts(workers, hosts):
    with pytest.raises(ValueError, match=r"Give either workers, .*received workers="):
        launch.launch(["true"], workers, hosts=hosts)


def test_without_ssh_nothing_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"There is no ssh in PATH\. Install the OpenSSH client"):
        _launch("")


def test_a_missing_directory_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(remote.os, "getcwd", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(launch.LaunchError) as error:
        _launch("", "a")
    assert f"There is no directory {tmp_path}/nowhere on this host. Create it" in str(error.value)


def test_a_missing_python_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(launch.LaunchError) as error:
        _launch("", "a")
    assert f"There is no Python at {tmp_path}/python on this host. Install the" in str(error.value)


def test_a_program_that_cannot_start_is_named():
    with pytest.raises(launch.LaunchError, match="No such file or directory: 'no-such-program'"):
        launch.launch(["no-such-program"], hosts=hosts_lib.parse("a"), write=lambda text: None)


@pytest.mark.parametrize(
    ("visible", "settings", "expected"),
    [
        ("4,5,6,7", {"gpus_per_worker": 2}, ["4,5", "6,7", "4,5"]),
        ("3", {"share_gpus": True}, ["3", "3", "3"]),
    ],
)
def test_each_host_divides_its_gpus(visible, settings, expected):
    script = "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    lines = _by_rank(_launch(script, env={"CUDA_VISIBLE_DEVICES": visible}, **settings))
    assert [lines[rank] for rank in range(3)] == expected


def test_a_host_with_too_few_gpus_says_so():
    with pytest.raises(launch.LaunchError, match="2 workers with 1 GPU each need 2, but this mach"):
        _launch("", "a:2", env={"CUDA_VISIBLE_DEVICES": "0"})


def test_a_failed_worker_is_restarted_on_its_host(tmp_path):
    script = f"""
file = pathlib.Path({str(tmp_path)!r}, 'joined')
if 'TF_GOSSIP_PGA_JOIN' in os.environ:
    print('joins on', os.environ['HOST'])
    file.touch()
elif rank == 2:
    sys.exit(4)
while not file.exists():
    time.sleep(0.05)
"""
    output = _launch(script, rejoins=1)
    assert "Rank 2 failed with exit code 4. The launcher restarts it to join the others." in output
    assert "[2] joins on me@b" in output


def test_a_failed_job_is_restarted(tmp_path):
    script, runs = tmp_path / "script.py", tmp_path / "runs"
    script.write_text(
        f"print('x', file=open({str(runs)!r}, 'a'))\n"
        f"raise SystemExit(len(open({str(runs)!r}).readlines()) < 2)\n"
    )
    assert launch.main(["-H", "a", "--max-restarts=1", str(script)]) == 0
    assert runs.read_text() == "x\nx\n"


def test_output_is_also_written_to_files(tmp_path):
    folder = tmp_path / "logs" / "of ranks"
    for _ in range(2):
        _launch("print('line of', rank)", "a:2", log_dir=str(folder))
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert files == {f"rank-{rank}.log": f"line of {rank}\n" * 2 for rank in range(2)}
    launch.launch(["echo", "local"], 1, log_dir=str(folder), write=lambda text: None)
    assert (folder / "rank-0.log").read_text() == "line of 0\nline of 0\nlocal\n"


def test_a_folder_for_files_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--log-dir .* cannot be written to: .*Not a directory"):
        launch.launch(["true"], 1, log_dir=str(tmp_path / "file" / "logs"))


def test_a_full_disk_ends_a_log_and_not_the_job(tmp_path):
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    output = _launch("print('one'); print('two')", "a", log_dir=str(tmp_path))
    assert "The log of rank 0 ends here: [Errno 28] No space left on device." in output
    assert [line for line in output.splitlines() if line[0] == "["] == ["[0] one", "[0] two"]


# ---- Nothing is left behind ---------------------------------------------------------------------

# A worker and its children, which ignore SIGTERM, as TensorFlow does, unless the worker saves.
STUBBORN = (
    PRELUDE
    + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
command = [sys.executable, '-c', 'import time; time.sleep(600)']
child = subprocess.Popen(command)
daemon = subprocess.Popen(command, start_new_session=True)
for pid in (os.getpid(), os.getppid(), child.pid, daemon.pid):
    pathlib.Path(sys.argv[1], f'{pid}.pid').touch()
if 'save' in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: print('saved') or sys.exit())
print('ready')
time.sleep(600)
"""
)


@contextlib.contextmanager
def _started(folder: pathlib.Path, *arguments: str):
    """Start the launcher with three stubborn workers, and yield it and the ids of the others."""
    (folder / "script.py").write_text(STUBBORN)
    (folder / "pids").mkdir()
    command = ["-m", "tf_gossip_pga", "run", "-H", "a:2,b", str(folder / "script.py")]
    run = subprocess.Popen(
        [sys.executable, *command, str(folder / "pids"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A background job of a shell starts with SIGINT ignored, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        lines = processes.lines(run, 4)
        assert lines[0] == "Starting workers over ssh: 2 on a, 1 on b.\n"
        assert sorted(lines[1:]) == [f"[{rank}] ready\n" for rank in range(3)]
        pids = [int(path.stem) for path in (folder / "pids").iterdir()]
        assert len(pids) == 12
        yield run, pids
    finally:
        run.kill()
        run.stdout.close()
        run.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_no_process_outlives_the_launcher(tmp_path, number):
    with _started(tmp_path) as (run, pids):
        run.send_signal(number)
        processes.await_end(pids)
        output, _ = run.communicate(timeout=deadlines.long())
    if number != signal.SIGKILL:
        assert run.returncode == 130
        assert "Interrupted; all workers were stopped." in output


def test_sigterm_reaches_the_workers(tmp_path):
    with _started(tmp_path, "save") as (run, pids):
        run.send_signal(signal.SIGTERM)
        output, _ = run.communicate(timeout=deadlines.long())
        processes.await_end(pids)
    assert run.returncode == 0, output
    assert sorted(output.splitlines()) == [f"[{rank}] saved" for rank in range(3)]


def test_a_worker_ends_with_its_agent(tmp_path):
    script = f"""
pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.pid').touch()
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(600)
"""
    with pytest.raises(launch.LaunchError, match="Rank 0 failed first, with signal SIGKILL"):
        _launch(script, "a")
    processes.await_end([int(path.stem) for path in tmp_path.glob("*.pid")])


def test_an_agent_without_a_launcher_ends():
    command = [sys.executable, "-m", "tf_gossip_pga.launch.agent"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadlines.long()
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
