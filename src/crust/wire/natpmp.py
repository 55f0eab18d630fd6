"""NAT-PMP messages (RFC 6886 §3): bytes to records and back, both directions.

Version is 0; a response has the request's opcode + 128. All fields are big-endian.

    external address    request  |ver|0|              response |ver|128|result|epoch (4)|IPv4 (4)|
    mapping             request  |ver|op|0 (2)|internal|suggested external|lifetime (4)|
                        response |ver|128+op|result|epoch (4)|internal|external|lifetime (4)|
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass

from crust.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "NATPMP_PORT",
    "NATPMP_VERSION",
    "NatPmpAddressRequest",
    "NatPmpAddressResponse",
    "NatPmpErrorResponse",
    "NatPmpMapRequest",
    "NatPmpMapResponse",
    "NatPmpOpcode",
    "NatPmpRequest",
    "NatPmpResponse",
    "NatPmpResult",
    "parse_natpmp_request",
    "parse_natpmp_response",
    "serialize_natpmp",
]

NATPMP_VERSION = 0
NATPMP_PORT = 5351
_ADDRESS_RESPONSE = struct.Struct("!BBHI4s")
_MAP_REQUEST = struct.Struct("!BBHHHI")
_MAP_RESPONSE = struct.Struct("!BBHIHHI")
_RESPONSE_HEAD = struct.Struct("!BBHI")


class NatPmpOpcode(enum.IntEnum):
    """What is asked for (RFC 6886 §3.2, §3.3)."""

    ADDRESS = 0
    MAP_UDP = 1
    MAP_TCP = 2


class NatPmpResult(enum.IntEnum):
    """Result codes (RFC 6886 §3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class NatPmpAddressRequest:
    """What is the outside address?"""


@dataclass(frozen=True, slots=True)
class NatPmpMapRequest:
    """Map a port; a lifetime of 0 with a suggestion of 0 removes the mapping (RFC 6886 §3.4)."""

    opcode: NatPmpOpcode
    internal_port: int
    external_port: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class NatPmpAddressResponse:
    """The outside address; `epoch` counts seconds since the router lost its state."""

    epoch: int
    host: str


@dataclass(frozen=True, slots=True)
class NatPmpMapResponse:
    """A mapping as the router made it."""

    opcode: NatPmpOpcode
    epoch: int
    internal_port: int
    external_port: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class NatPmpErrorResponse:
    """A refusal. `internal_port` is None where the response carries none, `opcode` may be one that nobody sent.

    A router that speaks only NAT-PMP answers a PCP request so, with `UNSUPPORTED_VERSION` (RFC 6886 §3.5).
    """

    opcode: int
    result: int
    epoch: int
    internal_port: int | None = None


NatPmpRequest = NatPmpAddressRequest | NatPmpMapRequest
NatPmpResponse = NatPmpAddressResponse | NatPmpMapResponse | NatPmpErrorResponse


def parse_natpmp_response(data: bytes) -> NatPmpResponse:
    """Read a router's answer or announcement.

    Raises:
        RemoteProtocolError: another version, a request, an unknown opcode or too few bytes.
    """
    if len(data) < 4 or data[0] != NATPMP_VERSION or data[1] < 128:
        raise RemoteProtocolError("not a NAT-PMP response")
    opcode, result = data[1] - 128, int.from_bytes(data[2:4], "big")
    if result != NatPmpResult.SUCCESS:
        # RFC 6886 §3.5: some results come with a short response.
        epoch = int.from_bytes(data[4:8], "big") if len(data) >= 8 else 0
        port = int.from_bytes(data[8:10], "big") if opcode != NatPmpOpcode.ADDRESS and len(data) >= 10 else None
        return NatPmpErrorResponse(opcode, result, epoch, port)
    if opcode == NatPmpOpcode.ADDRESS and len(data) >= _ADDRESS_RESPONSE.size:
        _, _, _, epoch, packed = _ADDRESS_RESPONSE.unpack_from(data)
        return NatPmpAddressResponse(epoch, str(ipaddress.IPv4Address(packed)))
    if opcode in (NatPmpOpcode.MAP_UDP, NatPmpOpcode.MAP_TCP) and len(data) >= _MAP_RESPONSE.size:
        _, _, _, epoch, internal, external, lifetime = _MAP_RESPONSE.unpack_from(data)
        return NatPmpMapResponse(NatPmpOpcode(opcode), epoch, internal, external, lifetime)
    raise RemoteProtocolError(f"NAT-PMP opcode {opcode} in {len(data)} bytes")


def parse_natpmp_request(data: bytes) -> NatPmpRequest:
    """Read a client's request: for routers in tests.

    Raises:
        RemoteProtocolError: another version, a response, an unknown opcode or a wrong length.
    """
    if len(data) < 2 or data[0] != NATPMP_VERSION:
        raise RemoteProtocolError("not a NAT-PMP request")
    opcode = data[1]
    if opcode == NatPmpOpcode.ADDRESS and len(data) == 2:
        return NatPmpAddressRequest()
    if opcode in (NatPmpOpcode.MAP_UDP, NatPmpOpcode.MAP_TCP) and len(data) == _MAP_REQUEST.size:
        _, _, _, internal, external, lifetime = _MAP_REQUEST.unpack(data)
        return NatPmpMapRequest(NatPmpOpcode(opcode), internal, external, lifetime)
    raise RemoteProtocolError(f"NAT-PMP opcode {opcode} in {len(data)} bytes")


def serialize_natpmp(message: NatPmpRequest | NatPmpResponse) -> bytes:
    """Write a request or a response.

    Raises:
        LocalProtocolError: a field that the format cannot hold.
    """
    try:
        return _pack(message)
    except (struct.error, ValueError) as error:
        raise LocalProtocolError(f"not a NAT-PMP message: {message}") from error


def _pack(message: NatPmpRequest | NatPmpResponse) -> bytes:
    version = NATPMP_VERSION
    if isinstance(message, NatPmpAddressRequest):
        return bytes((version, NatPmpOpcode.ADDRESS))
    if isinstance(message, NatPmpMapRequest):
        m = message
        return _MAP_REQUEST.pack(version, m.opcode, 0, m.internal_port, m.external_port, m.lifetime)
    if isinstance(message, NatPmpAddressResponse):
        packed = ipaddress.IPv4Address(message.host).packed
        return _ADDRESS_RESPONSE.pack(version, 128 + NatPmpOpcode.ADDRESS, 0, message.epoch, packed)
    if isinstance(message, NatPmpMapResponse):
        r = message
        return _MAP_RESPONSE.pack(version, 128 + r.opcode, 0, r.epoch, r.internal_port, r.external_port, r.lifetime)
    head = _RESPONSE_HEAD.pack(version, 128 + message.opcode, message.result, message.epoch)
    return head if message.internal_port is None else head + struct.pack("!HHI", message.internal_port, 0, 0)
