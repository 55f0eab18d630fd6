"""IP packets as they cross the lab: parsed once, rewritten in place, split where a link is finer than the kernel.

A frame arrives from a packet socket as virtio_net_hdr ‖ Ethernet ‖ IP. With segmentation offload one frame stands
for many wire packets (`segments` of at most `gso_size` bytes each), which is what lets Python keep up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = [
    "ACK",
    "CHECKSUM_AT",
    "FIN",
    "ICMP",
    "ICMP6",
    "RST",
    "SYN",
    "TCP",
    "UDP",
    "Packet",
    "checksum",
    "echo_reply",
    "icmp_error",
    "ip_header",
    "pseudo_sum",
    "reset_for",
]

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

VNET_BYTES = 10
_ETHERNET_BYTES = 14
_START = VNET_BYTES + _ETHERNET_BYTES
_VNET = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_NEEDS_CHECKSUM = 1
_GSO_NONE, _GSO_UDP_L4 = 0, 5
CHECKSUM_AT = {TCP: 16, UDP: 6}
_PORTS = struct.Struct(">HH")
_ETHERTYPE4, _ETHERTYPE6 = b"\x08\x00", b"\x86\xdd"
_NO_VNET = bytes(VNET_BYTES)


def checksum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """The Internet checksum (RFC 1071) of data, not yet inverted, with `start` added in."""
    # As 2**16 is 1 modulo 0xFFFF, the sum of the words is the number that they spell.
    total = (int.from_bytes(data, "big") << (len(data) % 2 * 8)) + start
    return total % 0xFFFF or (total and 0xFFFF)


class Packet:
    """One IP packet, or a train of wire packets of one flow that travels as one.

    Attributes:
        head: IP header and the first 20 bytes behind it, writable.
        tail: everything after `head`.
        source, target: addresses, packed (4 or 16 bytes).
        source_port, target_port: of UDP and TCP; for ICMP echo both are the identifier; 0 where there is none.
        protocol: IP protocol number of the payload.
        start: where the payload begins in `head`.
        fragment: 0 for a whole packet, 1 for a first fragment, 2 for a later one.
        stale: whether the checksum of the IPv4 header has to be made before the packet goes out.
    """

    __slots__ = (
        "flags",
        "fragment",
        "gso_size",
        "gso_type",
        "head",
        "protocol",
        "source",
        "source_port",
        "stale",
        "start",
        "tail",
        "target",
        "target_port",
    )

    flags: int
    gso_type: int
    gso_size: int
    head: bytearray
    tail: memoryview | bytes

    def __init__(self, data: bytes, at: int = 0, vnet: bytes = _NO_VNET) -> None:
        """Parse an IP packet that begins at an offset of `data`.

        Raises:
            ValueError: these bytes are no IP packet that the lab forwards.
        """
        self.flags, self.gso_type, _, self.gso_size, _, _ = _VNET.unpack(vnet)
        self.fragment = self.source_port = self.target_port = 0
        self.stale = False
        if len(data) < at + 20:
            raise ValueError("truncated")
        version = data[at] >> 4
        if version == 4:
            self.start = start = (data[at] & 15) * 4
            self.protocol = data[at + 9]
            self.source = data[at + 12 : at + 16]
            self.target = data[at + 16 : at + 20]
            if data[at + 6] & 0x3F or data[at + 7]:
                self.fragment = 2 if data[at + 6] & 0x1F or data[at + 7] else 1
        elif version == 6 and len(data) >= at + 40:
            self.start = start = 40
            self.protocol = data[at + 6]
            self.source = data[at + 8 : at + 24]
            self.target = data[at + 24 : at + 40]
        else:
            raise ValueError("not IP")
        self.head = bytearray(data[at : at + start + 20])
        self.tail = memoryview(data)[at + start + 20 :]
        if self.fragment == 2 or self.protocol not in (TCP, UDP, ICMP):
            if self.flags & _NEEDS_CHECKSUM:
                raise ValueError("a checksum that the lab cannot complete")
            return
        if len(self.head) < start + (20 if self.protocol == TCP else 8):
            raise ValueError("truncated")
        if self.protocol != ICMP:
            self.source_port, self.target_port = _PORTS.unpack_from(self.head, start)
        elif self.head[start] in (0, 8):
            self.source_port = self.target_port = int.from_bytes(self.head[start + 4 : start + 6], "big")

    @classmethod
    def from_frame(cls, frame: bytes) -> Packet:
        """Parse what a packet socket with PACKET_VNET_HDR delivered; raises ValueError."""
        if frame[VNET_BYTES + 12 : _START] not in (_ETHERTYPE4, _ETHERTYPE6):
            raise ValueError("not IP")
        return cls(frame, _START, frame[:VNET_BYTES])

    def to_frame(self, addresses: bytes) -> list[bytes | bytearray | memoryview]:
        """The pieces of the frame to send, given the 12 bytes of Ethernet addresses."""
        if self.stale:
            self._sum_header()
        if self.flags & _NEEDS_CHECKSUM:
            begin = _ETHERNET_BYTES + self.start
            length = begin + (8 if self.protocol == UDP else (self.head[self.start + 12] >> 4) * 4)
            vnet = _VNET.pack(_NEEDS_CHECKSUM, self.gso_type, length, self.gso_size, begin, CHECKSUM_AT[self.protocol])
        else:
            vnet = _NO_VNET
        kind = _ETHERTYPE4 if len(self.source) == 4 else _ETHERTYPE6
        return [vnet, addresses, kind, self.head, self.tail]

    @property
    def size(self) -> int:
        """Bytes of the packet from the IP header on."""
        return len(self.head) + len(self.tail)

    @property
    def segments(self) -> int:
        """How many wire packets this one stands for."""
        if not self.gso_size:
            return 1
        return max(1, -(-(self.size - self._payload_at()) // self.gso_size))

    @property
    def wire_bytes(self) -> int:
        """Bytes of all wire packets together, headers repeated."""
        return self.size + (self.segments - 1) * self._payload_at()

    @property
    def largest(self) -> int:
        """Bytes of the largest wire packet."""
        return min(self.size, self._payload_at() + self.gso_size) if self.gso_size else self.size

    @property
    def tcp_flags(self) -> int:
        """The flags of a TCP segment."""
        return int(self.head[self.start + 13])

    @property
    def dont_fragment(self) -> bool:
        """Whether routers must not fragment the packet."""
        return len(self.source) == 16 or bool(self.head[6] & 0x40)

    def copy(self) -> Packet:
        """An independent packet with the same content; the tail is shared, as nothing writes to it."""
        twin = Packet.__new__(Packet)
        for name in Packet.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.head = bytearray(self.head)
        return twin

    def to_bytes(self) -> bytes:
        """The IP packet as one string."""
        if self.stale:
            self._sum_header()
        return bytes(self.head) + bytes(self.tail)

    def hop(self, count: int = 1) -> bool:
        """Count hops off the time to live; False when the packet dies on the way."""
        head = self.head
        at = 8 if len(self.source) == 4 else 7
        if head[at] <= count:
            return False
        head[at] -= count
        self.stale = at == 8
        return True

    def set_source(self, address: bytes, port: int) -> None:
        """Replace source address and port (for ICMP echo: the identifier), all checksums kept right. IPv4 only."""
        self._rewrite(12, self.source, address, 0, self.source_port, port)
        self.source, self.source_port = address, port

    def set_target(self, address: bytes, port: int) -> None:
        """Replace target address and port (for ICMP echo: the identifier), all checksums kept right. IPv4 only."""
        self._rewrite(16, self.target, address, 2, self.target_port, port)
        self.target, self.target_port = address, port

    def _rewrite(self, address_at: int, old: bytes, new: bytes, port_at: int, old_port: int, port: int) -> None:
        head, start = self.head, self.start
        head[address_at : address_at + 4] = new
        self.stale = True
        if self.fragment == 2:
            return
        if self.protocol == ICMP:
            if port != old_port:
                head[start + 4 : start + 6] = port.to_bytes(2, "big")
                self._adjust(start + 2, port - old_port)
            return
        head[start + port_at : start + port_at + 2] = port.to_bytes(2, "big")
        change = int.from_bytes(new, "big") - int.from_bytes(old, "big")
        at = start + CHECKSUM_AT[self.protocol]
        if self.flags & _NEEDS_CHECKSUM:
            # The field holds the plain sum of the pseudo-header, without ports.
            total = ((head[at] << 8 | head[at + 1]) + change) % 0xFFFF
            head[at : at + 2] = total.to_bytes(2, "big")
        elif self.protocol == TCP or head[at] or head[at + 1]:
            self._adjust(at, change + port - old_port)

    def _adjust(self, at: int, change: int) -> None:
        """Account for a change of what a checksum covers (RFC 1624)."""
        head = self.head
        total = ((head[at] << 8 | head[at + 1]) ^ 0xFFFF) + change
        head[at : at + 2] = (total % 0xFFFF ^ 0xFFFF).to_bytes(2, "big")

    def _sum_header(self) -> None:
        head = self.head
        head[10:12] = b"\0\0"
        head[10:12] = (int.from_bytes(head[: self.start], "big") % 0xFFFF ^ 0xFFFF).to_bytes(2, "big")
        self.stale = False

    def _payload_at(self) -> int:
        if self.protocol == UDP:
            return self.start + 8
        return self.start + (self.head[self.start + 12] >> 4) * 4 if self.protocol == TCP else self.start

    def split(self, segments: int) -> Iterator[Packet]:
        """Cut a train into pieces of at most so many wire packets, as the kernel's segmentation would.

        Yields:
            This packet itself when it is short enough.
        """
        if self.segments <= segments:
            yield self
            return
        whole = self.to_bytes()
        header, payload = whole[: self._payload_at()], whole[self._payload_at() :]
        step = segments * self.gso_size
        for at in range(0, len(payload), step):
            yield self._piece(header, payload[at : at + step], at, last=at + step >= len(payload))

    def _piece(self, header: bytes, payload: bytes, at: int, *, last: bool) -> Packet:
        head = bytearray(header)
        start = self.start
        length = len(head) + len(payload)
        if len(self.source) == 4:
            head[2:4] = length.to_bytes(2, "big")
            head[4:6] = (int.from_bytes(head[4:6], "big") + at // self.gso_size & 0xFFFF).to_bytes(2, "big")
        else:
            head[4:6] = (length - 40).to_bytes(2, "big")
        if self.protocol == TCP:
            sequence = int.from_bytes(head[start + 4 : start + 8], "big") + at & 0xFFFFFFFF
            head[start + 4 : start + 8] = sequence.to_bytes(4, "big")
            if not last:
                head[start + 13] &= ~(FIN | PSH)
        else:
            head[start + 4 : start + 6] = (length - start).to_bytes(2, "big")
        pseudo = int.from_bytes(self.source + self.target, "big") + self.protocol + length - start
        checksum_at = start + CHECKSUM_AT[self.protocol]
        head[checksum_at : checksum_at + 2] = checksum(b"", pseudo).to_bytes(2, "big")
        train = len(payload) > self.gso_size
        vnet = _VNET.pack(_NEEDS_CHECKSUM, self.gso_type if train else 0, 0, self.gso_size if train else 0, 0, 0)
        piece = Packet(bytes(head) + payload, 0, vnet)
        piece.stale = len(self.source) == 4
        return piece


def ip_header(source: bytes, target: bytes, protocol: int, length: int) -> bytes:
    """The header of an IP packet with a payload of some length; no fragmentation, 64 hops."""
    if len(source) == 16:
        return struct.pack(">IHBB", 0x60000000, length, protocol, 64) + source + target
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, protocol, 0) + source + target
    return header[:10] + (checksum(header) ^ 0xFFFF).to_bytes(2, "big") + header[12:]


def pseudo_sum(source: bytes, target: bytes, protocol: int, length: int) -> int:
    """The sum of the pseudo-header that TCP, UDP and ICMPv6 checksums cover, not folded."""
    return int.from_bytes(source + target, "big") + protocol + length


def icmp_error(about: Packet, source: bytes, kind: int, code: int, value: int = 0) -> Packet | None:
    """An ICMP error from `source` to the sender of a packet; None where RFC 1122 §3.2.2 forbids one.

    Args:
        about: the packet that cannot go on.
        source: address of the router that says so.
        kind: ICMP (or ICMPv6) type.
        code: ICMP code.
        value: the last 32 bits of the header, such as the MTU.
    """
    if about.fragment == 2 or about.protocol == ICMP6 or (about.protocol == ICMP and about.head[about.start] != 8):
        return None
    # RFC 1812 §4.3.2.3 allows more than the eight bytes that RFC 792 asks for.
    body = struct.pack(">BBHI", kind, code, 0, value) + about.to_bytes()[: 1232 if len(source) == 16 else 548]
    protocol = ICMP6 if len(source) == 16 else ICMP
    start = pseudo_sum(source, about.source, protocol, len(body)) if protocol == ICMP6 else 0
    body = body[:2] + (checksum(body, start) ^ 0xFFFF).to_bytes(2, "big") + body[4:]
    return Packet(ip_header(source, about.source, protocol, len(body)) + body)


def echo_reply(request: Packet) -> Packet:
    """The answer to an ICMP echo request (IPv4)."""
    body = bytearray(request.to_bytes()[request.start :])
    body[0:4] = b"\0\0\0\0"
    body[2:4] = (checksum(body) ^ 0xFFFF).to_bytes(2, "big")
    return Packet(ip_header(request.target, request.source, ICMP, len(body)) + bytes(body))


def reset_for(segment: Packet) -> Packet | None:
    """The RST that a closed port sends (RFC 9293 §3.10.7.1); None in answer to a RST."""
    flags = segment.tcp_flags
    if flags & RST:
        return None
    sequence, acknowledged = struct.unpack_from(">II", segment.head, segment.start + 4)
    if flags & ACK:
        numbers = struct.pack(">IIBB", acknowledged, 0, 0x50, RST)
    else:
        length = segment.size - segment._payload_at() + bool(flags & SYN) + bool(flags & FIN)
        numbers = struct.pack(">IIBB", 0, sequence + length & 0xFFFFFFFF, 0x50, RST | ACK)
    body = _PORTS.pack(segment.target_port, segment.source_port) + numbers + bytes(6)
    source, target = segment.target, segment.source
    total = checksum(body, pseudo_sum(source, target, TCP, 20)) ^ 0xFFFF
    return Packet(ip_header(source, target, TCP, 20) + body[:16] + total.to_bytes(2, "big") + body[18:])
