"""Measures how the routers in front of a host behave, and compares with what was declared.

Sockets of a lab can be used from one process whatever host they belong to, so one coroutine plays both sides, and
hardly anything has to wait for silence: links keep packets in order, so what has not come before a later packet that
must come never will. Only a kernel short of CPU time lets packets of two flows overtake, for which there is some grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crust.testing.natlab.declare import Behaviour, Kind, Ports
from crust.testing.natlab.errors import NotAsDeclared
from crust.testing.natlab.lab import Lab
from crust.testing.natlab.places import Host

__all__ = ["Findings", "Protocol", "measure", "prove"]

EI = Behaviour.ENDPOINT_INDEPENDENT
AD = Behaviour.ADDRESS_DEPENDENT
APD = Behaviour.ADDRESS_AND_PORT_DEPENDENT
_ORDER = [EI, AD, APD]

_SOCKETS = 5
_ROUND_TRIPS = 3
_GRACE_SECONDS = 0.02
_DELAY_SECONDS = 0.001
# A busy kernel may let a packet overtake another; what is so stays so.
_MEASUREMENTS = 3
_ANSWER_SECONDS = 5.0
_PORT, _OTHER_PORT, _CLOSED_PORT = 443, 8443, 9
_NAT_PMP_PORT = 5351

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one transport protocol fares; None where it could not be told.

    Attributes:
        passes: whether it gets out at all, and back.
        mapping: RFC 4787 §4.1.
        filtering: RFC 4787 §5.
        ports: RFC 4787 §4.2.
        hairpinning: RFC 4787 §6; None where addresses are not translated.
        refuse: TCP: whether an unexpected SYN is answered by a RST.
        other_ports: TCP: whether ports besides 443 can be reached.
    """

    passes: bool
    mapping: Behaviour | None = None
    filtering: Behaviour | None = None
    ports: Ports | None = None
    hairpinning: bool | None = None
    refuse: bool | None = None
    other_ports: bool | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """What a host's way to the internet is like.

    Attributes:
        udp: for UDP.
        tcp: for TCP.
        translated: whether the outside address differs from the host's own.
        icmp_errors: whether "port unreachable" comes back; None without UDP.
        port_mapping: whether the router answers NAT-PMP.
        samples: outside ports that were seen, in order, for people.
    """

    udp: Protocol
    tcp: Protocol
    translated: bool
    icmp_errors: bool | None
    port_mapping: bool
    samples: tuple[int, ...] = field(default=(), compare=False)

    @classmethod
    def expected(cls, kind: Kind) -> Findings:
        """What the declaration of a kind promises."""
        nats = [router.nat for router in kind.routers if router.nat is not None]
        blocked = {name for router in kind.routers for name in router.firewall.blocked}
        restricted = any(router.firewall.tcp_ports is not None for router in kind.routers)
        mapping = max([nat.mapping for nat in nats], key=_ORDER.index, default=EI)
        filtering = max([nat.filtering for nat in nats], key=_ORDER.index, default=APD if kind.routers else EI)
        ports = next((p for p in (Ports.RANDOM, Ports.SEQUENTIAL) if p in [n.ports for n in nats]), Ports.PRESERVING)
        # A mapping that depends on the endpoint has no outside endpoint that another could call.
        hairpinning = nats[0].hairpinning and mapping is EI if nats else None
        udp = Protocol(True, mapping, filtering, ports, hairpinning)
        tcp = Protocol(
            True,
            mapping,
            filtering,
            ports,
            None if restricted else hairpinning,
            None if filtering is EI else bool(nats and nats[0].refuse),
            other_ports=not restricted,
        )
        return cls(
            udp=Protocol(passes=False) if "udp" in blocked else udp,
            tcp=Protocol(passes=False) if "tcp" in blocked else tcp,
            translated=bool(nats),
            icmp_errors=None if "udp" in blocked else all(nat.icmp_errors for nat in nats),
            port_mapping=any(router.port_mapping for router in kind.routers),
        )

    def differences(self, other: Findings) -> list[str]:
        """Where two findings are not the same, in words; other's value comes last."""
        found = [
            f"{name}: {getattr(self, name)}, not {getattr(other, name)}"
            for name in ("translated", "icmp_errors", "port_mapping")
            if getattr(self, name) != getattr(other, name)
        ]
        for protocol in ("udp", "tcp"):
            mine, theirs = getattr(self, protocol), getattr(other, protocol)
            found += [
                f"{protocol} {name}: {getattr(mine, name)}, not {getattr(theirs, name)}"
                for name in Protocol.__slots__
                if getattr(mine, name) != getattr(theirs, name)
            ]
        return found


