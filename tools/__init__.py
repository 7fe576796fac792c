"""Tools for trying and testing the project on one machine that acts as several, and for pictures.

Contents:
  hosts: network namespaces that act as hosts.
  services: sshd and Slurm on such hosts.
  box: the command line, which runs a command in a cluster of such hosts.
  slow_worker: a training script with a slow worker, for a timeline.
  draw_trace: draw a picture of a timeline.
  install_cluster.sh: install the system packages that the services need (Debian, Ubuntu).
"""
