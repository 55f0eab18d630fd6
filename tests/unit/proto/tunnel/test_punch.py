"""One handshake with many addresses: which one answers makes the association."""

from __future__ import annotations

import pytest

from crust.proto.tunnel.constants import MAX_PADDING, PUNCH_PADDING
from crust.proto.tunnel.endpoint import Dial
from crust.proto.tunnel.events import DialFailed, DialSucceeded, Knocked, KnockedAgain
from crust.testing.tunnel_sim import TunnelHost
from crust.wire.handshake import Hint
from tests.unit.proto.tunnel.world import A, B, World

NOBODY = [("192.0.2.77", port) for port in range(2000, 2040)]


def punch(world: World) -> Dial:
    return world.alice.endpoint.punch(world.bob.identity.id, world.now)


def probe(host: TunnelHost, dial: Dial, target: tuple[str, int], *, ttl: int | None = None, padding: int = 0) -> None:
    host.endpoint.probe(dial, (0, target), host.world.net.now, ttl=ttl, padding=padding)
    host.pump()


def test_nothing_is_sent_unasked_and_whoever_answers_wins() -> None:
    world = World()
    world.recording = True
    dial = punch(world)
    world.after(3, lambda: bool(world.wire))
    assert not world.wire
    for target in (*NOBODY, B, *NOBODY):
        probe(world.alice, dial, target)
    assert world.after(1, lambda: world.alice.associations)
    assert world.alice.associations[0].route == (0, B)
    assert world.alice.associations[0].utp.next_event() is None
    assert [event.dial for event in world.alice.events if isinstance(event, DialSucceeded)] == [dial]
    assert not world.alice.endpoint.dialling
    # nothing more leaves once it is done
    sent = len(world.wire)
    probe(world.alice, dial, NOBODY[0])
    assert len(world.wire) == sent


def test_an_answer_is_recognised_after_a_thousand_other_requests() -> None:
    world = World()
    dial = punch(world)
    probe(world.alice, dial, B)
    for port in range(10_000, 11_000):
        world.alice.endpoint.probe(dial, (0, ("192.0.2.77", port)), world.now, padding=0)
    world.alice.pump()
    assert world.after(1, lambda: world.alice.associations)


def test_a_peer_with_several_addresses_may_answer_from_another() -> None:
    world = World()
    other = ("198.51.100.99", 4)
    world.tamper = lambda source, target, data: [data]
    dial = punch(world)
    probe(world.alice, dial, B)
    world.bob.move(other)
    world.hosts[B] = world.bob  # reached at the one, sends from the other
    assert world.after(1, lambda: world.alice.associations)
    assert world.alice.associations[0].route == (0, other)


def test_every_copy_is_told_with_where_it_came_from() -> None:
    world = World()
    world.bob.accepting = False
    dial = punch(world)
    for _ in range(3):
        probe(world.alice, dial, B)
    world.after(1, lambda: len(world.bob.events) == 3)
    first, *others = world.bob.events
    assert isinstance(first, Knocked)
    assert [event.route for event in others if isinstance(event, KnockedAgain)] == [(0, A), (0, A)]
    assert all(event.knock is first.knock for event in others if isinstance(event, KnockedAgain))


def test_low_ttl_and_padding() -> None:
    world = World()
    dial = punch(world)
    endpoint = world.alice.endpoint
    small, large = set(), set()
    for _ in range(64):
        endpoint.probe(dial, (0, B), world.now, ttl=2, padding=PUNCH_PADDING)
        endpoint.probe(dial, (0, B), world.now, padding=MAX_PADDING)
        first, second = endpoint.next_outgoing(), endpoint.next_outgoing()
        assert first is not None
        assert second is not None
        assert (first.ttl, second.ttl) == (2, None)
        small.add(first.size)
        large.add(second.size)
    assert max(small) - min(small) <= PUNCH_PADDING
    assert max(large) > max(small)


def test_a_refusal_ends_it() -> None:
    world = World()
    world.bob.accepting = False
    dial = punch(world)
    probe(world.alice, dial, NOBODY[0])
    probe(world.alice, dial, B)
    world.after(1, lambda: bool(world.bob.events))
    knocked = world.bob.events[0]
    assert isinstance(knocked, Knocked)
    world.bob.endpoint.refuse(knocked.knock, Hint.REFUSED)
    world.bob.pump()
    assert world.after(1, lambda: any(isinstance(event, DialFailed) for event in world.alice.events))
    assert not world.alice.endpoint.dialling


def test_cancelled_it_forgets_everything() -> None:
    world = World()
    before = world.alice.endpoint.indexes
    dial = punch(world)
    for target in NOBODY:
        probe(world.alice, dial, target)
    assert world.alice.endpoint.dialling
    world.alice.endpoint.cancel(dial)
    assert not world.alice.endpoint.dialling
    assert world.alice.endpoint.indexes == before


def test_sockets_in_use() -> None:
    world = World()
    assert world.alice.endpoint.sockets_in_use() == set()
    dial = punch(world)
    world.alice.endpoint.probe(dial, (7, B), world.now)
    assert world.alice.endpoint.sockets_in_use() == set()
    probe(world.alice, dial, B)
    assert world.after(1, lambda: world.alice.associations)
    assert world.alice.endpoint.sockets_in_use() == {0}
    world.alice.associations[0].close()
    assert world.alice.endpoint.sockets_in_use() == set()


def test_a_cookie_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer under load asks for one; the answer to it goes where it came from."""
    monkeypatch.setattr("crust.proto.tunnel.cookie.HANDSHAKE_BURST", 0.0)
    monkeypatch.setattr("crust.proto.tunnel.cookie.HANDSHAKE_RATE", 0.0)
    world = World()
    dial = punch(world)
    probe(world.alice, dial, NOBODY[0])
    probe(world.alice, dial, B)
    assert world.after(1, lambda: world.alice.associations)
    assert world.alice.endpoint.stats["handshake.cookie_received"] == 1
    assert world.alice.associations[0].route == (0, B)
