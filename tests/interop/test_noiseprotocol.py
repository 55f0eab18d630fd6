"""The handshake against `noiseprotocol` (PyPI), an independent implementation, in both roles.

First Noise IK alone, then the whole of Crust's handshake with `noiseprotocol` in place of one side's Noise engine, so
that prologue, payloads and transport keys are checked from outside too.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from noise import connection

from crust.crypto.aead import Suite
from crust.crypto.dh import DhKey
from crust.proto.noise.envelope import Envelope, SealedFrame, outer_secret, response_frame
from crust.proto.noise.handshake import HandshakeResult, Hello, Role
from crust.proto.noise.ik import IkInitiator, IkResponder
from crust.wire.handshake import (
    Request,
    parse_hello,
    parse_request,
    parse_response,
    serialize_hello,
    serialize_request,
    serialize_response,
)
from tests.unit.proto.noise.support import ALICE, BOB, NETWORK, Sides

NAMES = {Suite.AESGCM: b"Noise_IK_25519_AESGCM_SHA256", Suite.CHACHAPOLY: b"Noise_IK_25519_ChaChaPoly_SHA256"}
PROLOGUE = b"a prologue"
EACH_SUITE = pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.name)


def other(suite: Suite, static: bytes, prologue: bytes, remote_static: bytes | None = None) -> Any:
    """A `noiseprotocol` connection: the initiator's when it knows whom to dial."""
    noise = connection.NoiseConnection.from_name(NAMES[suite])
    noise.set_prologue(prologue)
    noise.set_keypair_from_private_bytes(connection.Keypair.STATIC, static)
    if remote_static is None:
        noise.set_as_responder()
    else:
        noise.set_as_initiator()
        noise.set_keypair_from_public_bytes(connection.Keypair.REMOTE_STATIC, remote_static)
    noise.start_handshake()
    return noise


@EACH_SUITE
def test_noise_as_initiator(suite: Suite) -> None:
    ours = IkInitiator(suite, PROLOGUE, ALICE.dh, DhKey(bytes(range(32))), BOB.id.x25519)
    theirs = other(suite, BOB.x25519_private, PROLOGUE)
    assert theirs.read_message(ours.write_message_1(b"one")) == b"one"
    assert ours.read_message_2(bytes(theirs.write_message(b"two"))) == b"two"
    assert ours.handshake_hash == theirs.get_handshake_hash()


@EACH_SUITE
def test_noise_as_responder(suite: Suite) -> None:
    ours = IkResponder(suite, PROLOGUE, BOB.dh)
    theirs = other(suite, ALICE.x25519_private, PROLOGUE, BOB.id.x25519)
    assert ours.read_message_1(bytes(theirs.write_message(b"one"))) == b"one"
    assert theirs.read_message(ours.write_message_2(DhKey(bytes(range(32))), b"two")) == b"two"
    assert ours.handshake_hash == theirs.get_handshake_hash()


def exchange_records(ours: HandshakeResult, theirs: Any) -> None:
    """Transport messages in both directions, past 256 so that the byte order of nonces shows."""
    for number in range(300):
        text = b"record %d" % number
        sealed = ours.send.aead.encrypt(ours.send.next_nonce(), text, b"")
        assert theirs.decrypt(sealed) == text
        assert ours.receive.aead.decrypt(ours.receive.next_nonce(), bytes(theirs.encrypt(text)), b"") == text


@EACH_SUITE
def test_crust_as_initiator(suite: Suite) -> None:
    sides = Sides(suite=suite)
    theirs = other(suite, BOB.x25519_private, NETWORK.prologue(suite, BOB.id))
    request = parse_request(Envelope(outer_secret(BOB.id), sides.message_1[:16]).request().open(sides.message_1[16:]))
    assert request.suite is suite
    assert parse_hello(theirs.read_message(request.noise)) == Hello(ALICE.id)
    frame = response_frame(suite, theirs.noise_protocol.symmetric_state.ck)
    answer = bytes(theirs.write_message(serialize_hello(Hello(BOB.id, Role.CLIENT))))
    result = sides.initiator.receive_data(frame.seal(serialize_response(answer, 7)))
    assert result is not None
    assert result.hello == Hello(BOB.id, Role.CLIENT)
    assert result.handshake_hash == theirs.get_handshake_hash()
    exchange_records(result, theirs)


@EACH_SUITE
def test_crust_as_responder(suite: Suite) -> None:
    sides = Sides()
    theirs = other(suite, ALICE.x25519_private, NETWORK.prologue(suite, BOB.id), BOB.id.x25519)
    envelope = Envelope(outer_secret(BOB.id), random.Random(1).randbytes(16))
    request = Request(suite, bytes(theirs.write_message(serialize_hello(Hello(ALICE.id)))))
    incoming = sides.responder.receive_data(envelope.request().seal(serialize_request(request, 5)), 0.0)
    assert incoming is not None
    assert incoming.hello == Hello(ALICE.id)
    frame: SealedFrame = response_frame(suite, theirs.noise_protocol.symmetric_state.ck)
    message_2, result = sides.responder.accept(Hello(BOB.id))
    assert parse_hello(theirs.read_message(parse_response(frame.open(message_2)))) == Hello(BOB.id)
    assert result.handshake_hash == theirs.get_handshake_hash()
    exchange_records(result, theirs)
