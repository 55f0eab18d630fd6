"""What two peers agreed about signing, fixed when their session is made (PROTOCOL 10 and 20)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crust.crypto.hashing import HashId
from crust.crypto.keys import Identity, PeerId
from crust.proto.session.signing import SigningPace

__all__ = ["SigningTerms"]


@dataclass(slots=True)
class SigningTerms:
    """Both directions are signed, with one hash.

    Attributes:
        identity: whose key signs what we send.
        remote: whose signatures we check.
        hash_id: the hash that both sides have.
        strict: deliver only what has been verified; our own choice.
        pace: how often this node signs, over all its connections.
        wall_clock: seconds since 1970, for the time that a signature claims.
        session_id: 32 bytes; None until both nonces are known.
    """

    identity: Identity
    remote: PeerId
    hash_id: HashId
    strict: bool
    pace: SigningPace
    wall_clock: Callable[[], float]
    session_id: bytes | None = None
