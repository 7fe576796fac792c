"""Run the command line of the launcher, `gossip-pga run`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from tf_gossip_pga.launch import config, environment, hosts, job
from tf_gossip_pga.tools import output, report_request, timeline_request

_PLACES = ("workers", "hosts", "hostfile")  # options that say where workers start


def main(argv: Sequence[str] | None = None, prog: str = "python -m tf_gossip_pga.launch") -> int:
    """Start the workers that the launcher's command line describes, and wait for them.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.
      prog: the name of the command, for help and errors.

    Returns:
      The exit code of the launcher, which `run` in `launch.job` explains.

    Raises:
      SystemExit: an argument is invalid (code 2), or `--help` is given.
    """
    parser = _parser(prog)
    options = _parsed(parser, sys.argv[1:] if argv is None else list(argv))
    try:
        run = _prepared(options)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    _note_misplaced(options)
    return run()


def _note_misplaced(options: argparse.Namespace) -> None:
    """Say which arguments of the script look like options of the launcher."""
    own = {f"--{name.replace('_', '-')}" for name in vars(options)} - {"--module", "--script"}
    passed = [each for each in options.arguments if each.partition("=")[0] in own]
    if passed:
        print(
            f"Note: the script receives {' '.join(passed)}. Options of the launcher must come "
            "before the script.",
            file=sys.stderr,
        )


def _prepared(options: argparse.Namespace) -> Callable[[], int]:
    """Return a function that runs the job. Raise an error if the options are invalid."""
    job.check_alone("The launcher")
    workers, places = _where(options)
    return job.prepared_run(
        [sys.executable, *_program(options)],
        workers,
        options.max_restarts,
        hosts=places,
        verbose=options.verbose,
        min_workers=options.min_workers,
        rejoins=options.rejoins,
        gpus_per_worker=options.gpus_per_worker,
        share_gpus=options.share_gpus,
        env={**_variables(options.env), **_observed(options, is_local=places is None)},
        log_dir=options.log_dir,
    )


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Start several workers of one script, on this machine or, over ssh, on others. "
        "Each worker gets its own TF_CONFIG.",
        allow_abbrev=False,
    )
    _add_places(parser)
    _add_failures(parser)
    _add_surroundings(parser)
    _add_records(parser)
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        help="run a module, as python -m does, instead of a script; its arguments follow",
    )
    parser.add_argument("script", nargs="?", help="the Python script that every worker runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's arguments")
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where the workers run")
    group.add_argument(
        "--workers", type=int, metavar="N", help="number of workers on this machine (default: 2)"
    )
    hosts.add_options(group)


def _add_failures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("failures")
    group.add_argument(
        "--min-workers",
        type=int,
        metavar="N",
        help="stop the job if fewer than N workers remain; for scripts that survive lost workers "
        "(default: all workers, or 1 with --rejoins)",
    )
    group.add_argument(
        "--rejoins",
        type=int,
        default=0,
        metavar="N",
        help="restart failed workers, up to N times in all, so that they join the surviving ones; "
        "for scripts that survive lost workers (default: 0)",
    )
    group.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="restart a failed job up to N times; for scripts that resume from a checkpoint "
        "(default: 0)",
    )


def _add_surroundings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("devices, variables and output")
    group.add_argument(
        "--gpus-per-worker",
        type=int,
        default=1,
        metavar="N",
        help="number of GPUs for each worker, on machines with GPUs (default: 1)",
    )
    group.add_argument(
        "--share-gpus",
        action="store_true",
        help="let several workers use one GPU if there are too few GPUs",
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set an environment variable for all workers: to VALUE or, if only its NAME is given, "
        "to its value here; may be given several times",
    )
    group.add_argument(
        "--log-dir",
        metavar="DIR",
        help="also append the output of each worker to DIR/rank-N.log",
    )
    group.add_argument(
        "--verbose",
        action="store_true",
        help="also show TensorFlow's start-up messages and repeated warnings",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        help='TOML file with any of these options, such as `workers = 4` or `log-dir = "logs"`; '
        "the command line takes precedence",
    )


def _add_records(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("records of the job")
    group.add_argument(
        "--report",
        metavar="FILE",
        help="write a page about the run (curves, who waited for whom, lost workers) to FILE, on "
        "the host of rank 0; needs matplotlib",
    )
    group.add_argument(
        "--timeline",
        metavar="FILE",
        help="record what the workers spend their time on in some steps, and write a trace for "
        "https://ui.perfetto.dev to FILE, on the host of rank 0",
    )
    group.add_argument(
        "--timeline-steps",
        metavar="FIRST:LAST",
        help="the steps that --timeline records, counted from 1 (default: 100:120)",
    )


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    options = parser.parse_args(argv)
    if options.module and "-m" in argv:  # argparse would drop what follows a "--"
        options.module = argv[argv.index("-m") + 1 :]
    return options


def _parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Return the options on the command line, and those in the file that `--config` names."""
    options = _parse(parser, argv)
    if options.config is None:
        return options
    others = {"config", "module", "script", "arguments"}
    flags = {
        name.replace("_", "-"): value for name, value in vars(options).items() if name not in others
    }
    switches = [flag for flag, value in flags.items() if isinstance(value, bool)]
    try:
        given = config.arguments(options.config, flags, switches)
    except ValueError as error:
        parser.error(str(error))
    if any(getattr(options, name) is not None for name in _PLACES):
        given = [each for each in given if each.removeprefix("--").partition("=")[0] not in _PLACES]
    return _parse(parser, [*given, *argv])  # of two values, the later one counts


