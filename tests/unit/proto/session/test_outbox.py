"""What goes out first, what is dropped, what waits for credit."""

from __future__ import annotations

import pytest

from crust.config import Config
from crust.proto.session.engine import Session
from crust.testing.pair import Link, Pair, Parcel
from crust.types import Priority
from crust.wire import frames

KIB = 1024
MIB = 1024 * KIB


def narrow(signing: bool = False, **settings: int) -> tuple[Pair, Link]:
    """A pair over a path that takes 128 KiB and brings 1 MB a second."""
    pair = Pair(Config(**settings), signing=signing)  # type: ignore[arg-type]
    link = pair.add_path(capacity=128 * KIB, rate=1e6)
    pair.run(0.5)
    return pair, link


class TestOvertaking:
    def test_urgent_overtakes_bulk_under_way(self) -> None:
        pair, _ = narrow()
        pair.a.send(bytes(4 * MIB), Priority.BULK)
        pair.run(1)
        start = pair.clock.now
        pair.a.send(b"now", Priority.CRITICAL)
        assert pair.run(5, until=lambda: pair.b.session.inbox.has_message)
        assert pair.b.read() == b"now"
        assert pair.clock.now - start < 0.6  # what the kernel and one group held
        pair.settle(30)
        assert pair.b.read_all() == [bytes(4 * MIB)]

    def test_each_priority_overtakes_those_below(self) -> None:
        pair, link = narrow()
        link.hold()
        for priority in reversed(Priority):
            pair.a.send(bytes([priority]) * 200 * KIB, priority)
        link.hold(held=False)
        order: list[Priority] = []
        while len(order) < 8 and pair.run(30, until=lambda: pair.b.session.inbox.has_message):
            order += [priority for _, priority in pair.b.read_marked()]
        assert order == list(Priority)

    def test_order_within_a_priority_whatever_the_sizes(self) -> None:
        pair, _ = narrow(signing=True)
        sizes = [10, 100_000, 0, 16_385, 5, 700_000, 1, 16_384, 65_536]
        sent = [bytes([n]) + bytes(size) for n, size in enumerate(sizes * 3)]
        for data in sent:
            pair.a.send(data)
        pair.settle(60)
        assert pair.b.read_all() == sent

    def test_streams_and_messages_take_turns(self) -> None:
        pair, link = narrow()
        stream = pair.a.session.streams.open("s", Priority.BULK)
        pair.a.session.streams.write(stream, memoryview(bytes(512 * KIB)))
        pair.a.send(bytes(512 * KIB), Priority.BULK)
        pair.run(0.35)
        assert link.lanes[0].carried_bytes > 256 * KIB
        assert 60 * KIB < stream.sent < 450 * KIB


class TestExpiry:
    def test_before_it_is_begun(self) -> None:
        pair, link = narrow()
        link.hold()
        pair.a.send(bytes(1 * MIB))  # blocks the path
        pair.run(0.1)
        for n in range(5):
            pair.a.send(b"%d" % n, Priority.HIGH, expires_in=0.5 if n % 2 else None)
        pair.run(1)
        link.hold(held=False)
        pair.settle(30)
        assert pair.b.read_all() == [b"0", b"2", b"4", bytes(1 * MIB)]
        assert pair.a.session.outbox.expired == 2
        assert pair.a.session.outbox.queued_total == 0

    @pytest.mark.parametrize("signing", [False, True])
    def test_between_fragments(self, signing: bool) -> None:
        pair, _ = narrow(signing=signing)
        pair.a.send(b"first")
        pair.a.send(bytes(8 * MIB), expires_in=2.0)
        pair.a.send(b"last")
        pair.settle(30)
        assert pair.b.read_all() == [b"first", b"last"]
        assert pair.a.session.outbox.expired == 1
        assert pair.a.session.outbox.queued_bytes == [0] * 8
        assert pair.a.session.outbox.queued_total == 0
        assert pair.b.ended is None
        # The credit of what had come is given back.
        for _ in range(20):
            pair.a.send(bytes(1 * MIB))
            pair.settle(30)
            assert pair.b.read_all() == [bytes(1 * MIB)]

    def test_when_it_was_written_whole_it_arrives(self) -> None:
        pair, link = narrow()
        pair.a.send(b"x" * 50_000, expires_in=0.5)
        pair.run(0.01)
        link.hold()
        pair.run(2)
        link.hold(held=False)
        pair.settle()
        assert pair.b.read_all() == [b"x" * 50_000]

    def test_counts_for_flush(self) -> None:
        pair, _ = narrow()
        pair.a.send(bytes(8 * MIB), expires_in=0.5)
        mark = pair.a.flush_mark()
        assert pair.run(5, until=lambda: pair.a.session.flushed(mark))

    def test_makes_room_while_the_peer_does_not_read(self) -> None:
        """Messages that have expired do not fill the queue, also when nothing may be written."""
        pair, _ = narrow(receive_window_bytes=256 * KIB)
        for _ in range(40):
            pair.a.send(bytes(10_000), expires_in=1.0)
        pair.run(0.9)
        assert pair.a.session.outbox.queued_bytes[Priority.NORMAL]
        pair.run(0.2)
        assert pair.a.session.outbox.queued_bytes[Priority.NORMAL] == 0
        assert pair.a.session.outbox.expired > 5

    def test_makes_room_while_there_is_no_path(self) -> None:
        pair = Pair()
        for n in range(8):
            pair.a.send(bytes(10_000), Priority(n), expires_in=1.0 if n else None)
        pair.a.send(bytes(100_000), Priority.LOW, expires_in=0.5)
        pair.run(2)
        assert pair.a.session.outbox.queued_total == 10_000
        assert pair.a.session.outbox.expired == 8
        pair.add_path()
        pair.settle()
        assert pair.b.read_all() == [bytes(10_000)]


