"""One association: data, new keys, a peer that moves, silence, the end."""

from __future__ import annotations

import pytest

from crust.proto.tunnel.association import Association
from crust.proto.tunnel.constants import (
    KEEPALIVE_SECONDS,
    MAX_CONTROL_QUEUE,
    MAX_DATAGRAMS,
    OLD_KEY_SECONDS,
    QUIET_BYTES,
    QUIET_TRIES,
    RENEW_DATAGRAMS,
    RENEW_RESPONDER_DELAY,
    RENEW_SECONDS,
)
from crust.proto.tunnel.events import Lost, Moved
from crust.proto.utp.events import Ended, EndReason, PeerFinished
from crust.testing.simnet import LinkConfig
from crust.testing.tunnel_sim import TunnelHost, tunnel_config
from crust.wire.tunnel import ControlKind
from tests.unit.proto.tunnel.world import DELAY, ELSEWHERE, A, Address, B, World, some_data

FAST = LinkConfig(delay=DELAY, rate=100e6, buffer_bytes=125_000)
QUEUE = 0.01  # what the buffer adds to a round trip


class TestData:
    def test_both_ways(self) -> None:
        world = World(FAST)
        ours, theirs = world.connect()
        data = some_data(3_000_000)
        assert world.transfer(world.alice, ours, world.bob, theirs, data, 30)
        assert world.transfer(world.bob, theirs, world.alice, ours, data, 30)
        assert world.alice.endpoint.stats == world.bob.endpoint.stats == {}

    def test_runs_are_opened_at_once(self) -> None:
        world = World(LinkConfig(delay=DELAY))
        ours, theirs = world.connect()
        assert world.transfer(world.alice, ours, world.bob, theirs, some_data(1_000_000), 30)
        assert theirs.utp.stats.packets_received > 500
        assert theirs.utp.stats.dropped == {}

    def test_path_mtu_is_found(self) -> None:
        link = LinkConfig(delay=DELAY, mtu=1400, rate=10e6, buffer_bytes=100_000)
        world = World(link, config=tunnel_config(mtu_ceiling=1444))
        ours, theirs = world.connect()
        assert world.transfer(world.alice, ours, world.bob, theirs, some_data(4_000_000), 60)
        assert ours.utp.mtu + 28 in (1350, 1392)

    def test_a_datagram_that_the_system_refuses(self) -> None:
        world = World(config=tunnel_config(mtu_ceiling=65_000))
        ours, theirs = world.connect()
        transmit = world.alice._transmit

        def refuse(out: object) -> None:
            if out.size > 1472:  # type: ignore[attr-defined]
                out.association.datagram_too_big(out.size, world.now)  # type: ignore[attr-defined]
                world.alice.endpoint.touch(ours)
            else:
                transmit(out)  # type: ignore[arg-type]

        world.alice._transmit = refuse  # type: ignore[method-assign]
        assert world.transfer(world.alice, ours, world.bob, theirs, some_data(3_000_000), 60)
        assert 1400 < ours.utp.mtu <= 1444

    def test_orderly_end(self) -> None:
        world = World()
        ours, theirs = world.connect()
        ours.utp.send_data(b"last words", world.now)
        ours.utp.close()
        world.alice.endpoint.touch(ours)
        world.alice.pump()
        world.after(1)
        assert world.bob.received[theirs] == b"last words"
        assert PeerFinished() in world.bob.utp_events[theirs]
        theirs.utp.close()
        world.bob.endpoint.touch(theirs)
        world.bob.pump()
        world.after(20)
        for host, association in ((world.alice, ours), (world.bob, theirs)):
            end = host.utp_events[association][-1]
            assert isinstance(end, Ended)
            assert end.reason is EndReason.CLOSED

    def test_reset(self) -> None:
        world = World()
        ours, theirs = world.connect()
        ours.utp.abort()
        world.alice.endpoint.touch(ours)
        world.alice.pump()
        world.after(1)
        end = world.bob.utp_events[theirs][-1]
        assert isinstance(end, Ended)
        assert end.reason is EndReason.RESET


