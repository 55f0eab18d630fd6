"""Round trips and time-outs (RFC 6298)."""

from __future__ import annotations

import pytest

from crust.proto.utp.rtt import RttEstimator


def test_rtt_first_and_second_sample() -> None:
    rtt = RttEstimator()
    assert rtt.rto == 1.0
    rtt.add(0.4, 0.0)
    assert (rtt.srtt, rtt.rttvar, rtt.rto) == (0.4, 0.2, pytest.approx(1.2))
    rtt.add(0.8, 1.0)
    assert rtt.rttvar == pytest.approx(0.75 * 0.2 + 0.25 * 0.4)
    assert rtt.srtt == pytest.approx(0.875 * 0.4 + 0.125 * 0.8)
    assert rtt.rto == pytest.approx(rtt.srtt + 4 * rtt.rttvar)
    assert rtt.latest == 0.8


def test_rto_is_bounded() -> None:
    rtt = RttEstimator()
    for _ in range(50):
        rtt.add(0.001, 0.0)
    assert rtt.rto == 0.2
    rtt.add(500.0, 0.0)
    assert rtt.rto == 60.0


def test_least_rtt_of_late() -> None:
    rtt = RttEstimator()
    rtt.add(0.01, 0.0)
    rtt.add(0.05, 29.0)
    assert rtt.min_rtt == 0.01
    rtt.add(0.05, 31.0)
    assert rtt.min_rtt == 0.01
    rtt.add(0.05, 62.0)
    rtt.add(0.04, 63.0)
    assert rtt.min_rtt == 0.04
