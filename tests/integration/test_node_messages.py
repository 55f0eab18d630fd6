"""Messages, datagrams and pings between two nodes: order, backpressure, flush, receipts, cancellation."""

from __future__ import annotations

import asyncio
import itertools

import pytest

import crust
from crust.errors import LocalProtocolError, MessageTooLarge
from crust.types import Priority
from tests.integration.node_support import config, eventually, joined, node, soon

EVERY_LOOP = True

KIB = 1024
MIB = 1024 * KIB


async def receive_all(connection: crust.Connection, count: int) -> list[bytes]:
    return [(await soon(connection.receive())).data for _ in range(count)]


@pytest.mark.parametrize("signing", ["on", "off", "strict"])
async def test_sizes_and_priorities(signing: str) -> None:
    settings = {"signing": signing}
    async with joined(settings, settings) as (_, _, ours, theirs):
        sent: dict[Priority, list[bytes]] = {}
        for size, priority in itertools.product([0, 1, 5000, 16_385, 200_000], Priority):
            data = bytes([priority, size % 251]) * size
            sent.setdefault(priority, []).append(data)
            await soon(ours.send(data, priority=priority))
        await soon(ours.flush())
        got: dict[Priority, list[bytes]] = {}
        for _ in range(5 * 8):
            message = await soon(theirs.receive())
            got.setdefault(message.priority, []).append(message.data)
        assert got == sent


async def test_one_message_of_many_megabytes() -> None:
    async with joined() as (_, _, ours, theirs):
        data = bytes(range(256)) * (160 * KIB)
        await soon(ours.send(data))
        assert await receive_all(theirs, 1) == [data]


async def test_too_large() -> None:
    async with joined({}, {"max_message_bytes": 1000}) as (_, _, ours, theirs):
        await soon(ours.ping())
        with pytest.raises(MessageTooLarge, match="1000"):
            await ours.send(bytes(1001))
        await ours.send(bytes(1000))
        assert await receive_all(theirs, 1) == [bytes(1000)]


async def test_what_may_change_is_copied() -> None:
    async with joined() as (_, _, ours, theirs):
        buffer = bytearray(b"before" * 10_000)
        await soon(ours.send(buffer))
        await soon(ours.send(memoryview(buffer)))
        buffer[:] = bytes(len(buffer))
        assert await receive_all(theirs, 2) == [b"before" * 10_000] * 2


async def test_urgent_overtakes_bulk() -> None:
    async with joined() as (_, _, ours, theirs):
        await soon(ours.send(bytes(48 * MIB), priority=Priority.BULK))
        await soon(ours.send(b"now", priority=Priority.URGENT))
        first = await soon(theirs.receive())
        assert (first.priority, first.data) == (Priority.URGENT, b"now")
        assert len((await soon(theirs.receive())).data) == 48 * MIB


