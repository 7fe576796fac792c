"""Run a command in a cluster of hosts that are network namespaces of this machine.

    python -m tools.box --hosts=2 --slurm -- srun --ntasks=3 python script.py

Without a command, open a shell on the first host. This tool needs root.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile

from tools import hosts, services


def main(argv: list[str] | None = None) -> int:
    """Run the command line, and return the exit code of the command.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.box",
        description="Run a command in a cluster of hosts that are namespaces of this machine.",
    )
    parser.add_argument("--hosts", type=int, default=2, help="number of hosts (default: 2)")
    parser.add_argument("--mbit", type=float, help="rate of a link, in Mbit/s (default: no limit)")
    parser.add_argument("--ssh", action="store_true", help="start sshd on each host")
    parser.add_argument("--slurm", action="store_true", help="start Slurm, with a node per host")
    parser.add_argument("command", nargs="*", help="the command (default: a shell)")
    options = parser.parse_args(argv)
    if options.hosts < 1:
        parser.error(f"--hosts must be at least 1, received {options.hosts}")
    names = [f"host{index}" for index in range(options.hosts)]
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="box-")))
        try:
            found = stack.enter_context(hosts.create(names, folder, options.mbit))
            if options.ssh:
                services.start_sshd(found, folder)
            if options.slurm:
                services.start_slurm(found, folder)
        except hosts.NoHostsError as error:
            print(f"The cluster cannot be started: {error}.", file=sys.stderr)
            return 1
        command = options.command or [os.environ.get("SHELL", "/bin/sh")]
        return found[0].popen(command).wait()


if __name__ == "__main__":
    sys.exit(main())
