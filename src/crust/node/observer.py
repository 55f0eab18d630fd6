"""What a reachable node does so that others learn how their NATs behave: a second port that looks at probes.

A peer shows its sockets to that port (`wire.probe`) and is told over the encrypted path how they look from here.
Nothing is ever sent back to where a probe came from, so that a forged source gains nothing. Asked whether a peer can be
reached from a port that it has sent nothing to, the node tries the source address of the peer's own path, three times
at most (PROTOCOL 22, 23).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from crust.net.clock import monotonic
from crust.net.udp import bind_udp
from crust.node.connection import Connection
from crust.node.core import Core
from crust.types import Transport
from crust.wire.probe import KEY_BYTES, PROBE_BYTES, TOKEN_BYTES, parse_probe
from crust.wire.service import TRANSPORTS, AskObserver, AskReach, Observer, Reached, ServiceMessage, Sighted

__all__ = ["ObserverService"]

_PROBES_PER_SECOND: Final = 8.0
_PROBES_BURST: Final = 48.0
"""A peer that has just come shows two main sockets and a handful of fresh ones, each perhaps three times."""

_REACH_COST: Final = 8.0
_REACH_DATAGRAMS: Final = 3
_REACH_PAUSE: Final = 0.1
_REACH_CONNECT: Final = 1.0
_NUMBERS_KEPT: Final = 64
_HOSTS_MOST: Final = 8
"""Addresses of ours at which there are observers; a node has one or two."""

_STREAMS_MOST: Final = 256
_STREAM_SECONDS: Final = 3.0


class _Bucket:
    """A token bucket."""

    __slots__ = ("at", "tokens")

    def __init__(self, now: float) -> None:
        self.at = now
        self.tokens = _PROBES_BURST

    def take(self, cost: float, now: float) -> bool:
        self.tokens = min(_PROBES_BURST, self.tokens + (now - self.at) * _PROBES_PER_SECOND)
        self.at = now
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True


@dataclass(slots=True)
class _Ticket:
    """A peer that may send probes."""

    connection: Connection
    token: bytes
    key: bytes
    bucket: _Bucket
    numbers: OrderedDict[bytes, None] = field(default_factory=OrderedDict)  # seen, so that copies count once


@dataclass(slots=True)
class _Post:
    """The observers on one address of ours."""

    tcp: int = 0
    utp: int = 0
    server: asyncio.Server | None = None
    transports: list[asyncio.DatagramTransport] = field(default_factory=list)

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for transport in self.transports:
            transport.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, service: ObserverService) -> None:
        self._service = service

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """A probe, or noise."""
        self._service.look(data, "utp", addr)


class _Stream(asyncio.Protocol):
    """One TCP connection that shows itself; who made it ends it."""

    def __init__(self, service: ObserverService) -> None:
        self._service = service
        self._data = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = transport  # type: ignore[assignment]  # of another class in other event loops
        self._service.opened(self)

    def data_received(self, data: bytes) -> None:
        """A probe, or noise."""
        assert self.transport is not None
        self._data += data
        if len(self._data) > PROBE_BYTES:
            self.transport.abort()
        elif len(self._data) == PROBE_BYTES:
            self._service.look(self._data, "tcp", self.transport.get_extra_info("peername"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._service.closed(self)


class ObserverService:
    """Looks at the probes of a node's peers.

    Args:
        core: the node's centre.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._posts: dict[str, asyncio.Task[_Post]] = {}
        self._tickets: dict[Connection, _Ticket] = {}
        self._by_token: dict[bytes, _Ticket] = {}
        self._streams: dict[_Stream, asyncio.TimerHandle] = {}
        self._reaching: set[tuple[Connection, int]] = set()  # and path
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, connection: Connection, message: ServiceMessage, path_id: int | None) -> bool:
        """Answer a peer's message; False when it is not for this service."""
        if isinstance(message, AskObserver):
            if path_id is not None:
                self._run(self._offer(connection, path_id))
        elif isinstance(message, AskReach):
            if path_id is not None:
                self._reach(connection, message, path_id)
        else:
            return False
        return True

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        ticket = self._tickets.pop(connection, None)
        if ticket is not None:
            del self._by_token[ticket.token]

    def close(self) -> None:
        """Close every socket."""
        for task in [*self._tasks, *self._posts.values()]:
            if not task.done():
                task.cancel()
            elif not task.cancelled() and task.exception() is None and isinstance(post := task.result(), _Post):
                post.close()
        for stream, timer in list(self._streams.items()):
            timer.cancel()
            if stream.transport is not None:
                stream.transport.abort()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._core.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- telling where we look -----------------------------------------------------------------------------------

    async def _offer(self, connection: Connection, path_id: int) -> None:
        local = connection.path_local(path_id)
        if local is None or self._core.config.listen == []:
            return
        post = await self._post(local[0])
        if post is None or connection.closed:
            return
        ticket = self._tickets.get(connection)
        if ticket is None:
            random = self._core.random
            ticket = _Ticket(connection, random(TOKEN_BYTES), random(KEY_BYTES), _Bucket(monotonic()))
            self._tickets[connection] = self._by_token[ticket.token] = ticket
        connection.send_service(Observer(post.tcp, post.utp, ticket.token, ticket.key), path_id)

    async def _post(self, host: str) -> _Post | None:
        """The observers on one address, opened when they are first asked for."""
        task = self._posts.get(host)
        if task is None:
            if len(self._posts) >= _HOSTS_MOST:
                self._core.stats.count("observer.too_many_addresses")
                return None
            task = self._posts[host] = self._core.loop.create_task(self._open(host))
        try:
            return await asyncio.shield(task)
        except OSError:
            self._core.stats.count("observer.not_opened")
            return None

    async def _open(self, host: str) -> _Post:
        loop, transports = self._core.loop, self._core.config.transports
        post = _Post()
        try:
            if "utp" in transports:
                sock = bind_udp(host, 0)
                post.utp = sock.getsockname()[1]
                transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=sock)
                post.transports.append(transport)
                # Nobody is told of this one: what comes from there comes from a port that nobody has sent to.
                transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=bind_udp(host, 0))
                post.transports.append(transport)
            if "tcp" in transports:
                post.server = await loop.create_server(lambda: _Stream(self), host, 0)
                post.tcp = post.server.sockets[0].getsockname()[1]
        except BaseException:
            post.close()
            raise
        return post

    # --- looking -------------------------------------------------------------------------------------------------

    def look(self, data: bytes, transport: Transport, source: tuple[Any, ...]) -> None:
        """A probe, or noise, has come."""
        count = self._core.stats.count
        ticket = self._by_token.get(data[:TOKEN_BYTES]) if len(data) == PROBE_BYTES else None
        if ticket is None:
            count("observer.stranger")
            return
        if not ticket.bucket.take(1, monotonic()):
            count("observer.too_many")
            return
        probe = parse_probe(data)
        if not probe.authentic(ticket.key, transport):
            count("observer.forged")
        elif probe.number in ticket.numbers:
            count("observer.repeated")
        else:
            ticket.numbers[probe.number] = None
            if len(ticket.numbers) > _NUMBERS_KEPT:
                ticket.numbers.popitem(last=False)
            count("observer.sighted")
            host, port = str(source[0]).partition("%")[0], int(source[1])
            ticket.connection.send_service(Sighted(probe.number, TRANSPORTS.index(transport), host, port))

    def opened(self, stream: _Stream) -> None:
        """A TCP connection has come in: for a moment only, and of too many the oldest goes."""
        assert stream.transport is not None
        self._streams[stream] = self._core.loop.call_later(_STREAM_SECONDS, stream.transport.abort)
        if len(self._streams) > _STREAMS_MOST:
            oldest = next(iter(self._streams))
            if oldest.transport is not None:
                oldest.transport.abort()

    def closed(self, stream: _Stream) -> None:
        """It has ended."""
        timer = self._streams.pop(stream, None)
        if timer is not None:
            timer.cancel()

    # --- reaching back -------------------------------------------------------------------------------------------

    def _reach(self, connection: Connection, message: AskReach, path_id: int) -> None:
        ticket = self._tickets.get(connection)
        if (
            ticket is None
            or (connection, path_id) in self._reaching
            or not ticket.bucket.take(_REACH_COST, monotonic())
        ):
            self._core.stats.count("observer.not_reached_for")
            return
        self._run(self._reach_back(connection, message, path_id))

    async def _reach_back(self, connection: Connection, message: AskReach, path_id: int) -> None:
        source, local = connection.path_source(path_id), connection.path_local(path_id)
        if source is None or local is None:
            return
        self._reaching.add((connection, path_id))
        try:
            if source.transport == "tcp":
                connected = await self._connect((source.host, source.port), local[0])
            else:
                connected = await self._send(message.word, (source.host, source.port), local[0])
            connection.send_service(Reached(message.word, connected), path_id)
        finally:
            self._reaching.discard((connection, path_id))

    async def _connect(self, address: tuple[str, int], local: str) -> bool:
        try:
            async with asyncio.timeout(_REACH_CONNECT):
                transport, _ = await self._core.loop.create_connection(
                    asyncio.Protocol, *address, local_addr=(local, 0)
                )
        except (OSError, TimeoutError):
            return False
        transport.abort()
        return True

    async def _send(self, word: bytes, address: tuple[str, int], local: str) -> bool:
        post = await self._post(local)
        if post is None or len(post.transports) < 2:
            return False
        for left in reversed(range(_REACH_DATAGRAMS)):
            post.transports[1].sendto(word, address)
            if left:
                await asyncio.sleep(_REACH_PAUSE)
        return True
