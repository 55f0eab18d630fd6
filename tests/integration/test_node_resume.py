"""Connections whose TCP path dies under them, peers that restart, two programs with one identity."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

import crust
from crust.types import Priority
from tests.integration.node_support import Proxy, eventually, joined, node, nothing_left, port_of, soon, target

EVERY_LOOP = True

KIB = 1024


@contextlib.asynccontextmanager
async def through_proxy(**settings: Any) -> Any:
    """Alice has dialled Bob through a proxy."""
    settings = {"close_timeout": 0.5, **settings}
    async with Proxy() as proxy, node(**settings) as alice, node(**settings) as bob:
        proxy.upstream = port_of(bob)
        ours = await soon(alice.connect(target(bob.id, proxy.port)))
        theirs = await soon(anext(bob))
        yield alice, bob, ours, theirs, proxy


@pytest.mark.parametrize("signing", ["on", "off"])
async def test_resets_under_load_lose_nothing(signing: str) -> None:
    async with nothing_left(), through_proxy(signing=signing) as (alice, bob, ours, theirs, proxy):
        count = 300

        async def send(connection: crust.Connection) -> None:
            for n in range(count):
                await connection.send(n.to_bytes(4, "big") * (1 + n * 977 % 9000), priority=Priority(n % 8))
            await connection.flush()

        async def receive(connection: crust.Connection) -> dict[int, list[bytes]]:
            got: dict[int, list[bytes]] = {}
            for n in range(count):
                message = await connection.receive()
                got.setdefault(message.priority, []).append(message.data)
                if connection is theirs and n % 60 == 30:
                    proxy.reset()
            return got

        results = await soon(asyncio.gather(receive(theirs), receive(ours), send(ours), send(theirs)), 40)
        expected: dict[int, list[bytes]] = {}
        for n in range(count):
            expected.setdefault(n % 8, []).append(n.to_bytes(4, "big") * (1 + n * 977 % 9000))
        assert results[0] == expected
        assert results[1] == expected
        assert alice.connections == [ours]
        assert bob.connections == [theirs]
        assert alice.stats["path.redialled"] >= 3
        assert len(ours.paths) >= 4


async def test_events_and_paths_tell_of_it() -> None:
    async with through_proxy() as (alice, _, ours, theirs, proxy):
        events = alice.events()
        first = ours.path
        await soon(ours.ping())
        proxy.reset()
        gone = await soon(anext(events))
        assert isinstance(gone, crust.PathChanged)
        assert gone.peer == ours.peer
        assert gone.path is None
        back = await soon(anext(events))
        assert isinstance(back, crust.PathChanged)
        assert back.path is not None
        assert back.path != first
        await soon(ours.ping())
        assert ours.paths[-1] == ours.path == back.path
        await ours.send(b"x")
        assert (await soon(theirs.receive())).data == b"x"


async def test_streams_and_waiters_do_not_notice() -> None:
    async with through_proxy() as (_, _, ours, theirs, proxy):
        stream = await ours.open_stream("s")
        reading = asyncio.create_task(anext(aiter(theirs.streams())))
        other = await soon(reading)
        waiting = asyncio.create_task(theirs.receive())
        pieces = []
        for n in range(10):
            stream.write(bytes([n]) * 100_000)
            proxy.reset()
            pieces.append(await soon(other.readexactly(100_000)))
        assert pieces == [bytes([n]) * 100_000 for n in range(10)]
        assert not waiting.done()
        await ours.send(b"at last")
        assert (await soon(waiting)).data == b"at last"


async def test_a_path_that_goes_silent_is_replaced_within_seconds() -> None:
    async with through_proxy() as (_, _, ours, theirs, proxy):
        await soon(ours.ping())
        proxy.hold()  # connections stay open, nothing passes
        proxy.on_accept = lambda: proxy.hold(held=False)
        await ours.send(b"x" * 100_000)
        assert (await soon(theirs.receive(), 8)).data == b"x" * 100_000
        await soon(ours.flush(), 8)


@pytest.mark.parametrize("sender", ["dialler", "acceptor"])
async def test_a_path_that_loses_everything_is_replaced_within_seconds(sender: str) -> None:
    """Old connections stay open and swallow all; only new ones work."""
    async with through_proxy(heartbeat=1, path_timeout=2) as (_, bob, ours, theirs, proxy):
        await soon(ours.ping())
        source, sink = (ours, theirs) if sender == "dialler" else (theirs, ours)
        proxy.lossy = True

        def heal() -> None:
            proxy.lossy = False

        proxy.on_accept = heal
        await source.send(b"x" * 100_000)
        assert (await soon(sink.receive(), 10)).data == b"x" * 100_000
        await soon(source.flush(), 10)
        assert bob.connections == [theirs]


async def test_the_second_path_dies_right_after_its_handshake() -> None:
    async with through_proxy() as (alice, _, ours, theirs, proxy):
        await soon(ours.ping())
        deaths = 0

        def kill_soon() -> None:
            nonlocal deaths
            deaths += 1
            proxy.kill_after = 700 if deaths <= 2 else None

        proxy.on_accept = kill_soon
        proxy.reset()
        await ours.send(b"x" * 50_000)
        assert (await soon(theirs.receive(), 12)).data == b"x" * 50_000
        assert alice.connections == [ours]


async def test_dials_again_at_most_about_once_a_second() -> None:
    async with through_proxy() as (_, _, ours, _, proxy):
        await soon(ours.ping())
        start = asyncio.get_running_loop().time()
        proxy.on_accept = lambda: proxy.reset()
        proxy.reset()
        await eventually(lambda: proxy.accepted >= 4)
        assert asyncio.get_running_loop().time() - start > 1.5


async def test_the_peer_is_out_of_reach_for_a_while() -> None:
    async with through_proxy() as (_, _, ours, theirs, proxy):
        await soon(ours.ping())
        await proxy.stop()
        await eventually(lambda: ours.path is None and theirs.path is None)
        await ours.send(b"1")
        await theirs.send(b"2")
        await proxy.restart()
        assert (await soon(theirs.receive())).data == b"1"
        assert (await soon(ours.receive())).data == b"2"


async def test_the_peer_never_comes_back() -> None:
    async with through_proxy(resume_timeout=0.5) as (alice, _, ours, theirs, proxy):
        events = alice.events()
        await ours.send(b"x")
        await soon(ours.flush())
        receiving = asyncio.create_task(ours.receive())
        await proxy.stop()
        with pytest.raises(crust.PeerLost) as caught:
            await soon(receiving)
        assert caught.value.peer == ours.peer
        while not isinstance(event := await soon(anext(events)), crust.PeerLost):
            pass
        assert event.peer == ours.peer
        assert (await soon(theirs.receive())).data == b"x"
        with pytest.raises(crust.PeerLost):
            await soon(theirs.receive())
        await eventually(lambda: alice.stats["connections.lost"] == 1)
        assert not alice.connections


class TestRestart:
    async def test_the_acceptor_restarts(self) -> None:
        """It knows nothing of the session: the dialler is told so at its first dial, and need not wait."""
        identity = crust.Identity.generate()
        async with nothing_left(), node() as alice, Proxy() as proxy:
            async with node(identity, close_timeout=0.3) as bob:
                proxy.upstream = port_of(bob)
                ours = await soon(alice.connect(target(bob.id, proxy.port)))
                await soon(ours.ping())
                receiving = asyncio.create_task(ours.receive())
                await proxy.stop()
                await eventually(lambda: ours.path is None)
            async with node(identity) as bob:
                proxy.upstream = port_of(bob)
                await proxy.restart()
                with pytest.raises(crust.PeerLost, match="restarted"):
                    await soon(receiving)
                assert bob.stats["handshake.session_gone"] >= 1
                again = await soon(alice.connect(target(bob.id, proxy.port)))
                theirs = await soon(anext(bob))
                await again.send(b"new")
                assert (await soon(theirs.receive())).data == b"new"

    async def test_the_acceptor_has_closed_meanwhile(self) -> None:
        """The session's tombstone says that it was closed: an orderly end."""
        async with through_proxy() as (_, _, ours, theirs, proxy):
            await soon(ours.flush())
            await eventually(lambda: not theirs.stats["unacknowledged_bytes"])
            await proxy.stop()
            await eventually(lambda: ours.path is None and theirs.path is None)
            await soon(theirs.close())
            await proxy.restart()
            with pytest.raises(crust.ConnectionClosed):
                await soon(ours.receive())

    async def test_the_dialler_restarts(self) -> None:
        identity = crust.Identity.generate()
        async with node() as bob, Proxy(port_of(bob)) as proxy:
            where = target(bob.id, proxy.port)
            async with node(identity, close_timeout=0.3) as alice:
                await soon(alice.connect(where))
                theirs = await soon(anext(bob))
                await soon(theirs.ping())
                proxy.lossy = True  # its end is not heard
            proxy.lossy = False
            async with node(identity) as alice:
                receiving = asyncio.create_task(theirs.receive())
                again = await soon(alice.connect(where))
                with pytest.raises(crust.PeerLost, match="restarted"):
                    await soon(receiving)
                new = await soon(anext(bob))
                await again.send(b"new")
                assert (await soon(new.receive())).data == b"new"
                assert bob.connections == [new]
                assert not bob.stats["connections.duplicate_identity"]

    async def test_connect_to_a_peer_that_is_out_of_reach_dials(self) -> None:
        async with through_proxy() as (alice, _, ours, theirs, proxy):
            await soon(ours.ping())
            await proxy.stop()
            await eventually(lambda: ours.path is None and theirs.path is None)
            with pytest.raises(crust.ConnectError):
                await soon(alice.connect(target(ours.peer, proxy.port), timeout=1))
            await proxy.restart()
            assert await soon(alice.connect(target(ours.peer, proxy.port))) is ours
            assert ours.path is not None

    async def test_who_was_dialled_can_dial_back_after_a_loss(self) -> None:
        async with through_proxy() as (alice, bob, ours, theirs, proxy):
            await soon(ours.ping())
            await proxy.stop()
            await eventually(lambda: ours.path is None and theirs.path is None)
            assert await soon(bob.connect(await alice.contact())) is theirs
            await theirs.send(b"back")
            assert (await soon(ours.receive())).data == b"back"


