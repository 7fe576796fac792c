"""Refuse versions of TensorFlow with which the private names in `runtime` have not been tested."""

from __future__ import annotations

import re

from tf_gossip_pga import __version__

# The oldest and the newest minor version that was tested, as in pyproject.toml.
OLDEST, NEWEST = (2, 19), (2, 21)


def check(version: str) -> None:
    """Raise if this package has not been tested with the installed TensorFlow.

    Args:
      version: the installed version, `tf.__version__`. Only its minor version counts: 2.21.1 and
        2.21.0-rc1 pass like 2.21.0.

    Raises:
      ImportError: the version is older or newer than all tested versions.

    Example:
      >>> check("2.21.0")
    """
    major, minor = map(int, re.findall(r"\d+", version)[:2])
    if OLDEST <= (major, minor) <= NEWEST:
        return
    oldest, newest, next_minor = (
        f"{first}.{second}" for first, second in (OLDEST, NEWEST, (NEWEST[0], NEWEST[1] + 1))
    )
    raise ImportError(
        f"tf_gossip_pga {__version__} cannot use TensorFlow {version}: it calls private functions "
        f"of TensorFlow, which were tested with versions {oldest} to {newest} only. Run "
        f"pip install 'tensorflow>={oldest},<{next_minor}', or upgrade tf_gossip_pga to a version "
        "that accepts this TensorFlow."
    )
