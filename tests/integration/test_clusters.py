"""Start workers by real starters on several hosts, which are namespaces of this machine.

They need root and the packages that tools/install_cluster.sh installs (`make test-clusters` does it
first). Without them, these tests are skipped.
"""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import pytest

from tests.support import deadlines
from tools import hosts as hosts_lib
from tools import services

pytestmark = [pytest.mark.multiprocess, pytest.mark.clusters]

ROOT = pathlib.Path(__file__).parents[2]
RUN = [sys.executable, "-m", "tf_gossip_pga", "run", "-H", "host0:1,host1:2"]
SCRIPT = [sys.executable, "-m", "tests.support.starter_script"]


class Box:
    """Hosts, and commands that run on them until the test ends."""

    def __init__(self, hosts: list[hosts_lib.Host], folder: pathlib.Path):
        self.hosts, self.folder = hosts, folder
        self._running: list[subprocess.Popen] = []
        self._services = [set(host.processes()) for host in hosts]

    def start(self, command: list[str], host: int = 0, **variables: str) -> "Running":
        """Start a command on a host, in the project's folder."""
        log = self.folder / f"output.{len(self._running)}"
        with log.open("wb") as output:
            process = self.hosts[host].popen(
                ["env", "-C", str(ROOT), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment() | variables,
            )
        self._running.append(process)
        return Running(process, log)

    def end(self):
        """End all that has been started."""
        for host, services_ in zip(self.hosts, self._services, strict=True):
            for process in set(host.processes()) - services_:
                host.run(f"kill -9 {process} || true")
        for process in self._running:
            process.kill()
            process.wait()


class Running:
    """A command on a host, and its output so far."""

    def __init__(self, process: subprocess.Popen, log: pathlib.Path):
        self.process, self._log = process, log

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def ended(self, deadline: deadlines.Deadline) -> str:
        """Return the output after a successful end."""
        try:
            code = self.process.wait(deadline.remaining())
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running:\n{self.output}")
        assert code == 0, self.output
        return self.output


def _environment() -> dict[str, str]:
    """Return this process's environment without variables of starters."""
    starters = re.compile(
        "TF_CONFIG|TF_GOSSIP_PGA_(?!TEST_)|KERAS_DIST|SLURM|OMPI|PMI|PET_|SM_|JOB_COMP|TORCHELASTIC"
        "|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_"
    )
    kept = {name: value for name, value in os.environ.items() if not starters.match(name)}
    return kept | {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}


def _require(*programs: str):
    """Skip the test if this machine cannot have hosts with these programs."""
    try:
        hosts_lib.check()
        services.check(programs)
    except hosts_lib.NoHostsError as reason:
        pytest.skip(f"no cluster on this machine: {reason}")


@contextlib.contextmanager
def _two_hosts(folder: pathlib.Path, programs, start):
    """Yield two hosts on which `start` has started a service that needs these programs."""
    _require(*programs)
    with hosts_lib.create(["host0", "host1"], folder) as hosts:
        start(hosts, folder)
        yield hosts


@pytest.fixture(scope="module")
def slurm_hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    with _two_hosts(folder, services.SLURM, services.start_slurm) as hosts:
        yield hosts


@pytest.fixture
def slurm(slurm_hosts, tmp_path):
    box = Box(slurm_hosts, tmp_path)
    yield box
    box.end()
    slurm_hosts[0].run("scancel --full --signal=KILL --user=root; scancel --user=root")


@pytest.fixture(scope="module")
def ssh_hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssh")
    with _two_hosts(folder, services.SSH, services.start_sshd) as hosts:
        yield hosts


@pytest.fixture
def ssh(ssh_hosts, tmp_path):
    box = Box(ssh_hosts, tmp_path)
    yield box
    box.end()


def _trained(output: str) -> list[tuple[str, str, str]]:
    """Return rank, members and the sum of the weights, as each trained worker has printed them."""
    return sorted(re.findall(r"trained rank (\d+) members (\S+) sum (\S+)", output))


def _assert_one_cluster(output: str, size: int):
    found = _trained(output)
    members = ",".join(map(str, range(size)))
    assert [(rank, who) for rank, who, _ in found] == [(str(r), members) for r in range(size)], (
        output
    )
    assert len({total for _, _, total in found}) == 1, output


def test_srun_with_uneven_tasks_makes_one_cluster(slurm, tmp_path):
    example = [sys.executable, "examples/digits.py", f"--directory={tmp_path}/run", "--epochs=2"]
    running = slurm.start(["srun", "--label", "--nodes=2", "--ntasks=3", *example])
    output = running.ended(deadlines.Deadline(240))
    assert "3 workers on 2 hosts are connected" in output
    assert "Found by Slurm's step variables" in output
    epochs = [line.split()[0] for line in output.splitlines() if line.endswith(": Epoch 2/2")]
    assert epochs == ["0:"], output
    assert (tmp_path / "run" / "digits.keras").exists()


def test_a_killed_task_of_slurm_is_survived_and_joins_again(slurm, tmp_path):
    deadline, secret = deadlines.Deadline(240), {"TF_GOSSIP_PGA_SECRET": "a secret of this test"}
    srun = ["srun", "--nodes=2", "--ntasks=3", "--no-kill", "--kill-on-bad-exit=0", "--wait=0"]
    running = slurm.start([*srun, *SCRIPT, str(tmp_path)], **secret)
    deadline.until(lambda: any(tmp_path.glob("checkpoint-*")), lambda: running.output)
    (killed,) = re.findall(r"start (\d+) rank 1 of 3", running.output)
    slurm.hosts[0].run(["kill", "-9", killed])
    deadline.until(lambda: "continues without rank 1" in running.output, lambda: running.output)
    # A task of another step is 0 of 1 there.
    place = {"TF_GOSSIP_PGA_CLUSTER": f"{tmp_path}/cluster.json", "TF_GOSSIP_PGA_RANK": "1"}
    alone = ["srun", "--nodelist=host0", "--ntasks=1", *SCRIPT, str(tmp_path)]
    joining = slurm.start(alone, **secret, **place, TF_GOSSIP_PGA_JOIN="1")
    deadline.until(lambda: "admitted rank 1" in running.output, lambda: joining.output)
    (tmp_path / "stop").touch()
    running.process.wait(deadline.remaining())  # with the code of the killed task
    _assert_one_cluster(running.output + joining.ended(deadline), 3)


def test_sigterm_saves_and_slurm_starts_the_job_again(slurm, tmp_path):
    deadline = deadlines.Deadline(360)  # Slurm waits until the credentials have expired
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    log, path = tmp_path / "log", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    log.touch()
    options = ["--parsable", f"--chdir={tmp_path}", f"--output={log}", "--cpus-per-task=1"]
    submitted = slurm.start(["sbatch", *options, "examples/slurm.sbatch"], PATH=path)
    job = submitted.ended(deadline).split()[-1]
    folder = tmp_path / "runs" / job
    deadline.until(lambda: any(folder.glob("checkpoint-*")), log.read_text)
    slurm.hosts[0].run(["scancel", "--signal=TERM", job])
    deadline.until(lambda: (folder / "digits.keras").exists(), log.read_text)
    output = log.read_text()
    assert "received SIGTERM. All ranks will stop and save a checkpoint." in output
    assert output.count("2 workers on 2 hosts are connected") == 2
    assert output.count("Epoch 1/20") == 1 and output.count("Epoch 20/20") == 1, output


def test_mpirun_on_two_hosts_makes_one_cluster(ssh, tmp_path):
    _require("mpirun")
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "-H", "host0,host1"]
    (tmp_path / "stop").touch()
    running = ssh.start([*mpirun, *SCRIPT, str(tmp_path)])
    output = running.ended(deadlines.Deadline(240))
    _assert_one_cluster(output, 2)
    assert "Found by Open MPI's variables" in output


