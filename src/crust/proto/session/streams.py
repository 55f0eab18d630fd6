"""The two halves of each stream, and the table of streams of one session.

A stream is opened by either side; its identifier carries the opener in the lowest bit. Each half ends by itself: with
FIN when all was written, with RESET when it is given up. Credit is absolute: bytes from the stream's start.

How many streams may be opened is credit, too (as MAX_STREAMS of RFC 9000 §19.11): the acceptor tells a number that only
grows. The opener cannot tell by itself when a stream is over for the acceptor, whose application may have to read yet.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

from crust.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["INITIAL_STREAMS", "INITIAL_STREAM_CREDIT", "Half", "HalfInput", "StreamState", "StreamTable"]

INITIAL_STREAM_CREDIT: Final = 64 * 1024
"""Bytes that a stream may carry before the peer's HELLO told its window."""

INITIAL_STREAMS: Final = 1
"""Streams that each side may open before the peer's MAX_STREAMS came: the least that can be configured."""


class Half(enum.Enum):
    """State of one direction of a stream."""

    OPEN = "open"
    ENDED = "ended"  # FIN sent or received
    RESET = "reset"  # given up by the writer
    STOPPED = "stopped"  # the reader will not read on


class HalfInput(enum.Enum):
    """What changes the state of a half."""

    FIN = "fin"
    RESET = "reset"
    STOP = "stop"


HALF_TRANSITIONS: Final[dict[tuple[Half, HalfInput], Half]] = {
    (Half.OPEN, HalfInput.FIN): Half.ENDED,
    (Half.OPEN, HalfInput.RESET): Half.RESET,
    (Half.OPEN, HalfInput.STOP): Half.STOPPED,
    (Half.STOPPED, HalfInput.FIN): Half.STOPPED,
    (Half.STOPPED, HalfInput.RESET): Half.STOPPED,
    # The reader's STOP may cross the writer's end.
    (Half.ENDED, HalfInput.STOP): Half.ENDED,
    (Half.RESET, HalfInput.STOP): Half.RESET,
    # A writer may give up what it had ended but not yet delivered.
    (Half.ENDED, HalfInput.RESET): Half.RESET,
}


class StreamState:
    """One stream: what is to be written, and what was read but not consumed."""

    __slots__ = (
        "chunks",
        "consumed",
        "credit",
        "end_sent",
        "granted",
        "id",
        "name",
        "pending",
        "pending_bytes",
        "priority",
        "queued",
        "ready_bytes",
        "received",
        "receiving",
        "remote_end",
        "reset_code",
        "sending",
        "sent",
        "stop_code",
    )

    def __init__(self, stream_id: int, name: str, priority: int) -> None:
        self.id = stream_id
        self.name = name
        self.priority = priority
        self.sending = Half.OPEN
        self.receiving = Half.OPEN
        self.pending: deque[memoryview] = deque()  # to be written
        self.pending_bytes = 0
        self.queued = False  # stands in the outbox's round
        self.end_sent = False  # FIN or RESET was written
        self.reset_code: int | None = None  # RESET to be written
        self.stop_code: int | None = None  # STOP to be written
        self.sent = 0
        self.credit = INITIAL_STREAM_CREDIT
        self.chunks: deque[bytes] = deque()  # received, not consumed
        self.ready_bytes = 0
        self.received = 0
        self.consumed = 0
        self.granted = 0
        self.remote_end = False  # FIN or RESET has come

    def has_work(self) -> bool:
        """Whether anything of this stream could be written, credit permitting."""
        if self.reset_code is not None or self.stop_code is not None:
            return True
        if self.pending_bytes:
            return self.sent < self.credit
        return self.sending is Half.ENDED and not self.end_sent

    def change_sending(self, given: HalfInput) -> None:
        """Move the writing half; an unlisted pair is a misuse by the caller."""
        try:
            self.sending = HALF_TRANSITIONS[self.sending, given]
        except KeyError:
            raise LocalProtocolError(f"stream {self.name!r}: writing has {self.sending.value} already") from None

    def change_receiving(self, given: HalfInput) -> None:
        """Move the reading half; an unlisted pair is the peer's violation."""
        try:
            self.receiving = HALF_TRANSITIONS[self.receiving, given]
        except KeyError:
            raise RemoteProtocolError(f"stream {self.id}: {given.value} after {self.receiving.value}") from None

    def drop_pending(self) -> None:
        """Forget what was not written."""
        self.pending.clear()
        self.pending_bytes = 0

    @property
    def finished(self) -> bool:
        """Both ends were written and received, and nothing is left to consume."""
        return self.end_sent and self.remote_end and not self.chunks


