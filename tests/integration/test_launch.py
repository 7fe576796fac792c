"""The launcher with small scripts that import no TensorFlow."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support import deadlines, processes
from tf_gossip_pga import launch
from tf_gossip_pga.launch import workers as launch_workers
from tf_gossip_pga.tools import screen as screen_lib

pytestmark = pytest.mark.multiprocess


def _launch(script: str, count: int = 2, **arguments) -> str:
    """The launcher's output for `script`, which may use `rank`."""
    output = []
    prelude = "import json, os, sys, time\n"
    prelude += "rank = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
    launch.launch(
        [sys.executable, "-c", prelude + script],
        count,
        write=output.append,
        deadline_s=deadlines.long(),
        **arguments,
    )
    return "".join(output)


def feed(screen, rank, data):
    screen.add(rank, data)
    screen.show()


def test_each_line_begins_with_its_rank():
    output = _launch("print('one'); print('two', rank)", 3)
    lines = output.splitlines()
    for rank in range(3):
        own = [line for line in lines if line.startswith(f"[{rank}] ")]
        assert own[-1] == f"[{rank}] two {rank}"


def test_every_worker_gets_its_place_in_one_cluster():
    output = _launch("print(os.environ['TF_CONFIG'])", 3)
    configs = {int(line[1]): json.loads(line[4:]) for line in output.splitlines()}
    addresses = configs[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    for rank in range(3):
        assert configs[rank]["cluster"] == {"worker": addresses}
        assert configs[rank]["task"] == {"type": "worker", "index": rank}


NOISE = """
print('I0000 00:00:1795167544.070526    2402 port.cc:153] oneDNN custom', file=sys.stderr)
print('2026-11-20 09:00:00.1: I tensorflow/core/util/port.cc:153] hello', file=sys.stderr)
print('WARNING: All log messages before absl::InitializeLog() is called are', file=sys.stderr)
print('E0000 00:00:1795840944.159614 27702 ring_alg.cc:291] Aborting RingGather', file=sys.stderr)
print('The error could be from a previous operation. Restart your program to', end=' ')
print('reset.')
sys.stderr.flush()
print('script.py:1: UserWarning: the same on every rank')
print('loss', rank)
print('accuracy 1.0')
"""


def test_startup_noise_and_repeated_warnings_are_left_out():
    lines = _launch(NOISE).splitlines()
    others = [line for line in lines if "UserWarning" not in line]
    assert sorted(others) == ["[0] accuracy 1.0", "[0] loss 0", "[1] accuracy 1.0", "[1] loss 1"]
    assert len(lines) == len(others) + 1


def test_verbose_shows_everything():
    lines = _launch(NOISE, verbose=True).splitlines()
    assert len(lines) == 2 * 8


def test_a_line_that_one_rank_repeats_is_kept():
    assert _launch("print('again'); print('again')", 1) == "[0] again\n[0] again\n"


def test_output_without_a_last_newline_and_odd_bytes_come_through():
    script = "sys.stdout.buffer.write(b'\\xff end'); sys.stdout.flush()"
    assert _launch(script, 1) == "[0] \N{REPLACEMENT CHARACTER} end\n"


def test_the_first_failure_is_reported_with_its_rank_and_last_lines():
    script = """
if rank == 1:
    print('before the end')
    sys.exit('the cause')
time.sleep(600)
"""
    with pytest.raises(launch.LaunchError) as error:
        _launch(script, 3)
    text = str(error.value)
    assert "Rank 1 failed first, with exit code 1" in text
    assert "before the end" in text and "the cause" in text
    assert [each.returncode for each in error.value.outcomes] == [None, 1, None]


def test_children_of_workers_end_with_them(tmp_path):
    script = f"""
import subprocess
import pathlib
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
own, other = (pathlib.Path('{tmp_path}', str(each)) for each in (rank, 1 - rank))
own.write_text(str(child.pid) + ' ')
if rank == 1:
    while not other.exists() or not other.read_text().endswith(' '):
        time.sleep(0.05)
    sys.exit(3)
time.sleep(600)
"""
    with pytest.raises(launch.LaunchError, match="exit code 3"):
        _launch(script)
    processes.await_end([int(path.read_text()) for path in tmp_path.iterdir()])


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_all_and_leaves_no_process_behind(tmp_path, times):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # as TensorFlow does
        f"open(f'{tmp_path}/{{os.getpid()}}.pid', 'w').close()\n"
        "print('ready')\n"
        "time.sleep(600)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "tf_gossip_pga.launch", "--workers=2", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A background job of a shell starts with SIGINT ignored, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadlines.Deadline(240).until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
        for _ in range(times):  # the second one comes while the workers are given time to end
            run.send_signal(signal.SIGINT)
            time.sleep(0.5)
        output, _ = run.communicate(timeout=deadlines.long())
    finally:
        run.kill()
    assert run.returncode == 130
    if times == 1:
        assert "Interrupted; all workers were stopped." in output
    processes.await_end(pids)


def _sigterm_once_ready(*command: str) -> tuple[int, str]:
    """Launch two workers that print "ready", then send SIGTERM; return exit code and output."""
    run = subprocess.Popen(
        [sys.executable, "-m", "tf_gossip_pga.launch", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert sorted(processes.lines(run, 2)) == ["[0] ready\n", "[1] ready\n"]
        run.send_signal(signal.SIGTERM)
        output, _ = run.communicate(timeout=deadlines.long())
    finally:
        run.kill()
    return run.returncode, output


def test_sigterm_reaches_workers_that_save_and_begins_nothing_anew(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(2 * float(sys.argv[1]))\n"  # beyond what a worker gets that fails
        "    print('saved')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready')\n"
        "time.sleep(600)\n"
    )
    command = ["--workers=2", "--max-restarts=1", str(script), str(launch_workers.GRACE_S)]
    returncode, output = _sigterm_once_ready(*command)
    assert returncode == 0  # all ended well, as one process of this script would
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]


SAVED = (
    "The workers saved a checkpoint and stopped (exit code 75). To continue, start the job again."
)


def test_a_job_that_saved_after_sigterm_ends_with_an_exit_code_of_its_own(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready')\n"
        "time.sleep(600)\n"
    )
    returncode, output = _sigterm_once_ready("--workers=2", "--max-restarts=1", str(script))
    assert (returncode, output) == (75, f"\n{SAVED}\n")


def test_workers_that_saved_are_not_started_again_whoever_sent_sigterm(tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text(
        f"print('x', file=open({str(tmp_path / 'runs')!r}, 'a'))\n"  # one write for each worker
        "raise SystemExit(75)\n"
    )
    assert launch.main(["--workers=3", "--rejoins=2", "--max-restarts=2", str(script)]) == 75
    assert len((tmp_path / "runs").read_text().split()) == 3
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", f"\n{SAVED}\n")


def test_after_a_loss_the_survivors_may_save_and_stop(tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os\n"
        "rank = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        "raise SystemExit(3 if rank else 75)\n"
    )
    assert launch.main(["--workers=2", "--min-workers=1", str(script)]) == 75
    said = capfd.readouterr()
    assert (said.out, said.err) == ("Rank 1 failed with exit code 3.\n", f"\n{SAVED}\n")
    assert launch.main(["--workers=2", str(script)]) == 1


@pytest.mark.parametrize("least", [1, 2])
def test_after_sigterm_as_many_must_end_well_as_without_it(tmp_path, least):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, signal, sys, time\n"
        "rank = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(rank))\n"
        "print('ready')\n"
        "time.sleep(600)\n"
    )
    command = ["--workers=2", f"--min-workers={least}", str(script)]
    returncode, output = _sigterm_once_ready(*command)
    assert "Rank 1 failed with exit code 1." in output
    assert ("Interrupted; all workers were stopped." in output) == (least == 2)
    assert returncode == (130 if least == 2 else 0)


def test_nohup_is_respected(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("print('ready', flush=True)\nimport time\ntime.sleep(3)\nprint('done')\n")
    command = [sys.executable, "-m", "tf_gossip_pga.launch", "--workers=1", str(script)]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    try:
        assert processes.lines(run, 1) == ["[0] ready\n"]
        run.send_signal(signal.SIGHUP)
        output, _ = run.communicate(timeout=deadlines.long())
    finally:
        run.kill()
    assert (run.returncode, output) == (0, "[0] done\n")


def test_a_progress_bar_keeps_only_its_last_state():
    output = []
    screen = screen_lib.Screen(output.append, verbose=False)
    for step in range(1, 1001):
        feed(screen, 0, f"\r{step}/1000 ━━━━".encode())
    assert len("".join(screen._partial[0]._pieces)) < 30
    feed(screen, 1, b"a line of rank 1\n")
    feed(screen, 0, b"\r1000/1000 done\n")
    text = "".join(output)
    assert text.endswith(
        "\r\x1b[K[1] a line of rank 1\n[0] 1000/1000 ━━━━\r\x1b[K[0] 1000/1000 done\n"
    )


def test_in_a_file_a_progress_bar_is_one_plain_line():
    output = []
    screen = screen_lib.Screen(output.append, verbose=False, terminal=False)
    for step in range(1, 101):
        feed(screen, 0, f"\r\x1b[1m{step}/100\x1b[0m \x1b[32m━━━━\x1b[0m".encode())
    feed(screen, 1, b"a line of rank 1\n")
    feed(screen, 0, b"\n")
    assert "".join(output) == "[1] a line of rank 1\n[0] 100/100 ━━━━\n"


def test_what_no_newline_ends_takes_linear_time():
    output = []
    screen = screen_lib.Screen(output.append, verbose=False)
    for _ in range(4096):  # 256 MB in the pieces that a pipe gives: joined each time, half an hour
        feed(screen, 0, b"x" * (1 << 16))
    assert len(screen._partial[0]._pieces) == 4096  # so it has joined none of them yet
    feed(screen, 1, b"a line of rank 1\n")
    feed(screen, 0, b"\n")
    assert output == ["[1] a line of rank 1\n", f"[0] {'x' * (1 << 28)}\n"]


def test_an_interruption_repeats_nothing():
    output = []

    def write(text):
        output.append(text)
        if text == "[0] ready\n":
            raise KeyboardInterrupt

    screen = screen_lib.Screen(write, verbose=False)
    feed(screen, 0, b"rea")
    with pytest.raises(KeyboardInterrupt):
        feed(screen, 0, b"dy\n")
    feed(screen, 0, b"saved\n")
    assert output == ["[0] ready\n", "[0] saved\n"]


def test_a_character_may_arrive_in_two_reads():
    output = []
    screen = screen_lib.Screen(output.append, verbose=False)
    for part in ("é\n".encode()[:1], "é\n".encode()[1:]):
        feed(screen, 0, part)
    assert output == ["[0] é\n"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=0", __file__], "workers must be a whole number >= 1, received 0"),
        (["--gpus-per-worker=0", __file__], "gpus_per_worker must be a whole number >= 1, rec"),
        (["--rejoins=-1", __file__], "rejoins must be a whole number >= 0, received -1"),
        (["--max-restarts=-1", __file__], "max_restarts must be a whole number >= 0, received"),
        (["-Ha:2", "--min-workers=3", __file__], "min_workers must be a whole number from 1 to 2"),
        (["--workers=two", __file__], "invalid int value: 'two'"),
        (["--workers=2", "no_such_script.py"], "there is no script 'no_such_script.py'"),
        (["--workers=2"], "give the script that every worker runs, or -m and a module"),
        (["--workers=2", "-m"], "-m needs the name of a module"),
    ],
)
def test_bad_arguments_are_errors_before_anything_starts(arguments, message):
    run = subprocess.run(
        [sys.executable, "-m", "tf_gossip_pga.launch", *arguments],
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert run.returncode == 2
    assert message in run.stderr


def test_a_module_is_run_with_its_arguments():
    command = "-m tf_gossip_pga.launch --workers=2 -m timeit -n 1 -r 2 print('ran')"
    run = subprocess.run(
        [sys.executable, *command.split()],
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert run.returncode == 0, run.stderr
    assert [run.stdout.count(f"[{rank}] ran\n") for rank in range(2)] == [2, 2]


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_a_bad_number_of_workers_is_refused(count):
    with pytest.raises(ValueError, match="whole number >= 1, received"):
        launch.launch(["true"], count)


@pytest.mark.parametrize(
    ("visible", "settings", "expected"),
    [
        ("0,1", {}, ["0", "1"]),
        ("4,5,6,7", {"gpus_per_worker": 2}, ["4,5", "6,7"]),
        ("2", {"share_gpus": True}, ["2", "2"]),
        ("-1", {}, ["-1", "-1"]),
        ("", {}, ["", ""]),
    ],
)
def test_each_worker_sees_its_own_gpus(monkeypatch, visible, settings, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    output = _launch("print(os.environ['CUDA_VISIBLE_DEVICES'], rank)", 2, **settings)
    seen = dict(re.findall(r"^\[(\d)\] (\S*) \d$", output, re.MULTILINE))
    assert [seen[str(rank)] for rank in range(2)] == expected


def test_too_few_gpus_are_an_error_that_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    advice = "2 workers with 1 GPU each need 2, but this machine has 1. Start fewer workers, let "
    with pytest.raises(ValueError, match=advice):
        launch.launch(["true"], 2)
    script = tmp_path / "script.py"
    script.touch()
    with pytest.raises(SystemExit):
        launch.main(["--workers=2", str(script)])
    assert advice in " ".join(capsys.readouterr().err.split())


def test_the_rest_of_the_environment_is_passed_on(monkeypatch):
    monkeypatch.setenv("SOME_SETTING", "kept")
    assert _launch("print(os.environ['SOME_SETTING'])", 1) == "[0] kept\n"
    assert "TF_CONFIG" not in os.environ


def test_the_others_go_on_while_enough_are_left(tmp_path):
    # Rank 1 ends once the launcher has noticed the end of rank 0, which has no entry then.
    after_rank_0 = f"""
import pathlib
pid = pathlib.Path({str(tmp_path)!r}, "pid")
if rank == 0:
    pid.with_name("new").write_text(str(os.getpid()))
    pid.with_name("new").rename(pid)
if rank == 1:
    while not pid.exists() or pathlib.Path("/proc", pid.read_text()).exists():
        time.sleep(0.05)
"""
    output = _launch(f"{after_rank_0}print('end', rank); sys.exit(rank == 0)", min_workers=1)
    assert "Rank 0 failed with exit code 1." in output
    assert output.splitlines()[-1] == "[1] end 1"
    (tmp_path / "pid").unlink()
    script = f"""{after_rank_0}
if rank == 2:
    time.sleep(3600)
sys.exit(3 + rank)
"""
    with pytest.raises(launch.LaunchError, match="Rank 0 failed first, with exit code 3") as caught:
        _launch(script, 3, min_workers=2)
    assert [each.returncode for each in caught.value.outcomes][2] is None


def test_a_failed_job_begins_again_as_often_as_it_may(tmp_path, capfd):
    script = tmp_path / "script.py"
    file = tmp_path / "runs"
    script.write_text(
        f"print('x', file=open({str(file)!r}, 'a'))\n"
        f"raise SystemExit(len(open({str(file)!r}).readlines()) < 3)\n"
    )
    assert launch.main(["--workers=1", "--max-restarts=1", str(script)]) == 1
    assert len(file.read_text().split()) == 2
    assert launch.main(["--workers=1", "--max-restarts=9", str(script)]) == 0
    assert len(file.read_text().split()) == 3
    assert "The launcher restarts the job: restart 1 of 1." in capfd.readouterr().err


@pytest.mark.parametrize("least", [0, 3, 1.5])
def test_min_workers_must_be_a_number_of_workers(least):
    with pytest.raises(ValueError, match=r"min_workers must be a whole number from 1 to 2, "):
        _launch("", 2, min_workers=least)


def test_a_signal_without_a_name_has_its_number():
    with pytest.raises(launch.LaunchError) as caught:
        _launch("import signal; os.kill(os.getpid(), signal.SIGRTMIN + 5)", 1)
    assert f"failed first, with signal {signal.SIGRTMIN + 5};" in str(caught.value)


def test_characters_that_the_output_cannot_encode_are_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    launch.launch([sys.executable, "-c", "print('\\u00e9')"], 1)
    assert raw.getvalue() == b"[0] ?\n"


# Signals soon after the first worker has started, while the launcher starts the others.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_start_leaves_none(tmp_path, number):
    code = "import os, pathlib, sys, time\npathlib.Path(sys.argv[1], str(os.getpid())).touch()\n"
    script = tmp_path / "sleep.py"
    script.write_text(f"{code}time.sleep(3600)\n")
    started = tmp_path / "started"
    started.mkdir()
    command = [sys.executable, "-m", "tf_gossip_pga.launch", "--workers=12", script, started]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        try:
            deadlines.Deadline(60).until(lambda: any(started.iterdir()), every_s=0.001)
            job.send_signal(number)
            assert job.wait(deadlines.scaled(60)) in (1, 130)
        finally:
            job.kill()
    deadlines.Deadline(30).until(
        lambda: not [each for each in processes.marked().values() if str(script) in each],
        lambda: str(processes.marked()),
    )
