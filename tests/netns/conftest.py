"""Labs for tests; where this machine cannot hold one, the test is skipped and says why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from crust.testing.natlab import Host, Lab, LabUnavailable

from .sockets import Datagrams, OpenDatagrams


@contextlib.asynccontextmanager
async def open_lab(made: Lab) -> AsyncIterator[Lab]:
    try:
        await made.__aenter__()
    except LabUnavailable as error:
        pytest.skip(str(error))
    try:
        yield made
    finally:
        await made.aclose()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """A lab with the usual delays: 40 ms between two sites, 20 ms to a public host at the core."""
    async with open_lab(Lab(seed=1)) as made:
        yield made


@pytest.fixture
async def near() -> AsyncIterator[Lab]:
    """A lab without delay."""
    async with open_lab(Lab(delay=0.0, seed=1)) as made:
        yield made


@pytest.fixture
async def datagrams() -> AsyncIterator[OpenDatagrams]:
    """Opens UDP sockets on hosts."""
    opened: list[Datagrams] = []

    async def open_one(host: Host, port: int = 0) -> Datagrams:
        opened.append(await Datagrams.open(host, port))
        return opened[-1]

    yield open_one
    for each in opened:
        each.transport.close()
    # The transports close their sockets in the next turn of the loop.
    await asyncio.sleep(0)
