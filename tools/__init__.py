"""Tools for trying and testing the project on one machine that acts as several.

Contents:
  hosts: network namespaces that act as hosts.
  services: sshd and Slurm on such hosts.
  box: the command line, which runs a command in a cluster of such hosts.
  install_cluster.sh: install the system packages that the services need (Debian, Ubuntu).
"""
