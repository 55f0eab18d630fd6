"""What two connected nodes tell each other: observed addresses, how a NAT behaves, presence, forwarded offers.

Each message is a MessagePack array whose first item is its kind; they travel in SERVICE and PATH_SERVICE frames.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from crust.errors import RemoteProtocolError
from crust.types import Transport
from crust.wire.probe import KEY_BYTES, NUMBER_BYTES, TOKEN_BYTES

__all__ = [
    "REACH_BYTES",
    "SEEN_MOST",
    "TRANSPORTS",
    "Address",
    "AskAddress",
    "AskChallenge",
    "AskObserver",
    "AskReach",
    "Challenge",
    "Forward",
    "Forwarded",
    "Observer",
    "Presence",
    "Reached",
    "ServiceMessage",
    "Sighted",
    "Undelivered",
    "Why",
    "parse_service",
    "serialize_service_message",
]

SERVICE_BYTES: Final = 16384
"""Most bytes of one message."""

REACH_BYTES: Final = 32
"""Of the datagram that shows whether an address can be reached."""

SEEN_MOST: Final = 8
"""Most addresses in one `Forwarded`."""

TRANSPORTS: Final[tuple[Transport, ...]] = ("tcp", "utp")
"""Transports by their number on the wire."""

_Transport = Annotated[int, msgspec.Meta(ge=0, le=1)]
_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Sealed = Annotated[bytes, msgspec.Meta(min_length=1, max_length=8192)]
_Host = Annotated[str, msgspec.Meta(max_length=45)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_PortOrNone = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class AskAddress(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """From which address do you see me on this path?"""


class Address(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """I see you on this path from here."""

    host: _Host
    port: _Port


class AskChallenge(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """I want to be found here."""


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Sign this to be found here."""

    nonce: _Id


class Presence(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """I am here (PROTOCOL 24): signed over PeerId, rendezvous, challenge and lifetime."""

    lifetime: Annotated[int, msgspec.Meta(ge=1, le=3600)]
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Forward(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Pass this to a peer."""

    dial_id: _Id
    to: _Key
    sealed: _Sealed


class Forwarded(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Somebody sends you this; `seen` are the addresses from which the rendezvous sees the sender."""

    dial_id: _Id
    sealed: _Sealed
    seen: Annotated[list[tuple[_Transport, _Host, _Port]], msgspec.Meta(max_length=SEEN_MOST)]


class Undelivered(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """A `Forward` went nowhere. Why: 1 not here, 2 too many requests, 3 this node is no rendezvous."""

    dial_id: _Id
    why: Annotated[int, msgspec.Meta(ge=1, le=255)]


class AskObserver(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """At which other port of yours can I show my sockets? Asked on a path: the host is where the path leads."""


class Observer(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """At these, by probes with this token under this key (`wire.probe`); port 0: not there."""

    tcp: _PortOrNone
    utp: _PortOrNone
    token: Annotated[bytes, msgspec.Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


class Sighted(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """A probe of yours came from here."""

    number: Annotated[bytes, msgspec.Meta(min_length=NUMBER_BYTES, max_length=NUMBER_BYTES)]
    transport: _Transport
    host: _Host
    port: _Port


class AskReach(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Can you reach me on this path's address from a port of yours that I have sent nothing to?

    Over µTP the rendezvous sends these bytes from there; over TCP it tries to connect, and says how it went.
    """

    word: Annotated[bytes, msgspec.Meta(min_length=REACH_BYTES, max_length=REACH_BYTES)]


class Reached(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Whether the TCP connection came about, or (µTP) that all datagrams were sent."""

    word: Annotated[bytes, msgspec.Meta(min_length=REACH_BYTES, max_length=REACH_BYTES)]
    connected: bool


class Why:
    """Reasons in `Undelivered`."""

    NOT_HERE: Final = 1
    TOO_MANY: Final = 2
    NO_SERVICE: Final = 3


ServiceMessage = (
    AskAddress
    | Address
    | AskChallenge
    | Challenge
    | Presence
    | Forward
    | Forwarded
    | Undelivered
    | AskObserver
    | Observer
    | Sighted
    | AskReach
    | Reached
)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(ServiceMessage)


def serialize_service_message(message: ServiceMessage) -> bytes:
    """The body of a SERVICE or PATH_SERVICE frame."""
    return _encoder.encode(message)


def parse_service(body: bytes) -> ServiceMessage:
    """Read the body of a SERVICE or PATH_SERVICE frame.

    Raises:
        RemoteProtocolError: it is none of the messages.
    """
    if len(body) > SERVICE_BYTES:
        raise RemoteProtocolError("a service message is too long")
    try:
        message: ServiceMessage = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"a service message cannot be read: {error}") from error
    return message
