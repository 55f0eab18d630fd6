"""Paths that go silent: stall, probe, heartbeat, another dial; no live path is given up, no dead one is kept."""

from __future__ import annotations

import pytest

from crust.config import Config
from crust.errors import PeerLost
from crust.proto.session.events import PathDead, PathStalled
from crust.testing.pair import Link, Pair, Peer
from crust.wire import frames

KIB = 1024
MIB = 1024 * KIB


def joined(**settings: float) -> tuple[Pair, Link]:
    pair = Pair(Config(**settings))  # type: ignore[arg-type]
    link = pair.add_path(delay=0.01)
    pair.run(2)
    return pair, link


class TestStall:
    def test_half_a_second_without_progress(self) -> None:
        pair, link = joined()
        link.blackhole()
        start = pair.clock.now
        pair.a.send(b"x")
        assert pair.run(5, until=lambda: pair.a.count(PathStalled) > 0)
        assert pair.clock.now - start == pytest.approx(0.5, abs=0.01)
        assert pair.a.session.needs_path()

    def test_three_round_trips_on_a_slow_path(self) -> None:
        pair = Pair()
        link = pair.add_path(delay=1.0)
        pair.run(10)
        link.blackhole()
        start = pair.clock.now
        pair.a.send(b"x")
        assert pair.run(20, until=lambda: pair.a.count(PathStalled) > 0)
        assert pair.clock.now - start == pytest.approx(6.0, rel=0.2)

    def test_asks_for_a_dial_once_a_second(self) -> None:
        pair, link = joined(path_timeout=60)
        link.blackhole()
        pair.a.send(b"x")
        pair.run(10)
        assert 9 <= pair.a.count(PathStalled) <= 11

    def test_a_peer_that_answers_but_reads_nothing_is_no_stall(self) -> None:
        pair, _ = joined(receive_window_bytes=256 * KIB)
        for _ in range(100):
            pair.a.send(bytes(10 * KIB))
        pair.run(30)
        assert not pair.a.count(PathStalled)
        assert not pair.a.count(PathDead)

    def test_a_slow_path_is_no_stall(self) -> None:
        pair = Pair()
        pair.add_path(rate=20_000, capacity=64 * KIB, delay=0.05)
        pair.a.send(bytes(400_000))
        pair.run(40)
        assert pair.b.read_all() == [bytes(400_000)]
        assert pair.a.count(PathDead) == 0

    def test_answers_when_it_was_merely_slow(self) -> None:
        pair, link = joined()
        link.hold()
        pair.a.send(b"x")
        pair.run(2)
        assert pair.a.session.needs_path()
        link.hold(held=False)
        pair.run(1)
        assert not pair.a.session.needs_path()
        assert pair.b.read_all() == [b"x"]

    def test_no_sign_of_life_ends_the_path(self) -> None:
        pair, link = joined(path_timeout=3)
        link.blackhole()
        pair.a.send(b"x")
        assert pair.run(10, until=lambda: pair.a.count(PathDead) > 0)
        assert pair.a.session.path_ids == []

    def test_a_second_silence_is_found_as_well(self) -> None:
        """The path answers the first probe, and dies within the time that this one had."""
        pair, link = joined(path_timeout=5)
        link.hold()
        pair.a.send(b"x")
        pair.run(1)
        link.hold(held=False)
        pair.run(1)
        link.blackhole()
        start = pair.clock.now
        pair.a.send(b"y")
        assert pair.run(30, until=lambda: pair.a.count(PathDead) > 0)
        assert pair.clock.now - start < 7

    def test_another_path_takes_over_at_once(self) -> None:
        pair, link = joined()
        standby = pair.add_path(rank=50)
        pair.run(1)
        link.blackhole()
        pair.a.send(b"x")
        pair.run(0.7)
        assert pair.b.read_all() == [b"x"]
        assert pair.a.session.active_path == standby.id


