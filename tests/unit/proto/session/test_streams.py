"""Streams between two engines: halves, credit, many at once, limits."""

from __future__ import annotations

import pytest

from crust.config import Config
from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.session.streams import Half, StreamState
from crust.testing.pair import Pair, Peer
from crust.types import Priority
from crust.wire import frames

KIB = 1024


class Reader:
    """The far ends of a peer's streams, and what has been read from them."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.states: dict[int, StreamState] = {}
        self.data: dict[int, bytearray] = {}

    def look(self) -> None:
        for state in self.peer.session.streams.opened:
            self.states[state.id] = state
            self.data[state.id] = bytearray()
        self.peer.session.streams.opened.clear()

    def read(self, stream_id: int, most: int = 1 << 30) -> bytes:
        self.look()
        state = self.states[stream_id]
        got = bytearray()
        while state.chunks and len(got) < most:
            chunk = state.chunks.popleft()
            state.ready_bytes -= len(chunk)
            got += chunk
            self.peer.session.streams.consume(state, len(chunk))
        self.data[stream_id] += got
        return bytes(got)


def joined(**settings: int) -> tuple[Pair, Reader]:
    pair = Pair(Config(**settings))  # type: ignore[arg-type]
    pair.add_path(delay=0.001)
    pair.run(1)
    return pair, Reader(pair.b)


def open_stream(pair: Pair, name: str = "s", priority: Priority = Priority.NORMAL, side: int = 0) -> StreamState:
    return pair.peers[side].session.streams.open(name, priority)


def write(pair: Pair, state: StreamState, data: bytes, side: int = 0) -> None:
    pair.peers[side].session.streams.write(state, memoryview(data))


@pytest.mark.parametrize("size", [0, 1, 100, 16_384, 16_385, 65_536, 65_537, 400_000])
def test_bytes_of_any_number(size: int) -> None:
    pair, reader = joined()
    state = open_stream(pair)
    data = bytes(n % 251 for n in range(size))
    write(pair, state, data)
    pair.a.session.streams.end(state)
    for _ in range(20):
        pair.run(0.1)
        reader.look()
        reader.read(state.id)
    assert bytes(reader.data[state.id]) == data
    assert reader.states[state.id].receiving is Half.ENDED


def test_small_writes_travel_together() -> None:
    pair, reader = joined()
    state = open_stream(pair)
    carried = pair.links[0].lanes[0].carried
    for n in range(5000):
        write(pair, state, b"%5d" % n)
    pair.run(0.5)
    reader.look()
    assert reader.read(state.id) == b"".join(b"%5d" % n for n in range(5000))
    assert pair.links[0].lanes[0].carried - carried < 10


def test_name_and_priority_arrive() -> None:
    pair, reader = joined()
    for name, priority in (("", Priority.IDLE), ("größe", Priority.CRITICAL), ("x" * 255, Priority.LOW)):
        open_stream(pair, name, priority)
    pair.run(0.1)
    reader.look()
    found = [(state.name, state.priority) for state in reader.states.values()]
    assert found == [("", Priority.IDLE), ("größe", Priority.CRITICAL), ("x" * 255, Priority.LOW)]


@pytest.mark.parametrize("name", ["x" * 256, "ö" * 128])
def test_names_are_bounded(name: str) -> None:
    pair, _ = joined()
    with pytest.raises(LocalProtocolError, match="255"):
        open_stream(pair, name)


def test_both_sides_open() -> None:
    pair, reader = joined()
    ours, theirs = open_stream(pair, "a", side=0), open_stream(pair, "b", side=1)
    assert ours.id != theirs.id
    write(pair, ours, b"from a", side=0)
    write(pair, theirs, b"from b", side=1)
    pair.run(0.1)
    other = Reader(pair.a)
    other.look()
    reader.look()
    assert reader.read(ours.id) == b"from a"
    assert other.read(theirs.id) == b"from b"


class TestCredit:
    def test_a_slow_reader_stops_its_stream_only(self) -> None:
        pair, reader = joined(stream_window_bytes=64 * KIB)
        slow, fast = open_stream(pair), open_stream(pair)
        write(pair, slow, bytes(500 * KIB))
        write(pair, fast, bytes(500 * KIB))
        for _ in range(50):
            pair.run(0.05)
            reader.look()
            reader.read(fast.id)
        assert len(reader.data[fast.id]) == 500 * KIB
        assert reader.states[slow.id].ready_bytes == 64 * KIB
        pair.a.send(b"messages too")
        pair.run(0.1)
        assert pair.b.read() == b"messages too"
        for _ in range(50):
            pair.run(0.05)
            reader.read(slow.id, 10_000)
        assert len(reader.data[slow.id]) == 500 * KIB

    def test_before_hello(self) -> None:
        pair = Pair()
        link = pair.add_path()
        link.lanes[1].held = True
        state = open_stream(pair)
        write(pair, state, bytes(300 * KIB))
        pair.run(0.1)
        assert state.sent == 64 * KIB
        link.hold(held=False)
        pair.run(1)
        assert state.sent == 300 * KIB

    def test_more_than_it_is_an_offence(self) -> None:
        pair, reader = joined(stream_window_bytes=64 * KIB)
        state = open_stream(pair)
        state.credit = 1 << 30  # a writer that does not care
        write(pair, state, bytes(100 * KIB))
        pair.run(0.1)
        reader.look()
        assert "credit" in str(pair.b.broken[0])

    def test_after_a_stop_it_is_given_back(self) -> None:
        """What is dropped unread does not stop the writer before it has heard."""
        pair, reader = joined(stream_window_bytes=64 * KIB)
        state = open_stream(pair)
        write(pair, state, bytes(60 * KIB))
        pair.run(0.1)
        reader.look()
        pair.b.session.streams.stop(reader.states[state.id])
        pair.run(0.5)
        assert state.sending is Half.STOPPED
        assert state.id not in pair.a.session.streams.table.by_id or not state.finished


class TestEnds:
    def test_half_close(self) -> None:
        pair, reader = joined()
        state = open_stream(pair)
        write(pair, state, b"question")
        pair.a.session.streams.end(state)
        pair.run(0.1)
        reader.look()
        assert reader.read(state.id) == b"question"
        write(pair, reader.states[state.id], b"answer", side=1)
        pair.b.session.streams.end(reader.states[state.id])
        pair.run(0.1)
        assert b"".join(state.chunks) == b"answer"
        assert state.receiving is Half.ENDED

    def test_finished_ones_are_forgotten_on_both_sides(self) -> None:
        pair, reader = joined()
        for _ in range(50):
            state = open_stream(pair)
            write(pair, state, b"x")
            pair.a.session.streams.end(state)
            pair.run(0.01)
            reader.look()
            pair.b.session.streams.end(reader.states[state.id])
            reader.read(state.id)
            pair.run(0.01)
        assert not pair.a.session.streams.table.by_id
        assert not pair.b.session.streams.table.by_id
        assert pair.b.session.streams.table.remote_open == 0

    def test_reset_drops_what_is_queued_and_unread(self) -> None:
        pair, reader = joined()
        state = open_stream(pair)
        write(pair, state, b"never read")
        pair.run(0.1)
        write(pair, state, bytes(100))
        pair.a.session.streams.reset(state, 7)
        pair.run(0.1)
        reader.look()
        assert reader.states[state.id].receiving is Half.RESET
        assert reader.read(state.id) == b""

    def test_reset_after_everything_was_sent_and_ended_changes_nothing(self) -> None:
        pair, reader = joined()
        state = open_stream(pair)
        write(pair, state, b"x")
        pair.a.session.streams.end(state)
        pair.run(0.1)
        pair.a.session.streams.reset(state)
        pair.run(0.1)
        reader.look()
        assert reader.read(state.id) == b"x"
        assert reader.states[state.id].receiving is Half.ENDED

    def test_stop_makes_the_writer_give_up(self) -> None:
        pair, reader = joined(stream_window_bytes=64 * KIB)
        state = open_stream(pair)
        write(pair, state, bytes(500 * KIB))
        pair.run(0.1)
        reader.look()
        pair.b.session.streams.stop(reader.states[state.id], 3)
        pair.b.session.streams.end(reader.states[state.id])
        pair.run(0.5)
        assert state.sending is Half.STOPPED
        assert state.pending_bytes == 0
        with pytest.raises(LocalProtocolError, match="stopped"):
            write(pair, state, b"x")
        assert not pair.a.session.streams.table.by_id
        assert not pair.b.session.streams.table.by_id

    @pytest.mark.parametrize("order", ["stop first", "end first", "reset first"])
    def test_stop_crosses_the_end(self, order: str) -> None:
        pair, reader = joined()
        state = open_stream(pair)
        write(pair, state, b"x")
        pair.run(0.1)
        reader.look()
        verbs = {"stop": lambda: pair.b.session.streams.stop(reader.states[state.id])}
        verbs["end"] = lambda: pair.a.session.streams.end(state)
        verbs["reset"] = lambda: pair.a.session.streams.reset(state)
        first = order.split()[0]
        verbs[first]()
        verbs["end" if first == "stop" else "stop"]()
        pair.run(0.5)
        pair.b.session.streams.end(reader.states[state.id])
        pair.run(0.5)
        assert not pair.a.broken
        assert not pair.b.broken
        assert not pair.a.session.streams.table.by_id
        assert not pair.b.session.streams.table.by_id

    def test_writing_after_the_end(self) -> None:
        pair, _ = joined()
        state = open_stream(pair)
        pair.a.session.streams.end(state)
        with pytest.raises(LocalProtocolError, match="ended"):
            write(pair, state, b"x")
        with pytest.raises(LocalProtocolError, match="ended"):
            pair.a.session.streams.end(state)

    def test_stopping_twice(self) -> None:
        pair, reader = joined()
        state = open_stream(pair)
        pair.run(0.1)
        reader.look()
        for _ in range(2):
            pair.b.session.streams.stop(reader.states[state.id])
        pair.run(0.1)
        assert not pair.a.broken


class TestOffences:
    def peer_says(self, pair: Pair, *pieces: bytes) -> None:
        pair.b.session.receive_group(pair.links[0].id, b"\0" + b"".join(pieces), [], pair.clock.now)

    def test_data_after_the_end(self) -> None:
        pair, _ = joined()
        with pytest.raises(RemoteProtocolError, match="after its end"):
            self.peer_says(
                pair,
                frames.serialize_stream_open(0, 0, 4, b"s"),
                frames.serialize_stream_fin(1, 0),
                frames.serialize_stream_data(2, 0, 1, False) + b"x",
            )

    def test_two_ends(self) -> None:
        pair, _ = joined()
        with pytest.raises(RemoteProtocolError, match=r"two ends|after"):
            self.peer_says(
                pair,
                frames.serialize_stream_open(0, 0, 4, b"s"),
                frames.serialize_stream_fin(1, 0),
                frames.serialize_stream_fin(2, 0),
            )

    def test_frames_about_forgotten_streams_are_ignored(self) -> None:
        pair, reader = joined()
        state = open_stream(pair)
        pair.a.session.streams.end(state)
        pair.run(0.1)
        reader.look()
        pair.b.session.streams.end(reader.states[state.id])
        pair.run(0.1)
        assert not pair.b.session.streams.table.by_id
        number = pair.b.session.inbox.expected
        self.peer_says(
            pair,
            frames.serialize_stream_credit(0, 1 << 20),
            frames.serialize_stream_stop(number, 0, 0),
            frames.serialize_stream_reset(number + 1, 0, 0),
        )
        with pytest.raises(RemoteProtocolError, match="after its end"):
            self.peer_says(pair, frames.serialize_stream_data(number + 2, 0, 1, False) + b"x")


def test_a_thousand_streams() -> None:
    pair, reader = joined()
    states = [open_stream(pair, f"{n}", Priority(n % 8)) for n in range(1000)]
    for n, state in enumerate(states):
        write(pair, state, b"%d" % n * 50)
        pair.a.session.streams.end(state)
    pair.run(1)
    reader.look()
    assert [reader.read(state.id) for state in states] == [b"%d" % n * 50 for n in range(1000)]


class TestHowMany:
    """The peer tells how many streams may be opened; the opener never has to guess what is over there."""

    def open_all(self, pair: Pair) -> list[StreamState]:
        opened = []
        while pair.a.session.streams.table.may_open:
            opened.append(open_stream(pair))
        return opened

    def test_as_many_as_the_peer_says_though_we_take_more(self) -> None:
        pair = Pair(configs=(Config(), Config(max_streams=5)))
        pair.add_path()
        pair.run(0.1)
        assert len(self.open_all(pair)) == 5
        with pytest.raises(LocalProtocolError, match="as many streams"):
            open_stream(pair)
        pair.run(0.1)
        assert pair.b.session.streams.table.remote_open == 5
        assert not pair.b.broken

    def test_one_before_the_peer_has_said_anything(self) -> None:
        pair = Pair()
        pair.add_path()
        assert len(self.open_all(pair)) == 1
        pair.run(0.1)
        assert len(self.open_all(pair)) == 1023

    def test_more_ends_the_session(self) -> None:
        pair, _ = joined(max_streams=5)
        pair.a.session.streams.table.allowed = 6
        assert len(self.open_all(pair)) == 6
        pair.run(0.1)
        assert "more than 5 streams" in str(pair.b.broken[0])

    def end_both(self, pair: Pair, reader: Reader, states: list[StreamState]) -> None:
        for state in states:
            write(pair, state, b"data")
            pair.a.session.streams.end(state)
        pair.run(0.1)
        reader.look()
        for state in states:
            pair.b.session.streams.end(reader.states[state.id])
        pair.run(0.1)

    def test_a_stream_that_was_not_read_is_open_for_the_acceptor(self) -> None:
        """The opener has seen both ends and forgotten it: so it must not count by itself."""
        pair, reader = joined(max_streams=5)
        states = self.open_all(pair)
        self.end_both(pair, reader, states)
        assert not pair.a.session.streams.table.by_id
        assert not pair.a.session.streams.table.may_open
        reader.read(states[0].id)
        pair.run(0.1)
        assert len(self.open_all(pair)) == 1
        pair.run(0.1)
        assert not pair.b.broken

    def test_any_number_one_after_the_other(self) -> None:
        pair, reader = joined(max_streams=5)
        for _ in range(20):
            states = self.open_all(pair)
            assert states
            self.end_both(pair, reader, states)
            for state in states:
                reader.read(state.id)
            pair.run(0.1)
        assert not pair.b.broken
        assert pair.b.session.streams.table.remote_open == 0

    def test_it_is_told_again_when_the_path_was_lost(self) -> None:
        pair, reader = joined(max_streams=4)
        standby = pair.add_path(delay=0.001)
        pair.run(0.1)
        states = self.open_all(pair)
        self.end_both(pair, reader, states)
        for lane in pair.links[0].lanes:
            lane.lossy = True
        for state in states:
            reader.read(state.id)
        pair.run(0.1)
        assert pair.b.session.streams.table.told == 8
        assert not pair.a.session.streams.table.may_open
        pair.kill(pair.links[0])
        pair.run(0.1)
        assert pair.b.session.active_path == standby.id
        assert len(self.open_all(pair)) == 4