def test_mpirun_starts_the_example(ssh, tmp_path):
    _require("mpirun")
    variables = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    variables["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["env", "-C", str(tmp_path), "examples/mpi.sh"]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    output = ssh.start(command, **variables).ended(deadlines.Deadline(240))
    assert "2 workers on 1 host are connected" in output
    assert output.count("Epoch 20/20") == 1, output
    assert (tmp_path / "runs" / "mpi" / "digits.keras").exists()


def test_ray_trains_on_two_nodes(ssh, tmp_path):
    pytest.importorskip("ray")
    deadline, ray = deadlines.Deadline(240), [sys.executable, "-m", "ray.scripts.scripts", "start"]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # Ray needs a short path
        head = ["--head", "--node-ip-address=10.0.0.1", f"--temp-dir={folder}"]
        ssh.start([*ray, "--num-cpus=1", *head]).ended(deadline)
        node = ["--address=10.0.0.1:6379", "--node-ip-address=10.0.0.2"]
        ssh.start([*ray, "--num-cpus=1", *node], host=1).ended(deadline)
        example = [sys.executable, "examples/ray_train.py", str(tmp_path)]
        output = ssh.start(example, RAY_ADDRESS="10.0.0.1:6379").ended(deadline)
        ssh.end()
    assert "2 workers on 2 hosts are connected" in output
    assert (tmp_path / "model.keras").exists()


def test_gossip_pga_run_starts_workers_over_ssh_and_restarts_a_killed_one(ssh, tmp_path):
    deadline = deadlines.Deadline(240)
    running = ssh.start([*RUN, "--rejoins=1", *SCRIPT[1:], str(tmp_path)])
    deadline.until(lambda: any(tmp_path.glob("checkpoint-*")))
    (killed,) = re.findall(r"start (\d+) rank 2 of 3", running.output)
    ssh.hosts[1].run(["kill", "-9", killed])
    deadline.until(lambda: "admitted rank 2" in running.output, lambda: running.output)
    (tmp_path / "stop").touch()
    output = running.ended(deadline)
    _assert_one_cluster(output, 3)
    assert "Rank 2 failed with signal SIGKILL. The launcher restarts it" in output


def test_hosts_may_resolve_their_own_names_to_127_0_1_1(tmp_path):
    _require(*services.SSH)
    deadline = deadlines.Deadline(240)
    with hosts_lib.create(["host0", "host1"], tmp_path) as hosts:
        services.start_sshd(hosts, tmp_path)
        for host in hosts:
            names, own = tmp_path / f"hosts.{host.name}", f"{host.address} {host.name}"
            assert own in names.read_text()
            names.write_text(names.read_text().replace(own, f"127.0.1.1 {host.name}"))
        running = Box(hosts, tmp_path).start([*RUN, *SCRIPT[1:], str(tmp_path)])
        deadline.until(lambda: any(tmp_path.glob("checkpoint-*")), lambda: running.output)
        (tmp_path / "stop").touch()
        _assert_one_cluster(running.ended(deadline), 3)


def test_nothing_is_left_on_any_host_when_the_launcher_is_killed(ssh, tmp_path):
    deadline = deadlines.Deadline(240)
    running = ssh.start([*RUN, *SCRIPT[1:], str(tmp_path)])
    deadline.until(lambda: any(tmp_path.glob("checkpoint-*")))
    assert [len(_running(host, "-m tests.support.starter_script")) for host in ssh.hosts] == [1, 2]
    (launcher,) = _running(ssh.hosts[0], "-m tf_gossip_pga run")
    ssh.hosts[0].run(["kill", "-9", str(launcher)])
    killed = time.monotonic()
    deadline.until(lambda: not any(_running(host, "-m t") for host in ssh.hosts))
    print(f"Nothing was left after {time.monotonic() - killed:.1f} s.")
    running.process.wait(deadline.remaining())


def _running(host: hosts_lib.Host, arguments: str) -> list[int]:
    """Return the ids of the host's Python processes whose arguments begin like this."""
    wanted = re.compile(rf"\S*python\S* {arguments}")
    return [number for number, line in host.processes().items() if wanted.match(line)]


FAULTS = {
    "channel port": "Port 2223 (control channel) of host1 does not answer host0, host2 and host3",
    "127.0.1.1": "On host2, its own name resolves to 127.0.1.1",
    "version": "host1 has tensorflow 2.20.0, but host0, host2 and host3 have ",
    "clock": "The clock of host2 is 60.0 s ahead",
    "folder": "host3 does not see a file that host0 has written",
    "link": "host3 sends to host0, host1 and host2 at only",
}


LATER = """
import time
now = time.time
time.time = lambda: now() + 60
"""


def _damage(hosts: list[hosts_lib.Host], folder: pathlib.Path):
    """Make the six faults on the hosts."""
    # The kernel drops packets to the port, as a firewall does, before it looks for local addresses.
    drop = "ip rule add pref 10 iif eth0 ipproto tcp dport 2223 blackhole"
    hosts[1].run(f"{drop}; ip rule add pref 20 lookup local; ip rule del pref 0")
    # Python on host1 finds another TensorFlow, and on host2 another clock.
    metadata = folder / "site1" / "tensorflow-2.20.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: tensorflow\nVersion: 2.20.0\n")
    (folder / "site2").mkdir()
    (folder / "site2" / "sitecustomize.py").write_text(LATER)
    for number in (1, 2):
        hosts[number].run(f"mount --bind {folder}/site{number} {folder}/site")
    names = folder / "hosts.host2"
    names.write_text(names.read_text().replace(f"{hosts[2].address} host2", "127.0.1.1 host2"))
    hosts[3].run(f"mount -t tmpfs tmpfs {folder}/shared")
    hosts[3].shape(50)


