"""Verbs and frames of streams, without a session around them."""

from __future__ import annotations

import tracemalloc

import pytest

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.session.multiplexer import StreamMultiplexer
from crust.proto.session.outbox import GroupBuilder, Outbox
from crust.proto.session.streams import Half, HalfInput, StreamTable
from crust.wire import frames

KIB = 1024


def make(side: int = 0, window: int = 64 * KIB, most: int = 10) -> StreamMultiplexer:
    table = StreamTable(side, window, most)
    return StreamMultiplexer(table, Outbox(table, 1 << 20))


def opened(streams: StreamMultiplexer, stream_id: int = 1) -> None:
    streams.opened_by_peer(frames.StreamOpen(0, stream_id, 4, "s"))


def credits_in(streams: StreamMultiplexer) -> list[frames.Frame]:
    group = GroupBuilder()
    streams.write_credits(group)
    finished = group.finish()
    return [] if finished is None else frames.parse_frames(*finished, start=1)


def finished_one() -> StreamMultiplexer:
    """A stream of the peer's that both have ended, and that is forgotten."""
    streams = make()
    opened(streams)
    [state] = streams.opened
    streams.end(state)
    streams._outbox.fill(GroupBuilder(), 0.0)
    streams.ended_by_peer(1, HalfInput.FIN)
    assert not streams.table.by_id
    return streams


class TestForgottenStreams:
    def test_data(self) -> None:
        streams = finished_one()
        for offence in (lambda: streams.received(frames.StreamData(0, 1, b"x")), lambda: streams.priority_of(1)):
            with pytest.raises(RemoteProtocolError, match="after its end"):
                offence()

    def test_ends_stops_and_credit(self) -> None:
        streams = finished_one()
        streams.ended_by_peer(1, HalfInput.RESET)
        streams.stopped_by_peer(frames.StreamStop(0, 1, 0))
        streams.credit_raised(frames.StreamCredit(1, 1 << 20))
        assert not streams.table.by_id

    def test_they_make_room(self) -> None:
        streams = make(most=1)
        for n in range(20):
            opened(streams, 2 * n + 1)
            state = streams.opened.pop()
            streams.end(state)
            streams._outbox.fill(GroupBuilder(), 0.0)
            streams.ended_by_peer(state.id, HalfInput.FIN)
        assert streams.table.remote_open == 0


class TestPeersFrames:
    def test_priority_of(self) -> None:
        streams = make()
        streams.opened_by_peer(frames.StreamOpen(0, 1, 6, "s"))
        assert streams.priority_of(1) == 6

    def test_a_reset_after_the_end(self) -> None:
        """The writer may give up what it had ended, and then nothing follows."""
        streams = make()
        opened(streams)
        [state] = streams.opened
        streams.received(frames.StreamData(0, 1, b"unread"))
        streams.ended_by_peer(1, HalfInput.FIN)
        streams.ended_by_peer(1, HalfInput.RESET)
        assert state.receiving is Half.RESET
        assert not state.chunks
        with pytest.raises(RemoteProtocolError, match="reset after reset"):
            streams.ended_by_peer(1, HalfInput.RESET)

    def test_two_ends(self) -> None:
        streams = make()
        opened(streams)
        streams.ended_by_peer(1, HalfInput.FIN)
        with pytest.raises(RemoteProtocolError, match="two ends"):
            streams.ended_by_peer(1, HalfInput.FIN)

    def test_credit_only_rises(self) -> None:
        streams = make()
        state = streams.open("s", 4)
        streams.credit_raised(frames.StreamCredit(state.id, 200_000))
        streams.credit_raised(frames.StreamCredit(state.id, 100_000))
        assert state.credit == 200_000

    def test_windows_only_rise(self) -> None:
        streams = make()
        state = streams.open("s", 4)
        streams.learn_window(300_000)
        streams.learn_window(1)
        assert state.credit == 300_000
        streams.max_streams_raised(frames.MaxStreams(2))
        streams.max_streams_raised(frames.MaxStreams(1))
        assert streams.open("later", 4).credit == 300_000


class TestCredit:
    def test_a_frame_for_each_quarter_of_the_window(self) -> None:
        streams = make()
        opened(streams)
        [state] = streams.opened
        told = 0
        for _ in range(640):
            streams.received(frames.StreamData(0, 1, bytes(KIB)))
            state.chunks.clear()
            streams.consume(state, KIB)
            told += len(credits_in(streams))
        assert told == 640 // 16

    def test_none_after_the_end(self) -> None:
        streams = make()
        opened(streams)
        [state] = streams.opened
        streams.received(frames.StreamData(0, 1, bytes(60 * KIB)))
        streams.ended_by_peer(1, HalfInput.FIN)
        state.chunks.clear()
        assert not streams.consume(state, 60 * KIB)
        assert credits_in(streams) == []

    def test_a_new_path_is_told_all_that_hello_does_not_say(self) -> None:
        streams = make()
        opened(streams)
        opened(streams, 3)
        streams.received(frames.StreamData(0, 1, bytes(60 * KIB)))
        streams.opened[0].chunks.clear()
        streams.consume(streams.opened[0], 60 * KIB)
        first = credits_in(streams)
        assert first == [frames.StreamCredit(1, 124 * KIB)]
        streams.repeat_credits()
        assert credits_in(streams) == first

    def test_as_much_as_a_group_holds(self) -> None:
        streams = make(most=10_000)
        for n in range(5000):
            opened(streams, 2 * n + 1)
            streams.table.by_id[2 * n + 1].granted += 1
        streams.repeat_credits()
        total = 0
        while found := credits_in(streams):
            total += len(found)
        assert total == 5000


def test_a_half_that_is_over_cannot_be_changed() -> None:
    state = make().open("s", 4)
    state.change_sending(HalfInput.RESET)
    with pytest.raises(LocalProtocolError, match="reset already"):
        state.change_sending(HalfInput.FIN)


def test_chunks_of_two_bytes_take_hardly_more_memory_than_their_own() -> None:
    size = 1 << 18
    streams = make(window=size)
    opened(streams)
    [state] = streams.opened
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(size // 2):
            streams.received(frames.StreamData(number, 1, bytes((number & 255, 1))))
        assert tracemalloc.get_traced_memory()[0] - before < 1.5 * size
    finally:
        tracemalloc.stop()
    assert b"".join(state.chunks) == bytes(at for number in range(size // 2) for at in (number & 255, 1))
    assert state.ready_bytes == size
