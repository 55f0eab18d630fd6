"""Rates, cookies, and who gets one where there are not enough."""

from __future__ import annotations

import random

from crust.proto.tunnel.constants import (
    ADDRESS_BURST,
    ADDRESS_RATE,
    ADDRESSES_KEPT,
    COOKIE_AGAIN_RATE,
    COOKIE_GRACE,
    COOKIE_REPLY_BURST,
    COOKIE_REPLY_RATE,
    COOKIE_SECONDS,
    HANDSHAKE_BURST,
    HANDSHAKE_RATE,
    LOAD_SECONDS,
    PROVED_BURST,
    RETRANSMIT_SECONDS,
)
from crust.proto.tunnel.cookie import Admission, CookieJar, CookieQueue, Course, TokenBucket, address_bytes, prove

SALT = bytes(range(16))
NO_COOKIE = SALT + bytes(16)
HERE, THERE = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
FLOOD_RATE = 50_000


def some_random() -> random.Random:
    return random.Random(1)


def shown(cookie: bytes) -> bytes:
    return SALT + prove(cookie, SALT)


def test_bucket() -> None:
    bucket = TokenBucket(10.0, 3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.25) for _ in range(3)] == [True, True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_bucket_of_which_a_part_is_kept() -> None:
    bucket = TokenBucket(10.0, 4.0, 0.0)
    assert [bucket.take(0.0, 0.5) for _ in range(3)] == [True, True, False]
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]


def test_addresses() -> None:
    assert address_bytes("10.0.0.1") == bytes((10, 0, 0, 1))
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
        assert not jar.accepts(bytes(16), b"here", SALT, 0.0)
        assert not jar.accepts(cookie, b"here", SALT, 0.0)

    def test_lifetime(self) -> None:
        jar = CookieJar(some_random().randbytes, 0.0)
        proof = prove(jar.cookie(b"here", 0.0), SALT)
        assert jar.accepts(proof, b"here", SALT, COOKIE_SECONDS - 1)
        assert jar.accepts(proof, b"here", SALT, COOKIE_SECONDS + 1)
        assert jar.accepts(proof, b"here", SALT, COOKIE_SECONDS + COOKIE_GRACE)
        assert not jar.accepts(proof, b"here", SALT, COOKIE_SECONDS + COOKIE_GRACE + 1)

    def test_nothing_is_left_after_a_long_silence(self) -> None:
        jar = CookieJar(some_random().randbytes, 0.0)
        proof = prove(jar.cookie(b"here", 0.0), SALT)
        assert not jar.accepts(proof, b"here", SALT, 2 * COOKIE_SECONDS)


class TestAdmission:
    def loaded(self) -> Admission:
        admission = Admission(some_random().randbytes, 0.0)
        while admission.admits(0.0):
            pass
        return admission

    def test_rate(self) -> None:
        admission = Admission(some_random().randbytes, 0.0)
        admitted = sum(admission.admits(at / 1000) for at in range(5000))
        assert HANDSHAKE_BURST + 4.9 * HANDSHAKE_RATE <= admitted <= HANDSHAKE_BURST + 5 * HANDSHAKE_RATE

    def test_without_load_nobody_needs_a_cookie(self) -> None:
        admission = Admission(some_random().randbytes, 0.0)
        assert admission.course(NO_COOKIE, HERE, 0.0, shows=False) is Course.ANSWER
        assert admission.course(NO_COOKIE, HERE, 0.0, shows=True) is Course.ANSWER

    def test_under_load_everybody_does_until_few_ask(self) -> None:
        admission = self.loaded()
        now = 0.0
        while now < 10.0:  # too many go on asking
            now += 0.5 / HANDSHAKE_RATE
            assert admission.course(NO_COOKIE, HERE, now, shows=False) in (Course.COOKIE, Course.NONE)
        pause = 2.0 / HANDSHAKE_RATE
        courses = [admission.course(NO_COOKIE, HERE, now + at * pause, shows=False) for at in range(500)]
        ended = courses.index(Course.ANSWER)
        assert LOAD_SECONDS - 0.1 <= ended * pause <= LOAD_SECONDS + 0.1
        assert set(courses[ended:]) == {Course.ANSWER}

    def test_a_cookie_admits(self) -> None:
        admission = self.loaded()
        cookie = admission.cookie(HERE, 0.0)
        assert admission.course(shown(cookie), HERE, 0.0, shows=True) is Course.PROVED
        assert admission.admits_proved(HERE, 0.0)
        assert admission.course(shown(cookie), HERE, 0.0, shows=False) is Course.COOKIE
        assert admission.course(shown(cookie), THERE, 0.0, shows=True) is Course.COOKIE

    def test_an_address_with_a_cookie_has_a_rate_too(self) -> None:
        admission = self.loaded()
        assert sum(admission.admits_proved(HERE, 0.0) for _ in range(1000)) == ADDRESS_BURST
        assert sum(admission.admits_proved(HERE, 1.0) for _ in range(1000)) == ADDRESS_RATE

    def test_all_of_them_have_one_and_leave_a_part_to_newcomers(self) -> None:
        admission = self.loaded()
        hosts = [bytes((10, 2, 0, number)) for number in range(60)]
        admitted = sum(admission.admits_proved(host, 0.0) for _ in range(100) for host in hosts)
        assert admitted <= PROVED_BURST
        later = 4.0
        while admission.admits_proved(random.Random(2).choice(hosts), later):
            pass
        busy = sum(admission.admits_proved(host, later + at / 100) for at in range(100) for host in hosts)
        assert busy <= 2 * PROVED_BURST
        assert admission.admits_proved(THERE, later + 1)

    def test_addresses_are_capped(self) -> None:
        admission = self.loaded()
        for number in range(ADDRESSES_KEPT + 500):
            assert admission.admits_proved(number.to_bytes(4, "big"), float(number))
        assert admission.tracked == ADDRESSES_KEPT


