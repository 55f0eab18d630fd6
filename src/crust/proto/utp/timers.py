"""Timers of a µTP connection, by name."""

from __future__ import annotations

import enum

__all__ = ["Timer"]


class Timer(enum.IntEnum):
    """What a connection may wait for."""

    RETRANSMIT = 0  # nothing was acknowledged for a whole time-out: send everything again, slowly
    LOSS_PROBE = 1  # the last packets are not acknowledged when they should be: send one again (RFC 8985 §7)
    REORDER = 2  # a packet overtaken by later ones is overdue: it is lost (RFC 8985 §6)
    PACING = 3  # the next burst may leave
    PERSIST = 4  # the peer's window is shut: ask whether it still is (RFC 9293 §3.8.6.1)
    MTU_RAISE = 5  # the path may take larger packets than last time (RFC 8899)
    DELAYED_ACK = 6  # the ack of a single packet has found no company
    KEEPALIVE = 7  # nothing was sent for long: a NAT might forget us
    IDLE = 8  # nothing was received for long: the peer is dead
    STALL = 9  # nothing was acknowledged for so long that the connection is given up
    LINGER = 10  # the peer's end, or its repetition, did not come
