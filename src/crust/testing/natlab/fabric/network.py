"""Links, networks and routers, as one engine: packets come in at ports, wait out their delay, and leave at ports.

A network joins members by address alone. The internet is one, with hops and delay; a LAN is another, with a gateway.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from random import Random
from typing import Protocol

from crust.testing.natlab.fabric.nat import NatBox, Verdict
from crust.testing.natlab.fabric.packet import ICMP, TCP, UDP, Packet, echo_reply, icmp_error, reset_for

__all__ = ["Clockwork", "Link", "Member", "Network", "Port", "Router", "Sink"]

# Serialising one packet must not hold up others for longer than this; finer trains cost more work.
_TRAIN_SECONDS = 0.002
# What counts as late: the machine is too busy for figures to be trusted.
_LATE_SECONDS = 0.002


class Sink(Protocol):
    """Whoever takes packets that arrive from a network."""

    def receive(self, packet: Packet, member: Member, now: float) -> None:
        """Take a packet that the network delivered to `member`."""


@dataclass(slots=True)
class Link:
    """One direction of an access link.

    Attributes:
        delay: seconds that every packet travels.
        loss: share of the wire packets that vanish, 0 to 1.
        rate: bytes per second; None for no limit.
        queue: seconds of traffic that may wait for the limit, then the tail is dropped.
        mtu: largest packet; larger ones are answered by "fragmentation needed".
        up: whether the link works at all.
    """

    delay: float = 0.0
    loss: float = 0.0
    rate: float | None = None
    queue: float = 0.1
    mtu: int = 65535
    up: bool = True
    _busy_until: float = field(default=0.0, repr=False)

    def admit(self, packet: Packet, now: float, random: Random) -> float | None:
        """When the packet reaches the other end; None when it is lost."""
        if not self.up or (self.loss and random.random() < self.loss):
            return None
        if self.rate is None:
            return now + self.delay
        begin = max(now, self._busy_until)
        if begin - now > self.queue:
            return None
        self._busy_until = begin + packet.wire_bytes / self.rate
        return self._busy_until + self.delay

    @property
    def segments(self) -> int:
        """How long a train may be, for loss and rate to be true to single packets."""
        if self.loss:
            return 1
        return 1024 if self.rate is None else max(1, int(self.rate * _TRAIN_SECONDS / 1500))


class Clockwork:
    """Packets under way, the randomness, and the counters that all networks of a lab share.

    Attributes:
        random: decides on losses.
        dropped: packets by reason.
        late: how often the pump came more than 2 ms late.
        latest: by how many seconds at most.
    """

    def __init__(self, random: Random) -> None:
        """Start with nothing under way."""
        self.random = random
        self.dropped: Counter[str] = Counter()
        self.late = 0
        self.latest = 0.0
        self._heap: list[tuple[float, int, Member, Packet]] = []
        self._order = itertools.count()

    def post(self, when: float, member: Member, packet: Packet) -> None:
        """Let a packet arrive at a member's sink at some time."""
        heapq.heappush(self._heap, (when, next(self._order), member, packet))

    def next_timeout(self) -> float | None:
        """When the next packet arrives."""
        return self._heap[0][0] if self._heap else None

    def handle_timeout(self, now: float) -> None:
        """Deliver what is due."""
        heap = self._heap
        if heap and heap[0][0] < now - _LATE_SECONDS:
            self.late += 1
            self.latest = max(self.latest, now - heap[0][0])
        while heap and heap[0][0] <= now:
            when, _, member, packet = heapq.heappop(heap)
            if member.attached:
                # The engine's time is that of the arrival: a late pump does not add up over several hops.
                member.sink.receive(packet, member, when)


class Member:
    """The attachment of a sink to a network, with its two links."""

    __slots__ = ("attached", "down", "network", "sink", "up")

    def __init__(self, network: Network, sink: Sink, up: Link, down: Link) -> None:
        """Join a sink to a network by an outgoing and an incoming link."""
        self.network, self.sink, self.up, self.down = network, sink, up, down
        self.attached = True


