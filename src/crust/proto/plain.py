"""Records over a byte stream that is encrypted below already: µTP inside the tunnel.

The same groups as in `crust.proto.record`: a control record, whose first byte says how many payload records follow, and
these. A record is a 16-bit field, its length - 1, and its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crust.errors import RemoteProtocolError
from crust.proto.record import Group
from crust.wire.utp import Buffer

__all__ = ["PlainRecords"]

_FIELD: Final = 2
_MOST_PAYLOADS: Final = 15


class PlainRecords:
    """Splits a stream into groups of records."""

    __slots__ = ("_chunks", "_control", "_due", "_length", "_offset", "_payloads", "_size", "_used")

    def __init__(self) -> None:
        self._chunks: list[Buffer] = []  # a few; an empty deque takes 760 bytes
        self._used = 0  # chunks
        self._offset = 0  # of the next one, what was used
        self._size = 0  # bytes not used yet
        self._length = 0  # of the record under way; 0: not known yet
        self._control = b""
        self._payloads: list[bytes] = []
        self._due = 0

    @staticmethod
    def buffers(groups: Sequence[Group]) -> list[Buffer]:
        """What to write for some groups; the payloads as they are, without a copy."""
        out: list[Buffer] = []
        for control, payloads in groups:
            out.append((len(control) - 1).to_bytes(_FIELD, "big") + control)
            for payload in payloads:
                out += ((len(payload) - 1).to_bytes(_FIELD, "big"), payload)
        return out

    def receive(self, chunks: Sequence[Buffer]) -> list[tuple[bytes, list[bytes]]]:
        """Take in bytes in the order of the stream; returns the groups that are whole.

        Raises:
            RemoteProtocolError: something that is no record.
        """
        if len(chunks) == 1 and not (self._size or self._length or self._due):
            lone = chunks[0]
            if type(lone) is bytes and self._is_lone(lone):
                return [(lone[_FIELD:], [])]
        self._chunks += chunks
        self._size += sum(map(len, chunks))
        groups: list[tuple[bytes, list[bytes]]] = []
        self._split(groups)
        # At once, as there are many when a peer sends crumbs.
        del self._chunks[: self._used]
        self._used = 0
        return groups

    @staticmethod
    def _is_lone(chunk: bytes) -> bool:
        """Whether these bytes are just one group, without payloads: what a request or its answer is."""
        return len(chunk) > _FIELD and not chunk[_FIELD] and chunk[0] << 8 | chunk[1] == len(chunk) - _FIELD - 1

    def _split(self, groups: list[tuple[bytes, list[bytes]]]) -> None:
        """Add the groups that are whole."""
        while True:
            length = self._length
            if not length:
                if self._size < _FIELD:
                    return
                length = self._length = self._take_field() + 1
            if self._size < length:
                return
            plain = self._take(length)
            self._length = 0
            if self._due:
                self._payloads.append(plain)
                self._due -= 1
            else:
                if plain[0] > _MOST_PAYLOADS:
                    raise RemoteProtocolError("a control record announces too many payload records")
                self._control = plain
                self._due = plain[0]
            if not self._due:
                groups.append((self._control, self._payloads))
                self._control = b""
                self._payloads = []

    def _take_field(self) -> int:
        """The next field, which is there."""
        head, start = self._chunks[self._used], self._offset
        end = start + _FIELD
        if end >= len(head):
            return int.from_bytes(self._take(_FIELD), "big")
        self._offset = end
        self._size -= _FIELD
        return head[start] << 8 | head[start + 1]

    def _take(self, wanted: int) -> bytes:
        """The next bytes, which are there."""
        chunks, used, start = self._chunks, self._used, self._offset
        self._size -= wanted
        head = chunks[used]
        end = start + wanted
        if end < len(head):
            self._offset = end
            return bytes(head[start:end])
        pieces: list[Buffer] = []
        while wanted:
            size = len(head) - start
            if size > wanted:
                pieces.append(memoryview(head)[start : start + wanted])
                start += wanted
                break
            pieces.append(memoryview(head)[start:] if start else head)
            wanted -= size
            used += 1
            start = 0
            if wanted:
                head = chunks[used]
        self._used, self._offset = used, start
        return b"".join(pieces)
