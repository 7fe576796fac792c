"""Conclude from measurements what is wrong with the hosts, and which command mends it.

A finding stops training if a job on these hosts would not start, or would fail later. What this
package can cope with is only worth knowing.

Each function in `CHECKS` yields the findings of one kind. To add a kind, write such a function and
add it to `CHECKS`. The functions that judge what was measured between hosts are in `link_checks`.
"""

from __future__ import annotations

import collections
import shlex
from collections.abc import Callable, Iterator

from tf_gossip_pga import __version__
from tf_gossip_pga.cluster.ports import CHANNEL_PORT
from tf_gossip_pga.launch import ssh
from tf_gossip_pga.launch.doctor import link_checks
from tf_gossip_pga.launch.doctor.finding import Finding, command_on, listed
from tf_gossip_pga.launch.doctor.measurements import (
    COMPARED,
    ENDED,
    OTHER_VERSION,
    PACKAGE,
    PYTHON,
    REQUESTS,
    SILENT,
    Host,
    Measurements,
    Trouble,
)

CLOCK_S = 1.0  # the smallest difference between two clocks that is a finding


def unavailable(found: Measurements) -> Iterator[Finding]:
    """Yield a finding for each host that could not be examined, or not completely."""
    for host in found.hosts:
        if host.trouble is not None and host.trouble.kind != OTHER_VERSION:
            seen, remedy = _trouble(host, host.trouble)
            yield Finding("host", [host.name], seen, remedy)


def _trouble(host: Host, trouble: Trouble) -> tuple[str, str]:
    """Return what was seen on a host that could not be examined, and the remedy."""
    name, words, code = host.name, trouble.words.strip(), trouble.code
    said = f": {words}" if words else "."
    by_hand = f"Find out why: {command_on(host, 'true')}"
    if trouble.kind != ENDED:
        asked = f"when asked to {REQUESTS[trouble.request]}"
        if trouble.kind == SILENT:
            return f"{name} does not answer in time {asked}{said}", by_hand
        return f"{name} reports an error {asked}{said}", by_hand
    if trouble.request != "describe":
        return f"The examiner on {name} ended during the examination{said}", by_hand
    if code == ssh.FAILED or (code is None and not host.facts):
        return (
            f"{name} cannot be reached{said}",
            f"Make this command succeed without a password: {command_on(host, 'true')}",
        )
    if "No module named" in words:
        return (
            f"The Python on {name} lacks a package{said}",
            "Install this machine's Python environment at the same path on that host.",
        )
    remedy = by_hand
    if code in (ssh.NO_DIRECTORY, ssh.NO_PYTHON):
        remedy = (
            "Make what is missing available at the same path on all hosts, e.g. on a shared file "
            "system."
        )
    return f"No examiner could be started on {name} (exit code {code}){said}", remedy


def versions(found: Measurements) -> Iterator[Finding]:
    """Yield a finding for each package whose version differs between hosts, or that is missing."""
    for host in found.hosts:  # the doctor examines only hosts with its own version of this package
        if host.trouble is not None and host.trouble.kind == OTHER_VERSION:
            yield Finding(
                "version",
                [host.name],
                f"{host.name} has {host.trouble.words or 'another version'} of {PACKAGE}, but this "
                f"machine has {__version__}.",
                f"Install the same version of {PACKAGE} on all hosts.",
            )
    for package in COMPARED:
        hosts: dict[str, list[Host]] = collections.defaultdict(list)
        for host, facts in found.examined():
            version = facts.versions[package] or ""
            # Of Python, compare only two numbers: processes of 3.11.2 and 3.11.7 work together.
            hosts[".".join(version.split(".")[:2]) if package == PYTHON else version].append(host)
        # The most frequent version; of several equally frequent ones, that of the first host.
        usual = max(
            (version for version in hosts if version), key=lambda v: len(hosts[v]), default=""
        )
        for version, those in hosts.items():
            if version != usual or not version:
                yield _version(package, version, those, usual, hosts[usual])


def _version(
    package: str, version: str, hosts: list[Host], usual: str, others: list[Host]
) -> Finding:
    """Return the finding that some hosts lack a package, or have another version than usual."""
    names = [host.name for host in hosts]
    if version:
        seen = f"{_have(hosts)} {package} {version}"
    else:
        seen = f"{package} is missing on {listed(names)}"
    if usual:
        seen += f", but {_have(others)} {usual}"
    if package == PYTHON:
        return Finding("version", names, f"{seen}.", "Install the same environment on all hosts.")
    wanted = f"{package}=={usual}" if usual else package
    commands = [
        command_on(host, f"{host.facts.python} -m pip install {wanted}")
        for host in hosts
        if host.facts is not None
    ]
    return Finding("version", names, f"{seen}.", "\n".join(commands))


def _have(hosts: list[Host]) -> str:
    return f"{listed(host.name for host in hosts)} {'has' if len(hosts) == 1 else 'have'}"


