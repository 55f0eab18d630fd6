"""The orderly end in all interleavings: what was sent is delivered, and both sides end, soon and alike."""

from __future__ import annotations

import pytest

from crust.config import Config
from crust.errors import ConnectionClosed, PeerLost, RemoteProtocolError
from crust.proto.session.engine import SessionState
from crust.proto.session.events import PathStalled, SessionEnded
from crust.testing.pair import Link, Pair
from crust.types import Priority
from crust.wire import frames

KIB = 1024
MIB = 1024 * KIB


def joined(signing: bool = False, delay: float = 0.01, **settings: float) -> tuple[Pair, Link]:
    pair = Pair(Config(**settings), signing=signing)  # type: ignore[arg-type]
    link = pair.add_path(delay=delay)
    pair.run(2)
    return pair, link


def assert_closed(pair: Pair) -> None:
    for peer in pair.peers:
        assert isinstance(peer.ended, ConnectionClosed), peer.ended
        assert peer.count(SessionEnded) == 1
        assert not peer.broken
        assert peer.session.next_timeout() is None


@pytest.mark.parametrize("signing", [False, True])
@pytest.mark.parametrize("queued", [(0, 0), (1, 0), (0, 1), (1, 1), (3 * MIB, 0), (0, 3 * MIB), (3 * MIB, 2 * MIB)])
@pytest.mark.parametrize("closers", ["a", "ab", "b"])
def test_delivers_what_was_sent(closers: str, queued: tuple[int, int], signing: bool) -> None:
    pair, _ = joined(signing)
    for peer, size in zip(pair.peers, queued, strict=True):
        if size:
            peer.send(bytes(size))
    for name in closers:
        getattr(pair, name).close()
    start = pair.clock.now
    pair.run(5, until=lambda: all(peer.ended for peer in pair.peers))
    assert pair.clock.now - start < 1
    pair.run(0.1)
    assert_closed(pair)
    for peer, size in zip(pair.peers, reversed(queued), strict=True):
        assert peer.read_all() == ([bytes(size)] if size else [])


@pytest.mark.parametrize("after", [0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08])
def test_both_at_nearly_the_same_time(after: float) -> None:
    pair, _ = joined()
    pair.a.send(b"from a")
    pair.b.send(b"from b")
    pair.a.close()
    pair.run(after)
    pair.b.close()
    pair.run(1)
    assert_closed(pair)
    assert pair.a.read_all() == [b"from b"]
    assert pair.b.read_all() == [b"from a"]


@pytest.mark.parametrize("signing", [False, True])
@pytest.mark.parametrize("at", [n * 0.004 for n in range(16)])
@pytest.mark.parametrize("closers", ["a", "b", "ab"])
def test_the_path_dies_at_any_moment_and_comes_back(at: float, closers: str, signing: bool) -> None:
    pair, link = joined(signing)
    for peer in pair.peers:
        peer.send(bytes(300_000))
    for name in closers:
        getattr(pair, name).close()
    pair.run(at)
    pair.kill(link)
    pair.run(0.5)
    if not all(peer.ended for peer in pair.peers):
        if all(peer.ended is None for peer in pair.peers):
            pair.add_path(delay=0.01)
        else:
            # One side is through, and knows nothing of the session any more: it says GONE 1.
            left = pair.a if pair.b.ended else pair.b
            again = pair.add_path(delay=0.01, dialler=left.side)
            gone = frames.serialize_gone(pair.other(left).session.nonce, 1)
            left.session.receive_group(again.id, b"\0" + gone, [], pair.clock.now)
    pair.run(2)
    assert_closed(pair)
    for peer in pair.peers:
        assert peer.read_all() == [bytes(300_000)]


@pytest.mark.parametrize("at", [n * 0.01 for n in range(12)])
def test_the_path_dies_and_never_comes_back(at: float) -> None:
    """Both end within the time limits; who says that it was orderly has all that the other sent."""
    pair, link = joined(close_timeout=5, resume_timeout=20)
    sent = [bytes([n]) * 100_000 for n in range(10)]
    for data in sent:
        pair.a.send(data)
    pair.b.send(b"answer")
    pair.b.close()
    pair.run(at)
    pair.kill(link)
    pair.run(30)
    for peer in pair.peers:
        assert peer.ended is not None
    if isinstance(pair.a.ended, ConnectionClosed) or isinstance(pair.b.ended, ConnectionClosed):
        assert pair.b.read_all() == sent
    if isinstance(pair.a.ended, ConnectionClosed):
        assert pair.a.read_all() == [b"answer"]


