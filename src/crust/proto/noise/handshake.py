"""The handshake over a byte stream: one message each way, or a hint, or silence (PROTOCOL 1 to 5, 20).

    initiator                                            responder
    salt 16 ‖ masked length 2 ‖ AEAD(request)  ------>
                                               <------   masked length 2 ‖ AEAD(response)
                                                         or masked length 2 ‖ AEAD(hint), or nothing

What stands on the wire is random bytes of random length to everyone who does not know the responder's PeerId.

Whose PeerId. The map from Ed25519 to X25519 forgets the sign, so P and -P have one static key. Each side therefore
names its PeerId, sign included, where it is authenticated: the responder's in the envelope key, in the prologue and in
its Hello, the initiator's in its Hello. An honest node only ever names its own, so no handshake by or with P can be
passed off as one by or with -P. The other way round, who holds the secret scalar a of P can shake hands as -P, and this
takes nothing from anyone: -P is a key of its own, with the scalar L - a, which makes valid Ed25519 signatures as -P,
and nobody can hold that one without holding a. The same goes for P + T with T of small order (X25519 clamping drops T).
Such names are what fresh keys are, further names of one holder: a blacklist stops neither. As the Ed25519 and the
X25519 secret are one scalar up to its sign, a signature in the handshake (37 µs to make, 108 µs to check) would prove
nothing that the DH does not.
"""

from __future__ import annotations

from crust.proto.noise.initiator import InitiatorHandshake
from crust.proto.noise.outcome import (
    DiscardReason,
    FailureReason,
    HandshakeFailed,
    HandshakeResult,
    Incoming1,
    Network,
)
from crust.proto.noise.replay import EphemeralCache
from crust.proto.noise.responder import ResponderHandshake
from crust.wire.handshake import Hello, Hint, Role, Signing

__all__ = [
    "DiscardReason",
    "EphemeralCache",
    "FailureReason",
    "HandshakeFailed",
    "HandshakeResult",
    "Hello",
    "Hint",
    "Incoming1",
    "InitiatorHandshake",
    "Network",
    "ResponderHandshake",
    "Role",
    "Signing",
]
