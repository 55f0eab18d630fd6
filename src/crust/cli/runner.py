"""Runs a command's coroutine, so that Ctrl-C and SIGTERM end it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from crust.cli.interrupts import CLOSING, Interrupts

__all__ = ["new_event_loop", "run_coroutine"]

# How long tasks that a command left behind may take to end.
_TIDY_SECONDS = 1.0
_CLOSE_SECONDS = 0.3
_MOST_COMPLAINTS = 10


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
    closing = threading.Thread(target=loop.close, name=CLOSING, daemon=True)
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