class TestCredit:
    def test_a_slow_reader_stops_its_priority_only(self) -> None:
        pair = Pair(Config(receive_window_bytes=256 * KIB))
        pair.add_path()
        pair.run(0.1)
        for _ in range(100):
            pair.a.send(bytes(10 * KIB), Priority.BULK)
        pair.run(0.5)
        assert pair.b.session.inbox.ready_bytes <= 256 * KIB
        assert pair.a.session.outbox.queued_bytes[Priority.BULK] > 700 * KIB
        for priority in Priority:
            if priority != Priority.BULK:
                pair.a.send(b"through", priority)
        pair.run(0.5)
        assert [d for d, p in pair.b.read_marked() if p != Priority.BULK] == [b"through"] * 7
        got = 0
        while pair.run(1, until=lambda: pair.b.session.inbox.has_message):
            got += sum(map(len, pair.b.read_all()))
        assert pair.a.session.outbox.queued_total == 0

    def test_empty_messages_cost_too(self) -> None:
        pair = Pair(Config(receive_window_bytes=256 * KIB))
        pair.add_path()
        for _ in range(10_000):
            pair.a.send(b"")
        pair.run(1)
        assert pair.b.session.inbox.messages_received <= 256 * KIB // 64
        total = 0
        while pair.run(1, until=lambda: pair.b.session.inbox.has_message):
            total += len(pair.b.read_all())
        assert total == 10_000

    def test_bytes_before_hello_are_few(self) -> None:
        pair = Pair()
        link = pair.add_path()
        link.lanes[1].held = True
        pair.a.send(bytes(2 * MIB))
        pair.run(0.05)
        assert link.lanes[0].carried_bytes <= 257 * KIB
        link.hold(held=False)
        pair.settle()
        assert pair.b.read_all() == [bytes(2 * MIB)]

    def test_groups_fit_their_records(self) -> None:
        """Whatever is mixed, no control record is over 64 KiB (`Pair` checks it)."""
        pair, link = narrow(signing=True)
        for n in range(200):
            pair.a.send(bytes(n * 97 % 17_000), Priority(n % 8))
            stream = pair.a.session.streams.open(f"stream {n}" * 10, Priority(n % 8))
            pair.a.session.streams.write(stream, memoryview(bytes(n * 89 % 40_000)))
        pair.a.session.ping(pair.clock.now)
        pair.run(2)
        pair.kill(link)
        pair.add_path()
        pair.settle(30)
        assert len(pair.b.read_all()) == 200


class TestFlush:
    def flushed_after(self, pair: Pair, session: Session) -> float:
        mark = session.flush_mark()
        start = pair.clock.now
        assert pair.run(60, until=lambda: session.flushed(mark))
        return pair.clock.now - start

    def test_nothing_to_flush(self) -> None:
        pair, _ = narrow()
        assert self.flushed_after(pair, pair.a.session) == 0

    def test_asks_for_the_acknowledgement(self) -> None:
        pair = Pair()
        pair.add_path(delay=0.001)
        pair.run(1)
        pair.a.send(b"x")
        assert self.flushed_after(pair, pair.a.session) < 0.01  # not the 50 ms of a lazy one

    def test_while_others_go_on_sending(self) -> None:
        pair, _ = narrow()
        pair.a.send(b"covered")
        mark = pair.a.flush_mark()
        rounds = 0
        while not pair.a.session.flushed(mark):
            pair.a.send(bytes(20_000))
            pair.run(0.01)
            rounds += 1
            assert rounds < 100
        assert pair.b.read() == b"covered"
        assert pair.a.session.outbox.has_work()

    def test_covers_streams(self) -> None:
        pair, _ = narrow()
        stream = pair.a.session.streams.open("s", Priority.LOW)
        pair.a.session.streams.write(stream, memoryview(bytes(500_000)))
        assert self.flushed_after(pair, pair.a.session) > 0.4
        assert stream.pending_bytes == 0

    def test_a_reset_stream_needs_no_flush(self) -> None:
        pair, link = narrow()
        link.hold()
        stream = pair.a.session.streams.open("s", Priority.LOW)
        pair.a.session.streams.write(stream, memoryview(bytes(50_000)))
        mark = pair.a.flush_mark()
        pair.a.session.streams.reset(stream)
        link.hold(held=False)
        assert pair.run(1, until=lambda: pair.a.session.flushed(mark))

    def test_across_a_loss_of_the_path(self) -> None:
        pair, link = narrow()
        pair.a.send(bytes(3 * MIB))
        mark = pair.a.flush_mark()
        pair.run(1)
        pair.kill(link)
        pair.run(1)
        assert not pair.a.session.flushed(mark)
        pair.add_path()
        assert pair.run(5, until=lambda: pair.a.session.flushed(mark))
        assert pair.b.read_all() == [bytes(3 * MIB)]


def test_no_group_has_more_than_four_payload_records() -> None:
    pair = Pair()
    pair.add_path(capacity=300 * KIB, delay=0.001)
    sizes: list[int] = []
    deliver = pair.deliver

    def look(link: Link, sender: int, parcel: Parcel) -> None:
        sizes.append(len(parcel.payloads))
        assert all(len(payload) > frames.INLINE_LIMIT for payload in parcel.payloads)
        deliver(link, sender, parcel)

    pair.deliver = look  # type: ignore[method-assign]
    pair.a.send(bytes(8 * MIB))
    pair.settle()
    assert max(sizes) == 4
