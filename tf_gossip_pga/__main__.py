"""Run the subcommand that the command line of `gossip-pga` names.

`python -m tf_gossip_pga` is the same command.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import tf_gossip_pga

# For each subcommand: what it does, and its module, which is imported only to run the subcommand.
_COMMANDS = {
    "run": ("start several workers of a script, on this machine or over ssh", "launch.command"),
    "doctor": ("check hosts and the network between them", "launch.doctor"),
    "plan": ("estimate step times, and recommend an algorithm", "plan.__main__"),
    "simulate": ("compare algorithms on virtual workers", "simulate.__main__"),
    "env": ("print what an issue report needs", "launch.issue"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of `gossip-pga`.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.

    Returns:
      The exit code of the subcommand.

    Raises:
      SystemExit: an argument is invalid (code 2), `--help` is given, or the subcommand exits.
    """
    listed = [f"  {name:9} {purpose}" for name, (purpose, _) in _COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="gossip-pga",
        description="\n".join(
            ["Train one Keras 3 model on several machines.\n", "commands:", *listed]
        ),
        epilog="`gossip-pga COMMAND --help` shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=tf_gossip_pga.__version__)
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="one of the above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's arguments")
    given = parser.parse_args(argv)
    return _run(given.command, given.arguments)


def _run(command: str, arguments: list[str]) -> int:
    name = f"tf_gossip_pga.{_COMMANDS[command][1]}"
    prog = f"gossip-pga {command}"
    if name.endswith(".__main__"):
        _run_as_main(name, [prog, *arguments])
        return 0
    module: Any = importlib.import_module(name)
    return module.main(arguments, prog) if command == "run" else module.main(arguments)


def _run_as_main(name: str, argv: list[str]) -> None:
    """Run a module as `python -m` does, but with `argv` as its `sys.argv`.

    absl takes the program name from `sys.argv[0]`, and the flags that `--help` shows from the
    module `__main__`. So both must be those of the module that runs.
    """
    spec: Any = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    module.__name__ = "__main__"
    sys.modules["__main__"] = module
    sys.argv = argv
    exec(spec.loader.get_code(name), vars(module))


if __name__ == "__main__":
    sys.exit(main())
