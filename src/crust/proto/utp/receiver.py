"""The receiving half of a connection: what arrived, and when to acknowledge it."""

from __future__ import annotations

from collections.abc import Sequence

from crust.proto.timers import TimerTable
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.constants import ACK_EVERY_PACKETS, FAR_ACK_EVERY_PACKETS
from crust.proto.utp.events import DropReason, UtpStats
from crust.proto.utp.receive_buffer import Outcome, ReceiveBuffer
from crust.proto.utp.timers import Timer
from crust.wire.utp import (
    HEADER_BYTES,
    MAX_SACK_BYTES,
    MAX_SACK_PACKETS,
    Buffer,
    Extension,
    serialize_far_acks,
    serialize_selective_ack,
)

__all__ = ["Receiver"]

_DROPS = {
    Outcome.DUPLICATE: DropReason.DUPLICATE,
    Outcome.REFUSED: DropReason.OUT_OF_WINDOW,
    Outcome.AFTER_END: DropReason.AFTER_END,
    Outcome.BAD_PART: DropReason.BAD_PART,
}
# The window is told without being asked for when this part of it has opened.
_UPDATE_FRACTION = 4


class Receiver:
    """Receive buffer and acknowledgements.

    Attributes:
        buffer: the data.
        reply_micro: our clock at the arrival of the last packet less the peer's clock at its departure.
        window: what the next packet of ours advertises.
        unacknowledged: packets since our last acknowledgement.
    """

    __slots__ = (
        "_ack_now",
        "_config",
        "_far_ack_in",
        "_freed",
        "_stats",
        "_timers",
        "_window_sent",
        "buffer",
        "reply_micro",
        "unacknowledged",
    )

    def __init__(self, config: UtpConfig, next_seq: int, timers: TimerTable[Timer], stats: UtpStats) -> None:
        self._config, self._timers, self._stats = config, timers, stats
        self.buffer = ReceiveBuffer(next_seq, config.receive_window)
        self.reply_micro = 0
        self.unacknowledged = 0
        self._ack_now = False
        self._far_ack_in = 0
        self._window_sent = config.receive_window
        self._freed = 0  # bytes consumed since our last packet

    @property
    def window(self) -> int:
        """What the next packet of ours advertises."""
        return self.buffer.window

    @property
    def ack_due(self) -> bool:
        """An acknowledgement must not wait any longer."""
        return self._ack_now or self.unacknowledged >= ACK_EVERY_PACKETS

    @property
    def sack_due(self) -> bool:
        """There are gaps that the peer does not know of."""
        return self._ack_now and self.buffer.held != 0

    def force_ack(self) -> None:
        """Acknowledge with the next packet."""
        self._ack_now = True

    def on_run(self, payloads: Sequence[Buffer], size: int, count: int = 0) -> bool:
        """Take in packets that come next; False when they must come one by one.

        Args:
            payloads: the data.
            size: bytes of it.
            count: how many packets these are; 0 for one for each payload.
        """
        count = count or len(payloads)
        if not self.buffer.append_run(payloads, size, count):
            return False
        self.unacknowledged += count
        return True

    def on_data(self, seq_nr: int, payload: Buffer, part: tuple[int, int] | None) -> DropReason | None:
        """Take in a packet, or a part of one; returns why it is dropped, if it is."""
        buffer = self.buffer
        seq = self._absolute(seq_nr)
        gap = buffer.held
        outcome = buffer.insert(seq, payload) if part is None else buffer.insert_part(seq, *part, payload)
        if outcome is Outcome.IN_ORDER and not gap:
            self.unacknowledged += 1
            return None
        # Anything unusual is told at once: gaps and their end for fast repetition, and what was sent in vain (BEP 29).
        self._ack_now = True
        self._far_ack_in -= 1
        return _DROPS.get(outcome)

    def on_fin(self, seq_nr: int) -> DropReason | None:
        """Take in the peer's FIN; returns why it is dropped, if it is."""
        self._ack_now = True
        return _DROPS.get(self.buffer.finish(self._absolute(seq_nr)))

    def consumed(self, size: int) -> bool:
        """The application has taken `size` bytes; False when it had not so many."""
        if not self.buffer.consumed(size):
            return False
        self._freed += size
        enough = self._config.receive_window // _UPDATE_FRACTION
        if self._freed >= enough or (self._window_sent < enough and self._freed >= 2 * self._config.mtu_ceiling):
            # The peer may be waiting for it (RFC 9293 §3.8.6.2.2: not for every few bytes).
            self._ack_now = True
        return True

    def sent(self, window: int) -> None:
        """A packet with the present `ack_nr` and window has been made."""
        self._window_sent = window
        self._freed = self.unacknowledged = 0
        self._ack_now = False
        self._timers.deadlines.pop(Timer.DELAYED_ACK, None)

    def delay_ack(self, now: float) -> None:
        """Let a single packet wait for company."""
        if self.unacknowledged:
            self._timers.set_if_unset(Timer.DELAYED_ACK, now + self._config.ack_delay)

    def selective_ack(self) -> tuple[int, bytes]:
        """(first kind, chain) of the extensions that tell of what is held ahead of gaps; (0, b"") for nothing."""
        held = self.buffer.held
        if not held:
            return Extension.NONE, b""
        if not self._config.tunnel or self._far_ack_in > 0 or held < 1 << MAX_SACK_PACKETS:
            return Extension.SELECTIVE_ACK, serialize_selective_ack(held)
        # They are large: one for every so many packets tells soon enough of what is far from being needed.
        self._far_ack_in = FAR_ACK_EVERY_PACKETS
        room = (self._config.mtu - HEADER_BYTES - MAX_SACK_BYTES - 2) // (MAX_SACK_BYTES + 4)
        if not room:
            return Extension.SELECTIVE_ACK, serialize_selective_ack(held)
        far = serialize_far_acks(held, room)
        return Extension.SELECTIVE_ACK, serialize_selective_ack(held, Extension.FAR_ACK) + far

    def _absolute(self, seq_nr: int) -> int:
        expected = self.buffer.next_seq
        return expected + ((seq_nr - expected + 0x8000) & 0xFFFF) - 0x8000
