"""The sending half of a session: queues by priority, frame numbers, retention until acknowledged.

Numbers are given when a frame is written, so what stands in a queue can still be overtaken, or expire. Written frames
are kept, in order, until the peer acknowledges them; a path that becomes active is given all of them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from crust.errors import RemoteProtocolError
from crust.proto.session.signing import MAX_SIGNATURE_DELAY, Signer
from crust.proto.session.streams import Half, StreamState, StreamTable
from crust.proto.session.terms import SigningTerms
from crust.wire import frames
from crust.wire.receipt import Kind

__all__ = ["GROUP_PAYLOADS", "INITIAL_CREDIT", "MESSAGE_COST", "Group", "GroupBuilder", "Outbox", "Sent"]

INITIAL_CREDIT: Final = 256 * 1024
"""Bytes of each priority that may be written before the peer's HELLO told its window."""

MESSAGE_COST: Final = 64
"""Bytes of credit that a message costs beside its data, so that empty messages are bounded too."""

FRAME_COST: Final = 64
"""Bytes of retention that a frame costs beside its data."""

PRIORITIES: Final = 8
GROUP_PAYLOADS: Final = 4  # 256 KiB in one write: over TCP, larger gains nothing; it delays an urgent message
_CONTROL_ROOM: Final = frames.RECORD_LIMIT - 512
_CONTROL_FRAME: Final = frames.INLINE_LIMIT + 1024  # the largest control frame, and a signature behind it
_EXPIRY_PAUSE: Final = 0.5
_SLOW_SIGNATURE: Final = 48 * 1024
_MESSAGES_HEAD: Final = 12
_SMALLEST_FRAGMENT: Final = 16 * 1024  # do not cut fragments into crumbs when credit is short

