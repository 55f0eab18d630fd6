"""The sealed envelope."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crust.crypto.aead import Suite
from crust.errors import RemoteProtocolError
from crust.proto.noise.envelope import Envelope, SealedFrame, outer_secret, response_frame
from tests.unit.proto.noise.support import ALICE, BOB, negative

SALT = bytes(range(16))


def test_request_as_the_protocol_says() -> None:
    """PROTOCOL 3, computed by hand."""
    sealed = Envelope(outer_secret(BOB.id), SALT).request().seal(b"body")
    secret = hashlib.sha256(b"crust-v1 outer" + bytes(BOB.id)).digest()
    mask = hmac.digest(secret, SALT + b"length", "sha256")[:2]
    field = bytes(a ^ b for a, b in zip((20).to_bytes(2, "big"), mask, strict=True))
    body = AESGCM(hmac.digest(secret, SALT, "sha256")).encrypt(bytes(12), b"body", SALT + field)
    assert sealed == SALT + field + body


def test_round_trip() -> None:
    envelope = Envelope(outer_secret(BOB.id), SALT)
    sealed = envelope.request().seal(b"body")
    frame = sealed[16:]
    assert envelope.request().sealed_bytes(frame) == len(frame) - 2
    assert envelope.request().open(frame) == b"body"


@pytest.mark.parametrize(
    "other",
    [
        Envelope(outer_secret(ALICE.id), SALT).request(),
        Envelope(outer_secret(negative(BOB.id)), SALT).request(),
        Envelope(outer_secret(BOB.id), bytes(16)).request(),
        Envelope(outer_secret(BOB.id), SALT).hint(bytes(16)),
    ],
)
def test_other_keys_do_not_open(other: SealedFrame) -> None:
    frame = Envelope(outer_secret(BOB.id), SALT).request().seal(b"body")[16:]
    with pytest.raises(RemoteProtocolError):
        other.open(frame)


def test_every_bit_is_authenticated() -> None:
    envelope = Envelope(outer_secret(BOB.id), SALT)
    sealed = envelope.request().seal(b"body")
    for position in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(RemoteProtocolError):
            Envelope(outer_secret(BOB.id), bytes(changed[:16])).request().open(bytes(changed[16:]))


def test_hint_fits_one_request() -> None:
    envelope = Envelope(outer_secret(BOB.id), SALT)
    frame = envelope.hint(b"t" * 16).seal(b"\1")
    assert envelope.hint(b"t" * 16).open(frame) == b"\1"
    for other in (envelope.hint(b"u" * 16), Envelope(outer_secret(BOB.id), bytes(16)).hint(b"t" * 16)):
        with pytest.raises(RemoteProtocolError):
            other.open(frame)


@pytest.mark.parametrize("suite", list(Suite))
def test_response(suite: Suite) -> None:
    frame = response_frame(suite, b"c" * 32).seal(b"body")
    assert response_frame(suite, b"c" * 32).sealed_bytes(frame) == len(frame) - 2
    assert response_frame(suite, b"c" * 32).open(frame) == b"body"
    with pytest.raises(RemoteProtocolError):
        response_frame(suite, b"d" * 32).open(frame)


@pytest.mark.parametrize("size", range(20))
def test_truncated(size: int) -> None:
    envelope = Envelope(outer_secret(BOB.id), SALT)
    with pytest.raises(RemoteProtocolError):
        envelope.request().open(envelope.request().seal(b"body")[16 : 16 + size])
