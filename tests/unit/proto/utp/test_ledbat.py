"""LEDBAT against the equations of RFC 6817."""

from __future__ import annotations

import pytest

from crust.proto.utp.ledbat import Ledbat
from tests.unit.proto.utp.acks import SEGMENT, ack


def test_ledbat_slow_start_ends_by_delay() -> None:
    ledbat = Ledbat(SEGMENT)
    ledbat.on_ack(ack(delivered=5 * SEGMENT, delay_us=1000))
    assert ledbat.cwnd == 15 * SEGMENT
    ledbat.on_ack(ack(delivered=5 * SEGMENT, delay_us=1000, limited=False))
    assert ledbat.cwnd == 15 * SEGMENT
    for _ in range(4):
        ledbat.on_ack(ack(delay_us=1000 + 76_000, limited=False))
    assert ledbat.queueing_delay == pytest.approx(0.076)
    assert not ledbat.slow_start


def calm(delay_ms: int, window: int = 100) -> Ledbat:
    """Past slow start, with that queueing delay over a base of 5 ms."""
    ledbat = Ledbat(SEGMENT)
    ledbat.on_ack(ack(delivered=(2 * window - 10) * SEGMENT, delay_us=5000))
    ledbat.on_loss(1.0, 0)
    for _ in range(4):
        ledbat.on_ack(ack(delay_us=5000 + delay_ms * 1000, limited=False, recovering=True))
    return ledbat


def test_ledbat_grows_by_the_distance_to_its_target() -> None:
    """cwnd += GAIN * off_target * bytes * MSS / cwnd (RFC 6817 §2.4.2)."""
    for delay_ms, gain in ((0, 1.0), (50, 0.5), (100, 0.0)):
        ledbat = calm(delay_ms)
        before = ledbat.cwnd
        for _ in range(10):
            ledbat.on_ack(ack(delivered=before // 10, in_flight=before))
        assert ledbat.cwnd - before == pytest.approx(gain * SEGMENT, rel=0.02, abs=2)


def test_ledbat_gives_a_share_back() -> None:
    ledbat = calm(150)
    before = ledbat.cwnd
    ledbat.on_ack(ack(delivered=before))
    assert ledbat.cwnd == pytest.approx(before * 0.75, rel=0.01)
    ledbat = calm(1000)
    ledbat.on_ack(ack(delivered=before))
    assert ledbat.cwnd == before // 2


def test_ledbat_does_not_grow_beyond_what_flies() -> None:
    ledbat = calm(0)
    before = ledbat.cwnd
    ledbat.on_ack(ack(delivered=before, in_flight=0))
    ledbat.on_ack(ack(delivered=before, limited=False))
    assert ledbat.cwnd == before


def test_ledbat_clocks_wrap() -> None:
    ledbat = Ledbat(SEGMENT)
    for delay in (0xFFFFFF00, 0xFFFFFF10, 30_000, 30_000, 30_000, 30_000):
        ledbat.on_ack(ack(delay_us=delay))
    assert ledbat.queueing_delay == pytest.approx((30_000 + 0x100) / 1e6)


def test_ledbat_takes_every_delay() -> None:
    assert not Ledbat(SEGMENT).on_unlimited_ack()


def test_ledbat_base_is_the_least() -> None:
    ledbat = Ledbat(SEGMENT)
    for delay in (9000, 4000, 8000, 8000, 8000, 8000):
        ledbat.on_ack(ack(delay_us=delay))
    assert ledbat.queueing_delay == pytest.approx(0.004)


def test_ledbat_base_is_forgotten_after_ten_minutes() -> None:
    ledbat = Ledbat(SEGMENT)
    ledbat.on_ack(ack(0.0, delay_us=1000))
    for minute in range(1, 12):
        ledbat.on_ack(ack(minute * 60.0, delay_us=51_000))
        ledbat.on_ack(ack(minute * 60.0 + 1, delay_us=51_500))
        if minute == 8:
            assert ledbat.queueing_delay == pytest.approx(0.050)
    assert ledbat.queueing_delay < 0.001


def test_ledbat_loss_time_out_and_undo() -> None:
    ledbat = calm(0)
    before = ledbat.cwnd
    ledbat.on_loss(2.0, before)
    assert ledbat.cwnd == before // 2
    ledbat.on_undo()
    assert ledbat.cwnd == before
    ledbat.on_undo()
    assert ledbat.cwnd == before
    ledbat.on_timeout(3.0, before)
    assert ledbat.cwnd == SEGMENT
    assert ledbat.slow_start
    ledbat.on_ack(ack(4.0, delivered=before, delay_us=5000))
    assert not ledbat.slow_start
