"""A small internet with NATs, simulated: no sockets, no clock, one seed, thousands of dials a minute.

The model is that of RFC 4787 and RFC 5382: mapping, filtering, allocation, hairpinning, life of a mapping, unexpected
SYNs dropped or answered with RST, plus two traits of real routers: other hosts behind the same NAT that use up ports
(`noise`), and the Linux router without an input firewall (`open_input`), where a packet that comes before the first one
goes out makes a connection-tracking entry that moves the outside port. Every router takes one off a packet's TTL.

    net = SimInternet(seed=1)
    nat = net.nat("203.0.113.1", NatType(mapping=APD, filtering=APD, allocation=RANDOM))
    a, b = net.host("192.168.1.2", nat), net.host("198.51.100.7")
    a.listen_udp(5000, lambda data, source: ...)
    a.send(5000, ("198.51.100.7", 6000), data, ttl=64)
    net.run(until=2.0)
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from crust.proto.nat.behaviour import Allocation, Filtering, Mapping

__all__ = ["NatType", "Segment", "SimHost", "SimInternet", "SimNat", "TcpAttempt"]

Address = tuple[str, int]
Protocol = Literal["udp", "tcp"]
Segment = Literal["syn", "synack", "ack", "data", "rst"]

_FIRST_PORT, _LAST_PORT = 1024, 65535
_CONNTRACK_SECONDS = 30.0  # of an unreplied UDP entry on Linux
_SYN_WAITS = (1.0, 2.0, 4.0)  # retransmissions of a kernel's SYN


@dataclass(frozen=True, slots=True)
class NatType:
    """How a NAT behaves.

    Attributes:
        mapping: RFC 4787 §4.1.
        filtering: RFC 4787 §5.
        allocation: of the outside port. `PRESERVING` takes a random one where the same is not free.
        step: between two ports of sequential allocation.
        hairpinning: packets from inside to its own outside address come back in.
        udp_life: seconds for which an idle mapping lives.
        syn: what an unexpected TCP SYN gets: "drop" or "rst".
        noise: mappings per second that other hosts make.
        open_input: a Linux router without input firewall. It maps each flow by itself, preserving the port where the
            flow is free, which looks endpoint-independent to observers; `mapping` and `filtering` are not asked.
    """

    mapping: Mapping = Mapping.ENDPOINT_INDEPENDENT
    filtering: Filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
    allocation: Allocation = Allocation.PRESERVING
    step: int = 1
    hairpinning: bool = False
    udp_life: float = 120.0
    syn: Literal["drop", "rst"] = "drop"
    noise: float = 0.0
    open_input: bool = False


@dataclass(slots=True)
class _Packet:
    protocol: Protocol
    source: Address
    destination: Address
    payload: Any
    ttl: int


@dataclass(slots=True)
class _Entry:
    """One mapping: inner address, outside port, and whom it lets in."""

    inner: Address
    port: int
    used_at: float
    allowed: set[Address] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    replied: set[Address] = field(default_factory=set)


class SimInternet:
    """The internet and its clock.

    Args:
        seed: of everything random.
        latency: seconds between any two points of the core, one way.
        access: seconds between a host and the core, one way.
        loss: share of packets lost in the core.
        jitter: up to so many seconds more, at random, for each packet.
        hops: routers in the core between any two points.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        latency: float = 0.018,
        access: float = 0.001,
        loss: float = 0.0,
        jitter: float = 0.0,
        hops: int = 1,
    ) -> None:
        self.random = Random(seed)  # noqa: S311 - a simulation
        self.now = 0.0
        self.latency = latency
        self.access = access
        self.loss = loss
        self.jitter = jitter
        self.hops = hops
        self.central: set[str] = set()
        """Hosts in the middle: half the latency to and from them."""
        self.packets = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._core: dict[str, SimHost | SimNat] = {}

    def host(self, address: str, nat: SimNat | None = None) -> SimHost:
        """A host in the core, or behind `nat`."""
        made = SimHost(self, address, nat)
        if nat is None:
            self._core[address] = made
        else:
            nat.inside[address] = made
        return made

    def nat(self, address: str, kind: NatType, outer: SimNat | None = None) -> SimNat:
        """A NAT with an outside address in the core, or behind `outer` (CGNAT)."""
        made = SimNat(self, address, kind, outer)
        if outer is None:
            self._core[address] = made
        else:
            outer.inside[address] = made
        return made

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._queue, (max(when, self.now), next(self._count), action))

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass, up to `until` or until `stop` is true; whether it was."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            if stop is not None and stop():
                return True
        self.now = max(self.now, until)
        return False

    def cross(self, packet: _Packet) -> None:
        """A packet enters the core."""
        self.packets += 1
        # What a TCP repeats by itself within a fraction of a second is not lost here, but for SYN.
        lossy = packet.protocol == "udp" or packet.payload[0] == "syn"
        if packet.ttl <= self.hops or (lossy and self.random.random() < self.loss):
            return
        packet.ttl -= self.hops
        goal = self._core.get(packet.destination[0])
        if goal is not None:
            halved = packet.destination[0] in self.central or packet.source[0] in self.central
            latency = self.latency / 2 if halved else self.latency
            self.at(self.now + latency + self.random.random() * self.jitter, lambda: goal.receive(packet))


