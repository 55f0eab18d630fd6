"""An endpoint among others: dials, knocks, strangers, load."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from crust.proto.noise.outcome import FailureReason
from crust.proto.tunnel.constants import HANDSHAKE_BURST, MAX_KNOCKS, RETRANSMIT_SECONDS
from crust.proto.tunnel.endpoint import Knock
from crust.proto.tunnel.events import DialFailed, DialSucceeded, Knocked
from crust.proto.utp.events import Connected
from crust.testing.simnet import LinkConfig
from crust.testing.tunnel_sim import TunnelHost
from crust.wire.handshake import Hint
from tests.unit.proto.tunnel.world import DELAY, ELSEWHERE, A, Address, B, World, some_data


def knocks_of(host: TunnelHost) -> list[Knock]:
    return [event.knock for event in host.events if isinstance(event, Knocked)]


class TestDial:
    def test_one_round_trip(self) -> None:
        world = World()
        dial = world.alice.dial(world.bob)
        assert world.after(1, lambda: world.alice.associations)
        assert world.now - world.started == pytest.approx(2 * DELAY, abs=1e-3)
        event = world.alice.events[-1]
        assert isinstance(event, DialSucceeded)
        assert event.dial is dial
        ours = event.association
        assert ours.peer == world.bob.identity.id
        assert ours.proved
        assert ours.utp.srtt == pytest.approx(2 * DELAY, abs=1e-3)
        theirs = world.bob.associations[0]
        assert theirs.peer == world.alice.identity.id
        assert not theirs.proved
        assert ours.utp.next_event() is None
        assert world.alice.utp_events[ours] == [Connected()]

    def test_data_with_the_third_flight(self) -> None:
        """Two round trips from the dial to the first echo: µTP's own SYN costs none."""
        world = World()

        def echo(association: object) -> None:
            host, found = world.bob, world.bob.associations[0]
            host.send(found, bytes(host.received[found]))

        world.bob.on_read = echo
        world.alice.dial(world.bob)
        world.after(1, lambda: world.alice.associations)
        ours = world.alice.associations[0]
        world.alice.send(ours, b"echo this")
        assert world.after(1, lambda: world.alice.received[ours] == b"echo this")
        assert world.now - world.started == pytest.approx(4 * DELAY, abs=2e-3)

    def test_lost_messages_are_sent_again_each_in_a_new_dress(self) -> None:
        world = World()
        world.recording = True
        lost = itertools.count()
        world.tamper = lambda source, target, data: [] if next(lost) < 3 else [data]
        world.alice.dial(world.bob)
        assert world.after(5, lambda: world.alice.associations)
        requests = [data for source, _, data in world.wire if source == A]
        assert len(requests) == 4
        assert world.now - world.started == pytest.approx(sum(RETRANSMIT_SECONDS[:3]) + 2 * DELAY, rel=0.2)
        for one, two in itertools.combinations(requests, 2):
            assert sum(x == y for x, y in zip(one, two, strict=False)) < 20

    def test_a_lost_answer_is_sent_again_in_a_new_dress(self) -> None:
        world = World()
        world.recording = True
        answers = itertools.count()
        world.tamper = lambda source, target, data: [] if source == B and next(answers) < 2 else [data]
        world.alice.dial(world.bob)
        assert world.after(5, lambda: world.alice.associations)
        sent = [data for source, _, data in world.wire if source == B]
        assert len(sent) == len(set(sent)) == 3
        assert len(knocks_of(world.bob)) == len(world.bob.associations) == 1

    def test_copies_of_a_request_get_copies_of_one_answer(self) -> None:
        world = World()
        world.tamper = lambda source, target, data: [data] * 5 if source == A else [data]
        world.recording = True
        ours, _ = world.connect()
        assert len(world.bob.associations) == 1
        assert len({data for source, _, data in world.wire if source == B and len(data) > 150}) == 1
        assert len(world.alice.associations) == 1
        assert ours is world.alice.associations[0]

    def test_nobody_there(self) -> None:
        world = World()
        del world.hosts[B]
        world.recording = True
        dial = world.alice.dial(world.bob)
        world.after(60)
        assert world.alice.events == []
        assert 8 <= dial.sends <= 12
        assert len(world.wire) == dial.sends
        world.alice.endpoint.cancel(dial)
        world.alice.endpoint.cancel(dial)
        assert not world.alice.endpoint.dialling
        world.after(60)
        assert len(world.wire) == dial.sends
        assert world.alice.endpoint.next_timeout() is None

    def test_an_answer_after_the_dial_was_given_up(self) -> None:
        world = World()
        dial = world.alice.dial(world.bob)
        world.alice.endpoint.cancel(dial)
        world.after(1)
        assert world.alice.events == []
        assert world.alice.endpoint.stats["datagram.stranger"] == 1

    def test_both_dial_each_other(self) -> None:
        world = World()
        world.alice.dial(world.bob)
        world.bob.dial(world.alice)
        world.after(1)
        for host, other in ((world.alice, world.bob), (world.bob, world.alice)):
            assert len(host.associations) == 2
            for association in host.associations:
                if association.initiator:
                    host.send(association, b"from " + host.address[0].encode())
            world.after(1)
            assert sorted(map(bytes, other.received.values()))[-1] == b"from " + host.address[0].encode()

    def test_many_dials_at_once(self) -> None:
        world = World()
        others = [TunnelHost(world, (f"10.0.1.{number}", 1)) for number in range(40)]
        for other in others:
            world.alice.dial(other)
        assert world.after(2, lambda: len(world.alice.associations) == 40)
        for association in world.alice.associations:
            world.alice.send(association, bytes(association.peer))
        world.after(1)
        for other in others:
            assert [bytes(found) for found in other.received.values()] == [bytes(other.identity.id)]