class TestBackpressure:
    async def test_a_receiver_that_does_not_read_stops_the_sender_and_nothing_else(self) -> None:
        limits = {"receive_window_bytes": 256 * KIB, "send_queue_bytes": 128 * KIB}
        async with joined(limits, limits) as (_, bob, ours, theirs), node() as carol:
            count = 0

            async def flood() -> None:
                nonlocal count
                while True:
                    await ours.send(bytes(10 * KIB), priority=Priority.LOW)
                    count += 1

            flooding = asyncio.create_task(flood())
            await eventually(lambda: ours.stats["queued_bytes"] >= 128 * KIB and not ours.stats["unacknowledged_bytes"])
            stuck = count
            assert stuck <= (256 + 128) // 10 + 4
            # Other priorities, streams, the other direction and other peers go on.
            before = theirs.stats["messages_received"]
            await soon(ours.send(b"urgent", priority=Priority.HIGH))
            await eventually(lambda: theirs.stats["messages_received"] > before)
            assert (await soon(theirs.receive())).data == b"urgent"
            await soon(theirs.send(b"back"))
            assert (await soon(ours.receive())).data == b"back"
            stream = await ours.open_stream("s")
            stream.write(b"data")
            other = await soon(anext(aiter(theirs.streams())))
            assert await soon(other.read(4)) == b"data"
            third = await soon(carol.connect(await bob.contact()))
            await soon(third.ping())
            assert count == stuck
            for _ in range(100):
                assert len((await soon(theirs.receive())).data) == 10 * KIB
            flooding.cancel()
            await asyncio.wait([flooding])
            assert count > stuck

    async def test_large_messages_by_many_tasks(self) -> None:
        """Each of them is larger than the queue: every sender gets its turn, in order."""
        limits = {"send_queue_bytes": 64 * KIB}
        async with joined(limits) as (_, _, ours, theirs):
            sends = [asyncio.create_task(ours.send(bytes([n]) * 300 * KIB)) for n in range(20)]
            got = await receive_all(theirs, 20)
            assert got == [bytes([n]) * 300 * KIB for n in range(20)]
            await soon(asyncio.gather(*sends))

    async def test_senders_keep_the_order_of_their_calls(self) -> None:
        limits = {"send_queue_bytes": 64 * KIB, "receive_window_bytes": 256 * KIB}
        async with joined(limits, limits) as (_, _, ours, theirs):
            sends = []

            def send(n: int) -> None:
                data = n.to_bytes(2, "big") + bytes(n * 997 % 30_000)
                sends.append(asyncio.create_task(ours.send(data)))

            for n in range(100):
                send(n)
            got = []
            for n in range(200):
                got.append((await soon(theirs.receive())).data)
                if n < 100:
                    send(100 + n)  # newcomers do not overtake those who wait
            assert [int.from_bytes(data[:2], "big") for data in got] == list(range(200))
            await soon(asyncio.gather(*sends))

    async def test_cancelled_senders_leave_no_gap_and_no_hang(self) -> None:
        limits = {"send_queue_bytes": 64 * KIB, "receive_window_bytes": 256 * KIB}
        async with joined(limits, limits) as (_, _, ours, theirs):
            sends = [asyncio.create_task(ours.send(bytes([n]) * 50 * KIB)) for n in range(60)]
            await eventually(lambda: ours.stats["queued_bytes"] >= 64 * KIB)
            for _ in range(5):
                await asyncio.sleep(0)
            cancelled = [n for n in range(60) if n % 3 == 1 and not sends[n].done() and sends[n].cancel()]
            assert cancelled
            kept = [n for n in range(60) if n not in cancelled]
            got = await receive_all(theirs, len(kept))
            assert [data[0] for data in got] == kept
            done = await soon(asyncio.gather(*sends, return_exceptions=True))
            assert [n for n, result in enumerate(done) if isinstance(result, asyncio.CancelledError)] == cancelled

    async def test_expired_messages_make_room(self) -> None:
        limits = {"send_queue_bytes": 64 * KIB, "receive_window_bytes": 256 * KIB}
        async with joined(limits, limits) as (_, _, ours, _):
            for _ in range(100):
                await soon(ours.send(bytes(10 * KIB), expires_in=0.05))
            assert ours.stats["messages_expired"] > 0

    async def test_a_message_expires_while_it_waits_for_room(self) -> None:
        limits = {"send_queue_bytes": 64 * KIB, "receive_window_bytes": 256 * KIB}
        async with joined(limits, limits) as (_, _, ours, theirs):
            bulk = [asyncio.create_task(ours.send(bytes([n]) * 50 * KIB)) for n in range(20)]
            await eventually(lambda: ours.stats["queued_bytes"] >= 64 * KIB)
            await soon(ours.send(b"stale", expires_in=0.05))
            assert ours.stats["messages_expired"] == 1
            last = asyncio.create_task(ours.send(b"last", expires_in=60))
            got = await receive_all(theirs, 21)
            assert got == [*(bytes([n]) * 50 * KIB for n in range(20)), b"last"]
            await soon(asyncio.gather(*bulk, last))

    async def test_takes_bytes_only(self) -> None:
        async with joined() as (_, _, ours, _):
            stream = await ours.open_stream("s")
            for wrong in (5, [1], "text", None):
                with pytest.raises(TypeError):
                    await ours.send(wrong)  # type: ignore[arg-type]
                with pytest.raises(TypeError):
                    ours.send_datagram(wrong)  # type: ignore[arg-type]
                with pytest.raises(TypeError):
                    stream.write(wrong)  # type: ignore[arg-type]
            assert not ours.stats["messages_sent"]

    async def test_waiting_senders_hear_of_the_end(self) -> None:
        limits = {"send_queue_bytes": 64 * KIB, "receive_window_bytes": 256 * KIB}
        async with joined(limits, limits) as (_, _, ours, _):
            sends = [asyncio.create_task(ours.send(bytes(100 * KIB))) for n in range(20)]
            await eventually(lambda: ours.stats["queued_bytes"] and not ours.stats["unacknowledged_bytes"])
            ours.abort()
            results = await soon(asyncio.gather(*sends, return_exceptions=True))
            assert isinstance(results[-1], crust.PeerLost)
            assert all(result is None or isinstance(result, crust.PeerLost) for result in results)