def test_the_doctor_finds_nothing_and_then_each_fault(tmp_path):
    _require(*services.SSH)
    for name in ("shared", "site"):
        (tmp_path / name).mkdir()
    names = [f"host{index}" for index in range(4)]
    doctor = [sys.executable, "-m", "tf_gossip_pga", "doctor", "-H", ",".join(names)]
    doctor.append(f"--checkpoint-dir={tmp_path}/shared")
    variables = {"TF_GOSSIP_PGA_PORT": "2222", "PYTHONPATH": f"{tmp_path}/site:{ROOT}"}
    with hosts_lib.create(names, tmp_path, mbit=500) as hosts:
        services.start_sshd(hosts, tmp_path)
        box = Box(hosts, tmp_path)

        def examine() -> tuple[int, str]:
            running = box.start(doctor, **variables)
            return running.process.wait(deadlines.long()), running.output

        code, output = examine()
        assert code == 0, output
        _damage(hosts, tmp_path)
        code, output = examine()
        assert code == 1, output
        assert not [text for text in FAULTS.values() if text not in output], output
        assert "2 problems would stop training:" in output
        problems, _, others = output.partition("Worth knowing:")
        assert all(FAULTS[name] in problems for name in ("channel port", "version")), output
        assert others.count("\n3. ") == others.count("\n6. ") == 1, output
        assert "\n7. " not in output
