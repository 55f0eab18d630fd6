"""Offers and answers: what two peers tell each other through a rendezvous before they can reach each other."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from crust.crypto.keys import PeerId
from crust.errors import ParseError, RemoteProtocolError
from crust.wire.contact import Contact

__all__ = ["OFFER_LIFETIME", "Offer", "parse_offer", "serialize_offer"]

OFFER_LIFETIME: Final = 30
"""Seconds for which an offer is good, and its dial id remembered (PROTOCOL 21)."""


class _Body(msgspec.Struct, frozen=True, array_like=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    dial_id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    answers: Annotated[bytes, msgspec.Meta(max_length=32)]
    receiver: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    rendezvous: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    lifetime: Annotated[int, msgspec.Meta(ge=1, le=60)]
    contact: Annotated[bytes, msgspec.Meta(max_length=4096)]


class Offer(msgspec.Struct, frozen=True):
    """An offer, an answer, or further candidates of either.

    Attributes:
        dial_id: 16 random bytes, the same in all messages of one dial.
        answers: H(offer) in an answer, else b"".
        contact: the sender's PeerId and candidates.
        receiver: for whom it is.
        rendezvous: through whom it goes; refused through another (PROTOCOL 21).
        lifetime: seconds.
    """

    dial_id: bytes
    answers: bytes
    contact: Contact
    receiver: PeerId
    rendezvous: PeerId
    lifetime: int = OFFER_LIFETIME


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
        )
    except (msgspec.DecodeError, ParseError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"an offer cannot be read: {error}") from error
