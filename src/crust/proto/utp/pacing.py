"""Pacing: a window is spread over the round trip, in bursts that are worth a system call."""

from __future__ import annotations

from crust.proto.utp.constants import (
    INITIAL_WINDOW_SEGMENTS,
    PACING_GAIN,
    PACING_GAIN_SLOW_START,
    PACING_MAX_CREDIT,
    PACING_QUANTUM,
)

__all__ = ["Pacer"]


class Pacer:
    """Bytes that may leave now, filled at the rate of the window.

    Attributes:
        rate: bytes a second; 0 before the first round trip is known: no limit.
    """

    __slots__ = ("_credit", "_filled", "_least", "rate")

    def __init__(self, segment: int, now: float) -> None:
        self.rate = 0.0
        self._least = INITIAL_WINDOW_SEGMENTS * segment
        self._credit = float(self._least)
        self._filled = now

    def set_rate(self, cwnd: int, srtt: float, *, slow_start: bool) -> None:
        """Follow the window."""
        rate = (PACING_GAIN_SLOW_START if slow_start else PACING_GAIN) * cwnd / srtt
        if self._credit < 0 and rate < self.rate:
            self._credit *= rate / self.rate  # a debt is a time to wait, which does not grow as the rate falls
        self.rate = rate

    def budget(self, now: float) -> float:
        """Bytes that may leave now."""
        rate = self.rate
        if not rate:
            return float("inf")
        self._credit = min(self._credit + rate * (now - self._filled), self._least + rate * PACING_MAX_CREDIT)
        self._filled = now
        return self._credit

    def spend(self, size: int) -> None:
        """Bytes left."""
        if self.rate:
            self._credit -= size

    def burst(self, segment: int) -> float:
        """What is worth waiting for: a millisecond's worth, at least two packets."""
        return min(max(self.rate * PACING_QUANTUM, 2 * segment), self._least)
