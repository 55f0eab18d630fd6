"""Named timers: one table for each engine, so that a front end arms a single timer."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["TimerTable"]

Name = TypeVar("Name")


class TimerTable(Generic[Name]):
    """Deadlines by name; the engine asks for what is due, the front end for the earliest.

    Attributes:
        deadlines: by name; for code that runs once for each packet and cannot afford a call for each timer.
    """

    __slots__ = ("deadlines",)

    def __init__(self) -> None:
        self.deadlines: dict[Name, float] = {}

    def set(self, name: Name, deadline: float) -> None:
        """Arm a timer, replacing its earlier deadline."""
        self.deadlines[name] = deadline

    def set_if_unset(self, name: Name, deadline: float) -> None:
        """Arm a timer unless it is armed."""
        self.deadlines.setdefault(name, deadline)

    def set_earlier(self, name: Name, deadline: float) -> None:
        """Arm a timer unless it is armed for an earlier moment."""
        if self.deadlines.get(name, deadline) >= deadline:
            self.deadlines[name] = deadline

    def clear(self, name: Name) -> None:
        """Disarm a timer."""
        self.deadlines.pop(name, None)

    def clear_all(self) -> None:
        """Disarm every timer."""
        self.deadlines.clear()

    def __contains__(self, name: Name) -> bool:
        return name in self.deadlines

    def next_timeout(self) -> float | None:
        """The earliest deadline."""
        return min(self.deadlines.values()) if self.deadlines else None

    def pop_due(self, now: float) -> list[Name]:
        """Disarm and return the timers whose deadline has passed, earliest first."""
        due = [name for name, deadline in self.deadlines.items() if deadline <= now]
        due.sort(key=self.deadlines.__getitem__)
        for name in due:
            del self.deadlines[name]
        return due