def _where(options: argparse.Namespace) -> tuple[int | None, list[hosts.Host] | None]:
    """Return the number of local workers and None, or None and the hosts for workers over ssh."""
    given = [name for name in _PLACES if getattr(options, name) is not None]
    if len(given) > 1:
        raise ValueError(
            f"--{given[0]} and --{given[1]} are both given. Give --workers=N to start N workers on "
            "this machine, or -H or --hostfile to start workers on other hosts over ssh"
        )
    places = hosts.chosen(options)
    if places is not None:
        return None, places
    return (2 if options.workers is None else options.workers), None


def _variables(given: list[str]) -> dict[str, str]:
    """Return the variables that `--env` sets. If it gives only a name, use this process's value."""
    here, found = {**os.environ}, {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name:
            raise ValueError(f"--env must be NAME=VALUE or NAME; received {text!r}")
        if name in environment.OF_ONE_WORKER:
            raise ValueError(
                f"--env cannot set {name}, which the launcher sets or removes for each worker; "
                f"received {text!r}. Leave it out"
            )
        if not equals and name not in here:
            raise ValueError(f"--env {name}: {name} is not set here. Set it, or give NAME=VALUE")
        found[name] = value if equals else here[name]
    return found


def _observed(options: argparse.Namespace, is_local: bool) -> dict[str, str]:
    """Return the variables that request a report and a timeline. See `_timeline`."""
    found = _timeline(options, is_local)
    if options.report is not None:
        if is_local:
            output.check_path("--report", options.report)
        found |= report_request.variables(options.report)
    return found


def _timeline(options: argparse.Namespace, is_local: bool) -> dict[str, str]:
    """Return the variables that request a timeline from the workers.

    Args:
      options: the options of the command line.
      is_local: whether the workers run on this machine. If not, rank 0 checks the folder.
    """
    if options.timeline is None:
        if options.timeline_steps is not None:
            raise ValueError("--timeline-steps needs --timeline=FILE, the file to write")
        return {}
    if is_local:
        output.check_path("--timeline", options.timeline)
    steps = timeline_request.DEFAULT_STEPS
    if options.timeline_steps is not None:
        steps = timeline_request.parsed("--timeline-steps", options.timeline_steps)
    return timeline_request.variables(options.timeline, steps)


def _program(options: argparse.Namespace) -> list[str]:
    """Return the arguments for Python: the script or module, followed by its own arguments."""
    if options.module is not None:
        if not options.module:
            raise ValueError("-m needs the name of a module")
        return ["-m", *options.module]
    if options.script is None:
        raise ValueError("give the script that every worker runs, or -m and a module")
    if not os.path.isfile(options.script):
        raise ValueError(f"there is no script {options.script!r}")
    return [options.script, *options.arguments]
