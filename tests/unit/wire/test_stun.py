"""STUN messages: the vectors of RFC 5769, and what must be refused."""

from __future__ import annotations

import struct
import zlib

import pytest

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.wire.stun import (
    MAX_STUN_BYTES,
    ChangeRequest,
    ErrorCode,
    MessageClass,
    StunError,
    StunMessage,
    looks_like_stun,
    parse_stun,
    serialize_stun,
    stun_frame_bytes,
)

ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")

# RFC 5769 §2.1 to §2.3
REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff"
    "80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)
RESPONSE_IPV4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
RESPONSE_IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)


def frame(*attributes: tuple[int, bytes], message_type: int = 0x0101) -> bytes:
    body = b"".join(struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4) for kind, value in attributes)
    return struct.pack("!HHI", message_type, len(body), 0x2112A442) + ID + body


def test_rfc_5769_request() -> None:
    message = parse_stun(REQUEST)
    assert message.message_class is MessageClass.REQUEST
    assert message.transaction_id == ID
    assert message.software == "STUN test client"
    assert message.fingerprint
    assert message.not_understood == (0x0024,)  # PRIORITY belongs to ICE; USERNAME is known and ignored


def test_rfc_5769_responses() -> None:
    four, six = parse_stun(RESPONSE_IPV4), parse_stun(RESPONSE_IPV6)
    assert four.message_class is six.message_class is MessageClass.SUCCESS
    assert four.observed == ("192.0.2.1", 32853)
    assert six.observed == ("2001:db8:1234:5678:11:2233:4455:6677", 32853)
    assert four.software == "test vector"
    assert four.not_understood == ()


def test_xor_mapped_address_as_in_the_vectors() -> None:
    four = serialize_stun(StunMessage(MessageClass.SUCCESS, ID, xor_mapped_address=("192.0.2.1", 32853)))
    six = serialize_stun(StunMessage(MessageClass.SUCCESS, ID, xor_mapped_address=parse_stun(RESPONSE_IPV6).observed))
    assert four[20:] == bytes.fromhex("002000080001a147e112a643")
    assert six[20:] == bytes.fromhex("002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9")


def test_everything_survives_a_round_trip() -> None:
    message = StunMessage(
        MessageClass.ERROR,
        ID,
        xor_mapped_address=("192.0.2.1", 1),
        mapped_address=("2001:db8::1", 65535),
        software="crust",
        error=StunError(ErrorCode.UNKNOWN_ATTRIBUTE, "ä"),
        unknown_attributes=(3, 0x7FFF, 9),
        change_request=ChangeRequest(change_ip=True),
        response_port=4000,
        response_origin=("192.0.2.2", 3478),
        other_address=("192.0.2.3", 3479),
        fingerprint=True,
    )
    assert parse_stun(serialize_stun(message)) == message


def test_a_plain_request_is_twenty_bytes() -> None:
    assert serialize_stun(StunMessage(MessageClass.REQUEST, ID)) == frame(message_type=0x0001)


def test_observed_falls_back_to_mapped_address() -> None:
    assert parse_stun(frame((1, bytes.fromhex("0001006401020304")))).observed == ("1.2.3.4", 100)
    assert parse_stun(frame()).observed is None


def test_an_ipv4_mapped_address_is_read_as_ipv4() -> None:
    value = b"\x00\x02\x00\x64" + bytes(10) + b"\xff\xff\x01\x02\x03\x04"
    assert parse_stun(frame((1, value))).observed == ("1.2.3.4", 100)


def test_the_first_of_two_attributes_counts() -> None:
    assert parse_stun(frame((0x8022, b"one"), (0x8022, b"two"))).software == "one"


def test_what_follows_message_integrity_is_ignored() -> None:
    assert parse_stun(frame((8, bytes(20)), (0x8022, b"forged"))).software is None


def test_an_unknown_optional_attribute_is_skipped() -> None:
    message = parse_stun(frame((0xC001, b"?"), (0x8022, b"x")))
    assert message.software == "x"
    assert message.not_understood == ()


def test_unknown_attributes_are_kept_up_to_a_cap() -> None:
    message = parse_stun(frame(*((kind, b"") for kind in range(0x100, 0x200))))
    assert len(message.not_understood) == 64


