"""Round-trip time and retransmission time-out (RFC 6298), and the least round trip of late."""

from __future__ import annotations

from crust.proto.utp.constants import (
    INITIAL_RTO,
    MAX_RTO,
    MIN_RTO,
    MIN_RTT_WINDOW,
    RTT_ALPHA,
    RTT_BETA,
    RTT_VARIANCE_WEIGHT,
)

__all__ = ["RttEstimator"]


class RttEstimator:
    """Smoothed round trip, its variation, the time-out that follows, and the least round trip.

    Attributes:
        srtt: smoothed round trip in seconds; 0 before the first sample.
        rttvar: its mean deviation.
        rto: time-out without back-off.
        min_rtt: the least sample of the last 30 to 60 seconds; 0 before the first.
        latest: the last sample.
    """

    __slots__ = ("_current", "_previous", "_switch", "latest", "min_rtt", "rto", "rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt = self.rttvar = self.min_rtt = self.latest = 0.0
        self.rto = INITIAL_RTO
        self._current = self._previous = MAX_RTO
        self._switch = 0.0

    def add(self, sample: float, now: float) -> None:
        """Take in the round trip of a packet that was sent once."""
        self.latest = sample
        if not self.srtt:
            self.srtt, self.rttvar = sample, sample / 2
        else:
            self.rttvar += RTT_BETA * (abs(self.srtt - sample) - self.rttvar)
            self.srtt += RTT_ALPHA * (sample - self.srtt)
        self.rto = min(max(self.srtt + RTT_VARIANCE_WEIGHT * self.rttvar, MIN_RTO), MAX_RTO)
        if now >= self._switch:
            # Two halves of a window slide over the samples, in place of all of them.
            self._switch = now + MIN_RTT_WINDOW
            self._previous, self._current = self._current, sample
        elif sample < self._current:
            self._current = sample
        self.min_rtt = self._current if self._current < self._previous else self._previous
