"""Streams: ordered bytes with credit-based flow control, in the manner of asyncio's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from crust.errors import LocalProtocolError, StreamResetError
from crust.proto.session.streams import Half, StreamState

if TYPE_CHECKING:
    from crust.node.connection import Connection

__all__ = ["Stream"]

_LINE_LIMIT = 64 * 1024
WRITE_BUFFER_BYTES = 512 * 1024
"""Unsent bytes of a stream beyond which `drain` waits."""


class Stream:
    """One stream of a connection. Made by `Connection.open_stream` and `Connection.streams`, not by hand.

    Attributes:
        name: what the opener called it.
    """

    __slots__ = ("_connection", "_state", "_waiters", "name")

    def __init__(self, connection: Connection, state: StreamState) -> None:
        self._connection = connection
        self._state = state
        self._waiters: list[asyncio.Future[None]] = []
        self.name = state.name

    def __repr__(self) -> str:
        return f"<Stream {self.name!r} of {self._connection!r}>"

    # --- reading -------------------------------------------------------------------------------------------------

    async def read(self, n: int = -1) -> bytes:
        """Read up to `n` bytes, as soon as there are any; all until the end when `n` is negative.

        Returns:
            The bytes; b"" at the end of the stream.

        Raises:
            StreamResetError: the peer gave the stream up.
            ConnectionClosed: the connection was closed before the end of the stream.
            PeerLost: the peer is gone.
            CancelledError: nothing is lost; with a negative `n`, what was read so far is.
        """
        if n < 0:
            pieces = []
            while piece := await self.read(1 << 20):
                pieces.append(piece)
            return b"".join(pieces)
        if n == 0:
            return b""
        state = self._state
        while not state.chunks:
            if self._at_end():
                return b""
            await self._wait()
        chunk = state.chunks.popleft()
        if len(chunk) > n:
            state.chunks.appendleft(chunk[n:])
            chunk = chunk[:n]
        elif len(chunk) < n and state.chunks:
            chunk = self._gather(chunk, n)
        self._consumed(len(chunk))
        return chunk

    def _gather(self, first: bytes, n: int) -> bytes:
        """Join the chunks at hand, up to `n` bytes, in one copy."""
        chunks = self._state.chunks
        pieces = [first]
        size = len(first)
        while chunks and size + len(chunks[0]) <= n:
            pieces.append(chunks.popleft())
            size += len(pieces[-1])
        if size == len(first):
            return first
        return b"".join(pieces)

    async def readexactly(self, n: int) -> bytes:
        """Read `n` bytes.

        Raises:
            asyncio.IncompleteReadError: the stream ended before; `.partial` holds what there was.
            CancelledError: what was read so far is lost. Else as `read`.
        """
        if n < 0:
            raise ValueError("readexactly: n is negative")
        pieces: list[bytes] = []
        size = 0
        while size < n:
            piece = await self.read(n - size)
            if not piece:
                raise asyncio.IncompleteReadError(b"".join(pieces), n)
            pieces.append(piece)
            size += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def readline(self) -> bytes:
        r"""Read up to and with the next b"\n", or to the end of the stream.

        Raises:
            asyncio.LimitOverrunError: no line end within 64 KiB.
            CancelledError: nothing is lost. Else as `read`.
        """
        state = self._state
        while True:
            size = 0
            for chunk in state.chunks:
                at = chunk.find(b"\n")
                if at >= 0:
                    return self._take(size + at + 1)
                size += len(chunk)
            if size > _LINE_LIMIT or state.received >= state.granted:  # no more can come before some is taken
                raise asyncio.LimitOverrunError("no line end within 64 KiB, or the stream's window", size)
            if self._at_end():
                return self._take(size)
            await self._wait()

    def _take(self, size: int) -> bytes:
        """Take exactly `size` bytes that are at hand."""
        state = self._state
        pieces: list[bytes] = []
        left = size
        while left:
            chunk = state.chunks.popleft()
            if len(chunk) > left:
                state.chunks.appendleft(chunk[left:])
                chunk = chunk[:left]
            pieces.append(chunk)
            left -= len(chunk)
        self._consumed(size)
        return b"".join(pieces)

    def _at_end(self) -> bool:
        """Whether the stream has ended; raises when it did not end as it should."""
        state = self._state
        if state.receiving is Half.ENDED:
            return True
        if state.receiving is Half.RESET:
            raise StreamResetError(f"the peer gave the stream {self.name!r} up")
        if state.receiving is Half.STOPPED:
            raise LocalProtocolError(f"the stream {self.name!r} was closed for reading")
        self._connection.check_readable()
        return False

    def _consumed(self, size: int) -> None:
        self._state.ready_bytes -= size
        self._connection.stream_consumed(self._state, size)

    def at_eof(self) -> bool:
        """Whether everything was read and the peer has ended the stream."""
        return self._state.receiving is Half.ENDED and not self._state.chunks

    # --- writing -------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes; follow it with `await drain()` in a loop.

        Raises:
            LocalProtocolError: after `write_eof` or `close`.
            StreamResetError: the peer will not read on.
            ConnectionClosed: the connection is closed.
            PeerLost: the peer is gone.
        """
        if self._state.sending is Half.STOPPED:
            raise StreamResetError(f"the peer does not read the stream {self.name!r} any more")
        # Bytes are kept until acknowledged, so what may change is copied.
        kept = data if isinstance(data, bytes) else bytes(memoryview(data))
        self._connection.write_stream(self._state, memoryview(kept))

    async def drain(self) -> None:
        """Wait until little enough is queued.

        Raises:
            StreamResetError, ConnectionClosed, PeerLost: as `write`. Cancellation loses nothing.
        """
        state = self._state
        while state.pending_bytes > WRITE_BUFFER_BYTES:
            self._connection.check_writable()
            await self._wait()
        if state.sending is Half.STOPPED:
            raise StreamResetError(f"the peer does not read the stream {self.name!r} any more")
        self._connection.check_writable()

    def write_eof(self) -> None:
        """End our half after what is queued; reading goes on."""
        if self._state.sending is Half.OPEN:
            self._connection.end_stream(self._state)

    async def close(self) -> None:
        """End our half and stop reading; what was written is still delivered.

        Cancellation loses nothing.
        """
        state = self._state
        if state.sending is Half.OPEN:
            self._connection.end_stream(state)
        self._connection.stop_stream(state)

    def reset(self) -> None:
        """Give the stream up: what is queued is dropped, and the peer is told."""
        self._connection.reset_stream(self._state)

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    def wake(self) -> None:
        """Let everybody who waits look again; called by the connection."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def wants_room(self) -> bool:
        """Whether `drain` could go on."""
        return bool(self._waiters) and self._state.pending_bytes <= WRITE_BUFFER_BYTES
