"""Streams as asyncio's, between two nodes."""

from __future__ import annotations

import asyncio

import pytest

import crust
from crust.errors import LocalProtocolError, StreamResetError
from tests.integration.node_support import eventually, joined, soon

EVERY_LOOP = True

KIB = 1024


async def pair_of_streams(ours: crust.Connection, theirs: crust.Connection) -> tuple[crust.Stream, crust.Stream]:
    stream = await soon(ours.open_stream("s"))
    return stream, await soon(anext(aiter(theirs.streams())))


async def test_write_drain_read() -> None:
    async with joined() as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        data = bytes(range(256)) * 20_000

        async def write() -> None:
            for at in range(0, len(data), 30_000):
                stream.write(data[at : at + 30_000])
                await stream.drain()
            stream.write_eof()

        writing = asyncio.create_task(write())
        assert await soon(other.read()) == data
        await soon(writing)
        assert other.at_eof()
        assert await other.read(10) == b""
        assert other.name == "s"


async def test_reads_of_every_kind() -> None:
    async with joined() as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        stream.write(b"one\ntwo\nthe rest" + bytes(100))
        stream.write(bytearray(b"tail"))
        stream.write_eof()
        assert await soon(other.readline()) == b"one\n"
        assert await soon(other.read(2)) == b"tw"
        assert await soon(other.readexactly(2)) == b"o\n"
        assert await soon(other.read(0)) == b""
        assert await soon(other.readexactly(8)) == b"the rest"
        assert await soon(other.readexactly(100)) == bytes(100)
        assert await soon(other.readline()) == b"tail"
        assert await soon(other.readline()) == b""
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await soon(other.readexactly(5))
        assert caught.value.partial == b""
        with pytest.raises(ValueError, match="negative"):
            await other.readexactly(-1)


async def test_a_line_without_an_end() -> None:
    async with joined() as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        stream.write(bytes(200 * KIB))
        with pytest.raises(asyncio.LimitOverrunError):
            await soon(other.readline())


async def test_a_line_as_long_as_the_smallest_window() -> None:
    """Neither side may wait for the other for ever."""
    limits = {"stream_window_bytes": 64 * KIB}
    async with joined(limits, limits) as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        stream.write(bytes(30 * KIB))
        await soon(other.readexactly(10 * KIB))
        stream.write(bytes(100 * KIB))
        with pytest.raises(asyncio.LimitOverrunError):
            await soon(other.readline(), 5)


async def test_backpressure() -> None:
    async with joined({}, {"stream_window_bytes": 64 * KIB}) as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        await soon(ours.ping())

        async def write() -> int:
            count = 0
            while count < 100:
                stream.write(bytes(64 * KIB))
                await stream.drain()
                count += 1
            return count

        writing = asyncio.create_task(write())
        await eventually(lambda: other._state.ready_bytes >= 64 * KIB)
        third = await soon(ours.open_stream("third"))
        third.write(b"free")
        streams = theirs.streams()
        assert await soon((await soon(anext(streams))).read(4)) == b"free"
        assert not writing.done()
        assert len(await soon(other.readexactly(100 * 64 * KIB))) == 100 * 64 * KIB
        assert await soon(writing) == 100


async def test_reset_by_the_writer() -> None:
    async with joined() as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        stream.write(b"half")
        assert await soon(other.readexactly(4)) == b"half"
        reading = asyncio.create_task(other.read(1))
        await asyncio.sleep(0)
        stream.reset()
        with pytest.raises(StreamResetError):
            await soon(reading)
        with pytest.raises(LocalProtocolError):
            stream.write(b"x")


async def test_closed_by_the_reader() -> None:
    async with joined({}, {"stream_window_bytes": 64 * KIB}) as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        await soon(ours.ping())
        stream.write(bytes(2_000_000))
        draining = asyncio.create_task(stream.drain())
        await asyncio.sleep(0)
        await soon(other.close())
        with pytest.raises(StreamResetError):
            await soon(draining)
        with pytest.raises(StreamResetError):
            stream.write(b"x")
        with pytest.raises(LocalProtocolError, match="closed for reading"):
            await soon(other.read(1))