class SimNat:
    """A NAT: `inside` are hosts and further NATs by address. Made by `SimInternet.nat`.

    With preserved ports, and a host inside that has the NAT's own address, it is a firewall that translates nothing.
    """

    def __init__(self, net: SimInternet, address: str, kind: NatType, outer: SimNat | None) -> None:
        self.address = address
        self.kind = kind
        self.inside: dict[str, SimHost | SimNat] = {}
        self._net = net
        self._outer = outer
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._by_port: dict[tuple[Protocol, int], list[_Entry]] = {}
        self._tracked: dict[tuple[Protocol, int, Address], float] = {}  # entries made from outside, and their end
        self._next_port = net.random.randrange(_FIRST_PORT, _LAST_PORT)
        self._noise_at = 0.0

    # -- outwards ------------------------------------------------------------------------------------------------

    def send(self, packet: _Packet) -> None:
        """A packet from inside."""
        if packet.ttl <= 1:
            return
        packet.ttl -= 1
        if packet.destination[0] in self.inside:
            self._deliver(packet)
            return
        if packet.source[0] in self.inside and _same_link(packet.source[0], packet.destination[0]):
            return  # nobody has that address on this link, and the router is not asked
        if packet.destination[0] == self.address and not self.kind.hairpinning:
            return
        entry = self._outgoing(packet)
        packet.source = (self.address, entry.port)
        if packet.destination[0] == self.address:
            packet.ttl += 1
            self.receive(packet)
        elif self._outer is not None:
            self._outer.send(packet)
        else:
            self._net.cross(packet)

    def _outgoing(self, packet: _Packet) -> _Entry:
        key = self._key(packet)
        entry = self._entries.get(key)
        if entry is not None and self._net.now - entry.used_at > self.kind.udp_life and packet.protocol == "udp":
            self._remove(key)
            entry = None
        if entry is None:
            entry = _Entry(packet.source, self._allocate(packet), self._net.now)
            self._entries[key] = entry
            self._by_port.setdefault((packet.protocol, entry.port), []).append(entry)
        entry.used_at = self._net.now
        entry.allowed.add(packet.destination)
        entry.hosts.add(packet.destination[0])
        if packet.protocol == "tcp" and packet.payload[0] == "rst":
            self._close(packet, entry, packet.destination)
        return entry

    def _key(self, packet: _Packet) -> tuple[Any, ...]:
        if self.kind.open_input or self.kind.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT:
            return packet.protocol, packet.source, packet.destination
        if self.kind.mapping is Mapping.ADDRESS_DEPENDENT:
            return packet.protocol, packet.source, packet.destination[0]
        return packet.protocol, packet.source

    def _allocate(self, packet: _Packet) -> int:
        protocol, remote = packet.protocol, packet.destination
        if self.kind.open_input:
            port = packet.source[1]
            while not self._flow_free(protocol, port, remote):
                port = self._net.random.randrange(_FIRST_PORT, _LAST_PORT + 1)
            return port
        if self.kind.allocation is Allocation.SEQUENTIAL:
            return self._allocate_next(protocol)
        port = packet.source[1]
        if self.kind.allocation is not Allocation.PRESERVING:
            port = self._net.random.randrange(_FIRST_PORT, _LAST_PORT + 1)
        while self._by_port.get((protocol, port)):
            port = self._net.random.randrange(_FIRST_PORT, _LAST_PORT + 1)
        return port

    def _flow_free(self, protocol: Protocol, port: int, remote: Address) -> bool:
        if self._tracked.get((protocol, port, remote), 0.0) > self._net.now:
            return False
        return all(remote not in entry.allowed for entry in self._by_port.get((protocol, port), ()))

    def _allocate_next(self, protocol: Protocol) -> int:
        """The next port; others' mappings since the last one took some before it."""
        if self.kind.noise:
            if self._noise_at == 0.0:
                self._noise_at = self._net.now + self._net.random.expovariate(self.kind.noise)
            while self._noise_at <= self._net.now:
                self._advance()
                self._noise_at += self._net.random.expovariate(self.kind.noise)
        self._advance()
        while self._by_port.get((protocol, self._next_port)):
            self._advance()
        return self._next_port

    def _advance(self) -> None:
        span = _LAST_PORT - _FIRST_PORT + 1
        self._next_port = _FIRST_PORT + (self._next_port - _FIRST_PORT + self.kind.step) % span

    # -- inwards -------------------------------------------------------------------------------------------------

    def receive(self, packet: _Packet) -> None:
        """A packet to our outside address."""
        for entry in self._by_port.get((packet.protocol, packet.destination[1]), ()):
            idle = self._net.now - entry.used_at > self.kind.udp_life and packet.protocol == "udp"
            if not idle and self._lets_in(entry, packet.source):
                if packet.ttl <= 1:
                    return
                packet.ttl -= 1
                if packet.protocol == "tcp" and packet.payload[0] == "rst":
                    self._close(packet, entry, packet.source)
                else:
                    entry.replied.add(packet.source)
                packet.destination = entry.inner
                self._deliver(packet)
                return
        self._unexpected(packet)

    def _lets_in(self, entry: _Entry, source: Address) -> bool:
        if self.kind.open_input or self.kind.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT:
            return source in entry.allowed
        return self.kind.filtering is Filtering.ENDPOINT_INDEPENDENT or source[0] in entry.hosts

    def _unexpected(self, packet: _Packet) -> None:
        port = packet.destination[1]
        if self.kind.open_input and packet.protocol == "udp":
            self._tracked[packet.protocol, port, packet.source] = self._net.now + _CONNTRACK_SECONDS
        if packet.protocol == "tcp" and packet.payload[0] == "syn" and (self.kind.syn == "rst" or self.kind.open_input):
            reply = _Packet("tcp", packet.destination, packet.source, ("rst", "router"), 64)
            if self._outer is not None:
                self._outer.send(reply)
            else:
                self._net.cross(reply)

    def _close(self, packet: _Packet, entry: _Entry, remote: Address) -> None:
        """RST ends a flow: its remote is let in no more; a mapping of one flow is gone.

        A router that answers a SYN knows no sequence numbers: its RST counts only while nothing else came (RFC 5961).
        """
        if len(packet.payload) > 1 and remote in entry.replied:
            return
        entry.allowed.discard(remote)
        if self.kind.filtering is Filtering.ADDRESS_DEPENDENT:
            entry.hosts = {host for host, _ in entry.allowed}
        if not entry.allowed:
            for key in [k for k, e in self._entries.items() if e is entry]:
                self._remove(key)

    def _remove(self, key: tuple[Any, ...]) -> None:
        entry = self._entries.pop(key)
        self._by_port[key[0], entry.port].remove(entry)

    def _deliver(self, packet: _Packet) -> None:
        goal = self.inside.get(packet.destination[0])
        if goal is not None:
            goal.receive(packet)