class _Udp(asyncio.DatagramProtocol):
    """A UDP socket of a host, with what it received."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[tuple[bytes, Endpoint]] = asyncio.Queue()
        self.heard = asyncio.Event()
        self.refused = False

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        self.inbox.put_nowait((data, address[:2]))
        self.heard.set()

    def error_received(self, error: Exception) -> None:
        self.heard.set()
        self.refused = self.refused or isinstance(error, ConnectionRefusedError)

    @classmethod
    async def open(cls, place: _Place, port: int = 0, *, target: Endpoint | None = None) -> _Udp:
        made = await place.host.socket(place.family, socket.SOCK_DGRAM)
        made.bind((place.address, port))
        if target is not None:
            made.connect(target)
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(cls, sock=made)
        protocol.transport = transport
        place.stack.callback(transport.close)
        return protocol

    transport: asyncio.DatagramTransport

    @property
    def port(self) -> int:
        port: int = self.transport.get_extra_info("sockname")[1]
        return port

    async def expect(self, tag: bytes) -> Endpoint:
        """Wait for one datagram, passing over others; returns where it came from."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            while True:
                data, sender = await self.inbox.get()
                if data == tag:
                    return sender

    def arrived(self) -> set[bytes]:
        """What is in the inbox, which is emptied."""
        found = set()
        while not self.inbox.empty():
            found.add(self.inbox.get_nowait()[0])
        return found


@dataclass(slots=True)
class _Place:
    """A host with the address that is used on it."""

    host: Host
    address: str
    family: socket.AddressFamily
    stack: contextlib.AsyncExitStack

    async def tcp(self, port: int = 0, *, address: str | None = None) -> socket.socket:
        """A TCP socket whose port others may share."""
        made = await self.host.socket(self.family, socket.SOCK_STREAM)
        self.stack.callback(made.close)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((address or self.address, port))
        return made

    async def listen(self, port: int) -> socket.socket:
        made = await self.tcp(port)
        made.listen(16)
        return made


