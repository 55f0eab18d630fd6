"""Calls through a rendezvous: both sides dial, and whoever is faster, one is the caller and the other is called."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

import crust

from .node_support import eventually, node, soon

EVERY_LOOP = True


@contextlib.asynccontextmanager
async def neighbours(transports: list[str]) -> AsyncIterator[tuple[crust.Node, crust.Node]]:
    """Two nodes that know nothing but a rendezvous."""
    async with node(transports=transports) as rendezvous:
        known = [str(await rendezvous.contact())]
        async with (
            node(bootstrap=known, transports=transports) as alice,
            node(bootstrap=known, transports=transports) as bob,
        ):
            await soon(alice.bootstrapped())
            await soon(bob.bootstrapped())
            yield alice, bob


async def exchange(ours: crust.Connection, theirs: crust.Connection) -> None:
    await ours.send(b"question")
    assert (await soon(theirs.receive())).data == b"question"
    await theirs.send(b"answer")
    assert (await soon(ours.receive())).data == b"answer"


ways = pytest.mark.parametrize("transports", [["tcp"], ["utp"], ["tcp", "utp"]], ids="+".join)


@ways
async def test_who_called_is_told_rightly(transports: list[str]) -> None:
    """The called side dials, too, and may even be the faster one: it is called all the same."""
    for _ in range(4):
        async with neighbours(transports) as (alice, bob):
            at_alice, at_bob = alice.events(), bob.events()
            ours = await soon(alice.connect(bob.id))
            theirs = await soon(anext(bob))
            assert (ours.peer, theirs.peer) == (bob.id, alice.id)
            await exchange(ours, theirs)
            for events, accepted in ((at_alice, False), (at_bob, True)):
                event = await soon(anext(events))
                assert isinstance(event, crust.PeerConnected)
                assert event.accepted is accepted
            unwanted = asyncio.create_task(anext(aiter(alice)))  # type: ignore[arg-type]
            done, _ = await asyncio.wait((unwanted,), timeout=0.05)
            assert not done
            unwanted.cancel()


@ways
async def test_who_decides_first_is_not_asked_about_a_peer_that_it_calls(transports: list[str]) -> None:
    async with neighbours(transports) as (alice, bob):
        knocking = asyncio.ensure_future(anext(aiter(alice.incoming())))
        ours = await soon(alice.connect(bob.id))
        await exchange(ours, await soon(anext(bob)))
        assert not knocking.done()
        knocking.cancel()


@ways
async def test_both_call(transports: list[str]) -> None:
    async with neighbours(transports) as (alice, bob):
        ours, theirs = await soon(asyncio.gather(alice.connect(bob.id), bob.connect(alice.id)))
        await exchange(ours, theirs)
        assert [len([c for c in each.connections if c.peer in (alice.id, bob.id)]) for each in (alice, bob)] == [1, 1]


async def test_a_peer_that_is_starting() -> None:
    """Both are started by hand: who is first does not have to wait to be told so."""
    async with node() as rendezvous:
        known = [str(await rendezvous.contact())]
        async with node(bootstrap=known) as alice:
            identity = crust.Identity.generate()
            dial = asyncio.create_task(alice.connect(identity.id))
            await eventually(lambda: rendezvous.stats["rendezvous.not_here"] >= 2)
            assert not dial.done()
            async with node(identity=identity, bootstrap=known) as bob:
                ours = await soon(dial)
                await exchange(ours, await soon(anext(bob)))
