"""What `flush` waits for."""

from __future__ import annotations

from crust.proto.session.outbox import Outbox
from crust.proto.session.streams import StreamTable

__all__ = ["FlushMark"]


class FlushMark:
    """What had been queued when it was made, and whether all of it is acknowledged yet.

    Args:
        outbox: what is queued of messages, and what is acknowledged.
        table: what is queued of streams.
    """

    __slots__ = ("_counts", "_number", "_outbox", "_streams")

    def __init__(self, outbox: Outbox, table: StreamTable) -> None:
        self._outbox = outbox
        self._counts = list(outbox.queued_count)
        self._streams = [(s, s.sent + s.pending_bytes) for s in table.by_id.values() if s.pending_bytes]
        self._number: int | None = None  # the first frame behind all of it, when all of it is written

    def written(self) -> bool:
        """Whether all of it has been written; True once only."""
        if self._number is not None:
            return False
        if any(done < count for done, count in zip(self._outbox.done_count, self._counts, strict=True)):
            return False
        if any(s.sent < end and s.pending_bytes for s, end in self._streams):
            return False
        self._number = self._outbox.next_number
        return True

    def acknowledged(self) -> bool:
        """Whether the peer holds all of it."""
        return self._number is not None and self._outbox.acked >= self._number
