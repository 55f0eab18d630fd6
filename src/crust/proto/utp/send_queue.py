"""Bytes that wait to be sent: the application's buffers, cut into payloads without a copy."""

from __future__ import annotations

from collections import deque

from crust.wire.utp import Buffer

__all__ = ["SendQueue"]


class SendQueue:
    """Buffers in order; payloads are memoryviews of them, except those that straddle two buffers.

    Attributes:
        size: bytes queued.
    """

    __slots__ = ("_buffers", "_offset", "size")

    def __init__(self) -> None:
        self._buffers: deque[memoryview] = deque()
        self._offset = 0
        self.size = 0

    def append(self, buffer: memoryview) -> None:
        """Queue a buffer; it must not change until it has been acknowledged."""
        self._buffers.append(buffer)
        self.size += len(buffer)

    def take(self, payload_bytes: int, count: int) -> list[Buffer]:
        """Remove at most `count` payloads of `payload_bytes` each; the last is shorter when the queue runs out."""
        payloads: list[Buffer] = []
        while count and self._buffers:
            head, start = self._buffers[0], self._offset
            whole = min((len(head) - start) // payload_bytes, count)
            if whole:
                end = start + whole * payload_bytes
                payloads += [head[at : at + payload_bytes] for at in range(start, end, payload_bytes)]
                count -= whole
                self.size -= end - start
                self._offset = end
                if end == len(head):
                    self._drop_head()
            else:
                payloads.append(self._gather(payload_bytes))
                count -= 1
        return payloads

    def clear(self) -> None:
        """Forget everything."""
        self._buffers.clear()
        self._offset = self.size = 0

    def _drop_head(self) -> None:
        self._buffers.popleft()
        self._offset = 0

    def _gather(self, wanted: int) -> Buffer:
        """One payload over the ends of buffers."""
        pieces: list[memoryview] = []
        while wanted and self._buffers:
            head = self._buffers[0]
            piece = head[self._offset : self._offset + wanted]
            pieces.append(piece)
            wanted -= len(piece)
            self.size -= len(piece)
            self._offset += len(piece)
            if self._offset == len(head):
                self._drop_head()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