class TestKnock:
    def test_refused(self) -> None:
        world = World()
        world.bob.accepting = False
        world.alice.dial(world.bob)
        world.after(1, lambda: world.bob.events)
        [knock] = knocks_of(world.bob)
        assert knock.hello.peer == world.alice.identity.id
        world.bob.endpoint.refuse(knock, Hint.BUSY)
        world.bob.pump()
        assert world.bob.endpoint.pending == 0
        world.after(1)
        [event] = world.alice.events
        assert isinstance(event, DialFailed)
        assert event.error.reason is FailureReason.BUSY
        assert not world.alice.endpoint.dialling

    def test_decided_late(self) -> None:
        """The dialler keeps asking; the answer goes to its last question."""
        world = World()
        world.bob.accepting = False
        world.alice.dial(world.bob)
        world.after(10)
        [knock] = knocks_of(world.bob)
        world.bob._add(world.bob.endpoint.accept(knock, world.bob.config, world.now))
        world.bob.pump()
        assert world.after(0.1, lambda: world.alice.associations)

    def test_forgotten(self) -> None:
        world = World()
        world.bob.accepting = False
        world.alice.dial(world.bob)
        world.after(1, lambda: world.bob.events)
        world.bob.endpoint.forget(knocks_of(world.bob)[0])
        world.after(5)
        assert len(world.bob.events) == 1
        assert world.bob.endpoint.stats["handshake.replayed"] >= 2

    def test_another_network_is_told_by_itself(self) -> None:
        world = World()
        world.alice = TunnelHost(world, A, network="elsewhere")
        world.alice.dial(world.bob)
        world.after(1)
        assert world.bob.events == []
        [event] = world.alice.events
        assert isinstance(event, DialFailed)
        assert event.error.reason is FailureReason.NETWORK_MISMATCH

    def test_a_replayed_request_after_the_handshake(self) -> None:
        world = World()
        world.recording = True
        world.connect()
        world.after(1)
        request = world.wire[0][2]
        answers = sum(source == B for source, _, _ in world.wire)
        world.send(ELSEWHERE, B, request)
        world.after(1)
        assert sum(source == B for source, _, _ in world.wire) == answers
        assert len(world.bob.associations) == 1

    def test_the_table_is_capped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crust.proto.tunnel.entrance.MAX_KNOCKS", 5)
        world = World()
        world.bob.accepting = False
        for number in range(8):
            TunnelHost(world, (f"10.0.1.{number}", 1)).dial(world.bob)
        world.after(0.2)
        assert world.bob.endpoint.pending == len(knocks_of(world.bob)) == 5
        assert world.bob.endpoint.stats["handshake.table_full"] == 3
        assert MAX_KNOCKS > 5


