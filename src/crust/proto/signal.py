"""Sealing offers and answers (PROTOCOL 21): one-way Noise, so that a dial attempt is no transferable evidence.

The message is `e, es, s, ss` and a payload, Noise's one-way pattern X, which is the first message of IK. The receiver
knows who sent it, but could have made it himself: it convinces nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from crust.crypto.aead import Suite, sha256
from crust.crypto.dh import DH_BYTES, DhKey
from crust.crypto.keys import Identity, PeerId
from crust.errors import RemoteProtocolError
from crust.proto.noise.ik import IkInitiator, IkResponder
from crust.proto.noise.outcome import Network
from crust.wire.offer import Offer, parse_offer, serialize_offer

__all__ = ["DialMemory", "offer_hash", "open_offer", "seal_offer"]

_LABEL: Final = b"crust-v1 offer"
_REMEMBERED: Final = 4096


def seal_offer(identity: Identity, network: Network, offer: Offer, *, random: Callable[[int], bytes]) -> bytes:
    """Encrypt an offer to its receiver."""
    prologue = _LABEL + network.network_hash + offer.receiver.bytes()
    noise = IkInitiator(Suite.AESGCM, prologue, identity.dh, DhKey(random(DH_BYTES)), offer.receiver.x25519)
    return noise.write_message_1(serialize_offer(offer))


def open_offer(identity: Identity, network: Network, sealed: bytes, *, through: PeerId) -> Offer:
    """Decrypt an offer, and check that it is for us, from who it says, and came the way it names.

    Args:
        identity: ours.
        network: ours.
        sealed: the bytes that a rendezvous passed on.
        through: that rendezvous.

    Raises:
        RemoteProtocolError: not so.
    """
    noise = IkResponder(Suite.AESGCM, _LABEL + network.network_hash + identity.id.bytes(), identity.dh)
    static = noise.read_static(sealed)
    offer = parse_offer(noise.read_payload())
    if not offer.contact.id.matches_static(static):
        raise RemoteProtocolError("an offer names another sender than its key")
    if offer.receiver != identity.id:
        raise RemoteProtocolError("an offer is for somebody else")
    if offer.rendezvous != through:
        raise RemoteProtocolError("an offer came through another rendezvous than it names")
    return offer


def offer_hash(sealed: bytes) -> bytes:
    """What an answer names."""
    return sha256(_LABEL + sealed)


class DialMemory:
    """Dial ids of the last while: an offer is acted upon once (PROTOCOL 21)."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[tuple[PeerId, bytes], float] = {}

    def is_new(self, peer: PeerId, dial_id: bytes, lifetime: float, now: float) -> bool:
        """Remember a dial id; False when it was there already."""
        until = self._until
        while until and (len(until) >= _REMEMBERED or next(iter(until.values())) <= now):
            del until[next(iter(until))]
        key = (peer, dial_id)
        if until.get(key, 0.0) > now:
            return False
        until.pop(key, None)
        until[key] = now + lifetime
        return True
