"""TCP byte streams with one read buffer for all of them.

A connection holds memory for reading only while a record is incomplete: the kernel fills the shared buffer, the
consumer takes whole records out of it, and what is left over is kept aside until the next read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from typing import Any, Final, Protocol

__all__ = [
    "ReadBuffer",
    "StreamConsumer",
    "TcpStream",
    "WriteBuffers",
    "connect_tcp",
    "dial_tcp",
    "raise_descriptor_limit",
    "share_port",
    "tune_socket",
]

READ_BUFFER_BYTES: Final = 512 * 1024
"""Large enough for a few records a read; shared, so its size does not count for each connection."""

WRITE_BUFFER_BYTES: Final = 336 * 1024
"""Room for the largest group: a control record and four payload records of 64 KiB, sealed."""

_RAISE_THRESHOLDS: Final = 16 * 1024 * 1024

WRITE_BUFFERS_KEPT: Final = 4

NOTSENT_LOWAT_BYTES: Final = 128 * 1024
"""Unsent bytes in the kernel beyond which it calls a socket not writable: priorities cannot overtake those."""

LINGER_SECONDS: Final = 5.0
"""A peer that takes nothing more does not keep our socket open for longer."""

_TCP_INFO: Final = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_TCP_SYN_SENT: Final = 2  # linux/tcp_states.h; the first byte of what TCP_INFO gives
_UNDER_WAY_SECONDS: Final = 3.0
_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)

_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)


class StreamConsumer(Protocol):
    """Who reads a stream and is told when it may write."""

    def stream_opened(self) -> None:
        """The stream has come up."""

    def stream_received(self, data: memoryview) -> int:
        """Take bytes; returns how many were used. The rest is offered again, with more behind it."""

    def stream_ended(self) -> None:
        """The peer will send no more bytes."""

    def stream_lost(self, error: Exception | None) -> None:
        """The stream is gone; nothing follows."""

    def stream_writable(self) -> None:
        """The kernel has taken what was written."""


class ReadBuffer:
    """The buffer that all streams of one event loop read into."""

    __slots__ = ("shared", "view")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # A proactor keeps the buffer until the read is done, so there streams cannot share one.
        # Raises the size from which glibc takes memory from the kernel and gives it back at once: without this, each
        # batch of 64 KiB messages costs its page faults anew, which is more than decrypting them.
        bytearray(_RAISE_THRESHOLDS)
        self.shared = type(loop).__name__ != "ProactorEventLoop"
        self.view = memoryview(bytearray(READ_BUFFER_BYTES))


class WriteBuffers:
    """Buffers to seal into, used again and again: a fresh one of this size costs its page faults each time."""

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, size: int) -> memoryview:
        """A buffer of at least `size` bytes."""
        if size > WRITE_BUFFER_BYTES:
            return memoryview(bytearray(size))
        return self._free.pop() if self._free else memoryview(bytearray(WRITE_BUFFER_BYTES))

    def give_back(self, buffer: memoryview) -> None:
        """The kernel has all of it."""
        if len(buffer) == WRITE_BUFFER_BYTES and len(self._free) < WRITE_BUFFERS_KEPT:
            self._free.append(buffer)


class TcpStream(asyncio.BufferedProtocol):
    """A TCP connection as bytes in and bytes out.

    Args:
        buffer: the loop's read buffer.
        consumer: who reads; may be replaced while the stream lives.
    """

    __slots__ = ("_buffer", "_ended", "_kept", "_own", "_paused", "_transport", "consumer", "writable")

    def __init__(self, buffer: ReadBuffer, consumer: StreamConsumer | None = None) -> None:
        self._buffer = buffer
        self._own = None if buffer.shared else memoryview(bytearray(128 * 1024))
        self._kept: bytes | bytearray = b""
        self._paused = False
        self._transport: Any = None
        self._ended = False
        self.consumer = consumer
        self.writable = True

    # --- asyncio.BufferedProtocol --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = transport
        transport.set_write_buffer_limits(0)  # type: ignore[attr-defined]
        tune_socket(transport.get_extra_info("socket"))
        if self.consumer is not None:
            self.consumer.stream_opened()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the event loop."""
        view = self._own if self._own is not None else self._buffer.view
        kept = len(self._kept)
        if kept:
            view[:kept] = self._kept
            return view[kept:]
        return view

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the event loop."""
        view = self._own if self._own is not None else self._buffer.view
        end = len(self._kept) + nbytes
        consumer = self.consumer
        used = end if consumer is None else consumer.stream_received(view[:end])
        # A copy of less than one record for each read; nothing at all when records end with the read.
        self._kept = bytes(view[used:end]) if used < end else b""
        if end == len(view) and not self._paused and self._transport is not None:
            # libuv goes on with up to 31 more reads, which would leave everybody else without a turn for as long.
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """Called by the event loop."""
        self._ended = True
        if self.consumer is not None:
            self.consumer.stream_ended()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        consumer, self.consumer = self.consumer, None
        self._transport = None
        self._kept = b""
        self.writable = False
        if consumer is not None:
            consumer.stream_lost(exc)

    def pause_writing(self) -> None:
        """Called by the event loop."""
        self.writable = False

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self.writable = True
        if self.consumer is not None:
            self.consumer.stream_writable()

    # --- for consumers -------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand bytes to the kernel. They must not change until `writable` is (again) true."""
        if self._transport is not None:
            self._transport.write(data)

    def replay(self) -> None:
        """Offer the bytes that the last consumer left to the present one."""
        kept, self._kept = self._kept, b""
        if kept and self.consumer is not None:
            used = self.consumer.stream_received(memoryview(kept))
            self._kept = kept[used:]

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close after what was written has gone out, or after some seconds if the peer does not take it."""
        if self._transport is not None:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(LINGER_SECONDS, self.abort)

    def abort(self) -> None:
        """Close at once; what was written may be lost."""
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """Close at once, and leave nothing of it: the same pair of addresses may be wanted again soon (TIME_WAIT)."""
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self._transport.abort()

    @property
    def closed(self) -> bool:
        """Whether the stream is gone."""
        return self._transport is None

    def address(self, name: str) -> tuple[str, int]:
        """(host, port) of "sockname" or "peername"; ("", 0) when the socket is gone."""
        transport = self._transport
        found = None if transport is None else transport.get_extra_info(name)
        if not found:
            return "", 0
        host: str = found[0]
        # A dual-stack socket shows IPv4 peers as IPv6.
        return host.removeprefix("::ffff:") if "." in host else host, found[1]


def tune_socket(sock: socket.socket | None) -> None:
    """Send small records at once, and keep the kernel's queue short (PROTOCOL 14)."""
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _TCP_NOTSENT_LOWAT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)


