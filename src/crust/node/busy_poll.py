"""Busy polling: after a small message the event loop stays awake for a moment, as the answer may come at once.

Who sleeps is woken late, above all in a virtual machine: by 20 to 100 µs, and two peers on one machine or in one
network need no longer than that to talk. So who has just sent a small message looks for the answer for a fraction of
a millisecond before it sleeps; the event loop serves everything else meanwhile. Where that is of no use, because the
peer is far away, or slow, or does not answer, it is tried ever more rarely: in the end once in 64 such messages, which
costs each of them some 6 µs on average.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from crust.net.clock import monotonic

__all__ = ["HANDSHAKE_SECONDS", "AnswerWatch", "BusyPoll"]

_POLL_SECONDS: Final = 0.0004

HANDSHAKE_SECONDS: Final = 0.002
"""A handshake takes the peer longer than an answer."""

_MOST_FAILURES: Final = 6
"""After so many in a row one message of 64 is followed by a poll."""


class BusyPoll:
    """Keeps an event loop awake.

    Args:
        loop: the node's.
    """

    __slots__ = ("_awake", "_loop", "_until", "useful")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._awake = False
        self._until = 0.0
        self.useful = _processors() > 1  # else who is to answer waits for us
        """Whether it can be of any use here."""

    def begin(self, until: float) -> None:
        """Stay awake until a time of the monotonic clock."""
        self._until = until
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._turn)

    def end(self, until: float) -> None:
        """What `begin` was called for has come."""
        if self._until == until:
            self._until = 0.0

    def _turn(self) -> None:
        self._awake = monotonic() < self._until
        if self._awake:
            self._loop.call_soon(self._turn)


class AnswerWatch:
    """Decides for one connection, or for a node's handshakes, after which messages polling is worth while.

    Args:
        poll: the node's.
    """

    __slots__ = ("_failures", "_pauses", "_poll", "_until")

    def __init__(self, poll: BusyPoll) -> None:
        self._poll = poll
        self._until = 0.0  # to when we poll; 0.0: for nothing
        self._failures = 0  # in a row
        self._pauses = 0  # messages to come that are not followed by a poll

    def sent(self, now: float, seconds: float = _POLL_SECONDS) -> None:
        """A small message has gone out, and nothing else; poll for so many seconds."""
        if self._until:
            if now < self._until:
                return
            self._failed()
        if self._pauses:
            self._pauses -= 1
        elif self._poll.useful:
            self._until = now + seconds
            self._poll.begin(self._until)

    def received(self, now: float) -> None:
        """Something has come."""
        until = self._until
        if until and now < until:
            self._until = 0.0
            self._failures = 0
            self._poll.end(until)
        elif until:
            self._failed()

    def _failed(self) -> None:
        self._until = 0.0
        self._failures = min(self._failures + 1, _MOST_FAILURES)
        self._pauses = (1 << self._failures) - 1


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
