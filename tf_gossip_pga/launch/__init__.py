"""Start local worker processes of one script, each with its own `TF_CONFIG`.

    python -m tf_gossip_pga.launch --workers=4 SCRIPT [ARGUMENTS…]
    python -m tf_gossip_pga.launch --workers=4 -m MODULE [ARGUMENTS…]

Each line of output begins with the rank it came from. When a worker fails, the launcher stops the
others, shows its rank and last lines, and exits with code 1. Ctrl-C stops all workers and their
children.

Scripts that survive a loss may use `--min-workers=N`: the surviving workers train as long as there
are N of them. With `--rejoins=N` the launcher also restarts up to N failed workers, to join them.
One that ends before the job has started is restarted into the start, or else the job ends: the
others cannot start without it.
Scripts that resume at a checkpoint may use `--max-restarts=N`, which restarts a failed job.

TensorFlow's start-up messages, and warnings that another worker has printed already, are left out
unless `--verbose` is given. On a machine with at least as many GPUs as workers each worker sees
its own GPU; with fewer, all train on the CPU.

Contents:
  launch: run a command once for each worker. `Outcome`, `LaunchError`: how workers ended.
  run: the same for a terminal: it reports failures in words, and returns an exit code.
  main: the command line.
  free_addresses: addresses on this machine for a cluster.
"""

from tf_gossip_pga.errors import LaunchError
from tf_gossip_pga.launch.command import main
from tf_gossip_pga.launch.environment import free_addresses
from tf_gossip_pga.launch.local import launch, run
from tf_gossip_pga.launch.watch import Outcome

__all__ = ["LaunchError", "Outcome", "free_addresses", "launch", "main", "run"]
