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
        # None where an empty one will do: it takes 760 bytes.
        self._buffers: deque[memoryview] | None = None
        self._offset = 0
        self.size = 0

    def append(self, buffer: memoryview) -> None:
        """Queue a buffer; it must not change until it has been acknowledged."""
        if self._buffers is None:
            self._buffers = deque()
        self._buffers.append(buffer)
        self.size += len(buffer)

    def take(self, payload_bytes: int, count: int) -> list[Buffer]:
        """Remove at most `count` payloads of `payload_bytes` each; the last is shorter when the queue runs out."""
        payloads: list[Buffer] = []
        buffers = self._buffers
        while count and buffers:
            head, start = buffers[0], self._offset
            whole = min((len(head) - start) // payload_bytes, count)
            if whole:
                end = start + whole * payload_bytes
                payloads += [head[at : at + payload_bytes] for at in range(start, end, payload_bytes)]
                count -= whole
                self.size -= end - start
                self._offset = end
                if end == len(head):
                    buffers.popleft()
                    self._offset = 0
            else:
                payloads.append(self._gather(buffers, payload_bytes))
                count -= 1
        return payloads

    def clear(self) -> None:
        """Forget everything."""
        self._buffers = None
        self._offset = self.size = 0

    def release(self) -> None:
        """Hold no memory while there is nothing to hold."""
        if not self.size:
            self._buffers = None

    def _gather(self, buffers: deque[memoryview], wanted: int) -> Buffer:
        """One payload over the ends of buffers."""
        pieces: list[memoryview] = []
        while wanted and buffers:
            head = buffers[0]
            piece = head[self._offset : self._offset + wanted]
            pieces.append(piece)
            wanted -= len(piece)
            self.size -= len(piece)
            self._offset += len(piece)
            if self._offset == len(head):
                buffers.popleft()
                self._offset = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
