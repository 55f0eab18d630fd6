"""Records over a byte stream that is encrypted below already: µTP inside the tunnel.

The same groups as in `crust.proto.record`: a control record, whose first byte says how many payload records follow, and
these. A record is a 16-bit field, its length - 1, and its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from crust.errors import RemoteProtocolError
from crust.proto.record import Group
from crust.wire.utp import Buffer

__all__ = ["PlainRecords"]

_FIELD: Final = 2
_MOST_PAYLOADS: Final = 15


class PlainRecords:
    """Splits a stream into groups of records."""

    __slots__ = ("_chunks", "_control", "_due", "_length", "_offset", "_payloads", "_size")

    def __init__(self) -> None:
        self._chunks: list[Buffer] = []  # a few; an empty deque takes 760 bytes
        self._offset = 0  # of the first chunk, what was used
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

    def receive(self, chunks: Iterable[Buffer]) -> list[tuple[bytes, list[bytes]]]:
        """Take in bytes in the order of the stream; returns the groups that are whole.

        Raises:
            RemoteProtocolError: something that is no record.
        """
        groups: list[tuple[bytes, list[bytes]]] = []
        for chunk in chunks:
            if type(chunk) is bytes and not (self._size or self._length or self._due) and self._is_lone(chunk):
                groups.append((chunk[_FIELD:], []))
                continue
            self._chunks.append(chunk)
            self._size += len(chunk)
            self._split(groups)
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
                length = self._length = int.from_bytes(self._take(_FIELD), "big") + 1
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

    def _take(self, wanted: int) -> bytes:
        """The next bytes, which are there."""
        chunks, start = self._chunks, self._offset
        self._size -= wanted
        head = chunks[0]
        end = start + wanted
        if end < len(head):
            self._offset = end
            return bytes(head[start:end])
        pieces: list[Buffer] = []
        used = 0  # chunks; they go at once, as there are many when a peer sends crumbs
        while True:
            head = chunks[used]
            piece = memoryview(head)[start : start + wanted] if start or len(head) > wanted else head
            pieces.append(piece)
            wanted -= len(piece)
            if start + len(piece) == len(head):
                used += 1
                start = 0
            else:
                start += len(piece)
            if not wanted:
                self._offset = start
                del chunks[:used]
                return b"".join(pieces)
