"""The receiving half of a session: order, reassembly, credit, and messages that wait for the application.

Frames are taken in the order of their numbers. What comes early, over another path, waits in a reorder buffer that is
as large as the sender's retention. Credit is given back when the application takes a message, not when it arrives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableSequence
from typing import Any, Final

import msgspec

from crust.errors import RemoteProtocolError
from crust.proto.session.outbox import FRAME_COST, INITIAL_CREDIT, MESSAGE_COST, PRIORITIES
from crust.types import Priority
from crust.wire import frames

__all__ = ["Inbox", "append_joined"]

_REORDER_FRAMES: Final = 65536
_SMALL: Final = 512
_JOINED: Final = 4096
_PRIORITY_NAMES: Final = tuple(Priority)


class _Batch(msgspec.Struct, gc=False):
    """Messages of one priority that arrived together, handed out one by one."""

    messages: list[bytes]
    mark: Any  # (verifier's segment, number of the first message) or None
    at: int = 0


class _Assembly:
    """A large message under way."""

    __slots__ = ("pieces", "size", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.size = 0
        self.pieces: list[bytes] = []


def _charge_of(frame: frames.NumberedFrame) -> tuple[int, int]:
    """Priority and credit of what a frame brings, the least that it can be; credit 0 for none."""
    if isinstance(frame, frames.Messages):
        return frame.priority, sum(map(len, frame.data)) + MESSAGE_COST * len(frame.data)
    if isinstance(frame, frames.Fragment):
        return frame.priority, len(frame.data)
    return 0, 0


def append_joined(pieces: MutableSequence[bytes], data: bytes) -> None:
    """Keep bytes that follow others; small ones are joined, as each object costs some 50 bytes beyond its data."""
    if len(data) < _SMALL and pieces and len(pieces[-1]) < _JOINED:
        pieces[-1] += data
    else:
        pieces.append(data)


def _size(frame: frames.NumberedFrame) -> int:
    """Bytes that a frame holds."""
    if isinstance(frame, (frames.Fragment, frames.StreamData)):
        return len(frame.data)
    if isinstance(frame, frames.Messages):
        return sum(map(len, frame.data))
    return len(frame.body) if isinstance(frame, (frames.Signature, frames.Service)) else 0


class Inbox:
    """What one side has heard.

    Args:
        window: credit in bytes for each priority.
        max_message_bytes: larger messages end the session.
        retention_bytes: bound of the reorder buffer.
    """

    __slots__ = (
        "_assemblies",
        "_bits",
        "_consumed",
        "_early",
        "_early_bytes",
        "_early_charges",
        "_granted",
        "_max_message_bytes",
        "_ready",
        "_received",
        "_retention_bytes",
        "credits_due",
        "expected",
        "messages_received",
        "ready_bytes",
        "window",
    )

    def __init__(self, window: int, max_message_bytes: int, retention_bytes: int) -> None:
        self.window = max(window, INITIAL_CREDIT)
        self._max_message_bytes = max_message_bytes
        self._retention_bytes = retention_bytes
        self._early: dict[int, tuple[frames.NumberedFrame, int]] = {}
        self._early_bytes = 0
        self._early_charges = [0] * PRIORITIES
        self._ready: list[deque[_Batch] | None] = [None] * PRIORITIES
        self._bits = 0  # bit p: priority p has something ready
        self._assemblies: list[_Assembly | None] = [None] * PRIORITIES
        self._received = [0] * PRIORITIES
        self._consumed = [0] * PRIORITIES
        self._granted = [self.window] * PRIORITIES
        self.credits_due: dict[int, None] = {}
        self.expected = 0
        self.ready_bytes = 0
        self.messages_received = 0

    # --- order ---------------------------------------------------------------------------------------------------

    def is_next(self, number: int) -> bool:
        """Whether a frame is the next one, and no other waits for it; it then counts as taken."""
        if number != self.expected or self._early:
            return False
        self.expected = number + 1
        return True

    def accept(self, frame: frames.NumberedFrame) -> list[frames.NumberedFrame]:
        """Take a frame from any path; returns those that are now in order.

        Raises:
            RemoteProtocolError: it lies further ahead than the sender may have outstanding, or is over its credit.
        """
        number = frame.number
        if number == self.expected:
            self.expected += 1
            ordered: list[frames.NumberedFrame] = [frame]
            while (early := self._early.pop(self.expected, None)) is not None:
                self._early_bytes -= early[1]
                early_priority, charge = _charge_of(early[0])
                self._early_charges[early_priority] -= charge
                ordered.append(early[0])
                self.expected += 1
            return ordered
        if number > self.expected and number not in self._early:
            cost = _size(frame) + FRAME_COST
            # One frame may exceed the sender's limit, which is checked before it writes.
            if (
                self._early_bytes + cost > self._retention_bytes + 2 * frames.RECORD_LIMIT
                or len(self._early) >= _REORDER_FRAMES
            ):
                raise RemoteProtocolError("frames lie further ahead than the reorder buffer")
            # Many small messages hold more memory than bytes: what bounds them in order bounds them here.
            priority, charge = _charge_of(frame)
            early_charge = self._early_charges[priority] + charge
            if self._received[priority] + early_charge > self._granted[priority]:
                raise RemoteProtocolError("sent more than its credit")
            self._early_charges[priority] = early_charge
            self._early[number] = (frame, cost)
            self._early_bytes += cost
        return []

    # --- content -------------------------------------------------------------------------------------------------

    def add_messages(self, priority: int, messages: list[bytes], mark: Any) -> None:
        """Small messages, whole.

        Raises:
            RemoteProtocolError: over the credit.
        """
        size = sum(map(len, messages))
        self._charge(priority, size + MESSAGE_COST * len(messages))
        self.deliver(priority, messages, size, mark)

    def add_fragment(self, frame: frames.Fragment) -> bytes | None:
        """The next bytes of a large message; returns the message when it is whole.

        Raises:
            RemoteProtocolError: over the credit or the largest message, or not what the first fragment promised.
        """
        priority = frame.priority
        assembly = self._assemblies[priority]
        cost = len(frame.data)
        if assembly is None:
            if frame.total > self._max_message_bytes:
                raise RemoteProtocolError(f"a message of {frame.total} bytes is over {self._max_message_bytes}")
            if frame.total == cost:  # all of it
                self._charge(priority, cost + MESSAGE_COST)
                return frame.data
            assembly = self._assemblies[priority] = _Assembly(frame.total)
            cost += MESSAGE_COST
            self._cover(priority, self._received[priority] + frame.total + MESSAGE_COST)
        self._charge(priority, cost)
        assembly.size += len(frame.data)
        if assembly.total != frame.total or assembly.size > frame.total:
            raise RemoteProtocolError("a fragment does not fit its message")
        append_joined(assembly.pieces, frame.data)
        if assembly.size < frame.total:
            return None
        self._assemblies[priority] = None
        pieces = assembly.pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def abort(self, priority: int) -> None:
        """The message under way will not be completed.

        Raises:
            RemoteProtocolError: none is under way.
        """
        assembly = self._assemblies[priority]
        if assembly is None:
            raise RemoteProtocolError("aborts a message that was not begun")
        self._assemblies[priority] = None
        self._return_credit(priority, assembly.size + MESSAGE_COST)

    def deliver(self, priority: int, messages: list[bytes], size: int, mark: Any) -> None:
        """Make messages ready that were charged before."""
        ready = self._ready[priority]
        if ready is None:
            ready = self._ready[priority] = deque()
        ready.append(_Batch(messages, mark))
        self._bits |= 1 << priority
        self.ready_bytes += size
        self.messages_received += len(messages)

    # --- application ---------------------------------------------------------------------------------------------

    @property
    def has_message(self) -> bool:
        """Whether a message is ready."""
        return bool(self._bits)

    def next_message(self) -> tuple[bytes, Priority, Any] | None:
        """The oldest ready message of the most urgent priority that has one: data, priority, mark for its receipt."""
        bits = self._bits
        if not bits:
            return None
        priority = (bits & -bits).bit_length() - 1
        ready = self._ready[priority]
        assert ready is not None
        batch = ready[0]
        at = batch.at
        data = batch.messages[at]
        mark = batch.mark
        batch.at = at + 1
        if batch.at == len(batch.messages):
            ready.popleft()
            if not ready:
                self._bits = bits & ~(1 << priority)
        size = len(data)
        self.ready_bytes -= size
        self._return_credit(priority, size + MESSAGE_COST)
        return data, _PRIORITY_NAMES[priority], None if mark is None else (mark[0], mark[1] + at)

    # --- credit --------------------------------------------------------------------------------------------------

    def _charge(self, priority: int, cost: int) -> None:
        received = self._received[priority] + cost
        if received > self._granted[priority]:
            raise RemoteProtocolError("sent more than its credit")
        self._received[priority] = received

    def _return_credit(self, priority: int, cost: int) -> None:
        consumed = self._consumed[priority] = self._consumed[priority] + cost
        assembly = self._assemblies[priority]
        # One CREDIT frame for each quarter of the window, not for each message.
        if consumed + self.window - self._granted[priority] >= self.window >> 2:
            self._grant(priority, consumed + self.window)
        if assembly is not None:
            self._cover(priority, self._received[priority] + assembly.total - assembly.size)

    def _cover(self, priority: int, need: int) -> None:
        """See that the message under way can come whole: nobody can take it before, and so free its credit.

        It has credit of its own beside the window (PROTOCOL 13), counted from what the application has taken. So a
        reader that does not read holds a window and one message of each priority, and no more.
        """
        assembly = self._assemblies[priority]
        if assembly is not None and self._granted[priority] < need:
            self._grant(priority, self._consumed[priority] + self.window + assembly.total + MESSAGE_COST)

    def _grant(self, priority: int, limit: int) -> None:
        if limit > self._granted[priority]:
            self._granted[priority] = limit
            self.credits_due[priority] = None

    def granted(self, priority: int) -> int:
        """The absolute credit of a priority."""
        return self._granted[priority]

    def raised_credits(self) -> list[int]:
        """Priorities whose credit is above the window that HELLO tells; a new path is told all of them."""
        return [p for p in range(PRIORITIES) if self._granted[p] != self.window]