class TestRenewal:
    def renewed(self, host: TunnelHost) -> int:
        return host.endpoint.stats["tunnel.renewed"]

    def carry_both_ways(self, world: World, ours: Association, theirs: Association, size: int) -> None:
        data = some_data(size)
        assert world.transfer(world.alice, ours, world.bob, theirs, data, 10)
        assert world.transfer(world.bob, theirs, world.alice, ours, data, 10)

    @pytest.mark.parametrize("dialler", [True, False])
    def test_either_side(self, dialler: bool) -> None:
        world = World(FAST)
        ours, theirs = world.connect()
        host, association = (world.alice, ours) if dialler else (world.bob, theirs)
        association.renew(world.now)
        host.pump()
        world.after(1)
        assert self.renewed(world.alice) == self.renewed(world.bob) == 1
        self.carry_both_ways(world, ours, theirs, 500_000)

    def test_by_the_clock(self) -> None:
        """Who dialled begins a little before the hour; if it is silent, the other side."""
        world = World()
        world.connect()
        world.after(RENEW_SECONDS - 1)
        assert self.renewed(world.alice) == 0
        world.after(2)
        assert self.renewed(world.alice) == self.renewed(world.bob) == 1
        world.after(RENEW_SECONDS)
        assert self.renewed(world.alice) == self.renewed(world.bob) == 2
        assert RENEW_SECONDS + RENEW_RESPONDER_DELAY < 3600

    def test_in_the_midst_of_a_transfer_under_loss(self) -> None:
        world = World(LinkConfig(delay=DELAY, loss=0.1, reorder=0.2, reorder_delay=0.05), seed=3)
        ours, theirs = world.connect(60)
        data = some_data(400_000)
        got = world.bob.received[theirs]
        world.alice.send(ours, data)
        for _ in range(5):
            world.after(0.7)
            ours.renew(world.now)
            world.alice.pump()
        assert world.after(120, lambda: len(got) == len(data))
        assert bytes(got) == data
        assert self.renewed(world.alice) == self.renewed(world.bob) >= 1

    @pytest.mark.parametrize("larger_dials", [True, False])
    def test_both_at_once(self, larger_dials: bool) -> None:
        """The larger PeerId's stands."""
        world = World(larger_dials=larger_dials)
        ours, theirs = world.connect()
        for host, association in ((world.alice, ours), (world.bob, theirs)):
            association.renew(world.now)
            host.pump()
        world.after(2)
        assert self.renewed(world.alice) == self.renewed(world.bob) == 1
        self.carry_both_ways(world, ours, theirs, 100_000)

    def test_the_old_key_lives_ten_seconds(self) -> None:
        world = World()
        ours, theirs = world.connect()
        held: list[bytes] = []
        world.recording = True
        world.tamper = lambda source, target, data: held.append(data) or [] if source == A else [data]
        world.alice.send(ours, b"held up")
        world.tamper = None
        ours.renew(world.now)
        world.alice.pump()
        world.after(1)
        assert self.renewed(world.bob) == 1
        late, too_late = held[0], held[0]
        world.bob.receive(late, (0, A))
        world.after(1)
        assert world.bob.received[theirs] == b"held up"
        world.after(OLD_KEY_SECONDS)
        strangers = world.bob.endpoint.stats["datagram.stranger"]
        world.bob.receive(too_late, (0, A))
        world.after(0.1)
        assert world.bob.endpoint.stats["datagram.stranger"] == strangers + 1

    def test_indexes_do_not_pile_up(self) -> None:
        world = World()
        ours, theirs = world.connect()
        for _ in range(10):
            ours.renew(world.now)
            world.alice.pump()
            theirs.renew(world.now)
            world.bob.pump()
            world.after(30)
        assert world.alice.endpoint.indexes == world.bob.endpoint.indexes == 1
        ours.close()
        assert world.alice.endpoint.indexes == 0

    def test_lost_messages(self) -> None:
        world = World()
        ours, theirs = world.connect()
        world.after(1)
        lost = [0]

        def lose(source: Address, target: Address, data: bytes) -> list[bytes]:
            lost[0] += 1
            return [] if lost[0] <= 4 else [data]

        world.tamper = lose
        ours.renew(world.now)
        world.alice.pump()
        world.after(10)
        assert self.renewed(world.alice) == self.renewed(world.bob) == 1
        assert world.transfer(world.bob, theirs, world.alice, ours, some_data(10_000), 10)

    def test_by_the_count_and_the_end_of_a_key(self) -> None:
        world = World()
        ours, theirs = world.connect()
        ours._send.counter = RENEW_DATAGRAMS
        assert world.transfer(world.alice, ours, world.bob, theirs, some_data(50_000), 10)
        world.after(1)
        assert self.renewed(world.alice) == 1
        assert ours._send.counter < 1000

    def test_a_peer_that_does_not_renew(self) -> None:
        world = World()
        ours, _ = world.connect()
        ours._send.counter = MAX_DATAGRAMS - 10
        world.tamper = lambda source, target, data: [data] if source == A else []
        world.alice.send(ours, some_data(100_000))
        world.after(5)
        assert Lost(ours) in world.alice.events
        assert ours.closed
        assert world.alice.endpoint.indexes == 0

    @pytest.mark.parametrize("body", [b"", b"\1", b"\1" + bytes(155), b"\7" + bytes(155), bytes(1000)])
    def test_nonsense(self, body: bytes) -> None:
        world = World()
        ours, theirs = world.connect()
        for kind in (ControlKind.RENEW, ControlKind.RENEWED, ControlKind.RESPONSE, ControlKind.CHALLENGE):
            ours._queue(kind, body)
        world.alice.pump()
        world.after(1)
        theirs.renew(world.now)
        ours._queue(ControlKind.RENEWED, body)
        world.alice.pump()
        world.bob.pump()
        world.after(5)
        assert world.transfer(world.alice, ours, world.bob, theirs, some_data(10_000), 5)
        assert world.transfer(world.bob, theirs, world.alice, ours, some_data(10_000), 5)


