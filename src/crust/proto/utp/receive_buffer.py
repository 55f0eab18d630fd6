"""What the peer sent: data in order, what came ahead of it, and what is missing."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from crust.proto.utp.constants import JOINED_PAYLOAD_BYTES, MAX_PACKETS_IN_FLIGHT, MAX_PARTS, SMALL_PAYLOAD_BYTES
from crust.wire.utp import Buffer

__all__ = ["Outcome", "ReceiveBuffer"]


class Outcome(enum.Enum):
    """What became of a packet."""

    IN_ORDER = "it was the next one"
    HELD = "it came ahead of others"
    DUPLICATE = "it was here before"
    REFUSED = "it lies outside of the window"
    AFTER_END = "it lies past the end of the stream"
    BAD_PART = "it does not fit the other parts of its packet"


class ReceiveBuffer:
    """Reordering and flow control.

    Attributes:
        next_seq: the number of the next packet in order; its low 16 bits are those on the wire.
        held: bit i is set when packet `next_seq` + 1 + i is here.
        fin_seq: number of the peer's FIN, once it is known.
        finished: everything up to it has arrived.
    """

    __slots__ = (
        "_ahead",
        "_ahead_bytes",
        "_capacity",
        "_joined",
        "_parts",
        "_ready",
        "_unconsumed",
        "fin_seq",
        "finished",
        "held",
        "next_seq",
    )

    def __init__(self, next_seq: int, capacity: int) -> None:
        self.next_seq = next_seq
        self.held = 0
        self.fin_seq: int | None = None
        self.finished = False
        self._capacity = capacity
        self._ready: list[Buffer] = []
        self._joined: bytearray | None = None
        self._unconsumed = 0
        self._ahead: dict[int, Buffer] = {}
        self._ahead_bytes = 0
        self._parts: dict[int, _Parts] = {}

    @property
    def window(self) -> int:
        """Bytes that there is room for."""
        return max(self._capacity - self._unconsumed - self._ahead_bytes, 0)

    @property
    def readable(self) -> bool:
        """There is data in order that was not taken yet."""
        return bool(self._ready)

    @property
    def ready_bytes(self) -> int:
        """Bytes in order that were not consumed yet."""
        return self._unconsumed

    @property
    def used_bytes(self) -> int:
        """Bytes that the window is short of its capacity."""
        return self._unconsumed + self._ahead_bytes

    def take(self) -> list[Buffer]:
        """The data in order since the last call; it counts against the window until `consumed`."""
        ready, self._ready = self._ready, []
        self._joined = None
        return ready

    def consumed(self, size: int) -> bool:
        """Open the window again; False when more is given back than was taken."""
        if size > self._unconsumed:
            return False
        self._unconsumed -= size
        return True

    def append_run(self, payloads: Sequence[Buffer], size: int, count: int) -> bool:
        """Take in `count` packets that come next, with `size` bytes in order in `payloads`.

        Returns:
            False when they must be taken in one by one: packets are held, the window is exceeded, or the end is known.
        """
        if self.held or self.fin_seq is not None or self._parts or size > self._capacity - self._unconsumed:
            return False
        self.next_seq += count
        if size >= SMALL_PAYLOAD_BYTES * len(payloads):
            self._unconsumed += size
            self._ready += payloads
        else:
            for payload in payloads:
                self._add(payload)
        return True

    def append_next(self, payload: Buffer) -> bool:
        """The same for one packet."""
        size = len(payload)
        if self.held or self.fin_seq is not None or self._parts or size > self._capacity - self._unconsumed:
            return False
        self.next_seq += 1
        if (not self._ready and type(payload) is bytes) or size >= SMALL_PAYLOAD_BYTES:
            self._unconsumed += size
            self._ready.append(payload)
        else:
            self._add(payload)
        return True

    def insert(self, seq: int, payload: Buffer) -> Outcome:
        """Take in one packet."""
        ahead = seq - self.next_seq
        if self.fin_seq is not None and seq >= self.fin_seq:
            return Outcome.AFTER_END
        if ahead < 0:
            return Outcome.DUPLICATE
        if ahead == 0:
            # What is held counts for the window, not here: this packet is the one that sets it free.
            if len(payload) > self._capacity - self._unconsumed:
                return Outcome.REFUSED
            self._drop_parts(seq)
            self._add(payload)
            self._advance()
            return Outcome.IN_ORDER
        if self.held >> (ahead - 1) & 1:
            return Outcome.DUPLICATE
        if len(payload) > self.window or ahead > MAX_PACKETS_IN_FLIGHT:
            return Outcome.REFUSED
        self._drop_parts(seq)
        # A copy: a slice would keep the whole buffer alive in which the packet came, as long as a gap stays open.
        self._ahead[seq] = bytes(payload)
        self._ahead_bytes += len(payload)
        self.held |= 1 << (ahead - 1)
        return Outcome.HELD

    def insert_part(self, seq: int, offset: int, total: int, payload: Buffer) -> Outcome:
        """Take in a part of a packet of `total` bytes; the packet counts once it is whole."""
        ahead = seq - self.next_seq
        if ahead < 0 or (ahead and self.held >> (ahead - 1) & 1):
            return Outcome.DUPLICATE
        parts = self._parts.get(seq)
        if parts is None:
            if total > self.window or ahead > MAX_PACKETS_IN_FLIGHT:
                return Outcome.REFUSED
            parts = self._parts[seq] = _Parts(total)
            self._ahead_bytes += total
        if not payload or not parts.add(offset, total, payload):
            return Outcome.BAD_PART
        if parts.missing:
            return Outcome.HELD
        self._drop_parts(seq)
        return self.insert(seq, parts.data)

    def finish(self, seq: int) -> Outcome:
        """Take in the peer's FIN."""
        if self.fin_seq is not None:
            return Outcome.DUPLICATE if seq == self.fin_seq else Outcome.AFTER_END
        ahead = seq - self.next_seq
        if ahead < 0 or self.held >> max(ahead, 0) or ahead > MAX_PACKETS_IN_FLIGHT:
            return Outcome.AFTER_END  # it would end the stream before data that has arrived
        self.fin_seq = seq
        if ahead:
            return Outcome.HELD
        self._end()
        return Outcome.IN_ORDER

    def forget_gaps(self) -> None:
        """Nothing more will come: what came ahead of gaps is of no use."""
        self._ahead.clear()
        self._parts.clear()
        self.held = self._ahead_bytes = 0

    def _drop_parts(self, seq: int) -> None:
        parts = self._parts.pop(seq, None)
        if parts is not None:
            self._ahead_bytes -= len(parts.data)

    def _end(self) -> None:
        self.next_seq += 1
        self.finished = True

    def _advance(self) -> None:
        """One packet in order was added: go on with those that came ahead."""
        self.next_seq += 1
        held = self.held
        if held:
            count = (~held & (held + 1)).bit_length() - 1
            for seq in range(self.next_seq, self.next_seq + count):
                payload = self._ahead.pop(seq)
                self._ahead_bytes -= len(payload)
                self._add(payload)
            self.next_seq += count
            self.held = held >> (count + 1)
        if self.next_seq == self.fin_seq:
            self._end()

    def _add(self, payload: Buffer) -> None:
        size = len(payload)
        if not size:
            return
        self._unconsumed += size
        if size >= SMALL_PAYLOAD_BYTES:
            self._ready.append(payload)
            return
        # Small ones are joined: each object costs some 200 bytes beyond its data, and a slice keeps its whole buffer.
        joined = self._joined
        if joined is not None and self._ready and self._ready[-1] is joined and len(joined) < JOINED_PAYLOAD_BYTES:
            joined += payload
        else:
            self._joined = bytearray(payload)
            self._ready.append(self._joined)


class _Parts:
    """A packet that arrives in pieces."""

    __slots__ = ("_have", "data", "missing")

    def __init__(self, total: int) -> None:
        self.data = bytearray(total)
        self.missing = total
        self._have: dict[int, int] = {}  # offset -> length

    def add(self, offset: int, total: int, payload: Buffer) -> bool:
        """Put a piece in its place; False when it does not fit the others."""
        end = offset + len(payload)
        if total != len(self.data) or end > total:
            return False
        if self._have.get(offset) == len(payload):
            return True
        if len(self._have) >= MAX_PARTS:
            return False
        if any(offset < at + length and at < end for at, length in self._have.items()):
            # Cut differently than last time, as the path shrank again: begin anew.
            self._have.clear()
            self.missing = total
        self._have[offset] = len(payload)
        self.data[offset:end] = payload
        self.missing -= len(payload)
        return True
