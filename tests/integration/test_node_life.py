"""Closing in the midst of everything, cancelling everything, events, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

import crust
from crust.errors import LocalProtocolError
from tests.integration.node_support import elapsed_below, eventually, joined, node, nothing_left, soon

EVERY_LOOP = True

KIB = 1024


class TestClose:
    async def test_delivers_what_was_sent(self) -> None:
        async with nothing_left(), joined() as (_, _, ours, theirs):
            for n in range(20):
                await ours.send(bytes([n]) * 100_000)
            with elapsed_below(5):
                await soon(ours.close())
            assert [len(message.data) async for message in theirs] == [100_000] * 20
            await eventually(lambda: theirs.closed)

    async def test_both_at_once(self) -> None:
        for n in range(20):
            async with joined() as (alice, bob, ours, theirs):
                await ours.send(b"a" * n * 1000)
                await theirs.send(b"b" * n * 1000)
                await soon(asyncio.gather(ours.close(), theirs.close()))
                for connection, data in ((ours, b"b"), (theirs, b"a")):
                    assert isinstance(connection.session.ended, crust.ConnectionClosed)
                    assert [m.data async for m in connection] == [data * n * 1000]
                assert alice.stats["connections.lost"] == bob.stats["connections.lost"] == 0

    async def test_of_the_node_closes_its_connections_in_order(self) -> None:
        async with nothing_left(), node() as bob:
            contact = await bob.contact()
            async with node() as alice:
                ours = await soon(alice.connect(contact))
                theirs = await soon(anext(bob))
                await ours.send(bytes(2_000_000))
            assert ours.closed
            assert len((await soon(theirs.receive())).data) == 2_000_000
            with pytest.raises(crust.ConnectionClosed):
                await soon(theirs.receive())

    async def test_of_both_nodes_at_once(self) -> None:
        for _ in range(10):
            async with nothing_left():
                alice, bob = node(), node()
                await alice.start()
                await bob.start()
                ours = await soon(alice.connect(await bob.contact()))
                theirs = await soon(anext(bob))
                await ours.send(b"x")
                await theirs.send(b"y")
                with elapsed_below(5):
                    await soon(asyncio.gather(alice.close(), bob.close()))

    async def test_during_everything(self) -> None:
        """Each way to wait, on both sides, when one node closes: every waiter ends, quietly or with our error."""
        async with nothing_left(), node() as bob:
            contact = await bob.contact()
            async with node() as alice:
                ours = await soon(alice.connect(contact))
                theirs = await soon(anext(bob))
                stream = await soon(ours.open_stream("s"))
                other = await soon(anext(aiter(theirs.streams())))
                waiters = []
                for who, connection, half in ((alice, ours, stream), (bob, theirs, other)):
                    waiters += [
                        connection.receive(),
                        connection.receive_datagram(),
                        anext(connection.streams()),
                        half.read(1),
                        half.readline(),
                        half.readexactly(3),
                        connection.wait_ended(),
                    ]
                    if who is alice:
                        waiters += [anext(who), anext(who.incoming()), self.drain(who.events())]
                tasks = [asyncio.create_task(self.wait(waiter)) for waiter in waiters]
                for _ in range(3):
                    await asyncio.sleep(0)
                assert not any(task.done() for task in tasks)
            results = await soon(asyncio.gather(*tasks, return_exceptions=True))
            for result in results:
                quiet = isinstance(result, (StopAsyncIteration, crust.CrustError)) or result is None
                assert quiet, repr(result)

    @staticmethod
    async def wait(waiter: object) -> object:
        try:
            return await waiter  # type: ignore[misc]
        except StopAsyncIteration as stop:
            return stop

    @staticmethod
    async def drain(events: object) -> None:
        async for _ in events:  # type: ignore[attr-defined]
            pass

    async def test_that_takes_too_long_tells_the_peer(self) -> None:
        limits = {"receive_window_bytes": 256 * KIB, "close_timeout": 0.5}
        async with nothing_left(), joined(limits, limits) as (_, _, ours, theirs):
            for _ in range(10):
                await soon(ours.send(bytes(100 * KIB)))
            await soon(ours.close())
            assert isinstance(ours.session.ended, crust.PeerLost)
            assert isinstance(await soon(theirs.wait_ended()), crust.PeerLost)
            for _ in range(theirs.stats["messages_received"]):  # type: ignore[arg-type]
                assert len((await soon(theirs.receive())).data) == 100 * KIB

    async def test_delivers_streams_that_need_credit(self) -> None:
        limits = {"stream_window_bytes": 64 * KIB}
        async with nothing_left(), joined(limits, limits) as (_, _, ours, theirs):
            stream = await soon(ours.open_stream("s"))
            stream.write(bytes(1_000_000))
            stream.write_eof()
            closing = asyncio.create_task(ours.close())
            other = await soon(anext(aiter(theirs.streams())))
            assert len(await soon(other.read())) == 1_000_000
            await soon(closing)
            assert isinstance(await soon(theirs.wait_ended()), crust.ConnectionClosed)

    async def test_twice(self) -> None:
        async with joined() as (alice, _, ours, _):
            await soon(asyncio.gather(ours.close(), ours.close()))
            await soon(ours.close())
            await soon(asyncio.gather(alice.close(), alice.close()))

    async def test_cancelled_close_goes_on(self) -> None:
        async with joined() as (_, _, ours, theirs):
            await ours.send(b"x" * 1_000_000)
            closing = asyncio.create_task(ours.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            await eventually(lambda: ours.closed and theirs.closed)
            assert len((await soon(theirs.receive())).data) == 1_000_000

    async def test_cancelled_close_of_a_node(self) -> None:
        async with nothing_left(), node() as bob:
            alice = node()
            await alice.start()
            ours = await soon(alice.connect(await bob.contact()))
            theirs = await soon(anext(bob))
            closing = asyncio.create_task(alice.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            await eventually(lambda: ours.closed)
            theirs.abort()

    @pytest.mark.parametrize("turns", range(5))
    async def test_of_a_node_while_somebody_is_being_accepted(self, turns: int) -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with nothing_left():
            bob = node(transports=["tcp"])
            await bob.start()
            host, _, port = bob.addresses[0].rpartition(":")
            with socket.create_connection((host, int(port))) as knocking:
                for _turn in range(turns):
                    await asyncio.sleep(0)
                await soon(bob.close())
                knocking.settimeout(10)
                with contextlib.suppress(ConnectionError):
                    assert knocking.recv(1) == b""
        assert not failures

    async def test_a_node_that_never_started(self) -> None:
        await node().close()

    async def test_after_a_failed_start(self) -> None:
        async with nothing_left(), node() as alice:
            bob = node(listen=["127.0.0.1:0", alice.addresses[0]])
            with pytest.raises(crust.ConfigError):
                await bob.start()
            await bob.close()

    async def test_use_after_it(self) -> None:
        alice = node()
        async with alice:
            events = alice.events()
        assert [event async for event in events] == []
        with pytest.raises(StopAsyncIteration):
            await soon(anext(alice))
        for call in (alice.events, alice.incoming):
            with pytest.raises(LocalProtocolError, match="closed"):
                call()


class TestCancellation:
    async def test_of_everything_leaves_everything_working(self) -> None:
        async with nothing_left(), joined() as (alice, bob, ours, theirs):
            stream = await soon(ours.open_stream("s"))
            other = await soon(anext(aiter(theirs.streams())))
            events = bob.events()
            for turns in range(1, 7):
                waiters = [
                    theirs.receive(),
                    theirs.receive_datagram(),
                    other.read(1),
                    other.readline(),
                    anext(bob),
                    anext(events),
                    ours.ping(),
                    ours.flush(),
                    ours.wait_ended(),
                    alice.connect(bob.id),
                    stream.drain(),
                    bob.contact(),
                ]
                tasks = [asyncio.create_task(self.run(waiter)) for waiter in waiters]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await soon(asyncio.wait(tasks))
                assert all(task.cancelled() or task.exception() is None for task in tasks)
            await ours.send(b"message")
            ours.send_datagram(b"datagram")
            stream.write(b"line\n")
            assert (await soon(theirs.receive())).data == b"message"
            assert await soon(theirs.receive_datagram()) == b"datagram"
            assert await soon(other.readline()) == b"line\n"
            assert await soon(ours.ping()) > 0
            await soon(ours.flush())

    @staticmethod
    async def run(waiter: object) -> object:
        return await waiter  # type: ignore[misc]


class TestEvents:
    async def test_of_a_connections_life(self) -> None:
        async with node() as alice, node() as bob:
            readers = [alice.events(), bob.events(), bob.events()]
            ours = await soon(alice.connect(await bob.contact()))
            first = [await soon(anext(reader)) for reader in readers]
            assert all(isinstance(event, crust.PeerConnected) for event in first)
            assert [event.accepted for event in first] == [False, True, True]  # type: ignore[union-attr]
            assert first[0].path == ours.path  # type: ignore[union-attr]
            assert first[1].peer == alice.id  # type: ignore[union-attr]
            await soon(ours.close())
            for reader, peer in zip(readers, (bob.id, alice.id, alice.id), strict=True):
                assert await soon(anext(reader)) == crust.PeerClosed(peer)

    async def test_nothing_that_was_before(self) -> None:
        async with joined() as (alice, _, _, _):
            events = alice.events()
            with pytest.raises(TimeoutError):
                await soon(anext(events), 0.02)

    async def test_the_oldest_are_dropped(self) -> None:
        async with node(event_queue=3) as alice, node() as bob:
            events = alice.events()
            contact = await bob.contact()
            for _ in range(4):
                await soon((await soon(alice.connect(contact))).close())
            await eventually(lambda: events.dropped == 5)
            kinds = [type(await soon(anext(events))) for _ in range(3)]
            assert kinds == [crust.PeerClosed, crust.PeerConnected, crust.PeerClosed]

    async def test_a_closed_reader_gets_no_more(self) -> None:
        async with node() as alice, node() as bob:
            events = alice.events()
            waiting = asyncio.create_task(self.collect(events))
            await asyncio.sleep(0)
            events.close()
            assert await soon(waiting) == []
            await soon(alice.connect(await bob.contact()))

    async def test_two_tasks_may_share_a_reader(self) -> None:
        async with node() as alice, node() as bob:
            events = alice.events()
            waiting = [asyncio.create_task(anext(events)) for _ in range(2)]
            await asyncio.sleep(0)
            ours = await soon(alice.connect(await bob.contact()))
            await soon(ours.close())
            found = await soon(asyncio.gather(*waiting))
            assert {type(event) for event in found} == {crust.PeerConnected, crust.PeerClosed}

    @staticmethod
    async def collect(events: object) -> list[object]:
        return [event async for event in events]  # type: ignore[attr-defined]


async def test_many_nodes_come_and_go() -> None:
    async with nothing_left(), node() as hub:
        contact = await hub.contact()

        async def visit(n: int) -> None:
            async with node(listen=[]) as guest:
                connection = await guest.connect(contact)
                await connection.send(b"%d" % n)
                if n % 2:
                    await connection.flush()

        async def serve() -> int:
            total = 0
            for _ in range(30):
                connection = await anext(hub)
                with contextlib.suppress(crust.PeerLost):
                    async for message in connection:
                        total += int(message.data)
            return total

        serving = asyncio.create_task(serve())
        await soon(asyncio.gather(*(visit(n) for n in range(30))))
        assert await soon(serving) == sum(range(30))
        await eventually(lambda: not hub.connections)