class TestFlush:
    async def test_covers_what_was_sent_before(self) -> None:
        async with joined() as (_, _, ours, theirs):
            await soon(ours.flush())
            await ours.send(bytes(5 * MIB))
            stream = await ours.open_stream("s")
            stream.write(bytes(100_000))
            await soon(ours.flush())
            assert theirs.stats["messages_received"] == 1
            assert await receive_all(theirs, 1) == [bytes(5 * MIB)]

    async def test_while_others_go_on_sending(self) -> None:
        async with joined() as (_, _, ours, theirs):
            stop = asyncio.Event()

            async def flood() -> None:
                while not stop.is_set():
                    await ours.send(bytes(1000), priority=Priority.LOW)

            async def drain() -> None:
                async for _ in theirs:
                    pass

            tasks = [asyncio.create_task(flood()), asyncio.create_task(drain())]
            for _ in range(20):
                await soon(ours.flush())
            stop.set()
            await soon(tasks[0])
            await soon(ours.close())
            await soon(tasks[1])

    async def test_hears_of_the_end(self) -> None:
        limits = {"receive_window_bytes": 256 * KIB}
        async with joined({}, limits) as (_, _, ours, _):
            await ours.send(bytes(100 * KIB))
            for _ in range(10):
                await ours.send(bytes(100 * KIB))
            flush = asyncio.create_task(ours.flush())
            await asyncio.sleep(0)
            ours.abort()
            with pytest.raises(crust.PeerLost):
                await soon(flush)


class TestReceive:
    async def test_iteration_ends_quietly_after_a_close(self) -> None:
        async with joined() as (_, _, ours, theirs):
            for n in range(5):
                await ours.send(b"%d" % n)
            closing = asyncio.create_task(ours.close())
            assert [message.data async for message in theirs] == [b"%d" % n for n in range(5)]
            with pytest.raises(crust.ConnectionClosed):
                await soon(theirs.receive())
            await soon(closing)

    async def test_iteration_raises_after_a_loss(self) -> None:
        async with joined() as (_, _, ours, theirs):
            await ours.send(b"x")
            await eventually(lambda: theirs.stats["messages_received"])
            theirs.abort()
            assert (await soon(theirs.receive())).data == b"x"
            with pytest.raises(crust.PeerLost) as caught:
                await soon(anext(theirs))
            assert caught.value.peer == theirs.peer

    async def test_several_receivers_share_the_messages(self) -> None:
        async with joined() as (_, _, ours, theirs):
            receivers = [asyncio.create_task(theirs.receive()) for _ in range(10)]
            await asyncio.sleep(0)
            for n in range(10):
                await ours.send(b"%d" % n)
            got = await soon(asyncio.gather(*receivers))
            assert sorted(message.data for message in got) == [b"%d" % n for n in range(10)]

    async def test_cancellation_loses_nothing(self) -> None:
        async with joined() as (_, _, ours, theirs):
            got: list[bytes] = []
            for n in range(100):
                receiver = asyncio.create_task(theirs.receive())
                await ours.send(b"%d" % n)
                for _ in range(n % 7):
                    await asyncio.sleep(0)
                receiver.cancel()
                await asyncio.wait([receiver])
                if not receiver.cancelled():
                    got.append(receiver.result().data)
            while len(got) < 100:
                got.append((await soon(theirs.receive())).data)
            assert got == [b"%d" % n for n in range(100)]


