"""Runs a command's coroutine; Ctrl-C and SIGTERM end it within 2 s, whatever it is stuck in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

__all__ = ["INTERRUPTED", "Interrupts", "new_event_loop", "run_coroutine", "stuck_threads"]

INTERRUPTED = 130

# How long tasks that a command left behind may take to end.
_TIDY_SECONDS = 1.0
# So long after the first signal the process ends, even if something hangs in a read from a terminal or in a dead disk.
# The promise is 2 s.
_HARD_SECONDS = 1.5
_CLOSE_SECONDS = 0.3
_CLOSING = "crust-closing"
_MOST_COMPLAINTS = 10


class Interrupts:
    """SIGINT and SIGTERM: the first cancels the command, the second or a time limit ends the process."""

    def __init__(self, code: int = INTERRUPTED) -> None:
        self.code = code
        self.received = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._watchdog: threading.Timer | None = None

    def install(self) -> None:
        """Take over the two signals; does nothing outside the main thread (tests, embedders)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def finish(self) -> None:
        """The command has ended: stop the clock, and give the signals back to who had them."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def attach(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        """From here on a signal cancels `task` instead of raising KeyboardInterrupt."""
        self._loop, self._task = loop, task
        if self.received:
            task.cancel()

    def detach(self) -> None:
        """The task is done."""
        self._loop = self._task = None

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.received:
            os._exit(self.code)
        self.received = True
        self._watchdog = threading.Timer(_HARD_SECONDS, os._exit, (self.code,))
        self._watchdog.daemon = True
        self._watchdog.start()
        if self._loop is not None and self._task is not None:
            # Wakes the loop too, which a plain cancel from a signal handler would not.
            self._loop.call_soon_threadsafe(self._task.cancel)
        else:
            raise KeyboardInterrupt


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where it is installed, else asyncio's own."""
    if sys.platform != "win32":
        try:
            import uvloop
        except ImportError:
            pass
        else:
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()


def run_coroutine(
    main: Coroutine[Any, Any, int], interrupts: Interrupts, complain: Callable[[BaseException], None] | None = None
) -> int:
    """Run `main` to its end and return its exit code, or that of an interruption.

    Unlike `asyncio.run` this never waits for threads of the default executor: one may hang in DNS for a minute.

    Args:
        main: the command.
        interrupts: cancels it.
        complain: told of faults in callbacks and forgotten tasks, each once; asyncio logs a traceback for them if None.
    """
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    if complain is not None:
        loop.set_exception_handler(_Complaints(complain))
    try:
        task = loop.create_task(main)
        interrupts.attach(loop, task)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            if interrupts.received:
                return interrupts.code
            raise
        finally:
            interrupts.detach()
            loop.run_until_complete(_tidy_up(loop))
    finally:
        asyncio.set_event_loop(None)
        _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Close the loop; `stuck_threads` is true afterwards if that hangs."""
    if isinstance(loop, asyncio.BaseEventLoop):
        loop.close()
        return
    # uvloop waits for a name that is being looked up.
    closing = threading.Thread(target=loop.close, name=_CLOSING, daemon=True)
    closing.start()
    closing.join(_CLOSE_SECONDS)


class _Complaints:
    """Passes on each fault once: one in a pump would fill the screen."""

    def __init__(self, complain: Callable[[BaseException], None]) -> None:
        self._complain = complain
        self._said: set[str] = set()

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and repr(error) not in self._said and len(self._said) < _MOST_COMPLAINTS:
            self._said.add(repr(error))
            self._complain(error)


async def _tidy_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left and give it a moment."""
    rest = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_TIDY_SECONDS):
            if rest:
                await asyncio.wait(rest)
            await loop.shutdown_asyncgens()


def stuck_threads(patience: float = 0.2) -> bool:
    """True if threads for which the interpreter would wait at its end do not end by themselves.

    Closing the loop has told those of its executor to go; one that hangs in a system call stays.
    """
    deadline = time.monotonic() + patience
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and (not thread.daemon or thread.name == _CLOSING):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return True
    return False
