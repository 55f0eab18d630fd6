"""The application's buffers from the first byte that the peer may lack to the last one queued, by offset in the stream.

Payloads are cut when they are needed, to be sent or to be sent again: kept slices would be objects by the thousand,
which Python's garbage collector looks at again and again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

from crust.wire.utp import Buffer

__all__ = ["SendQueue"]

_TRIM = 8
"""What is done with is removed when it is at least this part of all buffers: removing the first of a list moves all
others."""


class SendQueue:
    """Buffers in order; payloads are memoryviews of them, except those that straddle two buffers.

    Attributes:
        size: bytes queued and not taken yet.
    """

    __slots__ = ("_buffers", "_done", "_ends", "_taken", "size")

    def __init__(self) -> None:
        self._buffers: list[memoryview] = []
        self._ends: list[int] = []  # offset after each
        self._taken = 0  # offset of the first byte that waits to be taken
        self._done = 0  # buffers at the front of which nothing is needed any more
        self.size = 0

    def extend(self, buffers: list[memoryview], size: int) -> None:
        """Queue the first `size` bytes of some buffers, none of which may change until it has been dropped."""
        start = self._taken + self.size
        end = start + size
        ends = list(accumulate(map(len, buffers), initial=start))
        if ends[-1] > end:
            last = bisect_left(ends, end) - 1
            buffers = [*buffers[:last], buffers[last][: end - ends[last]]]
            ends[last + 1 :] = [end]
        del ends[0]
        self.size += size
        self._buffers += buffers
        self._ends += ends

    def take(self, payload_bytes: int, count: int) -> list[Buffer]:
        """At most `count` payloads of `payload_bytes` each; the last is shorter when the queue runs out."""
        payloads: list[Buffer] = []
        buffers, ends = self._buffers, self._ends
        at = bisect_right(ends, self._taken, self._done)
        while count and self.size:
            left = ends[at] - self._taken
            whole = min(left // payload_bytes, count)
            if whole:
                head, start = buffers[at], len(buffers[at]) - left
                taken = whole * payload_bytes
                payloads += [head[i : i + payload_bytes] for i in range(start, start + taken, payload_bytes)]
                count -= whole
            else:
                taken = min(payload_bytes, self.size)
                payloads.append(self._read(at, self._taken, taken))
                count -= 1
            self._taken += taken
            self.size -= taken
            while at < len(ends) and ends[at] <= self._taken:
                at += 1
        return payloads

    def pass_by(self, buffer: memoryview) -> None:
        """Keep a buffer that is sent at once, as nothing else waits."""
        self._taken += len(buffer)
        self._buffers.append(buffer)
        self._ends.append(self._taken)

    def read(self, start: int, end: int) -> Buffer:
        """The bytes between two offsets of what was taken and not dropped."""
        if start == end:
            return b""
        return self._read(bisect_right(self._ends, start, self._done), start, end - start)

    def _read(self, at: int, start: int, size: int) -> Buffer:
        """`size` bytes from an offset, which lies in the `at`-th buffer."""
        head = self._buffers[at]
        first = len(head) - (self._ends[at] - start)
        piece = head[first : first + size]
        if len(piece) == size:
            return piece
        pieces = [piece]
        size -= len(piece)
        while size:
            at += 1
            piece = self._buffers[at]
            if len(piece) > size:
                piece = piece[:size]
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def drop(self, offset: int) -> None:
        """Nothing below an offset will be read again."""
        ends = self._ends
        done = bisect_right(ends, offset, self._done)
        if done * _TRIM >= len(ends):
            del self._buffers[:done]
            del ends[:done]
            done = 0
        self._done = done

    def clear(self) -> None:
        """Forget everything; offsets begin anew."""
        self._buffers.clear()
        self._ends.clear()
        self._taken = self._done = self.size = 0
