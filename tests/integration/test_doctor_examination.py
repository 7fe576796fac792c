"""The doctor's examiners: in this process, and as processes behind a fake ssh."""

import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from tests.support import addresses, deadlines, fake_ssh, processes
from tf_gossip_pga import __version__
from tf_gossip_pga.launch import doctor, ssh
from tf_gossip_pga.launch.doctor import contact, examination, examiner, links, machine, starting
from tf_gossip_pga.launch.doctor.checks import findings
from tf_gossip_pga.launch.doctor.examination import examine
from tf_gossip_pga.launch.doctor.measurements import Ports
from tf_gossip_pga.launch.hosts import Host

pytestmark = pytest.mark.multiprocess

ROOT = pathlib.Path(__file__).parents[2]

# Some hosts have problems.
SSH = """
case $host in
    *unknown) echo "ssh: Could not resolve hostname $host" >&2; exit 255;;
    *silent) while read -r line; do :; done; exit;;
    *stubborn) trap "" TERM HUP; while true; do sleep 1; done;;
esac
echo "a login script says hello"
exec sh -c "$*"
"""


@pytest.fixture(name="running")
def _running(tmp_path, monkeypatch):
    """A function that returns the processes of a test, of which none must be left at its end."""
    fake_ssh.install(monkeypatch, tmp_path, SSH)
    before = processes.marked().keys()
    yield lambda: processes.marked().keys() - before
    deadlines.Deadline(30).until(
        lambda: not processes.marked().keys() - before,
        lambda: f"Still running: {processes.marked()}",
    )


def port() -> int:
    """A free port, whose next one is free too."""
    return int(addresses.free(1)[0].rpartition(":")[2])


def ports() -> Ports:
    first = port()
    return Ports(first, first + 1)


def over_ssh(*names):
    return starting.targets([Host(name) for name in names], os.environ)


# ---- Between two listeners in this process ------------------------------------------------------


@pytest.fixture
def listener():
    with_two_ports = links.Listener("b", "token", [0, 0])
    yield with_two_ports
    with_two_ports.close()


def test_a_connection_to_a_port(listener, monkeypatch):
    monkeypatch.setattr(links.addresses_lib, "look_up", lambda host: ("127.0.0.1",))
    found = links.attempt("b", listener.ports[0], "token")
    assert (found.outcome, found.local, found.interface) == ("open", "127.0.0.1", "lo")
    found = links.attempt("c", listener.ports[1], "token")
    assert (found.outcome, found.detail) == ("another host", "b")
    found = links.attempt("b", listener.ports[0], "another token")
    assert found.outcome == "another program"
    assert links.round_trip_ms("b", listener.ports[0], "token") > 0
    assert links.mbit("b", listener.ports[0], "token") > 1


def test_the_result_of_a_measurement_is_never_lost(listener, monkeypatch):
    monkeypatch.setattr(links.addresses_lib, "look_up", lambda host: ("127.0.0.1",))
    monkeypatch.setattr(links, "SENDING_S", 0.002)
    for _ in range(50):  # the listener stops receiving while the caller still sends
        assert links.mbit("b", listener.ports[0], "token") >= 0


def test_a_listener_survives_a_lack_of_descriptors(monkeypatch):
    failures = [OSError(24, "Too many open files"), ConnectionAbortedError()]
    accept = socket.socket.accept

    def accept_later(listener):
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(links.addresses_lib, "look_up", lambda host: ("127.0.0.1",))
    monkeypatch.setattr(socket.socket, "accept", accept_later)
    listener = links.Listener("b", "token", [0])
    assert links.attempt("b", listener.ports[0], "token").outcome == "open"
    assert not failures
    listener.close()


def test_a_port_without_an_examiner(monkeypatch):
    monkeypatch.setattr(links, "CONNECT_S", 0.2)
    assert links.attempt("127.0.0.1", port(), "token").outcome == "refused"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = links.attempt("127.0.0.1", silent.getsockname()[1], "token")
    assert found.outcome == "another program"
    assert found.detail == "it accepts the connection but does not answer"


