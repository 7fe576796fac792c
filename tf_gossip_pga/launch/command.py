"""Parse the command line of the local launcher."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tf_gossip_pga.launch import gpus
from tf_gossip_pga.launch.local import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of `python -m tf_gossip_pga.launch`.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.

    Returns:
      The exit code of the launcher, which `run` in `launch.local` explains.

    Raises:
      SystemExit: an argument is invalid (code 2), or `--help` is given.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    return run(
        [sys.executable, *_program(parser, options)],
        options.workers,
        options.max_restarts,
        verbose=options.verbose,
        min_workers=options.min_workers,
        rejoins=options.rejoins,
        gpus_per_worker=options.gpus_per_worker,
        share_gpus=options.share_gpus,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tf_gossip_pga.launch",
        description="Start local worker processes of one script, each with its own TF_CONFIG.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="number of workers (default: 2)"
    )
    parser.add_argument(
        "--min-workers",
        type=int,
        metavar="N",
        help="stop the job if fewer than N workers remain; for scripts that survive lost workers "
        "(default: --workers, or 1 with --rejoins)",
    )
    parser.add_argument(
        "--rejoins",
        type=int,
        default=0,
        metavar="N",
        help="restart up to N failed workers, which join the surviving ones (default: 0)",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="restart a failed job up to N times; for scripts that resume from a checkpoint "
        "(default: 0)",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=int,
        default=1,
        metavar="N",
        help="number of GPUs for each worker, on a machine with GPUs (default: 1)",
    )
    parser.add_argument(
        "--share-gpus",
        action="store_true",
        help="let several workers use one GPU if there are too few",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="also show TensorFlow's start-up messages and repeated warnings",
    )
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        help="run a module, as python -m does, instead of a script; its arguments follow",
    )
    parser.add_argument("script", nargs="?", help="the Python script that every worker runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's arguments")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, received {options.workers}")
    least = options.min_workers
    if least is not None and not 1 <= least <= options.workers:
        parser.error(f"--min-workers must be from 1 to {options.workers}, received {least}")
    if options.gpus_per_worker < 1:
        parser.error(f"--gpus-per-worker must be at least 1, received {options.gpus_per_worker}")
    try:
        gpus.divide(gpus.visible(), options.workers, options.gpus_per_worker, options.share_gpus)
    except ValueError as error:
        parser.error(str(error))
    for name in ("rejoins", "max_restarts"):
        if (number := getattr(options, name)) < 0:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} must not be negative, received {number}")


def _program(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """Return the arguments for Python: the script or module, followed by its own arguments."""
    if options.module is not None:
        if not options.module:
            parser.error("-m needs the name of a module")
        return ["-m", *options.module]
    if options.script is None:
        parser.error("give the script that every worker runs, or -m and a module")
    if not os.path.isfile(options.script):
        parser.error(f"there is no script {options.script!r}")
    return [options.script, *options.arguments]
