"""Share worker processes between tests: they stay in one cluster and run function after function.

Starting a cluster takes longer than most tests. A test runs in a pool unless it tests the start or
the end of a process, or changes something that `_tidy` does not restore:

    def test_all_agree(pools):
        results = pools.run(_my_function, 2, H=3)

After each function all ranks exchange a message. This shows that all are idle at the same point,
and that exchanges still work. If a function fails or hangs, its test fails with the rank and its
last lines, as with `workers.run`. Its pool is closed, and the next test gets a new one.
"""

import contextlib
import functools
import json
import os
import pathlib
import select
import signal
import socket
import sys
import tempfile
import traceback
import uuid

_ROOT = pathlib.Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

from tests.support import addresses, deadlines, nursery, product, workers  # noqa: E402

_LAST_LINES = 20

# Most workers of a pool that is kept. Tests need larger ones once or twice; closing these
# immediately frees their memory.
_KEPT = 4


class PoolError(AssertionError):
    """Signal that a function failed or hung in a pool, with the rank and its last lines."""


class Pools:
    """Hold pools by number of workers and devices; each starts when it is first needed."""

    def __init__(self):
        self._pools: dict[tuple[int, int], Pool] = {}

    def run(
        self,
        function,
        size: int,
        deadline_s: float = workers.DEADLINE_S,
        devices: int = 1,
        **arguments,
    ) -> list:
        """Return the results of `function(cluster, **arguments)` on every rank, in rank order.

        Args:
          function: a function at the top of a module.
          size: number of workers.
          deadline_s: the deadline in seconds on an idle machine.
          devices: number of logical CPU devices of each process.
          **arguments: arguments of the function, which JSON can hold.

        Raises:
          PoolError: the function failed or hung on a rank.
        """
        key = size, devices
        if key not in self._pools:
            self._pools[key] = Pool(size, devices)
        kept = False
        try:
            results = self._pools[key].run(function, deadline_s, arguments)
            kept = size <= _KEPT
            return results
        finally:
            if not kept:
                self._pools.pop(key).close()

    def close(self):
        """Close all pools."""
        while self._pools:
            self._pools.popitem()[1].close()