def _same_link(one: str, other: str) -> bool:
    """Of the same IPv4 /24; IPv6 hosts are each on a link of their own."""
    return ":" not in one and one.rpartition(".")[0] == other.rpartition(".")[0]


@dataclass(slots=True)
class TcpAttempt:
    """One connecting socket.

    Attributes:
        local_port: bound before.
        remote: whom it connects to.
        done: called with "connected" or "refused" (also when a connection is reset).
        state: "syn sent", "syn received", "connected" or "closed".
        received: called with data that arrives.
    """

    local_port: int
    remote: Address
    done: Callable[[str], None]
    state: str = "syn sent"
    received: Callable[[Any], None] | None = None


class SimHost:
    """A host with UDP sockets and a TCP that knows simultaneous open. Made by `SimInternet.host`."""

    def __init__(self, net: SimInternet, address: str, nat: SimNat | None) -> None:
        self.address = address
        self.sent = 0
        self.sent_to: dict[Address, int] = {}
        self._net = net
        self.nat = nat
        self._udp: dict[int, Callable[[Any, Address], None]] = {}
        self._listeners: dict[int, tuple[Callable[[Address], None], Callable[[Address, Any], None] | None]] = {}
        self._tcp: dict[tuple[int, Address], TcpAttempt] = {}

    # -- UDP -----------------------------------------------------------------------------------------------------

    def listen_udp(self, port: int, received: Callable[[Any, Address], None]) -> None:
        """Open a UDP socket."""
        self._udp[port] = received

    def send(self, port: int, destination: Address, data: Any, ttl: int = 64) -> None:
        """Send a datagram from an open socket."""
        self.sent += 1
        self.sent_to[destination] = self.sent_to.get(destination, 0) + 1
        self._out(_Packet("udp", (self.address, port), destination, data, ttl))

    # -- TCP -----------------------------------------------------------------------------------------------------

    def listen_tcp(
        self,
        port: int,
        accepted: Callable[[Address], None],
        received: Callable[[Address, Any], None] | None = None,
    ) -> None:
        """Open a listener; both are called with the remote address of the connection."""
        self._listeners[port] = accepted, received

    def connect(
        self,
        port: int,
        remote: Address,
        done: Callable[[str], None],
        received: Callable[[Any], None] | None = None,
    ) -> TcpAttempt | None:
        """Connect from a bound port; None where that flow exists already."""
        key = (port, remote)
        if key in self._tcp:
            return None
        attempt = self._tcp[key] = TcpAttempt(port, remote, done, received=received)
        self.sent += 1
        self.sent_to[remote] = self.sent_to.get(remote, 0) + 1
        self._segment(port, remote, "syn")
        when = self._net.now
        for wait in _SYN_WAITS:
            when += wait
            self._net.at(when, lambda: self._again(key, attempt))
        return attempt

    def tell(self, port: int, remote: Address, data: Any) -> None:
        """Send data on a connection, made or accepted."""
        self._out(_Packet("tcp", (self.address, port), remote, ("data", data), 64))

    def abort(self, attempt: TcpAttempt) -> None:
        """Close a socket that has not connected; nothing is sent from SYN-SENT, RST from SYN-RECEIVED (RFC 9293)."""
        key = (attempt.local_port, attempt.remote)
        if attempt.state not in ("connected", "closed") and self._tcp.get(key) is attempt:
            del self._tcp[key]
            if attempt.state == "syn received":
                self._segment(*key, "rst")
            attempt.state = "closed"

    def _again(self, key: tuple[int, Address], attempt: TcpAttempt) -> None:
        if attempt.state == "syn sent" and self._tcp.get(key) is attempt:
            self._segment(*key, "syn")

    def _segment(self, port: int, remote: Address, segment: Segment) -> None:
        self._out(_Packet("tcp", (self.address, port), remote, (segment,), 64))

    def _out(self, packet: _Packet) -> None:
        nat = self.nat
        send = nat.send if nat is not None else self._net.cross
        self._net.at(self._net.now + self._net.access, lambda: send(packet))

    def receive(self, packet: _Packet) -> None:
        """A packet for this host."""
        self._net.at(self._net.now + self._net.access, lambda: self._take(packet))

    def _take(self, packet: _Packet) -> None:
        port, source = packet.destination[1], packet.source
        if packet.protocol == "udp":
            if port in self._udp:
                self._udp[port](packet.payload, source)
            return
        segment: Segment = packet.payload[0]
        attempt = self._tcp.get((port, source))
        if attempt is not None and segment == "data":
            if attempt.state == "syn received":  # its ACK was lost or is late
                attempt.state = "connected"
                attempt.done("connected")
            if attempt.received is not None and attempt.state == "connected":
                attempt.received(packet.payload[1])
        elif attempt is not None:
            self._attempt_segment(attempt, segment, len(packet.payload) > 1)
        elif segment == "syn" and port in self._listeners:
            accepted, received = self._listeners[port]
            made = TcpAttempt(port, source, lambda outcome: accepted(source) if outcome == "connected" else None)
            made.state = "syn received"
            if received is not None:
                made.received = lambda data: received(source, data)
            self._tcp[port, source] = made
            self._segment(port, source, "synack")
        elif segment != "rst":
            self._segment(port, source, "rst")

    def _attempt_segment(self, attempt: TcpAttempt, segment: Segment, router: bool) -> None:
        """RFC 9293 §3.5, figure 8: simultaneous open."""
        key = (attempt.local_port, attempt.remote)
        if segment == "rst":
            if router and attempt.state != "syn sent":  # RFC 9293 §3.10.7.4: not in the window
                return
            del self._tcp[key]
            attempt.state = "closed"
            attempt.done("refused")
        elif segment == "syn":
            if attempt.state in ("syn sent", "syn received"):
                attempt.state = "syn received"
                self._segment(*key, "synack")
        elif attempt.state in ("syn sent", "syn received"):
            if segment == "synack":
                self._segment(*key, "ack")
            elif attempt.state == "syn sent":
                return  # an ACK of nothing
            attempt.state = "connected"
            attempt.done("connected")
