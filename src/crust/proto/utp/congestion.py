"""Congestion control: the interface, and what the controllers share.

A controller owns `cwnd`, the bytes that may be on their way. It hears of acknowledgements, losses and time-outs, and
never sees a packet. What BBR would need beyond that, rates of delivery, would be one more field of `AckSample`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from crust.proto.utp.constants import (
    HYSTART_CSS_GROWTH_DIVISOR,
    HYSTART_CSS_ROUNDS,
    HYSTART_MAX_RTT_THRESHOLD,
    HYSTART_MIN_RTT_DIVISOR,
    HYSTART_MIN_RTT_THRESHOLD,
    HYSTART_RTT_SAMPLES,
)

__all__ = ["AckSample", "CongestionControl", "HyStart"]


@dataclass(slots=True)
class AckSample:
    """What an acknowledgement says, for a controller.

    Attributes:
        now: the present time.
        delivered: bytes newly known to have arrived.
        in_flight: bytes on their way before it came.
        rtt: round trip of the newest packet that it covers; 0 for unknown.
        srtt: smoothed round trip.
        min_rtt: least round trip of late.
        delay_us: the peer's clock at the arrival of our last packet less our clock at its departure, modulo 2^32;
            None for unknown.
        limited: the window, and not the application, kept us from sending more.
        recovering: losses of an earlier window are being mended.
        round_start: what was sent at the last start of a round has been acknowledged.
    """

    now: float
    delivered: int
    in_flight: int
    rtt: float
    srtt: float
    min_rtt: float
    delay_us: int | None
    limited: bool
    recovering: bool
    round_start: bool


class CongestionControl(Protocol):
    """What the sender asks of a controller.

    Attributes:
        cwnd: bytes that may be on their way.
        slow_start: the window still grows by what is acknowledged.
    """

    cwnd: int

    @property
    def slow_start(self) -> bool:
        """Whether the window still doubles each round trip."""

    def on_ack(self, sample: AckSample) -> None:
        """Something arrived."""

    def on_unlimited_ack(self) -> bool:
        """Something arrived while the application, not the window, kept us from sending more: nothing may grow.

        Returns:
            Whether this was enough; else `on_ack` follows.
        """

    def on_loss(self, now: float, in_flight: int) -> None:
        """A packet sent since the last reduction is lost: at most once a round trip."""

    def on_undo(self) -> None:
        """The last loss was none: everything taken for lost arrived."""

    def on_timeout(self, now: float, in_flight: int) -> None:
        """Nothing arrived for a whole time-out."""

    def set_segment(self, payload_bytes: int) -> None:
        """Packets now carry so many bytes."""


class HyStart:
    """When to leave slow start before losses say so: HyStart++ (RFC 9406).

    Attributes:
        conservative: growing slowly, to see whether the rise of the round trip was a passing one.
    """

    __slots__ = ("_baseline", "_css_rounds", "_last_min", "_round_min", "_samples", "conservative")

    def __init__(self) -> None:
        self.conservative = False
        self._css_rounds = 0
        self._baseline = 0.0
        self._last_min = self._round_min = float("inf")
        self._samples = 0

    @property
    def growth_divisor(self) -> int:
        """By how much growth is slowed."""
        return HYSTART_CSS_GROWTH_DIVISOR if self.conservative else 1

    def finished(self, sample: AckSample) -> bool:
        """Take in a sample; True when slow start should end now."""
        if sample.round_start:
            self._last_min, self._round_min, self._samples = self._round_min, float("inf"), 0
            if self.conservative:
                self._css_rounds += 1
                if self._css_rounds >= HYSTART_CSS_ROUNDS:
                    return True
        if not sample.rtt:
            return False
        self._round_min = min(self._round_min, sample.rtt)
        self._samples += 1
        if self._samples < HYSTART_RTT_SAMPLES or self._last_min == float("inf"):
            return False
        if self.conservative:
            if self._round_min < self._baseline:
                self.conservative = False  # the rise has passed
        else:
            threshold = min(
                max(self._last_min / HYSTART_MIN_RTT_DIVISOR, HYSTART_MIN_RTT_THRESHOLD), HYSTART_MAX_RTT_THRESHOLD
            )
            if self._round_min >= self._last_min + threshold:
                self.conservative, self._baseline, self._css_rounds = True, self._round_min, 0
        return False
