"""Both sides of the handshake, fed by strangers and by those who know the responder's PeerId.

Random bytes never open an AEAD, so an input says how deep it wants to get: its first byte chooses whether the rest is
what goes over the wire, what stands inside a rightly sealed envelope, or what stands inside a right Noise message.
"""

from __future__ import annotations

from crust.crypto.aead import Suite
from crust.crypto.dh import DhKey
from crust.crypto.keys import Identity
from crust.errors import RemoteProtocolError
from crust.proto.noise.envelope import Envelope, outer_secret, response_frame
from crust.proto.noise.handshake import (
    EphemeralCache,
    HandshakeFailed,
    Hello,
    InitiatorHandshake,
    Network,
    ResponderHandshake,
)
from crust.proto.noise.ik import IkInitiator, IkResponder
from crust.wire.handshake import (
    Request,
    parse_hello,
    parse_hint,
    parse_request,
    parse_response,
    serialize_hello,
    serialize_hint,
    serialize_request,
    serialize_response,
)
from fuzz.target import Reader, Target, fixed_random

ALICE = Identity.from_seed(b"a" * 32)
BOB = Identity.from_seed(b"b" * 32)
NETWORK = Network.of("fuzz")
SALT = bytes(16)


def _initiator() -> InitiatorHandshake:
    return InitiatorHandshake(ALICE, BOB.id, NETWORK, Hello(ALICE.id), random=fixed_random(), suite=Suite.AESGCM)


def run_responder(data: bytes) -> None:
    """Whatever arrives, a responder waits, decides or goes silent, and raises nothing."""
    reader = Reader(data)
    depth = reader.byte() % 3
    if depth == 0:
        wire = reader.rest()
    elif depth == 1:
        wire = Envelope(outer_secret(BOB.id), SALT).request().seal(reader.rest())
    else:
        noise = IkInitiator(
            Suite.AESGCM, NETWORK.prologue(Suite.AESGCM, BOB.id), ALICE.dh, DhKey(b"e" * 32), BOB.id.x25519
        )
        message = noise.write_message_1(reader.rest())
        wire = Envelope(outer_secret(BOB.id), SALT).request().seal(serialize_request(Request(Suite.AESGCM, message), 0))
    responder = ResponderHandshake(BOB, NETWORK, random=fixed_random(), seen=EphemeralCache())
    for at in range(0, len(wire), 200):
        incoming = responder.receive_data(wire[at : at + 200], 0.0)
        if incoming is not None:
            answer, result = responder.accept(Hello(BOB.id, signing=incoming.hello.signing))
            assert len(answer) <= len(wire), "an answer longer than the question"
            assert result.peer == incoming.hello.peer
            return
        if responder.discarding:
            assert responder.reason is not None
            assert responder.hint is None or len(responder.hint) < len(wire)
            return


def run_initiator(data: bytes) -> None:
    """Whatever answers, a dial ends in a result or a HandshakeFailed."""
    reader = Reader(data)
    depth = reader.byte() % 4
    initiator = _initiator()
    request = initiator.data_to_send()
    if depth == 0:
        wire = reader.rest()
    elif depth == 1:
        wire = Envelope(outer_secret(BOB.id), request[:16]).hint(request[-16:]).seal(reader.rest())
    else:
        responder = IkResponder(Suite.AESGCM, NETWORK.prologue(Suite.AESGCM, BOB.id), BOB.dh)
        body = parse_request(Envelope(outer_secret(BOB.id), request[:16]).request().open(request[16:]))
        responder.read_static(body.noise)
        responder.read_payload()
        frame = response_frame(Suite.AESGCM, responder.chaining_key)
        if depth == 3:
            message = responder.write_message_2(DhKey(b"r" * 32), reader.rest())
            wire = frame.seal(serialize_response(message, 0)) if len(message) < 1 << 16 else b""
        else:
            wire = frame.seal(reader.rest())
    for at in range(0, len(wire), 200):
        if initiator.receive_data(wire[at : at + 200]) is not None:
            return
    raise initiator.receive_eof()


def run_bodies(data: bytes) -> None:
    """The parsers by themselves; what they take, they write again."""
    reader = Reader(data)
    which, body = reader.byte() % 4, reader.rest()
    if which == 0:
        request = parse_request(body)
        assert parse_request(serialize_request(request, 0)) == request
    elif which == 1:
        assert parse_response(serialize_response(parse_response(body), 0)) == parse_response(body)
    elif which == 2:
        hello = parse_hello(body)
        assert parse_hello(serialize_hello(hello)) == hello
    else:
        hint = parse_hint(body)
        assert parse_hint(serialize_hint(hint, 0)) == hint


def _bodies() -> list[bytes]:
    hello = serialize_hello(Hello(ALICE.id))
    noise = bytes(range(256))[:135]
    return [
        b"\0" + serialize_request(Request(Suite.AESGCM, noise), 20),
        b"\1" + serialize_response(noise, 20),
        b"\2" + hello,
        b"\3\1\0\0",
    ]


def _responder_seeds() -> list[bytes]:
    request = _initiator().data_to_send()
    body = Envelope(outer_secret(BOB.id), request[:16]).request().open(request[16:])
    return [b"\0" + request, b"\1" + body, b"\2" + serialize_hello(Hello(ALICE.id)), b"\0GET / HTTP/1.1\r\n\r\n"]


def _initiator_seeds() -> list[bytes]:
    initiator = _initiator()
    responder = ResponderHandshake(BOB, NETWORK, random=fixed_random(b"bob"), seen=EphemeralCache())
    assert responder.receive_data(initiator.data_to_send(), 0.0) is not None
    answer, _ = responder.accept(Hello(BOB.id))
    hello = serialize_hello(Hello(BOB.id))
    return [
        b"\0" + answer,
        b"\1\1" + bytes(40),
        b"\2" + bytes(120),
        b"\3" + hello,
        b"\0HTTP/1.1 400 Bad Request\r\n",
        b"\0SSH-2.0-x\r\n",
        b"\0\x15\x03\x01\x00\x02\x02\x28",
    ]


TARGETS = (
    Target("responder", run_responder, (), _responder_seeds),
    Target("initiator", run_initiator, (HandshakeFailed,), _initiator_seeds),
    Target("handshake-bodies", run_bodies, (RemoteProtocolError,), _bodies),
)
