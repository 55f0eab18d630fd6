"""What strangers send costs little, and gets nothing but what it should."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from crust.crypto.keys import Identity
from crust.proto.noise.envelope import outer_secret
from crust.proto.tunnel.constants import ANSWER_BURST, ANSWERS_KEPT, MAX_REQUEST, REQUESTS_REMEMBERED
from crust.proto.tunnel.handshake import SMALLEST_REQUEST, SaltMark, make_salt
from crust.proto.tunnel.sealing import Opener
from crust.testing.tunnel_sim import TunnelHost
from crust.wire.tunnel import SMALLEST_DATAGRAM
from tests.unit.proto.tunnel.world import ELSEWHERE, A, Address, B, World, some_data

SOURCE = (0, ELSEWHERE)


def feed(host: TunnelHost, datagrams: list[bytes], *, source: tuple[int, Address] = SOURCE) -> None:
    """Datagrams of one size, in one piece as UDP_GRO gives them."""
    data = b"".join(datagrams)
    host.endpoint.receive_buffer[: len(data)] = data
    host.endpoint.receive_datagrams(
        host.endpoint.receive_buffer[: len(data)], len(datagrams[0]), source, host.world.net.now
    )


class TestMark:
    def test_own_and_others(self) -> None:
        chance = random.Random(1)
        ours, theirs = (outer_secret(Identity.generate().id) for _ in range(2))
        mark = SaltMark(ours)
        for _ in range(200):
            rest = chance.randbytes(300)
            for shows in (False, True):
                assert mark.read(make_salt(ours, chance.randbytes, shows=shows) + rest, 316) is shows
            assert mark.read(make_salt(theirs, chance.randbytes) + rest, 316) is None
            assert mark.read(chance.randbytes(300), 300) is None
            broken = bytearray(make_salt(ours, chance.randbytes) + rest)
            broken[chance.randrange(16)] ^= 1 << chance.randrange(8)
            assert mark.read(bytes(broken), 316) is None

    @pytest.mark.parametrize("size", [0, 15, 16, SMALLEST_REQUEST - 1, MAX_REQUEST + 1])
    def test_impossible_lengths(self, size: int) -> None:
        secret = outer_secret(Identity.generate().id)
        salt = make_salt(secret, random.Random(2).randbytes)
        assert SaltMark(secret).read(salt.ljust(size, b"\0")[:size], size) is None

    def test_a_salt_is_never_the_same_and_tells_nothing(self) -> None:
        chance = random.Random(3)
        secret = outer_secret(Identity.from_seed(bytes(32)).id)
        salts = [make_salt(secret, chance.randbytes, shows=number % 2 == 0) for number in range(6000)]
        assert len(set(salts)) == 6000
        for at in range(16):
            assert len({salt[at] for salt in salts}) == 256


class TestShort:
    @pytest.mark.parametrize("size", range(SMALLEST_DATAGRAM))
    def test_each_one_is_counted(self, size: int) -> None:
        world = World()
        feed(world.bob, [bytes(size)])
        if size:
            feed(world.bob, [bytes(size)] * 5)
        assert world.bob.endpoint.stats == {"datagram.short": 6 if size else 1}

    def test_at_the_end_of_a_batch(self) -> None:
        world = World()
        feed(world.bob, [*[bytes(100)] * 3, bytes(20)])
        assert world.bob.endpoint.stats == {"datagram.short": 1, "datagram.stranger": 3}


def test_batches_of_strangers_do_not_drive_out_the_plans_of_friends() -> None:
    world = World()
    ours, theirs = world.connect()
    assert world.transfer(world.alice, ours, world.bob, theirs, some_data(400_000), 60)
    planner = world.bob.endpoint._opener._planner
    before = dict(planner._plans)
    assert before
    chance = random.Random(4)
    for size in range(100, 160):
        feed(world.bob, [chance.randbytes(size) for _ in range(30)])
    assert dict(planner._plans) == before
    assert world.bob.endpoint.stats["datagram.stranger"] == 60 * 30


def test_a_plan_is_made_of_what_proved_authentic_only() -> None:
    opener = Opener()
    opener.unmask(World().bob.endpoint._mask, opener.buffer[: 100 * 20], 100, 20)
    assert not opener._planner._plans


class TestCopies:
    def world(self) -> tuple[World, bytes]:
        """Bob has answered Alice's request, and the answer was lost."""
        world = World()
        world.recording = True
        world.tamper = lambda source, target, data: [data] if source == A else []
        world.alice.dial(world.bob)
        world.after(0.1)
        request = next(data for source, _, data in world.wire if source == A)
        world.wire.clear()
        assert world.bob.endpoint.pending == 1
        return world, request

    def answers(self, world: World) -> list[bytes]:
        world.bob.pump()
        found = [data for source, _, data in world.wire if source != A]
        world.wire.clear()
        return found

    def test_a_copy_is_answered_alike(self) -> None:
        world, request = self.world()
        feed(world.bob, [request])
        feed(world.bob, [request])
        assert len(set(self.answers(world))) == 1

    def test_what_is_no_copy_gets_nothing(self) -> None:
        """Else a shortened one would be a question that is smaller than its answer."""
        world, request = self.world()
        shortened = request[:16] + request[-SMALLEST_REQUEST + 16 :]
        altered = request[:-1] + bytes([request[-1] ^ 1])
        for each in (shortened, altered):
            feed(world.bob, [each])
        assert self.answers(world) == []
        assert world.bob.endpoint.stats == {"datagram.forged": 2}

    def test_answers_to_copies_are_bounded(self) -> None:
        world, request = self.world()
        for _ in range(100):
            feed(world.bob, [request] * 20)
        assert len(self.answers(world)) <= ANSWER_BURST
        assert world.bob.endpoint.stats["handshake.over_rate"] >= 2000 - ANSWER_BURST
        world.after(2)
        feed(world.bob, [request])
        assert len(self.answers(world)) >= 1

    def test_hints_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What cannot be read takes no place among handshakes, so their rate does not bound it."""
        world = World()
        mallory = TunnelHost(world, ELSEWHERE)
        with monkeypatch.context() as patch:
            patch.setattr("crust.wire.tunnel.VERSION", 99)
            handshake = mallory.dial(world.bob).handshake
            questions = [handshake.request() for _ in range(800)]
        world.recording = True
        for question in questions:
            feed(world.bob, [question])
        hints = self.answers(world)
        assert ANSWER_BURST - 1 <= len(hints) <= ANSWER_BURST
        assert world.bob.endpoint.stats["handshake.unsupported_version"] == 800
        assert max(map(len, hints)) < min(map(len, questions))

    def test_of_a_finished_handshake(self) -> None:
        world = World()
        world.recording = True
        world.connect()
        request = next(data for source, _, data in world.wire if source == A)
        world.wire.clear()
        for _ in range(50):
            feed(world.bob, [request] * 20)
        assert self.answers(world) == []
        assert world.bob.endpoint.stats["handshake.replayed"] == 1000
        assert len(world.bob.associations) == 1

    def test_what_is_remembered_is_bounded(self) -> None:
        world = World()
        mallory = TunnelHost(world, ELSEWHERE)
        dial = mallory.dial(world.bob)
        for _ in range(REQUESTS_REMEMBERED + 10):
            feed(world.bob, [dial.handshake.request()])
        assert len(world.bob.endpoint._entrance._requests) == REQUESTS_REMEMBERED
        assert world.bob.endpoint.pending == 1
        knock = next(iter(world.bob.endpoint._entrance.knocks.values()))
        assert len(knock.responder._answers) <= ANSWERS_KEPT


class TestCrowd:
    """Single datagrams of many sources in one call: the same comes of them as one by one."""

    def both(self, datagrams: list[bytes], prepare: Callable[[World], object] = lambda world: None) -> World:
        worlds = World(), World()
        for world in worlds:
            prepare(world)
        sources = [(0, (f"10.4.0.{at}", 4)) for at in range(len(datagrams))]
        for datagram, source in zip(datagrams, sources, strict=True):
            worlds[0].bob.endpoint.receive_datagrams(memoryview(datagram), len(datagram) or 1, source, worlds[0].now)
        asked: list[int] = []

        def route(at: int) -> tuple[int, Address]:
            asked.append(at)
            return sources[at]

        worlds[1].bob.endpoint.receive_many(
            [memoryview(each) for each in datagrams], route, lambda at: bytes((10, 4, 0, at)), worlds[1].now
        )
        assert worlds[0].bob.endpoint.stats == worlds[1].bob.endpoint.stats
        assert worlds[0].bob.endpoint.pending == worlds[1].bob.endpoint.pending
        self.asked = asked
        return worlds[1]

    def test_noise(self) -> None:
        chance = random.Random(5)
        sizes = [0, 1, SMALLEST_DATAGRAM - 1, SMALLEST_DATAGRAM, SMALLEST_REQUEST, MAX_REQUEST, 9000]
        world = self.both([chance.randbytes(size) for size in sizes])
        assert world.bob.endpoint.stats == {"datagram.short": 3, "datagram.stranger": 4}
        assert self.asked == []  # not even their addresses are made

    def test_nothing_but_short_ones(self) -> None:
        assert self.both([b"", b"short"]).bob.endpoint.stats == {"datagram.short": 2}

    @pytest.mark.parametrize("loaded", [False, True])
    def test_requests(self, loaded: bool) -> None:
        chance = random.Random(6)
        asked = TunnelHost(World(), ELSEWHERE).dial(World().bob).handshake

        def prepare(world: World) -> None:
            while loaded and world.bob.endpoint._entrance._admission.admits(world.now):
                pass

        request = asked.request()
        long = request[:16] + bytes(MAX_REQUEST)
        broken = asked.request()[:-1] + b"!"
        world = self.both([request, chance.randbytes(300), request, broken, long, asked.request()], prepare)
        assert world.bob.endpoint.pending == (0 if loaded else 1)
        assert world.bob.endpoint.stats["handshake.cookie_sent"] == (2 if loaded else 0)
        assert world.bob.endpoint.stats["datagram.stranger"] == 3

    def test_data_between_noise(self) -> None:
        world = World()
        ours, theirs = world.connect()
        world.recording = True
        world.tamper = lambda source, target, data: []
        world.alice.send(ours, b"hello")
        wanted = [data for source, target, data in world.wire if target == B]
        chance = random.Random(7)
        crowd = [chance.randbytes(300) for _ in range(20)] + wanted + [chance.randbytes(300) for _ in range(20)]
        world.bob.endpoint.receive_many(
            [memoryview(each) for each in crowd], lambda at: (0, A), lambda at: b"host", world.now
        )
        world.bob.pump()
        assert world.bob.received[theirs] == b"hello"
        assert world.bob.endpoint.stats["datagram.stranger"] == 40

    def test_an_answer_to_a_dial_between_noise(self) -> None:
        world = World()
        world.alice.dial(world.bob)
        answers: list[bytes] = []
        world.tamper = lambda source, target, data: [data] if target == B else answers.append(data) or []  # type: ignore[func-returns-value]
        world.after(0.1)
        chance = random.Random(8)
        crowd = [chance.randbytes(300), *answers, chance.randbytes(300)]
        world.alice.endpoint.receive_many(
            [memoryview(each) for each in crowd], lambda at: (0, B), lambda at: b"host", world.now
        )
        world.alice.pump()
        assert len(world.alice.associations) == 1
