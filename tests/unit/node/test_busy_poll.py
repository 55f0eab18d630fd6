"""After which messages the event loop stays awake, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from crust.node import busy_poll
from crust.node.busy_poll import AnswerWatch, BusyPoll

POLL = busy_poll._POLL_SECONDS


class FakeLoop:
    """An event loop whose turns are made by hand, at times that the test chooses."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def turn(self, seconds: float = 0.0) -> bool:
        """One turn, so much later; whether another follows at once."""
        self.now += seconds
        due, self.due = self.due, []
        for callback in due:
            callback()
        return bool(self.due)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    fake = FakeLoop()
    monkeypatch.setattr(busy_poll, "monotonic", lambda: fake.now)
    monkeypatch.setattr(busy_poll, "_processors", lambda: 2)
    return fake


def watch(loop: FakeLoop) -> AnswerWatch:
    return AnswerWatch(BusyPoll(cast(asyncio.AbstractEventLoop, loop)))


def exchange(loop: FakeLoop, watched: AnswerWatch, seconds: float) -> bool:
    """Send, and get the answer so much later; whether the loop stayed awake for it."""
    watched.sent(loop.now)
    awake = loop.turn()
    loop.now += seconds
    watched.received(loop.now)
    while loop.turn(POLL / 10):
        pass
    return awake


def test_the_loop_stays_awake_until_the_answer_comes(loop: FakeLoop) -> None:
    watched = watch(loop)
    watched.sent(loop.now)
    assert loop.turn(POLL / 4)
    assert loop.turn(POLL / 4)
    watched.received(loop.now)
    assert not loop.turn()


def test_the_loop_sleeps_when_no_answer_comes_in_time(loop: FakeLoop) -> None:
    watched = watch(loop)
    watched.sent(loop.now)
    assert loop.turn(POLL * 0.9)
    assert not loop.turn(POLL * 0.2)


def test_every_message_is_followed_by_a_poll_while_answers_come_at_once(loop: FakeLoop) -> None:
    watched = watch(loop)
    assert all(exchange(loop, watched, POLL / 2) for _ in range(100))


@pytest.mark.parametrize("answered", [True, False])
def test_polls_become_rare_where_answers_are_late_or_do_not_come(loop: FakeLoop, *, answered: bool) -> None:
    watched = watch(loop)
    polls = 0
    for _ in range(1024):
        if answered:
            polls += exchange(loop, watched, POLL * 3)
        else:
            watched.sent(loop.now)
            polls += loop.turn()
            loop.turn(POLL * 3)
    assert 10 <= polls <= 25


def test_one_quick_answer_brings_the_polls_back(loop: FakeLoop) -> None:
    watched = watch(loop)
    for _ in range(1024):
        exchange(loop, watched, POLL * 3)
    tries = 0
    while not exchange(loop, watched, POLL / 2):
        tries += 1
    assert tries < 64
    assert all(exchange(loop, watched, POLL / 2) for _ in range(100))


def test_a_second_message_before_the_answer_does_not_prolong_the_poll(loop: FakeLoop) -> None:
    watched = watch(loop)
    watched.sent(loop.now)
    assert loop.turn(POLL * 0.9)
    watched.sent(loop.now)
    assert not loop.turn(POLL * 0.2)


def test_an_answer_to_one_connection_leaves_the_other_its_poll(loop: FakeLoop) -> None:
    poll = BusyPoll(cast(asyncio.AbstractEventLoop, loop))
    one, other = AnswerWatch(poll), AnswerWatch(poll)
    one.sent(loop.now)
    loop.turn(POLL / 2)
    other.sent(loop.now)
    one.received(loop.now)
    assert loop.turn(POLL / 2)
    assert len(loop.due) == 1  # one callback, however many connections wait
    assert not loop.turn(POLL)


def test_nobody_polls_on_a_single_processor(loop: FakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_poll, "_processors", lambda: 1)
    watched = watch(loop)
    assert not exchange(loop, watched, POLL / 2)


def test_the_processors_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: Any = {3}
    monkeypatch.setattr(busy_poll.os, "sched_getaffinity", lambda _: allowed, raising=False)
    assert busy_poll._processors() == 1
    monkeypatch.delattr(busy_poll.os, "sched_getaffinity")
    monkeypatch.setattr(busy_poll.os, "cpu_count", lambda: None)
    assert busy_poll._processors() == 1
