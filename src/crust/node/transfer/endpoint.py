"""What both sides of a transfer need of a connection and its stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from crust.errors import CrustError, RemoteProtocolError
from crust.node.transfer.error import TransferError, TransferInterruptedError, TransferRefusedError
from crust.node.transfer.frame import HEADER, Frame, failure, parse_failure, parse_header

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.stream import Stream

__all__ = ["STREAM_NAME", "end_tasks", "read_frame", "say_failure", "wire_error"]

STREAM_NAME: Final = "crust/files"

# How long the other side may take to read why we stop.
_FAREWELL_SECONDS: Final = 0.7
_READ_BYTES: Final = 64 << 10


async def _read_exactly(stream: Stream, count: int) -> bytes:
    """Read so many bytes; holds no more than what came, whatever the stranger says will come."""
    data = bytearray()
    while len(data) < count:
        piece = await stream.read(min(count - len(data), _READ_BYTES))
        if not piece:
            raise RemoteProtocolError("the stream of the transfer ended too soon")
        data += piece
    return bytes(data)


async def read_frame(stream: Stream, expected: Frame, *, speaker: str) -> bytes:
    """Read a frame of the type that must come now; returns its body.

    Raises:
        TransferError: the other side gave up.
        RemoteProtocolError: it sent something else.
    """
    kind, length = parse_header(await _read_exactly(stream, HEADER.size))
    if kind is Frame.FAIL:
        raise parse_failure(await _read_exactly(stream, length), speaker)
    if kind is not expected:
        raise RemoteProtocolError(f"a {kind.name} where a {expected.name} belongs")
    return await _read_exactly(stream, length)


def wire_error(error: BaseException) -> TransferError | None:
    """What to tell the other side about an error of ours; None where there is nothing to tell."""
    if isinstance(error, TransferError):
        return None if error.remote else error
    if isinstance(error, RemoteProtocolError):
        return TransferRefusedError(str(error))
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
        return TransferInterruptedError("interrupted")
    if isinstance(error, CrustError):
        return None  # the connection is gone
    return TransferError("an internal error")


async def say_failure(connection: Connection, stream: Stream, error: TransferError) -> None:
    """Tell the other side why we stop, as well as that is possible within a moment."""
    try:
        async with asyncio.timeout(_FAREWELL_SECONDS):
            stream.write(failure(error))
            await connection.flush()
    except (CrustError, TimeoutError):
        pass


async def end_tasks(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel tasks, wait until they are over, and let nobody complain that their errors were not looked at."""
    live = [task for task in tasks if task is not None]
    for task in live:
        task.cancel()
    if live:
        await asyncio.wait(live)
    for task in live:
        if not task.cancelled():
            task.exception()
