"""Run the command line of `gossip-pga doctor`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

from tf_gossip_pga.launch import hosts as hosts_lib
from tf_gossip_pga.launch import signals
from tf_gossip_pga.launch.doctor import starting
from tf_gossip_pga.launch.doctor.checks import findings
from tf_gossip_pga.launch.doctor.examination import examine, wanted_ports
from tf_gossip_pga.launch.doctor.report import report
from tf_gossip_pga.tools import output

_SHOWN = 8  # the most names of hosts that are printed at the start
_ROUND_S = 0.6  # to measure links between disjoint pairs of hosts


def main(argv: Sequence[str] | None = None) -> int:
    """Examine hosts, and print what was measured and what is wrong.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.

    Returns:
      0 if nothing stops training, 1 if a finding does, 130 after Ctrl-C or SIGTERM.

    Raises:
      SystemExit: an argument or a variable is invalid (code 2), or `--help` is given.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        targets = starting.targets(hosts_lib.chosen(options), os.environ)
        ports = wanted_ports(targets, os.environ)
    except ValueError as error:
        parser.error(str(error))
    print(f"Examining {_description(targets)} …", file=sys.stderr, flush=True)
    try:
        with signals.handled(signals.INTERRUPTING):  # so that all examiners are ended
            found = examine(targets, ports, options.checkpoint_dir)
    except KeyboardInterrupt:
        print("\nInterrupted; all examiners were ended.", file=sys.stderr, flush=True)
        return 130
    concluded = findings(found)
    if options.json:
        conclusions = [dataclasses.asdict(each) for each in concluded]
        print(output.as_json({**found.as_dict(), "findings": conclusions}), end="")
    else:
        print(report(found, concluded))
    return 1 if any(each.stops_training for each in concluded) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gossip-pga doctor",
        description="Examine the hosts of a job and the links between them before training: names, "
        "ports, latency, rate, versions, clocks, GPUs and the checkpoint folder. Print each "
        "problem with the command that mends it. Without -H and --hostfile, examine the nodes of "
        "the Slurm job that this command runs in, or else this machine.",
        epilog="The exit code is 0 if nothing was found that stops training, 1 if something was, "
        "and 2 for invalid arguments.",
        allow_abbrev=False,
    )
    hosts_lib.add_options(parser.add_mutually_exclusive_group())
    parser.add_argument(
        "--checkpoint-dir",
        metavar="DIR",
        help="also check that all hosts can write to this folder and share it (default: check no "
        "folder)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print all measurements and findings as JSON"
    )
    return parser


def _description(targets: Sequence[starting.Target]) -> str:
    if len(targets) == 1:
        return targets[0].name
    names = ", ".join(each.name for each in targets[:_SHOWN])
    if len(targets) <= _SHOWN:
        return f"{len(targets)} hosts ({names})"
    seconds = 2 * (len(targets) - 1) * _ROUND_S
    return f"{len(targets)} hosts ({names}, …), whose links take about {seconds:.0f} s to measure"
