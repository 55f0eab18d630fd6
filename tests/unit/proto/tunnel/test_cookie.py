"""Rates and cookies."""

from __future__ import annotations

import random

from crust.proto.tunnel.constants import (
    ADDRESS_BURST,
    ADDRESSES_KEPT,
    COOKIE_REPLY_BURST,
    COOKIE_REPLY_RATE,
    COOKIE_SECONDS,
    HANDSHAKE_BURST,
    HANDSHAKE_RATE,
)
from crust.proto.tunnel.cookie import Admission, CookieJar, TokenBucket, address_bytes, prove
from crust.wire.tunnel import NO_PROOF

SALT = bytes(range(16))


def some_random() -> random.Random:
    return random.Random(1)


def test_bucket() -> None:
    bucket = TokenBucket(10.0, 3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.25) for _ in range(3)] == [True, True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_addresses() -> None:
    assert len(address_bytes("10.0.0.1")) == 4
    assert address_bytes("2001:db8::1") == address_bytes("2001:db8::ffff:2") == bytes.fromhex("20010db800000000")
    assert address_bytes("2001:db8:0:1::1") != address_bytes("2001:db8::1")
    assert address_bytes("fe80::1%eth0") == address_bytes("fe80::2")


class TestCookieJar:
    def test_bound_to_address_and_salt(self) -> None:
        jar = CookieJar(some_random().randbytes, 0.0)
        cookie = jar.cookie(b"here", 0.0)
        proof = prove(cookie, SALT)
        assert jar.accepts(proof, b"here", SALT, 0.0)
        assert not jar.accepts(proof, b"there", SALT, 0.0)
        assert not jar.accepts(proof, b"here", bytes(16), 0.0)
        assert not jar.accepts(NO_PROOF, b"here", SALT, 0.0)
        assert not jar.accepts(cookie, b"here", SALT, 0.0)

    def test_lifetime(self) -> None:
        jar = CookieJar(some_random().randbytes, 0.0)
        proof = prove(jar.cookie(b"here", 0.0), SALT)
        assert jar.accepts(proof, b"here", SALT, COOKIE_SECONDS - 1)
        assert jar.accepts(proof, b"here", SALT, COOKIE_SECONDS + 1)
        assert not jar.accepts(proof, b"here", SALT, 2 * COOKIE_SECONDS + 1)

    def test_nothing_is_left_after_a_long_silence(self) -> None:
        jar = CookieJar(some_random().randbytes, 0.0)
        proof = prove(jar.cookie(b"here", 0.0), SALT)
        assert not jar.accepts(proof, b"here", SALT, 2 * COOKIE_SECONDS)


class TestAdmission:
    def exhausted(self) -> Admission:
        admission = Admission(some_random().randbytes, 0.0)
        while admission.admits(NO_PROOF, "10.0.0.1", SALT, 0.0):
            pass
        return admission

    def test_rate(self) -> None:
        admission = Admission(some_random().randbytes, 0.0)
        admitted = sum(admission.admits(NO_PROOF, "10.0.0.1", SALT, at / 1000) for at in range(5000))
        assert HANDSHAKE_BURST + 4.9 * HANDSHAKE_RATE <= admitted <= HANDSHAKE_BURST + 5 * HANDSHAKE_RATE

    def test_a_cookie_admits(self) -> None:
        admission = self.exhausted()
        cookie = admission.cookie("10.0.0.1", 0.0)
        assert cookie is not None
        assert admission.admits(prove(cookie, SALT), "10.0.0.1", SALT, 0.0)
        assert not admission.admits(prove(cookie, SALT), "10.0.0.2", SALT, 0.0)

    def test_an_address_with_a_cookie_has_a_rate_too(self) -> None:
        admission = self.exhausted()
        cookie = admission.cookie("10.0.0.1", 0.0)
        assert cookie is not None
        proof = prove(cookie, SALT)
        assert sum(admission.admits(proof, "10.0.0.1", SALT, 0.0) for _ in range(1000)) == ADDRESS_BURST

    def test_replies_are_capped(self) -> None:
        admission = self.exhausted()
        given = sum(admission.cookie("10.0.0.1", at / 100_000) is not None for at in range(100_000))
        assert COOKIE_REPLY_BURST <= given <= COOKIE_REPLY_BURST + COOKIE_REPLY_RATE

    def test_addresses_are_capped(self) -> None:
        admission = self.exhausted()
        for number in range(ADDRESSES_KEPT + 500):
            host = f"10.1.{number >> 8}.{number & 255}"
            cookie = admission.cookie(host, float(number))
            assert cookie is not None
            while admission.admits(NO_PROOF, host, SALT, float(number)):
                pass
            assert admission.admits(prove(cookie, SALT), host, SALT, float(number))
        assert admission.tracked == ADDRESSES_KEPT
