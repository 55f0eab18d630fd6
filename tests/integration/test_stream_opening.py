"""Streams whose openings are overtaken, held back, or crossed by a close."""

from __future__ import annotations

import asyncio

import crust


async def read_streams(connection: crust.Connection, count: int) -> dict[str, bytes]:
    read: dict[str, bytes] = {}
    async with asyncio.timeout(10):
        async for stream in connection.streams():
            read[stream.name] = await stream.read()
            if len(read) == count:
                break
    return read


async def test_an_urgent_stream_may_be_opened_after_a_bulk_one() -> None:
    async with crust.Node() as alice, crust.Node() as bob:
        connection = await alice.connect(await bob.contact())
        for priority in (crust.Priority.IDLE, crust.Priority.NORMAL, crust.Priority.CRITICAL):
            stream = await connection.open_stream(priority.name, priority=priority)
            stream.write(priority.name.encode())
            stream.write_eof()
        assert await read_streams(await anext(bob), 3) == {
            "IDLE": b"IDLE",
            "NORMAL": b"NORMAL",
            "CRITICAL": b"CRITICAL",
        }


async def test_strict_mode_holds_a_stream_behind_an_unverified_message() -> None:
    config = crust.Config(signing="strict")
    async with crust.Node(config=config) as alice, crust.Node(config=config) as bob:
        connection = await alice.connect(await bob.contact())
        await connection.send(b"first")
        stream = await connection.open_stream("second")
        stream.write(b"bytes")
        stream.write_eof()
        accepted = await anext(bob)
        assert await read_streams(accepted, 1) == {"second": b"bytes"}
        assert (await accepted.receive()).data == b"first"


async def test_a_stream_given_up_by_the_reader_does_not_spoil_the_writers_close() -> None:
    async with crust.Node() as alice, crust.Node() as bob:
        connection = await alice.connect(await bob.contact())
        stream = await connection.open_stream("s")
        stream.write(bytes(10_000))
        accepted = await anext(bob)
        async with asyncio.timeout(10):
            theirs = await anext(aiter(accepted.streams()))
            await asyncio.gather(connection.close(), theirs.close())
            async for _ in accepted:
                pass  # an orderly end, not PeerLost
