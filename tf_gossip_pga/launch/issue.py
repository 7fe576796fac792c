"""Print what an issue report needs: versions, hardware, and the cluster that would be found."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import platform
import re
import socket
from collections.abc import Iterator, Mapping, Sequence

from tf_gossip_pga.cluster import detect
from tf_gossip_pga.coordination import addresses
from tf_gossip_pga.launch import gpus, versions

_PACKAGES = ("tf_gossip_pga", "python", "tensorflow", "keras", "numpy")
_DRIVER = pathlib.Path("/proc/driver/nvidia/version")

# Names of variables to print, in addition to those in which `initialize` would find the cluster.
_SHOWN = re.compile(
    r"TF_(GOSSIP_PGA|CPP|NUM|USE|FORCE|XLA|ENABLE)_.*|(KERAS|NCCL)_.*|CUDA_VISIBLE_DEVICES|XLA_FLAGS"
    r"|no_proxy|no_grpc_proxy"
)
_SECRET = re.compile(r".*(SECRET|PASS|TOKEN|KEY|CRED|AUTH)", re.IGNORECASE)

_FORM = """\
<!-- Host names and addresses follow. Remove what must not be public. -->
| | |
|---|---|
{table}

```sh
{variables}
```"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of `gossip-pga env`.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.

    Returns:
      The exit code, 0.

    Raises:
      SystemExit: an argument is invalid (code 2), or `--help` is given.
    """
    parser = argparse.ArgumentParser(
        prog="gossip-pga env",
        description="Print what an issue report needs, as Markdown: versions, hardware, and the "
        "cluster that pga.initialize() would find here. Values of secrets are left out.",
    )
    parser.parse_args(argv)
    print(report(os.environ))
    return 0


def report(variables: Mapping[str, str]) -> str:
    """Return the report as Markdown.

    Args:
      variables: the environment variables to report.
    """
    recorder = _Recorder(variables)
    rows = [*_software(), *_hardware(), ("addresses of this host's name", _own_addresses())]
    rows.append(("cluster", _cluster(recorder)))
    names = sorted(recorder.read | {name for name in variables if _SHOWN.fullmatch(name)})
    return _FORM.format(
        table="\n".join(f"| {name} | {value} |" for name, value in rows),
        variables="\n".join(f"{name}={_value(name, variables[name])}" for name in names),
    )


class _Recorder(Mapping[str, str]):
    """Environment variables that remember which of them were read.

    Attributes:
      read: names of the variables that were read and are set.
    """

    def __init__(self, variables: Mapping[str, str]):
        self._variables = variables
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        value = self._variables[name]
        self.read.add(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def _software() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        yield name, versions.installed(name) or "not installed"
    system = ""
    with contextlib.suppress(OSError):  # no /etc/os-release
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    yield "system", system or platform.system()
    yield "kernel", f"{platform.release()}, {platform.machine()}"


def _hardware() -> Iterator[tuple[str, str]]:
    usable = len(os.sched_getaffinity(0))
    yield "CPUs", f"{os.cpu_count()}, of which this process may use {usable}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "total memory", f"{memory / 2**30:.1f} GiB"
    yield "GPUs that a worker would see", str(len(gpus.visible()))
    driver = "not found"
    with contextlib.suppress(OSError):
        driver = _DRIVER.read_text().partition("\n")[0].removeprefix("NVRM version:").strip()
    yield "NVIDIA driver", driver


def _own_addresses() -> str:
    """Return the addresses to which this host's name resolves on this host."""
    try:
        return ", ".join(addresses.look_up(socket.gethostname()))
    except (OSError, UnicodeError) as error:
        return str(error)


def _cluster(variables: Mapping[str, str]) -> str:
    """Describe on one line the place that `initialize` would find, or the error it would raise."""
    try:
        place = detect.find(variables)
    except ValueError as error:
        return f"error: {' '.join(str(error).split())}"
    if not place.found_by:
        return "none: a single worker"
    where = ", ".join(place.addresses)
    if place.rendezvous:
        where = f"rendezvous at {place.rendezvous.hosts[0]}:{place.rendezvous.port}"
    return f"rank {place.rank} of {place.size}, found by {place.found_by}: {where}"


def _value(name: str, value: str) -> str:
    """Return the value of a variable or, if it is a secret, only its length."""
    is_secret = _SECRET.match(name) and not name.endswith("_FILE")
    return f"(not shown, {len(value)} characters)" if is_secret else value
