"""PCP messages (RFC 6887 §7, §11, §14.1): MAP and ANNOUNCE, both directions.

    request   |ver 2|R=0, opcode|0 (2)|lifetime (4)|client address (16)|
    response  |ver 2|R=1, opcode|0|result|lifetime (4)|epoch (4)|0 (12)|
    MAP       |nonce (12)|protocol|0 (3)|internal port|external port|external address (16)|
    option    |code|0|length (2)|data, padded to 4|

Addresses are IPv6; IPv4 ones are mapped (RFC 6887 §5). Options are checked for form and otherwise skipped: none is
asked for, and a response carries only options of its request (RFC 6887 §7.3).
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass

from crust.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "MAX_PCP_BYTES",
    "PCP_CLIENT_PORT",
    "PCP_NONCE_BYTES",
    "PCP_PORT",
    "PCP_VERSION",
    "PcpMapping",
    "PcpOpcode",
    "PcpProtocol",
    "PcpRequest",
    "PcpResponse",
    "PcpResult",
    "parse_pcp_request",
    "parse_pcp_response",
    "pcp_version_mismatch",
    "serialize_pcp",
]

PCP_VERSION = 2
PCP_PORT = 5351
PCP_CLIENT_PORT = 5350
"""Where routers multicast announcements to (RFC 6887 §14.1.2)."""
PCP_NONCE_BYTES = 12
MAX_PCP_BYTES = 1100  # RFC 6887 §7

_REQUEST = struct.Struct("!BBHI16s")
_RESPONSE = struct.Struct("!BBBBII12s")
_MAP = struct.Struct("!12sB3sHH16s")
_OPTION = struct.Struct("!BBH")
_HEADER_BYTES = 24  # of both directions


class PcpOpcode(enum.IntEnum):
    """Opcodes that Crust uses (RFC 6887 §19.2)."""

    ANNOUNCE = 0
    MAP = 1


class PcpProtocol(enum.IntEnum):
    """IANA protocol numbers of what is mapped."""

    TCP = 6
    UDP = 17


class PcpResult(enum.IntEnum):
    """Result codes (RFC 6887 §7.4)."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


@dataclass(frozen=True, slots=True)
class PcpMapping:
    """The body of MAP, in a request (external: suggested, or unspecified) and in a response (external: assigned).

    Attributes:
        nonce: 12 bytes; only who knows them can renew or delete the mapping.
        protocol: IANA number; 0 means all protocols (RFC 6887 §11.1).
        internal_port: 0 means all ports.
        external_port: 0 in a request: any.
        external_host: IPv4 or IPv6; unspecified in a request: any.
    """

    nonce: bytes
    protocol: int
    internal_port: int
    external_port: int
    external_host: str


@dataclass(frozen=True, slots=True)
class PcpRequest:
    """A client's request: MAP when there is a mapping, else ANNOUNCE.

    Attributes:
        client_host: our address as this request leaves; the router compares it with the packet's source.
        lifetime: seconds; 0 deletes.
        mapping: the body of MAP.
    """

    client_host: str
    lifetime: int
    mapping: PcpMapping | None = None

    @property
    def opcode(self) -> PcpOpcode:
        """MAP or ANNOUNCE."""
        return PcpOpcode.ANNOUNCE if self.mapping is None else PcpOpcode.MAP


@dataclass(frozen=True, slots=True)
class PcpResponse:
    """A router's answer, or an announcement that nobody asked for.

    Attributes:
        opcode: MAP or ANNOUNCE; another one only where `result` says that it is not supported.
        result: 0, or an error; unknown codes are kept as numbers.
        lifetime: seconds of the mapping; with an error, how long it will last.
        epoch: seconds since the router lost its state (RFC 6887 §8.5).
        mapping: the body of MAP; with an error it repeats the request.
    """

    opcode: int
    result: int
    lifetime: int
    epoch: int
    mapping: PcpMapping | None = None


def pcp_version_mismatch(data: bytes) -> bool:
    """Whether `data` is a refusal of version 2 in some other version (RFC 6887 §9, appendix A).

    A NAT-PMP router answers a PCP request with version 0 and result 1; a PCP server of another version says
    UNSUPP_VERSION under its own number.
    """
    return len(data) >= 4 and data[0] != PCP_VERSION and bool(data[1] & 0x80) and data[3] == PcpResult.UNSUPP_VERSION


