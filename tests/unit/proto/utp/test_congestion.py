"""HyStart++ (RFC 9406), and what all controllers have in common."""

from __future__ import annotations

import pytest

from crust.proto.utp.congestion import CongestionControl, HyStart
from crust.proto.utp.constants import MAX_CWND
from crust.proto.utp.cubic import Cubic
from crust.proto.utp.ledbat import Ledbat
from tests.unit.proto.utp.acks import SEGMENT, ack


def one_round(hystart: HyStart, rtt: float, samples: int = 8) -> bool:
    return True in [hystart.finished(ack(rtt=rtt, round_start=at == 0)) for at in range(samples)]


def test_hystart_leaves_after_five_slow_rounds() -> None:
    hystart = HyStart()
    assert not one_round(hystart, 0.100)
    assert not one_round(hystart, 0.100)
    assert hystart.growth_divisor == 1
    assert not one_round(hystart, 0.113)  # an eighth more, and a bit
    assert hystart.conservative
    assert hystart.growth_divisor == 4
    assert [one_round(hystart, 0.113) for _ in range(5)] == [False, False, False, False, True]


def test_hystart_takes_it_back() -> None:
    hystart = HyStart()
    one_round(hystart, 0.100)
    one_round(hystart, 0.120)
    assert hystart.conservative
    one_round(hystart, 0.100)
    assert not hystart.conservative


@pytest.mark.parametrize(("rtt", "rise", "leaves"), [(0.01, 0.0039, False), (0.01, 0.0041, True), (1.0, 0.017, True)])
def test_hystart_threshold_is_bounded(rtt: float, rise: float, leaves: bool) -> None:
    hystart = HyStart()
    one_round(hystart, rtt)
    one_round(hystart, rtt + rise)
    assert hystart.conservative is leaves


def test_hystart_needs_eight_samples() -> None:
    hystart = HyStart()
    one_round(hystart, 0.1)
    one_round(hystart, 0.2, samples=7)
    assert not hystart.conservative
    for _ in range(20):
        hystart.finished(ack(rtt=0.0))
    assert not hystart.conservative


@pytest.mark.parametrize("make", [Cubic, Ledbat])
def test_windows_end_somewhere(make: type[Cubic] | type[Ledbat]) -> None:
    control: CongestionControl = make(SEGMENT)
    for _ in range(200):
        control.on_ack(ack(delivered=1 << 20, in_flight=1 << 40))
    assert control.cwnd == MAX_CWND


@pytest.mark.parametrize("make", [Cubic, Ledbat])
def test_larger_packets(make: type[Cubic] | type[Ledbat]) -> None:
    control: CongestionControl = make(SEGMENT)
    control.set_segment(16_000)
    assert control.cwnd >= 32_000
