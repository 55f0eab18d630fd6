"""Counters."""

from __future__ import annotations

from crust.proto.utp.events import DropReason, UtpStats


def test_drops_are_counted() -> None:
    stats = UtpStats()
    stats.drop(DropReason.FOREIGN)
    stats.drop(DropReason.FOREIGN, 2)
    assert stats.dropped == {DropReason.FOREIGN: 3}


def test_drops_are_told() -> None:
    told: list[tuple[str, int]] = []
    stats = UtpStats(told=lambda name, count: told.append((name, count)))
    stats.drop(DropReason.OUT_OF_WINDOW, 3)
    assert told == [("utp.out_of_window", 3)]