class TestOneIdentityTwice:
    async def test_both_work(self) -> None:
        identity = crust.Identity.generate()
        async with node() as bob, node(identity) as one, node(identity) as two:
            events = bob.events()
            contact = await bob.contact()
            first = await soon(one.connect(contact))
            theirs_first = await soon(anext(bob))
            second = await soon(two.connect(contact))
            theirs_second = await soon(anext(bob))
            while not isinstance(event := await soon(anext(events)), crust.DuplicateIdentity):
                pass
            assert event.peer == identity.id
            for ours, theirs, data in ((first, theirs_first, b"1"), (second, theirs_second, b"2")):
                await ours.send(data)
                assert (await soon(theirs.receive())).data == data
                await theirs.send(data * 2)
                assert (await soon(ours.receive())).data == data * 2
            assert bob.stats["connections.duplicate_identity"] == 1
            assert len(bob.connections) == 2

    async def test_the_path_of_one_dies_and_it_comes_back_to_its_own_session(self) -> None:
        identity = crust.Identity.generate()
        async with node() as bob, Proxy(port_of(bob)) as proxy, node(identity) as one, node(identity) as two:
            where = target(bob.id, proxy.port)
            pairs = []
            for dialler in (one, two):
                ours = await soon(dialler.connect(where))
                pairs.append((ours, await soon(anext(bob))))
            for n in range(3):
                proxy.reset()
                for m, (ours, theirs) in enumerate(pairs):
                    await ours.send(b"%d %d" % (n, m))
                    assert (await soon(theirs.receive())).data == b"%d %d" % (n, m)
                    await theirs.send(b"back %d" % m)
                    assert (await soon(ours.receive())).data == b"back %d" % m
            assert len(bob.connections) == 2


async def test_a_machine_that_wakes_asks_its_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    async with joined({"heartbeat": 1}) as (_, _, ours, _):
        asked: list[float] = []
        monkeypatch.setattr(ours.session, "woke", asked.append)
        await soon(ours.ping())
        assert not asked
        monkeypatch.setattr("crust.node.driver.seconds_slept", lambda: 1e9)
        await eventually(lambda: bool(asked))
        await soon(ours.ping())
        assert len(asked) == 1