def clocks(found: Measurements) -> Iterator[Finding]:
    """Yield a finding for each host whose clock differs from this machine's."""
    for host in found.hosts:
        if host.clock_s is None or host.clock_error_s is None:
            continue
        if abs(host.clock_s) >= max(CLOCK_S, host.clock_error_s):
            order = "ahead of" if host.clock_s > 0 else "behind"
            yield Finding(
                "clock",
                [host.name],
                f"The clock of {host.name} is {abs(host.clock_s):.1f} s {order} this machine's.",
                command_on(host, "sudo timedatectl set-ntp true"),
                stops_training=False,
            )


def machines(found: Measurements) -> Iterator[Finding]:
    """Yield a finding for each machine that is listed under several names."""
    names: dict[str, list[str]] = collections.defaultdict(list)
    slots: collections.Counter[str] = collections.Counter()
    for host, facts in found.examined():
        if facts.machine:
            names[facts.machine].append(host.name)
            slots[facts.machine] += host.slots
    for machine, those in names.items():
        if len(those) > 1:
            yield Finding(
                "machine",
                those,
                f"{listed(those)} are the same machine, so their workers would use the same ports.",
                f"List it once, with all of its workers: -H {those[0]}:{slots[machine]}",
            )


def ports_taken(found: Measurements) -> Iterator[Finding]:
    """Yield a finding for each port of a host on which the examiner could not listen."""
    known = {name for finding in machines(found) for name in finding.hosts}
    for host in found.hosts:
        for port, why in host.taken.items():
            if host.name not in known:
                yield _taken(host, port, why, found)


def _taken(host: Host, port: int, why: str, found: Measurements) -> Finding:
    """Return the finding that the examiner of a host could not listen on a port."""
    variable = found.ports.variable(port)
    # If the user has chosen no ports, each job has others. A worker whose control channel cannot
    # have the port after its own takes another one.
    is_server = port == found.ports.server
    stops = variable in found.ports.chosen and (is_server or variable == CHANNEL_PORT)
    seen = f"Port {port} of {host.name} cannot be used: {why}."
    return Finding(
        "port",
        [host.name],
        seen if stops else f"{seen} Training works, because another port is used.",
        f"See which program has it: {command_on(host, f'ss -ltnp sport = :{port}')}\n"
        f"Or choose another port: export {variable}=PORT",
        stops_training=stops,
    )


def folders(found: Measurements) -> Iterator[Finding]:
    """Yield findings for hosts that cannot write to the checkpoint folder, or do not share it."""
    folder = found.folder
    if folder is None:
        return
    path = shlex.quote(folder.path)
    for name, why in folder.unwritable.items():
        shown = f"namei -l {path}; findmnt -o TARGET,SOURCE,OPTIONS,AVAIL -T {path}"
        yield Finding(
            "folder",
            [name],
            f"{name} cannot write to {folder.path}: {why}.",
            "Look at the permissions, at the options of the file system and at its free space:\n"
            + command_on(found.host(name), shown),
        )
    for name, why in folder.unread.items():
        if folder.unwritable.get(name) == why:  # it has no access at all
            continue
        yield Finding(
            "folder",
            [folder.writer, name],
            f"{name} does not see a file that {folder.writer} has written to {folder.path} "
            f"({why}): the folder is not shared. Each rank may have a folder of its own, but then "
            "the job cannot resume if rank 0's machine is lost.",
            "To share it, mount the same file system there on both hosts. Compare\n"
            f"{command_on(found.host(folder.writer), f'findmnt -T {path}')}\n"
            f"{command_on(found.host(name), f'findmnt -T {path}')}",
            stops_training=False,
        )


def gpus(found: Measurements) -> Iterator[Finding]:
    """Yield a finding if each worker gets a GPU of its own on some hosts, but not on others."""
    hosts: dict[bool, list[Host]] = {True: [], False: []}
    for host, facts in found.examined():
        hosts[facts.gpus >= host.slots].append(host)
    if hosts[True] and hosts[False]:
        enough, few = ([host.name for host in hosts[each]] for each in (True, False))
        yield Finding(
            "gpus",
            few,
            f"Each worker gets a GPU of its own on {listed(enough)}, but not on {listed(few)}. All "
            "workers wait for the slowest, and exchange over gRPC instead of NCCL.",
            "See which GPUs the driver has found: " + command_on(hosts[False][0], "nvidia-smi -L"),
            stops_training=False,
        )


CHECKS: tuple[Callable[[Measurements], Iterator[Finding]], ...] = (
    unavailable,
    machines,
    link_checks.names,
    ports_taken,
    link_checks.ports,
    link_checks.failures,
    link_checks.rates,
    versions,
    clocks,
    folders,
    gpus,
)


def findings(found: Measurements) -> list[Finding]:
    """Return everything that is wrong with the hosts: first what stops training.

    Args:
      found: the measurements.
    """
    concluded = [finding for check in CHECKS for finding in check(found)]
    return sorted(concluded, key=lambda finding: not finding.stops_training)
