"""A STUN server (RFC 8489) for others' clients, over UDP and TCP, on ports of its own.

On two addresses of one family at the same port it is a server as RFC 5780 wants it: it opens the port after that too,
and tells a client its NAT's mapping and filtering.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from crust.config import parse_listen
from crust.errors import ConfigError, RemoteProtocolError
from crust.net.clock import monotonic
from crust.proto.nat.stun_guard import StunGuard
from crust.wire.stun import Address, stun_frame_bytes

__all__ = ["StunService"]

_CONNECTIONS: Final = 256
_CONNECTIONS_OF_HOST: Final = 16
_IDLE_SECONDS: Final = 20.0
_BACKLOG: Final = 64
_PORT_TRIES: Final = 16

Endpoint = tuple[int, int]
Kind = socket.SocketKind


class StunService:
    """Serves on the configured addresses until it is closed.

    Args:
        count: told of what happened, by a dotted name.

    Attributes:
        addresses: what it listens on, in the order of the configuration.
    """

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._groups: list[_Group] = []
        self.addresses: list[Address] = []

    async def open(self, entries: Sequence[str]) -> None:
        """Open the addresses.

        Args:
            entries: "ADDR:PORT" or "[ADDR6]:PORT" each.

        Raises:
            ConfigError: an address cannot be listened on; the text says which and why.
        """
        try:
            for first, second in _pairs(entries):
                group = _Group(self._count)
                self._groups.append(group)
                self.addresses += await group.open(first, second)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every socket."""
        for group in self._groups:
            group.close()
        self._groups.clear()


def _pairs(entries: Sequence[str]) -> list[tuple[Address, Address | None]]:
    """Two addresses of one family at one port belong together (RFC 5780); the rest stand alone."""
    found: list[tuple[Address, Address | None]] = []
    for host, port in map(parse_listen, entries):
        fitting = next((i for i, (one, two) in enumerate(found) if two is None and _fit(one, (host, port))), None)
        if fitting is None:
            found.append(((host, port), None))
        else:
            found[fitting] = (found[fitting][0], (host, port))
    return found


def _fit(one: Address, two: Address) -> bool:
    if one[1] != two[1] or one[0] == two[0]:
        return False
    try:
        first, second = ipaddress.ip_address(one[0]), ipaddress.ip_address(two[0])
    except ValueError:
        return False  # names
    return first.version == second.version and not (first.is_unspecified or second.is_unspecified)


class _Group:
    """One server: one address, or two with two ports each."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._datagrams: dict[Endpoint, asyncio.DatagramTransport] = {}
        self._servers: list[asyncio.Server] = []
        self._guard = StunGuard(None, monotonic())
        self.connections: dict[_Stream, None] = {}
        self.of_host: Counter[str] = Counter()

    async def open(self, first: Address, second: Address | None) -> list[Address]:
        """Open the sockets; returns the configured addresses with their ports."""
        hosts = [first[0]] if second is None else [first[0], second[0]]
        sockets = _bind_all(hosts, first[1])
        addresses = {endpoint: udp.getsockname()[:2] for endpoint, (udp, _) in sockets.items()}
        self._guard = StunGuard(addresses if second is not None else None, monotonic())
        loop = asyncio.get_running_loop()
        for endpoint, (udp, tcp) in sockets.items():
            made = await loop.create_datagram_endpoint(lambda e=endpoint: _Datagrams(self, e), sock=udp)  # type: ignore[misc]
            self._datagrams[endpoint] = made[0]
            server = await loop.create_server(lambda e=endpoint: _Stream(self, e), sock=tcp, backlog=_BACKLOG)  # type: ignore[misc]
            self._servers.append(server)
        return [addresses[index, 0] for index in range(len(hosts))]

    def close(self) -> None:
        """Close every socket."""
        for transport in self._datagrams.values():
            transport.close()
        for server in self._servers:
            server.close()
        for stream in list(self.connections):
            stream.close()

    def respond(self, data: bytes, source: Address, endpoint: Endpoint, *, stream: bool) -> bytes | None:
        """Answer one message: over UDP at once, over TCP by what is returned."""
        reply = self._guard.respond(data, source, monotonic(), endpoint=endpoint, stream=stream)
        if reply is None:
            self._count("stun.not_answered")
            return None
        self._count("stun.answered")
        if stream:
            return reply.data
        self._datagrams[reply.endpoint].sendto(reply.data, reply.destination)
        return None


def _bind_all(hosts: Sequence[str], port: int) -> dict[Endpoint, tuple[socket.socket, socket.socket]]:
    """UDP and TCP sockets on each host: at the port, and, for two hosts, at the one after it.

    Raises:
        ConfigError: one of them cannot be opened.
    """
    for left in reversed(range(_PORT_TRIES if port == 0 else 1)):
        opened: dict[Endpoint, tuple[socket.socket, socket.socket]] = {}
        base, where = port, hosts[0]
        try:
            for i, j in itertools.product(range(len(hosts)), repeat=2):
                where = hosts[i]
                udp = _bind(where, base + j, socket.SOCK_DGRAM)
                base = base or udp.getsockname()[1]
                try:
                    opened[i, j] = udp, _bind(where, base + j, socket.SOCK_STREAM)
                except (OSError, OverflowError):
                    udp.close()
                    raise
        except (OSError, OverflowError) as error:
            for each in opened.values():
                each[0].close()
                each[1].close()
            if not left:
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise ConfigError(f"stun_service: cannot listen on {where} at port {base}: {why}") from error
        else:
            return opened
    raise AssertionError("unreachable")


def _bind(host: str, port: int, kind: Kind) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(found[0], kind)
    try:
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if found[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(found[4])
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, group: _Group, endpoint: Endpoint) -> None:
        self._group = group
        self._endpoint = endpoint

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._group.respond(data, (str(addr[0]), int(addr[1])), self._endpoint, stream=False)


class _Stream(asyncio.Protocol):
    """One TCP connection: it may ask several times, and has to ask now and then."""

    def __init__(self, group: _Group, endpoint: Endpoint) -> None:
        self._group = group
        self._endpoint = endpoint
        self._source: Address = ("", 0)
        self._in = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is of no such class
        peer = transport.get_extra_info("peername") or ("", 0)
        self._source = (str(peer[0]), int(peer[1]))
        group = self._group
        if group.of_host[self._source[0]] >= _CONNECTIONS_OF_HOST:
            transport.close()
            return
        if len(group.connections) >= _CONNECTIONS:
            next(iter(group.connections)).close()  # the oldest, never the newcomer
        group.connections[self] = None
        group.of_host[self._source[0]] += 1
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._transport is None or self._transport.is_closing():
            return
        self._in += data
        try:
            while (size := stun_frame_bytes(self._in)) is not None and len(self._in) >= size:
                frame = bytes(self._in[:size])
                del self._in[:size]
                reply = self._group.respond(frame, self._source, self._endpoint, stream=True)
                if reply is None:  # too often, or no request: TCP asks once
                    self.close()
                    return
                self._transport.write(reply)
                self._wait()
                if not self._in:
                    return
        except RemoteProtocolError:
            self.close()

    def pause_writing(self) -> None:
        """A client that does not read its replies is of no interest."""
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        if self in self._group.connections:
            del self._group.connections[self]
            self._group.of_host[self._source[0]] -= 1
            if not self._group.of_host[self._source[0]]:
                del self._group.of_host[self._source[0]]

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self.close)
