"""Start several workers of one script, each with its own `TF_CONFIG`.

    gossip-pga run --workers=4 SCRIPT [ARGUMENTS…]       on this machine
    gossip-pga run -H a:2,b:2 SCRIPT [ARGUMENTS…]        two on each of the hosts a and b, over ssh
    gossip-pga run --workers=4 -m MODULE [ARGUMENTS…]

`python -m tf_gossip_pga.launch` is the same as `gossip-pga run`.

Each line of output begins with the rank of its worker. When a worker fails, the launcher stops the
others, shows the rank of the failed worker and the last lines of its output, and exits with code 1.
Ctrl-C stops all workers and their child processes. The launcher forwards SIGTERM to the workers,
which then have 20 s to save a checkpoint and end. If they end successfully within this time, the
launcher exits with code 0. After SIGTERM, scripts that call `Checkpoint.exit_if_preempted` end with
exit code `pga.PREEMPTED` (75) instead, and then the launcher exits with this code too. It does so
no matter whether the launcher or another program, such as a scheduler, sent SIGTERM to the workers.

Three options handle failures:

    --min-workers=N   For scripts that survive lost workers: training continues as long as at least
                      N workers survive.
    --rejoins=N       For the same scripts: restart failed workers, up to N times in all. A
                      restarted worker joins the surviving workers. If a worker fails before all
                      workers have found one another, the others cannot start without it: if the
                      launcher has used up its N restarts, the job ends.
    --max-restarts=N  For scripts that resume from a checkpoint: restart a failed job up to N times.

Unless `--verbose` is given, the launcher hides TensorFlow's start-up messages, and warnings that
another worker has already printed. `--log-dir=DIR` also writes all output of each rank to a file.

On machines with GPUs, each worker gets one GPU, or N GPUs with `--gpus-per-worker=N`. If a machine
has too few GPUs, its workers do not start, and an error says so, unless `--share-gpus` lets several
workers use one GPU. To train on CPUs, set `CUDA_VISIBLE_DEVICES=-1` (over ssh: pass
`--env CUDA_VISIBLE_DEVICES=-1`).

Contents:
  launch: run a command once per worker.
  Host: a host on which to start workers over ssh.
  Outcome: how one worker ended.
  LaunchError: the exception that `launch` raises when a job fails.
  run: launch from a terminal, print failures, and return an exit code.
  main: the command line.
  free_addresses: unused addresses on this machine for a cluster.
"""

from tf_gossip_pga.errors import LaunchError
from tf_gossip_pga.launch.command import main
from tf_gossip_pga.launch.environment import free_addresses
from tf_gossip_pga.launch.hosts import Host
from tf_gossip_pga.launch.job import launch, run
from tf_gossip_pga.launch.watch import Outcome

__all__ = ["Host", "LaunchError", "Outcome", "free_addresses", "launch", "main", "run"]
