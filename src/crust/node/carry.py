"""Work that is not given up half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["carry_through"]

T = TypeVar("T")


async def carry_through(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work that is soon done, and that would leave something behind if it was cancelled.

    Raises:
        CancelledError: somebody wanted to cancel it; the work is done all the same.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that nobody complains
        raise cancelled
    return task.result()
