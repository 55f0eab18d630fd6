"""Acknowledgements for controllers."""

from __future__ import annotations

from crust.proto.utp.congestion import AckSample

__all__ = ["SEGMENT", "ack"]

SEGMENT = 1000


def ack(
    now: float = 1.0,
    *,
    delivered: int = SEGMENT,
    in_flight: int = 0,
    rtt: float = 0.1,
    delay_us: int | None = None,
    limited: bool = True,
    recovering: bool = False,
    round_start: bool = False,
) -> AckSample:
    return AckSample(now, delivered, in_flight, rtt, 0.1, 0.1, delay_us, limited, recovering, round_start)
