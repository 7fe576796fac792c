"""Create the command line of a benchmark, and start its worker processes."""

import argparse
import os
import sys
from collections.abc import Callable

from tf_gossip_pga import launch


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the docstring, and add the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_one = action.default not in (None, argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if has_one else action.help


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the script's docstring as description, whose help shows defaults.

    Args:
      doc: the docstring.
    """
    return argparse.ArgumentParser(description=doc, formatter_class=_Formatter)


def run(worker: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Start `options.workers` processes of this script, or call `worker` if this is one of them.

    Args:
      worker: function that runs one rank.
      options: the options of the command line, including `workers`.

    Returns:
      The exit code.
    """
    if "TF_CONFIG" in os.environ:
        worker(options)
        return 0
    return launch.run([sys.executable, *sys.argv], options.workers)
