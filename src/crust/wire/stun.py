"""STUN messages (RFC 8489 §5, §14; RFC 5780 §7): bytes to records and back.

Binding is the only method. Credentials are recognised and ignored: a server of observed addresses has none to check
(RFC 8489 §12: it SHOULD NOT use them). Classic STUN (RFC 3489, no magic cookie) is refused.

    0                   1                   2                   3
    |0 0|  message type  |  length without these 20 bytes           |
    |                  magic cookie 0x2112A442                      |
    |                  transaction id, 96 bits                      |
    | attribute type     | length          | value, padded to 4 ...
"""

from __future__ import annotations

import enum
import ipaddress
import struct
import zlib
from dataclasses import dataclass

from crust.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "HEADER_BYTES",
    "MAGIC_COOKIE",
    "MAX_STUN_BYTES",
    "TRANSACTION_ID_BYTES",
    "Address",
    "ChangeRequest",
    "ErrorCode",
    "MessageClass",
    "StunError",
    "StunMessage",
    "looks_like_stun",
    "parse_stun",
    "serialize_stun",
    "stun_frame_bytes",
]

Address = tuple[str, int]
"""Numeric host and port; an IPv4-mapped IPv6 host is written as IPv4."""

HEADER_BYTES = 20
TRANSACTION_ID_BYTES = 12
MAGIC_COOKIE = 0x2112A442
MAX_STUN_BYTES = 2048
"""Ours: no binding message comes near it; over TCP it bounds what a stranger can make us buffer."""

_BINDING = 0x001
_COOKIE = struct.pack("!I", MAGIC_COOKIE)
_HEADER = struct.Struct("!HHI12s")
_ATTRIBUTE = struct.Struct("!HH")
_FINGERPRINT_XOR = 0x5354554E  # RFC 8489 §14.7
_MAX_SOFTWARE_BYTES = 763  # RFC 8489 §14.14: fewer than 128 characters
_MAX_REASON_BYTES = 763  # RFC 8489 §14.8
_MAX_UNKNOWN = 64  # ours


class MessageClass(enum.IntEnum):
    """What a message is within its transaction (RFC 8489 §5)."""

    REQUEST = 0b00
    INDICATION = 0b01
    SUCCESS = 0b10
    ERROR = 0b11


class ErrorCode(enum.IntEnum):
    """Error codes that a binding transaction can meet (RFC 8489 §14.8)."""

    TRY_ALTERNATE = 300
    BAD_REQUEST = 400
    UNAUTHENTICATED = 401
    UNKNOWN_ATTRIBUTE = 420
    STALE_NONCE = 438
    SERVER_ERROR = 500


class _Type(enum.IntEnum):
    """Attribute types (RFC 8489 §18.3, RFC 5780 §7)."""

    MAPPED_ADDRESS = 0x0001
    CHANGE_REQUEST = 0x0003
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    REALM = 0x0014
    NONCE = 0x0015
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    RESPONSE_PORT = 0x0027
    SOFTWARE = 0x8022
    FINGERPRINT = 0x8028
    RESPONSE_ORIGIN = 0x802B
    OTHER_ADDRESS = 0x802C


_IGNORED = frozenset(
    {
        _Type.USERNAME,
        _Type.MESSAGE_INTEGRITY,
        _Type.REALM,
        _Type.NONCE,
        _Type.MESSAGE_INTEGRITY_SHA256,
        _Type.PASSWORD_ALGORITHM,
        _Type.USERHASH,
    }
)


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """CHANGE-REQUEST: from which of its addresses the server is to answer (RFC 5780 §7.2)."""

    change_ip: bool = False
    change_port: bool = False


