"""The command line of a benchmark, and the processes that it starts."""

import argparse
import os
import sys
from collections.abc import Callable

from tf_gossip_pga import launch


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser for a script with this docstring."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def run(worker: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Start `options.workers` processes of this script; each of them calls `worker(options)`."""
    if "TF_CONFIG" in os.environ:
        worker(options)
        return 0
    return launch.run([sys.executable, *sys.argv], options.workers)
