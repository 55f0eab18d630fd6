"""Datagrams as large as UDP carries: each batch fits the memory into which it is sealed, repetitions too."""

from __future__ import annotations

import pytest

from crust.proto.utp.config import UtpConfig
from crust.testing.simnet import LinkConfig
from crust.wire.tunnel import OVERHEAD_BYTES
from tests.unit.proto.tunnel.world import DELAY, World, some_data

LARGEST = 65_507 - OVERHEAD_BYTES


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ceiling", [LARGEST, LARGEST // 2 + 100, 16_000])
def test_lost_ones_are_sealed_again(ceiling: int, seed: int) -> None:
    config = UtpConfig(tunnel=True, mtu=ceiling, mtu_ceiling=ceiling, datagram_overhead=OVERHEAD_BYTES)
    world = World(LinkConfig(delay=DELAY, loss=0.05, reorder=0.1, reorder_delay=0.02), seed=seed, config=config)
    ours, theirs = world.connect()
    data = some_data(16_000_000)
    assert world.transfer(world.alice, ours, world.bob, theirs, data, 600)
    assert ours.utp.stats.packets_resent > 2


def test_more_of_them_than_are_opened_at_once() -> None:
    world = World(config=UtpConfig(tunnel=True, mtu=16_000, mtu_ceiling=16_000, datagram_overhead=OVERHEAD_BYTES))
    ours, theirs = world.connect()
    world.after(1)
    data = some_data(150_000)
    ours.utp.send_data(data, world.now)
    batches = []
    while (out := world.alice.endpoint.association_outgoing(ours, world.now)) is not None:
        batches.append(bytes(out.data))
    world.bob.endpoint.receive_datagrams(
        memoryview(b"".join(batches)), 16_000 + OVERHEAD_BYTES, theirs.route, world.now
    )
    assert b"".join(theirs.utp.read_all()) == data


def test_the_rest_is_held_back_for_what_may_follow() -> None:
    world = World(config=UtpConfig(tunnel=True, mtu=16_000, mtu_ceiling=16_000, datagram_overhead=OVERHEAD_BYTES))
    ours, _theirs = world.connect()
    world.after(1)
    endpoint, most = world.alice.endpoint, 4 * 15_980
    ours.utp.send_data(some_data(most + 100), world.now)
    assert ours.utp.whole_batches_bytes == most
    out = endpoint.association_outgoing(ours, world.now, most)
    assert out is not None
    assert len(out.data) == 4 * out.size
    assert not ours.has_more
    ours.utp.send_data(some_data(most - 100), world.now)
    out = endpoint.association_outgoing(ours, world.now)
    assert out is not None
    assert len(out.data) == 4 * out.size
    assert not ours.utp.unsent_bytes


def test_many_small_ones() -> None:
    world = World()
    ours, theirs = world.connect()
    world.after(1)
    sent = [world.alice.endpoint.lone_outgoing(ours, bytes((at,)) * 10, world.now) for at in range(200)]
    data = b"".join(bytes(out.data) for out in sent if out is not None)
    buffer = world.bob.endpoint.receive_buffer
    buffer[: len(data)] = data
    world.bob.endpoint.receive_datagrams(buffer[: len(data)], len(data) // 200, theirs.route, world.now)
    assert b"".join(theirs.utp.read_all()) == b"".join(bytes((at,)) * 10 for at in range(200))
