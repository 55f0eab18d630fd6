"""What a node tells whoever reads `Node.events()`; the event `PeerLost` is the error of that name."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from crust.crypto.keys import PeerId
from crust.errors import PeerLost
from crust.types import Path

__all__ = ["BootstrapFailed", "DuplicateIdentity", "Event", "EventReader", "PathChanged", "PeerClosed", "PeerConnected"]


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A connection has come up.

    Attributes:
        peer: to whom.
        path: over which first path.
        accepted: whether the peer dialled us.
    """

    peer: PeerId
    path: Path
    accepted: bool


@dataclass(frozen=True, slots=True)
class PathChanged:
    """A connection goes on over another path.

    Attributes:
        peer: whose connection.
        path: the path that carries our data now; None while there is none.
        reason: why, in a few words.
    """

    peer: PeerId
    path: Path | None
    reason: str


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """A connection has ended in an orderly way.

    Attributes:
        peer: whose connection.
    """

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DuplicateIdentity:
    """Two running programs use one identity; each has its own connection.

    Attributes:
        peer: whose identity.
    """

    peer: PeerId


@dataclass(frozen=True, slots=True)
class BootstrapFailed:
    """A bootstrap node could not be reached; it is tried again later.

    Attributes:
        target: the contact.
        error: why.
    """

    target: str
    error: str


Event = PeerConnected | PathChanged | PeerClosed | PeerLost | DuplicateIdentity | BootstrapFailed


class EventReader:
    """One reader's queue of events, as an asynchronous iterator; the oldest are dropped when nobody reads.

    Attributes:
        dropped: how many events were dropped.
    """

    def __init__(self, most: int, on_close: set[EventReader]) -> None:
        self._queue: deque[Event] = deque()
        self._most = most
        self._waiters: list[asyncio.Future[None]] = []
        self._ended = False
        self._readers = on_close
        self.dropped = 0
        on_close.add(self)

    def put(self, event: Event) -> None:
        """Add an event."""
        if len(self._queue) >= self._most:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(event)
        self._wake()

    def end(self) -> None:
        """No event will follow."""
        self._ended = True
        self._wake()

    def close(self) -> None:
        """Stop reading."""
        self._readers.discard(self)
        self.end()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> Event:
        """The next event; ends when the node closes. Cancellation loses nothing."""
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        return self._queue.popleft()
