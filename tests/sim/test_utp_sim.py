"""Throughput under trouble: part of the table of docs/explanation/utp.md, which `crust.testing.utp_table` makes."""

from __future__ import annotations

import random

import pytest

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.events import Connected, Ended, EndReason, PeerFinished
from crust.testing.simnet import Link, LinkConfig, SimNet
from crust.testing.utp_sim import Transfer, pair, simulate
from crust.testing.utp_table import PAYLOAD, Case, allowed_rate, cases, run_case, share

MBIT = 1e6
TROUBLES = ("", "reordered", "duplicated")


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(("rtt", "rate", "packets"), [(0.01, 10 * MBIT, 8000), (0.05, 100 * MBIT, 30_000)])
def test_without_loss_nine_tenths_of_the_link(rtt: float, rate: float, packets: int, trouble: str) -> None:
    result = run_case(Case(rtt, rate, 0.0, trouble), total=packets * PAYLOAD)
    assert result.intact
    assert result.ratio >= 0.9


def test_long_path_without_loss() -> None:
    result = run_case(Case(0.2, 10 * MBIT, 0.0), total=25_000 * PAYLOAD)
    assert result.intact
    assert result.ratio >= 0.9


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(
    ("rtt", "loss", "packets"), [(0.2, 0.001, 30_000), (0.05, 0.01, 12_000), (0.01, 0.05, 8000), (0.2, 0.05, 8000)]
)
def test_random_loss_nine_tenths_of_the_response_function(rtt: float, loss: float, packets: int, trouble: str) -> None:
    results = [run_case(Case(rtt, 10 * MBIT, loss, trouble), seed, packets // 2 * PAYLOAD) for seed in (1, 2)]
    assert all(result.intact for result in results)
    assert sum(result.ratio for result in results) / 2 >= 0.9


def test_response_function() -> None:
    """Where CUBIC is Reno-friendly, W = 1.22 / sqrt(p) segments; beyond, (3.7 C / 1.2)^(1/4) (RTT / p)^(3/4)."""
    assert allowed_rate(0.01, 1e9, 0.01) == pytest.approx(12.2 * PAYLOAD * 8 / 0.01, rel=0.01)
    assert allowed_rate(0.2, 1e9, 0.0001) == pytest.approx(1.054 * (0.2 / 0.0001) ** 0.75 * PAYLOAD * 8 / 0.2, rel=0.01)
    assert allowed_rate(0.01, 1e6, 0.0001) == allowed_rate(0.01, 1e6, 0.0) == pytest.approx(1e6 * 1432 / 1480)


def test_the_table_is_whole() -> None:
    assert len(set(cases())) == 2 * 3 * 4 * 3
    assert all(case.total >= 20_000 * PAYLOAD for case in cases())


def test_ledbat_holds_its_delay() -> None:
    alone = share("ledbat", "", rtt=0.05, rate=10 * MBIT, buffer_seconds=0.4, seconds=60.0)
    assert 0.08 < alone.queueing_delay < 0.12
    assert alone.first >= 0.9 * allowed_rate(0.05, 10 * MBIT, 0.0)


def test_ledbat_gives_way_to_a_cubic_flow_that_comes() -> None:
    found = share("ledbat", "cubic", rtt=0.05, rate=10 * MBIT, buffer_seconds=0.3, seconds=60.0)
    assert found.first < 0.05 * found.second


def test_ledbat_leaves_a_cubic_flow_its_place() -> None:
    """Less so: a queue that is always there is taken for the path's own delay (RFC 6817 §4.4)."""
    found = share("cubic", "ledbat", rtt=0.05, rate=10 * MBIT, buffer_seconds=0.3, seconds=60.0)
    assert found.second < 0.25 * found.first


def test_two_cubic_flows_share() -> None:
    found = share("cubic", "cubic", rtt=0.05, rate=10 * MBIT, buffer_seconds=0.05, seconds=120.0)
    low, high = sorted((found.first, found.second))
    assert low >= 0.7 * high
    assert low + high >= 0.9 * allowed_rate(0.05, 10 * MBIT, 0.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tunnel", [True, False], ids=["tunnel", "bare"])
def test_everything_at_once_both_ways(seed: int, tunnel: bool) -> None:
    """Loss, reordering, copies, a small buffer and a small path MTU: each byte once, and an orderly end."""
    chance = random.Random(seed)
    link = LinkConfig(
        delay=chance.choice([0.001, 0.02, 0.1]),
        rate=chance.choice([0.0, 5e6, 50e6]),
        buffer_bytes=chance.choice([20_000, 100_000]),
        loss=chance.choice([0.01, 0.1]),
        reorder=chance.choice([0.05, 0.5]),
        reorder_delay=chance.choice([0.005, 0.05]),
        duplicate=0.1,
        mtu=1300 if tunnel else 65_535,  # bare, the system would cut larger packets
    )
    net = SimNet(seed)
    config = UtpConfig(tunnel=tunnel, receive_window=200_000, unsent_limit=50_000)
    a, b = pair(net, Link(net, link), Link(net, link), config)
    there, back = Transfer(a, b, 300_000), Transfer(b, a, 200_000)
    there.start()
    back.start()
    assert net.run(net.now + 3600, lambda: there.done and back.done)
    assert there.intact
    assert back.intact
    for host in (a, b):
        host.connection.close()
        host.pump()
    net.run(net.now + 600, lambda: a.connection.ended and b.connection.ended)
    for host in (a, b):
        assert host.events == [Connected(), PeerFinished(), Ended(EndReason.CLOSED, "closed in order")]
        assert host.received == (200_000 if host is a else 300_000)


def test_black_hole_in_the_middle_of_a_transfer() -> None:
    """A path whose MTU falls below the packets in use, as after roaming, delays the stream and breaks nothing."""
    net = SimNet(1)
    config = LinkConfig(delay=0.02, rate=10 * MBIT, buffer_bytes=64_000)
    there, back = Link(net, config), Link(net, config)
    a, b = pair(net, there, back, UtpConfig(tunnel=True))
    transfer = Transfer(a, b, 3_000_000)
    transfer.start()
    net.run(net.now + 1)
    assert a.connection.mtu == 1452
    there.config = LinkConfig(delay=0.02, rate=10 * MBIT, buffer_bytes=64_000, mtu=1250)
    begun = net.now
    assert net.run(net.now + 60, lambda: transfer.done)
    assert transfer.intact
    assert net.now - begun < 5
    assert a.connection.mtu in (1200, 1232)


def test_slow_reader_bounds_memory_and_loses_nothing() -> None:
    net = SimNet(1)
    config = LinkConfig(delay=0.01, rate=100 * MBIT, buffer_bytes=200_000)
    a, b = pair(net, Link(net, config), Link(net, config), UtpConfig(tunnel=True, receive_window=100_000))
    transfer = Transfer(a, b, 1_000_000)
    b.reading = False
    transfer.start()
    for _ in range(20):
        net.run(net.now + 1.0)
        assert b.connection.stats.bytes_received <= b.received + 100_000
        b.reading = True
        b.pump()
        b.reading = False
    b.reading = True
    b.pump()
    assert net.run(net.now + 60, lambda: transfer.done)
    assert transfer.intact


def test_same_seed_same_transfer() -> None:
    link = LinkConfig(delay=0.02, rate=10 * MBIT, buffer_bytes=64_000, loss=0.02)
    runs = [simulate(link, link, total=500_000, seed=3) for _ in range(2)]
    assert runs[0][1] == runs[1][1]
    assert runs[0][0].sender.connection.stats == runs[1][0].sender.connection.stats
