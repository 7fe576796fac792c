"""Run a function of a test module in real worker processes.

    results = workers.run(_my_function, 4, H=3)      # results of _my_function(cluster, H=3) by rank

Each process joins the cluster, calls the function with its `Cluster`, and writes the result as
JSON. One deadline holds for all processes. If one of them crashes, raises or hangs, the test ends
with its rank and last lines (`launch.LaunchError`).

`run` starts new processes, for tests that kill, signal or change them. Other tests share the
processes of `pool.Pools`.
"""

import importlib
import json
import os
import pathlib
import sys
import tempfile

_ROOT = pathlib.Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

from tests.support import deadlines, gpus, nursery  # noqa: E402

# Far longer than a machine with two idle cores needs; it only ends hangs.
DEADLINE_S = 240


def run(
    function,
    workers: int,
    deadline_s: float = DEADLINE_S,
    devices: int = 1,
    shares_gpu: bool = False,
    min_workers: int | None = None,
    **arguments,
) -> list:
    """Run `function(cluster, **arguments)` on every rank, and return the results in rank order.

    With `min_workers`, the results of processes that failed are left out.

    Args:
      function: a function at the top of a module.
      workers: number of processes.
      deadline_s: the deadline in seconds on an idle machine.
      devices: number of logical CPU devices of each process.
      shares_gpu: whether the processes exchange over NCCL from one GPU, which they share.
      min_workers: how many processes must not fail. Default: all.
      **arguments: arguments of the function, which JSON can hold.

    Raises:
      LaunchError: a process failed, or the deadline passed.
    """
    from tf_gossip_pga import launch

    with tempfile.TemporaryDirectory() as folder:
        name = f"{function.__module__}:{function.__name__}"
        kind = "gpu" if shares_gpu else str(devices)
        command = [sys.executable, __file__, name, json.dumps(arguments), folder, kind]
        # A forked process cannot use a GPU.
        with gpus.shown() if shares_gpu else nursery.forks():
            launch.launch(
                command,
                workers,
                share_gpus=shares_gpu,
                min_workers=min_workers,
                deadline_s=deadlines.scaled(deadline_s),
                write=_to_pytest,
            )
        files = [pathlib.Path(folder, f"{rank}.json") for rank in range(workers)]
        return [json.loads(file.read_text()) for file in files if file.exists()]


def _to_pytest(text: str):
    print(text, end="")  # pytest captures it, and shows it if the test fails


def start(devices: int):
    """Split the CPU into logical devices if there are several, join the cluster, and return it."""
    import tf_gossip_pga as pga

    if devices > 1:
        _split_cpu(devices)
    return pga.initialize()


def _start_on_shared_gpu():
    """Join the cluster over NCCL, which takes each process for a host with a GPU of its own."""
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    os.environ["NCCL_HOSTID"] = f"host{rank}"
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    import tf_gossip_pga as pga

    return pga.initialize(communication="nccl")


def find(name: str):
    """Return the function that `MODULE:FUNCTION` names."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _main(name: str, arguments: str, folder: str, devices: str):
    cluster = _start_on_shared_gpu() if devices == "gpu" else start(int(devices))
    result = find(name)(cluster, **json.loads(arguments))
    pathlib.Path(folder, f"{cluster.rank}.json").write_text(json.dumps(result))


def _split_cpu(devices: int):
    import tensorflow as tf

    logical = [tf.config.LogicalDeviceConfiguration() for _ in range(devices)]
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], logical)


if __name__ == "__main__":
    _main(*sys.argv[1:])
