"""Look up the versions of Python, this package and the packages it needs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform

from tf_gossip_pga import __version__

# For a module that several packages contain: these packages.
_PACKAGES = {"tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly")}


def installed(name: str) -> str | None:
    """Return a version without importing the package, or None if it is not installed.

    Args:
      name: `"python"`, `"tf_gossip_pga"`, `"tensorflow"` (any of the packages that contain this
        module), or the name of another package.
    """
    if name == "python":
        return platform.python_version()
    if name == "tf_gossip_pga":
        return __version__
    for each in _PACKAGES.get(name, (name,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(each)
    return None
