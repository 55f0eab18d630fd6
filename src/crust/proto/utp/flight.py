"""Packets sent and not acknowledged: what arrived, what is lost, what was sent again.

Sets of packets are the bits of integers (bit i: packet `una` + i), the ends of payloads are offsets in the stream, and
times are kept for bursts of packets, not for each: so an acknowledgement of a hundred packets costs little more than
that of one. Losses are found as in RFC 8985 (RACK): a packet is lost when one that was sent later has arrived, and it
is overdue by more than the reordering that the path is known for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from crust.proto.utp.constants import SPURIOUS_RTT_FRACTION

__all__ = ["Flight", "runs"]

# Deadlines are sums of times: without it, rounding could leave a packet not quite overdue at its own deadline.
_CLOCK_SLACK = 1e-6


def runs(mask: int) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of set bits, lowest first."""
    at = 0
    while mask:
        gap = (mask & -mask).bit_length() - 1
        mask >>= gap
        length = (~mask & (mask + 1)).bit_length() - 1
        mask >>= length
        first = at + gap
        at = first + length
        yield first, at


class Flight:
    """Outstanding packets.

    Sequence numbers here do not wrap: their low 16 bits are those on the wire.

    Attributes:
        una: the first unacknowledged packet.
        base: offset in the stream of the first unacknowledged byte.
        sacked: packets above `una` that arrived.
        lost: packets taken for lost and not sent again yet.
        resent: packets sent again and outstanding.
        sacked_bytes: payload of `sacked`.
        lost_bytes: payload of `lost`.
        fack: one past the highest packet that arrived.
        rack_time: when the most recently sent of the packets that arrived was sent.
        rack_rtt: its round trip.
        rtt_sample: the round trip that the last acknowledgement shows of a packet sent once; 0 for none.
        reordered: a first copy arrived after that of a later packet.
        spurious: packets taken for lost of which the first copy arrived, since the engine last looked.
        repaired: a packet arrived by its repetition, since the engine last looked.
    """

    __slots__ = (
        "_burst_ends",
        "_burst_times",
        "_bursts_from",
        "_ends",
        "_judged",
        "_rack_order",
        "_resent_at",
        "_silent_bytes",
        "_tail",
        "base",
        "fack",
        "lost",
        "lost_bytes",
        "rack_rtt",
        "rack_time",
        "reordered",
        "repaired",
        "resent",
        "rtt_sample",
        "sacked",
        "sacked_bytes",
        "spurious",
        "una",
    )

    def __init__(self, seq_nr: int) -> None:
        self.una = self.fack = seq_nr
        self.sacked = self.lost = self.resent = 0
        self.sacked_bytes = self.lost_bytes = 0
        self.rack_time = float("-inf")
        self.rack_rtt = self.rtt_sample = 0.0
        self.reordered = self.repaired = False
        self.spurious = 0
        self._rack_order = (0, seq_nr)  # of what was sent at that time: (repetition, number)
        self._ends: list[int] = []  # offset in the stream after each payload
        self.base = self._tail = 0  # offsets before the first and after the last of them
        self._burst_ends: list[int] = []  # one past the last packet of each burst
        self._burst_times: list[float] = []
        self._bursts_from = seq_nr
        self._judged = seq_nr  # every packet below it has arrived, been taken for lost or been sent again
        self._silent_bytes = 0  # overdue, and above what acknowledgements tell of: no longer on its way in any case
        self._resent_at: dict[int, float] = {}  # in the order of the repetitions

    @property
    def next_seq(self) -> int:
        """The number of the next packet."""
        return self.una + len(self._ends)

    @property
    def count(self) -> int:
        """Packets outstanding, those that arrived out of order included."""
        return len(self._ends)

    @property
    def held_bytes(self) -> int:
        """Payload kept for sending again."""
        return self._tail - self.base

    @property
    def unreceived_bytes(self) -> int:
        """Payload that the peer has not acknowledged in any way."""
        return self._tail - self.base - self.sacked_bytes

    @property
    def in_flight(self) -> int:
        """Payload believed to be on its way (the `pipe` of RFC 6675)."""
        return self._tail - self.base - self.sacked_bytes - self.lost_bytes - self._silent_bytes

    @property
    def is_plain(self) -> bool:
        """Nothing arrived out of order, and nothing is lost or was sent again."""
        return not (self.sacked or self.lost or self.resent)

    def add(self, size: int, count: int, last: int, now: float) -> None:
        """Take note of packets sent for the first time: `count` with payloads of `size` bytes, the last of `last`."""
        ends, at = self._ends, self._tail
        self._tail = tail = at + size * (count - 1) + last
        if count > 1:
            ends.extend(range(at + size, tail, size))
        ends.append(tail)
        times = self._burst_times
        if times and times[-1] == now:
            self._burst_ends[-1] = self.una + len(ends)
        else:
            self._burst_ends.append(self.una + len(ends))
            times.append(now)

    def span(self, seq: int) -> tuple[int, int]:
        """Where the payload of an outstanding packet begins and ends in the stream."""
        at = seq - self.una
        return self._ends[at - 1] if at else self.base, self._ends[at]

    def size_of(self, seq: int) -> int:
        """Bytes of payload of an outstanding packet."""
        start, end = self.span(seq)
        return end - start

    # -- acknowledgements ----------------------------------------------------------------------------------------

    def acknowledge(self, una: int, sack: int, now: float, min_rtt: float) -> int:
        """Take in an acknowledgement.

        Args:
            una: everything below it has arrived; at most `next_seq`.
            sack: bit i is set when packet `una` + i has arrived, too.
            now: the present time.
            min_rtt: the least round trip, to tell the copies of a packet apart.

        Returns:
            Bytes of payload that are newly known to have arrived.
        """
        self.rtt_sample = 0.0
        advance = una - self.una
        if advance < 0:
            sack >>= -advance
            advance = 0
        self._silent_bytes = 0
        if not (sack or self.sacked or self.lost or self.resent):
            return self._advance_in_order(advance, now) if advance else 0
        arrived = ((1 << advance) - 1) | sack << advance
        new = arrived & ~self.sacked & ((1 << len(self._ends)) - 1)
        delivered = self._take_in(new, now, min_rtt) if new else 0
        if advance:
            end = self._ends[advance - 1]
            self.sacked_bytes -= end - self.base
            self.sacked >>= advance
            self.lost >>= advance
            self.resent >>= advance
            self._drop(advance, end)
        return delivered

    def _advance_in_order(self, advance: int, now: float) -> int:
        end = self._ends[advance - 1]
        delivered = end - self.base
        newest = self.una + advance - 1
        if newest >= self._bursts_from:
            ends = self._burst_ends
            sent = self._burst_times[0 if newest < ends[0] else bisect_right(ends, newest)]
            self.rtt_sample = now - sent
            if sent > self.rack_time:
                self.rack_time, self._rack_order, self.rack_rtt = sent, (0, newest), now - sent
            else:
                self._saw_arrival(sent, (0, newest), now)
        if advance == len(self._ends):
            self._drop_all(end)
        else:
            self._drop(advance, end)
        return delivered

    def _drop_all(self, end: int) -> None:
        """The same as `_drop`, where nothing is left: what happens at every answer to a request."""
        self.base = end
        self.una = una = self.una + len(self._ends)
        self._ends.clear()
        if una > self.fack:
            self.fack = una
        if self._burst_ends:
            self._bursts_from = una
            self._burst_ends.clear()
            self._burst_times.clear()

    def _drop(self, advance: int, end: int) -> None:
        """Forget the first packets, which end at offset `end`."""
        self.base = end
        del self._ends[:advance]
        self.una += advance
        self.fack = max(self.fack, self.una)
        self._prune_bursts(max(self.una, self._judged))

    def _prune_bursts(self, seq: int) -> None:
        done = bisect_right(self._burst_ends, seq)
        if done:
            self._bursts_from = self._burst_ends[done - 1]
            del self._burst_ends[:done]
            del self._burst_times[:done]

    def _take_in(self, new: int, now: float, min_rtt: float) -> int:
        """Packets that arrived, of which we had not heard; returns their bytes."""
        una = self.una
        first_copies = new & ~self.resent
        if first_copies:
            if una + (first_copies & -first_copies).bit_length() - 1 < self.fack:
                self.reordered = True
            newest = una + first_copies.bit_length() - 1
            self._saw_first_copy(newest, now)
        late = new & self.lost
        if late:
            self.lost ^= late
            self.lost_bytes -= self._bytes(late)
            self.spurious += late.bit_count()
        again = new & self.resent
        if again:
            self.resent ^= again
            self._take_in_repetitions(again, now, min_rtt)
        self.fack = max(self.fack, una + new.bit_length())
        delivered = self._bytes(new)
        self.sacked |= new
        self.sacked_bytes += delivered
        return delivered

    def _take_in_repetitions(self, again: int, now: float, min_rtt: float) -> None:
        for first, end in runs(again):
            for seq in range(self.una + first, self.una + end):
                sent = self._resent_at.pop(seq)
                if now - sent < SPURIOUS_RTT_FRACTION * min_rtt:
                    # Too early for the repetition: the first copy was only late.
                    self.spurious += 1
                    self.reordered = True
                else:
                    self.repaired = True
                    self._saw_arrival(sent, (1, seq), now)

    def _saw_first_copy(self, seq: int, now: float) -> None:
        if seq >= self._bursts_from:
            sent = self._burst_times[bisect_right(self._burst_ends, seq)]
            self.rtt_sample = now - sent
            self._saw_arrival(sent, (0, seq), now)

    def _saw_arrival(self, sent: float, order: tuple[int, int], now: float) -> None:
        if (sent, order) >= (self.rack_time, self._rack_order):
            self.rack_time, self._rack_order, self.rack_rtt = sent, order, now - sent

    def _bytes(self, mask: int) -> int:
        """Payload of a set of packets."""
        ends, base, total = self._ends, self.base, 0
        for first, end in runs(mask):
            total += ends[end - 1] - (ends[first - 1] if first else base)
        return total

    # -- losses --------------------------------------------------------------------------------------------------

    def find_losses(self, now: float, reorder_window: float) -> tuple[int, float]:
        """Mark as lost what is overdue.

        Returns:
            The packets newly lost as a bit set, and when the last of them had been sent (0 for none).
        """
        overdue = min(now - self.rack_rtt - reorder_window + _CLOCK_SLACK, self.rack_time)
        lost, sent = 0, 0.0
        done = bisect_right(self._burst_times, overdue)
        if done:
            # Nothing above the highest arrival: an acknowledgement may not reach that far.
            lost = self._mark_first_copies(min(self._burst_ends[done - 1], self.fack))
            # Of the burst that has begun to arrive the rest may be right behind.
            older = bisect_left(self._burst_times, self.rack_time, 0, done)
            self._silent_bytes = self._count_silent(self._burst_ends[older - 1]) if older else 0
            if lost:
                sent = self._burst_times[bisect_right(self._burst_ends, self.una + lost.bit_length() - 1)]
            self._prune_bursts(max(self.una, self._judged))
        for seq, time in self._overdue_repetitions(overdue):
            lost |= 1 << (seq - self.una)
            self._mark_repetition(seq)
            sent = max(sent, time)
        return lost, sent

    def _count_silent(self, overdue: int) -> int:
        """Payload of what is overdue, but past the highest arrival that acknowledgements reach to tell of."""
        first, end = max(self.fack, self.una) - self.una, overdue - self.una
        if first >= end:
            return 0
        known = (self.lost | self.resent) >> first << first & ((1 << end) - 1)
        return self._ends[end - 1] - (self._ends[first - 1] if first else self.base) - self._bytes(known)

    def _overdue_repetitions(self, overdue: float) -> list[tuple[int, float]]:
        found = []
        for seq, time in self._resent_at.items():
            # Of one moment, repetitions were sent after first copies and in their own order.
            if time > overdue or (time == self.rack_time and (1, seq) >= self._rack_order):
                break
            found.append((seq, time))
        return found

    def _mark_first_copies(self, boundary: int) -> int:
        """Take for lost what is below `boundary` and has not arrived."""
        if boundary <= self._judged:
            return 0
        new = ((1 << (boundary - self.una)) - 1) & ~(self.sacked | self.lost | self.resent)
        self._judged = boundary
        if new:
            self.lost |= new
            self.lost_bytes += self._bytes(new)
        return new

    def _mark_repetition(self, seq: int) -> None:
        """Take a repetition for lost, too."""
        del self._resent_at[seq]
        bit = 1 << (seq - self.una)
        self.resent ^= bit
        self.lost |= bit
        self.lost_bytes += self.size_of(seq)

    def next_judgement(self, reorder_window: float) -> float | None:
        """When the next packet will be overdue that was sent before one that arrived."""
        deadline = None
        if self._burst_times and self._burst_times[0] <= self.rack_time and max(self._judged, self.una) < self.fack:
            deadline = self._burst_times[0]
        if self._resent_at:
            first = next(iter(self._resent_at.values()))
            if first < self.rack_time and (deadline is None or first < deadline):
                deadline = first
        return None if deadline is None else deadline + self.rack_rtt + reorder_window

    def lose_first(self) -> bool:
        """Take the first outstanding packet for lost (three duplicate acks); False when it already was."""
        if (self.lost | self.resent) & 1 or not self._ends:
            return False
        self.lost |= 1
        self.lost_bytes += self.size_of(self.una)
        self._silent_bytes = 0
        return True

    def lose_all(self) -> None:
        """Take for lost all that has not arrived (time-out)."""
        self.lost = ((1 << len(self._ends)) - 1) & ~self.sacked
        self.lost_bytes = self.unreceived_bytes
        self.resent = self._silent_bytes = 0
        self._resent_at.clear()
        self._judged = self.next_seq
        self._prune_bursts(self._judged)

    def lose(self, seq: int) -> None:
        """Take one outstanding packet for lost (it was too big for the path)."""
        bit = 1 << (seq - self.una)
        self._silent_bytes = 0
        if self.resent & bit:
            self._mark_repetition(seq)
        elif not (self.lost | self.sacked) & bit:
            self.lost |= bit
            self.lost_bytes += self.size_of(seq)

    # -- repetitions ---------------------------------------------------------------------------------------------

    @property
    def next_lost(self) -> int | None:
        """The first packet that waits to be sent again."""
        lost = self.lost
        return self.una + (lost & -lost).bit_length() - 1 if lost else None

    def unreceived_edges(self) -> tuple[int, int] | None:
        """The first and the last packet that has not arrived."""
        missing = ((1 << len(self._ends)) - 1) & ~self.sacked
        if not missing:
            return None
        return self.una + (missing & -missing).bit_length() - 1, self.una + missing.bit_length() - 1

    def repeat(self, seq: int, now: float) -> tuple[int, int]:
        """Take note that a packet is sent again; returns where its payload lies in the stream."""
        bit = 1 << (seq - self.una)
        start, end = span = self.span(seq)
        if self.lost & bit:
            self.lost ^= bit
            self.lost_bytes -= end - start
        self.resent |= bit
        self._resent_at.pop(seq, None)  # its place is by the time of the last repetition
        self._resent_at[seq] = now
        return span
