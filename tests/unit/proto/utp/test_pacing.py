"""Pacing."""

from __future__ import annotations

import pytest

from crust.proto.utp.pacing import Pacer


def test_pacer_lets_the_first_flight_go() -> None:
    pacer = Pacer(1000, 0.0)
    assert pacer.budget(0.0) == float("inf")
    pacer.spend(10_000)
    assert pacer.budget(0.0) == float("inf")


def test_pacer_fills_at_its_rate() -> None:
    pacer = Pacer(1000, 0.0)
    pacer.set_rate(100_000, 0.1, slow_start=False)
    assert pacer.rate == pytest.approx(1.25e6)
    assert pacer.budget(0.0) == 10_000
    pacer.spend(10_000)
    assert pacer.budget(0.001) == pytest.approx(1250)
    assert pacer.budget(10.0) == pytest.approx(10_000 + 1.25e6 * 0.005)
    pacer.set_rate(100_000, 0.1, slow_start=True)
    assert pacer.rate == pytest.approx(2e6)


def test_pacer_debt_is_a_time() -> None:
    """What was sent over the rate must not stop a connection for minutes when its rate falls."""
    pacer = Pacer(1000, 0.0)
    pacer.set_rate(1_000_000, 0.01, slow_start=False)
    pacer.budget(0.0)
    pacer.spend(10_000 + 1_250_000)  # 10 ms
    pacer.set_rate(10_000, 1.0, slow_start=False)
    assert pacer.budget(0.0) == pytest.approx(-125.0)
    pacer.set_rate(20_000, 1.0, slow_start=False)
    assert pacer.budget(0.0) == pytest.approx(-125.0)


def test_pacer_burst() -> None:
    pacer = Pacer(1000, 0.0)
    for cwnd, burst in ((1000, 2000), (400_000, 5000), (10_000_000, 10_000)):
        pacer.set_rate(cwnd, 0.1, slow_start=False)
        assert pacer.burst(1000) == pytest.approx(burst)