def test_text_that_is_not_utf8_does_no_harm() -> None:
    assert parse_stun(frame((0x8022, b"\xff"))).software == "\ufffd"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(20),
        REQUEST[:-4],
        REQUEST + bytes(4),
        REQUEST[:-1] + b"\x00",  # fingerprint
        frame(message_type=0x0003),  # method 3: TURN allocate
        frame(message_type=0x0111),  # error without a code
        frame()[:2] + b"\x00\x01" + frame()[4:] + b"\x00",
        frame((0x8022, b"x"))[:-4] + b"\x00\x08" + b"x\x00\x00\x00",
        frame()[:3] + b"\x04" + frame()[4:] + struct.pack("!HH", 0x8022, 4),
        frame((1, b"")),
        frame((1, bytes(8))),  # family 0
        frame((1, b"\x00\x01" + bytes(18))),
        frame((3, bytes(3))),
        frame((0x27, bytes(2))),
        frame((9, bytes(3))),
        frame((9, b"\x00\x00\x02\x00")),
        frame((9, b"\x00\x00\x07\x00")),
        frame((9, b"\x00\x00\x04\x64")),
        frame((9, b"\x00\x00\x04\x00" + bytes(764))),
        frame((10, bytes(3))),
        frame((10, bytes(130))),
        frame((0x8022, bytes(764))),
        frame((0x8028, bytes(4))),
        frame(*((0xC000 + i, bytes(700)) for i in range(3))),
    ],
)
def test_malformed_messages_are_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_stun(data)


def test_nothing_may_follow_the_fingerprint() -> None:
    head = struct.pack("!HHI", 0x0101, 8, 0x2112A442) + ID
    sealed = head + struct.pack("!HHI", 0x8028, 4, zlib.crc32(head) ^ 0x5354554E)
    assert parse_stun(sealed).fingerprint
    longer = struct.pack("!HHI", 0x0101, 12, 0x2112A442) + ID
    with pytest.raises(RemoteProtocolError, match="after FINGERPRINT"):
        parse_stun(
            longer + struct.pack("!HHI", 0x8028, 4, zlib.crc32(longer) ^ 0x5354554E) + struct.pack("!HH", 0x8022, 0)
        )


@pytest.mark.parametrize(
    "message",
    [
        StunMessage(MessageClass.REQUEST, b"short"),
        StunMessage(MessageClass.SUCCESS, ID, xor_mapped_address=("example.org", 1)),
        StunMessage(MessageClass.SUCCESS, ID, xor_mapped_address=("192.0.2.1", 65536)),
        StunMessage(MessageClass.SUCCESS, ID, software="x" * 764),
        StunMessage(MessageClass.ERROR, ID, error=StunError(200)),
        StunMessage(MessageClass.REQUEST, ID, response_port=65536),
        StunMessage(MessageClass.ERROR, ID, error=StunError(400, "x" * 764)),
        StunMessage(MessageClass.ERROR, ID, unknown_attributes=tuple(range(65))),
    ],
)
def test_what_the_format_cannot_hold_is_our_mistake(message: StunMessage) -> None:
    with pytest.raises(LocalProtocolError):
        serialize_stun(message)


def test_the_largest_message_is_within_the_cap() -> None:
    address = ("2001:db8::1", 1)
    message = StunMessage(
        MessageClass.ERROR,
        ID,
        address,
        address,
        "x" * 763,
        StunError(400, "x" * 763),
        tuple(range(64)),
        ChangeRequest(),
        4000,
        address,
        address,
        fingerprint=True,
    )
    assert parse_stun(serialize_stun(message)) == message
    assert len(serialize_stun(message)) <= MAX_STUN_BYTES


def test_looks_like_stun() -> None:
    assert looks_like_stun(REQUEST)
    assert not looks_like_stun(REQUEST[:19])
    assert not looks_like_stun(b"\x40" + REQUEST[1:])
    assert not looks_like_stun(bytes(20))


def test_frames_of_a_stream() -> None:
    assert stun_frame_bytes(b"") is None
    assert stun_frame_bytes(REQUEST[:6]) is None
    assert stun_frame_bytes(REQUEST[:19]) is None
    assert stun_frame_bytes(REQUEST[:20]) == len(REQUEST)
    assert stun_frame_bytes(REQUEST + b"more") == len(REQUEST)
    for bad in (
        b"GET / HTTP/1.1",
        b"\x00\x01\x00\x00HTTP",
        REQUEST[:3] + b"\x01" + REQUEST[4:],
        b"\x00\x01\xff\xfc" + REQUEST[4:],
    ):
        with pytest.raises(RemoteProtocolError):
            stun_frame_bytes(bad)