async def test_close_delivers_what_was_written() -> None:
    async with joined() as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        stream.write(bytes(900_000))
        await soon(stream.close())
        stream.write_eof()
        assert len(await soon(other.read())) == 900_000
        with pytest.raises(LocalProtocolError):
            stream.write(b"x")


async def test_the_end_of_the_connection_reaches_everybody() -> None:
    async with joined() as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        reading = asyncio.create_task(other.read(1))
        accepting = asyncio.create_task(anext(aiter(theirs.streams())))
        await asyncio.sleep(0)
        theirs.abort()
        for waiting in (reading, accepting):
            with pytest.raises(crust.PeerLost):
                await soon(waiting)
        with pytest.raises(crust.PeerLost):
            other.write(b"x")
        with pytest.raises(crust.PeerLost):
            await theirs.open_stream("t")
        assert "s" in repr(stream)


async def test_streams_end_quietly_after_an_orderly_close() -> None:
    async with joined() as (_, _, ours, theirs):
        stream = await soon(ours.open_stream("left open"))
        stream.write(b"data")
        names = []

        async def accept() -> None:
            async for found in theirs.streams():
                names.append(found.name)
                assert await found.read(4) == b"data"

        accepting = asyncio.create_task(accept())
        await soon(ours.flush())
        await soon(ours.close())
        await soon(accepting)
        assert names == ["left open"]


async def test_cancelled_reads_lose_nothing() -> None:
    async with joined() as (_, _, ours, theirs):
        stream, other = await pair_of_streams(ours, theirs)
        got = bytearray()
        for n in range(60):
            reading = asyncio.create_task(other.read(1000))
            stream.write(b"%03d" % n)
            for _ in range(n % 9):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                got += reading.result()
        stream.write_eof()
        got += await soon(other.read())
        assert bytes(got) == b"".join(b"%03d" % n for n in range(60))


async def test_two_hundred_at_once() -> None:
    async with joined() as (_, _, ours, theirs):

        async def echo() -> None:
            async with asyncio.TaskGroup() as group:
                count = 0
                async for stream in theirs.streams():
                    group.create_task(answer(stream))
                    count += 1
                    if count == 200:
                        return

        async def answer(stream: crust.Stream) -> None:
            stream.write(await stream.read())
            stream.write_eof()

        async def ask(n: int) -> bool:
            stream = await ours.open_stream(f"{n}", priority=crust.Priority(n % 8))
            data = b"%d " % n * (1 + n * 37 % 3000)
            stream.write(data)
            stream.write_eof()
            return await stream.read() == data

        echoing = asyncio.create_task(echo())
        assert all(await soon(asyncio.gather(*(ask(n) for n in range(200)))))
        await soon(echoing)
        await eventually(lambda: not ours.session.streams.table.by_id and not theirs.session.streams.table.by_id)


async def test_opening_waits_for_the_peer_to_take_more() -> None:
    async with joined({}, {"max_streams": 3}) as (_, _, ours, theirs):
        first = [await soon(ours.open_stream(f"{n}")) for n in range(3)]
        waiting = asyncio.create_task(ours.open_stream("late"))
        given_up = asyncio.create_task(ours.open_stream("given up"))
        accepted = aiter(theirs.streams())
        others = [await soon(anext(accepted)) for _ in first]
        for stream in (*first, *others):
            stream.write(b"data")
            stream.write_eof()
        for stream in first:
            assert await soon(stream.read()) == b"data"
        await soon(ours.ping())
        assert not waiting.done()  # both sides have said everything, but nobody has read there
        given_up.cancel()
        assert await soon(others[0].read()) == b"data"
        late = await soon(waiting)
        assert (await soon(anext(accepted))).name == late.name == "late"
        late.reset()
