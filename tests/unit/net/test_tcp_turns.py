"""A stream that has more than one buffer's worth to read lets others have a turn."""

from __future__ import annotations

import asyncio
from typing import Any

from crust.net.tcp import ReadBuffer, TcpStream


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


class Consumer:
    def stream_opened(self) -> None:
        pass

    def stream_received(self, data: memoryview) -> int:
        return len(data)


async def opened() -> tuple[TcpStream, Transport]:
    consumer: Any = Consumer()
    stream, transport = TcpStream(ReadBuffer(asyncio.get_running_loop()), consumer), Transport()
    stream.connection_made(transport)
    return stream, transport


async def test_a_full_buffer_ends_the_turn() -> None:
    stream, transport = await opened()
    stream.buffer_updated(len(stream.get_buffer(-1)))
    assert transport.calls == ["pause"]
    await asyncio.sleep(0)
    assert transport.calls == ["pause", "resume"]


async def test_a_part_of_it_does_not() -> None:
    stream, transport = await opened()
    stream.buffer_updated(len(stream.get_buffer(-1)) - 1)
    await asyncio.sleep(0)
    assert transport.calls == []


async def test_a_consumer_that_pauses_meanwhile_is_obeyed() -> None:
    stream, transport = await opened()
    stream.buffer_updated(len(stream.get_buffer(-1)))
    stream.pause_reading()
    await asyncio.sleep(0)
    assert transport.calls == ["pause", "pause"]
    stream.resume_reading()
    assert transport.calls == ["pause", "pause", "resume"]


async def test_a_stream_that_is_lost_meanwhile_reads_no_more() -> None:
    stream, transport = await opened()
    stream.consumer = None
    stream.buffer_updated(len(stream.get_buffer(-1)))
    stream.connection_lost(None)
    await asyncio.sleep(0)
    assert transport.calls == ["pause"]
