"""What the messages of a handshake say, inside their sealed envelopes.

Request (message 1):  version 1 ‖ suite 1 ‖ length 2 ‖ Noise message ‖ padding
Response (message 2): length 2 ‖ Noise message ‖ padding
Hint:                 code 1 ‖ padding
Hello (payload of both Noise messages): PeerId 32 ‖ role 1 ‖ signing 1 ‖ hashes 1 ‖ features 4 ‖ later versions' fields

Numbers are big-endian. Padding is zeros: all of it is encrypted.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from crust.crypto.aead import TAG_BYTES, Suite
from crust.crypto.dh import DH_BYTES
from crust.crypto.keys import PeerId
from crust.errors import ParseError, RemoteProtocolError

__all__ = [
    "HELLO_BYTES",
    "HINT_BYTES",
    "REQUEST_BYTES",
    "RESPONSE_BYTES",
    "VERSION",
    "Hello",
    "Hint",
    "Request",
    "Role",
    "Signing",
    "UnsupportedVersionError",
    "parse_hello",
    "parse_hint",
    "parse_request",
    "parse_response",
    "serialize_hello",
    "serialize_hint",
    "serialize_request",
    "serialize_response",
]

VERSION: Final = 1

_HELLO: Final = struct.Struct(">32sBBBI")
_REQUEST: Final = struct.Struct(">BBH")
_LENGTH: Final = struct.Struct(">H")

HELLO_BYTES: Final = _HELLO.size
# The least sizes, without padding: what a length field can plausibly say.
REQUEST_BYTES: Final = _REQUEST.size + DH_BYTES + (DH_BYTES + TAG_BYTES) + (HELLO_BYTES + TAG_BYTES)
RESPONSE_BYTES: Final = _LENGTH.size + DH_BYTES + (HELLO_BYTES + TAG_BYTES)
HINT_BYTES: Final = 1


class UnsupportedVersionError(RemoteProtocolError):
    """A request in a version or with a suite that this Crust does not know."""


class Role(enum.IntEnum):
    """What a peer offers: a node serves others, a client only dials."""

    NODE = 0
    CLIENT = 1


class Signing(enum.IntEnum):
    """Whether a peer signs what it sends and checks signatures (PROTOCOL 19, 20)."""

    OFF = 0
    ON = 1
    STRICT = 2

    def agrees_with(self, other: Signing) -> bool:
        """Whether two peers can talk: signing is off only where both sides say so (PROTOCOL 20)."""
        return (self is Signing.OFF) == (other is Signing.OFF)


class Hint(enum.IntEnum):
    """Why a responder refuses. A hint may be forged by whoever knows the responder's PeerId and sees the request."""

    NETWORK_MISMATCH = 1  # the Noise message does not open: another network name or key
    REFUSED = 2  # this peer is not wanted
    SIGNING_MISMATCH = 3
    UNSUPPORTED_VERSION = 4
    BUSY = 5  # no room for another peer at present


@dataclass(frozen=True, slots=True)
class Hello:
    """The first encrypted payload of each side.

    Attributes:
        peer: whose handshake this is; the reader checks that it maps to the Noise static key (PROTOCOL 1).
        role: node or client.
        signing: the signing mode asked for.
        hashes: hash functions that the peer knows: bit 0 SHA-256, bit 1 BLAKE3.
        features: bits for later versions; unknown ones mean nothing.
    """

    peer: PeerId
    role: Role = Role.NODE
    signing: Signing = Signing.OFF
    hashes: int = 1
    features: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """The body of message 1: the cipher suite that the initiator chose, and its Noise message."""

    suite: Suite
    noise: bytes


def serialize_hello(hello: Hello) -> bytes:
    """A Hello as bytes."""
    return _HELLO.pack(hello.peer.bytes(), hello.role, hello.signing, hello.hashes, hello.features)


def parse_hello(data: bytes) -> Hello:
    """A Hello from the bytes that a peer sent; bytes that later versions append are skipped.

    Raises:
        RemoteProtocolError: too short, a PeerId that is none, or an unknown role or signing mode.
    """
    if len(data) < HELLO_BYTES:
        raise RemoteProtocolError("handshake payload too short")
    raw, role, signing, hashes, features = _HELLO.unpack_from(data)
    try:
        return Hello(PeerId(raw), Role(role), Signing(signing), hashes, features)
    except ParseError as error:
        raise RemoteProtocolError(f"handshake with an impossible PeerId: {error}") from error
    except ValueError as error:
        raise RemoteProtocolError(f"handshake payload: {error}") from error


def serialize_request(request: Request, padding: int) -> bytes:
    """The body of message 1 with `padding` bytes behind it."""
    return _REQUEST.pack(VERSION, request.suite.value, len(request.noise)) + request.noise + bytes(padding)


def parse_request(body: bytes) -> Request:
    """The body of message 1.

    Raises:
        UnsupportedVersionError: another version, or an unknown suite.
        RemoteProtocolError: too short for what it says.
    """
    if len(body) < _REQUEST.size:
        raise RemoteProtocolError("handshake message 1 too short")
    version, suite, length = _REQUEST.unpack_from(body)
    if version != VERSION:
        raise UnsupportedVersionError(f"handshake of version {version}")
    try:
        known = Suite(suite)
    except ValueError as error:
        raise UnsupportedVersionError(f"handshake with cipher suite {suite}") from error
    if not REQUEST_BYTES - _REQUEST.size <= length <= len(body) - _REQUEST.size:
        raise RemoteProtocolError("handshake message 1 of an impossible length")
    return Request(known, body[_REQUEST.size : _REQUEST.size + length])


def serialize_response(noise: bytes, padding: int) -> bytes:
    """The body of message 2 with `padding` bytes behind it."""
    return _LENGTH.pack(len(noise)) + noise + bytes(padding)


def parse_response(body: bytes) -> bytes:
    """The Noise message in the body of message 2.

    Raises:
        RemoteProtocolError: too short for what it says.
    """
    if len(body) < _LENGTH.size:
        raise RemoteProtocolError("handshake message 2 too short")
    (length,) = _LENGTH.unpack_from(body)
    if not RESPONSE_BYTES - _LENGTH.size <= length <= len(body) - _LENGTH.size:
        raise RemoteProtocolError("handshake message 2 of an impossible length")
    return body[_LENGTH.size : _LENGTH.size + length]


def serialize_hint(hint: Hint, padding: int) -> bytes:
    """The body of a hint with `padding` bytes behind it."""
    return bytes((hint,)) + bytes(padding)


def parse_hint(body: bytes) -> Hint:
    """The code in a hint; one that this version does not know counts as a plain refusal.

    Raises:
        RemoteProtocolError: nothing there.
    """
    if not body:
        raise RemoteProtocolError("an empty hint")
    try:
        return Hint(body[0])
    except ValueError:
        return Hint.REFUSED
