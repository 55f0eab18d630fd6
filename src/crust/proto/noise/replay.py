"""A bounded memory of recent ephemeral keys, which drops copies of a first message (PROTOCOL 2)."""

from __future__ import annotations

from typing import Final

__all__ = ["EphemeralCache"]

# IK's first message can be replayed for ever, and a replay gains nothing before the first transport record; the cache
# only spares the work for floods of one copied message. So it may forget: the oldest goes first, after two minutes at
# the latest. 8192 entries are 1.3 MiB.
_CAPACITY: Final = 8192
_LIFETIME: Final = 120.0


class EphemeralCache:
    """Ephemeral keys of authentic first messages, for a while.

    Args:
        capacity: how many to keep.
        lifetime: for how many seconds.
    """

    __slots__ = ("_capacity", "_lifetime", "_seen")

    def __init__(self, capacity: int = _CAPACITY, lifetime: float = _LIFETIME) -> None:
        self._capacity = capacity
        self._lifetime = lifetime
        self._seen: dict[bytes, float] = {}  # in the order of arrival

    def __len__(self) -> int:
        return len(self._seen)

    def __contains__(self, ephemeral: bytes) -> bool:
        return ephemeral in self._seen

    def expire(self, now: float) -> None:
        """Forget what is older than the lifetime."""
        while self._seen:
            oldest = next(iter(self._seen))
            if now - self._seen[oldest] < self._lifetime:
                return
            del self._seen[oldest]

    def add(self, ephemeral: bytes, now: float) -> None:
        """Remember a key; the oldest makes room."""
        self.expire(now)
        if len(self._seen) >= self._capacity:
            del self._seen[next(iter(self._seen))]
        self._seen[ephemeral] = now
