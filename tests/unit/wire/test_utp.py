"""µTP packets (BEP 29)."""

from __future__ import annotations

import pytest

from crust.errors import RemoteProtocolError
from crust.wire.utp import (
    HEADER_BYTES,
    MAX_EXTENSIONS,
    MAX_FAR_ACKS,
    MAX_SACK_PACKETS,
    Extension,
    Extensions,
    Header,
    PacketType,
    is_header_run,
    parse_extensions,
    parse_header,
    serialize_far_acks,
    serialize_header,
    serialize_header_run,
    serialize_part,
    serialize_selective_ack,
    unpack_header,
)

HEADER = Header(PacketType.DATA, Extension.NONE, 0x1234, 0x01020304, 0x0A0B0C0D, 1 << 20, 0xBEEF, 0xCAFE)


def chain(*extensions: tuple[int, bytes]) -> tuple[int, bytes]:
    """(first kind, bytes) of a chain of extensions."""
    kinds = [kind for kind, _ in extensions] + [0]
    body = b"".join(
        bytes((following, len(data))) + data for following, (_, data) in zip(kinds[1:], extensions, strict=True)
    )
    return kinds[0], body


def test_header_as_in_bep_29() -> None:
    assert serialize_header(HEADER).hex() == "01001234010203040a0b0c0d00100000beefcafe"
    assert parse_header(serialize_header(HEADER)) == HEADER


def test_captured_from_libtorrent() -> None:
    """The answer to a SYN that libtorrent 2.1.1 sent over loopback."""
    header = parse_header(bytes.fromhex("21001c7f8b59ba1a607a8e4500100000181b0b46"))
    assert header.type is PacketType.STATE
    assert (header.connection_id, header.wnd_size, header.seq_nr, header.ack_nr) == (0x1C7F, 1 << 20, 0x181B, 0x0B46)


@pytest.mark.parametrize("kind", PacketType)
def test_every_type(kind: PacketType) -> None:
    header = HEADER._replace(type=kind)
    assert parse_header(serialize_header(header)) == header


def test_values_wrap() -> None:
    header = HEADER._replace(seq_nr=0x1BEEF, ack_nr=-1, timestamp=1 << 32, wnd_size=1 << 40)
    parsed = parse_header(serialize_header(header))
    assert (parsed.seq_nr, parsed.ack_nr, parsed.timestamp, parsed.wnd_size) == (0xBEEF, 0xFFFF, 0, 0xFFFFFFFF)


@pytest.mark.parametrize(
    "packet", [b"", bytes(19), b"\x02" + bytes(19), b"\x51" + bytes(19), b"\x00" + bytes(30)], ids=repr
)
def test_not_a_header(packet: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_header(packet)


def test_unpack_gives_the_same_fields() -> None:
    assert unpack_header(serialize_header(HEADER))[1:] == HEADER[1:]


def test_run_passes_zero() -> None:
    run = serialize_header_run(HEADER, 65_534, 5)
    numbers = [parse_header(run[at : at + HEADER_BYTES]).seq_nr for at in range(0, len(run), HEADER_BYTES)]
    assert numbers == [65_534, 65_535, 0, 1, 2]
    assert is_header_run(run, 5)
    assert all(parse_header(run[at:])._replace(seq_nr=0) == HEADER._replace(seq_nr=0) for at in range(0, 100, 20))


@pytest.mark.parametrize("at", range(2 * HEADER_BYTES))
def test_run_notices_any_change(at: int) -> None:
    run = serialize_header_run(HEADER, 7, 2)
    run[at] ^= 1
    # Another first number makes both differ from what is expected, or from each other.
    assert not is_header_run(run, 2)


def test_selective_ack_bits() -> None:
    """Bit 0 is ack_nr + 2, the least significant bit of the first byte (BEP 29)."""
    assert serialize_selective_ack(0b1_0000_0001) == b"\x00\x04\x01\x01\x00\x00"
    assert serialize_selective_ack(0) == b"\x00\x04" + bytes(4)
    assert serialize_selective_ack(1 << 32) == b"\x00\x08" + bytes(4) + b"\x01\x00\x00\x00"
    kind, body = chain((Extension.SELECTIVE_ACK, b"\x01\x01\x00\x00"))
    assert parse_extensions(kind, body) == Extensions(sack=0b1_0000_0001, length=6)


def test_selective_ack_ends_at_its_reach() -> None:
    sack = (1 << MAX_SACK_PACKETS + 9) - 1
    body = serialize_selective_ack(sack)
    assert len(body) == 254
    assert parse_extensions(Extension.SELECTIVE_ACK, body).sack == (1 << MAX_SACK_PACKETS) - 1


def test_selective_ack_of_any_length() -> None:
    """libtorrent sends lengths that are no multiple of four."""
    kind, body = chain((Extension.SELECTIVE_ACK, b"\x05"))
    assert parse_extensions(kind, body).sack == 5


def test_far_acks_reach_further() -> None:
    sack = sum(1 << at for at in range(0, 9000, 7))
    body = serialize_selective_ack(sack, Extension.FAR_ACK) + serialize_far_acks(sack)
    assert parse_extensions(Extension.SELECTIVE_ACK, body) == Extensions(sack=sack, length=len(body))


@pytest.mark.parametrize("count", range(1, MAX_FAR_ACKS + 2))
def test_far_acks_as_many_as_fit(count: int) -> None:
    sack = (1 << 16_000) - 1
    body = serialize_selective_ack(sack, Extension.FAR_ACK) + serialize_far_acks(sack, count)
    reach = MAX_SACK_PACKETS * (1 + min(count, MAX_FAR_ACKS))
    assert parse_extensions(Extension.SELECTIVE_ACK, body).sack == (1 << reach) - 1


def test_far_acks_of_nothing() -> None:
    assert serialize_far_acks(5) == b""


def test_part() -> None:
    assert parse_extensions(Extension.PART, serialize_part(1300, 2600)) == Extensions(part=(1300, 2600), length=6)


def test_unknown_extensions_are_skipped() -> None:
    kind, body = chain((Extension.BITS, bytes(8)), (99, b"x"), (Extension.SELECTIVE_ACK, b"\x01\0\0\0"), (98, b""))
    assert parse_extensions(kind, body + b"payload") == Extensions(sack=1, length=len(body))


@pytest.mark.parametrize(("data", "reason"), [(b"\0\0\x01\x05", 0x105), (b"\0\0\x01", None), (b"", None)])
def test_close_reason(data: bytes, reason: int | None) -> None:
    assert parse_extensions(*chain((Extension.CLOSE_REASON, data))).close_reason == reason


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (1, b""),
        (1, b"\x00"),
        (1, b"\x00\x04\x01"),
        (1, b"\x01\x04\0\0\0\0"),
        chain((Extension.SELECTIVE_ACK, bytes(4)), (Extension.SELECTIVE_ACK, bytes(4))),
        chain((Extension.PART, bytes(4)), (Extension.PART, bytes(4))),
        chain(*[(77, b"")] * (MAX_EXTENSIONS + 1)),
        chain((Extension.FAR_ACK, b"\0\0")),
        chain((Extension.FAR_ACK, b"\x7f\xff\x02")),
        chain((Extension.PART, bytes(3))),
        chain((Extension.PART, bytes(4))),
        chain((Extension.PART, b"\x00\x02\x00\x02")),
    ],
)
def test_broken_extensions(kind: int, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_extensions(kind, body)


def test_as_many_extensions_as_allowed() -> None:
    kind, body = chain(*[(77, b"")] * MAX_EXTENSIONS)
    assert parse_extensions(kind, body).length == 2 * MAX_EXTENSIONS
