"""Named timers: one table for each engine, so that a front end arms a single timer."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["TimerTable"]

Name = TypeVar("Name")


class TimerTable(Generic[Name]):
    """Deadlines by name; the engine asks for what is due, the front end for the earliest."""

    __slots__ = ("_deadlines",)

    def __init__(self) -> None:
        self._deadlines: dict[Name, float] = {}

    def set(self, name: Name, deadline: float) -> None:
        """Arm a timer, replacing its earlier deadline."""
        self._deadlines[name] = deadline

    def set_if_unset(self, name: Name, deadline: float) -> None:
        """Arm a timer unless it is armed."""
        self._deadlines.setdefault(name, deadline)

    def set_earlier(self, name: Name, deadline: float) -> None:
        """Arm a timer unless it is armed for an earlier moment."""
        if self._deadlines.get(name, deadline) >= deadline:
            self._deadlines[name] = deadline

    def clear(self, name: Name) -> None:
        """Disarm a timer."""
        self._deadlines.pop(name, None)

    def clear_all(self) -> None:
        """Disarm every timer."""
        self._deadlines.clear()

    def __contains__(self, name: Name) -> bool:
        return name in self._deadlines

    def next_timeout(self) -> float | None:
        """The earliest deadline."""
        return min(self._deadlines.values()) if self._deadlines else None

    def pop_due(self, now: float) -> list[Name]:
        """Disarm and return the timers whose deadline has passed, earliest first."""
        due = [name for name, deadline in self._deadlines.items() if deadline <= now]
        due.sort(key=self._deadlines.__getitem__)
        for name in due:
            del self._deadlines[name]
        return due
