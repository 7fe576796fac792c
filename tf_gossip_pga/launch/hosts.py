"""Read lists of hosts (`-H`, `--hostfile`) in the forms that Horovod and mpirun accept."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Iterable

# A name must not begin with "-", or ssh would take it for an option.
_NAME = r"(?P<name>([A-Za-z0-9_][\w.+-]*@)?([A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+\]))"
_ENTRY = re.compile(rf"{_NAME}(:(?P<slots>[0-9]{{1,6}}))?", re.ASCII)
_LINE = re.compile(
    rf"{_NAME}((:|\s+slots\s*=\s*)(?P<slots>[0-9]{{1,6}}))?(\s+max[-_]slots\s*=\s*[0-9]+)?",
    re.ASCII,
)
# Names of the machine itself, as they stand in /etc/hosts of common distributions.
_LOOPBACK = re.compile(r"localhost[46]?(\.localdomain[46]?)?|127\.[0-9.]+|\[::1\]", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Host:
    """A host and how many workers to start on it.

    Attributes:
      name: the host as ssh accepts it: `"a"`, `"user@a"` or an IPv6 address without brackets.
      slots: number of workers. Default 1.
    """

    name: str
    slots: int = 1

    @property
    def address(self) -> str:
        """The host as it stands before a port: without `user@`, and IPv6 in brackets."""
        name = self.name.rpartition("@")[2]
        return f"[{name}]" if ":" in name else name


def add_options(parser: argparse._ActionsContainer) -> None:
    """Add `-H`, `--hosts` and `--hostfile` to a parser, or to a group of its options."""
    parser.add_argument(
        "-H",
        "--hosts",
        metavar="HOSTS",
        help="hosts to reach over ssh, with the number of workers on each: a:2,user@b:2",
    )
    parser.add_argument(
        "--hostfile",
        metavar="FILE",
        help="file that lists the hosts, one a line: `a slots=2`, `a:2` or `a`",
    )


def chosen(options: argparse.Namespace) -> list[Host] | None:
    """Return the hosts in the options that `add_options` has added. Return None if there are none.

    Raises:
      ValueError: the list or file of hosts is invalid (see `parse` and `read`).
    """
    if options.hosts is not None:
        return parse(options.hosts)
    return None if options.hostfile is None else read(options.hostfile)


def parse(text: str) -> list[Host]:
    """Return the hosts in a list such as `"a:2,user@b:2"`.

    Each number says how many slots the host has, that is, how many workers to start there. A host
    without a number has one slot. If a host is listed several times, its slots add up.

    Args:
      text: the value of `-H`.

    Raises:
      ValueError: the list is empty, an entry has another form, or the workers could not reach each
        other under these names. The message quotes the entry.

    Example:
      >>> parse("a:2,user@b")
      [Host(name='a', slots=2), Host(name='user@b', slots=1)]
    """
    accepted = "-H must list hosts such as a:2,user@b:2, with at least one slot each"
    found = _merged(_host(_ENTRY, part.strip(), accepted) for part in text.split(","))
    _check(found)
    return found


def read(path: str) -> list[Host]:
    """Return the hosts in a file with one host a line: `a slots=2`, `a:2` or `a`.

    The number of slots says how many workers to start on the host. Blank lines and comments, which
    begin with `#`, are skipped. If a host is listed several times, as in the files of PBS, its
    slots add up, as with mpirun.

    Args:
      path: the value of `--hostfile`.

    Raises:
      ValueError: the file cannot be read, lists no hosts, has a line of another form, or the
        workers could not reach each other under these names.
    """
    try:
        lines = pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--hostfile {path!r} cannot be read: {error}") from None
    accepted = f"--hostfile {path!r} must have a host on each line, such as `a slots=2` or `a:2`"
    plain = [line.partition("#")[0].strip() for line in lines]
    found = _merged(_host(_LINE, line, accepted) for line in plain if line)
    if not found:
        raise ValueError(f"{accepted}; the file lists no host.")
    _check(found)
    return found


def listed(hosts: Iterable[Host]) -> str:
    """Return how many workers each host gets, for messages: `"2 on a, 1 on b"`."""
    return ", ".join(f"{host.slots} on {host.address}" for host in hosts)


def _host(form: re.Pattern[str], text: str, accepted: str) -> Host:
    match = form.fullmatch(text)
    slots = int(match["slots"] or 1) if match else 0
    if match is None or slots < 1:
        raise ValueError(f"{accepted}; received {text!r}.")
    return Host(re.sub(r"[\[\]]", "", match["name"]), slots)


def _merged(hosts: Iterable[Host]) -> list[Host]:
    """Return each host once, in the order of the first mention, with the sum of its slots."""
    slots: dict[str, int] = {}
    for host in hosts:
        slots[host.name] = slots.get(host.name, 0) + host.slots
    return [Host(name, count) for name, count in slots.items()]


def _check(hosts: list[Host]) -> None:
    """Raise `ValueError` if the workers could not reach each other under these names."""
    addresses = [host.address for host in hosts]
    for address in addresses:
        same = [each for each in addresses if each.lower() == address.lower()]
        if len(same) > 1:
            raise ValueError(
                f"{same[0]} is listed for several users, or in different spellings. List each host "
                "once, with all of its slots."
            )
        if len(hosts) > 1 and _LOOPBACK.fullmatch(address):
            raise ValueError(
                f"{address} is a different machine on each host. Give the name or address by which "
                "the other hosts reach it."
            )
