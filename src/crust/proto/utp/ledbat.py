"""LEDBAT (RFC 6817): uses what others leave, by holding the delay that it adds near 100 ms."""

from __future__ import annotations

from collections import deque

from crust.proto.utp.congestion import AckSample
from crust.proto.utp.constants import (
    INITIAL_WINDOW_SEGMENTS,
    LEDBAT_ALLOWED_INCREASE_SEGMENTS,
    LEDBAT_BASE_HISTORY_MINUTES,
    LEDBAT_CURRENT_FILTER,
    LEDBAT_DECREASE,
    LEDBAT_GAIN,
    LEDBAT_MIN_CWND_SEGMENTS,
    LEDBAT_TARGET,
    MAX_CWND,
)

__all__ = ["Ledbat"]

_WRAP = 1 << 32


class Ledbat:
    """The window follows the distance between the delay and its target.

    Delays are differences between two clocks that run modulo 2^32 microseconds, so only their differences mean
    something: each is kept relative to the first one.

    Attributes:
        cwnd: bytes that may be on their way.
        queueing_delay: the delay that is taken for ours, in seconds.
    """

    __slots__ = (
        "_base",
        "_before",
        "_current",
        "_cwnd",
        "_minute",
        "_segment",
        "_ssthresh",
        "_zero",
        "cwnd",
        "queueing_delay",
    )

    def __init__(self, segment: int) -> None:
        self._segment = segment
        self._cwnd = float(INITIAL_WINDOW_SEGMENTS * segment)
        self.cwnd = int(self._cwnd)
        self.queueing_delay = 0.0
        self._ssthresh = float("inf")
        self._zero: int | None = None
        self._base: deque[int] = deque(maxlen=LEDBAT_BASE_HISTORY_MINUTES)
        self._minute = 0.0
        self._current: deque[int] = deque(maxlen=LEDBAT_CURRENT_FILTER)
        self._before: tuple[float, float] | None = None

    @property
    def slow_start(self) -> bool:
        """Whether the window still doubles each round trip."""
        return self._cwnd < self._ssthresh

    def set_segment(self, payload_bytes: int) -> None:
        """Packets now carry so many bytes."""
        self._segment = payload_bytes
        self._set(self._cwnd)

    def on_ack(self, sample: AckSample) -> None:
        """Something arrived: grow while the queue is short, shrink while it is long (RFC 6817 §2.4.2)."""
        if sample.delay_us is not None:
            self._add_delay(sample.delay_us, sample.now)
        off_target = (LEDBAT_TARGET - self.queueing_delay) / LEDBAT_TARGET
        if self.slow_start:
            # As libutp and LEDBAT++ do: leave it when three quarters of the target are used up, not at a loss.
            if self.queueing_delay > LEDBAT_TARGET * 3 / 4:
                self._ssthresh = self._cwnd
            elif sample.limited:
                self._set(self._cwnd + sample.delivered)
                return
        if sample.recovering or (off_target > 0 and not sample.limited):
            return
        if off_target >= 0:
            gain = LEDBAT_GAIN * off_target * sample.delivered * self._segment / self._cwnd
            allowed = sample.in_flight + LEDBAT_ALLOWED_INCREASE_SEGMENTS * self._segment
            self._set(min(self._cwnd + gain, max(allowed, self._cwnd)))
        else:
            # RFC 6817 takes back at most what it gave, a packet a round trip: minutes on a fast path. As LEDBAT++
            # does, a share of the window, at most half of it in a round trip.
            self._set(self._cwnd - min(-off_target * LEDBAT_DECREASE, 0.5) * sample.delivered)

    def _add_delay(self, delay_us: int, now: float) -> None:
        if self._zero is None:
            self._zero = delay_us
        # Half of the range either way: clocks that drift apart by 35 minutes are not told from a jump.
        delay = (delay_us - self._zero + _WRAP // 2) % _WRAP - _WRAP // 2
        if not self._base or now >= self._minute:
            self._minute = now + 60.0
            self._base.append(delay)
        elif delay < self._base[-1]:
            self._base[-1] = delay
        self._current.append(delay)
        self.queueing_delay = (min(self._current) - min(self._base)) / 1e6

    def on_unlimited_ack(self) -> bool:
        """Delays count all the same."""
        return False

    def on_loss(self, now: float, in_flight: int) -> None:
        """A packet is lost: halve."""
        self._before = (self._cwnd, self._ssthresh)
        self._set(self._cwnd / 2)
        self._ssthresh = self._cwnd

    def on_undo(self) -> None:
        """The last loss was none."""
        if self._before is not None:
            cwnd, self._ssthresh = self._before
            self._set(max(cwnd, self._cwnd))
            self._before = None

    def on_timeout(self, now: float, in_flight: int) -> None:
        """Start again from one packet."""
        self._before = (self._cwnd, self._ssthresh)
        self._ssthresh = max(self._cwnd / 2, LEDBAT_MIN_CWND_SEGMENTS * self._segment)
        self._cwnd = float(self._segment)
        self.cwnd = self._segment

    def _set(self, cwnd: float) -> None:
        self._cwnd = min(max(cwnd, LEDBAT_MIN_CWND_SEGMENTS * self._segment), MAX_CWND)
        self.cwnd = int(self._cwnd)
