"""Identify the machine that this process runs on."""

from __future__ import annotations

import contextlib
import pathlib

_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return a random id that Linux chooses at each start of the machine.

    Containers have the id of their host. If the system tells no id, the string is empty.
    """
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""
