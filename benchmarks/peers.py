"""What exchanges are compared with: plain sockets; PyTorch and Decent-DP over gloo, if installed.

Each function returns `{name: action}`; an action is one exchange, called by all ranks at once.
"""

import importlib.util
import os
import socket
import threading

import numpy as np


def _host(mine, rank: int) -> str:
    return mine.cluster.addresses[rank].rpartition(":")[0]


def tcp(mine, bytes_: int) -> dict:
    """Each rank sends `bytes_` to the next one, and receives as many from the one before."""
    rank, size = mine.cluster.rank, mine.cluster.size
    server = socket.create_server((_host(mine, rank), 0))
    ports = mine.gather(server.getsockname()[1], "the ports", 600)
    following = (rank + 1) % size
    outgoing = socket.create_connection((_host(mine, following), ports[following]))
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

    return {"TCP": exchange}


def torch(mine, shapes: list[tuple[int, ...]]) -> dict:
    """All-reduces and pair exchanges by `torch.distributed` over gloo; nothing without torch."""
    rank, size = mine.cluster.rank, mine.cluster.size
    found = importlib.util.find_spec("torch") is not None
    if not all(mine.gather(found, "PyTorch", 600)):
        return {}
    import torch as pytorch
    from torch import distributed

    # The interface that leads to the others, not the one that the host's name stands for.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if _host(mine, 0) == "127.0.0.1" else "eth0")
    address = f"tcp://{_host(mine, 0)}:{_free_port(mine)}"
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


def decent_dp(mine, shapes: list[tuple[int, ...]]) -> dict:
    """Steps of Decent-DP without computation on a one-peer graph; nothing where it cannot run.

    It needs the process group that `torch` has made, and a power of two of ranks. A step mixes,
    updates, and starts the next exchange; the action waits for that one, too.
    """
    found = importlib.util.find_spec("decent_dp") is not None
    if not all(mine.gather(found, "Decent-DP", 600)) or mine.cluster.size & (mine.cluster.size - 1):
        return {}
    import loguru
    import torch as pytorch
    from decent_dp.ddp import DecentralizedDataParallel

    class Parameters(pytorch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = pytorch.nn.ParameterList(pytorch.zeros(shape) for shape in shapes)

        def forward(self):
            return sum(part.sum() for part in self.parts)

    loguru.logger.remove()
    model = DecentralizedDataParallel(
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


def _free_port(mine) -> int:
    with socket.socket() as probe:
        probe.bind((_host(mine, mine.cluster.rank), 0))
        return mine.gather(probe.getsockname()[1], "the ports", 600)[0]
