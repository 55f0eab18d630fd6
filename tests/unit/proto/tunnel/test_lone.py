"""Data in one datagram that leaves at once."""

from __future__ import annotations

import pytest

from crust.proto.tunnel.constants import RENEW_DATAGRAMS
from crust.proto.utp.config import UtpConfig
from tests.unit.proto.tunnel.world import ELSEWHERE, World


def test_it_arrives() -> None:
    world = World()
    ours, theirs = world.connect()
    world.after(1)
    out = world.alice.endpoint.lone_outgoing(ours, b"request", world.now)
    assert out is not None
    assert (out.size, out.route, out.association) == (len(out.data), ours.route, ours)
    assert ours.active_at == world.now
    world.bob.endpoint.receive_datagrams(memoryview(bytes(out.data)), out.size, theirs.route, world.now)
    assert theirs.utp.read_all() == [b"request"]
    assert theirs.active_at == world.now


@pytest.mark.parametrize("size", [1, 1376, 1377, 1400, 20_000])
def test_any_size(size: int) -> None:
    world = World(config=UtpConfig(tunnel=True, mtu=30_000, mtu_ceiling=30_000, datagram_overhead=28))
    ours, theirs = world.connect()
    world.after(1)
    data = bytes(range(256)) * 80
    out = world.alice.endpoint.lone_outgoing(ours, data[:size], world.now)
    assert out is not None
    world.bob.endpoint.receive_datagrams(memoryview(bytes(out.data)), out.size, theirs.route, world.now)
    assert b"".join(theirs.utp.read_all()) == data[:size]


def test_its_loss_is_noticed() -> None:
    world = World()
    ours, theirs = world.connect()
    world.after(1)
    assert world.alice.endpoint.lone_outgoing(ours, b"lost", world.now) is not None
    world.alice.pump()  # which arms the timer
    assert world.after(1, lambda: world.bob.received[theirs] == b"lost")


def test_what_waits_goes_first() -> None:
    world = World()
    ours, _ = world.connect()
    world.after(1)
    ours.renew(world.now)
    assert world.alice.endpoint.lone_outgoing(ours, b"x", world.now) is None
    world.alice.pump()
    assert world.alice.endpoint.lone_outgoing(ours, b"x", world.now) is not None


def test_not_to_an_address_that_is_not_proved() -> None:
    world = World()
    ours, theirs = world.connect()
    world.after(1)
    out = world.alice.endpoint.lone_outgoing(ours, b"from elsewhere", world.now)
    assert out is not None
    world.bob.endpoint.receive_datagrams(memoryview(bytes(out.data)), out.size, (0, ELSEWHERE), world.now)
    assert world.bob.endpoint.lone_outgoing(theirs, b"x", world.now) is None


def test_not_with_a_key_that_is_to_be_renewed() -> None:
    world = World()
    ours, _ = world.connect()
    world.after(1)
    ours._send.counter = RENEW_DATAGRAMS
    assert world.alice.endpoint.lone_outgoing(ours, b"x", world.now) is None
    ours.close()
    assert world.alice.endpoint.lone_outgoing(ours, b"x", world.now) is None