def test_a_peer_that_has_closed_is_still_told_what_is_queued_after_a_loss() -> None:
    """The peer's CLOSE has come, ours has not gone out: a lost path is not the end yet."""
    pair, link = joined()
    for _ in range(20):
        pair.a.send(bytes(100_000))
    pair.b.close()
    link.lanes[0].held = True
    pair.run(0.1)
    assert pair.a.session.remote_closed
    pair.kill(link)
    assert pair.a.ended is None
    pair.run(1)
    pair.add_path(delay=0.01)
    pair.run(2)
    assert_closed(pair)
    assert len(pair.b.read_all()) == 20


class TestTime:
    def test_a_slow_path_is_given_time_while_it_makes_progress(self) -> None:
        pair = Pair(Config(close_timeout=2))
        pair.add_path(rate=200_000, capacity=64 * KIB, delay=0.01)
        pair.run(1)
        for _ in range(40):
            pair.a.send(bytes(50_000))
        pair.a.close()
        pair.run(20)  # it takes ten seconds
        assert_closed(pair)
        assert len(pair.b.read_all()) == 40

    @pytest.mark.parametrize("closer", [0, 1])
    def test_the_closer_waits_for_the_other_while_it_makes_progress(self, closer: int) -> None:
        """Who has closed first still takes what the other had queued."""
        pair = Pair(Config(close_timeout=2))
        pair.add_path(rate=200_000, capacity=64 * KIB, delay=0.01)
        pair.run(1)
        for _ in range(40):
            pair.peers[1 - closer].send(bytes(50_000))
        pair.peers[closer].close()
        pair.run(20)
        assert_closed(pair)
        assert len(pair.peers[closer].read_all()) == 40

    def test_a_peer_that_reads_nothing_is_waited_for_only_so_long(self) -> None:
        pair, _ = joined(close_timeout=3, receive_window_bytes=256 * KIB)
        for _ in range(100):
            pair.a.send(bytes(10 * KIB))
        pair.run(0.5)
        pair.a.close()
        start = pair.clock.now
        assert pair.run(20, until=lambda: pair.a.ended is not None)
        assert pair.clock.now - start <= 4
        assert isinstance(pair.a.ended, PeerLost)
        assert "confirm" in str(pair.a.ended)
        pair.run(0.1)
        assert isinstance(pair.b.ended, PeerLost)  # it is told, and need not wait for us

    def test_a_dead_path(self) -> None:
        pair, link = joined(close_timeout=3)
        link.blackhole()
        pair.a.close()
        start = pair.clock.now
        assert pair.run(20, until=lambda: pair.a.ended is not None)
        assert pair.clock.now - start == pytest.approx(3, abs=0.1)
        assert isinstance(pair.a.ended, PeerLost)
        assert pair.a.count(PathStalled)

    def test_without_any_path(self) -> None:
        pair = Pair(Config(close_timeout=3))
        pair.a.send(b"x")
        pair.a.close()
        pair.run(5)
        assert isinstance(pair.a.ended, PeerLost)

    def test_before_the_peer_has_answered_at_all(self) -> None:
        pair = Pair(signing=True)
        pair.add_path(delay=0.1)
        pair.a.send(b"x")
        pair.a.close()
        pair.run(2)
        assert_closed(pair)
        assert pair.b.read_all() == [b"x"]


