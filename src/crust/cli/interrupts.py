"""Ctrl-C and SIGTERM end a command within 2 s, whatever it is stuck in. Without asyncio: some commands need none."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ["CLOSING", "INTERRUPTED", "Interrupts", "stuck_threads"]

INTERRUPTED = 130

# The name of threads that close an event loop.
CLOSING = "crust-closing"

# So long after the first signal the process ends, even if something hangs in a read from a terminal or in a dead disk.
# The promise is 2 s.
_HARD_SECONDS = 1.5


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


def stuck_threads(patience: float = 0.2) -> bool:
    """True if threads for which the interpreter would wait at its end do not end by themselves.

    Closing the loop has told those of its executor to go; one that hangs in a system call stays.
    """
    deadline = time.monotonic() + patience
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and (not thread.daemon or thread.name == CLOSING):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return True
    return False
