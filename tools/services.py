"""Start the services of a cluster on hosts of one machine: sshd and Slurm.

`install_cluster.sh` installs the services. The services end with the hosts on which they run, and
keep their files, such as logs, in the folder of the hosts.
"""

from __future__ import annotations

import pathlib
import shutil
import time
from collections.abc import Callable, Sequence

from tools.hosts import Host, NoHostsError

# The programs that must be installed.
SSH = ("sshd", "ssh-keygen", "ssh")
SLURM = ("slurmctld", "slurmd", "srun", "munged")

_START_S = 300.0  # deadline for a service to be ready
_POLL_S = 0.1


def start_sshd(hosts: Sequence[Host], folder: pathlib.Path) -> None:
    """Start sshd on each host, so that root can log in from host to host without a password.

    Raises:
      NoHostsError: sshd is not installed, or does not start.
    """
    check(SSH)
    first, keys = hosts[0], folder / "ssh"
    keys.mkdir()
    for name in ("host", "user"):
        first.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)])
    (keys / "sshd_config").write_text(
        f"HostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\nPermitRootLogin yes\n"
        "StrictModes no\nUsePAM no\nPidFile none\n"
    )
    (keys / "ssh_config").write_text(
        f"IdentityFile {keys}/user\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
        "LogLevel ERROR\n"
    )
    for host in hosts:
        host.run(f"mount --bind {keys}/ssh_config /etc/ssh/ssh_config; mkdir -p /run/sshd")
        host.run([str(shutil.which("sshd")), "-f", f"{keys}/sshd_config"])


def start_slurm(hosts: Sequence[Host], folder: pathlib.Path, cores: int = 8) -> None:
    """Start Slurm, with a node on each host. The first host is also the controller.

    On the hosts, Slurm's commands find this configuration without options.

    Args:
      hosts: the hosts.
      folder: the folder of the hosts.
      cores: number of cores that each node claims to have.

    Raises:
      NoHostsError: Slurm is not installed, or does not start.
    """
    check(SLURM)
    slurm = folder / "slurm"
    slurm.mkdir()
    key, socket = slurm / "munge.key", slurm / "munge.socket"
    key.write_bytes(bytes(range(128)))  # no secret: only the hosts reach this munged
    key.chmod(0o600)
    (slurm / "slurm.conf").write_text(_configuration(hosts, slurm, socket, cores))
    for host in hosts:
        host.run(f"mount --bind {slurm} /etc/slurm")
    hosts[0].run(
        f"munged --force --socket={socket} --key-file={key} --pid-file={slurm}/munged.pid "
        f"--log-file={slurm}/munged.log --seed-file={slurm}/munged.seed"
    )
    hosts[0].run(f"mkdir {slurm}/state; slurmctld -f {slurm}/slurm.conf")
    for host in hosts:
        host.run(f"slurmd -f {slurm}/slurm.conf -N {host.name}")
    idle = f"sinfo -h -o %D -t idle | grep -qx {len(hosts)}"
    _await(lambda: hosts[0].run(f"{idle} && echo ready || true") == "ready\n", "Slurm", slurm)


def _configuration(
    hosts: Sequence[Host], slurm: pathlib.Path, socket: pathlib.Path, cores: int
) -> str:
    """Return the content of `slurm.conf`."""
    nodes = "\n".join(
        f"NodeName={host.name} NodeAddr={host.address} CPUs={cores} RealMemory=1000 State=UNKNOWN"
        for host in hosts
    )
    return f"""ClusterName=box
SlurmctldHost={hosts[0].name}({hosts[0].address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=30
CredType=cred/munge
StateSaveLocation={slurm}/state
SlurmdSpoolDir={slurm}/spool.%n
SlurmctldPidFile={slurm}/slurmctld.pid
SlurmdPidFile={slurm}/slurmd.%n.pid
SlurmctldLogFile={slurm}/slurmctld.log
SlurmdLogFile={slurm}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
SlurmdTimeout=300
SlurmctldTimeout=300
KillWait=30
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def check(programs: Sequence[str]) -> None:
    """Raise `NoHostsError` if one of these programs is not installed."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        raise NoHostsError(
            f"{', '.join(missing)} not found: tools/install_cluster.sh installs what is missing"
        )


def _await(is_ready: Callable[[], bool], what: str, logs: pathlib.Path) -> None:
    ends = time.monotonic() + _START_S
    while not is_ready():
        if time.monotonic() > ends:
            raise NoHostsError(f"{what} was not ready after {_START_S:.0f} s; its logs: {logs}")
        time.sleep(_POLL_S)
