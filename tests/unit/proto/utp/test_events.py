"""Counters."""

from __future__ import annotations

from crust.proto.utp.events import DropReason, UtpStats


def test_drops_are_counted() -> None:
    stats = UtpStats()
    stats.drop(DropReason.FOREIGN)
    stats.drop(DropReason.FOREIGN, 2)
    assert stats.dropped == {DropReason.FOREIGN: 3}
