"""Joins a stream of a connection with a TCP connection on this machine, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from crust.errors import CrustError

if TYPE_CHECKING:
    from crust.node.stream import Stream

__all__ = ["TCP_STREAM", "reset", "splice"]

TCP_STREAM = "crust/tcp"
_CHUNK_BYTES = 64 << 10


async def splice(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until both directions have ended; each ends by itself, as TCP's do. A break of one side breaks the other."""
    directions = [
        asyncio.ensure_future(_to_stream(reader, stream)),
        asyncio.ensure_future(_to_socket(stream, writer)),
    ]
    broken = True
    try:
        done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_EXCEPTION)
        broken = any(task.exception() is not None for task in done)
    finally:
        for task in directions:
            task.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
        with contextlib.suppress(CrustError):
            if broken:
                stream.reset()
            else:
                await stream.close()
        if broken:
            reset(writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a TCP connection so that its other end sees that it is no orderly end."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        # Close with RST and without waiting: l_onoff 1, l_linger 0 (socket(7)).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _to_stream(reader: asyncio.StreamReader, stream: Stream) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        stream.write(chunk)
        await stream.drain()
    stream.write_eof()


async def _to_socket(stream: Stream, writer: asyncio.StreamWriter) -> None:
    while chunk := await stream.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