class Network:
    """Members that reach each other by address."""

    def __init__(
        self, clockwork: Clockwork, *, hops: int = 0, prefix: str | None = None, isolated: bool = False
    ) -> None:
        """Make an empty network.

        Args:
            clockwork: shared by all networks of the lab.
            hops: routers that a packet passes inside.
            prefix: IPv4 prefix of a LAN, which floods multicast; None for the internet, which does not.
            isolated: whether members reach the gateway only, as guests of a wireless LAN do.
        """
        self.clockwork = clockwork
        self.hops = hops
        self.lan = prefix is not None
        self.isolated = isolated
        self.gateway: Member | None = None
        self.members: list[Member] = []
        self._by_address: dict[bytes, Member] = {}
        self._mask = self._prefix = 0
        self._speaker = bytes((11, 255, 0, 1))
        if prefix is not None:
            network = IPv4Network(prefix)
            self._mask, self._prefix = int(network.netmask), int(network.network_address)
            self._broadcast = network.broadcast_address.packed

    def attach(
        self,
        sink: Sink,
        addresses: list[bytes],
        *,
        up: Link | None = None,
        down: Link | None = None,
        gateway: bool = False,
    ) -> Member:
        """Join a sink; an address of 8 bytes is an IPv6 /64 that is routed to it."""
        member = Member(self, sink, up or Link(), down or Link())
        self.members.append(member)
        for address in addresses:
            self._by_address[address] = member
        if gateway:
            self.gateway = member
        return member

    def detach(self, member: Member) -> None:
        """Remove a member; what is under way to it is lost."""
        member.attached = False
        self.members.remove(member)
        self._by_address = {address: each for address, each in self._by_address.items() if each is not member}
        if self.gateway is member:
            self.gateway = None

    def send(self, packet: Packet, source: Member, now: float) -> None:
        """Carry a packet from a member towards its target."""
        target = packet.target
        if target[0] >= 224 and _is_flooded(target):
            return self._flood(packet, source, now)
        member = self._by_address.get(target)
        if member is None:
            if len(target) == 16:
                member = self._by_address.get(target[:8], self.gateway)
            elif not self._mask or int.from_bytes(target, "big") & self._mask != self._prefix:
                member = self.gateway
            elif target == self._broadcast:
                return self._flood(packet, source, now)
        if member is None or member is source:
            return self._drop("no such address")
        if self.isolated and self.gateway not in (member, source):
            return self._drop("isolated")
        trains = min(source.up.segments, member.down.segments)
        if packet.gso_size and trains < 1024:
            for piece in packet.split(trains):
                self._carry(piece, source, member, now)
        else:
            self._carry(packet, source, member, now)
        return None

    def _carry(self, packet: Packet, source: Member, member: Member, now: float) -> None:
        mtu = min(source.up.mtu, member.down.mtu)
        if packet.size > mtu and packet.largest > mtu and self._too_big(packet, source, mtu, now):
            return None
        middle = source.up.admit(packet, now, self.clockwork.random)
        if middle is None:
            return self._drop("lost")
        if self.hops and not packet.hop(self.hops):
            return self._expired(packet, source, middle)
        arrival = member.down.admit(packet, middle, self.clockwork.random)
        if arrival is None:
            return self._drop("lost")
        if arrival <= now:
            member.sink.receive(packet, member, now)
        else:
            self.clockwork.post(arrival, member, packet)
        return None

    def _flood(self, packet: Packet, source: Member, now: float) -> None:
        if not self.lan or self.isolated:
            return self._drop("multicast")
        for member in self.members:
            if member is not source:
                self._carry(packet.copy(), source, member, now)
        return None

    def _too_big(self, packet: Packet, source: Member, mtu: int, now: float) -> bool:
        """Say so to the sender; False for what may be fragmented, which the lab lets through whole."""
        if not packet.dont_fragment:
            return False
        self._drop("too big")
        six = len(packet.source) == 16
        error = icmp_error(packet, self._speaker_for(packet), 2 if six else 3, 0 if six else 4, mtu)
        if error is not None:
            self._answer(error, source, now)
        return True

    def _expired(self, packet: Packet, source: Member, now: float) -> None:
        self._drop("time to live")
        six = len(packet.source) == 16
        error = icmp_error(packet, self._speaker_for(packet), 3 if six else 11, 0)
        if error is not None:
            self._answer(error, source, now)

    def _speaker_for(self, packet: Packet) -> bytes:
        return self._speaker if len(packet.source) == 4 else bytes.fromhex("20010db8ffff") + bytes(9) + b"\1"

    def _answer(self, packet: Packet, member: Member, now: float) -> None:
        when = member.down.admit(packet, now, self.clockwork.random)
        if when is not None:
            self.clockwork.post(when, member, packet)

    def _drop(self, reason: str) -> None:
        self.clockwork.dropped[reason] += 1