async def dial_tcp(stream: TcpStream, host: str, port: int, local: tuple[str, int] | None = None) -> None:
    """Connect a stream.

    Args:
        stream: what the connection becomes.
        host: numeric address.
        port: where to.
        local: address and port to connect from, shared with a listener: NATs with endpoint-independent mapping give
            it the outside address that others know.

    Raises:
        OSError: the address did not answer, or refused. Cancellation closes the socket.
    """
    loop = asyncio.get_running_loop()
    if local is None:
        await loop.create_connection(lambda: stream, host, port)
        return
    sock = await connect_tcp(host, port, local)
    try:
        await loop.create_connection(lambda: stream, sock=sock)
    except BaseException:
        sock.close()
        raise


async def connect_tcp(
    host: str, port: int, local: tuple[str, int] | None, patience: float | None = None
) -> socket.socket:
    """Connect from a port that others may share.

    Args:
        host: numeric address.
        port: where to.
        local: address and port to connect from; None for any.
        patience: seconds of silence after which the attempt is given up, unless the handshake is under way by then.

    Raises:
        TimeoutError: silence.
        OSError: the address did not answer, or refused. Cancellation closes the socket.
    """
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if local is not None:
            share_port(sock)
            sock.bind(local)
        connecting = loop.create_task(loop.sock_connect(sock, (host, port)))
        connecting.add_done_callback(_take_notice)
        try:
            done, _ = await asyncio.wait((connecting,), timeout=patience)
            if not done and _under_way(sock):
                done, _ = await asyncio.wait((connecting,), timeout=_UNDER_WAY_SECONDS)
            if not done:
                raise TimeoutError("no answer")
            connecting.result()
        finally:
            if not connecting.done():
                # The event loop must have let go of the socket before it is closed, and its number given to another.
                connecting.cancel()
                await asyncio.wait((connecting,))
    except BaseException:
        sock.close()
        raise
    return sock


def _take_notice(connecting: asyncio.Task[None]) -> None:
    """How a connect has ended is known, even if it was called off meanwhile."""
    if not connecting.cancelled():
        connecting.exception()


def _under_way(sock: socket.socket) -> bool:
    """Whether the far end has answered a connect that is not done yet; to cut it off now would cost the connection."""
    if _TCP_INFO is None:
        return False
    with contextlib.suppress(OSError):
        return sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] != _TCP_SYN_SENT
    return False


def share_port(sock: socket.socket) -> None:
    """Let a listener and outgoing connections have one port."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system lets this process have."""
    try:
        import resource  # not on Windows
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