class StreamTable:
    """The streams of a session.

    Args:
        side: lowest bit of the identifiers that we open (0: the smaller PeerId).
        window: credit given to the peer for each stream, in bytes.
        most: streams that the peer may have open at once.
    """

    __slots__ = (
        "allowed",
        "by_id",
        "grant_due",
        "most",
        "next_local",
        "next_remote",
        "peer_window",
        "remote_open",
        "side",
        "told",
        "window",
    )

    def __init__(self, side: int, window: int, most: int) -> None:
        self.side = side
        self.window = max(window, INITIAL_STREAM_CREDIT)
        self.peer_window = INITIAL_STREAM_CREDIT
        self.most = most
        self.by_id: dict[int, StreamState] = {}
        self.next_local = side
        self.next_remote = 1 - side
        self.remote_open = 0
        self.allowed = INITIAL_STREAMS  # by the peer, from the session's start
        self.told = INITIAL_STREAMS  # to the peer
        self.grant_due = False  # enough streams are over to tell the peer of it

    def open_local(self, name: str, priority: int) -> StreamState:
        """A new stream of ours."""
        stream = StreamState(self.next_local, name, priority)
        self.next_local += 2
        return self._add(stream)

    @property
    def may_open(self) -> bool:
        """Whether the peer takes another stream of ours."""
        return self.next_local >> 1 < self.allowed

    @property
    def granted(self) -> int:
        """How many streams the peer may open, from the session's start: never less than what it was told."""
        return (self.next_remote >> 1) - self.remote_open + self.most

    def grant(self) -> int:
        """Take note that the peer is told the number that `granted` gives."""
        self.told = self.granted
        self.grant_due = False
        return self.told

    def open_remote(self, stream_id: int, name: str, priority: int) -> StreamState:
        """A new stream of the peer's.

        Raises:
            RemoteProtocolError: out of order, or more than allowed.
        """
        if stream_id != self.next_remote:
            raise RemoteProtocolError(f"stream {stream_id} opened out of order")
        if self.remote_open >= self.most:
            raise RemoteProtocolError(f"more than {self.most} streams open")
        self.next_remote += 2
        self.remote_open += 1
        return self._add(StreamState(stream_id, name, priority))

    def _add(self, stream: StreamState) -> StreamState:
        stream.granted = self.window
        stream.credit = self.peer_window
        self.by_id[stream.id] = stream
        return stream

    def find_remote(self, stream_id: int) -> StreamState | None:
        """The stream that the peer named; None when it has ended and was forgotten.

        Raises:
            RemoteProtocolError: no such stream was ever opened.
        """
        stream = self.by_id.get(stream_id)
        if stream is None:
            opened = self.next_local if stream_id & 1 == self.side else self.next_remote
            if stream_id >= opened:
                raise RemoteProtocolError(f"stream {stream_id} was never opened")
        return stream

    def forget_if_finished(self, stream: StreamState) -> None:
        """Drop a stream of which both halves are over."""
        if stream.finished and self.by_id.pop(stream.id, None) is not None and stream.id & 1 != self.side:
            self.remote_open -= 1
            # Not each stream is worth a frame.
            self.grant_due = self.granted - self.told >= max(1, self.most >> 2)

    def learn_window(self, window: int) -> list[StreamState]:
        """Raise every stream's credit to the window that the peer's HELLO told; returns those that may now go on."""
        self.peer_window = max(window, self.peer_window)
        raised = []
        for stream in self.by_id.values():
            if stream.credit < self.peer_window:
                stream.credit = self.peer_window
                raised.append(stream)
        return raised
