"""Protection of a responder under load: rates, and cookies that prove an address without any state (PROTOCOL 5)."""

from __future__ import annotations

import enum
import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2s
from typing import Final

from crust.proto.noise.envelope import SALT_BYTES
from crust.proto.tunnel.constants import (
    ADDRESS_BURST,
    ADDRESS_RATE,
    ADDRESSES_KEPT,
    ASKED_SECONDS,
    COOKIE_AGAIN_RATE,
    COOKIE_GRACE,
    COOKIE_REPLY_BURST,
    COOKIE_REPLY_RATE,
    COOKIE_SECONDS,
    GIVEN_SECONDS,
    HANDSHAKE_BURST,
    HANDSHAKE_RATE,
    LOAD_SECONDS,
    PROVED_BURST,
    PROVED_RATE,
)
from crust.wire.tunnel import COOKIE_BYTES, PROOF_BYTES

__all__ = ["Admission", "CookieJar", "CookieQueue", "Course", "TokenBucket", "address_bytes", "prove"]

_PLACES: Final = 1 << 19
_PERIODS: Final = 255  # what a byte counts; 0 stands for never


def address_bytes(host: str) -> bytes:
    """What a cookie is bound to: the IPv4 address, or the /64 of the IPv6 one, of which a subscriber has all."""
    if ":" not in host:
        return bytes(map(int, host.split(".")))  # a tenth of what `ipaddress` takes
    return ipaddress.ip_address(host.partition("%")[0]).packed[:8]


def prove(cookie: bytes, salt: bytes) -> bytes:
    """What an initiator puts into message 1 to show that it got a cookie; good for that salt only."""
    return blake2s(salt, key=cookie, digest_size=PROOF_BYTES).digest()


