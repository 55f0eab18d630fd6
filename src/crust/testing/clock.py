"""A clock that stands still until it is told to go on."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """Seconds for engines, which take `now` as an argument.

    Attributes:
        now: the present moment.
    """

    __slots__ = ("now",)

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        """The present moment, for what asks for a function."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Let time pass.

        Returns:
            The new moment.
        """
        return self.advance_to(self.now + seconds)

    def advance_to(self, moment: float) -> float:
        """Let time pass until a moment; a moment in the past changes nothing.

        Returns:
            The new moment.
        """
        self.now = max(self.now, moment)
        return self.now
