"""Datagrams that wait to be written: unreliable, so the oldest give way when too many wait."""

from __future__ import annotations

from collections import deque
from typing import Final

from crust.errors import LocalProtocolError
from crust.proto.session.outbox import GroupBuilder
from crust.wire import frames

__all__ = ["DATAGRAM_LIMIT", "DatagramQueue"]

DATAGRAM_LIMIT: Final = 1200
"""Bytes of a datagram that fit every path."""

_QUEUED_BYTES: Final = 1024 * 1024
_COST: Final = 64  # so that empty ones fill the queue, too
_ROOM_LEFT: Final = 1024


class DatagramQueue:
    """What waits, up to a mebibyte."""

    __slots__ = ("_bytes", "_queue")

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, data: bytes) -> bool:
        """Queue one; False when the oldest were dropped for it.

        Raises:
            LocalProtocolError: longer than every path can carry.
        """
        if len(data) > DATAGRAM_LIMIT:
            raise LocalProtocolError(f"a datagram has at most {DATAGRAM_LIMIT} bytes, this one {len(data)}")
        self._queue.append(data)
        self._bytes += len(data) + _COST
        dropped = False
        while self._bytes > _QUEUED_BYTES:
            self._take()
            dropped = True
        return not dropped

    def _take(self) -> bytes:
        data = self._queue.popleft()
        self._bytes -= len(data) + _COST
        return data

    def fill(self, group: GroupBuilder) -> None:
        """Put what waits into a group, as far as there is room."""
        while self._queue and group.room > DATAGRAM_LIMIT + _ROOM_LEFT:
            group.add(frames.serialize_datagram(self._take()))
