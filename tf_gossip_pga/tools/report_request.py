"""Request a report from all workers of a job, by an environment variable."""

from __future__ import annotations

import os
from collections.abc import Mapping

FILE = "TF_GOSSIP_PGA_REPORT"


def variables(path: str) -> dict[str, str]:
    """Return the environment variables that request a report.

    Args:
      path: the file to write. A relative path is relative to the current directory of this process.
    """
    return {FILE: os.path.abspath(path)}


def requested(environment: Mapping[str, str]) -> str | None:
    """Return the file that environment variables request, or None if they do not.

    Args:
      environment: the variables.
    """
    return environment.get(FILE) or None