class TestStates:
    def test_nothing_can_be_sent_after_it(self) -> None:
        pair, _ = joined()
        pair.a.close()
        with pytest.raises(ConnectionClosed):
            pair.a.send(b"x")

    def test_nor_after_the_peer_has_closed(self) -> None:
        pair, _ = joined()
        pair.b.close()
        pair.run(0.015)
        assert pair.a.session.remote_closed
        with pytest.raises(ConnectionClosed):
            pair.a.send(b"x")

    def test_twice_is_once(self) -> None:
        pair, _ = joined()
        pair.a.close()
        pair.a.close()
        pair.run(1)
        pair.a.close()
        assert_closed(pair)

    def test_what_was_received_can_be_read_afterwards(self) -> None:
        pair, _ = joined()
        pair.a.send(b"1", Priority.LOW)
        pair.a.send(b"2", Priority.LOW)
        pair.a.close()
        pair.run(1)
        assert_closed(pair)
        assert pair.b.read_all() == [b"1", b"2"]

    def test_frames_after_it_are_an_offence(self) -> None:
        pair, link = joined()
        pair.b.send(b"keeps it open")
        link.lanes[1].held = True
        control = b"\0" + frames.serialize_close(0, 0)
        pair.a.session.receive_group(link.id, control, [], pair.clock.now)
        late = b"\0" + frames.serialize_messages(1, 4, [b"x"])
        with pytest.raises(RemoteProtocolError):
            pair.a.session.receive_group(link.id, late, [], pair.clock.now)
        assert pair.a.session.state is SessionState.ENDED

    def test_streams_under_way_are_ended_by_it(self) -> None:
        pair, _ = joined()
        stream = pair.a.session.streams.open("s", Priority.NORMAL)
        pair.a.session.streams.write(stream, memoryview(bytes(100_000)))
        pair.run(0.5)
        pair.b.session.streams.opened.clear()
        pair.a.close()
        pair.run(1)
        assert_closed(pair)

    def test_a_stream_without_credit_does_not_hold_it_up_for_ever(self) -> None:
        pair, _ = joined(stream_window_bytes=64 * KIB, close_timeout=3)
        stream = pair.a.session.streams.open("s", Priority.NORMAL)
        pair.a.session.streams.write(stream, memoryview(bytes(1_000_000)))
        pair.run(0.5)
        pair.a.close()
        pair.run(10)
        for peer in pair.peers:
            assert peer.ended is not None

    def test_abort_tells_nobody(self) -> None:
        pair, link = joined()
        carried = link.lanes[0].carried
        error = PeerLost(None, "given up")
        pair.a.session.abort(error)
        pair.a.session.abort(PeerLost(None, "another reason"))
        pair.run(0.001)
        assert pair.a.ended is error
        assert pair.a.count(SessionEnded) == 1
        assert link.lanes[0].carried == carried


class TestStreams:
    def read(self, pair: Pair, got: bytearray) -> None:
        for state in pair.b.session.streams.table.by_id.values():
            while state.chunks:
                chunk = state.chunks.popleft()
                state.ready_bytes -= len(chunk)
                got += chunk
                pair.b.session.streams.consume(state, len(chunk))

    def test_what_was_written_is_delivered_though_it_needs_credit(self) -> None:
        pair, _ = joined(stream_window_bytes=64 * KIB)
        stream = pair.a.session.streams.open("s", Priority.NORMAL)
        pair.a.session.streams.write(stream, memoryview(bytes(1_000_000)))
        pair.a.session.streams.end(stream)
        pair.a.close()
        got = bytearray()
        for _ in range(200):
            pair.run(0.05)
            self.read(pair, got)
        assert len(got) == 1_000_000
        assert_closed(pair)

    def test_a_reader_that_closes_the_connection_does_not_wait_for_it(self) -> None:
        pair, _ = joined(stream_window_bytes=64 * KIB)
        stream = pair.a.session.streams.open("s", Priority.NORMAL)
        pair.a.session.streams.write(stream, memoryview(bytes(1_000_000)))
        pair.run(0.5)
        pair.b.close()
        pair.run(1)
        assert_closed(pair)

    def test_a_reader_that_does_nothing_is_waited_for_only_so_long(self) -> None:
        pair, _ = joined(stream_window_bytes=64 * KIB, close_timeout=3)
        stream = pair.a.session.streams.open("s", Priority.NORMAL)
        pair.a.session.streams.write(stream, memoryview(bytes(1_000_000)))
        pair.a.close()
        pair.run(4)
        for peer in pair.peers:
            assert isinstance(peer.ended, PeerLost)
        assert "given this connection up" in str(pair.b.ended)

    def test_a_reader_that_stops_does_not_keep_the_writer_from_closing(self) -> None:
        pair, _ = joined(stream_window_bytes=64 * KIB)
        stream = pair.a.session.streams.open("s", Priority.NORMAL)
        pair.a.session.streams.write(stream, memoryview(bytes(1_000_000)))
        pair.a.close()
        pair.run(0.5)
        assert pair.a.session.outbox.close_number is None
        [other] = pair.b.session.streams.opened
        pair.b.session.streams.stop(other)
        pair.run(1)
        assert_closed(pair)

    def test_a_stop_that_crosses_the_close(self) -> None:
        """The writer owes nobody the end of a stream that is not read: both ends are orderly."""
        pair, link = joined()
        stream = pair.a.session.streams.open("s", Priority.NORMAL)
        pair.a.session.streams.write(stream, memoryview(bytes(10_000)))
        pair.run(0.5)
        [other] = pair.b.session.streams.opened
        link.hold()
        pair.b.session.streams.stop(other)
        pair.b.session.streams.end(other)
        pair.a.close()
        pair.run(0.1)
        link.hold(held=False)
        pair.run(1)
        assert_closed(pair)