@dataclass(frozen=True, slots=True)
class StunError:
    """ERROR-CODE: 300 to 699, and a text for people."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StunMessage:
    """One binding message.

    Attributes:
        message_class: request, indication, success or error.
        transaction_id: 12 bytes.
        xor_mapped_address: the source that the server saw, written so that no NAT rewrites it.
        mapped_address: the same in the clear, from older servers.
        software: what the sender calls itself.
        error: only in an error.
        unknown_attributes: only in an error 420: the types that the sender did not know.
        change_request: only in a request.
        response_port: only in a request: the port of the sender that is to get the response.
        response_origin: the address that a response was sent from.
        other_address: the server's address with the other host and the other port.
        fingerprint: a FINGERPRINT was there and right; when serialised: add one.
        not_understood: types that must be understood but are not (RFC 8489 §6.3.1, §6.3.3); never serialised.
    """

    message_class: MessageClass
    transaction_id: bytes
    xor_mapped_address: Address | None = None
    mapped_address: Address | None = None
    software: str | None = None
    error: StunError | None = None
    unknown_attributes: tuple[int, ...] = ()
    change_request: ChangeRequest | None = None
    response_port: int | None = None
    response_origin: Address | None = None
    other_address: Address | None = None
    fingerprint: bool = False
    not_understood: tuple[int, ...] = ()

    @property
    def observed(self) -> Address | None:
        """The reflexive address: XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS."""
        return self.xor_mapped_address or self.mapped_address


def looks_like_stun(data: bytes | memoryview) -> bool:
    """Whether bytes begin as a STUN message does; the cheap test before `parse_stun`."""
    return len(data) >= HEADER_BYTES and data[0] < 0x40 and data[4:8] == _COOKIE


def stun_frame_bytes(data: bytes | bytearray) -> int | None:
    """The length of the message that starts a byte stream (RFC 8489 §6.2.2).

    Returns:
        Header and body in bytes, or None while the header is not there in full.

    Raises:
        RemoteProtocolError: the stream does not carry STUN, or a message over `MAX_STUN_BYTES`.
    """
    head = data[:8]
    if (head and head[0] >= 0x40) or not _COOKIE.startswith(bytes(head[4:8])):
        raise RemoteProtocolError("not a STUN message")
    if len(data) < HEADER_BYTES:
        return None
    length = int.from_bytes(data[2:4], "big")
    if length % 4 or length + HEADER_BYTES > MAX_STUN_BYTES:
        raise RemoteProtocolError(f"STUN message of {length} bytes")
    return HEADER_BYTES + length


def parse_stun(data: bytes) -> StunMessage:
    """Read one message that fills `data`.

    Args:
        data: a datagram, or one frame of a stream.

    Returns:
        The message; of an attribute that occurs twice, the first (RFC 8489 §14).

    Raises:
        RemoteProtocolError: not a binding message, cut short, malformed, or with a wrong FINGERPRINT.
    """
    data = bytes(data)
    if not looks_like_stun(data):
        raise RemoteProtocolError("not a STUN message")
    message_type, length, _, transaction_id = _HEADER.unpack_from(data)
    if length % 4 or length != len(data) - HEADER_BYTES or len(data) > MAX_STUN_BYTES:
        raise RemoteProtocolError(f"STUN length field {length} in {len(data)} bytes")
    if _method(message_type) != _BINDING:
        raise RemoteProtocolError(f"STUN method {_method(message_type):#x} is not binding")
    fields = _Fields(data, transaction_id)
    fields.read()
    message_class = MessageClass((message_type >> 7 & 0b10) | (message_type >> 4 & 0b01))
    if message_class is MessageClass.ERROR and fields.error is None:
        raise RemoteProtocolError("STUN error without ERROR-CODE")
    return StunMessage(
        message_class,
        transaction_id,
        xor_mapped_address=fields.addresses.get(_Type.XOR_MAPPED_ADDRESS),
        mapped_address=fields.addresses.get(_Type.MAPPED_ADDRESS),
        software=fields.software,
        error=fields.error,
        unknown_attributes=fields.unknown_attributes,
        change_request=fields.change_request,
        response_port=fields.response_port,
        response_origin=fields.addresses.get(_Type.RESPONSE_ORIGIN),
        other_address=fields.addresses.get(_Type.OTHER_ADDRESS),
        fingerprint=fields.fingerprint,
        not_understood=tuple(fields.not_understood),
    )


def serialize_stun(message: StunMessage) -> bytes:
    """Write one message.

    Raises:
        LocalProtocolError: a field that the format cannot hold.
    """
    if len(message.transaction_id) != TRANSACTION_ID_BYTES:
        raise LocalProtocolError(f"a STUN transaction id has 12 bytes, not {len(message.transaction_id)}")
    xor_key = _COOKIE + message.transaction_id
    body = bytearray()
    _put_request(body, message)
    if message.error is not None:
        _put(body, _Type.ERROR_CODE, _error_value(message.error))
    if message.unknown_attributes:
        if len(message.unknown_attributes) > _MAX_UNKNOWN:
            raise LocalProtocolError(f"more than {_MAX_UNKNOWN} unknown attributes")
        types = message.unknown_attributes
        _put(body, _Type.UNKNOWN_ATTRIBUTES, struct.pack(f"!{len(types)}H", *types))
    for kind, address, key in (
        (_Type.XOR_MAPPED_ADDRESS, message.xor_mapped_address, xor_key),
        (_Type.MAPPED_ADDRESS, message.mapped_address, None),
        (_Type.RESPONSE_ORIGIN, message.response_origin, None),
        (_Type.OTHER_ADDRESS, message.other_address, None),
    ):
        if address is not None:
            _put(body, kind, _address_value(address, key))
    if message.software is not None:
        software = message.software.encode()
        if len(software) > _MAX_SOFTWARE_BYTES:
            raise LocalProtocolError(f"SOFTWARE of {len(software)} bytes")
        _put(body, _Type.SOFTWARE, software)
    message_type = _BINDING | (message.message_class & 0b10) << 7 | (message.message_class & 0b01) << 4
    length = len(body) + 8 * message.fingerprint  # covered by the CRC with itself counted (RFC 8489 §14.7)
    out = _HEADER.pack(message_type, length, MAGIC_COOKIE, message.transaction_id) + body
    if message.fingerprint:
        out += _ATTRIBUTE.pack(_Type.FINGERPRINT, 4) + struct.pack("!I", zlib.crc32(out) ^ _FINGERPRINT_XOR)
    return out


class _Fields:
    """The attributes of one message while they are read."""

    __slots__ = (
        "_data",
        "_sealed",
        "_seen",
        "_xor_key",
        "addresses",
        "change_request",
        "error",
        "fingerprint",
        "not_understood",
        "response_port",
        "software",
        "unknown_attributes",
    )

    def __init__(self, data: bytes, transaction_id: bytes) -> None:
        self._data = data
        self._xor_key = _COOKIE + transaction_id
        self._seen: set[int] = set()
        self._sealed = False  # MESSAGE-INTEGRITY has been passed
        self.addresses: dict[int, Address] = {}
        self.software: str | None = None
        self.error: StunError | None = None
        self.unknown_attributes: tuple[int, ...] = ()
        self.change_request: ChangeRequest | None = None
        self.response_port: int | None = None
        self.fingerprint = False
        self.not_understood: list[int] = []

    def read(self) -> None:
        offset, end = HEADER_BYTES, len(self._data)
        while offset < end:
            kind, length = _ATTRIBUTE.unpack_from(self._data, offset)  # 4 bytes are left: lengths are multiples of 4
            start, offset = offset + 4, offset + 4 + (length + 3 & ~3)
            if offset > end:
                raise RemoteProtocolError(f"STUN attribute {kind:#06x} is cut short")
            if self.fingerprint:
                raise RemoteProtocolError("STUN attribute after FINGERPRINT")
            self._attribute(kind, start, self._data[start : start + length])

    def _attribute(self, kind: int, start: int, value: bytes) -> None:
        if kind == _Type.FINGERPRINT:
            crc = zlib.crc32(self._data[: start - 4]) ^ _FINGERPRINT_XOR
            if value != struct.pack("!I", crc):
                raise RemoteProtocolError("STUN FINGERPRINT is wrong")
            self.fingerprint = True
            return
        if self._sealed or kind in self._seen:  # RFC 8489 §14.5, §14
            return
        self._seen.add(kind)
        self._sealed = kind in (_Type.MESSAGE_INTEGRITY, _Type.MESSAGE_INTEGRITY_SHA256)
        if kind in (_Type.XOR_MAPPED_ADDRESS, _Type.MAPPED_ADDRESS, _Type.RESPONSE_ORIGIN, _Type.OTHER_ADDRESS):
            self.addresses[kind] = _parse_address(value, self._xor_key if kind == _Type.XOR_MAPPED_ADDRESS else None)
        elif kind == _Type.ERROR_CODE:
            self.error = _parse_error(value)
        elif kind in (_Type.CHANGE_REQUEST, _Type.RESPONSE_PORT):
            self._rfc_5780_request(kind, value)
        elif kind == _Type.UNKNOWN_ATTRIBUTES:
            if len(value) % 2 or len(value) > 2 * _MAX_UNKNOWN:
                raise RemoteProtocolError(f"UNKNOWN-ATTRIBUTES of {len(value)} bytes")
            self.unknown_attributes = struct.unpack(f"!{len(value) // 2}H", value)
        elif kind == _Type.SOFTWARE:
            self.software = _parse_text(value, _MAX_SOFTWARE_BYTES)
        elif kind < 0x8000 and kind not in _IGNORED and len(self.not_understood) < _MAX_UNKNOWN:
            self.not_understood.append(kind)

    def _rfc_5780_request(self, kind: int, value: bytes) -> None:
        if len(value) != 4:
            raise RemoteProtocolError(f"STUN attribute {kind:#06x} of {len(value)} bytes")
        if kind == _Type.CHANGE_REQUEST:
            self.change_request = ChangeRequest(bool(value[3] & 4), bool(value[3] & 2))
        else:
            self.response_port = int.from_bytes(value[:2], "big")


def _method(message_type: int) -> int:
    """The method between the two class bits (RFC 8489 §5, figure 3)."""
    return (message_type & 0x000F) | (message_type & 0x00E0) >> 1 | (message_type & 0x3E00) >> 2


def _put(body: bytearray, kind: int, value: bytes) -> None:
    body += _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _put_request(body: bytearray, message: StunMessage) -> None:
    if message.change_request is not None:
        flags = 4 * message.change_request.change_ip + 2 * message.change_request.change_port
        _put(body, _Type.CHANGE_REQUEST, struct.pack("!I", flags))
    if message.response_port is not None:
        if not 0 <= message.response_port < 65536:
            raise LocalProtocolError(f"port {message.response_port}")
        _put(body, _Type.RESPONSE_PORT, struct.pack("!HH", message.response_port, 0))


def _xor(value: bytes, key: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(value, key, strict=False))


def _parse_address(value: bytes, xor_key: bytes | None) -> Address:
    """MAPPED-ADDRESS and its like (RFC 8489 §14.1, §14.2)."""
    family = value[1] if len(value) > 1 else 0
    if (family, len(value)) not in ((1, 8), (2, 20)):
        raise RemoteProtocolError(f"STUN address of family {family} in {len(value)} bytes")
    port, packed = value[2:4], value[4:]
    if xor_key is not None:
        port, packed = _xor(port, xor_key), _xor(packed, xor_key)
    host = ipaddress.ip_address(packed)
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped  # a server on a dual-stack socket
    return str(host), int.from_bytes(port, "big")


def _address_value(address: Address, xor_key: bytes | None) -> bytes:
    host, port = address
    try:
        packed = ipaddress.ip_address(host.partition("%")[0]).packed
        port_bytes = struct.pack("!H", port)
    except (ValueError, struct.error) as error:
        raise LocalProtocolError(f"not an address: {host}, port {port}") from error
    if xor_key is not None:
        port_bytes, packed = _xor(port_bytes, xor_key), _xor(packed, xor_key)
    return bytes((0, 1 if len(packed) == 4 else 2)) + port_bytes + packed


def _parse_error(value: bytes) -> StunError:
    """ERROR-CODE (RFC 8489 §14.8): class in 3 bits, number in 8."""
    if len(value) < 4:
        raise RemoteProtocolError(f"ERROR-CODE of {len(value)} bytes")
    hundreds, number = value[2] & 7, value[3]
    if not 3 <= hundreds <= 6 or number > 99:
        raise RemoteProtocolError(f"ERROR-CODE class {hundreds}, number {number}")
    return StunError(100 * hundreds + number, _parse_text(value[4:], _MAX_REASON_BYTES))


def _error_value(error: StunError) -> bytes:
    reason = error.reason.encode()
    if not 300 <= error.code <= 699 or len(reason) > _MAX_REASON_BYTES:
        raise LocalProtocolError(f"ERROR-CODE {error.code} with a reason of {len(reason)} bytes")
    return struct.pack("!HBB", 0, error.code // 100, error.code % 100) + reason


def _parse_text(value: bytes, most: int) -> str:
    if len(value) > most:
        raise RemoteProtocolError(f"STUN text of {len(value)} bytes")
    return value.decode(errors="replace")
