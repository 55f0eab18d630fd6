"""CUBIC (RFC 9438) in bytes, with HyStart++ (RFC 9406) and byte counting."""

from __future__ import annotations

from crust.proto.utp.congestion import AckSample, HyStart
from crust.proto.utp.constants import CUBIC_BETA, CUBIC_C, INITIAL_WINDOW_SEGMENTS, MAX_CWND

__all__ = ["Cubic"]

# RFC 9438 §4.3: the increase that gives Reno's share with CUBIC's smaller reduction.
_RENO_ALPHA = 3 * (1 - CUBIC_BETA) / (1 + CUBIC_BETA)
_MIN_CWND_SEGMENTS = 2


class Cubic:
    """The window as a cubic function of the time since the last loss, and never below what Reno would have.

    Attributes:
        cwnd: bytes that may be on their way.
    """

    __slots__ = (
        "_before",
        "_cwnd",
        "_epoch",
        "_hystart",
        "_k",
        "_origin",
        "_prior",
        "_segment",
        "_ssthresh",
        "_w_est",
        "_w_max",
        "cwnd",
    )

    def __init__(self, segment: int) -> None:
        self._segment = segment
        self._cwnd = float(INITIAL_WINDOW_SEGMENTS * segment)
        self.cwnd = int(self._cwnd)
        self._ssthresh = float("inf")
        self._hystart = HyStart()
        self._epoch: float | None = None  # start of the present stage of avoidance
        self._w_max = self._origin = self._prior = self._w_est = 0.0  # bytes
        self._k = 0.0
        self._before: tuple[float, float, float] | None = None

    @property
    def slow_start(self) -> bool:
        """Whether the window still doubles each round trip."""
        return self._cwnd < self._ssthresh

    def set_segment(self, payload_bytes: int) -> None:
        """Packets now carry so many bytes."""
        self._segment = payload_bytes
        self._set(max(self._cwnd, _MIN_CWND_SEGMENTS * payload_bytes))

    def on_ack(self, sample: AckSample) -> None:
        """Something arrived: grow, when the window is what limits."""
        if self.slow_start:
            # A later slow start, after a time-out, ends at its threshold (RFC 9406 §4.2 is for the initial one).
            if self._ssthresh == float("inf") and self._hystart.finished(sample):
                self._ssthresh = self._cwnd
            elif sample.limited:
                self._set(self._cwnd + sample.delivered / self._hystart.growth_divisor)
                return
        if sample.recovering or not sample.limited:
            if self._epoch is not None and not sample.limited:
                # RFC 9438 §5.8: time without demand does not count.
                self._epoch = None
            return
        self._avoid(sample)

    def on_unlimited_ack(self) -> bool:
        """Time without demand does not count (RFC 9438 §5.8), nor do the round trips of a path that is not filled."""
        self._epoch = None
        return True

    def _avoid(self, sample: AckSample) -> None:
        """Congestion avoidance (RFC 9438 §4.2 to §4.5)."""
        segment = self._segment
        if self._epoch is None:
            self._epoch = sample.now
            self._w_est = self._cwnd
            self._origin = max(self._w_max, self._cwnd)
            self._k = ((self._origin - self._cwnd) / segment / CUBIC_C) ** (1 / 3)
        elapsed = sample.now - self._epoch
        alpha = 1.0 if self._w_est >= self._prior else _RENO_ALPHA
        self._w_est += alpha * segment * sample.delivered / self._cwnd
        if self._curve(elapsed) < self._w_est:
            self._set(max(self._w_est, self._cwnd))
            return
        target = min(max(self._curve(elapsed + sample.srtt), self._cwnd), 1.5 * self._cwnd)
        self._set(self._cwnd + (target - self._cwnd) * sample.delivered / self._cwnd)

    def _curve(self, elapsed: float) -> float:
        return self._origin + CUBIC_C * (elapsed - self._k) ** 3 * self._segment

    def on_loss(self, now: float, in_flight: int) -> None:
        """A packet is lost: reduce, and aim for where we were (RFC 9438 §4.6, §4.7)."""
        self._before = (self._cwnd, self._ssthresh, self._w_max)
        self._reduce()
        self._set(self._ssthresh)

    def _reduce(self) -> None:
        self._prior = self._cwnd
        shrinking = self._cwnd < self._w_max
        self._w_max = self._cwnd * (1 + CUBIC_BETA) / 2 if shrinking else self._cwnd
        self._ssthresh = max(self._cwnd * CUBIC_BETA, _MIN_CWND_SEGMENTS * self._segment)
        self._epoch = None

    def on_undo(self) -> None:
        """The last loss was none (RFC 9438 §4.9)."""
        if self._before is not None:
            cwnd, self._ssthresh, self._w_max = self._before
            self._set(max(cwnd, self._cwnd))
            self._before, self._epoch = None, None

    def on_timeout(self, now: float, in_flight: int) -> None:
        """Start again from one packet (RFC 9438 §4.8)."""
        self._before = (self._cwnd, self._ssthresh, self._w_max)
        self._reduce()
        self._set(self._segment)

    def _set(self, cwnd: float) -> None:
        self._cwnd = min(cwnd, MAX_CWND)
        self.cwnd = int(self._cwnd)
