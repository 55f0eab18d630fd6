"""Predicted ports, meeting ports, and the mathematics of birthday probing checked by simulation."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from crust.proto.nat.behaviour import AllocationSample
from crust.proto.nat.prediction import (
    FIRST_PORT,
    LAST_PORT,
    Prediction,
    birthday_ports,
    birthday_success,
    predict,
)

HOST = "203.0.113.1"


def sample(at: float, port: int, host: str = HOST) -> AllocationSample:
    return AllocationSample(at, 5000, (host, port), trusted=True)


def test_the_next_mapping_gets_the_next_port() -> None:
    """The off-by-one that no test on loopback can see."""
    prediction = Prediction(HOST, 40000, 0.0, step=1)
    assert prediction.port(1) == 40001
    assert prediction.ports(4, 0.0) == [40001, 40002, 40003, 40004]
    assert Prediction(HOST, 40000, 0.0, step=-1).ports(3, 0.0) == [39999, 39998, 39997]
    assert Prediction(HOST, 40000, 0.0, step=8).port(2) == 40016


def test_the_range_wraps() -> None:
    assert Prediction(HOST, LAST_PORT - 1, 0.0, step=1).ports(3, 0.0) == [LAST_PORT, FIRST_PORT, FIRST_PORT + 1]
    assert Prediction(HOST, FIRST_PORT, 0.0, step=-2).port(1) == LAST_PORT - 1


@pytest.mark.parametrize("true_step", [1, 2, 3, 4])
@pytest.mark.parametrize("believed", [1, 2, 3, 4])
def test_small_steps_may_be_mistaken(true_step: int, believed: int) -> None:
    ports = Prediction(HOST, 40000, 0.0, believed).ports(32, 0.0)
    assert 40000 + true_step in ports
    assert 40000 + 2 * true_step in ports
    meeting = Prediction(HOST, 40000, 0.0, believed).meeting_port(24, 0.0)
    assert meeting in [40000 + true_step * index for index in range(1, 25)]


def test_large_steps_are_believed_for_half_of_the_ports() -> None:
    ports = Prediction(HOST, 40000, 0.0, 8).ports(32, 0.0)
    assert len(set(ports)) == 32
    assert {40000 + 8 * index for index in range(1, 16)} <= set(ports)
    assert {40001, 40005, 40010} <= set(ports)


def test_others_use_up_ports_meanwhile() -> None:
    prediction = Prediction(HOST, 40000, 10.0, step=1, rate=100.0)
    assert prediction.drift(9.0) == 0.0
    assert prediction.drift(10.5) == 50.0
    ports = prediction.ports(16, 10.5)
    assert ports[0] == 40051
    assert min(ports) > 40030
    assert prediction.meeting_port(24, 10.0) == 40024
    assert prediction.meeting_port(24, 10.1) == 40024  # ten of others and fourteen of ours, at most
    assert prediction.meeting_port(24, 10.5) == 40072
    assert [prediction.meeting_port(24, 10.0, r) for r in range(3)] == [40024, 40048, 40072]


def test_predictions_come_from_recent_samples() -> None:
    samples = [sample(0.0, 30000), sample(300.0, 40000), sample(300.1, 40003), sample(300.2, 40004)]
    prediction = predict(samples, 1, 300.3)
    assert prediction is not None
    assert (prediction.host, prediction.last, prediction.seen_at, prediction.step) == (HOST, 40004, 300.2, 1)
    assert prediction.rate == pytest.approx(2 / 0.2)
    assert predict(samples, 0, 300.3) is None
    assert predict(samples, 1, 1000.0) is None
    assert predict([], 1, 0.0) is None
    # too little time to know a rate; another host's ports; backwards
    assert predict([sample(0.0, 40000), sample(0.01, 40009)], 1, 0.1) == Prediction(HOST, 40009, 0.01, 1, 0.0)
    mixed = [sample(0.0, 50000, "203.0.113.2"), sample(1.0, 40000), sample(2.0, 39000)]
    assert predict(mixed, 1, 3.0) == Prediction(HOST, 39000, 2.0, 1, 0.0)
    falling = predict([sample(0.0, 40010), sample(1.0, 40000)], -1, 1.0)
    assert falling is not None
    assert falling.rate == pytest.approx(9.0)
    assert falling.ports(1, 1.0) == [39999]


def test_birthday_mathematics() -> None:
    """256 open ports of 64,512: what the design counts on."""
    assert birthday_success(256, 1024) == pytest.approx(0.983, abs=0.001)
    assert birthday_success(256, 1750) == pytest.approx(0.9991, abs=0.0001)
    assert birthday_success(256, 174) == pytest.approx(0.5, abs=0.01)
    assert birthday_success(10, 10, ports=15) == 1.0
    assert birthday_success(1, 1, ports=4) == pytest.approx(0.25)


@pytest.mark.parametrize(("probes", "expected"), [(174, 0.5), (1024, 0.983), (1750, 0.9991)])
def test_birthday_mathematics_by_simulation(probes: int, expected: float) -> None:
    tries, found = 1500, 0
    random = Random(5)
    for _ in range(tries):
        open_ports = set(random.sample(range(FIRST_PORT, LAST_PORT + 1), 256))
        found += not open_ports.isdisjoint(random.sample(range(FIRST_PORT, LAST_PORT + 1), probes))
    assert found / tries == pytest.approx(expected, abs=0.03 if expected < 0.9 else 0.008)


def test_birthday_ports_by_simulation() -> None:
    """With the ports that the engine draws: each once, and as good as the formula."""
    tries, found = 300, 0
    for seed in range(tries):
        ports = list(birthday_ports(Random(seed).randbytes, 1024))
        assert len(set(ports)) == 1024
        open_ports = set(Random(-seed - 1).sample(range(FIRST_PORT, LAST_PORT + 1), 256))
        found += not open_ports.isdisjoint(ports)
    assert found / tries == pytest.approx(0.983, abs=0.015)


def test_a_carriers_block_is_searched_first() -> None:
    seen = [33024, 33100, 33500, 33900]
    ports = list(birthday_ports(Random(1).randbytes, 1750, seen))
    assert len(set(ports)) == 1750
    assert all(32768 <= port < 34816 for port in ports)
    few = list(islice(birthday_ports(Random(1).randbytes, 10, seen), 20))
    assert len(few) == 10
    more = list(birthday_ports(Random(1).randbytes, 3000, seen))
    assert len(set(more)) == 3000
    assert all(32768 <= port < 34816 for port in more[:2048])
    spread = list(birthday_ports(Random(1).randbytes, 100, [2000, 20000, 40000, 60000]))
    assert min(spread) < 10000 < 50000 < max(spread)
    low = list(birthday_ports(Random(1).randbytes, 100, [1030, 1040, 1050, 1060]))
    assert min(low) >= FIRST_PORT
    assert list(birthday_ports(Random(1).randbytes, 0)) == []
    assert list(birthday_ports(Random(1).randbytes, 0, seen)) == []
    assert len(list(birthday_ports(Random(1).randbytes, 10**6, seen))) == LAST_PORT - FIRST_PORT + 1
