"""Make the command line of a benchmark, and start its worker processes."""

import argparse
import os
import sys
from collections.abc import Callable

from tf_gossip_pga import launch


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose description is the first line of a script's docstring.

    Args:
      doc: the docstring.
    """
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def run(worker: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Start `options.workers` processes of this script, or call `worker` if this is one of them.

    Args:
      worker: function that runs one rank.
      options: the command line's options, with `workers`.

    Returns:
      The exit code.
    """
    if "TF_CONFIG" in os.environ:
        worker(options)
        return 0
    return launch.run([sys.executable, *sys.argv], options.workers)
