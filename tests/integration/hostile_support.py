"""A node under attack, a stranger at its door, and a friend that must get through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import crust
from tests.integration.node_support import (
    elapsed_below,
    eventually,
    node,
    nothing_left,
    port_of,
    soon,
)


async def assert_friend(bob: crust.Node) -> None:
    """A friend still gets its connection, and soon."""
    async with node(listen=[], signing="off") as friend:
        contact = await bob.contact()
        with elapsed_below(1.0):
            ours = await soon(friend.connect(contact))
            await soon(ours.ping())
        theirs = await soon(anext(bob))
        await ours.send(b"hello")
        assert (await soon(theirs.receive())).data == b"hello"
        await soon(ours.close())


@contextlib.asynccontextmanager
async def under_attack(**settings: object) -> AsyncIterator[crust.Node]:
    """A node that must be as well afterwards as it was before."""
    async with nothing_left(), node(**{"signing": "off", "handshake_timeout": 1, **settings}) as bob:
        yield bob


async def counted(bob: crust.Node, name: str, times: int = 1) -> None:
    await eventually(lambda: bob.stats[name] >= times)
    assert bob.stats[name] == times


@contextlib.asynccontextmanager
async def stranger(bob: crust.Node) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bob))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def silence(reader: asyncio.StreamReader) -> None:
    """Nothing comes back, and the connection ends."""
    with contextlib.suppress(OSError):
        assert await soon(reader.read()) == b""
