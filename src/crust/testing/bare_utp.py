"""Bare µTP over one UDP socket, for trying the engine against other implementations. Nothing is encrypted.

Not the way Crust's nodes talk: they run the engine inside a tunnel. This is the least front end that the engine needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from crust.errors import RemoteProtocolError
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.events import Connected, Ended, EndReason, PeerFinished
from crust.wire.utp import PacketType

__all__ = ["BareConnection", "BareEndpoint"]

Address = tuple[str, int]
_READS_PER_WAKE_UP = 64


class BareConnection:
    """A connection as a stream of bytes.

    Attributes:
        engine: the µTP engine.
        ended: why it ended; None while it lasts.
    """

    def __init__(self, endpoint: BareEndpoint, engine: UtpConnection, address: Address) -> None:
        self.engine = engine
        self.ended: Ended | None = None
        self._endpoint, self._address = endpoint, address
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._finished = False
        self._connected = False
        self._changed: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def _wait(self, ready: Callable[[], object]) -> None:
        while not ready() and self.ended is None:
            waiter = self._loop.create_future()
            self._changed.add(waiter)
            try:
                await waiter
            finally:
                self._changed.discard(waiter)

    async def connected(self) -> bool:
        """Wait for the peer's answer; False when none came."""
        await self._wait(lambda: self._connected)
        return self._connected

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer at the end of the stream.

        Raises:
            ConnectionError: the connection ended by a fault.
        """
        await self._wait(lambda: len(self._received) >= size or self._finished)
        if len(self._received) < size and self.ended is not None and self.ended.reason is not EndReason.CLOSED:
            raise ConnectionError(self.ended.detail)
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def write(self, data: bytes) -> None:
        """Hand over all of `data`; it may not have been sent yet.

        Raises:
            ConnectionError: the connection has ended.
        """
        view = memoryview(data)
        while view:
            await self._wait(lambda: self.engine.send_space)
            if self.ended is not None:
                raise ConnectionError(self.ended.detail)
            view = view[self.engine.send_data(view, self._loop.time()) :]
            self.pump()

    def close(self) -> None:
        """End our direction."""
        self.engine.close()
        self.pump()

    async def closed(self) -> Ended:
        """Wait for the end of the connection."""
        await self._wait(lambda: False)
        if self.ended is None:  # pragma: no cover - the wait is over only then
            raise AssertionError
        return self.ended

    def pump(self) -> None:
        """Drain the engine and arm its timer."""
        engine, now = self.engine, self._loop.time()
        changed = self._take_events() | self._take_data()
        while batches := engine.datagrams_to_send(now):
            for batch in batches:
                for datagram in batch.datagrams():
                    self._endpoint.send(datagram, self._address)
        self._arm(engine.next_timeout())
        if changed or engine.send_space:
            for waiter in self._changed:
                if not waiter.done():
                    waiter.set_result(None)
        if self.ended is not None:
            self._endpoint.forget(self)

    def _take_events(self) -> bool:
        changed = False
        while (event := self.engine.next_event()) is not None:
            changed = True
            if isinstance(event, Connected):
                self._connected = True
            elif isinstance(event, PeerFinished):
                self._finished = True
            else:
                self.ended = event
        return changed

    def _take_data(self) -> bool:
        buffers = self.engine.data_to_read()
        for buffer in buffers:
            self._received += buffer
            self.engine.consumed(len(buffer))
        return bool(buffers)

    def _arm(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self.engine.handle_timeout(self._loop.time())
        self.pump()


class BareEndpoint:
    """A UDP socket and its connections, told apart by address and connection id.

    Attributes:
        address: where it listens.
        accepted: connections that peers opened.
    """

    def __init__(self, config: UtpConfig | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        self._config = config or UtpConfig()
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        self._socket.bind((host, port))
        self.address: Address = self._socket.getsockname()
        self.accepted: asyncio.Queue[BareConnection] = asyncio.Queue()
        self._connections: dict[tuple[Address, int], BareConnection] = {}
        self._loop.add_reader(self._socket, self._on_readable)

    async def connect(self, address: Address) -> BareConnection:
        """Open a connection.

        Raises:
            ConnectionError: the peer does not answer.
        """
        engine = UtpConnection.connect(self._config, self._loop.time(), os.urandom)
        connection = self._add(engine, address)
        connection.pump()
        if not await connection.connected():
            raise ConnectionError(f"{address[0]}:{address[1]} does not answer")
        return connection

    def close(self) -> None:
        """Abort what is open and close the socket."""
        for connection in list(self._connections.values()):
            connection.engine.abort()
            connection.pump()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def send(self, datagram: bytes, address: Address) -> None:
        """Send, or lose it as a full network would."""
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self._socket.sendto(datagram, address)

    def forget(self, connection: BareConnection) -> None:
        """A connection has ended."""
        for key in [key for key, known in self._connections.items() if known is connection]:
            del self._connections[key]

    def _add(self, engine: UtpConnection, address: Address) -> BareConnection:
        connection = BareConnection(self, engine, address)
        self._connections[address, engine.receive_id] = connection
        return connection

    def _on_readable(self) -> None:
        batches: dict[BareConnection, list[memoryview]] = {}
        for _ in range(_READS_PER_WAKE_UP):
            try:
                datagram, address = self._socket.recvfrom(65_535)
            except (BlockingIOError, ConnectionRefusedError):
                break
            connection = self._find(datagram, address)
            if connection is not None:
                batches.setdefault(connection, []).append(memoryview(datagram))
        for connection, batch in batches.items():
            connection.engine.receive_datagrams(batch, self._loop.time())
            connection.pump()

    def _find(self, datagram: bytes, address: Address) -> BareConnection | None:
        if len(datagram) < 20:
            return None
        kind, connection_id = datagram[0] >> 4, int.from_bytes(datagram[2:4])
        if kind != PacketType.SYN:
            return self._connections.get((address, connection_id))
        known = self._connections.get((address, connection_id + 1 & 0xFFFF))
        if known is not None:
            return known
        with contextlib.suppress(RemoteProtocolError):
            engine = UtpConnection.accept(datagram, self._config, self._loop.time(), os.urandom)
            connection = self._add(engine, address)
            self.accepted.put_nowait(connection)
            connection.pump()
        return None
