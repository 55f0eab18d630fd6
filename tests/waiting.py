"""Waiting for what has no event of its own, without sleeping longer than it takes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT = float(os.environ.get("LIMIT", "20"))
"""Seconds after which something that should happen at once has not happened."""


async def soon(work: Awaitable[T], seconds: float = LIMIT) -> T:
    """What should come at once."""
    async with asyncio.timeout(seconds):
        return await work


async def eventually(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    """Let the event loop run until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def poll(condition: Callable[[], T], seconds: float = LIMIT) -> T:
    """The same without an event loop: for what other processes do to files, of which nobody tells us."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.002)
    return found
