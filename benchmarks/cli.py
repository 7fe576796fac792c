"""Create the command line of a benchmark, and start its worker processes."""

import argparse
import json
import os
import pathlib
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


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option `--device`."""
    parser.add_argument(
        "--device",
        choices=("cpu", "gpu"),
        default="cpu",
        help="exchange over gRPC from CPUs, or over NCCL from GPUs; workers share too few GPUs",
    )


def add_simulation(
    parser: argparse.ArgumentParser,
    nodes: list[int],
    iterations: int,
    trials: int,
    every: int,
    output: str,
) -> None:
    """Add the options of a simulation, with these defaults.

    Args:
      parser: the parser of the command line.
      nodes: numbers of nodes to simulate.
      iterations: number of steps of a run.
      trials: number of runs with different batches.
      every: number of steps between measurements.
      output: the JSON file.
    """
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=nodes, help="numbers of nodes to simulate"
    )
    parser.add_argument("--iterations", type=int, default=iterations, help="steps of a run")
    parser.add_argument("--trials", type=int, default=trials, help="runs with different batches")
    parser.add_argument("--every", type=int, default=every, help="steps between measurements")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(output),
        help="JSON file to write; the picture is a .png next to it",
    )


def run(worker: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Start `options.workers` processes of this script, or call `worker` if this is one of them.

    Args:
      worker: function that runs one rank.
      options: the options of the command line, including `workers`, and `device` if the script has
        this option.

    Returns:
      The exit code.
    """
    on_gpu = getattr(options, "device", "cpu") == "gpu"
    if "TF_CONFIG" in os.environ:
        _choose_transport(on_gpu)
        worker(options)
        return 0
    if not on_gpu:
        hide_gpus()
    return launch.run([sys.executable, *sys.argv], options.workers, share_gpus=on_gpu)


def hide_gpus() -> None:
    """Hide all GPUs from the processes that this one starts, so that their exchanges use gRPC."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def _choose_transport(on_gpu: bool) -> None:
    """Make `initialize` use NCCL on GPUs, even where several workers share one."""
    os.environ["TF_GOSSIP_PGA_COMMUNICATION"] = "nccl" if on_gpu else "ring"
    if on_gpu:
        # NCCL accepts one GPU twice only if the workers seem to be on different hosts.
        rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
        os.environ["NCCL_HOSTID"] = f"host{rank}"
        os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