class TestDatagrams:
    async def test_arrive(self) -> None:
        async with joined() as (_, _, ours, theirs):
            await soon(ours.ping())
            for n in range(300):
                ours.send_datagram(b"%d" % n + bytes(1000))
            got = [await soon(theirs.receive_datagram()) for _ in range(300)]
            assert got == [b"%d" % n + bytes(1000) for n in range(300)]

    async def test_too_long(self) -> None:
        async with joined() as (_, _, ours, _):
            with pytest.raises(LocalProtocolError):
                ours.send_datagram(bytes(1201))

    async def test_that_nobody_reads_are_dropped(self) -> None:
        async with joined() as (_, _, ours, theirs):
            for n in range(3000):
                ours.send_datagram(n.to_bytes(2, "big"))
                if n % 100 == 0:
                    await soon(ours.ping())
            await soon(ours.ping())
            first = await soon(theirs.receive_datagram())
            assert int.from_bytes(first, "big") == 3000 - 1024

    async def test_after_the_end(self) -> None:
        async with joined() as (_, _, ours, theirs):
            waiting = asyncio.create_task(theirs.receive_datagram())
            await soon(ours.close())
            with pytest.raises(crust.ConnectionClosed):
                ours.send_datagram(b"x")
            with pytest.raises(crust.ConnectionClosed):
                await soon(waiting)


class TestPing:
    async def test_takes_little_time(self) -> None:
        async with joined() as (_, _, ours, theirs):
            assert 0 < await soon(ours.ping()) < 5
            assert 0 < await soon(theirs.ping()) < 5
            assert len(await soon(asyncio.gather(*(ours.ping() for _ in range(50))))) == 50

    async def test_many_at_once(self) -> None:
        """More than an engine remembers: none may wait for ever."""
        async with joined() as (_, _, ours, _):
            times = await soon(asyncio.gather(*(ours.ping() for _ in range(500)), return_exceptions=True))
            assert all(isinstance(t, float) for t in times)

    async def test_after_the_end(self) -> None:
        async with joined() as (_, _, ours, _):
            await soon(ours.close())
            with pytest.raises(crust.ConnectionClosed):
                await ours.ping()

    async def test_hears_of_the_end(self) -> None:
        async with joined() as (_, _, ours, _):
            ping = asyncio.create_task(ours.ping())
            await asyncio.sleep(0)
            ours.abort()
            with pytest.raises(crust.PeerLost):
                await soon(ping)

    async def test_cancelled_ones_are_forgotten(self) -> None:
        async with joined() as (_, _, ours, _):
            pings = [asyncio.create_task(ours.ping()) for _ in range(20)]
            await asyncio.sleep(0)
            for ping in pings:
                ping.cancel()
            await asyncio.wait(pings)
            await soon(ours.ping())


class TestReceipts:
    @pytest.mark.parametrize("signing", ["on", "strict"])
    async def test_every_message_has_one(self, signing: str) -> None:
        settings = {"signing": signing}
        async with joined(settings, settings) as (alice, _, ours, theirs):
            contents = [b"", b"x", bytes(10_000), bytes(500_000)] * 5
            for data in contents:
                await soon(ours.send(data))
            for n, data in enumerate(contents):
                message = await soon(theirs.receive())
                receipt = await soon(message.receipt())
                assert receipt.verify(data) == alice.id
                assert receipt.claims.number == n
                with pytest.raises(crust.ReceiptError):
                    receipt.verify(data + b"!")

    async def test_none_without_signing(self) -> None:
        settings = {"signing": "off"}
        async with joined(settings, settings) as (_, _, ours, theirs):
            await ours.send(b"x")
            message = await soon(theirs.receive())
            with pytest.raises(crust.ReceiptUnavailable):
                await message.receipt()

    async def test_of_a_message_read_after_the_end(self) -> None:
        async with joined() as (alice, _, ours, theirs):
            await ours.send(b"x")
            await soon(ours.close())
            message = await soon(theirs.receive())
            assert (await soon(message.receipt())).verify(b"x") == alice.id


async def test_stats_tell_what_waits() -> None:
    async with joined({}, {"receive_window_bytes": 256 * KIB}) as (_, _, ours, theirs):
        for _ in range(100):
            await soon(ours.send(bytes(10 * KIB)))
        await eventually(lambda: not ours.stats["unacknowledged_bytes"] and theirs.stats["unread_bytes"])
        assert ours.stats["queued_bytes"] + theirs.stats["unread_bytes"] == 1000 * KIB
        assert ours.stats["paths"] == 1
        assert ours.stats["rtt_ms"] >= 0
        assert ours.signed


async def test_a_connection_as_a_context_manager() -> None:
    async with node() as alice, crust.Node(config=config()) as bob:
        async with await soon(alice.connect(await bob.contact())) as ours:
            await ours.send(b"x")
        assert ours.closed
        theirs = await soon(anext(bob))
        assert [message.data async for message in theirs] == [b"x"]
        assert "closed" in repr(ours)
