"""Probes: a few bytes that show a socket of ours to a rendezvous node, which tells over the encrypted path what it saw.

A probe is 32 bytes, a whole datagram or the first bytes of a TCP connection, and nothing comes back on its way: who
forges one, or copies one from another address, gains nothing and moves nobody to send anything to a third party.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from crust.crypto.aead import mac
from crust.errors import RemoteProtocolError
from crust.types import Transport

__all__ = ["KEY_BYTES", "NUMBER_BYTES", "PROBE_BYTES", "TOKEN_BYTES", "Probe", "parse_probe", "serialize_probe"]

TOKEN_BYTES: Final = 8
NUMBER_BYTES: Final = 8
KEY_BYTES: Final = 16
_MAC_BYTES: Final = 16
PROBE_BYTES: Final = TOKEN_BYTES + NUMBER_BYTES + _MAC_BYTES
_LABEL: Final = b"crust-v1 probe "


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe whose code was not checked yet.

    Attributes:
        token: says whose it is; drawn by the rendezvous for each connection.
        number: random, drawn by the sender for each socket that it shows.
        code: proves that the sender was given the key.
    """

    token: bytes
    number: bytes
    code: bytes

    def authentic(self, key: bytes, transport: Transport) -> bool:
        """Whether who made it holds the key; one for TCP is none for UDP."""
        return hmac.compare_digest(self.code, _code(key, transport, self.token, self.number))


def _code(key: bytes, transport: Transport, token: bytes, number: bytes) -> bytes:
    return mac(key, _LABEL + transport.encode() + token + number)[:_MAC_BYTES]


def serialize_probe(key: bytes, transport: Transport, token: bytes, number: bytes) -> bytes:
    """A probe as bytes."""
    return token + number + _code(key, transport, token, number)


def parse_probe(data: bytes) -> Probe:
    """Read a probe.

    Raises:
        RemoteProtocolError: it has another length.
    """
    if len(data) != PROBE_BYTES:
        raise RemoteProtocolError(f"a probe of {len(data)} bytes")
    code_at = TOKEN_BYTES + NUMBER_BYTES
    return Probe(data[:TOKEN_BYTES], data[TOKEN_BYTES:code_at], data[code_at:])
