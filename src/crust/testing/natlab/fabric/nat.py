"""A NAT as an engine: RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5508 (ICMP), each choice a parameter.

It translates packets in place and answers what is to become of them. IPv4 only.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

from crust.testing.natlab.fabric.packet import ACK, FIN, ICMP, RST, SYN, TCP, UDP, Packet, checksum

__all__ = ["NatBox", "NatParameters", "Verdict"]

EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"

_SWEEP_SECONDS = 1.0
_FRAGMENT_SECONDS = 30.0
_ICMP_ERRORS = (3, 4, 11, 12)


class Verdict(enum.Enum):
    """What is to become of a packet."""

    FORWARD = "goes on to the other side"
    HAIRPIN = "was meant for the NAT's own outside address: goes back inside, if `inbound` lets it"
    DROP = "vanishes"
    REFUSE = "vanishes, and a TCP sender gets a RST"


@dataclass(frozen=True, slots=True)
class NatParameters:
    """The behaviour of one NAT.

    Attributes:
        mapping: whether an inside endpoint keeps its outside port towards other remote endpoints (RFC 4787 §4.1).
        filtering: from which remote endpoints packets are let in (RFC 4787 §5).
        ports: how outside ports are chosen: "preserving", "random" or "sequential".
        port_step: distance between two sequential ports.
        port_range: first and last outside port.
        hairpinning: whether inside hosts reach each other by their outside endpoints (RFC 4787 §6).
        refuse: whether an unexpected TCP segment from outside is answered by a RST or dropped in silence.
        simultaneous_open: whether a SYN may come in while our own is out (RFC 5382 REQ-2).
        icmp_errors: whether ICMP errors about a mapping are passed (RFC 5508 §4).
        udp_timeout: seconds after which an idle UDP mapping is forgotten.
        inbound_refresh: whether packets from outside keep a UDP mapping alive, too (RFC 4787 REQ-6).
        tcp_timeout: seconds for an established, idle TCP connection.
        tcp_transitory_timeout: seconds for one that is being opened or closed.
        tcp_reset_timeout: seconds that a reset connection keeps its mapping.
    """

    mapping: str = EI
    filtering: str = APD
    ports: str = "preserving"
    port_step: int = 1
    port_range: tuple[int, int] = (1024, 65535)
    hairpinning: bool = False
    refuse: bool = False
    simultaneous_open: bool = True
    icmp_errors: bool = True
    udp_timeout: float = 120.0
    inbound_refresh: bool = True
    tcp_timeout: float = 7440.0
    tcp_transitory_timeout: float = 240.0
    tcp_reset_timeout: float = 10.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NatParameters:
        """Read what a control message carries."""
        known = {item.name for item in fields(cls)}
        taken: dict[str, Any] = {key: value for key, value in values.items() if key in known}
        if "port_range" in taken:
            taken["port_range"] = tuple(taken["port_range"])
        return cls(**taken)


Endpoint = tuple[bytes, int]


@dataclass(slots=True)
class _Peer:
    """A remote endpoint that a mapping talks to, with as much TCP state as a NAT needs."""

    last: float
    timeout: float
    seen_out: int = 0
    seen_in: int = 0


@dataclass(slots=True)
class _Mapping:
    protocol: int
    inside: Endpoint
    port: int
    keys: list[tuple[Any, ...]]
    last: float
    peers: dict[Endpoint, _Peer] = field(default_factory=dict)


class NatBox:
    """The mapping table of one NAT with one outside address."""

    def __init__(self, parameters: NatParameters, address: bytes, random: Random) -> None:
        """Start with an empty table.

        Args:
            parameters: how to behave.
            address: the outside address, packed.
            random: source of ports.
        """
        self.parameters = parameters
        self.address = address
        self._random = random
        self._outbound: dict[tuple[Any, ...], _Mapping] = {}
        self._inbound: dict[tuple[int, int], _Mapping] = {}
        self._next_port: dict[int, int] = {}
        self._fragments: dict[tuple[Any, ...], tuple[float, Endpoint]] = {}
        self._swept = 0.0

    def flush(self) -> None:
        """Forget every mapping, as a reboot does. A sequential NAT goes on counting from another port."""
        self._outbound.clear()
        self._inbound.clear()
        self._next_port.clear()
        self._fragments.clear()

    def mappings(self, now: float) -> Iterator[tuple[str, Endpoint, int, list[Endpoint]]]:
        """The live mappings: protocol, inside endpoint, outside port, remote endpoints."""
        self._sweep(now, force=True)
        names = {TCP: "tcp", UDP: "udp", ICMP: "icmp"}
        for mapping in self._inbound.values():
            yield names[mapping.protocol], mapping.inside, mapping.port, list(mapping.peers)

    def outbound(self, packet: Packet, now: float) -> Verdict:
        """Translate a packet from inside; `Verdict.HAIRPIN` when it is meant for our own outside address."""
        self._sweep(now)
        if packet.fragment == 2:
            return self._later_fragment(packet, now, inward=False)
        if packet.protocol == ICMP and packet.head[packet.start] != 8:
            return self._outbound_icmp_error(packet)
        if packet.protocol not in (TCP, UDP, ICMP):
            return Verdict.DROP
        hairpin = packet.target == self.address
        if hairpin and not self.parameters.hairpinning:
            return Verdict.DROP
        mapping = self._mapping_for(packet, now)
        if mapping is None:
            return Verdict.DROP
        self._note(mapping, (packet.target, packet.target_port), packet, now, inward=False)
        if packet.fragment:
            self._remember_fragment(packet, now, (self.address, mapping.port))
        packet.set_source(self.address, mapping.port)
        return Verdict.HAIRPIN if hairpin else Verdict.FORWARD

    def inbound(self, packet: Packet, now: float) -> Verdict:
        """Translate a packet that came to our outside address."""
        self._sweep(now)
        if packet.fragment == 2:
            return self._later_fragment(packet, now, inward=True)
        if packet.protocol == ICMP and packet.head[packet.start] in _ICMP_ERRORS:
            return self._inbound_icmp_error(packet)
        mapping = self._inbound.get((packet.protocol, packet.target_port))
        if packet.protocol == ICMP and packet.head[packet.start] != 0:
            return Verdict.DROP
        if mapping is not None and self._alive(mapping, now) and self._admits(mapping, packet, now):
            remote = (packet.source, packet.source_port)
            self._note(mapping, remote, packet, now, inward=True)
            # What answers goes out by the port that the question came to, however the mapping depends on endpoints.
            key = self._key(packet.protocol, mapping.inside, remote)
            if self._outbound.setdefault(key, mapping) is mapping and key not in mapping.keys:
                mapping.keys.append(key)
            if packet.fragment:
                self._remember_fragment(packet, now, mapping.inside)
            packet.set_target(*mapping.inside)
            return Verdict.FORWARD
        return Verdict.REFUSE if packet.protocol == TCP and self.parameters.refuse else Verdict.DROP

    # Mappings

    def _key(self, protocol: int, inside: Endpoint, remote: Endpoint) -> tuple[Any, ...]:
        # RFC 5508 REQ-1: ICMP identifiers are mapped whatever the destination.
        if self.parameters.mapping == EI or protocol == ICMP:
            return protocol, inside
        if self.parameters.mapping == AD:
            return protocol, inside, remote[0]
        return protocol, inside, remote

    def _mapping_for(self, packet: Packet, now: float) -> _Mapping | None:
        inside = (packet.source, packet.source_port)
        key = self._key(packet.protocol, inside, (packet.target, packet.target_port))
        mapping = self._outbound.get(key)
        if mapping is not None:
            if self._alive(mapping, now):
                return mapping
            self._forget(mapping)
        if packet.protocol == TCP and packet.tcp_flags & RST:
            return None
        port = self._allocate(packet.protocol, packet.source_port)
        if port is None:
            return None
        mapping = _Mapping(packet.protocol, inside, port, [key], now)
        self._outbound[key] = self._inbound[packet.protocol, port] = mapping
        return mapping

    def _allocate(self, protocol: int, wanted: int) -> int | None:
        """A free outside port, or None when all are taken."""
        low, high = self.parameters.port_range
        if self.parameters.ports == "preserving" and (protocol, wanted) not in self._inbound:
            return wanted
        sequential = self.parameters.ports == "sequential"
        port = self._next_port.get(protocol) if sequential else None
        if port is None:
            port = self._random.randint(low, high)
        for _ in range(high - low + 1):
            free = (protocol, port) not in self._inbound
            following = port + (self.parameters.port_step if sequential else 1)
            following = following if following <= high else low + (following - high - 1)
            if free:
                if sequential:
                    self._next_port[protocol] = following
                return port
            port = following
        return None

    def _forget(self, mapping: _Mapping) -> None:
        for key in mapping.keys:
            self._outbound.pop(key, None)
        self._inbound.pop((mapping.protocol, mapping.port), None)

    def _alive(self, mapping: _Mapping, now: float) -> bool:
        if mapping.protocol == TCP:
            for endpoint in [key for key, peer in mapping.peers.items() if now - peer.last >= peer.timeout]:
                del mapping.peers[endpoint]
            return bool(mapping.peers)
        return now - mapping.last < self.parameters.udp_timeout

    def _sweep(self, now: float, *, force: bool = False) -> None:
        if not force and now - self._swept < _SWEEP_SECONDS:
            return
        self._swept = now
        for mapping in [each for each in self._inbound.values() if not self._alive(each, now)]:
            self._forget(mapping)
        for key in [key for key, (since, _) in self._fragments.items() if now - since > _FRAGMENT_SECONDS]:
            del self._fragments[key]

    # Filtering and state

    def _admits(self, mapping: _Mapping, packet: Packet, now: float) -> bool:
        remote = (packet.source, packet.source_port)
        peer = mapping.peers.get(remote)
        known = peer is not None and now - peer.last < peer.timeout
        if packet.protocol == TCP:
            opening = packet.tcp_flags & (SYN | ACK) == SYN
            if known and peer is not None:
                blocked = opening and peer.seen_out & SYN and not peer.seen_in & SYN
                return self.parameters.simultaneous_open or not blocked
            if not opening:
                return False
        filtering = self.parameters.filtering
        if known or filtering == EI or packet.protocol == ICMP:
            return True
        if filtering == AD:
            return any(
                address == remote[0] and now - each.last < each.timeout for (address, _), each in mapping.peers.items()
            )
        return False

    def _note(self, mapping: _Mapping, remote: Endpoint, packet: Packet, now: float, *, inward: bool) -> None:
        """Count a packet for the life of its mapping and for what the filter admits."""
        peer = mapping.peers.get(remote)
        if packet.protocol != TCP:
            if peer is None:
                if inward:
                    # Only what went out opens the filter (RFC 4787 §5).
                    mapping.last = now if self.parameters.inbound_refresh else mapping.last
                    return
                peer = mapping.peers[remote] = _Peer(now, self.parameters.udp_timeout)
            if not inward or self.parameters.inbound_refresh:
                peer.last = mapping.last = now
            return
        if peer is None or now - peer.last >= peer.timeout:
            peer = mapping.peers[remote] = _Peer(now, self.parameters.tcp_transitory_timeout)
        flags = packet.tcp_flags
        if flags & (SYN | ACK) == SYN and (peer.seen_out | peer.seen_in) & (RST | FIN):
            peer.seen_out = peer.seen_in = 0  # the same five-tuple is opened anew
        if inward:
            peer.seen_in |= flags
        else:
            peer.seen_out |= flags
        peer.last = mapping.last = now
        peer.timeout = self._tcp_timeout(peer)

    def _tcp_timeout(self, peer: _Peer) -> float:
        either, both = peer.seen_out | peer.seen_in, peer.seen_out & peer.seen_in
        if either & RST:
            return self.parameters.tcp_reset_timeout
        # A connection that was picked up in the middle has shown no SYN; data both ways make it established.
        if both & ACK and not both & FIN:
            return self.parameters.tcp_timeout
        return self.parameters.tcp_transitory_timeout

    # Fragments (RFC 4787 REQ-14: those that arrive in order)

    @staticmethod
    def _fragment_key(packet: Packet) -> tuple[Any, ...]:
        return packet.source, packet.target, packet.protocol, bytes(packet.head[4:6])

    def _remember_fragment(self, packet: Packet, now: float, endpoint: Endpoint) -> None:
        self._fragments[self._fragment_key(packet)] = (now, endpoint)

    def _later_fragment(self, packet: Packet, now: float, *, inward: bool) -> Verdict:
        _, endpoint = self._fragments.get(self._fragment_key(packet), (now, None))
        if endpoint is None:
            return Verdict.DROP
        if inward:
            packet.set_target(endpoint[0], 0)
            return Verdict.FORWARD
        hairpin = packet.target == self.address
        packet.set_source(endpoint[0], 0)
        return Verdict.HAIRPIN if hairpin else Verdict.FORWARD

    # ICMP errors (RFC 5508 §4)

    def _outbound_icmp_error(self, packet: Packet) -> Verdict:
        """An inside host complains about a packet that we let in: it must not show inside addresses."""
        about = _embedded(packet)
        if about is None or not self.parameters.icmp_errors or packet.head[packet.start] not in _ICMP_ERRORS:
            return Verdict.DROP
        mapping = next(
            (
                each
                for each in self._inbound.values()
                if each.protocol == about.protocol
                and each.inside == (about.target, about.target_port)
                and self._talks_to(each, (about.source, about.source_port))
            ),
            None,
        )
        if mapping is None:
            return Verdict.DROP
        about.set_target(self.address, mapping.port)
        hairpin = packet.target == self.address
        _embed(packet, about, source=self.address)
        return Verdict.HAIRPIN if hairpin else Verdict.FORWARD

    def _talks_to(self, mapping: _Mapping, remote: Endpoint) -> bool:
        return self.parameters.mapping == EI or remote in mapping.peers

    def _inbound_icmp_error(self, packet: Packet) -> Verdict:
        about = _embedded(packet)
        if about is None or not self.parameters.icmp_errors or about.source != self.address:
            return Verdict.DROP
        mapping = self._inbound.get((about.protocol, about.source_port))
        if mapping is None or (about.target, about.target_port) not in mapping.peers:
            return Verdict.DROP
        about.set_source(*mapping.inside)
        _embed(packet, about, target=mapping.inside[0])
        return Verdict.FORWARD


_EMBEDDED_AT = 8


def _embedded(error: Packet) -> Packet | None:
    """The packet that an ICMP error is about, padded to where it can be parsed."""
    data = error.to_bytes()[error.start + _EMBEDDED_AT :]
    try:
        about = Packet(data + bytes(20))
    except ValueError:
        return None
    return about if about.protocol in (TCP, UDP, ICMP) and not about.fragment else None


def _embed(error: Packet, about: Packet, *, source: bytes | None = None, target: bytes | None = None) -> None:
    """Put the translated packet back into the error, and the addresses right."""
    length = error.size - error.start
    body = bytearray(error.to_bytes()[error.start : error.start + _EMBEDDED_AT] + about.to_bytes())[:length]
    body[2:4] = b"\0\0"
    body[2:4] = struct.pack(">H", checksum(body) ^ 0xFFFF)
    error.head[error.start :] = body[:20]
    error.tail = bytes(body[20:])
    if source is not None:
        error.set_source(source, 0)
    if target is not None:
        error.set_target(target, 0)
