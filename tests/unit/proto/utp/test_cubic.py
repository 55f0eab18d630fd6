"""CUBIC against the equations of RFC 9438."""

from __future__ import annotations

import pytest

from crust.proto.utp.cubic import Cubic
from tests.unit.proto.utp.acks import SEGMENT, ack


def avoiding(window: int) -> Cubic:
    """A controller that has just reduced from `window` segments."""
    cubic = Cubic(SEGMENT)
    while cubic.cwnd < window * SEGMENT:
        cubic.on_ack(ack(delivered=min(window * SEGMENT - cubic.cwnd, SEGMENT)))
    cubic.on_loss(1.0, cubic.cwnd)
    return cubic


def grow(cubic: Cubic, start: float, seconds: float, rtt: float = 0.1) -> None:
    """A window acknowledged in each round trip, in ten pieces."""
    steps = round(seconds / rtt * 10)
    for at in range(steps):
        cubic.on_ack(ack(start + at * rtt / 10, delivered=cubic.cwnd // 10))


def test_cubic_slow_start() -> None:
    cubic = Cubic(SEGMENT)
    assert cubic.cwnd == 10 * SEGMENT
    cubic.on_ack(ack(delivered=5 * SEGMENT))
    assert cubic.cwnd == 15 * SEGMENT
    cubic.on_ack(ack(delivered=5 * SEGMENT, limited=False))
    assert cubic.cwnd == 15 * SEGMENT
    assert cubic.slow_start


def test_cubic_slow_start_ends_by_the_round_trip() -> None:
    cubic = Cubic(SEGMENT)
    for rtt in (0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2):
        for at in range(8):
            cubic.on_ack(ack(rtt=rtt, round_start=at == 0))
    assert not cubic.slow_start


def test_cubic_reduction() -> None:
    cubic = avoiding(1000)
    assert cubic.cwnd == 700 * SEGMENT
    assert not cubic.slow_start


def test_cubic_follows_its_curve() -> None:
    """W(t) = C (t - K)^3 + W_max with K = ((W_max - cwnd) / C)^(1/3), RFC 9438 §4.2."""
    cubic = avoiding(1000)
    k = (300 / 0.4) ** (1 / 3)
    grow(cubic, 1.0, k)
    assert cubic.cwnd / SEGMENT == pytest.approx(1000, rel=0.01)
    grow(cubic, 1.0 + k, 4.0)
    assert cubic.cwnd / SEGMENT == pytest.approx(1000 + 0.4 * 4.1**3, rel=0.01)


def test_cubic_is_no_slower_than_reno() -> None:
    """In the Reno-friendly region a window grows by 0.529 segments a round trip, then by one (RFC 9438 §4.3)."""
    cubic = avoiding(20)
    grow(cubic, 1.0, 0.1, rtt=0.01)
    assert cubic.cwnd / SEGMENT == pytest.approx(14 + 0.529 * 10, abs=0.3)
    grow(cubic, 1.1, 0.1, rtt=0.01)
    assert cubic.cwnd / SEGMENT == pytest.approx(28.6, abs=1)


def test_cubic_fast_convergence() -> None:
    """A loss below the last maximum aims lower (RFC 9438 §4.7)."""
    cubic = avoiding(1000)
    cubic.on_loss(2.0, cubic.cwnd)
    assert cubic.cwnd == pytest.approx(490 * SEGMENT, abs=1)
    k = ((700 * 0.85 - 490) / 0.4) ** (1 / 3)
    grow(cubic, 2.0, k)
    assert cubic.cwnd / SEGMENT == pytest.approx(700 * 0.85, rel=0.01)


def test_cubic_undo() -> None:
    cubic = avoiding(1000)
    cubic.on_undo()
    assert cubic.cwnd == 1000 * SEGMENT
    assert cubic.slow_start
    cubic.on_undo()
    assert cubic.cwnd == 1000 * SEGMENT


def test_cubic_time_out() -> None:
    cubic = avoiding(1000)
    cubic.on_timeout(2.0, 0)
    assert cubic.cwnd == SEGMENT
    assert cubic.slow_start
    for _ in range(600):
        cubic.on_ack(ack(3.0))
    assert not cubic.slow_start
    assert cubic.cwnd == pytest.approx(490 * SEGMENT, rel=0.01)


def test_cubic_stands_still_while_mending_and_without_demand() -> None:
    cubic = avoiding(100)
    grow(cubic, 1.0, 1.0)
    before = cubic.cwnd
    cubic.on_ack(ack(5.0, recovering=True))
    cubic.on_ack(ack(6.0, limited=False))
    assert cubic.cwnd == before
    grow(cubic, 500.0, 0.1)  # the idle time does not count (RFC 9438 §5.8)
    assert cubic.cwnd < 1.1 * before