class TestCookieQueue:
    """Cookies under a flood; who comes for the first time sends again as a dial does."""

    def flood(self, queue: CookieQueue, sources: list[bytes], began: float, seconds: float) -> int:
        first = round(began * FLOOD_RATE)  # they come one after the other, whoever else asks in between
        return sum(
            queue.takes(sources[at % len(sources)], at / FLOOD_RATE)
            for at in range(first, first + round(seconds * FLOOD_RATE))
        )

    def waited(self, queue: CookieQueue, sources: list[bytes], newcomer: bytes, began: float) -> float:
        """How long a newcomer waits for its cookie."""
        now = asks = began
        for pause in RETRANSMIT_SECONDS:
            self.flood(queue, sources, now, asks - now)
            now = asks
            if queue.takes(newcomer, now):
                return now - began
            asks = now + pause
        return 99.0

    def test_all_together_are_bounded(self) -> None:
        given = self.flood(CookieQueue(0.0), [at.to_bytes(4, "big") for at in range(65_536)], 0.0, 2.0)
        assert COOKIE_REPLY_RATE <= given <= COOKIE_REPLY_BURST + 2 * COOKIE_REPLY_RATE + 3 * COOKIE_AGAIN_RATE

    def test_one_source_leaves_something_to_others(self) -> None:
        queue = CookieQueue(0.0)
        self.flood(queue, [HERE], 0.0, 1.0)
        given = [queue.takes(at.to_bytes(4, "big"), 1.0) for at in range(1000)]
        assert sum(given) > 950  # a few share a place

    def test_newcomers_beside_some_thousand_sources(self) -> None:
        sources = [at.to_bytes(4, "big") for at in range(4096)]
        queue = CookieQueue(0.0)
        self.flood(queue, sources, 0.0, 2.0)
        waits = [self.waited(queue, sources, bytes((10, 9, 0, number)), 2.0 + 3 * number) for number in range(5)]
        assert max(waits) < 1.0

    def test_newcomers_beside_sources_that_are_ever_new(self) -> None:
        chance = some_random()
        queue = CookieQueue(0.0)
        sources = [chance.randbytes(4) for _ in range(FLOOD_RATE * 4)]
        self.flood(queue, sources, 0.0, 1.0)
        waits = [self.waited(queue, sources, bytes((10, 9, 0, number)), 1.0 + 4 * number) for number in range(5)]
        assert max(waits) < 1.0

    def test_who_was_given_one_waits_until_it_is_shown(self) -> None:
        queue = CookieQueue(0.0)
        while queue.takes(HERE, 0.0):
            pass
        assert queue.takes(THERE, 0.0)
        assert not queue.takes(HERE, 0.0)
        queue.used(HERE)
        assert queue.takes(HERE, 0.0)  # somebody else behind the same NAT

    def test_its_memory_does_not_grow(self) -> None:
        queue = CookieQueue(0.0)
        assert not queue._asked
        self.flood(queue, [HERE], 0.0, 0.01)
        before = len(queue._asked) + len(queue._given)
        self.flood(queue, [at.to_bytes(8, "big") for at in range(5000)], 1.0, 0.1)
        assert len(queue._asked) + len(queue._given) == before <= 1 << 20
