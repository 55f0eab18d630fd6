"""`node.incoming()`: nothing is shown before the application has decided."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

import crust
from crust.errors import LocalProtocolError, NotAuthenticError, RefusedError
from tests.integration.node_support import Proxy, elapsed_below, eventually, node, nothing_left, port_of, soon, target

EVERY_LOOP = True


@contextlib.asynccontextmanager
async def knocking(
    **settings: object,
) -> AsyncIterator[tuple[crust.Node, crust.Node, crust.Incoming, asyncio.Task[crust.Connection]]]:
    """Alice dials Bob, who has not decided yet."""
    async with node() as alice, node(**{"handshake_timeout": 1, **settings}) as bob:
        waiting = bob.incoming()
        dial = asyncio.create_task(alice.connect(await bob.contact(), timeout=10))
        incoming = await soon(anext(waiting))
        try:
            yield alice, bob, incoming, dial
        finally:
            dial.cancel()
            await asyncio.wait([dial])


async def test_accept() -> None:
    async with nothing_left(), knocking() as (alice, bob, incoming, dial):
        assert incoming.peer == alice.id
        assert incoming.address[0] == "127.0.0.1"
        assert not dial.done()
        assert not bob.connections
        theirs = await soon(incoming.accept())
        ours = await soon(dial)
        await ours.send(b"x")
        assert (await soon(theirs.receive())).data == b"x"
        assert bob.connections == [theirs]
        with pytest.raises(TimeoutError):  # it is not handed out a second time
            await soon(anext(bob), 0.05)


async def test_refuse() -> None:
    async with nothing_left(), knocking() as (_, bob, incoming, dial):
        incoming.refuse()
        with elapsed_below(3), pytest.raises(RefusedError):
            await soon(dial)
        assert bob.stats["refused.refused"] == 1


async def test_ignore() -> None:
    async with nothing_left(), knocking(handshake_timeout=1) as (_, bob, incoming, dial):
        incoming.ignore()
        with elapsed_below(4), pytest.raises(NotAuthenticError):
            await soon(dial)
        assert bob.stats["refused.ignored"] == 1


async def test_undecided() -> None:
    async with nothing_left(), knocking(incoming_timeout=0.3) as (_, bob, incoming, dial):
        with elapsed_below(4), pytest.raises(NotAuthenticError):
            await soon(dial)
        assert bob.stats["refused.undecided"] == 1
        with pytest.raises(crust.PeerLost):
            await soon(incoming.accept())


@pytest.mark.parametrize("first", ["accept", "refuse", "ignore"])
async def test_only_once(first: str) -> None:
    async with knocking() as (_, _, incoming, dial):
        result = getattr(incoming, first)()
        if first == "accept":
            await soon(result)
        with pytest.raises(LocalProtocolError):
            await incoming.accept()
        with pytest.raises(LocalProtocolError):
            incoming.refuse()
        with pytest.raises(LocalProtocolError):
            incoming.ignore()
        await soon(asyncio.wait([dial]))


async def test_the_peer_goes_away_while_it_waits() -> None:
    async with nothing_left(), knocking() as (_, bob, incoming, dial):
        dial.cancel()
        await eventually(lambda: bob.stats["handshake.hung_up"] == 1)
        with pytest.raises(crust.PeerLost):
            await soon(incoming.accept())


async def test_cancelled_accept_refuses() -> None:
    async with nothing_left(), knocking() as (_, bob, incoming, dial):
        accepting = asyncio.create_task(incoming.accept())
        await asyncio.sleep(0)
        accepting.cancel()
        await asyncio.wait([accepting])
        await soon(asyncio.wait([dial]))
        await eventually(lambda: not bob.connections)


async def test_the_node_closes_while_peers_wait() -> None:
    async with nothing_left(), node() as alice:
        async with node() as bob:
            waiting = bob.incoming()
            dial = asyncio.create_task(alice.connect(await bob.contact(), timeout=10))
            incoming = await soon(anext(waiting))
        with pytest.raises(StopAsyncIteration):
            await soon(anext(waiting))
        with elapsed_below(3), pytest.raises(NotAuthenticError):
            await soon(dial)
        with pytest.raises(crust.PeerLost):
            await soon(incoming.accept())


async def test_a_resumed_connection_is_not_asked_about() -> None:
    async with node() as alice, node() as bob, Proxy(port_of(bob)) as proxy:
        waiting = bob.incoming()
        dial = asyncio.create_task(alice.connect(target(bob.id, proxy.port)))
        theirs = await soon((await soon(anext(waiting))).accept())
        ours = await soon(dial)
        await soon(ours.ping())
        proxy.reset()
        await ours.send(b"x")
        assert (await soon(theirs.receive())).data == b"x"


async def test_a_restarted_node_asks_about_a_stale_session_and_learns_that_it_is_gone() -> None:
    """The peer goes on with a session that this node does not know: accepting it brings no connection."""
    identity = crust.Identity.generate()
    async with node() as alice, Proxy() as proxy:
        async with node(identity, close_timeout=0.3) as bob:
            proxy.upstream = port_of(bob)
            ours = await soon(alice.connect(target(bob.id, proxy.port)))
            await soon(ours.ping())
            await proxy.stop()
            await eventually(lambda: ours.path is None)
        async with node(identity) as bob:
            waiting = bob.incoming()
            proxy.upstream = port_of(bob)
            await proxy.restart()
            incoming = await soon(anext(waiting))
            with pytest.raises(crust.PeerLost):
                await soon(incoming.accept(), 5)
            with pytest.raises(crust.PeerLost, match="restarted"):
                await soon(ours.receive())


async def test_only_so_many_may_wait() -> None:
    async with node(max_incoming=3, handshake_timeout=2) as bob:
        waiting = bob.incoming()
        contact = await bob.contact()
        nodes = [node(listen=[]) for _ in range(6)]
        for one in nodes:
            await one.start()
        dials = [asyncio.create_task(one.connect(contact)) for one in nodes]
        try:
            await eventually(lambda: bob.stats["refused.busy"] == 3)
            refused = [dial for dial in dials if dial.done()]
            await eventually(lambda: len([dial for dial in dials if dial.done()]) == 3)
            refused = [dial for dial in dials if dial.done()]
            assert all(isinstance(dial.exception(), RefusedError) for dial in refused)
            for _ in range(3):
                await soon((await soon(anext(waiting))).accept())
            await soon(asyncio.wait(dials))
            assert len(bob.connections) == 3
        finally:
            for one in nodes:
                await one.close()


async def test_those_who_knock_and_leave_hold_nothing() -> None:
    async with nothing_left(), node() as bob:
        bob.incoming()  # nobody iterates
        contact = await bob.contact()
        async with node(listen=[]) as alice:
            for n in range(30):
                dial = asyncio.create_task(alice.connect(contact))
                await eventually(lambda: len(bob._acceptor._undecided) == 1)  # type: ignore[union-attr]
                dial.cancel()
                await asyncio.wait([dial])
                await eventually(lambda: not bob._acceptor._undecided)  # type: ignore[union-attr]
                assert bob.stats["handshake.hung_up"] == n + 1
        assert not bob._acceptor._knocking  # type: ignore[union-attr]


async def test_refused_ones_stand_in_the_table_of_half_open_handshakes() -> None:
    """Until they are closed at a random moment they hold a socket, and so must be counted."""
    async with knocking() as (_, bob, incoming, _):
        assert bob.stats["handshake.half_open"] == 0
        incoming.refuse()
        assert bob.stats["handshake.half_open"] == 1


async def test_many_iterators_share_the_peers() -> None:
    async with node() as bob:
        iterators = [bob.incoming(), bob.incoming()]
        waiting = [asyncio.create_task(anext(iterator)) for iterator in iterators]
        contact = await bob.contact()
        async with node(listen=[]) as one, node(listen=[]) as two:
            dials = [asyncio.create_task(peer.connect(contact)) for peer in (one, two)]
            found = await soon(asyncio.gather(*waiting))
            assert {incoming.peer for incoming in found} == {one.id, two.id}
            await soon(asyncio.gather(*(incoming.accept() for incoming in found)))
            await soon(asyncio.gather(*dials))
