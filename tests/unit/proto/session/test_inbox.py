"""Credit and reassembly: what a receiver holds is bounded, and no message is too large for its window."""

from __future__ import annotations

import pytest

from crust.config import Config
from crust.testing.pair import Pair
from crust.types import Priority

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