class TestUnderLoad:
    def flood(self, world: World, count: int) -> None:
        """Use up the rate of handshakes."""
        for number in range(count):
            TunnelHost(world, (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 9)).dial(world.bob)

    def test_only_cookies_and_no_state(self) -> None:
        world = World()
        world.bob.accepting = False
        world.tamper = lambda source, target, data: [data] if target == B else []
        burst = int(HANDSHAKE_BURST)
        self.flood(world, burst + 60)
        world.after(DELAY + 0.001)
        stats = world.bob.endpoint.stats
        assert burst <= len(knocks_of(world.bob)) <= burst + 10
        assert 50 <= stats["handshake.cookie_sent"] <= 60
        assert world.bob.endpoint.pending == len(knocks_of(world.bob))

    def test_who_shows_a_cookie_comes_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crust.proto.tunnel.cookie.HANDSHAKE_BURST", 0.0)
        monkeypatch.setattr("crust.proto.tunnel.cookie.HANDSHAKE_RATE", 0.0)
        world = World()
        world.alice.dial(world.bob)
        assert world.after(2, lambda: world.alice.associations)
        assert world.bob.endpoint.stats["handshake.cookie_sent"] == 1
        assert world.alice.endpoint.stats["handshake.cookie_received"] == 1
        assert world.now - world.started == pytest.approx(4 * DELAY, abs=0.01)

    def test_a_cookie_for_another_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who sees a cookie cannot use it from elsewhere."""
        monkeypatch.setattr("crust.proto.tunnel.cookie.HANDSHAKE_BURST", 0.0)
        monkeypatch.setattr("crust.proto.tunnel.cookie.HANDSHAKE_RATE", 0.0)
        world = World()

        def move(source: Address, target: Address, data: bytes) -> list[bytes]:
            if source == A and world.alice.endpoint.stats["handshake.cookie_received"]:
                world.link(ELSEWHERE, B).send(data, lambda found: world.bob.receive(found, (0, ELSEWHERE)))
                return []
            return [data]

        world.tamper = move
        world.alice.dial(world.bob)
        world.after(2)
        assert world.bob.events == []
        assert world.bob.endpoint.stats["handshake.cookie_sent"] >= 2

    def test_cookie_replies_end_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HANDSHAKE_BURST", "HANDSHAKE_RATE", "COOKIE_REPLY_BURST", "COOKIE_REPLY_RATE"):
            monkeypatch.setattr(f"crust.proto.tunnel.cookie.{name}", 0.0)
        world = World()
        world.recording = True
        world.alice.dial(world.bob)
        world.after(DELAY + 0.001)
        assert world.bob.endpoint.stats["handshake.over_rate"] == 1
        assert not [data for source, _, data in world.wire if source == B]


class TestStrangers:
    def test_noise_of_any_size(self) -> None:
        world = World()
        chance = random.Random(1)
        sizes = [*range(1, 60), *range(200, 260), 1200, 1472, 9000]
        for size in sizes:
            world.send(ELSEWHERE, B, chance.randbytes(size))
        world.recording = True
        world.after(1)
        assert world.wire == []
        stats = world.bob.endpoint.stats
        assert stats["datagram.short"] == 47
        assert stats["datagram.stranger"] == len(sizes) - 47
        assert world.bob.endpoint.pending == 0

    def test_noise_in_one_batch(self) -> None:
        world = World()
        chance = random.Random(1)
        data = chance.randbytes(44 * 1472 + 20)
        world.bob.endpoint.receive_datagrams(memoryview(data), 1472, (0, ELSEWHERE), world.now)
        assert world.bob.endpoint.stats == Counter({"datagram.stranger": 44, "datagram.short": 1})
        world.bob.endpoint.receive_datagrams(memoryview(data), 40, (0, ELSEWHERE), world.now)
        world.bob.endpoint.receive_datagrams(memoryview(data), 100, (0, ELSEWHERE), world.now)
        assert world.bob.endpoint.next_event() is None

    def test_mutated_datagrams_of_a_peer(self) -> None:
        world = World()
        ours, theirs = world.connect()
        chance = random.Random(1)

        def mutate(source: Address, target: Address, data: bytes) -> list[bytes]:
            broken = bytearray(data)
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
            return [bytes(broken), data[: chance.randrange(len(data))], data, data]

        world.tamper = mutate
        data = some_data(300_000)
        assert world.transfer(world.alice, ours, world.bob, theirs, data, 60)
        stats = world.bob.endpoint.stats
        assert stats["datagram.forged"] > 20
        assert stats["datagram.replayed"] > 100
        assert stats["datagram.stranger"] > 0
        assert set(stats) <= {"datagram.forged", "datagram.replayed", "datagram.stranger", "datagram.short"}
        assert len(world.bob.associations) == 1
        assert not ours.utp.ended

    def test_replayed_from_elsewhere(self) -> None:
        """A copy from a foreign address moves nothing."""
        world = World()
        ours, theirs = world.connect()
        world.recording = True
        world.transfer(world.alice, ours, world.bob, theirs, some_data(50_000), 10)
        copies = [data for source, _, data in world.wire if source == A]
        world.recording = False
        for copy in copies:
            world.send(ELSEWHERE, B, copy)
        world.after(1)
        assert theirs.route == (0, A)
        assert world.bob.endpoint.stats["datagram.replayed"] == len(copies)
        assert world.bob.endpoint.stats["tunnel.new_address"] == 0

    def test_what_comes_after_the_end(self) -> None:
        world = World()
        ours, theirs = world.connect()
        theirs.close()
        theirs.close()
        world.alice.send(ours, b"anybody?")
        world.after(5)
        assert world.bob.endpoint.stats["datagram.stranger"] >= 1
        assert world.bob.received[theirs] == b""


def test_everything_on_the_wire_looks_random() -> None:
    """200 handshakes and some data: no byte position is constant or even unlikely, and lengths vary."""
    positions: dict[int, list[bytes]] = {0: [], 1: [], 2: [], 3: []}
    first: list[bytes] = []
    for seed in range(200):
        world = World(seed=seed)
        world.recording = True
        ours, theirs = world.connect()
        world.transfer(world.alice, ours, world.bob, theirs, b"x" * 300, 5)
        first.append(b"".join(data for _, _, data in world.wire[:1]))
        for at, (_, _, data) in enumerate(world.wire[:4]):
            positions[at].append(data)
    for at, datagrams in positions.items():
        shortest = min(map(len, datagrams))
        assert shortest >= 48
        for position in range(shortest):
            values = Counter(data[position] for data in datagrams)
            # Of 200 draws from 256 values no value comes 12 times (p < 1e-8 for all positions together).
            assert values.most_common(1)[0][1] < 12, (at, position)
        if at < 2:
            assert len(set(map(len, datagrams))) > 60
    assert len(set(first)) == 200


def test_loss_duplicates_and_reordering() -> None:
    for seed in range(4):
        link = LinkConfig(delay=DELAY, loss=0.05, duplicate=0.1, reorder=0.1, reorder_delay=0.03)
        world = World(link, seed=seed)
        ours, theirs = world.connect(30)
        data = some_data(400_000)
        assert world.transfer(world.alice, ours, world.bob, theirs, data, 120)
        assert world.transfer(world.bob, theirs, world.alice, ours, data[::-1], 120)
