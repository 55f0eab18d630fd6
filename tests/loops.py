"""The event loops that Crust supports, for a conftest: `from tests.loops import pytest_asyncio_loop_factories`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

try:
    import uvloop
except ImportError:  # the extra `fast` is not installed
    uvloop = None


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Modules that set `EVERY_LOOP` run on uvloop too."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None and getattr(getattr(item, "module", None), "EVERY_LOOP", False):
        loops["uvloop"] = uvloop.new_event_loop
    return loops
