"""µTP packets (BEP 29): the 20-byte header, its extensions, and whole runs of headers that differ in seq_nr only.

    0       4       8               16              24              32
    +-------+-------+---------------+---------------+---------------+
    | type  | ver   | extension     | connection_id                 |
    +-------+-------+---------------+---------------+---------------+
    | timestamp_microseconds                                        |
    | timestamp_difference_microseconds                             |
    | wnd_size                                                      |
    | seq_nr                        | ack_nr                        |
    +-------+-------+---------------+---------------+---------------+

A packet is this header and a body: a chain of extensions, each `next kind (1) ‖ length (1) ‖ data`, then the payload.

Extensions of ours (peers that do not know them skip them, as BEP 29 asks):

    FAR_ACK  first (2) ‖ bits     packets received beyond the reach of a selective ack: bit i for packet
                                  ack_nr + 2 + `first` + i, in the order of a selective ack's; may be repeated
    PART     offset (2) ‖ total (2)     the payload is a part of a packet of `total` payload bytes, sent again in
                                        pieces because the path no longer takes it whole
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import NamedTuple, TypeAlias

from crust.errors import RemoteProtocolError

__all__ = [
    "HEADER_BYTES",
    "MAX_EXTENSIONS",
    "MAX_RUN",
    "MAX_SACK_BYTES",
    "MAX_SACK_PACKETS",
    "SEQUENCE_NUMBERS",
    "VERSION",
    "Buffer",
    "Extension",
    "Extensions",
    "Header",
    "PacketType",
    "is_header_run",
    "pack_header",
    "parse_extensions",
    "parse_header",
    "serialize_far_acks",
    "serialize_header",
    "serialize_header_run",
    "serialize_part",
    "serialize_selective_ack",
    "unpack_header",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

# -- BEP 29 --------------------------------------------------------------------------------------------------------
VERSION = 1
HEADER_BYTES = 20
SEQUENCE_NUMBERS = 1 << 16
# The length of an extension is one byte and that of a selective ack a multiple of four.
MAX_SACK_BYTES = 252
MAX_SACK_PACKETS = MAX_SACK_BYTES * 8

# -- our own limits ------------------------------------------------------------------------------------------------
# No sender needs more than three; a packet of 1400 bytes could hold 690 empty ones, each of which costs time.
MAX_EXTENSIONS = 8
# Far acks in a packet; with the selective ack before them they reach over 10,080 packets.
MAX_FAR_ACKS = 4

_SACK_MASK = (1 << MAX_SACK_PACKETS) - 1
_HEADER = Struct(">BBHIIIHH")
_EXTENSION = Struct("BB")
_SHORT = Struct(">H")
_PAIR = Struct(">HH")

# The two bytes of every sequence number, laid out so that those of a run are one slice (a run may pass 65535 → 0).
MAX_RUN = 4096
_HIGH = b"".join(bytes((high,)) * 256 for high in range(256))
_HIGH += _HIGH[:MAX_RUN]
_LOW = bytes(range(256)) * (256 + MAX_RUN // 256)


class PacketType(enum.IntEnum):
    """The type of a packet (BEP 29)."""

    DATA = 0
    FIN = 1
    STATE = 2
    RESET = 3
    SYN = 4


class Extension(enum.IntEnum):
    """The kind of an extension; others are skipped."""

    NONE = 0
    SELECTIVE_ACK = 1
    BITS = 2  # libutp's eight bytes of capabilities; nothing is defined in them
    CLOSE_REASON = 3  # libtorrent
    FAR_ACK = 0x43
    PART = 0x44


class Header(NamedTuple):
    """The fields of a header, checked.

    Attributes:
        type: what the packet is.
        extension: the kind of the first extension, 0 for none.
        connection_id: as the receiver of the packet knows the connection (a SYN: as its sender will).
        timestamp: the sender's clock in microseconds, modulo 2^32.
        timestamp_difference: the receiver's clock less `timestamp` of the last packet that the sender got.
        wnd_size: bytes that the sender of the packet is ready to receive.
        seq_nr: number of this packet (STATE: of the next one).
        ack_nr: everything up to this number has been received.
    """

    type: PacketType
    extension: int
    connection_id: int
    timestamp: int
    timestamp_difference: int
    wnd_size: int
    seq_nr: int
    ack_nr: int


class Extensions(NamedTuple):
    """What the extensions of a packet say.

    Attributes:
        sack: bit i is set when packet `ack_nr` + 2 + i has been received.
        part: (offset, total) of a packet that comes in pieces.
        close_reason: libtorrent's code.
        length: bytes that the chain takes; the payload starts there.
    """

    sack: int = 0
    part: tuple[int, int] | None = None
    close_reason: int | None = None
    length: int = 0


# The header as a plain tuple (first byte, extension, connection_id, timestamp, timestamp_difference, wnd_size, seq_nr,
# ack_nr) of the first 20 bytes of a buffer that the caller knows to be long enough: the one call per packet on the way
# in. Every value fits its field, so nothing but the first byte is left to check.
unpack_header = _HEADER.unpack_from

# The other way round; who calls it has taken every field modulo the range of its place.
pack_header = _HEADER.pack


def parse_header(datagram: Buffer) -> Header:
    """Read the header at the start of a datagram.

    Raises:
        RemoteProtocolError: it is too short, of another version or of an unknown type.
    """
    if len(datagram) < HEADER_BYTES:
        raise RemoteProtocolError("a µTP packet shorter than its header")
    first, *fields = _HEADER.unpack_from(datagram)
    if first & 15 != VERSION or first >> 4 > PacketType.SYN:
        raise RemoteProtocolError(f"not a µTP packet: its first byte is {first:#04x}")
    return Header(PacketType(first >> 4), *fields)


def serialize_header(header: Header) -> bytes:
    """Write a header; each field is taken modulo the range of its place."""
    kind, extension, connection_id, timestamp, difference, wnd_size, seq_nr, ack_nr = header
    return _HEADER.pack(
        kind << 4 | VERSION,
        extension,
        connection_id & 0xFFFF,
        timestamp & 0xFFFFFFFF,
        difference & 0xFFFFFFFF,
        wnd_size if wnd_size <= 0xFFFFFFFF else 0xFFFFFFFF,
        seq_nr & 0xFFFF,
        ack_nr & 0xFFFF,
    )


def serialize_header_run(header: Header, seq_nr: int, count: int) -> bytearray:
    """Write `count` headers that differ in seq_nr only, each one more than the one before.

    Args:
        header: what they have in common.
        seq_nr: the number of the first, modulo 2^16.
        count: how many, at most 4096.
    """
    run = bytearray(serialize_header(header) * count)
    seq_nr &= 0xFFFF
    run[16::HEADER_BYTES] = _HIGH[seq_nr : seq_nr + count]
    run[17::HEADER_BYTES] = _LOW[seq_nr : seq_nr + count]
    return run


def is_header_run(headers: Buffer, count: int) -> bool:
    """Whether `count` headers differ in seq_nr only, each one more than the one before."""
    seq_nr = headers[16] << 8 | headers[17]
    run = bytearray(bytes(headers[:HEADER_BYTES]) * count)
    run[16::HEADER_BYTES] = _HIGH[seq_nr : seq_nr + count]
    run[17::HEADER_BYTES] = _LOW[seq_nr : seq_nr + count]
    return run == headers


def parse_extensions(kind: int, body: Buffer) -> Extensions:
    """Read the chain of extensions at the start of a body.

    Args:
        kind: the header's `extension`.
        body: what follows the header.

    Raises:
        RemoteProtocolError: the chain runs past the end, is too long, repeats itself or holds impossible values.
    """
    found: dict[int, Buffer] = {}
    at = count = far = 0
    while kind:
        count += 1
        if count > MAX_EXTENSIONS:
            raise RemoteProtocolError(f"more than {MAX_EXTENSIONS} extensions in a packet")
        if at + 2 > len(body):
            raise RemoteProtocolError("a packet that ends inside an extension")
        following, end = body[at], at + 2 + body[at + 1]
        if end > len(body):
            raise RemoteProtocolError("a packet that ends inside an extension")
        if kind == Extension.FAR_ACK:
            far |= _parse_far_ack(body[at + 2 : end])
        elif kind in _KNOWN:
            if kind in found:
                raise RemoteProtocolError(f"extension {kind} twice in a packet")
            found[kind] = body[at + 2 : end]
        kind, at = following, end
    sack = int.from_bytes(found.get(Extension.SELECTIVE_ACK, b""), "little")
    part = _parse_part(found[Extension.PART]) if Extension.PART in found else None
    reason = found.get(Extension.CLOSE_REASON)
    # libtorrent: two reserved bytes and the code; any other length is ignored there too.
    close_reason = _PAIR.unpack(reason)[1] if reason is not None and len(reason) == 4 else None
    return Extensions(sack | far, part, close_reason, at)


_KNOWN = frozenset((Extension.SELECTIVE_ACK, Extension.CLOSE_REASON, Extension.PART))


def _parse_far_ack(data: Buffer) -> int:
    if len(data) < 3:
        raise RemoteProtocolError("a far ack of impossible length")
    first: int = _SHORT.unpack_from(data)[0]
    bits = int.from_bytes(data[2:], "little")
    if first + bits.bit_length() > SEQUENCE_NUMBERS // 2:
        raise RemoteProtocolError("a far ack that reaches past half of the sequence numbers")
    return bits << first


def _parse_part(data: Buffer) -> tuple[int, int]:
    if len(data) != 4:
        raise RemoteProtocolError("a part of impossible length")
    offset, total = _PAIR.unpack(data)
    if offset >= total:
        raise RemoteProtocolError("a part that starts past the end of its packet")
    return offset, total


def serialize_selective_ack(sack: int, following: int = Extension.NONE) -> bytes:
    """Write the selective ack for the packets within its reach (some 2,000 of them).

    Args:
        sack: bit i is set when packet `ack_nr` + 2 + i has been received.
        following: the kind of the extension after this one.
    """
    # BEP 29: at least four bytes, in multiples of four.
    length = min((sack.bit_length() + 31) // 32 * 4, MAX_SACK_BYTES) or 4
    return _EXTENSION.pack(following, length) + (sack & _SACK_MASK).to_bytes(length, "little")


def serialize_far_acks(sack: int, count: int = MAX_FAR_ACKS) -> bytes:
    """Write far acks for what a selective ack does not reach, the lowest first.

    Args:
        sack: bit i is set when packet `ack_nr` + 2 + i has been received.
        count: how many at most; each takes up to 256 bytes.
    """
    chain: list[bytes] = []
    first = MAX_SACK_PACKETS
    rest = sack >> first
    count = min(count, MAX_FAR_ACKS)
    for _ in range(count):
        if not rest:
            break
        length = min((rest.bit_length() + 7) // 8, MAX_SACK_BYTES)
        bits = (rest & _SACK_MASK).to_bytes(length, "little")
        rest >>= MAX_SACK_PACKETS
        following = Extension.FAR_ACK if rest and len(chain) + 1 < count else Extension.NONE
        chain.append(_EXTENSION.pack(following, 2 + length) + _SHORT.pack(first) + bits)
        first += MAX_SACK_PACKETS
    return b"".join(chain)


def serialize_part(offset: int, total: int) -> bytes:
    """Write the extension that marks a payload as a part of a packet of `total` payload bytes."""
    return _EXTENSION.pack(Extension.NONE, _PAIR.size) + _PAIR.pack(offset, total)