def parse_pcp_response(data: bytes) -> PcpResponse:
    """Read what a router sent.

    Raises:
        RemoteProtocolError: another version, a request, a success of an opcode that nobody asked for, wrong lengths.
    """
    _check_frame(data)
    _, opcode, _, result, lifetime, epoch, _ = _RESPONSE.unpack_from(data)
    if not opcode & 0x80:
        raise RemoteProtocolError("a PCP request where a response belongs")
    opcode &= 0x7F
    if opcode == PcpOpcode.MAP and (result == PcpResult.SUCCESS or len(data) > _HEADER_BYTES):
        return PcpResponse(opcode, result, lifetime, epoch, _parse_mapping(data))
    if opcode == PcpOpcode.ANNOUNCE:
        _check_options(data, _HEADER_BYTES)
    elif result == PcpResult.SUCCESS:
        raise RemoteProtocolError(f"PCP opcode {opcode} was not asked for")
    return PcpResponse(opcode, result, lifetime, epoch)


def parse_pcp_request(data: bytes) -> PcpRequest:
    """Read what a client sent: for routers in tests.

    Raises:
        RemoteProtocolError: another version, a response, an unknown opcode, wrong lengths.
    """
    _check_frame(data)
    _, opcode, _, lifetime, client = _REQUEST.unpack_from(data)
    if opcode == PcpOpcode.MAP:
        return PcpRequest(_unpack_host(client), lifetime, _parse_mapping(data))
    if opcode == PcpOpcode.ANNOUNCE:
        _check_options(data, _HEADER_BYTES)
        return PcpRequest(_unpack_host(client), lifetime)
    raise RemoteProtocolError(f"PCP request of opcode {opcode}")


def serialize_pcp(message: PcpRequest | PcpResponse) -> bytes:
    """Write a request or a response.

    Raises:
        LocalProtocolError: a field that the format cannot hold.
    """
    try:
        if isinstance(message, PcpRequest):
            head = _REQUEST.pack(PCP_VERSION, message.opcode, 0, message.lifetime, _pack_host(message.client_host))
        else:
            opcode = 0x80 | message.opcode
            head = _RESPONSE.pack(PCP_VERSION, opcode, 0, message.result, message.lifetime, message.epoch, bytes(12))
        mapping = message.mapping
        if mapping is None:
            return head
        if len(mapping.nonce) != PCP_NONCE_BYTES:
            raise ValueError(f"a nonce of {len(mapping.nonce)} bytes")
        return head + _MAP.pack(
            mapping.nonce,
            mapping.protocol,
            bytes(3),
            mapping.internal_port,
            mapping.external_port,
            _pack_host(mapping.external_host),
        )
    except (struct.error, ValueError) as error:
        raise LocalProtocolError(f"not a PCP message: {message}: {error}") from error


def _check_frame(data: bytes) -> None:
    if not _HEADER_BYTES <= len(data) <= MAX_PCP_BYTES or len(data) % 4:
        raise RemoteProtocolError(f"PCP message of {len(data)} bytes")
    if data[0] != PCP_VERSION:
        raise RemoteProtocolError(f"PCP version {data[0]}")


def _parse_mapping(data: bytes) -> PcpMapping:
    if len(data) < _HEADER_BYTES + _MAP.size:
        raise RemoteProtocolError(f"PCP MAP in {len(data)} bytes")
    nonce, protocol, _, internal, external, host = _MAP.unpack_from(data, _HEADER_BYTES)
    _check_options(data, _HEADER_BYTES + _MAP.size)
    return PcpMapping(nonce, protocol, internal, external, _unpack_host(host))


def _check_options(data: bytes, offset: int) -> None:
    """Options must fill the rest exactly (RFC 6887 §7.3)."""
    while offset < len(data):
        _, _, length = _OPTION.unpack_from(data, offset)  # 4 bytes are left: all lengths are multiples of 4
        offset += _OPTION.size + (length + 3 & ~3)
    if offset != len(data):
        raise RemoteProtocolError("PCP option is cut short")


def _pack_host(host: str) -> bytes:
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def _unpack_host(packed: bytes) -> str:
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)
