"""The simulated network itself."""

from __future__ import annotations

import pytest

from crust.testing.simnet import Link, LinkConfig, SimNet


def arrivals(
    config: LinkConfig, count: int, size: int = 972, seed: int = 1, every: float = 0.0
) -> list[tuple[int, float]]:
    """(number, seconds since the start) of what arrives of `count` datagrams."""
    net = SimNet(seed)
    link = Link(net, config)
    found: list[tuple[int, float]] = []
    for at in range(count):
        datagram = at.to_bytes(4, "big") + bytes(size - 4)
        net.call_at(
            net.now + at * every,
            lambda datagram=datagram: link.send(
                datagram, lambda got: found.append((int.from_bytes(got[:4]), net.now - 1000.0))
            ),
        )
    net.run()
    return found


def test_rate_and_delay() -> None:
    found = arrivals(LinkConfig(delay=0.05, rate=1e6), 3)
    assert [when for _, when in found] == pytest.approx([0.058, 0.066, 0.074])  # 1000 bytes on the link take 8 ms


def test_no_rate() -> None:
    assert [when for _, when in arrivals(LinkConfig(delay=0.05), 3)] == pytest.approx([0.05] * 3)


def test_buffer() -> None:
    assert [number for number, _ in arrivals(LinkConfig(delay=0, rate=1e6, buffer_bytes=3000), 10)] == [0, 1, 2]


def test_loss_and_copies() -> None:
    lost = arrivals(LinkConfig(delay=0.01, loss=0.1), 5000)
    assert 4400 < len(lost) < 4600
    doubled = arrivals(LinkConfig(delay=0.01, duplicate=0.1), 5000)
    assert 5400 < len(doubled) < 5600


def test_reordering() -> None:
    found = arrivals(LinkConfig(delay=0.01, reorder=0.1, reorder_delay=0.02), 5000, every=0.001)
    late = [number for number, when in found if when - number * 0.001 > 0.010001]
    assert 400 < len(late) < 600
    assert max(when - number * 0.001 for number, when in found) <= 0.03


def test_large_datagrams_vanish() -> None:
    assert arrivals(LinkConfig(delay=0.01, mtu=971), 3) == []


def test_same_seed_same_run() -> None:
    config = LinkConfig(delay=0.01, rate=1e6, loss=0.1, reorder=0.1, reorder_delay=0.1, duplicate=0.1)
    assert arrivals(config, 300, seed=5) == arrivals(config, 300, seed=5) != arrivals(config, 300, seed=6)


def test_queueing_delay() -> None:
    net = SimNet()
    link = Link(net, LinkConfig(delay=0.0, rate=1e6))
    for _ in range(3):
        link.send(bytes(972), lambda datagram: None)
    assert link.queueing_delay == pytest.approx(0.024)
    assert link.mean_queueing_delay() == pytest.approx(0.008)
    assert link.mean_queueing_delay() == 0.0


def test_run_until() -> None:
    net = SimNet()
    seen: list[float] = []
    for seconds in (1.0, 2.0, 3.0):
        net.call_at(1000.0 + seconds, lambda seconds=seconds: seen.append(seconds))
    assert net.run(1002.5) is False
    assert (seen, net.now) == ([1.0, 2.0], 1002.5)
    net.call_at(0.0, lambda: seen.append(0.0))  # in the past: at once
    assert net.run(done=lambda: 0.0 in seen) is True
    assert seen == [1.0, 2.0, 0.0]
    assert net.run() is False
    assert seen[-1] == 3.0
