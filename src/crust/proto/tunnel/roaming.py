"""A peer that appears at another address (PROTOCOL 9)."""

from __future__ import annotations

from typing import Final

from crust.proto.tunnel.constants import AMPLIFICATION, CHALLENGE_SECONDS
from crust.proto.tunnel.events import Route

__all__ = ["CHALLENGE_BYTES", "NewAddress"]

CHALLENGE_BYTES: Final = 16


class NewAddress:
    """An address from which the newest datagram came, and which has not proved yet that the peer is there.

    Whoever copies datagrams can make one come from anywhere, so little is sent there: three times what came.

    Attributes:
        route: the address.
        token: what the peer must send back from it.
        due: when the next challenge is to be sent.
    """

    __slots__ = ("_allowed", "_tries", "due", "route", "token")

    def __init__(self, route: Route, token: bytes, now: float) -> None:
        self.route: Final = route
        self.token: Final = token
        self.due = now
        self._tries = 0
        self._allowed = 0

    def received(self, size: int) -> None:
        """So much came from there."""
        self._allowed += AMPLIFICATION * size

    def spend(self, size: int) -> bool:
        """Whether so much may go there; then it is counted."""
        if size > self._allowed:
            return False
        self._allowed -= size
        return True

    def challenged(self, now: float) -> None:
        """A challenge goes out."""
        self.due = now + CHALLENGE_SECONDS[min(self._tries, len(CHALLENGE_SECONDS) - 1)]
        self._tries += 1

    @property
    def given_up(self) -> bool:
        """Every challenge has gone unanswered."""
        return self._tries >= len(CHALLENGE_SECONDS)