def test_an_address_that_does_not_answer_or_has_no_route(monkeypatch):
    for error, outcome in (
        (TimeoutError("timed out"), "no answer"),
        (OSError(113, "No route to host"), "unreachable"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(links.addresses_lib, "connect", fail)
        assert links.attempt("127.0.0.1", 1, "token").outcome == outcome


def test_a_taken_port_is_replaced():
    with socket.create_server(("", 0)) as taken:
        number = taken.getsockname()[1]
        listener = links.Listener("b", "token", [number, 0])
    assert listener.taken == {number: "Address already in use"}
    assert number not in listener.ports
    listener.close()


def test_interfaces():
    assert links.interface_of("127.0.0.1") == "lo"
    assert links.interface_of("192.0.2.1") == ""
    assert links.interface_of("fe80::1%eth7") == "eth7"
    assert links.interface_of("2001:db8::1") == ""


def test_an_interface_with_an_ipv6_address(tmp_path, monkeypatch):
    table = tmp_path / "if_inet6"
    table.write_text(f"{'0' * 31}1 01 80 10 80 lo\n20010db8{'0' * 23}7 02 40 00 80 eth0\n")
    monkeypatch.setattr(links, "_INET6", table)
    assert links.interface_of("::1") == "lo"
    assert links.interface_of("2001:db8::7") == "eth0"


# ---- This machine -------------------------------------------------------------------------------


def test_the_description_of_this_machine():
    found = machine.describe(["127.0.0.1", "no such name"])
    assert found["addresses"] == {"127.0.0.1": ["127.0.0.1"], "no such name": []}
    assert found["unresolved"].keys() == {"no such name"}
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["tensorflow"]
    assert found["cores"] > 0 and found["memory_bytes"] > 0
    json.dumps(found)


def test_a_name_server_that_does_not_answer(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(machine, "_RESOLVE_S", 0.1)
    monkeypatch.setattr(machine.addresses_lib, "look_up", lambda name: "" * never.wait())
    assert machine.describe(["b"])["unresolved"] == {"b": "no answer within 0.1 s"}
    never.set()


def test_the_checkpoint_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_READ_S", 0.0)
    first, second = (machine.Folder(str(tmp_path), "token") for _ in range(2))
    assert second.read("a", "text") == "No such file or directory"
    assert first.write("a", "text") == ""
    assert second.read("a", "text") == ""
    assert second.read("a", "another text") == "the file has other content"
    first.close()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_folder_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_READ_S", 0.0)
    # `Checkpoint` would create it, so its nearest parent that exists counts.
    first, second = (machine.Folder(str(tmp_path / "a" / "b"), "token") for _ in range(2))
    assert first.write("a", "text") == ""
    assert second.read("a", "text") == ""
    first.close()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert machine.Folder(str(tmp_path / "file" / "b"), "token").write("a", "") == "Not a directory"
    (tmp_path / "link").symlink_to("nowhere")
    why = machine.Folder(str(tmp_path / "link"), "token").write("a", "")
    assert why == "No such file or directory"


def test_an_examiner_answers_each_request_and_removes_its_file(tmp_path):
    requests = [
        {"id": 0, "do": "clock"},
        {"id": 1, "do": "close"},
        {"id": 2, "do": "describe"},
        {"id": 3, "do": "write", "folder": str(tmp_path), "token": "t", "name": "a", "text": "x"},
    ]
    answers = io.StringIO()
    done = threading.Event()

    def lines():
        yield from (json.dumps(each) for each in requests)
        deadlines.Deadline(30).until(lambda: answers.getvalue().count("\n") == len(requests))
        done.set()

    examiner.serve(lines(), answers)
    assert done.is_set()
    found = {each["id"]: each for each in map(json.loads, answers.getvalue().splitlines())}
    assert found[0]["result"] > 0
    assert found[1]["error"] == "this examiner knows no request 'close'"
    assert "names" in found[2]["error"]
    assert found[3]["result"] == ""
    assert not list(tmp_path.iterdir())


# ---- Examiners as processes ---------------------------------------------------------------------


def test_hosts_over_ssh(running, tmp_path):
    # Two names of this machine, so one of the examiners gets other ports.
    found = examine(over_ssh("127.0.0.1", "127.0.0.2"), ports(), str(tmp_path))
    first, second = found.hosts
    assert first.trouble is second.trouble is None
    for port in found.ports.numbers:
        assert (port in first.ports) != (port in second.ports)
        assert (port in first.taken) != (port in second.taken)
    assert abs(first.clock_s) <= first.clock_error_s + 0.1
    assert {(link.source, link.target) for link in found.links} == {
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.2", "127.0.0.1"),
    }
    for link in found.links:
        assert [each.outcome for each in link.attempts] == ["open", "open"], link
        assert link.round_trip_ms > 0 and link.mbit > 1 and not link.failure
    assert found.folder.writer == "127.0.0.1"
    assert not found.folder.unwritable and not found.folder.unread
    assert not [each for each in tmp_path.iterdir() if each.name != "bin"]
    kinds = {each.kind for each in findings(found)}
    assert kinds == {"machine", "name"}  # each name is one of the loopback interface


def test_a_host_that_cannot_be_reached(running, capsys):
    assert doctor.main(["-H", "user@unknown"]) == 1
    out = capsys.readouterr().out
    assert "unknown cannot be reached: ssh: Could not resolve hostname user@unknown" in out
    assert "ssh user@unknown true" in out


def test_a_directory_and_a_python_that_a_host_does_not_have(running, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    (no_python,) = over_ssh("127.0.0.1")
    monkeypatch.setattr(os, "getcwd", lambda: str(tmp_path / "missing"))
    (no_directory,) = over_ssh("127.0.0.1")
    found = examine([no_directory], ports())
    assert found.hosts[0].trouble.code == ssh.NO_DIRECTORY
    assert found.hosts[0].trouble.words == (
        f"There is no directory {tmp_path / 'missing'} on this host. Create it, or start in one "
        "that all hosts have."
    )
    found = examine([no_python], ports())
    assert found.hosts[0].trouble.code == ssh.NO_PYTHON
    assert found.hosts[0].trouble.words == (
        "There is no Python at /no/python on this host. Install the environment at the same path "
        "on all hosts."
    )
    assert "same path on all hosts" in findings(found)[0].remedy


def test_hosts_that_never_answer(running, monkeypatch):
    monkeypatch.setattr(contact, "START_S", 0.5)
    found = examine(over_ssh("silent", "stubborn"), ports())
    assert [host.trouble.kind for host in found.hosts] == ["silent", "silent"]
    assert [each.seen for each in findings(found)] == [
        "silent does not answer in time when asked to describe itself.",
        "stubborn does not answer in time when asked to describe itself.",
    ]


# Answers the first requests as an examiner does, and then never again.
FALLS_SILENT = """
import json, sys, time
from tf_gossip_pga.launch.doctor.examiner import Examiner
examiner = Examiner()
for line in sys.stdin:
    request = json.loads(line)
    number, name = request.pop("id"), request.pop("do")
    if name == {last!r}:
        time.sleep(3600)
    print(json.dumps({{"id": number, "result": getattr(examiner, name)(**request)}}), flush=True)
"""


@pytest.mark.parametrize("last", [pytest.param("clock", marks=pytest.mark.slow), "measure"])
def test_an_examiner_that_falls_silent(last, running, monkeypatch, tmp_path):
    command = (sys.executable, "-c", FALLS_SILENT.format(last=last))
    targets = [
        starting.Target(name, 1, "", command) if name == "127.0.0.2" else over_ssh(name)[0]
        for name in ("127.0.0.1", "127.0.0.2")
    ]
    monkeypatch.setattr(contact, "ANSWER_S", deadlines.scaled(6.0))
    found = examine(targets, ports(), str(tmp_path))
    assert found.hosts[0].trouble is None
    assert (found.hosts[1].trouble.kind, found.hosts[1].trouble.request) == ("silent", last)
    assert not [each for each in tmp_path.iterdir() if each.name != "bin"]


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        ({"host": "b"}, "other version", ""),
        ({"version": "0.0.9", "facts": {"host": "b"}}, "other version", "0.0.9"),
        ({"version": __version__, "facts": {"host": "b"}}, "failed", "unexpected keyword"),
    ],
)
def test_an_examiner_of_another_version(result, kind, words):
    code = f"print({json.dumps({'id': 0, 'result': result})!r}, flush=True); input()"
    target = starting.Target("b", 1, "", (sys.executable, "-c", code))
    found = examine([target], ports())
    assert found.hosts[0].trouble.kind == kind
    assert words in found.hosts[0].trouble.words
    assert [each.stops_training for each in findings(found)] == [True]


def test_an_examiner_that_does_not_start(monkeypatch):
    def fail(command):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(examination, "Contact", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        examine(over_ssh("a", "b"), ports())


# Resolves no name, and fails if it is to connect to one nevertheless.
KNOWS_NO_NAMES = """
from tf_gossip_pga.launch.doctor import examiner, machine
def look_up(name):
    raise OSError(0, "Name or service not known")
machine.addresses_lib.look_up = look_up
def call(self, targets):
    assert not targets
    return {}
examiner.Examiner.call = call
examiner.main()
"""


def test_hosts_do_not_call_names_that_do_not_resolve(running):
    targets = over_ssh("127.0.0.1", "127.0.0.2")
    command = (sys.executable, "-c", KNOWS_NO_NAMES)
    targets[1] = starting.Target("127.0.0.2", 1, "", command)
    found = examine(targets, ports())
    assert [host.trouble for host in found.hosts] == [None, None]
    assert [(link.source, link.target) for link in found.links] == [("127.0.0.1", "127.0.0.2")]
    assert "the name 127.0.0.1 does not resolve" in " ".join(each.seen for each in findings(found))


def test_more_hosts_get_more_time():
    hosts = [examination.Host(f"n{index}") for index in range(130)]
    found = examination.Measurements(hosts, ports())
    one = examination._Examination(found, {"a": None})
    many = examination._Examination(found, dict.fromkeys(host.name for host in hosts))
    assert (one._start_s, one._answer_s) == (contact.START_S, contact.ANSWER_S)
    assert (many._start_s, many._answer_s) == (3 * contact.START_S, 3 * contact.ANSWER_S)


def test_a_program_that_does_not_exist():
    target = starting.Target("b", 1, "", ("no such program",))
    found = examine([target], ports())
    assert found.hosts[0].trouble.words == "no such program: No such file or directory"
    assert "b cannot be reached: no such program" in findings(found)[0].seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_doctor_leaves_nothing(number, running):
    code = "import sys; from tf_gossip_pga.launch import doctor; sys.exit(doctor.main())"
    # Without SIGKILL, even a host that does not end by itself.
    hosts = "user@host,silent" if number == signal.SIGKILL else "stubborn,silent"
    doctor_process = subprocess.Popen(
        [sys.executable, "-c", code, "-H", hosts],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with doctor_process as process:
        # Itself, and what stands for ssh, or has become the examiner, on both hosts.
        deadlines.Deadline(30).until(
            lambda: len(running()) >= 3, lambda: f"Running: {processes.marked()}"
        )
        process.send_signal(number)
        _, errors = process.communicate(timeout=deadlines.long())
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert errors.decode().endswith("Interrupted; all examiners were ended.\n")


def test_this_machine(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(starting.NODES, raising=False)
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "No problems."
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == []
    assert found["hosts"][0]["name"] == socket.gethostname()


def test_the_nodes_of_a_slurm_job():
    found = starting.targets(None, {"SLURM_JOB_NODELIST": "n[1-2]"})
    assert [each.name for each in found] == ["n1", "n2"]
    assert found[1].prefix == "srun --overlap -N1 -n1 -w n2"
    assert found[1].command[:6] == ("srun", "--overlap", "-N1", "-n1", "-w", "n2")


def test_a_job_of_slurm(tmp_path, monkeypatch, capsys):
    script = tmp_path / "srun"
    script.write_text('#!/bin/sh\nshift 5\nexec "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[7]")
    assert doctor.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hosts"][0]["name"] == "n7"


def test_hosts_in_a_file(running, tmp_path):
    (tmp_path / "hosts").write_text("unknown slots=2\n")
    assert doctor.main(["--hostfile", str(tmp_path / "hosts")]) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["-H", ""], {}, "-H must list hosts"),
        (["-H", "a", "--hostfile", "b"], {}, "not allowed with"),
        (["--hostfile", "/no/such/file"], {}, "cannot be read"),
        ([], {"SLURM_JOB_NODELIST": "]"}, "unknown form"),
        (["-H", "a"], {"TF_GOSSIP_PGA_PORT": "no"}, "TF_GOSSIP_PGA_PORT must be a port"),
    ],
)
def test_invalid_arguments(arguments, variables, words, capsys, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        doctor.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