class Pool:
    """Hold the worker processes of one cluster, which have called `initialize`.

    Args:
      size: number of workers.
      devices: number of logical CPU devices of each process.

    Attributes:
      pids: process ids, by rank.
    """

    def __init__(self, size: int, devices: int = 1):
        self._size = size
        self._children: list[nursery.Child] = []
        self._connections: list[socket.socket] = []
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pool"))
            names = [f"{self._folder}/{rank}" for rank in range(size)]
            self._outputs = [stack.enter_context(open(name, "x+b")) for name in names]
            stack.callback(self._end)
            self._start(devices)
            self._stack = stack.pop_all()

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def run(self, function, deadline_s: float, arguments: dict) -> list:
        """Return the results of `function(cluster, **arguments)` on every rank, in rank order."""
        name = f"{function.__module__}:{function.__name__}"
        request = [name, arguments]
        for connection in self._connections:
            with contextlib.suppress(BrokenPipeError):  # the process has ended; reported below
                _send(connection, request)
        answers = self._answers(deadline_s)
        print(self._said(), end="")  # pytest captures it, and shows it if the test fails
        return answers

    def close(self):
        """End the processes."""
        self._stack.close()

    def _start(self, devices: int):
        with socket.socket(socket.AF_UNIX) as listener:
            name = uuid.uuid4().hex
            listener.bind(f"\0{name}")  # abstract: the path of a folder may be too long
            listener.listen(self._size)
            given = addresses.free(self._size)
            threads = str(max(1, (os.cpu_count() or 1) // self._size))
            for rank in range(self._size):
                environment = {
                    **os.environ,
                    "TF_CONFIG": product.tf_config(given, rank),
                    "TF_CPP_MIN_LOG_LEVEL": "2",
                    "TF_NUM_INTRAOP_THREADS": threads,
                    "PYTHONUNBUFFERED": "1",
                }
                with open(f"{self._folder}/{rank}", "ab") as output:  # separate file position
                    child = nursery.start([__file__, name, devices], environment, output)
                self._children.append(child)
            listener.setblocking(False)
            connections = {}
            deadline = deadlines.Deadline(workers.DEADLINE_S)
            while len(connections) < self._size:
                deadline.until(lambda: self._accept(listener, connections), self._said)
            self._connections = [connections[rank] for rank in range(self._size)]

    def _accept(self, listener, connections) -> bool:
        self._check_alive()
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return False
        connection.settimeout(deadlines.scaled(60))  # for a request, and for the rest of an answer
        connections[json.loads(_line(connection))] = connection
        return True

    def _answers(self, deadline_s: float) -> list:
        """Wait until all ranks have answered, one has failed, or time is up."""
        waiting = {connection: rank for rank, connection in enumerate(self._connections)}
        answers = [None] * self._size
        deadline = deadlines.Deadline(deadline_s)
        while waiting:
            ready, _, _ = select.select(list(waiting), [], [], min(1.0, deadline.remaining()))
            for connection in ready:
                rank = waiting.pop(connection)
                line = b""
                try:
                    line = _line(connection)
                except ConnectionResetError:
                    pass
                except TimeoutError:
                    self._fail(rank, "with an answer that does not end")
                if not line:
                    self._fail(rank, f"with exit code {self._children[rank].wait(30)}")
                answers[rank], error = json.loads(line)
                if error:
                    self._fail(rank, f"with\n{error}")
            if waiting and not deadline.remaining():
                late = ", ".join(str(rank) for rank in waiting.values())
                self._fail(next(iter(waiting.values())), f"rank {late} had not answered in time")
        return answers

    def _check_alive(self):
        for rank, child in enumerate(self._children):
            if child.poll() is not None:
                self._fail(rank, f"with exit code {child.returncode}, before it had started")

    def _fail(self, rank: int, how: str):
        said = self._said()
        print(said, end="")
        own = [line for line in said.splitlines() if line.startswith(f"[{rank}] ")]
        last = "\n".join(own[-_LAST_LINES:])
        raise PoolError(f"Rank {rank} failed first, {how}\nIts last lines:\n{last}")

    def _said(self) -> str:
        """Return the ranks' output since the last call, each line with its rank."""
        said = ""
        for rank, output in enumerate(self._outputs):
            new = output.read().decode(errors="replace")
            said += "".join(f"[{rank}] {line}\n" for line in new.splitlines())
        return said

    def _end(self):
        for connection in self._connections:
            connection.close()
        for child in self._children:
            child.kill()
            child.wait()


def _line(connection: socket.socket) -> bytes:
    """Return the line that the other side has sent, or nothing if it has closed the connection."""
    with connection.makefile("rb") as file:  # reads no further: one line at a time is on its way
        return file.readline()


def _send(connection: socket.socket, value: object):
    connection.sendall(json.dumps(value).encode() + b"\n")  # whole, also if a signal interrupts it


# ---- In a worker --------------------------------------------------------------------------------


def _main(name: str, devices: str):
    cluster = workers.start(int(devices))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{name}")
        _send(connection, cluster.rank)
        for count, line in enumerate(iter(functools.partial(_line, connection), b"")):
            _send(connection, _answer(cluster, count, *json.loads(line)))
    os._exit(0)  # the pool is closed; skip the orderly end of the cluster


def _answer(cluster, count: int, name: str, arguments: dict) -> tuple[object, str | None]:
    try:
        with _tidy():
            result = workers.find(name)(cluster, **arguments)
        everyone = product.active().gather(count, "the pool's check", deadlines.scaled(60))
        if everyone != [count] * cluster.size:
            raise RuntimeError(f"The ranks are not at the same function: {everyone}.")
    except BaseException:
        return None, traceback.format_exc()
    return result, None


@contextlib.contextmanager
def _tidy():
    """Restore what a function may change in its process."""
    import keras
    import numpy as np
    from absl import flags
    from absl.testing import flagsaver

    before = signal.getsignal(signal.SIGTERM)
    environment, arguments, policy = dict(os.environ), list(sys.argv), keras.config.dtype_policy()
    keras.utils.clear_session(free_memory=False)
    np.random.seed(None)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["a worker"])
    with flagsaver.flagsaver():
        yield
    keras.config.set_dtype_policy(policy)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = arguments
    if signal.getsignal(signal.SIGTERM) != before:
        raise RuntimeError("The function has left a handler of SIGTERM behind.")


if __name__ == "__main__":
    _main(*sys.argv[1:])