def _is_flooded(target: bytes) -> bool:
    """Multicast, broadcast, and link-local IPv6 addresses, which the lab does not know."""
    if len(target) == 16:
        return target[0] == 0xFF or target[:2] == b"\xfe\x80"
    return target[0] < 240 or target == b"\xff\xff\xff\xff"


class Port:
    """The end of a virtual cable into a network namespace."""

    def __init__(self, send: Callable[[Packet], None]) -> None:
        """Make a port that is joined to no network yet; `send` hands a packet to the namespace."""
        self.member: Member | None = None
        self.send = send

    def receive(self, packet: Packet, member: Member, now: float) -> None:
        """Pass a packet into the namespace."""
        self.send(packet)

    def inject(self, packet: Packet, now: float) -> None:
        """Take a packet from the namespace."""
        if self.member is not None:
            self.member.network.send(packet, self.member, now)


@dataclass(frozen=True, slots=True)
class Filter:
    """What a router refuses to forward outwards.

    Attributes:
        blocked: IP protocol numbers.
        tcp_ports: the only destination ports that TCP may go to; None for any.
    """

    blocked: frozenset[int] = frozenset()
    tcp_ports: frozenset[int] | None = None

    def admits(self, packet: Packet) -> bool:
        """Whether a packet may go out."""
        if packet.protocol in self.blocked:
            return False
        return packet.protocol != TCP or self.tcp_ports is None or packet.target_port in self.tcp_ports


class Router:
    """A NAT router between a LAN and the network above it. IPv4 only; IPv6 is the kernel routers' business."""

    def __init__(self, clockwork: Clockwork, box: NatBox, policy: Filter, lan_address: bytes) -> None:
        """Make a router; `wan` and `lan` are set when it is attached."""
        self.clockwork = clockwork
        self.box = box
        self.policy = policy
        self.lan_address = lan_address
        self.wan: Member | None = None
        self.lan: Member | None = None

    def receive(self, packet: Packet, member: Member, now: float) -> None:
        """Forward a packet from either side."""
        if len(packet.source) == 16 or packet.target[0] >= 224 or self.wan is None or self.lan is None:
            return
        if member is self.lan:
            self._outward(packet, self.lan, self.wan, now)
        elif packet.target == self.box.address:
            self._inward(packet, self.lan, self.wan, now)

    def _outward(self, packet: Packet, lan: Member, wan: Member, now: float) -> None:
        if packet.target == self.lan_address:
            return self._to_itself(packet, lan, now)
        if not packet.hop():
            error = icmp_error(packet, self.lan_address, 11, 0)
            return lan.network.send(error, lan, now) if error else None
        if not self.policy.admits(packet):
            return self._drop("firewall")
        verdict = self.box.outbound(packet, now)
        if verdict is Verdict.FORWARD:
            return wan.network.send(packet, wan, now)
        if verdict is Verdict.HAIRPIN and self.box.inbound(packet, now) is Verdict.FORWARD:
            return lan.network.send(packet, lan, now)
        return self._drop("nat, from inside")

    def _inward(self, packet: Packet, lan: Member, wan: Member, now: float) -> None:
        if packet.protocol in self.policy.blocked:
            return self._drop("firewall")
        if not packet.hop():
            error = icmp_error(packet, self.box.address, 11, 0)
            return wan.network.send(error, wan, now) if error else None
        verdict = self.box.inbound(packet, now)
        if verdict is Verdict.FORWARD:
            return lan.network.send(packet, lan, now)
        self._drop("nat, from outside")
        answer = reset_for(packet) if verdict is Verdict.REFUSE else None
        return wan.network.send(answer, wan, now) if answer else None

    def _to_itself(self, packet: Packet, lan: Member, now: float) -> None:
        """The router's own address: it answers pings and has every port closed."""
        answer = None
        if packet.protocol == ICMP and packet.head[packet.start] == 8:
            answer = echo_reply(packet)
        elif packet.protocol == UDP:
            answer = icmp_error(packet, self.lan_address, 3, 3)
        elif packet.protocol == TCP:
            answer = reset_for(packet)
        return lan.network.send(answer, lan, now) if answer else None

    def _drop(self, reason: str) -> None:
        self.clockwork.dropped[reason] += 1
