"""The dialling side: what answers may be, and what each means."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from crust.crypto.dh import DhKey
from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.noise.envelope import Envelope, outer_secret, response_frame
from crust.proto.noise.handshake import FailureReason, HandshakeFailed, Hello, Hint, InitiatorHandshake, Signing
from crust.proto.noise.initiator import _HINT_FAILURES
from crust.wire.handshake import serialize_hello, serialize_response
from tests.unit.proto.noise.support import ALICE, BOB, MALLORY, NETWORK, Sides, negative


def failure(sides: Sides, data: bytes) -> FailureReason:
    with pytest.raises(HandshakeFailed) as caught:
        sides.initiator.receive_data(data)
    assert isinstance(caught.value, RemoteProtocolError)
    return caught.value.reason


def feed(sides: Sides, data: bytes, chunk: int) -> None:
    for start in range(0, len(data), chunk):
        assert sides.initiator.receive_data(data[start : start + chunk]) is None


def test_first_flight_comes_once() -> None:
    sides = Sides()
    assert len(sides.message_1) >= 173
    assert sides.initiator.data_to_send() == b""


@pytest.mark.parametrize(
    ("hint", "reason"),
    [
        (Hint.NETWORK_MISMATCH, FailureReason.NETWORK_MISMATCH),
        (Hint.REFUSED, FailureReason.REFUSED),
        (Hint.SIGNING_MISMATCH, FailureReason.SIGNING_MISMATCH),
        (Hint.UNSUPPORTED_VERSION, FailureReason.UNSUPPORTED_VERSION),
        (Hint.BUSY, FailureReason.BUSY),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1000])
def test_hints(hint: Hint, reason: FailureReason, chunk: int) -> None:
    for seed in range(30):
        sides = Sides(seed)
        sides.responder.receive_data(sides.message_1, 0.0)
        data = sides.responder.refuse(hint)
        with pytest.raises(HandshakeFailed) as caught:
            feed(sides, data, chunk)
        assert caught.value.reason is reason
        assert str(caught.value) == reason.value


def test_every_hint_has_its_reason() -> None:
    assert set(_HINT_FAILURES) == set(Hint)


def test_hint_of_another_dial_is_nothing() -> None:
    sides, other = Sides(1), Sides(2)
    other.responder.receive_data(other.message_1, 0.0)
    hint = other.responder.refuse(Hint.REFUSED)
    assert failure(sides, hint + bytes(1000)) is FailureReason.WRONG_KEY_OR_NOT_CRUST


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", FailureReason.HTTP),
        (b"SSH-2.0-OpenSSH_9.2\r\n", FailureReason.SSH),
        (b"\x15\x03\x03\x00\x02\x02\x0a", FailureReason.TLS),
        (b"220 ready\r\n", FailureReason.MAIL_OR_FTP),
    ],
)
def test_banners(data: bytes, reason: FailureReason, chunk: int) -> None:
    for seed in range(20):
        sides = Sides(seed)
        with pytest.raises(HandshakeFailed) as caught:
            feed(sides, data, chunk)
        assert caught.value.reason is reason
        assert str(caught.value).startswith(reason.value)


def test_garbage() -> None:
    """At the latest when more came than any answer is long, mostly after two bytes."""
    source = random.Random(5)
    at_once = 0
    for seed in range(200):
        sides = Sides(seed)
        with suppress(HandshakeFailed):
            sides.initiator.receive_data(source.randbytes(2))
            at_once -= 1
        at_once += 1
        assert failure(sides, source.randbytes(700)) is FailureReason.WRONG_KEY_OR_NOT_CRUST
    assert at_once > 190


def test_silence() -> None:
    sides = Sides()
    assert sides.initiator.receive_data(b"") is None
    failed = sides.initiator.receive_eof()
    assert failed.reason is FailureReason.SILENT
    assert sides.initiator.receive_eof() is failed
    with pytest.raises(HandshakeFailed) as caught:
        sides.initiator.receive_data(b"late")
    assert caught.value is failed


def test_end_in_the_middle() -> None:
    sides = Sides()
    sides.responder.receive_data(sides.message_1, 0.0)
    message_2, _ = sides.responder.accept(Hello(BOB.id))
    assert sides.initiator.receive_data(message_2[:-1]) is None
    assert sides.initiator.receive_eof().reason is FailureReason.WRONG_KEY_OR_NOT_CRUST


def test_failure_is_repeated() -> None:
    sides = Sides()
    with pytest.raises(HandshakeFailed) as first:
        sides.initiator.receive_data(b"SSH-2.0-x")
    with pytest.raises(HandshakeFailed) as second:
        sides.initiator.receive_data(b"")
    assert first.value is second.value is sides.initiator.receive_eof()


def test_finished_is_finished() -> None:
    sides = Sides()
    sides.run()
    with pytest.raises(LocalProtocolError):
        sides.initiator.receive_data(b"x")


def test_message_2_of_another_dial() -> None:
    sides, other = Sides(1), Sides(2)
    other.run()
    assert failure(sides, other.message_2 + bytes(1000)) is FailureReason.WRONG_KEY_OR_NOT_CRUST


def test_hello_must_be_our_own() -> None:
    for peer in (MALLORY.id, negative(ALICE.id)):
        with pytest.raises(LocalProtocolError, match="another PeerId"):
            InitiatorHandshake(ALICE, BOB.id, NETWORK, Hello(peer), random=bytes)


def answer(sides: Sides, payload: bytes | None = None, *, mangle: bool = False) -> bytes:
    """Message 2 by a Bob who breaks the rules, but has his key."""
    sides.responder.receive_data(sides.message_1, 0.0)
    noise = sides.responder._noise
    assert noise is not None
    frame = response_frame(sides.suite, noise.chaining_key)
    message = noise.write_message_2(
        DhKey(bytes([7]) * 32), serialize_hello(Hello(BOB.id)) if payload is None else payload
    )
    if mangle:
        message = bytes(32) + message[32:]
    return frame.seal(serialize_response(message, 0))


@pytest.mark.parametrize("peer", [negative(BOB.id), MALLORY.id])
def test_responder_names_another_peer_id(peer: object) -> None:
    sides = Sides()
    data = answer(sides, serialize_hello(Hello(peer)))  # type: ignore[arg-type]
    assert failure(sides, data) is FailureReason.WRONG_KEY_OR_NOT_CRUST


def test_broken_answers_by_the_right_peer() -> None:
    sides = Sides()
    data = answer(sides, bytes(39))
    with pytest.raises(HandshakeFailed, match=r"a broken answer: .*small order"):
        sides.initiator.receive_data(data)
    sides = Sides()
    data = answer(sides, mangle=True)
    with pytest.raises(HandshakeFailed, match=r"a broken answer: .*low order"):
        sides.initiator.receive_data(data)


@pytest.mark.parametrize(("ours", "theirs"), [(Signing.ON, Signing.OFF), (Signing.OFF, Signing.STRICT)])
def test_responder_that_disagrees_about_signing(ours: Signing, theirs: Signing) -> None:
    sides = Sides(initiator_hello=Hello(ALICE.id, signing=ours))
    data = answer(sides, serialize_hello(Hello(BOB.id, signing=theirs)))
    assert failure(sides, data) is FailureReason.SIGNING_MISMATCH


def test_forged_hint_needs_the_peer_id_and_the_request() -> None:
    """What PROTOCOL 4 allows: a hint is only a hint."""
    sides = Sides()
    envelope = Envelope(outer_secret(BOB.id), sides.message_1[:16])
    assert failure(sides, envelope.hint(sides.message_1[-16:]).seal(b"\2")) is FailureReason.REFUSED
    sides = Sides()
    envelope = Envelope(outer_secret(MALLORY.id), sides.message_1[:16])
    forged = envelope.hint(sides.message_1[-16:]).seal(b"\2") + bytes(1000)
    assert failure(sides, forged) is FailureReason.WRONG_KEY_OR_NOT_CRUST


def test_answers_longer_than_the_request_are_refused() -> None:
    sides = Sides()
    sides.responder.receive_data(sides.message_1, 0.0)
    noise = sides.responder._noise
    assert noise is not None
    frame = response_frame(sides.suite, noise.chaining_key)
    too_long = frame.seal(bytes(len(sides.message_1) - 2 - 16 + 1))
    assert failure(sides, too_long) is FailureReason.WRONG_KEY_OR_NOT_CRUST
    sides = Sides()
    hint = Envelope(outer_secret(BOB.id), sides.message_1[:16]).hint(sides.message_1[-16:])
    too_long = hint.seal(b"\2" + bytes(len(sides.message_1) - 2 - 16 - 1))
    assert len(too_long) == len(sides.message_1)
    assert failure(sides, too_long) is FailureReason.WRONG_KEY_OR_NOT_CRUST
