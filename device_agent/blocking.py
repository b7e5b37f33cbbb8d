"""Blocking work beside the event loop, in threads that never delay the end of the process."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A thread that still connects writes nothing once it is told to stop, so it need not be waited for longer.
STOP_PATIENCE_S = 5.0


class Stopper:
    """Tells a thread to stop, and wakes it where it waits for the network."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self.is_set = False

    def watch(self, sock: socket.socket) -> None:
        """The thread is about to wait on `sock`."""
        with self._lock:
            self._sock = sock
            if self.is_set:
                self._wake()

    def set(self) -> None:
        with self._lock:
            self.is_set = True
            self._wake()

    def _wake(self) -> None:
        if self._sock is None:
            return
        try:
            # Of the connection itself: SSLSocket.shutdown would first take TLS away under the thread that reads.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            # Closed already: there is nothing to wake from.
            self._sock = None


async def run_blocking(work: Callable[[], T]) -> T:
    """The result of `work`, run in a daemon thread. Cancelling abandons the thread; stop it by other means first."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T may itself be None

    def body() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # delivered to the awaiting task, whatever it is
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=body, name="blocking", daemon=True).start()
    return await future


async def stoppable(work: Callable[[Stopper], T]) -> T:
    """The result of blocking work; cancelling stops it and waits for its end, so that two never write the same file."""
    stopping = Stopper()
    task = asyncio.create_task(run_blocking(lambda: work(stopping)))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stopping.set()
        # How it ends is of no interest any more; asyncio would log an error that nobody looked at.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.wait([task], timeout=STOP_PATIENCE_S)
        raise
