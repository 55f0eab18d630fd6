"""Events of a µTP connection and the reasons of its end."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Connected", "DropReason", "EndReason", "Ended", "PeerFinished", "UtpEvent", "UtpStats"]


class EndReason(enum.Enum):
    """Why a connection ended."""

    CLOSED = "closed in order"
    REFUSED = "the peer refused the connection"
    RESET = "the peer gave the connection up"
    TIMED_OUT = "the peer does not answer"
    STALLED = "the peer takes nothing more"
    VIOLATION = "the peer broke the protocol"
    ABORTED = "given up by this side"


class DropReason(enum.Enum):
    """Why a packet was dropped; the name is that of its counter."""

    MALFORMED = "not a µTP packet, or broken extensions"
    FOREIGN = "for another connection"
    IMPOSSIBLE_ACK = "acknowledges what was never sent"
    OUT_OF_WINDOW = "outside of the receive window"
    AFTER_END = "data past the end of the stream"
    UNEXPECTED = "of a type that does not fit the state"
    BAD_PART = "a part that does not fit its packet"
    DUPLICATE = "received before"


@dataclass(frozen=True, slots=True)
class Connected:
    """The peer answered; data can be exchanged."""


@dataclass(frozen=True, slots=True)
class PeerFinished:
    """The peer sends nothing more, and all that it sent can be read."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of every connection.

    Attributes:
        reason: why.
        detail: the same for people, with what was seen.
    """

    reason: EndReason
    detail: str = ""


UtpEvent: TypeAlias = Connected | PeerFinished | Ended


@dataclass(slots=True)
class UtpStats:
    """Counters of a connection.

    Attributes:
        packets_sent: all, acks and repetitions included.
        packets_received: all that were for this connection.
        bytes_sent: payload, without repetitions.
        bytes_received: payload, without duplicates.
        packets_resent: repetitions.
        packets_lost: taken for lost.
        spurious: of these, shown to have arrived.
        congestion_events: reductions of the window for a loss.
        timeouts: retransmission time-outs.
        loss_probes: packets sent because an acknowledgement was late.
        absurd_timestamps: packets whose timestamps cannot be.
        dropped: packets dropped, by reason.
        told: told of each drop by the name of its counter, if somebody wants to know.
    """

    packets_sent: int = 0
    packets_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    packets_resent: int = 0
    packets_lost: int = 0
    spurious: int = 0
    congestion_events: int = 0
    timeouts: int = 0
    loss_probes: int = 0
    absurd_timestamps: int = 0
    dropped: dict[DropReason, int] = field(default_factory=dict)
    told: Callable[[str, int], None] | None = field(default=None, compare=False, repr=False)

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count dropped packets."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        if self.told is not None:
            self.told(f"utp.{reason.name.lower()}", count)
