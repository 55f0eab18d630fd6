"""Credit and reassembly: what a receiver holds is bounded, and no message is too large for its window."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from crust.config import Config
from crust.errors import RemoteProtocolError
from crust.proto.session.inbox import Inbox
from crust.testing.pair import Pair
from crust.types import Priority
from crust.wire import frames

KIB = 1024
MIB = 1024 * KIB
WINDOW = 256 * KIB


def small_window(most: int = 64 * MIB) -> Pair:
    pair = Pair(Config(receive_window_bytes=WINDOW, max_message_bytes=most, retention_bytes=64 * MIB))
    pair.add_path()
    pair.run(1)
    return pair


@pytest.mark.parametrize("size", [WINDOW - 65, WINDOW - 64, WINDOW - 63, WINDOW, WINDOW + 1, 2 * WINDOW, 20 * WINDOW])
@pytest.mark.parametrize("before", [0, 10 * KIB, 63 * KIB, 100 * KIB, 200 * KIB])
def test_a_message_around_the_window(size: int, before: int) -> None:
    """However much credit the messages before it have used and not yet been given back."""
    pair = small_window()
    pair.a.send(bytes(before))
    pair.settle()
    assert pair.b.read_all() == [bytes(before)]
    pair.a.send(b"x" * size)
    pair.a.send(b"behind")
    pair.settle(5)
    assert pair.b.read_all()[0] == b"x" * size
    pair.settle(5)
    assert pair.a.session.outbox.queued_total == 0


@pytest.mark.parametrize("size", [WINDOW // 2, WINDOW - 100, WINDOW + 1, 3 * WINDOW])
def test_large_messages_that_nobody_reads_stop_the_sender(size: int) -> None:
    pair = small_window()
    for _ in range(50):
        pair.a.send(bytes(size))
    pair.run(10)
    assert pair.b.session.inbox.ready_bytes <= 2 * WINDOW + size
    got = 0
    while pair.run(2, until=lambda: pair.b.session.inbox.has_message):
        got += len(pair.b.read_all())
    assert got == 50


def test_every_priority_has_a_credit_of_its_own() -> None:
    pair = small_window()
    for priority in Priority:
        for _ in range(5):
            pair.a.send(bytes(WINDOW), priority)
    pair.run(5)
    waiting = {priority for priority in Priority if pair.a.session.outbox.queued_bytes[priority]}
    assert waiting == set(Priority)
    got = 0
    while pair.run(2, until=lambda: pair.b.session.inbox.has_message):
        got += len(pair.b.read_all())
    assert got == 40


def test_credit_survives_a_change_of_path() -> None:
    """CREDIT frames are not numbered: a new path is told all that is above the window."""
    pair = small_window()
    for _ in range(30):
        pair.a.send(bytes(WINDOW // 2))
    pair.run(1)
    pair.b.read_all()
    pair.kill(pair.links[0])  # before the credit is written
    pair.add_path()
    got = 0
    while pair.run(2, until=lambda: pair.b.session.inbox.has_message):
        got += len(pair.b.read_all())
        pair.kill(pair.links[-1])
        pair.add_path()
    assert got + 2 >= 30


class TestOrder:
    """Frames of a sender that spreads them over several paths."""

    def message(self, number: int) -> frames.Messages:
        return frames.Messages(number, 4, [b"%d" % number])

    def test_any_order_comes_out_in_order(self) -> None:
        inbox = Inbox(WINDOW, 1 << 20, 512 * KIB)
        for start in range(0, 3000, 6):
            numbers = [start + n for n in (3, 1, 5, 4, 2)]
            assert all(inbox.accept(self.message(n)) == [] for n in numbers)
            assert all(inbox.accept(self.message(n)) == [] for n in numbers)  # a second time
            assert [f.number for f in inbox.accept(self.message(start))] == list(range(start, start + 6))
        assert inbox.expected == 3000

    def test_old_ones_are_dropped(self) -> None:
        inbox = Inbox(WINDOW, 1 << 20, 512 * KIB)
        assert inbox.accept(self.message(0))
        assert inbox.accept(self.message(0)) == []

    def test_gaps_stay_gaps(self) -> None:
        inbox = Inbox(WINDOW, 1 << 20, 512 * KIB)
        for number in (1, 3):
            inbox.accept(self.message(number))
        assert [f.number for f in inbox.accept(self.message(0))] == [0, 1]
        assert [f.number for f in inbox.accept(self.message(2))] == [2, 3]

    @pytest.mark.parametrize(
        "frame",
        [
            frames.Messages(1, 4, [bytes(60_000)] * 12),
            frames.Signature(1, bytes(700_000)),
            frames.Service(1, bytes(700_000)),
            frames.StreamData(1, 0, bytes(700_000)),
        ],
    )
    def test_what_waits_is_bounded_whatever_it_is(self, frame: frames.NumberedFrame) -> None:
        inbox = Inbox(WINDOW, 1 << 20, 512 * KIB)
        with pytest.raises(RemoteProtocolError, match="reorder buffer"):
            inbox.accept(frame)


class TestEarly:
    """Frames ahead of a gap, which a hostile peer never fills."""

    @staticmethod
    def fill(inbox: Inbox, make: Callable[[int], frames.NumberedFrame]) -> None:
        def all_of_them() -> None:
            for number in range(1, 1000):
                assert inbox.accept(make(number)) == []

        with pytest.raises(RemoteProtocolError, match="credit"):
            all_of_them()

    def test_empty_messages_are_bounded_by_credit(self) -> None:
        """Each frame of 64 KiB may hold 32,000 of them, which are no bytes at all, and so cost nothing to keep."""
        inbox = Inbox(WINDOW, MIB, 64 * MIB)
        self.fill(inbox, lambda number: frames.Messages(number, 4, [b""] * 1000))
        held = sum(len(frame.data) for frame, _ in inbox._early.values() if isinstance(frame, frames.Messages))
        assert held * 64 <= WINDOW

    def test_fragments_are_bounded_by_credit(self) -> None:
        inbox = Inbox(WINDOW, MIB, 64 * MIB)
        self.fill(inbox, lambda number: frames.Fragment(number, 4, 60 * KIB, bytes(60 * KIB)))
        assert len(inbox._early) <= WINDOW // (60 * KIB)

    def test_what_comes_into_order_is_charged_once(self) -> None:
        inbox = Inbox(WINDOW, MIB, 64 * MIB)
        for _ in range(3):
            start = inbox.expected
            for number in range(start + 50, start, -1):
                assert inbox.accept(frames.Messages(number, 2, [bytes(1000)])) == []
            ordered = inbox.accept(frames.Messages(start, 2, [bytes(1000)]))
            assert [frame.number for frame in ordered] == list(range(start, start + 51))
            for frame in ordered:
                assert isinstance(frame, frames.Messages)
                inbox.add_messages(frame.priority, frame.data, None)
            while inbox.next_message() is not None:
                pass
        assert inbox._early_charges == [0] * 8


def test_a_message_in_fragments_of_two_bytes_takes_hardly_more_memory_than_its_own() -> None:
    inbox = Inbox(4 * MIB, MIB, 64 * MIB)
    size = MIB // 4
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(size // 2 - 1):
            data = bytes((number & 255, 1))
            assert inbox.add_fragment(frames.Fragment(number, 4, size, data)) is None
        assert tracemalloc.get_traced_memory()[0] - before < 1.5 * size
    finally:
        tracemalloc.stop()
    whole = inbox.add_fragment(frames.Fragment(1, 4, size, b"\xff\1"))
    assert whole == bytes(at for number in range(size // 2) for at in (number & 255, 1))
