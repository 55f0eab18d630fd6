"""Datagrams of the encrypted tunnel (PROTOCOL 8), and what its handshake says beyond that over TCP.

    0              4                      12                                32
    +--------------+----------------------+---------------------------------+--------------- ... ----+----------+
    | index 4      | counter 8            | µTP header 20, or control       | body, sealed           | tag 16   |
    +--------------+----------------------+---------------------------------+--------------- ... ----+----------+
     \\_ AEAD nonce ______________________/
     \\_ associated data; masked with what AES makes of the 16 bytes behind it _________________/

Message 1:  salt 16 ‖ cookie proof 16, or random bytes ‖ AEAD(version 1 ‖ suite 1 ‖ length 2 ‖ Noise message ‖ padding)
Message 2:  header 32 with the initiator's index, counter 2^64 - 1 and zeros, masked ‖ AEAD(length 2 ‖ Noise message ‖
            padding)
Reply that holds no state (cookie or hint): AEAD(kind 1 ‖ cookie 16, or hint 1 ‖ padding)
Payload of both Noise messages: index 4 ‖ header key 16 ‖ Hello

Numbers are big-endian. Padding is zeros: all of it is encrypted.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from crust.crypto.aead import TAG_BYTES, Suite
from crust.crypto.dh import DH_BYTES
from crust.errors import RemoteProtocolError
from crust.wire.handshake import (
    HELLO_BYTES,
    VERSION,
    Hello,
    Hint,
    UnsupportedVersionError,
    parse_hello,
    parse_hint,
    serialize_hello,
)

__all__ = [
    "CONTROL_MARK",
    "COOKIE_BYTES",
    "HANDSHAKE_COUNTER",
    "HEADER_BYTES",
    "HEADER_KEY_BYTES",
    "NONCE_BYTES",
    "OVERHEAD_BYTES",
    "PROOF_BYTES",
    "REQUEST_BYTES",
    "RESPONSE_BYTES",
    "SAMPLE_BYTES",
    "SMALLEST_DATAGRAM",
    "ControlKind",
    "Introduction",
    "TunnelRequest",
    "parse_control",
    "parse_introduction",
    "parse_reply",
    "parse_request",
    "parse_response",
    "serialize_control",
    "serialize_cookie_reply",
    "serialize_hint_reply",
    "serialize_introduction",
    "serialize_request",
    "serialize_response",
]

HEADER_BYTES: Final = 32
NONCE_BYTES: Final = 12
SAMPLE_BYTES: Final = 16
HEADER_KEY_BYTES: Final = 16
COOKIE_BYTES: Final = 16
SMALLEST_DATAGRAM: Final = HEADER_BYTES + TAG_BYTES
OVERHEAD_BYTES: Final = NONCE_BYTES + TAG_BYTES
"""What the tunnel adds to each µTP packet."""

HANDSHAKE_COUNTER: Final = (1 << 64) - 1
PROOF_BYTES: Final = 16

CONTROL_MARK: Final = 0x0F
"""First byte of a control header: a µTP packet of version 15, which there will never be."""

_INTRODUCTION: Final = struct.Struct(">I16s")
_REQUEST: Final = struct.Struct(">BBH")
_LENGTH: Final = struct.Struct(">H")
_CONTROL_HEADER: Final = 20

_INTRODUCTION_BYTES: Final = _INTRODUCTION.size + HELLO_BYTES
_NOISE_1: Final = DH_BYTES + (DH_BYTES + TAG_BYTES) + (_INTRODUCTION_BYTES + TAG_BYTES)
_NOISE_2: Final = DH_BYTES + (_INTRODUCTION_BYTES + TAG_BYTES)

# The least bodies, without padding.
REQUEST_BYTES: Final = _REQUEST.size + _NOISE_1
RESPONSE_BYTES: Final = _LENGTH.size + _NOISE_2


class ControlKind(enum.IntEnum):
    """What a datagram is that carries no µTP packet; the second byte of its header."""

    CHALLENGE = 1  # body: a token that the peer must send back from where it is
    RESPONSE = 2  # body: that token
    KEEPALIVE = 3  # keeps NATs open
    RENEW = 4  # body: Noise message 1 of new keys
    RENEWED = 5  # body: Noise message 2


class _ReplyKind(enum.IntEnum):
    """First byte of a reply that holds no state."""

    COOKIE = 1
    HINT = 2


@dataclass(frozen=True, slots=True)
class Introduction:
    """The payload of either Noise message.

    Attributes:
        index: what datagrams to its sender carry in front.
        header_key: what headers of datagrams to its sender are masked with; the same for all its peers.
        hello: the same as over TCP.
    """

    index: int
    header_key: bytes
    hello: Hello


class TunnelRequest(NamedTuple):
    """The body of message 1.

    Attributes:
        suite: the cipher that the initiator chose.
        noise: its Noise message.
    """

    suite: Suite
    noise: bytes


def serialize_introduction(introduction: Introduction) -> bytes:
    """An introduction as bytes."""
    return _INTRODUCTION.pack(introduction.index, introduction.header_key) + serialize_hello(introduction.hello)


def parse_introduction(data: bytes) -> Introduction:
    """An introduction from the bytes that a peer sent; bytes that later versions append are skipped.

    Raises:
        RemoteProtocolError: too short, or a Hello that is none.
    """
    if len(data) < _INTRODUCTION_BYTES:
        raise RemoteProtocolError("tunnel handshake payload too short")
    index, header_key = _INTRODUCTION.unpack_from(data)
    return Introduction(index, header_key, parse_hello(data[_INTRODUCTION.size :]))


def serialize_request(request: TunnelRequest, padding: int) -> bytes:
    """The body of message 1 with `padding` bytes behind it."""
    head = _REQUEST.pack(VERSION, request.suite.value, len(request.noise))
    return head + request.noise + bytes(padding)


def parse_request(body: bytes) -> TunnelRequest:
    """The body of message 1.

    Raises:
        UnsupportedVersionError: another version, or an unknown suite.
        RemoteProtocolError: too short for what it says.
    """
    if len(body) < _REQUEST.size:
        raise RemoteProtocolError("tunnel message 1 too short")
    version, suite, length = _REQUEST.unpack_from(body)
    if version != VERSION:
        raise UnsupportedVersionError(f"handshake of version {version}")
    try:
        known = Suite(suite)
    except ValueError as error:
        raise UnsupportedVersionError(f"handshake with cipher suite {suite}") from error
    if not _NOISE_1 <= length <= len(body) - _REQUEST.size:
        raise RemoteProtocolError("tunnel message 1 of an impossible length")
    return TunnelRequest(known, body[_REQUEST.size : _REQUEST.size + length])


def serialize_response(noise: bytes, padding: int) -> bytes:
    """The body of message 2 with `padding` bytes behind it."""
    return _LENGTH.pack(len(noise)) + noise + bytes(padding)


def parse_response(body: bytes) -> bytes:
    """The Noise message in the body of message 2.

    Raises:
        RemoteProtocolError: too short for what it says.
    """
    if len(body) < _LENGTH.size:
        raise RemoteProtocolError("tunnel message 2 too short")
    (length,) = _LENGTH.unpack_from(body)
    if not _NOISE_2 <= length <= len(body) - _LENGTH.size:
        raise RemoteProtocolError("tunnel message 2 of an impossible length")
    return body[_LENGTH.size : _LENGTH.size + length]


def serialize_cookie_reply(cookie: bytes, padding: int) -> bytes:
    """The body of a reply with a cookie, with `padding` bytes behind it."""
    return bytes((_ReplyKind.COOKIE,)) + cookie + bytes(padding)


def serialize_hint_reply(hint: Hint, padding: int) -> bytes:
    """The body of a reply with a hint, with `padding` bytes behind it."""
    return bytes((_ReplyKind.HINT, hint)) + bytes(padding)


def parse_reply(body: bytes) -> bytes | Hint:
    """The cookie, or the hint, in the body of a reply.

    Raises:
        RemoteProtocolError: neither.
    """
    if body and body[0] == _ReplyKind.HINT:
        return parse_hint(body[1:])
    if len(body) < 1 + COOKIE_BYTES or body[0] != _ReplyKind.COOKIE:
        raise RemoteProtocolError("a reply of unknown kind or impossible length")
    return body[1 : 1 + COOKIE_BYTES]


def serialize_control(kind: ControlKind) -> bytes:
    """The header of a control packet, in the place of a µTP header."""
    return bytes((CONTROL_MARK, kind)).ljust(_CONTROL_HEADER, b"\0")


def parse_control(header: bytes | memoryview) -> ControlKind | None:
    """What a control header announces; None for a kind that a later version knows.

    Raises:
        RemoteProtocolError: no control header.
    """
    if len(header) != _CONTROL_HEADER or header[0] != CONTROL_MARK:
        raise RemoteProtocolError("no control header")
    try:
        return ControlKind(header[1])
    except ValueError:
        return None
