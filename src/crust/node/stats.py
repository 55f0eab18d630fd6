"""Counters of a node, by reason."""

from __future__ import annotations

from collections import Counter

__all__ = ["Stats"]


class Stats(Counter[str]):
    """Counts by dotted name, such as "handshake.silenced" or "dial.failed"; a name that never happened reads 0."""

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        self[name] += by
