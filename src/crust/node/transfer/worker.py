"""Threads for the disk: a loop never waits for one, and one that hangs in a dead disk keeps no process alive."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

__all__ = ["DiskThread", "ThreadSource", "run_in_thread"]

T = TypeVar("T")


def _start(target: Callable[[], None], name: str) -> None:
    # A daemon, unlike those of an executor: the interpreter does not wait for it.
    threading.Thread(target=target, name=f"crust-{name}", daemon=True).start()


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(callback, *args)


def _settle(future: asyncio.Future[Any], error: BaseException | None, value: Any = None) -> None:
    if not future.done():
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def run_in_thread(function: Callable[..., T], *args: Any) -> T:
    """Await a blocking call in a thread of its own. A cancel leaves the thread to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            value = function(*args)
        except BaseException as error:  # handed on to who waits
            _call(loop, _settle, future, error)
        else:
            _call(loop, _settle, future, None, value)

    _start(work, getattr(function, "__name__", "work"))
    return await future


class ThreadSource(Generic[T]):
    """Iterates over a blocking generator, which runs in a thread some items ahead.

    Args:
        items: runs in the thread, and is closed there.
        ahead: items that it may be ahead of their reader.
    """

    def __init__(self, items: Generator[T, None, None], *, ahead: int = 4) -> None:
        self._loop = asyncio.get_running_loop()
        self._iterator = items
        self._items: deque[T] = deque()
        self._space = threading.Semaphore(ahead)
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        _start(self._work, "source")

    def __aiter__(self) -> ThreadSource[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._ended:
                # The thread may have added its last items between the two looks.
                if self._items:
                    break
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            if not self._items and not self._ended:
                await self._waiter
            self._waiter = None
        self._space.release()
        return self._items.popleft()

    def stop(self) -> None:
        """Let the thread end at its next item."""
        self._stopped = True
        self._space.release()

    def _work(self) -> None:
        try:
            for item in self._iterator:
                self._space.acquire()
                if self._stopped:
                    break
                self._items.append(item)
                self._wake()
        except BaseException as error:  # handed on to the reader
            self._error = error
        finally:
            self._iterator.close()
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            _call(self._loop, _settle, waiter, None)


class DiskThread:
    """One thread that does what it is told, one thing after another, so that what it works on needs no lock.

    Args:
        most_bytes: given by `feed` but not yet done, before `feed` waits.

    Attributes:
        failed: raises the first error of what `feed` handed over, as soon as there is one.
    """

    def __init__(self, *, most_bytes: int = 1 << 20) -> None:
        self._loop = asyncio.get_running_loop()
        self._most_bytes = most_bytes
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any] | None, int] | None]
        self._queue = queue.SimpleQueue()
        self._given = 0
        self._taken = 0
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._last: tuple[Callable[[], object] | None, asyncio.Future[None]]
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.failed.add_done_callback(_look_at)
        _start(self._work, "disk")

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Await a call behind everything that was handed over before. A cancel does not stop the call.

        Raises:
            Exception: what the call raised, or what `feed` would raise: then it is not made.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        future.add_done_callback(_look_at)
        self._queue.put((lambda: function(*args), future, 0))
        return await future

    async def feed(self, function: Callable[[bytes], None], chunk: bytes) -> None:
        """Hand over a call with a chunk of bytes; waits only while too many are under way.

        Raises:
            Exception: the first one that such a call raised; none is made after it.
        """
        self._given += len(chunk)
        self._queue.put((lambda: function(chunk), None, len(chunk)))
        while self._given - self._taken > self._most_bytes and not self.failed.done():
            self._waiter = self._loop.create_future()
            if self._given - self._taken > self._most_bytes:
                await self._waiter
            self._waiter = None
        if self.failed.done():
            self.failed.result()

    def end(self, function: Callable[[], object] | None = None) -> asyncio.Future[None]:
        """Let the thread end after a last call, which is made whatever happened before, and whose errors nobody sees.

        Returns:
            Is done when the thread is.
        """
        ended: asyncio.Future[None] = self._loop.create_future()
        self._last = function, ended
        self._queue.put(None)
        return ended

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            function, future, size = item
            if future is not None:
                self._run(function, future)
            elif self._error is None:
                self._run_fed(function)
            if size > 0:
                self._taken += size
                waiter = self._waiter
                if waiter is not None and self._given - self._taken <= self._most_bytes // 2:
                    _call(self._loop, _settle, waiter, None)
        last, ended = self._last
        with contextlib.suppress(Exception):
            if last is not None:
                last()
        _call(self._loop, _settle, ended, None)

    def _run(self, function: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        error, value = self._error, None
        if error is None:
            try:
                value = function()
            except BaseException as raised:  # handed on to who waits
                error = raised
        _call(self._loop, _settle, future, error, value)

    def _run_fed(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:  # handed on to who feeds
            self._error = error
            _call(self._loop, _settle, self.failed, error)