def roam(world: World, association: Association, *, upload: bool) -> float:
    """Alice moves in the midst of a transfer; returns how long after her first datagram from there data arrive."""
    sender, receiver = (world.alice, world.bob) if upload else (world.bob, world.alice)
    theirs = world.bob.associations[0]
    data = some_data(8_000_000)
    got = receiver.received[theirs if upload else association]
    world.feed(sender, association if upload else theirs, data)
    world.after(0.4)
    assert 0 < len(got) < len(data)
    world.alice.move(ELSEWHERE)
    world.recording = True
    assert world.after(2, lambda: any(source == ELSEWHERE for source, _, _ in world.wire))
    moved = world.now
    world.after(DELAY + 0.01)  # what was on its way before has arrived, or vanished
    before = len(got)
    world.after(5, lambda: len(got) > before)
    gap = world.now - moved
    assert world.after(60, lambda: len(got) >= len(data))
    assert bytes(got) == data
    return gap


class TestRoaming:
    @pytest.mark.parametrize("upload", [True, False])
    def test_traffic_goes_on_within_two_round_trips(self, upload: bool) -> None:
        world = World(FAST)
        ours, theirs = world.connect()
        assert roam(world, ours, upload=upload) <= 2 * (2 * DELAY + QUEUE)
        assert theirs.route == (0, ELSEWHERE)
        assert [event for event in world.bob.events if isinstance(event, Moved)] == [Moved(theirs, (0, ELSEWHERE))]
        assert world.alice.endpoint.stats == {}

    def test_and_back_again(self) -> None:
        world = World(FAST)
        ours, theirs = world.connect()
        for address in (ELSEWHERE, A, ("10.0.0.7", 7), A):
            world.alice.move(address)
            assert world.transfer(world.alice, ours, world.bob, theirs, some_data(50_000), 10)
            assert world.transfer(world.bob, theirs, world.alice, ours, some_data(50_000), 10)
            world.after(0.1)
            assert theirs.route == (0, address)

    def test_both_move(self) -> None:
        """One after the other: who moves into the unknown can only be found by what it sends itself."""
        world = World(FAST)
        ours, theirs = world.connect()
        world.alice.move(ELSEWHERE)
        assert world.transfer(world.alice, ours, world.bob, theirs, some_data(10_000), 10)
        world.after(0.1)
        world.bob.move(("10.8.8.8", 8))
        assert world.transfer(world.bob, theirs, world.alice, ours, some_data(10_000), 10)
        world.after(0.1)
        assert ours.route == (0, ("10.8.8.8", 8))

    def test_round_trip_and_window_start_anew(self) -> None:
        world = World(FAST)
        ours, theirs = world.connect()
        world.transfer(world.bob, theirs, world.alice, ours, some_data(3_000_000), 10)
        before = theirs.utp.cwnd
        world.alice.move(ELSEWHERE)
        world.alice.send(ours, b"here")
        assert world.after(1, lambda: theirs.route == (0, ELSEWHERE))
        assert theirs.utp.cwnd < before / 2
        assert theirs.utp.srtt == 0

    def test_a_copy_sent_faster_from_elsewhere_gets_three_times_its_size(self) -> None:
        """Who sits on the way and races copies ahead cannot aim a flood at a third party."""
        world = World(FAST)
        ours, theirs = world.connect()
        victim, copied = ELSEWHERE, [0]
        received: list[int] = []

        def copy(source: Address, target: Address, data: bytes) -> list[bytes]:
            if target == victim:
                received.append(len(data))
            if source == A and len(data) < 400:
                copied[0] += len(data)
                world.bob.receive(data, (0, victim))
            return [data]

        world.tamper = copy
        data = some_data(4_000_000)
        assert world.transfer(world.bob, theirs, world.alice, ours, data, 60)
        assert copied[0] > 10_000
        assert sum(received) <= 3 * copied[0]
        assert theirs.route == (0, A)
        assert not [event for event in world.bob.events if isinstance(event, Moved)]

    def test_an_answer_from_the_wrong_place(self) -> None:
        """The challenge must come back from where it went to."""
        world = World()
        ours, theirs = world.connect()

        def redirect(source: Address, target: Address, data: bytes) -> list[bytes]:
            if target == ELSEWHERE:
                world.alice.receive(data, (0, B))
                return []
            return [data]

        world.tamper = redirect
        world.alice.send(ours, b"x")
        datagram = None

        def steal(source: Address, target: Address, data: bytes) -> list[bytes]:
            nonlocal datagram
            datagram = data
            return []

        world.tamper = steal
        world.alice.send(ours, b"y")
        world.tamper = redirect
        assert datagram is not None
        world.bob.receive(datagram, (0, ELSEWHERE))
        world.after(10)
        assert theirs.route == (0, A)
        assert world.bob.endpoint.stats["tunnel.stale_response"] >= 1

    def test_a_new_address_that_never_answers_is_given_up(self) -> None:
        world = World()
        ours, theirs = world.connect()
        world.after(1)
        world.recording = True
        held: list[bytes] = []
        world.tamper = lambda source, target, data: held.append(data) or []
        world.alice.send(ours, b"y")
        world.tamper = None
        world.bob.receive(held[0], (0, ELSEWHERE))
        world.after(20)
        challenges = [data for _, target, data in world.wire if target == ELSEWHERE]
        assert 1 <= len(challenges) <= 5
        assert world.transfer(world.bob, theirs, world.alice, ours, some_data(10_000), 10)
        assert theirs.route == (0, A)

    def test_an_older_datagram_moves_nothing(self) -> None:
        world = World()
        ours, theirs = world.connect()
        held: list[bytes] = []
        world.tamper = lambda source, target, data: held.append(data) or []
        world.alice.send(ours, b"y")
        world.tamper = None
        world.alice.send(ours, b"z")
        world.after(1)
        world.bob.receive(held[0], (0, ELSEWHERE))
        world.after(1)
        assert world.bob.endpoint.stats["tunnel.new_address"] == 0
        assert theirs.route == (0, A)

    def test_a_flood_of_challenges_gets_no_memory(self) -> None:
        world = World()
        ours, theirs = world.connect()
        world.alice._transmit = lambda out: None  # type: ignore[method-assign]
        for _ in range(100):
            theirs._queue(ControlKind.CHALLENGE, bytes(16))
            ours._receive_control(b"\x0f\x01" + bytes(18), bytes(16), (0, B), world.now)
        assert len(ours._control) == len(theirs._control) == MAX_CONTROL_QUEUE