class _Prober:
    """One measurement of one host, with two hosts on the internet to help."""

    def __init__(self, client: _Place, first: _Place, second: _Place) -> None:
        self.client, self.first, self.second = client, first, second
        self._tags = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self.translated = False
        self.samples: list[int] = []

    def _tag(self) -> bytes:
        return b"probe %d" % next(self._tags)

    async def run(self) -> Findings:
        """Measure everything."""
        tcp_servers = [
            await place.listen(port)
            for place, port in ((self.first, _PORT), (self.first, _OTHER_PORT), (self.second, _PORT))
        ]
        tcp = await self._tcp(tcp_servers)
        udp, icmp_errors = await self._udp(tcp_servers[0])
        return Findings(
            udp=udp,
            tcp=tcp,
            translated=self.translated,
            icmp_errors=icmp_errors,
            port_mapping=await self._port_mapping(),
            samples=tuple(self.samples),
        )

    # UDP

    async def _udp(self, fence: socket.socket) -> tuple[Protocol, bool | None]:
        one, two, three = [
            await _Udp.open(place, port)
            for place, port in ((self.first, _PORT), (self.first, _OTHER_PORT), (self.second, _PORT))
        ]
        client = await _Udp.open(self.client)
        client.transport.sendto(self._tag(), (self.first.address, _PORT))
        await self._connect(0, fence, (self.first.address, _PORT))
        if not await _in_time(lambda: not one.inbox.empty()):
            return Protocol(passes=False), None
        mapped = [await self._outside_of(client, server) for server in (one, two, three)]
        mapping = _mapping([port for _, port in mapped])
        self.translated = mapped[0][0] != self.client.address
        filtering = await self._udp_filtering()
        ports = await self._udp_ports(one)
        hairpinning = await self._udp_hairpinning(one) if self.translated else None
        return Protocol(True, mapping, filtering, ports, hairpinning), await self._icmp_errors()

    async def _outside_of(self, client: _Udp, server: _Udp) -> Endpoint:
        """The outside endpoint of a socket, as one server sees it."""
        tag = self._tag()
        host, port = server.transport.get_extra_info("sockname")[:2]
        client.transport.sendto(tag, (host, port))
        return await server.expect(tag)

    async def _udp_filtering(self) -> Behaviour:
        """Open a fresh mapping towards one endpoint and see from which others it lets packets in."""
        client = await _Udp.open(self.client)
        known = await _Udp.open(self.first)
        same_address, elsewhere = await _Udp.open(self.first), await _Udp.open(self.second)
        outside = await self._outside_of(client, known)
        from_elsewhere, from_same, from_known = self._tag(), self._tag(), self._tag()
        elsewhere.transport.sendto(from_elsewhere, outside)
        same_address.transport.sendto(from_same, outside)
        known.transport.sendto(from_known, outside)
        async with asyncio.timeout(_ANSWER_SECONDS):
            arrived: set[bytes] = set()
            while from_known not in arrived:
                arrived.add((await client.inbox.get())[0])
        if not {from_elsewhere, from_same} <= arrived:
            await asyncio.sleep(_GRACE_SECONDS)
        arrived |= client.arrived()
        if from_elsewhere in arrived:
            return EI
        return AD if from_same in arrived else APD

    async def _udp_ports(self, server: _Udp) -> Ports:
        clients = [await _Udp.open(self.client) for _ in range(_SOCKETS)]
        outside = [(await self._outside_of(client, server))[1] for client in clients]
        return self._ports([client.port for client in clients], outside)

    def _ports(self, inside: list[int], outside: list[int]) -> Ports:
        self.samples += outside
        if inside == outside:
            return Ports.PRESERVING
        steps = {(after - before) % 65536 for before, after in itertools.pairwise(outside)}
        return Ports.SEQUENTIAL if len(steps) == 1 else Ports.RANDOM

    async def _udp_hairpinning(self, server: _Udp) -> bool:
        one, two = await _Udp.open(self.client), await _Udp.open(self.client)
        outside_one, outside_two = await self._outside_of(one, server), await self._outside_of(two, server)
        # Each opens its filter towards the other's outside endpoint before what counts is sent.
        one.transport.sendto(self._tag(), outside_two)
        tag = self._tag()
        two.transport.sendto(tag, outside_one)
        await self._outside_of(two, server)
        return await self._came(one, server, outside_one, tag)

    async def _came(self, client: _Udp, server: _Udp, outside: Endpoint, tag: bytes) -> bool:
        """Whether a datagram has arrived before one that is sent now."""
        fence = self._tag()
        server.transport.sendto(fence, outside)
        async with asyncio.timeout(_ANSWER_SECONDS):
            while True:
                data, _ = await client.inbox.get()
                if data == tag:
                    return True
                if data == fence:
                    break
        await asyncio.sleep(_GRACE_SECONDS)
        return tag in client.arrived()

    async def _icmp_errors(self) -> bool:
        client = await _Udp.open(self.client, target=(self.first.address, _CLOSED_PORT))
        other = await _Udp.open(self.client)
        server = await _Udp.open(self.first)
        client.transport.sendto(self._tag())
        outside = await self._outside_of(other, server)
        tag = self._tag()
        server.transport.sendto(tag, outside)
        await other.expect(tag)
        return await _in_time(lambda: client.refused)

    async def _port_mapping(self) -> bool:
        gateway = self.client.host.gateway
        if gateway is None or not self.translated:
            return False
        client = await _Udp.open(self.client, target=(gateway, _NAT_PMP_PORT))
        client.transport.sendto(b"\0\0")
        # The router is on the LAN; it either answers, or says that the port is closed, or both are missing.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.heard.wait(), 0.5)
        return not client.inbox.empty()

    # TCP

    async def _connect(self, port: int, server: socket.socket, target: Endpoint) -> tuple[socket.socket, Endpoint]:
        """Connect from a port of the client; returns our socket and its outside endpoint."""
        made = await self.client.tcp(port)
        async with asyncio.timeout(_ANSWER_SECONDS):
            accepting = asyncio.ensure_future(self._loop.sock_accept(server))
            await self._loop.sock_connect(made, target)
            accepted, outside = await accepting
        self.client.stack.callback(accepted.close)
        self._accepted = accepted
        return made, outside[:2]

    async def _tcp(self, servers: list[socket.socket]) -> Protocol:
        anchor = await self.client.listen(0)
        port: int = anchor.getsockname()[1]
        targets = [(self.first.address, _PORT), (self.first.address, _OTHER_PORT), (self.second.address, _PORT)]
        line, one = await self._connect(port, servers[0], targets[0])
        far_line = self._accepted
        self.translated = one[0] != self.client.address
        other_ports, two = await self._other_port(servers, targets, (line, far_line))
        _, three = await self._connect(port, servers[2], targets[2])
        outside = [one[1], two, three[1]] if two is not None else [one[1], three[1]]
        filtering, refuse = await self._tcp_filtering(anchor, servers[0])
        return Protocol(
            True,
            _mapping(outside),
            filtering,
            await self._tcp_ports(servers[0], targets[0]),
            await self._tcp_hairpinning(servers[0], (line, far_line)) if self.translated and other_ports else None,
            None if filtering is EI else refuse,
            other_ports=other_ports,
        )

    async def _other_port(
        self, servers: list[socket.socket], targets: list[Endpoint], line: tuple[socket.socket, socket.socket]
    ) -> tuple[bool, int | None]:
        """Whether a port other than 443 can be reached, and the outside port used for it."""
        made = await self.client.tcp(line[0].getsockname()[1])
        accepting = asyncio.ensure_future(self._loop.sock_accept(servers[1]))
        connecting = asyncio.ensure_future(self._loop.sock_connect(made, targets[1]))
        try:
            await self._round_trip(*line)
            if not await _in_time(accepting.done):
                return False, None
            accepted, outside = await accepting
            self.client.stack.callback(accepted.close)
            await connecting
            return True, outside[1]
        finally:
            await _settle(accepting, connecting)

    async def _round_trip(self, near: socket.socket, far: socket.socket) -> None:
        """A byte there and back along an established connection, often enough for a handshake to be over."""
        # Calls that were begun as tasks send their SYN in the next turn of the loop.
        await asyncio.sleep(0)
        async with asyncio.timeout(_ANSWER_SECONDS):
            for _ in range(_ROUND_TRIPS):
                await self._loop.sock_sendall(near, b"x")
                await self._loop.sock_recv(far, 1)
                await self._loop.sock_sendall(far, b"x")
                await self._loop.sock_recv(near, 1)

    async def _tcp_filtering(self, anchor: socket.socket, server: socket.socket) -> tuple[Behaviour, bool]:
        """Call the outside endpoint of a fresh connection's port from other endpoints."""
        listener = await self.client.listen(0)
        near, outside = await self._connect(listener.getsockname()[1], server, (self.first.address, _PORT))
        far = self._accepted
        results = []
        for place in (self.second, self.first):
            caller = await place.tcp()
            calling = asyncio.ensure_future(self._loop.sock_connect(caller, outside))
            await self._round_trip(near, far)
            done = await _in_time(calling.done)
            results.append("silence" if not done else "accepted" if calling.exception() is None else "refused")
            await _settle(calling)
        if results[0] == "accepted":
            return EI, False
        return (AD if results[1] == "accepted" else APD), results[0] == "refused"

    async def _tcp_ports(self, server: socket.socket, target: Endpoint) -> Ports:
        inside, outside = [], []
        for _ in range(_SOCKETS):
            made, seen = await self._connect(0, server, target)
            inside.append(made.getsockname()[1])
            outside.append(seen[1])
        return self._ports(inside, outside)

    async def _tcp_hairpinning(self, server: socket.socket, line: tuple[socket.socket, socket.socket]) -> bool:
        """Two ports of the client call each other's outside endpoints at once."""
        ports, outsides = [], []
        for _ in range(2):
            made, outside = await self._connect(0, server, (self.first.address, _PORT))
            ports.append(made.getsockname()[1])
            outsides.append(outside)
        sockets = [await self.client.tcp(port) for port in ports]
        calls = [
            asyncio.ensure_future(self._loop.sock_connect(each, outsides[1 - index]))
            for index, each in enumerate(sockets)
        ]
        await self._round_trip(*line)
        worked = await _in_time(lambda: any(call.done() and call.exception() is None for call in calls))
        await _settle(*calls)
        return worked


