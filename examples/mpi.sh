#!/bin/bash
# Train with two workers that Open MPI starts on this machine, or on two hosts:
#
#     examples/mpi.sh
#     examples/mpi.sh host0,host1
set -euo pipefail

# By default, Open MPI binds each of two processes to a single core. --bind-to none prevents this.
mpirun -np 2 --host "${1:-localhost:2}" --bind-to none \
    python examples/digits.py --directory="$PWD/runs/mpi"
