"""Named deadlines."""

from __future__ import annotations

from crust.proto.timers import TimerTable


def table(**deadlines: float) -> TimerTable[str]:
    timers: TimerTable[str] = TimerTable()
    for name, deadline in deadlines.items():
        timers.set(name, deadline)
    return timers


def test_empty() -> None:
    assert table().next_timeout() is None
    assert table().pop_due(1e9) == []
    assert "a" not in table()


def test_the_earliest_counts() -> None:
    assert table(a=3.0, b=1.0, c=2.0).next_timeout() == 1.0


def test_due_ones_come_in_order_and_once() -> None:
    timers = table(a=3.0, b=1.0, c=2.0, d=9.0)
    assert timers.pop_due(3.0) == ["b", "c", "a"]
    assert timers.pop_due(3.0) == []
    assert timers.next_timeout() == 9.0


def test_set_replaces() -> None:
    timers = table(a=1.0)
    timers.set("a", 5.0)
    assert timers.next_timeout() == 5.0


def test_set_if_unset_keeps() -> None:
    timers = table(a=1.0)
    timers.set_if_unset("a", 5.0)
    timers.set_if_unset("b", 5.0)
    assert timers.pop_due(5.0) == ["a", "b"]


def test_set_earlier_only_brings_forward() -> None:
    timers = table(a=2.0)
    timers.set_earlier("a", 3.0)
    assert timers.next_timeout() == 2.0
    timers.set_earlier("a", 1.0)
    timers.set_earlier("b", 4.0)
    assert timers.pop_due(1.0) == ["a"]
    assert "b" in timers


def test_clear() -> None:
    timers = table(a=1.0, b=2.0)
    timers.clear("a")
    timers.clear("never")
    assert timers.next_timeout() == 2.0
    timers.clear_all()
    assert timers.next_timeout() is None