async def _in_time(happened: Callable[[], bool]) -> bool:
    """Whether something has happened, or does so in a moment."""
    if not happened():
        await asyncio.sleep(_GRACE_SECONDS)
    return happened()


async def _settle(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _mapping(outside: list[int]) -> Behaviour:
    """What three outside ports say, towards two ports of one address and one of another (or without the second)."""
    if len(set(outside)) == 1:
        return EI
    return AD if len(outside) == 3 and outside[0] == outside[1] else APD


async def measure(lab: Lab, host: Host) -> Findings:
    """Measure how the routers in front of a host behave; it takes about fifteen round trips.

    Args:
        lab: where the host is.
        host: a host with at least one address.

    Raises:
        TimeoutError: the host cannot reach the internet by TCP to port 443.
    """
    six = ":" in host.address
    family = socket.AF_INET6 if six else socket.AF_INET
    helpers = [await lab.public(f"probe-{each}") for each in (1, 2)]
    try:
        async with contextlib.AsyncExitStack() as stack:
            places = [_Place(host, host.address, family, stack)]
            places += [_Place(helper, helper.addresses[-1 if six else 0], family, stack) for helper in helpers]
            return await _Prober(*places).run()
    finally:
        for helper in helpers:
            await lab.remove(helper)


async def prove(lab: Lab, kind: Kind) -> Findings:
    """Build a place of some kind, measure it, and take it down again.

    Returns:
        What was measured, which is what was declared.

    Raises:
        NotAsDeclared: it differs.
        LabUnavailable: the kind needs a program that is missing.
    """
    host = await lab.place(kind, delay=_DELAY_SECONDS)
    expected = Findings.expected(kind)
    try:
        found = await measure(lab, host)
        for _ in range(_MEASUREMENTS - 1):
            if found != expected:
                found = await measure(lab, host)
    finally:
        outermost = host.site
        while outermost is not None and outermost.parent is not None:
            outermost = outermost.parent
        await lab.remove(outermost or host)
    if differences := found.differences(expected):
        raise NotAsDeclared(f"{kind.name}: " + "; ".join(differences))
    return found
