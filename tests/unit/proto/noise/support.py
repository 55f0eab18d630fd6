"""What the tests of the handshake share: identities, and randomness that is the same each time."""

from __future__ import annotations

import random as stdlib_random
from dataclasses import dataclass, field

from crust.crypto.aead import Suite
from crust.crypto.keys import Identity, PeerId
from crust.proto.noise.handshake import (
    EphemeralCache,
    HandshakeResult,
    Hello,
    InitiatorHandshake,
    Network,
    ResponderHandshake,
    Signing,
)

ALICE = Identity.from_seed(bytes([1]) * 32)
BOB = Identity.from_seed(bytes([2]) * 32)
MALLORY = Identity.from_seed(bytes([3]) * 32)
NETWORK = Network.of("crust")


def negative(peer: PeerId) -> PeerId:
    """-P: the other point with the same y, and the same X25519 key."""
    raw = bytearray(peer.bytes())
    raw[31] ^= 0x80
    return PeerId(bytes(raw))


@dataclass
class Sides:
    """A dial from Alice to Bob, under control."""

    seed: int = 0
    suite: Suite = Suite.AESGCM
    network: Network = NETWORK
    remote: PeerId = BOB.id
    initiator_hello: Hello = field(default_factory=lambda: Hello(ALICE.id))
    responder_hello: Hello = field(default_factory=lambda: Hello(BOB.id))
    seen: EphemeralCache = field(default_factory=EphemeralCache)

    def __post_init__(self) -> None:
        source = stdlib_random.Random(self.seed)
        self.random = source.randbytes
        self.initiator = InitiatorHandshake(
            ALICE, self.remote, self.network, self.initiator_hello, random=self.random, suite=self.suite
        )
        self.responder = ResponderHandshake(BOB, NETWORK, random=self.random, seen=self.seen)
        self.message_1 = self.initiator.data_to_send()

    def run(self, rest: bytes = b"") -> tuple[HandshakeResult, HandshakeResult]:
        """Both results, the initiator's first; `rest` arrives behind message 2."""
        assert self.responder.receive_data(self.message_1, 0.0) is not None
        self.message_2, at_responder = self.responder.accept(self.responder_hello)
        at_initiator = self.initiator.receive_data(self.message_2 + rest)
        assert at_initiator is not None
        return at_initiator, at_responder


def signing(mode: Signing) -> dict[str, Hello]:
    """Arguments for `Sides` with one signing mode on both sides."""
    return {"initiator_hello": Hello(ALICE.id, signing=mode), "responder_hello": Hello(BOB.id, signing=mode)}