Group = tuple[bytes, list[memoryview]]
"""A control record (its first byte counts the payload records, frames follow) and its payload records."""


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A numbered frame as it was written."""

    number: int
    head: bytes
    payload: memoryview | None
    cost: int


class _Expiring(NamedTuple):
    data: bytes
    deadline: float


class _Large:
    """A message under way in fragments."""

    __slots__ = ("at", "deadline", "view")

    def __init__(self, data: bytes, deadline: float | None) -> None:
        self.view = memoryview(data)
        self.at = 0
        self.deadline = deadline


class GroupBuilder:
    """Collects the frames of one group.

    Args:
        most: payload records at most.
    """

    __slots__ = ("most", "payloads", "pieces", "room")

    def __init__(self, most: int = GROUP_PAYLOADS) -> None:
        self.most = most
        self.pieces: list[bytes] = []
        self.payloads: list[memoryview] = []
        self.room = _CONTROL_ROOM

    def add(self, piece: bytes) -> None:
        """Add a frame without payload record."""
        self.pieces.append(piece)
        self.room -= len(piece)

    def add_sent(self, sent: Sent) -> bool:
        """Add a numbered frame; False when the group is full."""
        size = len(sent.head)
        if size > self.room or (sent.payload is not None and len(self.payloads) == self.most):
            return False
        self.add(sent.head)
        if sent.payload is not None:
            self.payloads.append(sent.payload)
        return True

    def finish(self) -> Group | None:
        """The group, or None when nothing was added."""
        if not self.pieces:
            return None
        return b"".join((bytes((len(self.payloads),)), *self.pieces)), self.payloads


class Outbox:
    """What one side has to say.

    Args:
        streams: the session's streams.
        retention_bytes: sent but unacknowledged bytes kept; beyond it nothing new is numbered.
        terms: how what is written is signed; None when it is not.
        seed: 32 random bytes for the salts of signatures.
    """

    __slots__ = (
        "_asked_delay",
        "_bits",
        "_control",
        "_large",
        "_queues",
        "_retention_bytes",
        "_rounds",
        "_sent",
        "_streams",
        "_terms",
        "acked",
        "close_code",
        "close_number",
        "credit",
        "done_count",
        "expired",
        "expiring",
        "messages_sent",
        "next_number",
        "patient",
        "queued_bytes",
        "queued_count",
        "queued_total",
        "retained_bytes",
        "signatures",
        "signer",
        "spent",
    )

    def __init__(
        self,
        streams: StreamTable,
        retention_bytes: int,
        terms: SigningTerms | None = None,
        seed: bytes = b"",
    ) -> None:
        self._streams = streams
        self._retention_bytes = retention_bytes
        self._queues: list[deque[bytes | _Expiring] | None] = [None] * PRIORITIES
        self._large: list[_Large | None] = [None] * PRIORITIES
        self._rounds: list[deque[StreamState] | None] = [None] * PRIORITIES
        self._bits = 0  # bit p: priority p may have something to write
        self._control: list[Callable[[int], bytes]] = []
        self._sent: list[Sent] = []
        self._terms = terms
        self._asked_delay = 0.0
        self.signer: Signer | None = None
        if terms is not None:
            # The seed is the first frame of all: salts of the leaves behind it come from it.
            self.signer = Signer(terms.identity, terms.remote, terms.hash_id, seed)
            self._control.append(lambda number: frames.serialize_seed(number, seed))
        self.queued_bytes = [0] * PRIORITIES
        self.queued_count = [0] * PRIORITIES  # messages ever queued
        self.done_count = [0] * PRIORITIES  # of these, written whole or dropped
        self.queued_total = 0
        self.credit = [INITIAL_CREDIT] * PRIORITIES
        self.spent = [0] * PRIORITIES
        self.next_number = 0
        self.acked = 0
        self.retained_bytes = 0
        self.close_code: int | None = None
        self.close_number: int | None = None
        self.patient = True  # CLOSE waits for streams that need credit
        self.expired = 0
        self.expiring = 0  # queued messages that have a deadline
        self.signatures = 0
        self.messages_sent = 0

    # --- verbs ---------------------------------------------------------------------------------------------------

    def queue_message(self, data: bytes, priority: int, deadline: float | None) -> None:
        """Queue a message; with a deadline it is dropped when it was not written whole by then."""
        queue = self._queues[priority]
        if queue is None:
            queue = self._queues[priority] = deque()
        if deadline is None:
            queue.append(data)
        else:
            queue.append(_Expiring(data, deadline))
            self.expiring += 1
        self._bits |= 1 << priority
        size = len(data)
        self.queued_bytes[priority] += size + MESSAGE_COST  # so that empty messages fill the queue, too
        self.queued_count[priority] += 1
        self.queued_total += size

    def queue_control(self, serialize: Callable[[int], bytes]) -> None:
        """Queue a numbered frame that goes before all data; `serialize` is given its number."""
        if self.close_number is None:
            self._control.append(serialize)

    def queue_stream(self, stream: StreamState) -> None:
        """Give a stream its turn among those of its priority, if it has something to write."""
        if not stream.queued and self.close_number is None and stream.has_work():
            stream.queued = True
            round_ = self._rounds[stream.priority]
            if round_ is None:
                round_ = self._rounds[stream.priority] = deque()
            round_.append(stream)
            self._bits |= 1 << stream.priority

    def queue_close(self, code: int) -> None:
        """Close after everything that is queued."""
        if self.close_code is None:
            self.close_code = code

    def has_work(self) -> bool:
        """Whether anything is queued or unacknowledged."""
        return bool(self.queued_total or self.retained_bytes) or self.has_queued()

    def has_queued(self) -> bool:
        """Whether anything is queued that was never written."""
        return bool(self._control or self._bits or (self.close_code is not None and self.close_number is None))

    def _waits(self) -> bool:
        """Whether CLOSE has to wait for something queued, or for a stream that needs credit.

        A stream that its reader has stopped holds nothing; a peer that has closed by itself gives no more credit.
        """
        if self._control or self._bits:
            return True
        return self.patient and any(stream.pending_bytes for stream in self._streams.by_id.values())

    def owes(self) -> bool:
        """Whether the peer lacks anything but our CLOSE."""
        if self.close_number is not None:
            return self.acked < self.close_number
        unsigned = self.signer is not None and self.signer.unsigned_units
        return bool(self.acked < self.next_number or unsigned or self._waits())

    def unacknowledged(self) -> deque[Sent]:
        """A copy of what was written and not acknowledged, in order."""
        return deque(self._sent)

    # --- acknowledgement and credit ------------------------------------------------------------------------------

    def acknowledge(self, next_expected: int) -> bool:
        """Forget what the peer holds; True when that was news.

        Raises:
            RemoteProtocolError: the peer acknowledges what was never written.
        """
        if next_expected > self.next_number:
            raise RemoteProtocolError("acknowledges frames that were never sent")
        if next_expected <= self.acked:
            return False
        sent = self._sent
        freed = at = 0
        while at < len(sent) and sent[at].number < next_expected:
            freed += sent[at].cost
            at += 1
        del sent[:at]
        self.retained_bytes -= freed
        self.acked = next_expected
        return True

    def raise_credit(self, priority: int, limit: int) -> None:
        """Take over the peer's absolute credit; a lower one than before is an old one."""
        if limit > self.credit[priority]:
            self.credit[priority] = limit

    # --- writing -------------------------------------------------------------------------------------------------

    def fill(self, group: GroupBuilder, now: float) -> None:
        """Write new frames into a group until it is full or nothing may be written."""
        if self.close_number is not None:
            return  # CLOSE was the last frame
        while self._control and group.room > _CONTROL_FRAME:
            self._write(group, self._control.pop(0)(self.next_number), None, 0)
        signer = self.signer
        if signer is not None and (signer.due(now) or (group.most == 1 and self._is_slow(signer))):
            self._sign(group, now)
        waiting = self._bits
        while waiting and self._can_write(group):
            bit = waiting & -waiting
            priority = bit.bit_length() - 1
            if not self._fill_priority(group, priority, now):
                waiting ^= bit
                if not (self._queues[priority] or self._large[priority] or self._rounds[priority]):
                    self._bits &= ~bit
        if self.close_code is not None and not self._waits():
            if signer is not None and signer.unsigned_units:
                if not self.session_known:
                    return
                self._sign(group, now)
            self.close_number = self.next_number
            self._write(group, frames.serialize_close(self.next_number, self.close_code), None, 0)

    @staticmethod
    def _is_slow(signer: Signer) -> bool:
        """Whether to sign early: on a slow path even what was written within 20 ms may be under way for seconds."""
        return signer.unsigned_bytes >= _SLOW_SIGNATURE and signer.next_timeout() is not None

    @property
    def session_known(self) -> bool:
        """Whether signatures can be made: they name the session."""
        return self._terms is None or self._terms.session_id is not None

    def learn_session(self, session_id: bytes) -> None:
        """Both nonces are known: signatures can be made."""
        if self._terms is not None and self.signer is not None:
            self._terms.session_id = session_id
            self.signer.set_session_id(session_id)

    def ask_delay(self, seconds: float) -> None:
        """The peer has more signatures to check than it likes: let ours cover what comes in so many seconds."""
        self._asked_delay = min(seconds, MAX_SIGNATURE_DELAY)

    def _sign(self, group: GroupBuilder, now: float) -> None:
        """Sign what was written since the last signature; the frame goes out behind it and before anything else."""
        terms, signer = self._terms, self.signer
        assert terms is not None
        assert signer is not None
        body = signer.sign(terms.wall_clock())
        signer.delay = max(terms.pace.signed(now), self._asked_delay)
        self.signatures += 1
        self._write(group, frames.serialize_signature(self.next_number, body), None, 0)

    def is_full(self, group: GroupBuilder) -> bool:
        """Whether `fill` stopped because of the group, so that the next one may get more."""
        return bool(self._control or self._bits) and not self._can_write(group)

    def _can_write(self, group: GroupBuilder) -> bool:
        return (
            group.room > frames.INLINE_LIMIT + 1024
            and len(group.payloads) < group.most
            and self.retained_bytes < self._retention_bytes
        )

    def _write(self, group: GroupBuilder, head: bytes, payload: memoryview | None, size: int) -> None:
        sent = Sent(self.next_number, head, payload, size + FRAME_COST)
        self.next_number += 1
        self._sent.append(sent)
        self.retained_bytes += size + FRAME_COST
        group.pieces.append(head)
        group.room -= len(head)
        if payload is not None:
            group.payloads.append(payload)

    def _fill_priority(self, group: GroupBuilder, priority: int, now: float) -> bool:
        """Write one frame of a priority: messages and streams take turns. False when there is none to write."""
        wrote = False
        if self._large[priority] is not None:
            wrote = self._write_fragment(group, priority, now)
        elif self._queues[priority]:
            wrote = self._write_messages(group, priority, now)
        round_ = self._rounds[priority]
        if round_ and self._can_write(group):
            wrote = self._write_stream(group, round_, now) or wrote
        return wrote

    def _write_messages(self, group: GroupBuilder, priority: int, now: float) -> bool:
        """Pack small messages into one frame; a large one at the head of the queue begins its fragments."""
        queue = self._queues[priority]
        assert queue is not None
        room = group.room - _MESSAGES_HEAD - 8
        credit = self.credit[priority] - self.spent[priority]
        batch: list[bytes] = []
        append = batch.append
        popleft = queue.popleft
        taken = 0
        data: bytes | _Expiring
        while queue:
            data = queue[0]
            deadline = None
            if type(data) is not bytes:
                assert isinstance(data, _Expiring)
                data, deadline = data
                if deadline <= now:
                    popleft()
                    self._drop(priority, len(data))
                    continue
            size = len(data)
            if size > frames.INLINE_LIMIT:
                if not batch:
                    popleft()
                    self.expiring -= deadline is not None
                    if size <= frames.RECORD_LIMIT and size + MESSAGE_COST <= credit:
                        return self._write_whole(group, priority, data, now)
                    self._large[priority] = _Large(data, deadline)
                    self._unqueue(priority, 0, 1)
                    return self._write_fragment(group, priority, now)
                break
            room -= size + 2
            credit -= size + MESSAGE_COST
            if room < 0 or credit < 0:
                break
            append(data)
            popleft()
            taken += size
            if deadline is not None:
                self.expiring -= 1
        if not batch:
            return False
        self.spent[priority] += taken + MESSAGE_COST * len(batch)
        self._unqueue(priority, taken, len(batch))
        self.done_count[priority] += len(batch)
        self.messages_sent += len(batch)
        self._write(group, frames.serialize_messages(self.next_number, priority, batch), None, taken)
        if self.signer is not None:
            self.signer.add_batch(Kind.MESSAGE, priority, batch, now)
        return True

    def drop_expired(self, now: float) -> float | None:
        """Drop what has expired at the heads of the queues, also while nothing may be written.

        Returns:
            When to look again; None when no queued message has a deadline.
        """
        again = None
        for priority, queue in enumerate(self._queues):
            while queue and isinstance(head := queue[0], _Expiring):
                if head.deadline > now:
                    again = head.deadline if again is None else min(again, head.deadline)
                    break
                queue.popleft()
                self._drop(priority, len(head.data))
        if again is None and self.expiring:
            again = now + _EXPIRY_PAUSE  # they stand behind others
        return again

    def _drop(self, priority: int, size: int) -> None:
        """A queued message with a deadline has expired."""
        self._unqueue(priority, size, 1)
        self.done_count[priority] += 1
        self.expired += 1
        self.expiring -= 1

    def _write_whole(self, group: GroupBuilder, priority: int, data: bytes, now: float) -> bool:
        """Write a message that is one payload record."""
        size = len(data)
        self.spent[priority] += size + MESSAGE_COST
        self._unqueue(priority, size, 1)
        self.done_count[priority] += 1
        self.messages_sent += 1
        head = frames.serialize_fragment(self.next_number, priority, size, size, True)
        self._write(group, head, memoryview(data), size)
        if self.signer is not None:
            self.signer.add_batch(Kind.MESSAGE, priority, (data,), now)
        return True

    def _write_fragment(self, group: GroupBuilder, priority: int, now: float) -> bool:
        large = self._large[priority]
        assert large is not None
        view, at = large.view, large.at
        total = len(view)
        if large.deadline is not None and large.deadline <= now:
            return self._abort_large(group, priority, large, now)
        left = total - at
        credit = self.credit[priority] - self.spent[priority] - (0 if at else MESSAGE_COST)
        size = min(left, frames.RECORD_LIMIT)
        if credit < size:
            if credit < _SMALLEST_FRAGMENT:
                return False
            size = credit
        piece = view[at : at + size]
        external = size > frames.INLINE_LIMIT
        head = frames.serialize_fragment(self.next_number, priority, total, size, external)
        self.spent[priority] += size + (0 if at else MESSAGE_COST)
        large.at = at + size
        self._unqueue(priority, size, 0)
        if external:
            self._write(group, head, piece, size)
        else:
            self._write(group, head + piece, None, size)
        last = large.at == total
        if last:
            self._large[priority] = None
            self.done_count[priority] += 1
            self.messages_sent += 1
        if self.signer is not None:
            if not at:
                self.signer.begin(priority, total)
            self.signer.update(priority, piece, now)
            if last:
                self.signer.finish(priority, now)
        return True

    def _abort_large(self, group: GroupBuilder, priority: int, large: _Large, now: float) -> bool:
        self._large[priority] = None
        self._unqueue(priority, len(large.view) - large.at, 0)
        self.done_count[priority] += 1
        self.expired += 1
        if large.at:
            self._write(group, frames.serialize_abort(self.next_number, priority), None, 0)
            if self.signer is not None:
                self.signer.add_tombstone(priority, now)
        return True

    def _unqueue(self, priority: int, size: int, messages: int) -> None:
        self.queued_bytes[priority] -= size + MESSAGE_COST * messages
        self.queued_total -= size

    # --- streams -------------------------------------------------------------------------------------------------

    def _write_stream(self, group: GroupBuilder, round_: deque[StreamState], now: float) -> bool:
        """Write the next frame of the stream whose turn it is."""
        stream = round_.popleft()
        stream.queued = False
        if stream.stop_code is not None:
            head = frames.serialize_stream_stop(self.next_number, stream.id, stream.stop_code)
            stream.stop_code = None
        elif stream.reset_code is not None:
            head = frames.serialize_stream_reset(self.next_number, stream.id, stream.reset_code)
            stream.reset_code = None
            stream.end_sent = True
        elif stream.pending_bytes:
            return self._write_chunk(group, stream, now)
        elif stream.sending is Half.ENDED and not stream.end_sent:
            head = frames.serialize_stream_fin(self.next_number, stream.id)
            stream.end_sent = True
        else:
            return True
        self._write(group, head, None, 0)
        self.queue_stream(stream)
        self._streams.forget_if_finished(stream)
        return True

    def _write_chunk(self, group: GroupBuilder, stream: StreamState, now: float) -> bool:
        size = min(frames.RECORD_LIMIT, stream.credit - stream.sent, stream.pending_bytes)
        if size <= 0:
            return True  # queued again when credit comes
        pending = stream.pending
        if len(pending[0]) >= size or len(pending[0]) > frames.INLINE_LIMIT:
            size = min(size, len(pending[0]))
            piece = pending[0][:size]
        else:
            pieces, size = _gather(pending, size)
            piece = memoryview(b"".join(pieces))
        _consume(pending, size)
        stream.pending_bytes -= size
        stream.sent += size
        external = size > frames.INLINE_LIMIT
        head = frames.serialize_stream_data(self.next_number, stream.id, size, external)
        if external:
            self._write(group, head, piece, size)
        else:
            self._write(group, head + piece, None, size)
        if self.signer is not None:
            self.signer.add_batch(Kind.STREAM_CHUNK, stream.priority, (piece,), now)
        self.queue_stream(stream)
        return True


def _gather(pending: deque[memoryview], most: int) -> tuple[list[memoryview], int]:
    """The first small writes of a stream, up to `most` bytes, without removing them."""
    pieces = []
    size = 0
    for piece in pending:
        if size == most:
            break
        pieces.append(piece[: most - size])
        size += len(pieces[-1])
    return pieces, size


def _consume(pending: deque[memoryview], size: int) -> None:
    """Remove `size` bytes from the front of a stream's writes."""
    while size:
        first = pending[0]
        if len(first) <= size:
            size -= len(first)
            pending.popleft()
        else:
            pending[0] = first[size:]
            size = 0
