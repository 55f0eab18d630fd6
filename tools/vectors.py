#!/usr/bin/env python3
"""Make the test vectors of the documentation from fixed keys.

    python tools/vectors.py > docs/explanation/vectors.json

A test compares them with what the code says today, so that no change of the wire goes unnoticed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from crust.crypto.aead import Suite
from crust.crypto.keys import Identity
from crust.proto.noise.envelope import outer_secret
from crust.proto.noise.handshake import EphemeralCache, Hello, InitiatorHandshake, Network, ResponderHandshake
from crust.proto.noise.transport import KeyPair, rekey
from crust.proto.record import RecordCodec
from crust.proto.signal import seal_offer
from crust.proto.tunnel.handshake import TunnelInitiator, seal_cookie
from crust.types import Candidate
from crust.wire import frames
from crust.wire.contact import Contact
from crust.wire.offer import NatRecord, Offer, PortForecast, serialize_offer
from crust.wire.probe import serialize_probe
from crust.wire.tunnel import Introduction

INITIATOR = Identity.from_seed(bytes(range(32)))
RESPONDER = Identity.from_seed(bytes(range(32, 64)))
INITIATOR_EPHEMERAL = bytes(range(64, 96))
RESPONDER_EPHEMERAL = bytes(range(96, 128))
SALT = bytes(range(128, 144))
PADDING = 5
DIAL_ID = bytes(range(144, 160))
PROBE_KEY, PROBE_TOKEN, PROBE_NUMBER = bytes(range(160, 176)), bytes(range(176, 184)), bytes(range(184, 192))
TUNNEL_INDEX, HEADER_KEY, COOKIE = 0x01020304, bytes(range(208, 224)), bytes(range(224, 240))
NETWORK = ("garden", b"a network key")


def scripted(*draws: bytes) -> Callable[[int], bytes]:
    """Randomness that gives these bytes, each asked for by its length."""
    left = list(draws)

    def draw(size: int) -> bytes:
        value = left.pop(0)
        assert len(value) == size
        return value

    return draw


def handshake(suite: Suite) -> dict[str, Any]:
    """One handshake, the first record each way, and the keys after a renewal."""
    network = Network.of(*NETWORK)
    padding = PADDING.to_bytes(4, "big")
    initiator = InitiatorHandshake(
        INITIATOR,
        RESPONDER.id,
        network,
        Hello(INITIATOR.id),
        random=scripted(INITIATOR_EPHEMERAL, SALT, padding),
        suite=suite,
    )
    message_1 = initiator.data_to_send()
    responder = ResponderHandshake(
        RESPONDER, network, random=scripted(RESPONDER_EPHEMERAL, padding), seen=EphemeralCache()
    )
    assert responder.receive_data(message_1, 0.0) is not None
    message_2, accepted = responder.accept(Hello(RESPONDER.id))
    dialled = initiator.receive_data(message_2)
    assert dialled is not None
    assert dialled.handshake_hash == accepted.handshake_hash
    ping = b"\0" + frames.serialize_ping(1)
    records = []
    for result in (dialled, accepted):
        keys = KeyPair(result.root, result.send, result.receive)
        codec = RecordCodec(keys, initiator=result.initiator, random=scripted(), now=0.0)
        records.append(bytes(codec.seal([(ping, ())], 0.0)).hex())
    return {
        "suite": suite.name,
        "message_1": message_1.hex(),
        "message_2": message_2.hex(),
        "handshake_hash": dialled.handshake_hash.hex(),
        "root": dialled.root.hex(),
        "first_record_plaintext": ping.hex(),
        "first_record_of_initiator": records[0],
        "first_record_of_responder": records[1],
        "root_after_renewal_with_shared_secret_of_42s": rekey(
            suite, dialled.root, b"\x42" * 32, initiator=True
        ).root.hex(),
    }


def vectors() -> dict[str, Any]:
    """All vectors."""
    contact = Contact(
        RESPONDER.id,
        (
            Candidate("tcp", "203.0.113.7", 4000),
            Candidate("utp", "203.0.113.7", 4000),
            Candidate("tcp", "2001:db8::1", 4000, "mapped"),
        ),
    )
    return {
        "initiator": _identity(INITIATOR),
        "responder": _identity(RESPONDER),
        "contact": {
            "candidates": [str(c) for c in contact.candidates],
            "bytes": bytes(contact).hex(),
            "text": str(contact),
        },
        "network": {"name": NETWORK[0], "key": NETWORK[1].hex(), "hash": Network.of(*NETWORK).network_hash.hex()},
        "ephemeral_of_initiator": INITIATOR_EPHEMERAL.hex(),
        "ephemeral_of_responder": RESPONDER_EPHEMERAL.hex(),
        "salt": SALT.hex(),
        "padding_bytes": PADDING,
        "hello": "role 0, signing 0, hashes 1, features 0",
        "handshakes": [handshake(suite) for suite in Suite],
        "datagram_requests": datagram_requests(),
        "offer": offer(contact),
        "probe": {
            "key": PROBE_KEY.hex(),
            "token": PROBE_TOKEN.hex(),
            "number": PROBE_NUMBER.hex(),
            "tcp": serialize_probe(PROBE_KEY, "tcp", PROBE_TOKEN, PROBE_NUMBER).hex(),
            "utp": serialize_probe(PROBE_KEY, "utp", PROBE_TOKEN, PROBE_NUMBER).hex(),
        },
    }


def datagram_requests() -> dict[str, Any]:
    """The first message over UDP: as it is at first, and as it is once the responder has sent a cookie."""
    drawn, proof, padding = SALT[:12], bytes(range(192, 208)), PADDING.to_bytes(4, "big")
    initiator = TunnelInitiator(
        INITIATOR,
        RESPONDER.id,
        Network.of(*NETWORK),
        Introduction(TUNNEL_INDEX, HEADER_KEY, Hello(INITIATOR.id)),
        outer_secret(RESPONDER.id),
        random=scripted(INITIATOR_EPHEMERAL, drawn, proof, padding, drawn[::-1], padding),
        suite=Suite.AESGCM,
    )
    first = initiator.request()
    reply = seal_cookie(outer_secret(RESPONDER.id), first, COOKIE, scripted(padding))
    assert initiator.receive_reply(reply)
    return {
        "index": TUNNEL_INDEX,
        "header_key": HEADER_KEY.hex(),
        "without_a_cookie": first.hex(),
        "cookie": COOKIE.hex(),
        "cookie_reply": reply.hex(),
        "with_the_cookie": initiator.request().hex(),
    }


def offer(contact: Contact) -> dict[str, str]:
    """An answer from the responder to the initiator: what is sealed, and sealed."""
    forecast = PortForecast("203.0.113.7", 40_000, 25, 130)
    found = Offer(
        DIAL_ID,
        bytes(range(32)),
        contact,
        INITIATOR.id,
        RESPONDER.id,
        nats=(
            NatRecord(0, True, 1, 3, 1, certain=67),
            NatRecord(1, True, 3, 3, 2, 1, 67, forecast, (40_024, 40_048, 40_072, 40_096)),
        ),
    )
    network = Network.of(*NETWORK)
    return {
        "payload": serialize_offer(found).hex(),
        "sealed": seal_offer(RESPONDER, network, found, random=scripted(RESPONDER_EPHEMERAL)).hex(),
    }


def _identity(identity: Identity) -> dict[str, str]:
    return {
        "seed": identity._seed.hex(),
        "peer_id_bytes": identity.id.bytes().hex(),
        "peer_id": str(identity.id),
        "static": identity.id.x25519.hex(),
        "static_private": identity.x25519_private.hex(),
        "signature_of_hello_for_test": identity.sign("test", b"hello").hex(),
    }


if __name__ == "__main__":
    json.dump(vectors(), sys.stdout, indent=2)
    sys.stdout.write("\n")
