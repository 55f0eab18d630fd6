"""The baseline on UDP: no protocol at all, 44 datagrams of 1472 bytes in each system call (UDP_SEGMENT and UDP_GRO).

Bulk is a blast: the sender sends until the receiver says that it has counted what was asked for. What was lost on the
way is not counted, so the figure is what arrived in the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from typing import Any, Final

from crust.bench import BULK_MESSAGE_BYTES
from crust.bench.process import UnsupportedError
from crust.bench.rows import DONE, Role, Row

__all__ = ["UdpRow"]

# <linux/udp.h>, <asm-generic/socket.h>; the socket module has no names for them
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SO_RCVBUFFORCE: Final = 33

_RECEIVE_BUFFER_BYTES: Final = 4 << 20
_DATAGRAM_BYTES: Final = 1472  # fills a packet of 1500
_DATAGRAMS_PER_CALL: Final = 44  # as many as stay under 64 KiB
_CALLS_PER_TURN: Final = 16  # before the event loop gets its turn


class UdpRow(Row):
    """Plain UDP sockets."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: list[_Listener] = []

    async def serve(self, role: Role, *, count: int, listeners: int) -> list[Any]:
        """Open sockets that count or echo.

        Raises:
            UnsupportedError: the kernel has no UDP_GRO.
        """
        opened = [_Listener(count * BULK_MESSAGE_BYTES if role == "bulk" else None) for _ in range(listeners)]
        self._listeners += opened
        return [listener.port for listener in opened]

    async def dial(self, address: Any, *, framed: bool = False) -> _Link:
        """Open a socket for the echo role."""
        return _Link(address)

    async def close(self) -> None:
        """Close the sockets."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def bulk(self, address: Any, count: int) -> float | None:
        """Send until the receiver has counted enough.

        Raises:
            UnsupportedError: the kernel has no UDP_SEGMENT.
        """
        link = _Link(address)
        try:
            link.socket.setsockopt(_SOL_UDP, _UDP_SEGMENT, _DATAGRAM_BYTES)
        except OSError as error:
            raise UnsupportedError(f"no UDP_SEGMENT: {error.strerror}") from error
        data = bytes(_DATAGRAM_BYTES * _DATAGRAMS_PER_CALL)
        done = asyncio.ensure_future(link.receive())
        self.packets = 0
        start = time.perf_counter()
        while not done.done():
            with contextlib.suppress(BlockingIOError):
                for _ in range(_CALLS_PER_TURN):
                    link.socket.send(data)
                    self.packets += _DATAGRAMS_PER_CALL
            await asyncio.sleep(0)
        elapsed = time.perf_counter() - start
        await link.close()
        return elapsed

    async def messages(self, address: Any, count: int) -> float | None:
        """Not measured: without a protocol, messages are lost."""
        return None

    async def connect(self, address: Any, count: int) -> float | None:
        """Not measured: there is nothing to connect."""
        return None


class _Listener:
    """Counts bytes up to `total` and answers `DONE`, or sends everything back."""

    def __init__(self, total: int | None) -> None:
        self._left = total
        self._buffer = bytearray(65536)
        self._socket = _open()
        self.port = self._socket.getsockname()[1]
        if total is not None:
            try:
                self._socket.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            except OSError as error:
                raise UnsupportedError(f"no UDP_GRO: {error.strerror}") from error
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            for _ in range(_CALLS_PER_TURN):
                size, sender = self._socket.recvfrom_into(self._buffer)
                if self._left is None:
                    self._socket.sendto(self._buffer[:size], sender)
                    continue
                self._left -= size
                if self._left <= 0:  # said again for each further datagram, as the answer may be lost too
                    self._socket.sendto(DONE, sender)


class _Link:
    """The dialling side."""

    def __init__(self, port: int) -> None:
        self.socket = _open()
        self.socket.connect(("127.0.0.1", port))
        self._reply: asyncio.Future[bytes] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.socket, self._read)

    async def send(self, data: bytes) -> None:
        self.socket.send(data)

    async def receive(self) -> bytes:
        self._reply = self._loop.create_future()
        return await self._reply

    async def close(self) -> None:
        self._loop.remove_reader(self.socket)
        self.socket.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self.socket.recv(65536)
            if self._reply is not None:
                self._reply.set_result(data)
                self._reply = None


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)  # or as much as the system allows
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # beyond that, for root
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    return sock