class TokenBucket:
    """Counts what may happen `rate` times a second, `burst` times at once."""

    __slots__ = ("_burst", "_filled", "_rate", "tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._filled = now
        self.tokens = burst

    def take(self, now: float, keep: float = 0.0) -> bool:
        """Whether it may happen now; then it is counted.

        Args:
            now: the present time.
            keep: what others should find there afterwards, a part of the burst.
        """
        self.tokens = min(self.tokens + (now - self._filled) * self._rate, self._burst)
        self._filled = now
        if self.tokens < 1.0 + keep * self._burst:
            return False
        self.tokens -= 1.0
        return True


class CookieJar:
    """Makes cookies and recognises them, out of a secret that changes.

    Args:
        random: gives random bytes.
        now: the present time.
    """

    __slots__ = ("_changed", "_previous", "_random", "_secret")

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self._random = random
        self._secret = random(32)
        self._previous = random(32)
        self._changed = now

    def cookie(self, address: bytes, now: float) -> bytes:
        """The cookie of an address."""
        self._turn(now)
        return _make(self._secret, address)

    def accepts(self, proof: bytes, address: bytes, salt: bytes, now: float) -> bool:
        """Whether a message 1 with this salt proves that its sender got a cookie at this address."""
        self._turn(now)
        # Not compared in constant time: a guess costs a message and gains one handshake.
        if proof == prove(_make(self._secret, address), salt):
            return True
        return now < self._changed + COOKIE_GRACE and proof == prove(_make(self._previous, address), salt)

    def _turn(self, now: float) -> None:
        age = now - self._changed
        if age >= COOKIE_SECONDS:
            self._previous = self._secret if age < COOKIE_SECONDS + COOKIE_GRACE else self._random(32)
            self._secret = self._random(32)
            self._changed = now


def _make(secret: bytes, address: bytes) -> bytes:
    return blake2s(address, key=secret, digest_size=COOKIE_BYTES).digest()


class CookieQueue:
    """Who is answered with a cookie where more ask than can be: first who has asked before and has none.

    Who invents a new source for each request never asks twice, and who has a few thousand of them has got his cookies:
    both leave something to who sends a request again because it was not answered. Addresses are hashed into a fixed
    number of places, so this holds no state that grows; two that share a place now and then do no harm.

    Args:
        now: the present time.
    """

    __slots__ = ("_asked", "_given", "_more", "_replies")

    def __init__(self, now: float) -> None:
        self._replies = TokenBucket(COOKIE_REPLY_RATE, COOKIE_REPLY_BURST, now)
        self._more = TokenBucket(COOKIE_AGAIN_RATE, COOKIE_AGAIN_RATE, now)
        # Each place holds the number of the period in which it happened last. Only who is under load needs the memory.
        self._asked = bytearray()
        self._given = bytearray()

    def takes(self, address: bytes, now: float) -> bool:
        """Whether a request of an address gets a cookie now; then it is counted."""
        if not self._asked:
            self._asked, self._given = bytearray(_PLACES), bytearray(_PLACES)
        place = _place(address)
        shift = place / _PLACES  # places grow old one after the other, not all at once
        asking = int(now / ASKED_SECONDS + shift) % _PERIODS + 1
        giving = int(now / GIVEN_SECONDS + shift) % _PERIODS + 1
        if _is_recent(self._given[place], giving):
            return self._more.take(now)
        keep = 0.0 if _is_recent(self._asked[place], asking) else 0.25
        self._asked[place] = asking
        if not self._replies.take(now, keep):
            return False
        self._given[place] = giving
        return True

    def used(self, address: bytes) -> None:
        """A cookie was shown: others may come from there, as behind a NAT, and need their own."""
        if self._given:
            self._given[_place(address)] = 0


def _place(address: bytes) -> int:
    # Python keys this hash for each process, so nobody can tell who shares a place with whom.
    return hash(address) % _PLACES


def _is_recent(then: int, period: int) -> bool:
    """Whether it was in this period or the one before."""
    return then != 0 and (period - then) % _PERIODS <= 1


class Course(enum.Enum):
    """How a message 1 is dealt with."""

    COPY = "as one that has come before, of a handshake under way"
    ANSWER = "as long as the rate lasts: see `Admission.admits`"
    PROVED = "its sender has shown a cookie, and not too often"
    COOKIE = "with a cookie, if it is authentic"
    NONE = "not at all: too many others came at the same time"


class Admission:
    """Decides what a message 1 gets: an answer, a cookie, or nothing.

    Args:
        random: gives random bytes.
        now: the present time.
    """

    __slots__ = ("_addresses", "_jar", "_loaded_until", "_proved", "_queue", "_rate")

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self._jar = CookieJar(random, now)
        self._rate = TokenBucket(HANDSHAKE_RATE, HANDSHAKE_BURST, now)
        self._proved = TokenBucket(PROVED_RATE, PROVED_BURST, now)
        self._queue = CookieQueue(now)
        self._loaded_until = now
        self._addresses: OrderedDict[bytes, TokenBucket] = OrderedDict()

    def course(self, start: bytes, address: bytes, now: float, *, shows: bool) -> Course:
        """How to deal with a message 1, before it is opened.

        Args:
            start: its salt and proof.
            address: from where it comes; see `address_bytes`.
            now: the present time.
            shows: whether it says that the proof is one.
        """
        if now >= self._loaded_until:
            return Course.ANSWER
        if shows and self._jar.accepts(start[SALT_BYTES:], address, start[:SALT_BYTES], now):
            self._queue.used(address)
            return Course.PROVED if self.admits_proved(address, now) else Course.NONE
        if self._queue.takes(address, now):
            self.admits(now)  # the load lasts as long as so many ask
            return Course.COOKIE
        self._loaded_until = now + LOAD_SECONDS
        return Course.NONE

    def admits(self, now: float) -> bool:
        """Whether a handshake may begin without a cookie. If not, none may until there were few for a while."""
        if self._rate.take(now):
            return True
        self._loaded_until = now + LOAD_SECONDS
        return False

    def admits_proved(self, address: bytes, now: float) -> bool:
        """Whether a handshake may begin at an address that has shown a cookie; those with few of late go first."""
        own = self._address(address, now)
        return own.take(now) and self._proved.take(now, 0.0 if own.tokens >= ADDRESS_BURST / 2 else 0.5)

    def cookie(self, address: bytes, now: float) -> bytes:
        """The cookie of an address."""
        return self._jar.cookie(address, now)

    @property
    def tracked(self) -> int:
        """Addresses that have a rate of their own."""
        return len(self._addresses)

    def _address(self, address: bytes, now: float) -> TokenBucket:
        """The bucket of an address; only who has shown a cookie has one."""
        found = self._addresses.get(address)
        if found is None:
            found = self._addresses[address] = TokenBucket(ADDRESS_RATE, ADDRESS_BURST, now)
            if len(self._addresses) > ADDRESSES_KEPT:
                self._addresses.popitem(last=False)
        else:
            self._addresses.move_to_end(address)
        return found
