"""Build the command that starts a module of this package on another host over ssh."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping

FAILED = 255  # ssh's exit code for its own failures
NO_DIRECTORY, NO_PYTHON = 253, 254  # exit codes of `_SCRIPT`

# BatchMode: fail instead of asking for a password. ServerAliveInterval: end after three times this
# number of seconds if the host or the network is gone. ControlMaster, ControlPath: give each worker
# a connection of its own, because a shared one would stay open when one of its workers ends.
_SSH = (
    *("ssh", "-T", "-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=15"),
    *("-oControlMaster=no", "-oControlPath=none"),
)

# A script for `sh -c`, which the user's shell on the host runs. $1 is the directory to run in, $2
# is the path of Python, and the rest are the arguments of `env`.
_SCRIPT = (
    'cd "$1" 2>/dev/null || { echo "There is no directory $1 on this host. Create it, or start in '
    f'one that all hosts have." >&2; exit {NO_DIRECTORY}; }}; '
    'test -x "$2" || { echo "There is no Python at $2 on this host. Install the environment at the '
    f'same path on all hosts." >&2; exit {NO_PYTHON}; }}; '
    'shift 2; exec env "$@"'
)


def command(host: str, module: str, environment: Mapping[str, str]) -> list[str]:
    """Return a command that runs `python -m MODULE` on another host.

    The module runs in the directory of this process, with the Python of this process, and gets its
    `PYTHONPATH`. Pass secrets to its standard input, because other users can read command lines.

    Args:
      host: the host as ssh accepts it.
      module: the name of the module.
      environment: the environment variables of this process.
    """
    path = environment.get("PYTHONPATH")
    variables = [f"PYTHONPATH={path}"] if path else []
    started = [*variables, sys.executable, "-m", module]
    script = ["sh", "-c", _SCRIPT, "sh", _here(environment), sys.executable, *started]
    return [*_SSH, host, shlex.join(script)]  # ssh passes one text to the user's shell there


def _here(environment: Mapping[str, str]) -> str:
    """Return the path of this process's working directory, as in `$PWD` if that is correct.

    `$PWD` keeps symbolic links. `os.getcwd` resolves them, and the resulting path may not exist on
    another host, which may mount the user's home directory elsewhere.
    """
    here, named = os.getcwd(), environment.get("PWD", "")
    with contextlib.suppress(OSError):  # $PWD is unset, or names another directory
        if os.path.isabs(named) and os.path.samefile(named, here):
            return named
    return here
