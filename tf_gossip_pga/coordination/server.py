"""Answer requests from other processes of the job, on a thread with its own event loop.

The server sends a greeting with a nonce to every process that connects. The process must then send
one request that proves that it knows the server's key (`secret`). If it sends anything else, the
server closes the connection.

The number of connections and the duration of each are limited, so processes outside the job cannot
exhaust the file descriptors of a training process. When there are more connections than the limit,
the server closes the oldest one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tf_gossip_pga.coordination import secret as secret_lib
from tf_gossip_pga.coordination.messages import Message

_Result = TypeVar("_Result")

Handler = Callable[[Message], Message]

MESSAGE_BYTES = 1 << 16  # enough for the endpoints of thousands of workers

# Exceptions of a connection that fails, takes too long, or carries no message of this job.
BROKEN = (OSError, ValueError, RecursionError)

# System errors which mean that there is no room for a connection, and the pause, in seconds, after
# any error in accepting a connection.
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RETRY_S = 0.1

# The limit on simultaneous connections is `_STRANGERS`, plus `_OF_EACH_WORKER` for each worker. A
# worker may ask for the status, want a view, report an exception, and report its end, all at once.
_STRANGERS = 32
_OF_EACH_WORKER = 4


class Server:
    """Answer requests that arrive at a socket.

    Each kind of request is an entry of `handlers`. Handlers run on the server's only thread, so
    they must be quick and must never block. A handler raises `ValueError` for an invalid request.

    Args:
      listener: a listening socket. The server closes it.
      key: the key that askers must know.
      greeting: sent to every process that connects (see `secret` for the rest of the conversation).
      size: number of workers.
      serve_s: maximum duration of a connection, in seconds.

    Attributes:
      handlers: functions by kind of request. Each takes a request and returns the answer.
    """

    def __init__(
        self, listener: socket.socket, key: bytes, greeting: bytes, size: int, serve_s: float
    ) -> None:
        self.handlers: dict[str, Handler] = {}
        self._listener = listener
        self._key = key
        self._greeting = greeting
        self._most = _STRANGERS + _OF_EACH_WORKER * size
        self._serve_s = serve_s
        self._serving: dict[asyncio.Task[None], None] = {}  # the oldest first
        # Create a new event loop, separate from one that the calling thread may have.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="gossip-channel", daemon=True)
        self._thread.start()

    def run(
        self, coroutine: Coroutine[Any, Any, _Result], timeout_s: float | None = None
    ) -> _Result:
        """Run a coroutine on the server's thread, and return its result.

        Args:
          coroutine: the coroutine.
          timeout_s: seconds to wait for the result, or None for no limit.

        Raises:
          TimeoutError: there is no result after `timeout_s`.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the server's thread until the server is closed."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """End the thread, and close its sockets."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join()

    # ---- On the server's thread -----------------------------------------------------------------

    def _run(self) -> None:
        with self._runner:
            self._runner.run(self._accept_until_closed())

    async def _accept_until_closed(self) -> None:
        with self._listener:
            self._listener.setblocking(False)
            accepting = asyncio.create_task(self._accept())
            await self._closed.wait()
            accepting.cancel()
            await asyncio.sleep(0)  # let tasks start, so that they close their connections
            self._drop(len(self._serving))
            await asyncio.gather(accepting, *self._serving, return_exceptions=True)
            await asyncio.sleep(0)  # the loop closes the sockets in its next iteration

    async def _accept(self) -> None:
        while True:
            await self._readable()
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:  # the peer has hung up
                continue
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._drop(len(self._serving))
                await asyncio.sleep(_RETRY_S)
                continue
            task = self._loop.create_task(self._serve(connection))
            self._serving[task] = None
            task.add_done_callback(self._serving.pop)
            self._drop(len(self._serving) - self._most)

    async def _readable(self) -> None:
        """Wait until a connection is pending.

        The event loop's `sock_accept` is not used, because it could lose a connection that it has
        accepted.
        """
        is_readable = self._loop.create_future()
        self._loop.add_reader(self._listener, _settle, is_readable)
        try:
            await is_readable
        finally:
            self._loop.remove_reader(self._listener)

    def _drop(self, count: int) -> None:
        """Close the oldest connections.

        They hardly ever belong to workers, whose connections are served within milliseconds.
        """
        for task in list(self._serving)[: max(0, count)]:
            task.cancel()

    async def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(*BROKEN):
            async with asyncio.timeout(self._serve_s):
                reader, writer = await asyncio.open_connection(sock=connection, limit=MESSAGE_BYTES)
                with contextlib.closing(writer):
                    nonce = secret_lib.nonce()
                    writer.write(self._greeting + b" " + nonce.encode() + b"\n")
                    line = await reader.readline()
                    request, to = secret_lib.open_request(self._key, nonce, line)
                    answer = self._answer(request)
                    writer.write(secret_lib.seal_answer(self._key, to, answer))
                    await writer.drain()

    def _answer(self, request: Message) -> Message:
        kind = request.pop("kind", None)
        if not isinstance(kind, str) or kind not in self.handlers:
            raise ValueError(f"unknown kind of request: {kind!r}")
        try:
            return self.handlers[kind](request)
        except ValueError:
            raise
        except Exception:  # the others ask again, and this thread must survive
            traceback.print_exc()
            raise ValueError(f"failed to answer {kind}") from None


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