class TestIdle:
    def test_keepalive_only_when_nothing_else_was_sent(self) -> None:
        world = World()
        ours, _ = world.connect()
        world.after(1)
        world.recording = True
        start = world.now
        for _ in range(4):
            world.after(KEEPALIVE_SECONDS - 5)
            world.alice.send(ours, b"x")
        busy = [source for source, _, _ in world.wire]
        assert busy.count(A) == 4
        world.wire.clear()
        world.after(4 * KEEPALIVE_SECONDS)
        assert [source for source, _, _ in world.wire].count(A) == 4
        assert [source for source, _, _ in world.wire].count(B) == 4
        assert all(48 <= len(data) <= 48 for _, _, data in world.wire)
        assert world.now > start

    def test_after_a_stream_of_data_a_few_words(self) -> None:
        """The receiver shows where it is, should its NAT have forgotten it; then there is silence."""
        world = World()
        ours, theirs = world.connect()
        world.transfer(world.alice, ours, world.bob, theirs, some_data(QUIET_BYTES + 2000), 10)
        world.after(0.1)
        world.recording = True
        world.after(20)
        assert [source for source, _, _ in world.wire] == [B] * QUIET_TRIES
        world.wire.clear()
        world.transfer(world.alice, ours, world.bob, theirs, some_data(1000), 10)
        world.after(0.1)
        world.wire.clear()
        world.after(20)
        assert world.wire == []

    def test_no_timer_fires_more_often_than_the_keepalive(self) -> None:
        world = World()
        world.connect()
        world.after(60)
        for host in (world.alice, world.bob):
            fired = 0
            while fired < 6:
                deadline = host.endpoint.next_timeout()
                assert deadline is not None
                world.net.run(deadline)
                fired += 1
            assert world.now - world.started > 60 + 2 * KEEPALIVE_SECONDS

    def test_idle_memory_can_be_given_up(self) -> None:
        world = World()
        ours, theirs = world.connect()
        ours.release()
        theirs.release()
        assert world.transfer(world.alice, ours, world.bob, theirs, some_data(10_000), 5)
        assert "Association" in repr(ours)
