"""How a connection begins and ends: its state, what it waits for, and its one last event."""

from __future__ import annotations

from crust.proto.timers import TimerTable
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.events import Connected, Ended, EndReason, PeerFinished, UtpEvent
from crust.proto.utp.state import TRANSITIONS, Input, State
from crust.proto.utp.timers import Timer

__all__ = ["Lifecycle"]

_ENDED = (State.CLOSED, State.FAILED)


class Lifecycle:
    """State machine, events and the timers of the end.

    Attributes:
        state: where the connection is.
        events: what the front end has not taken yet.
        close_wanted: the application has closed before the connection was up.
        reset_due: the peer is to be told that we gave up.
    """

    __slots__ = ("_config", "_timers", "close_wanted", "events", "reset_due", "state")

    def __init__(self, config: UtpConfig, timers: TimerTable[Timer], state: State) -> None:
        self._config, self._timers = config, timers
        self.state = state
        self.events: list[UtpEvent] = []  # never more than three, and mostly none: a deque takes 760 bytes
        self.close_wanted = self.reset_due = False

    @property
    def ended(self) -> bool:
        """Nothing will happen any more."""
        return self.state in _ENDED

    def move(self, event: Input) -> None:
        """Follow the table."""
        self.state = TRANSITIONS[self.state, event]

    def connected(self) -> None:
        """The peer has answered, or has shown that our answer reached it."""
        self.move(Input.SYN_ACKNOWLEDGED if self.state is State.SYN_SENT else Input.CONFIRMED)
        self.events.append(Connected())

    def peer_finished(self, now: float, rto: float) -> None:
        """All of the peer's data and its FIN are here (which may be told again)."""
        if (self.state, Input.PEER_END) in TRANSITIONS:
            self.move(Input.PEER_END)
            self.events.append(PeerFinished())
            self._wait_for_peer(now, rto)

    def end_acknowledged(self, now: float, rto: float) -> bool:
        """The peer has all of our data and our FIN (which may be told again); True when that was all."""
        if (self.state, Input.END_ACKNOWLEDGED) in TRANSITIONS:
            self.move(Input.END_ACKNOWLEDGED)
            self._wait_for_peer(now, rto)
            return self.state is State.CLOSED
        return False

    def reset(self) -> tuple[EndReason, str]:
        """The peer gave up; returns what that means."""
        before = self.state
        self.move(Input.RESET)
        if self.state is State.CLOSED:
            return EndReason.CLOSED, ""
        if before is State.SYN_SENT:
            return EndReason.REFUSED, "the peer refused the connection"
        return EndReason.RESET, "the peer reset the connection"

    def fail(self) -> None:
        """Give up."""
        self.reset_due = self.state is not State.SYN_SENT
        self.move(Input.FAULT)

    def end(self, reason: EndReason, detail: str) -> None:
        """The last event."""
        self.events.append(Ended(reason, detail or reason.value))
        self._timers.clear_all()

    # -- waiting for what may not come -----------------------------------------------------------------------------

    def patience(self, rto: float) -> float:
        """How long to wait for what a peer need not send: time for three repetitions."""
        return min(8 * rto, self._config.close_timeout)

    def _wait_for_peer(self, now: float, rto: float) -> None:
        """Arm what the present state waits for."""
        if self.state is State.HALF_CLOSED:
            self._timers.set(Timer.LINGER, now + self._config.close_timeout)
        elif self.state is State.LINGERING:
            # For repetitions of the peer's FIN, should our ack of it be lost.
            self._timers.set(Timer.LINGER, now + self.patience(rto))

    def wait_for_last_ack(self, now: float, rto: float) -> None:
        """Our FIN has been sent after the peer's: some forget us without acknowledging it."""
        if self.state in (State.LAST_ACK, State.CLOSING_BOTH):
            self._timers.set_if_unset(Timer.LINGER, now + self.patience(rto))

    def patience_over(self, now: float, rto: float, heard: float, *, only_fin_missing: bool) -> bool:
        """LINGER has fired; True when the connection is over."""
        if self.state is State.HALF_CLOSED and now < heard + self._config.close_timeout:
            self._timers.set(Timer.LINGER, heard + self._config.close_timeout)  # the peer is still sending
            return False
        if self.state in (State.LAST_ACK, State.CLOSING_BOTH) and not only_fin_missing:
            self._timers.set(Timer.LINGER, now + self.patience(rto))
            return False
        self.move(Input.PATIENCE_OVER)
        return True
