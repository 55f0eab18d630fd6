"""Paths that come and go under a session: nothing lost, nothing twice, in order."""

from __future__ import annotations

import itertools

import pytest

from crust.config import Config
from crust.errors import PeerLost
from crust.proto.session.events import DatagramReceived, PathDead, Ponged
from crust.testing.pair import Link, Pair, Parcel
from crust.types import Priority
from crust.wire import frames

KIB = 1024
MIB = 1024 * KIB


class Traffic:
    """Numbered messages of changing size in all priorities, both ways."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.sent: dict[tuple[int, Priority], list[bytes]] = {}
        self.got: dict[tuple[int, Priority], list[bytes]] = {}
        self.count = itertools.count()

    def send(self, messages: int, most: int = 200_000) -> None:
        for _ in range(messages):
            for peer in self.pair.peers:
                n = next(self.count)
                priority = Priority(self.pair.random.randrange(8))
                data = b"%d:" % n + bytes(self.pair.random.choice([0, 10, 5000, 40_000, most]))
                peer.send(data, priority)
                self.sent.setdefault((peer.side, priority), []).append(data)

    def read(self) -> None:
        for peer in self.pair.peers:
            for data, priority in peer.read_marked():
                self.got.setdefault((1 - peer.side, priority), []).append(data)

    def finish(self) -> None:
        for _ in range(50):
            self.pair.settle(20)
            self.read()
            if self.got == self.sent:
                return
        assert self.got.keys() == self.sent.keys()
        for key, sent in self.sent.items():
            assert [len(m) for m in self.got[key]] == [len(m) for m in sent]
        assert self.got == self.sent


@pytest.mark.parametrize("signing", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_paths_that_die_with_all_that_is_under_way(seed: int, signing: bool) -> None:
    pair = Pair(seed=seed, signing=signing)
    traffic = Traffic(pair)
    pair.add_path(delay=0.05, rate=5e6)
    for n in range(8):
        traffic.send(6)
        pair.run(pair.random.random())
        traffic.read()
        pair.kill(pair.links[-1])
        pair.run(pair.random.random() * 3)
        pair.add_path(delay=pair.random.random() / 5, rate=5e6, dialler=n % 2)
    traffic.finish()


@pytest.mark.parametrize("seed", range(8))
def test_loss_in_one_direction_only(seed: int) -> None:
    """Each path goes silent in one direction before it ends."""
    pair = Pair(seed=seed)
    traffic = Traffic(pair)
    for n in range(8):
        link = pair.add_path(delay=0.02, rate=5e6)
        traffic.send(5)
        pair.run(0.2)
        link.lanes[n % 2].lossy = True
        pair.run(0.2)
        traffic.read()
        pair.kill(link)
    pair.add_path()
    traffic.finish()


@pytest.mark.parametrize("signing", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_several_paths_that_reorder_between_them(seed: int, signing: bool) -> None:
    pair = Pair(seed=seed, signing=signing, config=Config(retention_bytes=2 * MIB))
    traffic = Traffic(pair)
    for n in range(12):
        pair.add_path(delay=pair.random.choice([0.001, 0.05, 0.4]), rate=4e6, rank=pair.random.randrange(4))
        traffic.send(4)
        pair.run(pair.random.random())
        traffic.read()
        alive = [link for link in pair.links if link.alive]
        if len(alive) > 3 or n % 3 == 0:
            pair.kill(pair.random.choice(alive), sides=pair.random.choice([(0, 1), (1, 0)]))
    pair.add_path()
    traffic.finish()
    assert pair.a.ended is None
    assert pair.b.ended is None


def test_one_side_learns_of_the_loss_much_later() -> None:
    pair = Pair()
    link = pair.add_path()
    pair.run(1)
    pair.a.send(b"lost on the way")
    pair.b.send(b"this too")
    for lane in link.lanes:
        lane.lossy = True
    pair.run(0.1)
    pair.kill(link, sides=(0,))
    pair.add_path()
    pair.run(0.2)
    assert pair.b.read_all() == [b"lost on the way"]
    pair.kill(link, sides=(1,))
    pair.settle()
    assert pair.a.read_all() == [b"this too"]


def test_the_better_path_takes_over_and_nothing_is_lost() -> None:
    pair = Pair()
    traffic = Traffic(pair)
    relayed = pair.add_path(rank=50, delay=0.2, rate=1e6)
    traffic.send(10)
    pair.run(2)
    direct = pair.add_path(rank=10, delay=0.01)
    pair.run(0.5)
    assert pair.a.session.active_path == direct.id
    assert pair.b.session.active_path == direct.id
    traffic.finish()
    carried = relayed.lanes[0].carried_bytes
    traffic.send(10)
    traffic.finish()
    assert relayed.lanes[0].carried_bytes - carried < 1000


def test_a_worse_path_stands_by() -> None:
    pair = Pair()
    direct = pair.add_path(rank=10)
    pair.run(1)
    relayed = pair.add_path(rank=50)
    pair.run(1)
    assert pair.a.session.active_path == direct.id
    pair.kill(direct)
    assert pair.a.session.active_path == relayed.id
    pair.a.send(b"over the relay")
    pair.settle()
    assert pair.b.read_all() == [b"over the relay"]


def test_a_path_whose_peer_says_nothing_takes_over_from_none() -> None:
    pair = Pair()
    old = pair.add_path(rank=20)
    pair.run(1)
    new = pair.add_path(rank=10)
    new.hold()
    pair.run(1)
    assert pair.a.session.active_path == old.id
    new.hold(held=False)
    pair.run(1)
    assert pair.a.session.active_path == new.id


def test_what_was_acknowledged_is_not_sent_again() -> None:
    pair = Pair()
    link = pair.add_path()
    pair.a.send(bytes(4 * MIB))
    pair.settle()
    pair.kill(link)
    again = pair.add_path()
    pair.run(5)
    assert again.lanes[0].carried_bytes < 2000


def test_what_came_but_was_not_acknowledged_is_told_by_hello() -> None:
    pair = Pair()
    link = pair.add_path()
    pair.run(1)
    link.lanes[1].lossy = True  # acknowledgements are lost
    pair.a.send(bytes(2 * MIB))
    pair.run(0.2)
    pair.kill(link)
    again = pair.add_path()
    pair.run(5)
    assert pair.b.read_all() == [bytes(2 * MIB)]
    assert again.lanes[0].carried_bytes < 2000


def test_lowest_unacknowledged_first() -> None:
    pair = Pair()
    link = pair.add_path()
    pair.run(1)
    link.lanes[0].lossy = True
    for n in range(5):
        pair.a.send(b"%d" % n, Priority(7 - n))
        pair.run(0.01)
    pair.kill(link)
    pair.a.send(b"new", Priority.CRITICAL)
    numbers: list[int] = []
    deliver = pair.deliver

    def look(link: Link, sender: int, parcel: Parcel) -> None:
        if sender == 0:
            numbers.extend(f.number for f in parcel.frames if isinstance(f, frames.Messages))
        deliver(link, sender, parcel)

    pair.deliver = look  # type: ignore[method-assign]
    pair.add_path()
    pair.settle()
    assert numbers == list(range(6))


def test_old_acknowledgement_on_a_slow_path() -> None:
    """A HELLO that was overtaken by acknowledgements over a path that has ended since is no offence."""
    pair = Pair()
    fast = pair.add_path()
    pair.run(1)
    slow = pair.add_path()
    slow.hold()
    pair.run(0.1)
    slow.lanes[0].held = False  # B attaches and answers; its HELLO is under way
    pair.run(0.1)
    pair.a.send(b"x")
    pair.settle()
    pair.kill(fast)
    slow.hold(held=False)
    pair.settle()
    assert pair.a.ended is None
    pair.a.send(b"y")
    pair.settle()
    assert pair.b.read_all() == [b"x", b"y"]


def test_streams_go_on() -> None:
    pair = Pair()
    pair.add_path(delay=0.02, rate=2e6)
    pair.run(0.1)
    streams = [pair.a.session.streams.open(f"{n}", Priority(n % 8)) for n in range(10)]
    data = [bytes([n]) * 300_000 for n in range(10)]
    for stream, content in zip(streams, data, strict=True):
        pair.a.session.streams.write(stream, memoryview(content))
        pair.a.session.streams.end(stream)
    got = [bytearray() for _ in range(10)]
    theirs = {}
    for _ in range(40):
        pair.run(0.3)
        for state in pair.b.session.streams.opened:
            theirs[state.id] = state
        pair.b.session.streams.opened.clear()
        for n, state in enumerate(theirs.values()):
            while state.chunks:
                chunk = state.chunks.popleft()
                state.ready_bytes -= len(chunk)
                got[n] += chunk
                pair.b.session.streams.consume(state, len(chunk))
        pair.kill(pair.links[-1])
        pair.run(0.1)
        pair.add_path(delay=0.02, rate=2e6)
    assert [bytes(g) for g in got] == data


def test_pings_are_repeated() -> None:
    pair = Pair()
    link = pair.add_path()
    pair.run(1)
    link.blackhole()
    token = pair.a.session.ping(pair.clock.now)
    pair.run(0.1)
    pair.kill(link)
    pair.add_path()
    pair.run(1)
    assert token in [e.token for e in pair.a.events if isinstance(e, Ponged)]


def test_a_ping_outlives_any_number_of_paths_that_answer_nothing() -> None:
    """Each of them is probed; what the application asked must not give way to that."""
    pair = Pair()
    token = pair.a.session.ping(pair.clock.now)
    for _ in range(100):
        link = pair.add_path()
        link.blackhole()
        pair.a.session.probe(link.id, pair.clock.now)
        pair.run(1.5)
        pair.kill(link)
    pair.add_path()
    pair.run(1)
    assert token in [e.token for e in pair.a.events if isinstance(e, Ponged)]


def test_datagrams_of_a_lost_path_are_lost() -> None:
    pair = Pair()
    link = pair.add_path()
    pair.run(1)
    link.blackhole()
    pair.a.session.send_datagram(b"lost")
    pair.run(0.1)
    pair.kill(link)
    pair.a.session.send_datagram(b"waits for a path")
    pair.add_path()
    pair.run(1)
    assert [e for e in pair.b.events if isinstance(e, DatagramReceived)] == [DatagramReceived(b"waits for a path")]


def test_the_peer_does_not_come_back() -> None:
    pair = Pair(Config(resume_timeout=60))
    link = pair.add_path()
    pair.run(1)
    pair.kill(link)
    pair.a.send(b"x")
    pair.run(59)
    assert pair.a.ended is None
    pair.run(2)
    for peer in pair.peers:
        assert isinstance(peer.ended, PeerLost)


def test_the_time_to_come_back_starts_anew_with_each_loss() -> None:
    pair = Pair(Config(resume_timeout=60))
    for _ in range(5):
        link = pair.add_path()
        pair.run(1)
        pair.kill(link)
        pair.run(50)
    assert pair.a.ended is None


def test_surplus_paths_are_closed_in_order() -> None:
    pair = Pair()
    one = pair.add_path()
    two = pair.add_path(dialler=1)
    pair.run(1)
    pair.a.send(b"x" * 100)
    pair.b.session.close_path(two.id)
    pair.run(1)
    dead = [e for e in pair.a.events if isinstance(e, PathDead)]
    assert dead == [PathDead(two.id, "surplus")]
    assert pair.b.session.path_ids == [one.id]


def test_glare_ends_in_one_session() -> None:
    """Both dial at once; each HELLO crosses the other's."""
    pair = Pair()
    traffic = Traffic(pair)
    traffic.send(5)
    pair.add_path(delay=0.03, dialler=0)
    pair.add_path(delay=0.02, dialler=1)
    traffic.finish()
    assert pair.a.session.remote_nonce == pair.b.session.nonce


def test_retention_and_window_do_not_deadlock_on_resume() -> None:
    pair = Pair(Config(retention_bytes=512 * KIB, receive_window_bytes=256 * KIB))
    sent = []
    for n in range(60):
        data = bytes([n]) * 100_000
        sent.append(data)
        pair.a.send(data)
    got: list[bytes] = []
    while len(got) < 60:
        pair.add_path(delay=0.05)
        pair.run(0.3)
        got += pair.b.read_all()
        pair.kill(pair.links[-1])
    assert got == sent


def test_the_time_to_come_back_starts_anew_when_the_machine_wakes() -> None:
    pair = Pair(Config(resume_timeout=60))
    pair.kill(pair.add_path())
    pair.run(50)
    pair.a.session.woke(pair.clock.now)
    pair.run(50)
    assert pair.a.ended is None
    assert isinstance(pair.b.ended, PeerLost)
    pair.run(11)
    assert isinstance(pair.a.ended, PeerLost)


def test_paths_are_asked_when_the_machine_wakes() -> None:
    pair = Pair()
    link = pair.add_path()
    pair.run(5)
    link.blackhole()
    pair.a.session.woke(pair.clock.now)
    pair.run(10.1)
    assert pair.a.session.path_ids == []
