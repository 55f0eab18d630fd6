"""States of a µTP connection, as a table."""

from __future__ import annotations

import enum

__all__ = ["TRANSITIONS", "Input", "State"]


class State(enum.Enum):
    """Where a connection is."""

    SYN_SENT = "we asked, the peer has not answered"
    SYN_RECEIVED = "the peer asked, and has not shown yet that it got our answer"
    ESTABLISHED = "both directions open"
    CLOSING = "our end is sent and not acknowledged; the peer's direction is open"
    HALF_CLOSED = "our end is acknowledged; the peer's direction is open"
    PEER_CLOSED = "the peer has ended its direction; ours is open"
    CLOSING_BOTH = "both have ended before either was acknowledged"
    LAST_ACK = "the peer has ended, then we; our end is not acknowledged"
    LINGERING = "all is done; the peer may not have got our last acknowledgement"
    CLOSED = "done, in order"
    FAILED = "ended by a fault; see the event"


class Input(enum.Enum):
    """What moves a connection."""

    SYN_ACKNOWLEDGED = "the peer answered our SYN"
    CONFIRMED = "the peer acknowledged our answer to its SYN"
    CLOSE = "our application has nothing more to send"
    END_ACKNOWLEDGED = "the peer has got all that we sent, and our FIN"
    PEER_END = "all that the peer sent has arrived, and its FIN"
    PATIENCE_OVER = "the peer's end, or a repetition of it, did not come in time"
    RESET = "the peer gave up"
    FAULT = "time-out, violation or abort"


_OPEN = {
    (State.SYN_SENT, Input.SYN_ACKNOWLEDGED): State.ESTABLISHED,
    (State.SYN_RECEIVED, Input.CONFIRMED): State.ESTABLISHED,
    (State.ESTABLISHED, Input.CLOSE): State.CLOSING,
    (State.ESTABLISHED, Input.PEER_END): State.PEER_CLOSED,
    (State.CLOSING, Input.END_ACKNOWLEDGED): State.HALF_CLOSED,
    (State.CLOSING, Input.PEER_END): State.CLOSING_BOTH,
    (State.HALF_CLOSED, Input.PEER_END): State.LINGERING,
    (State.HALF_CLOSED, Input.PATIENCE_OVER): State.CLOSED,
    (State.HALF_CLOSED, Input.RESET): State.CLOSED,
    (State.PEER_CLOSED, Input.CLOSE): State.LAST_ACK,
    (State.CLOSING_BOTH, Input.END_ACKNOWLEDGED): State.LINGERING,
    # Peers that have sent all and got all forget the connection without acknowledging our FIN (libutp, libtorrent).
    (State.CLOSING_BOTH, Input.PATIENCE_OVER): State.CLOSED,
    (State.LAST_ACK, Input.PATIENCE_OVER): State.CLOSED,
    (State.CLOSING_BOTH, Input.RESET): State.CLOSED,
    (State.LAST_ACK, Input.END_ACKNOWLEDGED): State.CLOSED,
    (State.LAST_ACK, Input.RESET): State.CLOSED,
    (State.LINGERING, Input.PATIENCE_OVER): State.CLOSED,
    (State.LINGERING, Input.RESET): State.CLOSED,
}

_ENDED = (State.CLOSED, State.FAILED)

# (state, input) -> state; a pair that is not listed cannot happen.
TRANSITIONS: dict[tuple[State, Input], State] = {
    (state, event): State.FAILED for state in State if state not in _ENDED for event in (Input.RESET, Input.FAULT)
} | _OPEN
