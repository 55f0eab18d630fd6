"""A node that decides first, called through a rendezvous: its addresses are withheld until it has agreed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

import crust

from .node_support import eventually, node, soon

EVERY_LOOP = True


@contextlib.asynccontextmanager
async def callers(
    transport: str = "tcp", **changes: Any
) -> AsyncIterator[tuple[crust.Node, crust.Node, AsyncIterator[crust.Incoming]]]:
    """Alice and Bob know the same rendezvous; Bob decides about each peer."""
    settings = {"transports": [transport], **changes}
    async with node(transports=[transport]) as rendezvous:
        known = [str(await rendezvous.contact())]
        async with node(bootstrap=known, **settings) as alice, node(bootstrap=known, **settings) as bob:
            knocking = bob.incoming()
            await soon(alice.bootstrapped())
            await soon(bob.bootstrapped())
            yield alice, bob, knocking


@pytest.mark.parametrize("transport", ["tcp", "utp"])
async def test_accepted(transport: str) -> None:
    async with callers(transport) as (alice, bob, knocking):
        dial = asyncio.create_task(alice.connect(bob.id, timeout=20))
        incoming = await soon(anext(knocking))
        assert incoming.peer == alice.id
        assert incoming.address[0] == "127.0.0.1"
        assert bob.stats["offer.answered"] == 0
        theirs = await soon(incoming.accept())
        ours = await soon(dial)
        assert (ours.peer, theirs.peer) == (bob.id, alice.id)
        await ours.send(b"hello")
        assert (await soon(theirs.receive())).data == b"hello"
        assert bob.stats["offer.answered"] == 1


@pytest.mark.parametrize("decision", ["refuse", "ignore"])
async def test_turned_down(decision: str) -> None:
    """The peer cannot tell it from somebody who is not there; the rendezvous cannot either."""
    async with callers() as (alice, bob, knocking):
        dial = asyncio.create_task(alice.connect(bob.id, timeout=20))
        getattr(await soon(anext(knocking)), decision)()
        with pytest.raises(crust.ConnectError, match="did not answer") as failure:
            await soon(dial)
        assert failure.value.report is not None
        assert failure.value.report.attempts == []
        assert bob.stats["offer.answered"] == 0
        assert [connection.peer for connection in bob.connections] != [alice.id]


async def test_two_rendezvous_are_one_question() -> None:
    async with node() as second:
        known = [str(await second.contact())]
        async with callers() as (alice, bob, knocking), node(bootstrap=known):
            dial = asyncio.create_task(alice.connect(await bob.contact(), timeout=20))
            theirs = await soon((await soon(anext(knocking))).accept())
            await soon(dial)
            another = asyncio.create_task(anext(knocking))
            await soon(theirs.ping())
            assert not another.done()
            another.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await another


async def test_whom_we_dial_ourselves_is_not_asked_about() -> None:
    async with callers() as (alice, bob, knocking):
        asking = asyncio.create_task(anext(knocking))
        ours, theirs = await soon(asyncio.gather(alice.connect(bob.id), bob.connect(alice.id)))
        assert (ours.peer, theirs.peer) == (bob.id, alice.id)
        await soon(ours.ping())
        assert not asking.done()
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


async def test_undecided_calls_end_with_the_node() -> None:
    async with callers() as (alice, bob, knocking):
        dial = asyncio.create_task(alice.connect(bob.id, timeout=20))
        await soon(anext(knocking))
        await eventually(lambda: bob.stats["offer.withheld"] == 1)
        await soon(bob.close())
        with pytest.raises(crust.ConnectError):
            await soon(dial)
