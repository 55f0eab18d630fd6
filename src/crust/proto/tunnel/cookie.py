"""Protection of a responder under load: rates, and cookies that prove an address without any state (PROTOCOL 5)."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

from crust.crypto.aead import mac
from crust.proto.tunnel.constants import (
    ADDRESS_BURST,
    ADDRESS_RATE,
    ADDRESSES_KEPT,
    COOKIE_REPLY_BURST,
    COOKIE_REPLY_RATE,
    COOKIE_SECONDS,
    HANDSHAKE_BURST,
    HANDSHAKE_RATE,
)
from crust.wire.tunnel import COOKIE_BYTES, NO_PROOF

__all__ = ["Admission", "CookieJar", "TokenBucket", "address_bytes", "prove"]


def address_bytes(host: str) -> bytes:
    """What a cookie is bound to: the IPv4 address, or the /64 of the IPv6 one, of which a subscriber has all."""
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    return packed[:8] if len(packed) == 16 else packed


def prove(cookie: bytes, salt: bytes) -> bytes:
    """What an initiator puts into message 1 to show that it got a cookie; good for that message only."""
    return mac(cookie, salt)[:COOKIE_BYTES]


class TokenBucket:
    """Counts what may happen `rate` times a second, `burst` times at once."""

    __slots__ = ("_burst", "_filled", "_rate", "tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._filled = now
        self.tokens = burst

    def take(self, now: float) -> bool:
        """Whether it may happen now; then it is counted."""
        self.tokens = min(self.tokens + (now - self._filled) * self._rate, self._burst)
        self._filled = now
        if self.tokens < 1.0:
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
        return mac(self._secret, address)[:COOKIE_BYTES]

    def accepts(self, proof: bytes, address: bytes, salt: bytes, now: float) -> bool:
        """Whether a message 1 with this salt proves that its sender got a cookie at this address."""
        self._turn(now)
        # Not compared in constant time: a guess costs a message and gains one handshake.
        return proof != NO_PROOF and any(
            proof == prove(mac(secret, address)[:COOKIE_BYTES], salt) for secret in (self._secret, self._previous)
        )

    def _turn(self, now: float) -> None:
        age = now - self._changed
        if age >= COOKIE_SECONDS:
            self._previous = self._secret if age < 2 * COOKIE_SECONDS else self._random(32)
            self._secret = self._random(32)
            self._changed = now


class Admission:
    """Decides what a message 1 with an authentic envelope gets: an answer, a cookie, or nothing.

    Args:
        random: gives random bytes.
        now: the present time.
    """

    __slots__ = ("_addresses", "_jar", "_rate", "_replies")

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self._jar = CookieJar(random, now)
        self._rate = TokenBucket(HANDSHAKE_RATE, HANDSHAKE_BURST, now)
        self._replies = TokenBucket(COOKIE_REPLY_RATE, COOKIE_REPLY_BURST, now)
        self._addresses: OrderedDict[bytes, TokenBucket] = OrderedDict()

    def admits(self, proof: bytes, host: str, salt: bytes, now: float) -> bool:
        """Whether a handshake may begin."""
        if self._rate.take(now):
            return True
        if proof == NO_PROOF:
            return False
        address = address_bytes(host)
        return self._jar.accepts(proof, address, salt, now) and self._address(address, now).take(now)

    def cookie(self, host: str, now: float) -> bytes | None:
        """The cookie to send to who was not admitted; None when too many were sent."""
        return self._jar.cookie(address_bytes(host), now) if self._replies.take(now) else None

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
