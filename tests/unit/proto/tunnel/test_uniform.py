"""To a stranger every datagram is random bytes of random length, from the first one on."""

from __future__ import annotations

import zlib
from collections import Counter

import pytest

from crust.testing.tunnel_sim import TunnelHost
from tests.unit.proto.tunnel.world import ELSEWHERE, A, Address, B, World

COUNT = 300
PREFIX = 48  # bytes looked at one by one: what the shortest datagram has


def conversation(seed: int) -> dict[str, list[bytes]]:
    """Two handshakes, one of them with a lost answer, and what follows them; a hint; a cookie."""
    world = World(seed=seed)
    world.recording = True
    lost: list[bytes] = []

    def lose_first_answer(source: Address, target: Address, data: bytes) -> list[bytes]:
        if source == B and not lost:
            lost.append(data)
            return []
        return [data]

    world.tamper = lose_first_answer
    ours, _ = world.connect()
    world.alice.send(ours, b"hello " * 10)
    world.after(1)
    requests = [data for source, _, data in world.wire if source == A][:2]
    answers = [data for source, _, data in world.wire if source == B][:2]
    first_data = [data for source, _, data in world.wire if source == A][2:6]
    world.wire.clear()
    mallory = TunnelHost(world, ELSEWHERE, network="another")
    mallory.dial(world.bob)
    world.after(0.1)
    hints = [data for source, target, data in world.wire if target == ELSEWHERE]
    world.wire.clear()
    while world.bob.endpoint._entrance._admission.admits(world.now):
        pass
    carol = TunnelHost(world, ("10.7.7.7", 7))
    carol.dial(world.bob)
    world.after(0.05)
    cookies = [data for source, target, data in world.wire if target == ("10.7.7.7", 7)][:1]
    shown = [data for source, target, data in world.wire if source == ("10.7.7.7", 7)][1:2]
    return {
        "request": requests,
        "answer": answers,
        "data": first_data,
        "hint": hints,
        "cookie": cookies,
        "shown": shown,
    }


@pytest.fixture(scope="module")
def flights() -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for seed in range(COUNT):
        for kind, datagrams in conversation(seed).items():
            found.setdefault(kind, []).extend(datagrams)
    return found


KINDS = ["request", "answer", "data", "hint", "cookie", "shown"]


def assert_uniform(samples: list[bytes]) -> None:
    """Bytes as a whole, every bit of every place, and every pair of neighbours."""
    counts = Counter(b"".join(samples))
    expected = sum(counts.values()) / 256
    chi_square = sum((counts[value] - expected) ** 2 / expected for value in range(256))
    assert chi_square < 255 + 6 * 22.6  # standard deviation of chi² with 255 degrees of freedom
    spread = 6 * (len(samples) / 4) ** 0.5
    for at in range(PREFIX):
        for bit in range(8):
            ones = sum(sample[at] >> bit & 1 for sample in samples)
            assert abs(ones - len(samples) / 2) < spread, (at, bit)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes(flights: dict[str, list[bytes]], kind: str) -> None:
    samples = [data for data in flights[kind] if len(data) >= PREFIX]
    assert len(samples) >= COUNT
    assert len(set(samples)) == len(samples)
    assert_uniform([sample[:PREFIX] for sample in samples])
    # What all have in common, if it is masked by something constant, shows between them.
    assert_uniform(
        [bytes(a ^ b for a, b in zip(one, two, strict=False))[:PREFIX] for one, two in zip(samples, samples[1:])]  # noqa: RUF007, B905
    )
    whole = b"".join(samples)
    assert len(zlib.compress(whole, 9)) >= len(whole)


@pytest.mark.parametrize("kind", ["request", "answer", "hint", "cookie", "shown"])
def test_lengths(flights: dict[str, list[bytes]], kind: str) -> None:
    sizes = Counter(len(data) for data in flights[kind])
    assert len(sizes) > 25
    assert max(sizes.values()) < len(flights[kind]) / 4
