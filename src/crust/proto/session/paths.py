"""The paths of a session: which one carries our data, and whether each still answers (PROTOCOL 12 and 16)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from crust.proto.session.events import PathDead, PathStalled, Ponged, SessionEvent
from crust.proto.session.limits import Limits
from crust.proto.session.outbox import GROUP_PAYLOADS, Outbox, Sent
from crust.proto.session.timer import Timer
from crust.proto.timers import TimerTable
from crust.wire import frames

__all__ = ["CONTROL_WAITING", "SERVICES_WAITING", "SessionPath", "SessionPaths"]

CONTROL_WAITING: Final = 64
"""Frames that wait for one path: a peer that asks for much and reads nothing gets no memory."""

SERVICES_WAITING: Final = 256
"""The same for messages between nodes, which have no credit either."""

SETTLE_DELAY: Final = 1.0

# PROTOCOL 16: data without progress for max(3 RTT, 500 ms) means a probe and another dial, at most once a second.
STALL_LEAST: Final = 0.5
STALL_AGAIN: Final = 1.0

FAST: Final = 64 * 1024 * 1024
"""Bytes a second that a path carries at least if its groups may be as large as its transport likes: such a group takes
8 ms, which an urgent message may have to wait for."""

_PINGS_OUT: Final = 64

# RFC 6298 §2 smoothing, for a round trip measured by PING.
_RTT_GAIN: Final = 0.125


class SessionPath:
    """A path as the session sees it."""

    __slots__ = (
        "burst",
        "checking",
        "control",
        "heard_hello",
        "hello_due",
        "id",
        "largest_burst",
        "last_heard",
        "probed_at",
        "progressed_at",
        "rank",
        "resend",
        "rtt",
        "suspect",
    )

    def __init__(self, path_id: int, rank: int, now: float, rtt: float, largest_burst: int) -> None:
        self.id = path_id
        self.rank = rank
        self.hello_due = True
        self.heard_hello = False
        self.control: list[bytes] = []  # unnumbered frames to be written here
        self.resend: deque[Sent] | None = None
        self.last_heard = now
        self.probed_at: float | None = None
        self.rtt = rtt
        self.suspect = False  # silent when it should have answered
        self.checking = False  # asked whether it still answers, as another has come up
        self.burst = 1  # payload records in a group: a slow path is acknowledged, and so seen to live, more often
        self.largest_burst = largest_burst
        self.progressed_at = now

    @property
    def patience(self) -> float:
        """Seconds without an answer after which something is wrong."""
        return max(3 * self.rtt, STALL_LEAST)


class SessionPaths:
    """Every attached path.

    Args:
        limits: times, fixed for the session.
        timers: the session's.
        events: the session's.
        outbox: what waits for an acknowledgement.
        activated: called with the path that carries our data from now on.

    Attributes:
        by_id: the paths by the front end's numbers.
        changes: how often something has changed that tells surplus paths from others.
        active: the one that carries our data.
        is_new: the peer has not spoken yet. Nobody else can know a new session, so its first data need not wait for
            the answer to HELLO.
    """

    __slots__ = (
        "_activated",
        "_asked",
        "_events",
        "_limits",
        "_next_token",
        "_outbox",
        "_pings",
        "_timers",
        "active",
        "by_id",
        "changes",
        "is_new",
    )

    def __init__(
        self,
        limits: Limits,
        timers: TimerTable[Timer | tuple[Timer, int]],
        events: list[SessionEvent],
        outbox: Outbox,
        activated: Callable[[SessionPath], None],
    ) -> None:
        self.by_id: dict[int, SessionPath] = {}
        self.active: SessionPath | None = None
        self.changes = 0
        self.is_new = True
        self._limits = limits
        self._timers = timers
        self._events = events
        self._outbox = outbox
        self._activated = activated
        self._pings: dict[int, tuple[float, int | None]] = {}  # when sent, and on which path alone
        self._asked: set[int] | None = None  # of these, the application's: repeated on the next path until answered
        self._next_token = 1

    # --- coming and going ----------------------------------------------------------------------------------------

    def attach(self, path_id: int, rank: int, now: float, rtt: float, largest_burst: int) -> None:
        """Add a path whose handshake is done."""
        self.by_id[path_id] = SessionPath(path_id, rank, now, rtt, largest_burst)
        self.changes += 1
        # The first time early: it lets the front end give up what an idle path does not need.
        self._timers.set((Timer.HEARTBEAT, path_id), now + min(self._limits.heartbeat, SETTLE_DELAY))
        self.choose(now)

    def detach(self, path_id: int, now: float) -> bool:
        """Remove a path that has ended; whether it was there."""
        path = self.by_id.pop(path_id, None)
        if path is None:
            return False
        self.changes += 1
        for timer in (Timer.HEARTBEAT, Timer.DEADLINE, Timer.CHECK):
            self._timers.clear((timer, path_id))
        for token in [token for token, (_, on) in self._pings.items() if on == path_id and not self._is_asked(token)]:
            del self._pings[token]
        if self.active is path:
            self.active = None
            # What ended one path may have ended the others: do not wait for their heartbeat.
            if (active := self.choose(now)) is not None:
                self._probe(active, now)
        return True

    # --- which carries our data ----------------------------------------------------------------------------------

    def may_carry(self, path: SessionPath) -> bool:
        """Whether a path may carry numbered frames."""
        return path.heard_hello or self.is_new

    def choose(self, now: float) -> SessionPath | None:
        """Select the best path that answers; a suspect one only when there is no other."""
        best = min(self.by_id.values(), key=lambda p: (p.suspect, not self.may_carry(p), p.rank, p.id), default=None)
        if best is None or best is self.active:
            return self.active
        if self.active is not None and not best.heard_hello:
            return self.active  # an unconfirmed path never replaces one that works
        self.active = best
        self.changes += 1
        best.resend = self._outbox.unacknowledged()
        self._activated(best)
        for token, (sent_at, _) in self._pings.items():
            if self._is_asked(token):
                best.control.append(frames.serialize_ping(token))
                self._pings[token] = sent_at, None
        self._arm_stall(now)
        return best

    def close_surplus(self, path_id: int) -> None:
        """Tell the peer that a path is surplus."""
        path = self.by_id.get(path_id)
        if path is not None:
            path.control.append(frames.serialize_path_close())

    # --- signs of life -------------------------------------------------------------------------------------------

    def heard(self, path: SessionPath, now: float) -> None:
        """Something authentic has come over a path."""
        path.last_heard = now
        if path.checking or path.suspect:
            path.checking = path.suspect = False
            self.changes += 1
            self.choose(now)

    def heard_hello(self, path: SessionPath, now: float) -> None:
        """The peer has attached a path to this session."""
        path.heard_hello = True
        self.changes += 1
        self.choose(now)
        if self.active is not None and self.active is not path:
            self._check(self.active, now)

    def follow(self, path: SessionPath, now: float) -> None:
        """The peer's data comes over a path: if ours is another and silent, our acknowledgements may be lost on it."""
        active = self.active
        if active is not None and active is not path and now - active.last_heard >= active.patience:
            self._check(active, now)

    def others_answer(self, path: SessionPath) -> bool:
        """Whether the peer is reached without this path."""
        return any(p.heard_hello and not p.suspect for p in self.by_id.values() if p is not path)

    def _check(self, path: SessionPath, now: float) -> None:
        """Ask for an answer soon: the peer brings another path perhaps because this one is dead."""
        if (Timer.CHECK, path.id) not in self._timers:
            path.checking = True
            path.control.append(frames.serialize_ping(self.ping_token(path, now)))
            self._timers.set((Timer.CHECK, path.id), now + path.patience)

    def probe(self, path_id: int, now: float) -> None:
        """Ask whether a path still answers; `PathDead` follows when it does not."""
        path = self.by_id.get(path_id)
        if path is not None:
            self._probe(path, now)

    def probe_all(self, now: float) -> None:
        """Ask all of them."""
        for path in self.by_id.values():
            self._probe(path, now)

    def _probe(self, path: SessionPath, now: float) -> None:
        probed_at = path.probed_at
        if (Timer.DEADLINE, path.id) in self._timers and probed_at is not None and path.last_heard <= probed_at:
            return  # the last probe is not answered yet
        path.probed_at = now
        path.control.append(frames.serialize_ping(self.ping_token(path, now)))
        deadline = min(now + self._limits.path_timeout, path.last_heard + self._limits.inactivity_timeout)
        self._timers.set((Timer.DEADLINE, path.id), max(deadline, now))

    def path_timer(self, timer: Timer, path_id: int, now: float) -> None:
        """A timer of one path is due."""
        path = self.by_id.get(path_id)
        if path is None:
            return
        if timer is Timer.HEARTBEAT:
            due = path.last_heard + self._limits.heartbeat
            if due <= now:
                self._probe(path, now)
                due = now + self._limits.heartbeat
            self._timers.set((Timer.HEARTBEAT, path_id), due)
        elif timer is Timer.CHECK:
            if path.checking:
                path.suspect = True
                self._probe(path, now)
                self.choose(now)
        elif path.probed_at is not None and path.last_heard <= path.probed_at:
            self._events.append(PathDead(path_id, "no sign of life"))

    # --- progress of what was sent -------------------------------------------------------------------------------

    def progressed(self, size: int, now: float) -> None:
        """The peer has acknowledged `size` more bytes."""
        path = self.active
        if path is not None:
            fast = size > FAST * (now - path.progressed_at)
            path.burst = min(2 * path.burst, path.largest_burst if fast else GROUP_PAYLOADS)
            path.progressed_at = now
        self._timers.clear(Timer.STALL)
        self._arm_stall(now)

    def _arm_stall(self, now: float) -> None:
        if self._outbox.retained_bytes and self.active is not None:
            self._timers.set(Timer.STALL, now + self.active.patience)

    def stalled(self, now: float) -> None:
        """What was sent has made no progress for too long."""
        path = self.active
        if path is None or not self._outbox.retained_bytes:
            return
        self._timers.set(Timer.STALL, now + STALL_AGAIN)
        if now - path.last_heard < path.patience:
            return  # it speaks, so it lives: the peer is merely slow to acknowledge
        path.suspect = True
        path.burst = 1
        self._probe(path, now)
        self._events.append(PathStalled(path.id))
        self.choose(now)

    # --- round trips ---------------------------------------------------------------------------------------------

    def ping(self, now: float) -> int:
        """Ask the peer for an answer over the active path, or over the next one."""
        path = self.active
        token = self.ping_token(path, now)
        if self._asked is None:
            self._asked = set()
        self._asked.add(token)
        if path is not None:
            path.control.append(frames.serialize_ping(token))
        return token

    def ping_token(self, path: SessionPath | None, now: float) -> int:
        """The token of a PING that is written now."""
        token = self._next_token
        self._next_token += 1
        if len(self._pings) >= _PINGS_OUT:
            self.forget_ping(next((t for t in self._pings if not self._is_asked(t)), next(iter(self._pings))))
        self._pings[token] = now, None if path is None else path.id
        return token

    def forget_ping(self, token: int) -> None:
        """Nobody waits for this answer any more."""
        self._pings.pop(token, None)
        if self._asked is not None:
            self._asked.discard(token)

    def _is_asked(self, token: int) -> bool:
        return self._asked is not None and token in self._asked

    def answered(self, path: SessionPath, token: int, now: float) -> None:
        """A PONG has come."""
        ping = self._pings.get(token)
        if ping is not None:
            self.forget_ping(token)
            sample = now - ping[0]
            if ping[1] == path.id:  # else an outage would count as the new path's round trip (RFC 6298 §3, Karn)
                path.rtt += (sample - path.rtt) * _RTT_GAIN
            self._events.append(Ponged(token, sample))