class TestReceiverOnly:
    """The side that sends nothing has no stall of its own; it must follow its peer to the path that works."""

    def stalled(self, pair: Pair, sender: int) -> tuple[Peer, Peer]:
        """Who sends much data and who gets it, on a path that carries no more; dialling again gives another one."""
        link = pair.add_path(delay=0.01)
        pair.run(2)
        ours, theirs = pair.peers[sender], pair.peers[1 - sender]

        def redial(peer: Peer) -> None:
            if len(pair.links) == 1:
                pair.add_path(delay=0.01, dialler=peer.side)

        pair.redial = redial
        link.blackhole()
        for _ in range(40):
            ours.send(bytes(100 * KIB))
        return ours, theirs

    @pytest.mark.parametrize("sender", [0, 1])
    def test_acknowledges_where_it_hears(self, sender: int) -> None:
        pair = Pair(Config(retention_bytes=512 * KIB))
        ours, theirs = self.stalled(pair, sender)
        start = pair.clock.now
        assert pair.run(20, until=lambda: not ours.session.outbox.has_work())
        assert pair.clock.now - start < 2.5
        assert len(theirs.read_all()) == 40

    @pytest.mark.parametrize("sender", [0, 1])
    def test_gives_credit_where_it_hears(self, sender: int) -> None:
        pair = Pair(Config(receive_window_bytes=256 * KIB))
        _, theirs = self.stalled(pair, sender)
        got = 0
        start = pair.clock.now
        while got < 40 and pair.run(20, until=lambda: theirs.session.inbox.has_message):
            got += len(theirs.read_all())
        assert got == 40
        assert pair.clock.now - start < 3

    @pytest.mark.parametrize("sender", [0, 1])
    def test_the_path_that_works_is_not_called_surplus(self, sender: int) -> None:
        """Which path is surplus is said only when the active one has answered since the other came up."""
        pair = Pair()
        link = pair.add_path(delay=0.01)
        pair.run(2)
        link.blackhole()
        pair.peers[sender].send(b"x")
        pair.run(0.6)
        again = pair.add_path(delay=0.01, dialler=sender)
        pair.run(0.1)
        other = pair.peers[1 - sender].session
        active = other.active_path
        assert active == again.id or not other.confirmed(link.id)
        pair.run(1)
        assert other.active_path == again.id

    def test_a_live_path_stays_when_another_comes_up(self) -> None:
        pair, link = joined()
        pair.add_path(delay=0.01)
        pair.run(5)
        for peer in pair.peers:
            assert peer.session.active_path == link.id
            assert peer.session.confirmed(link.id)
            assert not peer.count(PathStalled)


class TestHeartbeat:
    def test_a_silent_path_is_found(self) -> None:
        pair, link = joined(heartbeat=20, path_timeout=10)
        link.blackhole()
        start = pair.clock.now
        assert pair.run(100, until=lambda: all(peer.count(PathDead) for peer in pair.peers))
        assert pair.clock.now - start <= 31

    def test_an_idle_path_lives_for_ever(self) -> None:
        pair, link = joined()
        pair.run(3600)
        for peer in pair.peers:
            assert peer.session.path_ids == [link.id]
            assert not peer.count(PathDead)
        assert link.lanes[0].carried < 500

    def test_the_inactivity_limit_counts_from_the_last_sign_of_life(self) -> None:
        pair, link = joined(heartbeat=20, path_timeout=1000, inactivity_timeout=45)
        link.blackhole()
        start = pair.clock.now
        assert pair.run(100, until=lambda: pair.a.count(PathDead) > 0)
        assert 40 <= pair.clock.now - start <= 46

    def test_a_path_that_never_says_hello_is_given_up(self) -> None:
        pair = Pair()
        link = pair.add_path()
        link.blackhole()
        assert pair.run(60, until=lambda: pair.a.count(PathDead) > 0)

    def test_probe_on_demand(self) -> None:
        pair, link = joined(path_timeout=2)
        pair.a.session.probe(link.id, pair.clock.now)
        pair.run(5)
        assert not pair.a.count(PathDead)
        link.blackhole()
        pair.a.session.probe(link.id, pair.clock.now)
        pair.run(3)
        assert pair.a.count(PathDead) == 1


def test_a_flapping_path_ends_nothing() -> None:
    pair, link = joined(path_timeout=5)
    for n in range(30):
        link.hold()
        pair.a.send(b"%d" % n)
        pair.run(0.9)
        link.hold(held=False)
        pair.run(0.3)
    assert pair.b.read_all() == [b"%d" % n for n in range(30)]
    assert not pair.a.count(PathDead)


def test_everything_dead_for_ever_ends_in_one_event() -> None:
    pair, link = joined(resume_timeout=30)
    link.blackhole()
    pair.a.send(b"x")
    pair.run(200)
    for peer in pair.peers:
        assert isinstance(peer.ended, PeerLost)
        assert pair.at_rest()


def test_the_round_trip_is_measured() -> None:
    pair = Pair(Config(heartbeat=1))
    link = pair.add_path(delay=0.2)
    pair.run(60)
    assert pair.a.session.path_rtt(link.id) == pytest.approx(0.4, rel=0.05)


def test_frames_of_a_probe_are_a_ping() -> None:
    pair, link = joined()
    pair.a.session.probe(link.id, pair.clock.now)
    group = pair.a.session.next_group(link.id, pair.clock.now)
    assert group is not None
    assert [type(f) for f in frames.parse_frames(*group, start=1)] == [frames.Ping]
