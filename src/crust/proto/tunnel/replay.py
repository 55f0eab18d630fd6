"""Which counters have been seen: a sliding window of 8192 (PROTOCOL 8), as the bits of one integer."""

from __future__ import annotations

from typing import Final

from crust.proto.tunnel.constants import REPLAY_WINDOW

__all__ = ["ReplayWindow"]

_MASK: Final = (1 << REPLAY_WINDOW) - 1


class ReplayWindow:
    """Counters of one key; asked before a datagram is opened, told after it proved authentic.

    Attributes:
        highest: the highest counter so far, -1 for none.
    """

    __slots__ = ("_seen", "highest")

    def __init__(self) -> None:
        self.highest = -1
        self._seen = 0  # bit i: counter `highest` - i

    def is_fresh(self, counter: int) -> bool:
        """Whether a counter was not seen, and is not too old to tell."""
        behind = self.highest - counter
        return behind < 0 or (behind < REPLAY_WINDOW and not self._seen >> behind & 1)

    def add(self, counter: int) -> None:
        """Remember a counter that is fresh."""
        ahead = counter - self.highest
        if ahead > 0:
            self._seen = (self._seen << ahead | 1) & _MASK if ahead < REPLAY_WINDOW else 1
            self.highest = counter
        else:
            self._seen |= 1 << -ahead

    def add_run(self, first: int, count: int) -> None:
        """Remember `count` consecutive counters, all above the highest so far."""
        ahead = first + count - 1 - self.highest
        ones = (1 << count) - 1
        self._seen = (self._seen << ahead | ones) & _MASK if ahead < REPLAY_WINDOW else ones & _MASK
        self.highest = first + count - 1
