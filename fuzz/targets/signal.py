"""What nodes tell each other, and offers that come through a rendezvous."""

from __future__ import annotations

from crust.crypto.aead import Suite
from crust.crypto.dh import DhKey
from crust.crypto.keys import Identity
from crust.errors import RemoteProtocolError
from crust.proto.noise.ik import IkInitiator
from crust.proto.noise.outcome import Network
from crust.proto.signal import open_offer, seal_offer
from crust.types import Candidate
from crust.wire import service
from crust.wire.contact import Contact
from crust.wire.offer import Offer, parse_offer, serialize_offer
from fuzz.target import Reader, Target, fixed_random

ALICE = Identity.from_seed(b"a" * 32)
BOB = Identity.from_seed(b"b" * 32)
RENDEZVOUS = Identity.from_seed(b"r" * 32).id
NETWORK = Network.of("fuzz")


def run_service(data: bytes) -> None:
    """Any bytes are one of the messages, or a RemoteProtocolError."""
    message = service.parse_service(data)
    assert service.parse_service(service.serialize_service_message(message)) == message


def run_offer(data: bytes) -> None:
    """An offer that opens is from who it says, for us, through this rendezvous."""
    reader = Reader(data)
    if reader.byte() & 1:
        # Whoever knows our PeerId can make a right Noise message with anything in it.
        prologue = b"crust-v1 offer" + NETWORK.network_hash + BOB.id.bytes()
        noise = IkInitiator(Suite.AESGCM, prologue, ALICE.dh, DhKey(b"e" * 32), BOB.id.x25519)
        sealed = noise.write_message_1(reader.rest())
    else:
        sealed = reader.rest()
    offer = open_offer(BOB, NETWORK, sealed, through=RENDEZVOUS)
    assert offer.contact.id.matches_static(ALICE.dh.public)
    assert parse_offer(serialize_offer(offer)) == offer


def _offer() -> Offer:
    contact = Contact(ALICE.id, (Candidate("tcp", "203.0.113.7", 4000), Candidate("utp", "2001:db8::1", 1)))
    return Offer(bytes(16), b"", contact, BOB.id, RENDEZVOUS)


def _service_seeds() -> list[bytes]:
    key, identifier = bytes(32), bytes(16)
    return [
        service.serialize_service_message(message)
        for message in (
            service.AskAddress(),
            service.Address("203.0.113.7", 4000),
            service.AskChallenge(),
            service.Challenge(identifier),
            service.Presence(60, bytes(64)),
            service.Forward(identifier, key, b"sealed"),
            service.Forwarded(identifier, b"sealed", [(0, "203.0.113.7", 4000)]),
            service.Undelivered(identifier, 1),
        )
    ]


TARGETS = (
    Target("service", run_service, (RemoteProtocolError,), _service_seeds),
    Target(
        "offer",
        run_offer,
        (RemoteProtocolError,),
        lambda: [
            b"\0" + seal_offer(ALICE, NETWORK, _offer(), random=fixed_random()),
            b"\1" + serialize_offer(_offer()),
        ],
    ),
)
