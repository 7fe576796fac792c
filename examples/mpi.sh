#!/bin/bash
# Train with two workers of Open MPI on this machine, or on two hosts:
#
#     examples/mpi.sh
#     examples/mpi.sh host0,host1
set -euo pipefail

# Open MPI binds each of two processes to a core of its own, so it must be told to bind none.
mpirun -np 2 --host "${1:-localhost:2}" --bind-to none \
    python examples/digits.py --directory="$PWD/runs/mpi"
