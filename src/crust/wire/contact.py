"""Contacts: what a peer gives away to be dialled, as one line of text; and the other ways to write a target.

    contact:    version 1 ‖ body
    body:       PeerId 32 ‖ parts
    part:       type 1 ‖ length (1 byte below 128, else 2 bytes with the highest bit set) ‖ value
    candidate:  (type 1) kind in the upper 4 bits, transports in the lower: 1 TCP, 2 µTP ‖ port 2 ‖ address 4 or 16
    rendezvous: (type 2) a body, which holds no rendezvous itself

Parts of unknown types, and candidates of unknown kinds or transports, are skipped: later versions may add such.
Candidates keep their order, the best first; TCP and µTP on one address share a part.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, get_args

from crust.crypto.keys import PeerId
from crust.errors import LocalProtocolError, ParseError
from crust.types import Candidate, CandidateKind, Transport, format_address
from crust.wire.text import parse_text, serialize_text

__all__ = ["MAX_CANDIDATES", "MAX_CONTACT_BYTES", "MAX_RENDEZVOUS", "Contact", "is_dialable", "parse_target"]

MAX_CANDIDATES: Final = 64
MAX_RENDEZVOUS: Final = 8
MAX_CONTACT_BYTES: Final = 14_000  # 12,409 with every candidate in IPv6 and in a part of its own, and some to spare

_VERSION: Final = 1
_KIND: Final = "crust"
_LABEL: Final = b"crust-v1 contact"
_ID_BYTES: Final = 32
_CANDIDATE: Final = 1
_RENDEZVOUS: Final = 2
_TRANSPORTS: Final[dict[Transport, int]] = {"tcp": 1, "utp": 2}
_KINDS: Final[tuple[CandidateKind, ...]] = get_args(CandidateKind)  # the index is the number on the wire
_ADDRESS_BYTES: Final = (4, 16)
_MAX_NAME: Final = 253
_MAX_ADDRESS: Final = 280  # a name, or an address with the name of an interface, and the port


@dataclass(frozen=True, slots=True)
class Contact:
    """How to reach a peer.

    `str()` is the line to give away; `bytes()` the same for use inside messages.

    Attributes:
        id: whom to dial.
        candidates: where it may answer, the best first; numeric addresses. (A target typed as `PEERID@HOST:PORT` may
            have a name, and is then written in this form again.)
        rendezvous: nodes that know the peer, each a contact without rendezvous.

    Raises:
        ParseError: an address that cannot be dialled, a port outside 1 to 65535, or too many of something.
    """

    id: PeerId
    candidates: tuple[Candidate, ...] = ()
    rendezvous: tuple[Contact, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(_checked(candidate) for candidate in self.candidates))
        object.__setattr__(self, "rendezvous", tuple(self.rendezvous))
        if len(self.candidates) > MAX_CANDIDATES:
            raise ParseError(f"{len(self.candidates)} addresses; a contact has at most {MAX_CANDIDATES}")
        if len(self.rendezvous) > MAX_RENDEZVOUS:
            raise ParseError(f"{len(self.rendezvous)} rendezvous; a contact has at most {MAX_RENDEZVOUS}")
        if any(contact.rendezvous or contact._named for contact in self.rendezvous):
            raise ParseError("a rendezvous in a contact has numeric addresses and no rendezvous of its own")
        named = self._named
        if named is not None and (self.rendezvous or self.candidates != _both(named.host, named.port)):
            raise ParseError(f"{named.host!r} is no numeric address; a name stands in PEERID@HOST:PORT only")

    @classmethod
    def parse(cls, text: str) -> Contact:
        """Read the line that `str()` gives.

        Raises:
            ParseError: saying what is wrong with it.
        """
        try:
            return cls.from_bytes(parse_text(_KIND, _LABEL, text, max_bytes=MAX_CONTACT_BYTES))
        except ParseError as error:
            raise ParseError(f"not a contact: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Contact:
        """Read what `bytes()` gives.

        Raises:
            ParseError: not a contact, of a later version, or over a cap.
        """
        if len(data) > MAX_CONTACT_BYTES:
            raise ParseError(f"a contact of {len(data)} bytes is too long")
        if not data:
            raise ParseError("an empty contact")
        if data[0] != _VERSION:
            raise ParseError(f"a contact of version {data[0]}; this Crust reads version {_VERSION}")
        return _parse_body(data[1:], nested=False)

    @property
    def _named(self) -> Candidate | None:
        """The first candidate whose host is a name."""
        return next((candidate for candidate in self.candidates if _numeric(candidate.host) is None), None)

    def __str__(self) -> str:
        named = self._named
        if named is not None:
            return f"{self.id}@{format_address(named.host, named.port)}"
        return serialize_text(_KIND, _LABEL, bytes(self))

    def __bytes__(self) -> bytes:
        if self._named is not None:
            raise LocalProtocolError("a contact with a host name has no binary form")
        return bytes((_VERSION,)) + _serialize_body(self)


@lru_cache(maxsize=64)  # whoever dials again gives the same line
def parse_target(text: str) -> Contact:
    """Read whatever a person may type to say whom to dial, in any case, with blanks around it.

    Args:
        text: a PeerId ("crust…"), `PEERID@HOST:PORT` (IPv6 in brackets; a name is allowed; TCP and µTP are tried), or a
            contact ("crust:…").

    Raises:
        ParseError: saying what is wrong with it.
    """
    text = text.strip()
    if "@" in text:
        peer, _, address = text.partition("@")
        return Contact(PeerId.parse(peer), _both(*_parse_address(address)))
    if text.lower().startswith(_KIND + ":"):
        return Contact.parse(text)
    return Contact(PeerId.parse(text))


def _both(host: str, port: int) -> tuple[Candidate, ...]:
    """TCP and µTP on one address."""
    return (Candidate("tcp", host, port), Candidate("utp", host, port))


def _parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`."""
    if len(text) > _MAX_ADDRESS:
        raise ParseError(f"an address has at most {_MAX_ADDRESS} characters, not {len(text)}")
    host, colon, port = text.strip().rpartition(":")
    if not colon or port.endswith("]"):
        raise ParseError(f"{text!r}: the port is missing, as in PEERID@HOST:PORT")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ParseError(f"{port!r} is no port; ports go from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ParseError(f"{host!r} is no IPv6 address") from error
    elif ":" in host:
        raise ParseError(f"{text!r}: an IPv6 address stands in brackets, as in PEERID@[2001:db8::1]:4000")
    elif _numeric(host) is None:
        host = _checked_name(host)
    return host, int(port)


def _checked_name(host: str) -> str:
    """A host name in lower-case ASCII (RFC 1123 §2.1; underscores occur)."""
    if len(host) > _MAX_NAME:  # before the codec, whose work grows faster than its input
        raise ParseError("a host name has at most 253 characters")
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise ParseError(f"{host!r} is no host name") from error
    labels = name.removesuffix(".").split(".")
    if len(name) > _MAX_NAME or not all(
        1 <= len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() and not label.startswith("-")
        for label in labels
    ):
        raise ParseError(f"{host!r} is no host name")
    if labels[-1].isdigit():
        raise ParseError(f"{host!r} is no IPv4 address")
    return name


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` writes; None for a name, and for an address that means something on one machine only."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return None if isinstance(address, ipaddress.IPv6Address) and address.scope_id else address


def is_dialable(host: str) -> bool:
    """Whether an address that a peer tells is one that anybody could dial; else a contact cannot name it."""
    address = _numeric(host)
    if address is None:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return not (address.is_unspecified or address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"))


def _checked(candidate: Candidate) -> Candidate:
    """The candidate with its address in the canonical form, if one can dial it.

    Only what no peer can ever have is refused (PROTOCOL 22 says who may dial the rest).
    """
    if candidate.transport not in _TRANSPORTS or candidate.kind not in _KINDS:
        raise ParseError(f"unknown transport or kind: {candidate}")
    if not 1 <= candidate.port <= 65535:
        raise ParseError(f"{candidate.port} is no port; ports go from 1 to 65535")
    address = _numeric(candidate.host)
    if address is None:
        return candidate
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_unspecified or address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise ParseError(f"{address} is no address that can be dialled")
    return candidate if candidate.host == str(address) else replace(candidate, host=str(address))


def _serialize_body(contact: Contact) -> bytes:
    """PeerId and parts."""
    parts = [contact.id.bytes()]
    parts += [_serialize_part(_CANDIDATE, value) for value in _serialize_candidates(contact.candidates)]
    parts += [_serialize_part(_RENDEZVOUS, _serialize_body(node)) for node in contact.rendezvous]
    return b"".join(parts)


def _serialize_part(kind: int, value: bytes) -> bytes:
    """One part."""
    size = len(value)
    length = bytes((size,)) if size < 0x80 else (size | 0x8000).to_bytes(2, "big")
    return bytes((kind,)) + length + value


def _serialize_candidates(candidates: Iterable[Candidate]) -> Iterator[bytes]:
    """The values of candidate parts: TCP, and µTP right behind it on the same address, become one."""
    waiting: Candidate | None = None
    for candidate in candidates:
        if waiting is not None:
            if candidate == replace(waiting, transport="utp"):
                yield _serialize_candidate(waiting, _TRANSPORTS["tcp"] | _TRANSPORTS["utp"])
                waiting = None
                continue
            yield _serialize_candidate(waiting, _TRANSPORTS["tcp"])
            waiting = None
        if candidate.transport == "tcp":
            waiting = candidate
        else:
            yield _serialize_candidate(candidate, _TRANSPORTS[candidate.transport])
    if waiting is not None:
        yield _serialize_candidate(waiting, _TRANSPORTS["tcp"])


def _serialize_candidate(candidate: Candidate, transports: int) -> bytes:
    """The value of one candidate part."""
    head = bytes((_KINDS.index(candidate.kind) << 4 | transports,)) + candidate.port.to_bytes(2, "big")
    return head + ipaddress.ip_address(candidate.host).packed


def _parse_body(data: bytes, *, nested: bool) -> Contact:
    """A contact without its version; `nested` is a rendezvous."""
    if len(data) < _ID_BYTES:
        raise ParseError("a contact too short for its PeerId")
    peer = PeerId(data[:_ID_BYTES])
    candidates: list[Candidate] = []
    rendezvous: list[Contact] = []
    for kind, value in _parse_parts(data[_ID_BYTES:]):
        if kind == _CANDIDATE:
            candidates += _parse_candidate(value)
        elif kind == _RENDEZVOUS and not nested:
            rendezvous.append(_parse_body(value, nested=True))
        # The caps again, before anything of what is above them is made.
        if len(candidates) > MAX_CANDIDATES or len(rendezvous) > MAX_RENDEZVOUS:
            raise ParseError("a contact with too many addresses or rendezvous")
    return Contact(peer, tuple(candidates), tuple(rendezvous))


def _parse_parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each part."""
    position = 0
    while position < len(data):
        head = data[position : position + 3]
        if len(head) < 2:
            raise ParseError("a contact cut off in the middle")
        kind, size, position = head[0], head[1], position + 2
        if size & 0x80:
            size = int.from_bytes(head[1:], "big") & 0x7FFF
            position += 1
            if len(head) < 3 or size < 0x80:
                raise ParseError("a contact with a malformed length")
        if position + size > len(data):
            raise ParseError("a contact cut off in the middle")
        yield kind, data[position : position + size]
        position += size


def _parse_candidate(value: bytes) -> list[Candidate]:
    """The candidates of one part; none when a later version knows what it means."""
    if len(value) - 3 not in _ADDRESS_BYTES:
        raise ParseError(f"a contact with an address of {len(value) - 3} bytes")
    kind, transports = value[0] >> 4, value[0] & 15
    if kind >= len(_KINDS):
        return []
    port = int.from_bytes(value[1:3], "big")
    host = str(ipaddress.ip_address(value[3:]))
    return [Candidate(name, host, port, _KINDS[kind]) for name, bit in _TRANSPORTS.items() if transports & bit]
