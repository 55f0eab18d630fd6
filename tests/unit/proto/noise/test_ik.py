"""Noise IK: what goes wrong. What goes right is checked by the vectors in tests/interop."""

from __future__ import annotations

import pytest

from crust.crypto.aead import Suite
from crust.crypto.dh import DhKey, LowOrderKeyError
from crust.errors import RemoteProtocolError
from crust.proto.noise.ik import IkInitiator, IkResponder, NoiseAuthenticationError

STATIC, RESPONDER, EPHEMERAL, ANSWER, OTHER = (DhKey(bytes([n]) * 32) for n in range(1, 6))
EACH_SUITE = pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.name)


def initiator(suite: Suite = Suite.AESGCM, prologue: bytes = b"p", to: bytes = RESPONDER.public) -> IkInitiator:
    return IkInitiator(suite, prologue, STATIC, EPHEMERAL, to)


def responder(suite: Suite = Suite.AESGCM, prologue: bytes = b"p") -> IkResponder:
    return IkResponder(suite, prologue, RESPONDER)


@EACH_SUITE
def test_handshake(suite: Suite) -> None:
    a, b = initiator(suite), responder(suite)
    message_1 = a.write_message_1(b"one")
    assert len(message_1) == 32 + 48 + 3 + 16
    assert b.read_static(message_1) == STATIC.public
    assert b.read_payload() == b"one"
    assert a.chaining_key == b.chaining_key
    message_2 = b.write_message_2(ANSWER, b"two")
    assert len(message_2) == 32 + 3 + 16
    assert a.read_message_2(message_2) == b"two"
    assert a.handshake_hash == b.handshake_hash
    assert a.chaining_key == b.chaining_key
    assert a.split() == b.split()
    assert len({*a.split(), a.chaining_key, a.handshake_hash}) == 4


def test_other_prologue_or_suite_fails_at_the_static_key() -> None:
    message = initiator().write_message_1(b"")
    for other in (responder(prologue=b"q"), responder(Suite.CHACHAPOLY)):
        with pytest.raises(NoiseAuthenticationError):
            other.read_static(message)


def test_other_responder() -> None:
    message = initiator(to=OTHER.public).write_message_1(b"")
    with pytest.raises(NoiseAuthenticationError):
        responder().read_static(message)


def test_claimed_static_key_without_its_secret() -> None:
    """The static key opens, as everyone may seal it; the payload does not."""

    class Claims(DhKey):
        """Shows the public key of another."""

    claims = Claims(bytes([9]) * 32)
    object.__setattr__(claims, "public", STATIC.public)
    b = responder()
    assert b.read_static(IkInitiator(Suite.AESGCM, b"p", claims, EPHEMERAL, RESPONDER.public).write_message_1(b"")) == (
        STATIC.public
    )
    with pytest.raises(NoiseAuthenticationError):
        b.read_payload()


@pytest.mark.parametrize("position", [0, 31, 32, 79, 80, -1])
def test_changed_bytes(position: int) -> None:
    a, b = initiator(), responder()
    message = bytearray(a.write_message_1(b"payload"))
    message[position] ^= 0x40
    with pytest.raises(NoiseAuthenticationError):
        b.read_message_1(bytes(message))
    a, b = initiator(), responder()
    b.read_message_1(a.write_message_1(b"payload"))
    answer = bytearray(b.write_message_2(ANSWER, b"a payload so long that every position is inside"))
    answer[position] ^= 0x40
    with pytest.raises(NoiseAuthenticationError):
        a.read_message_2(bytes(answer))


def test_too_short() -> None:
    a, b = initiator(), responder()
    message = a.write_message_1(b"")
    for size in (0, 32, 80, len(message) - 1):
        with pytest.raises(RemoteProtocolError, match="too short"):
            responder().read_static(message[:size])
    b.read_message_1(message)
    answer = b.write_message_2(ANSWER, b"")
    for size in (0, 32, len(answer) - 1):
        with pytest.raises(RemoteProtocolError, match="too short"):
            a.read_message_2(answer[:size])


def test_low_order_keys() -> None:
    a, b = initiator(), responder()
    message = a.write_message_1(b"")
    with pytest.raises(LowOrderKeyError):
        responder().read_static(bytes(32) + message[32:])
    b.read_message_1(message)
    with pytest.raises(LowOrderKeyError):
        a.read_message_2(bytes(32) + b.write_message_2(ANSWER, b"")[32:])
    with pytest.raises(LowOrderKeyError):
        initiator(to=bytes(32)).write_message_1(b"")


def test_low_order_static_key() -> None:
    zero = DhKey(bytes([9]) * 32)
    object.__setattr__(zero, "public", bytes(32))
    b = responder()
    b.read_static(IkInitiator(Suite.AESGCM, b"p", zero, EPHEMERAL, RESPONDER.public).write_message_1(b""))
    with pytest.raises(LowOrderKeyError):
        b.read_payload()
