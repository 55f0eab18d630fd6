"""Offers and answers: what two peers tell each other through a rendezvous before they can reach each other."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from crust.crypto.keys import PeerId
from crust.errors import ParseError, RemoteProtocolError
from crust.wire.contact import Contact

__all__ = ["MEETINGS_MOST", "OFFER_LIFETIME", "NatRecord", "Offer", "PortForecast", "parse_offer", "serialize_offer"]

OFFER_LIFETIME: Final = 30
"""Seconds for which an offer is good, and its dial id remembered (PROTOCOL 21)."""


MEETINGS_MOST: Final = 8
"""Most rounds in which two sequential NATs try to meet."""

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Kind = Annotated[int, msgspec.Meta(ge=0, le=3)]


class PortForecast(msgspec.Struct, frozen=True, array_like=True):
    """Where a NAT that counts its ports up or down stands.

    Attributes:
        host: its outside host.
        last: the newest port that was seen.
        age_ms: how long ago, when the offer was made.
        rate: ports that others behind it use up in a hundred seconds.
    """

    host: Annotated[str, msgspec.Meta(max_length=45)]
    last: _Port
    age_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)]
    rate: Annotated[int, msgspec.Meta(ge=0, le=200_000)]


class NatRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the sender of an offer knows of its NAT, for one transport; words are those of RFC 4787.

    Attributes:
        transport: 0 TCP, 1 µTP.
        translated: False: no NAT.
        mapping: 0 unknown, 1 endpoint-independent, 2 address-dependent, 3 address-and-port-dependent.
        filtering: the same numbers.
        allocation: 0 unknown, 1 preserving, 2 sequential, 3 random.
        step: between two ports, if sequential.
        certain: in percent, how sure the mapping is.
        forecast: if sequential.
        meeting: the ports that the sender will try to obtain, one for each round, should both NATs be sequential.
    """

    transport: Annotated[int, msgspec.Meta(ge=0, le=1)]
    translated: bool
    mapping: _Kind
    filtering: _Kind
    allocation: _Kind
    step: Annotated[int, msgspec.Meta(ge=-32767, le=32767)] = 0
    certain: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    forecast: PortForecast | None = None
    meeting: Annotated[tuple[_Port, ...], msgspec.Meta(max_length=MEETINGS_MOST)] = ()


class _Body(msgspec.Struct, frozen=True, array_like=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    dial_id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    answers: Annotated[bytes, msgspec.Meta(max_length=32)]
    receiver: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    rendezvous: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    lifetime: Annotated[int, msgspec.Meta(ge=1, le=60)]
    contact: Annotated[bytes, msgspec.Meta(max_length=4096)]
    nats: Annotated[tuple[NatRecord, ...], msgspec.Meta(max_length=4)] = ()


class Offer(msgspec.Struct, frozen=True):
    """An offer, an answer, or further candidates of either.

    Attributes:
        dial_id: 16 random bytes, the same in all messages of one dial.
        answers: H(offer) in an answer, else b"".
        contact: the sender's PeerId and candidates.
        receiver: for whom it is.
        rendezvous: through whom it goes; refused through another (PROTOCOL 21).
        lifetime: seconds.
        nats: what the sender knows of its NAT, at most one for each transport.
    """

    dial_id: bytes
    answers: bytes
    contact: Contact
    receiver: PeerId
    rendezvous: PeerId
    lifetime: int = OFFER_LIFETIME
    nats: tuple[NatRecord, ...] = ()


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Body)


def serialize_offer(offer: Offer) -> bytes:
    """An offer as bytes, to be sealed."""
    return _encoder.encode(
        _Body(
            1,
            offer.dial_id,
            offer.answers,
            offer.receiver.bytes(),
            offer.rendezvous.bytes(),
            offer.lifetime,
            bytes(offer.contact),
            offer.nats,
        )
    )


def parse_offer(data: bytes) -> Offer:
    """Read an offer that was opened.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        body = _decoder.decode(data)
        return Offer(
            body.dial_id,
            body.answers,
            Contact.from_bytes(body.contact),
            PeerId(body.receiver),
            PeerId(body.rendezvous),
            body.lifetime,
            body.nats,
        )
    except (msgspec.DecodeError, ParseError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"an offer cannot be read: {error}") from error
