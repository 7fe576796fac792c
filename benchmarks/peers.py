"""Run exchanges for comparison: plain sockets, and if installed, PyTorch and Decent-DP over gloo.

Each function returns `{name: action}`. An action is one exchange, which all ranks must call
together.
"""

import importlib.util
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import timing

if TYPE_CHECKING:
    from tf_gossip_pga import Cluster

Actions = dict[str, Callable[[], object]]
TCP = "TCP"


def _host(cluster: "Cluster", rank: int) -> str:
    return cluster.addresses[rank].rpartition(":")[0]


def tcp(cluster: "Cluster", bytes_: int) -> Actions:
    """Return an exchange in which each rank sends bytes to the next one over a plain socket.

    Args:
      cluster: the cluster.
      bytes_: number of bytes to send.
    """
    rank, size = cluster.rank, cluster.size
    server = socket.create_server((_host(cluster, rank), 0))
    ports = cluster.gather(server.getsockname()[1], timing.PATIENCE_S)
    following = (rank + 1) % size
    outgoing = socket.create_connection((_host(cluster, following), ports[following]))
    incoming, _ = server.accept()
    server.close()
    sent, received = memoryview(bytes(bytes_)), memoryview(bytearray(bytes_))

    def exchange():
        sender = threading.Thread(target=outgoing.sendall, args=(sent,))
        sender.start()
        have = 0
        while have < bytes_:
            arrived = incoming.recv_into(received[have:])
            if not arrived:
                raise ConnectionError("The rank before this one has ended.")
            have += arrived
        sender.join()

    return {TCP: exchange}


def torch(cluster: "Cluster", shapes: Sequence[tuple[int, ...]]) -> Actions:
    """Return an all-reduce and a pair exchange of `torch.distributed`.

    Args:
      cluster: the cluster.
      shapes: shapes of the parameters.

    Returns:
      The actions, or an empty dict unless PyTorch is installed on all ranks.
    """
    rank, size = cluster.rank, cluster.size
    if not _have_all(cluster, "torch"):
        return {}
    pytorch = importlib.import_module("torch")
    distributed = importlib.import_module("torch.distributed")

    # By default, gloo uses the interface of the host's name, which may not reach the other hosts.
    is_loopback = _host(cluster, 0) == "127.0.0.1"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if is_loopback else "eth0")
    address = f"tcp://{_host(cluster, 0)}:{_free_port(cluster)}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    values = pytorch.zeros(sum(int(np.prod(shape)) for shape in shapes))
    arrived = pytorch.zeros_like(values)

    def one_peer():
        sending = distributed.isend(values, (rank + 1) % size)
        distributed.recv(arrived, (rank - 1) % size)
        sending.wait()

    return {
        "PyTorch all-reduce": lambda: distributed.all_reduce(values),
        "PyTorch send and receive": one_peer,
    }


def decent_dp(cluster: "Cluster", shapes: Sequence[tuple[int, ...]]) -> Actions:
    """Return a step of Decent-DP without computation, on its one-peer graph.

    A step of Decent-DP mixes, updates, and starts the next exchange. The action also waits for that
    exchange. The action requires the process group that `torch` creates.

    Args:
      cluster: the cluster.
      shapes: shapes of the parameters.

    Returns:
      The action, or an empty dict unless the package is installed on all ranks and the number of
      ranks is a power of two.
    """
    if not _have_all(cluster, "decent_dp") or cluster.size & (cluster.size - 1):
        return {}
    loguru = importlib.import_module("loguru")
    pytorch = importlib.import_module("torch")
    ddp = importlib.import_module("decent_dp.ddp")

    class Parameters(pytorch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = pytorch.nn.ParameterList(pytorch.zeros(shape) for shape in shapes)

        def forward(self):
            return sum(part.sum() for part in self.parts)

    loguru.logger.remove()
    model = ddp.DecentralizedDataParallel(
        Parameters(),
        lambda named: pytorch.optim.SGD([value for _, value in named], 1e-3),
        topology="one-peer-exp",
    )

    def step():
        model().backward()
        for exchange in model._comm_ops:
            if exchange is not None:
                exchange.wait()

    return {"Decent-DP step, one peer": step}


def _have_all(cluster: "Cluster", package: str) -> bool:
    """Return whether a package is installed on all ranks."""
    return all(cluster.gather(importlib.util.find_spec(package) is not None, timing.PATIENCE_S))


def _free_port(cluster: "Cluster") -> int:
    """Return a port that is free on rank 0; all ranks get the same number."""
    with socket.socket() as probe:
        probe.bind((_host(cluster, cluster.rank), 0))
        return cluster.gather(probe.getsockname()[1], timing.PATIENCE_S)[0]
