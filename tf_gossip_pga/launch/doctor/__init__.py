"""Examine the hosts of a job before training, and name each problem with the command that mends it.

The doctor starts an *examiner* on each host: a process that measures there and answers requests of
the doctor.

Modules:
  command: the command line.
  starting: choose the hosts, and the command that starts an examiner on each.
  examination, contact: start the examiners, send requests to them, and collect their answers.
  measurements: the classes that hold everything that was measured.
  checks, link_checks, finding: conclude from measurements what is wrong.
  report: format the measurements and the conclusions as text.
  examiner, machine, links: run in the examiner on each host, and measure.

Contents:
  main: run the command line.
"""

from tf_gossip_pga.launch.doctor.command import main

__all__ = ["main"]
