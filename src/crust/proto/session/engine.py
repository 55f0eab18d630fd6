"""The session with one peer, above the paths that carry it.

The engine knows paths by number only. A path is attached when its handshake is done, and detached when it ends;
frames that were written and not acknowledged are then written again on the next active path, so that suspend,
roaming, a reset and a change from a relayed to a direct path are all the same event. See PROTOCOL 10 to 16.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from crust.errors import ConnectionClosed, CrustError, LocalProtocolError, PeerLost, RemoteProtocolError
from crust.proto.session.delivery import Delivery
from crust.proto.session.events import (
    DatagramReceived,
    PathDead,
    PathStalled,
    Ponged,
    ServiceReceived,
    SessionEnded,
    SessionEvent,
)
from crust.proto.session.inbox import Inbox
from crust.proto.session.limits import Limits
from crust.proto.session.multiplexer import StreamMultiplexer
from crust.proto.session.outbox import GROUP_PAYLOADS, PRIORITIES, Group, GroupBuilder, Outbox, Sent
from crust.proto.session.streams import StreamState, StreamTable
from crust.proto.session.terms import SigningTerms
from crust.proto.timers import TimerTable
from crust.types import Priority
from crust.wire import frames

__all__ = ["NO_NONCE", "FlushMark", "Session", "SessionState", "Timer"]

NO_NONCE: Final = bytes(16)

# PROTOCOL 11: one acknowledgement for 256 KiB or 50 ms.
ACK_BYTES: Final = 256 * 1024
ACK_DELAY: Final = 0.05

ACK_WITH_DATA: Final = 16 * 1024
"""So much is acknowledged when something is written anyway; for less it is not worth the peer's time."""

SETTLE_DELAY: Final = 1.0

CONTROL_WAITING: Final = 64
"""Frames that wait for one path: a peer that asks for much and reads nothing gets no memory."""

CLOSE_PATIENCE: Final = 10
"""How many times `close_timeout` a peer may go on sending after we have closed."""

CONTROL_RESERVE: Final = 32 * 1024
"""Room in a group that these leave for numbered frames."""

# PROTOCOL 16: data without progress for max(3 RTT, 500 ms) means a probe and another dial, at most once a second.
STALL_LEAST: Final = 0.5
STALL_AGAIN: Final = 1.0

# RFC 6298 §2 smoothing, for a round trip measured by PING.
_RTT_GAIN: Final = 0.125

_FIRST_FLIGHT_PADDING: Final = 255
_DATAGRAMS_QUEUED: Final = 1024 * 1024
DATAGRAM_LIMIT: Final = 1200
"""Bytes of a datagram that fit every path."""


class SessionState(enum.Enum):
    """Where a session is."""

    OPEN = "open"
    CLOSING = "closing"  # we have said, or are about to say, our last frame
    ENDED = "ended"


class Timer(enum.IntEnum):
    """What a session waits for. Integers, as they are looked up for each record."""

    ACK = 1  # acknowledge what has come
    STALL = 2  # data without progress: probe the path
    HEARTBEAT = 3  # silence: ask for a sign of life
    DEADLINE = 4  # no sign of life: the path is dead
    CLOSE = 5  # the peer does not confirm our end
    RESUME = 6  # no path: the peer does not come back
    SIGN = 7  # a batch is due to be signed; the next write does it
    EXPIRY = 8  # a queued message expires
    CHECK = 9  # the peer has brought another path: does ours still answer?


class _Path:
    """A path as the session sees it."""

    __slots__ = (
        "burst",
        "checking",
        "control",
        "heard_hello",
        "hello_due",
        "id",
        "last_heard",
        "probed_at",
        "rank",
        "resend",
        "rtt",
        "suspect",
    )

    def __init__(self, path_id: int, rank: int, now: float, rtt: float) -> None:
        self.id = path_id
        self.rank = rank
        self.hello_due = True
        self.heard_hello = False
        self.control: list[bytes] = []
        self.resend: deque[Sent] | None = None
        self.last_heard = now
        self.probed_at: float | None = None
        self.rtt = rtt
        self.suspect = False
        self.checking = False
        self.burst = 1  # payload records in a group: a slow path is acknowledged, and so seen to live, more often


def _no_name(ours: bytes, theirs: bytes) -> bytes:
    """Without signatures nobody needs the session's name."""
    return b""


class FlushMark:
    """What had been queued when `flush` was called, and whether all of it is acknowledged yet."""

    __slots__ = ("counts", "number", "streams")

    def __init__(self, counts: list[int], streams: list[tuple[StreamState, int]]) -> None:
        self.counts = counts
        self.streams = streams
        self.number: int | None = None


class Session:
    """Numbering, acknowledgement, priorities, streams and liveness for one peer.

    Args:
        nonce: our 16-byte nonce for this peer.
        side: 0 when our PeerId is the smaller one, else 1.
        limits: caps and times, fixed for the session.
        random: gives random bytes, for padding.
        now: monotonic seconds.
        terms: how both directions are signed; None when they are not.
        name: makes the session's identifier of our nonce and the peer's (PROTOCOL 10).
    """

    def __init__(
        self,
        *,
        nonce: bytes,
        side: int,
        limits: Limits,
        random: Callable[[int], bytes],
        now: float,
        terms: SigningTerms | None = None,
        name: Callable[[bytes, bytes], bytes] = _no_name,
    ) -> None:
        self.nonce = nonce
        self.remote_nonce = NO_NONCE
        self.state = SessionState.OPEN
        self.ended: CrustError | None = None
        self.remote_closed = False
        self.max_message_bytes = limits.max_message_bytes
        self.more = False  # whether `next_group` stopped only because its group was full
        table = StreamTable(side, limits.stream_window_bytes, limits.max_streams)
        self.outbox = Outbox(table, limits.retention_bytes, terms, random(32) if terms else b"")
        self.inbox = Inbox(limits.receive_window_bytes, limits.max_message_bytes, limits.retention_bytes)
        self.streams = StreamMultiplexer(table, self.outbox)
        self.delivery = Delivery(self.inbox, self.streams, terms, self._on_close, self._on_service)
        self._name = name
        self._limits = limits
        self._random = random
        self._paths: dict[int, _Path] = {}
        self._active: _Path | None = None
        self._timers: TimerTable[Timer | tuple[Timer, int]] = TimerTable()
        self._events: list[SessionEvent] = []
        self._ack_due = False
        self._ack_sent = 0
        self._unacked_bytes = 0
        self._ack_wanted = False
        self._pings: dict[int, tuple[float, int | None]] = {}  # when sent, and on which path alone
        self._next_token = 1
        self._datagrams: deque[bytes] | None = None  # made when needed: an empty deque takes 760 bytes
        self._datagram_bytes = 0
        self._close_latest = 0.0
        self._gave_up = False
        self._timers.set(Timer.RESUME, now + limits.resume_timeout)

    # --- paths ---------------------------------------------------------------------------------------------------

    def attach(self, path_id: int, *, rank: int, now: float, rtt: float = 0.1) -> None:
        """Add a path whose handshake is done; its HELLO goes out next.

        Args:
            path_id: the front end's number for it.
            rank: lower is better; the best answering path carries the data.
            now: monotonic seconds.
            rtt: a first guess of its round-trip time.
        """
        path = self._paths[path_id] = _Path(path_id, rank, now, rtt)
        # The first time early: it lets the front end give up what an idle path does not need.
        self._timers.set((Timer.HEARTBEAT, path_id), now + min(self._limits.heartbeat, SETTLE_DELAY))
        self._timers.clear(Timer.RESUME)
        # Nobody else can know a new session, so its first data need not wait for the answer.
        path.heard_hello = False
        self._choose_active(now)

    def detach(self, path_id: int, now: float) -> None:
        """Remove a path that has ended."""
        path = self._paths.pop(path_id, None)
        if path is None:
            return
        self._timers.clear((Timer.HEARTBEAT, path_id))
        self._timers.clear((Timer.DEADLINE, path_id))
        self._timers.clear((Timer.CHECK, path_id))
        if self._active is path:
            self._active = None
            self._choose_active(now)
            # What ended one path may have ended the others: do not wait for their heartbeat.
            if (active := self.active_path) is not None:
                self.probe(active, now)
        if not self._paths and self.state is not SessionState.ENDED:
            if self.remote_closed and not self.outbox.owes():
                # The peer said its last frame and has gone: nothing more can come, nor has to go.
                self._end(ConnectionClosed("the peer has closed the connection"))
            else:
                self._timers.set(Timer.RESUME, now + self._limits.resume_timeout)

    @property
    def path_ids(self) -> list[int]:
        """The attached paths."""
        return list(self._paths)

    @property
    def active_path(self) -> int | None:
        """The path that carries our data."""
        return None if self._active is None else self._active.id

    def needs_path(self) -> bool:
        """Whether no attached path answers."""
        return all(path.suspect for path in self._paths.values())

    def confirmed(self, path_id: int) -> bool:
        """Whether the peer's HELLO has come over this path, and the path has answered since another came up."""
        path = self._paths.get(path_id)
        return path is not None and path.heard_hello and not path.checking

    def path_rank(self, path_id: int) -> tuple[bool, int, int]:
        """What orders paths, the best first: whether it is silent, its rank, its age."""
        path = self._paths[path_id]
        return path.suspect, path.rank, path.id

    def path_rtt(self, path_id: int) -> float:
        """The smoothed round-trip time of a path in seconds."""
        return self._paths[path_id].rtt

    def _choose_active(self, now: float) -> None:
        """Select the best path that answers; a suspect one only when there is no other."""
        best = min(
            self._paths.values(),
            key=lambda p: (p.suspect, not (p.heard_hello or self._is_new), p.rank, p.id),
            default=None,
        )
        if best is self._active or best is None:
            return
        if self._active is not None and not best.heard_hello:
            return  # an unconfirmed path never replaces one that works
        self._active = best
        best.resend = self.outbox.unacknowledged()
        best.control.extend(frames.serialize_credit(p, self.inbox.granted(p)) for p in self.inbox.raised_credits())
        self.streams.repeat_credits()
        for token, (sent_at, _) in self._pings.items():
            best.control.append(frames.serialize_ping(token))
            self._pings[token] = sent_at, None
        self._ack_due = self._ack_due or self.inbox.expected > 0
        self._arm_stall(now)

    @property
    def _is_new(self) -> bool:
        return self.remote_nonce == NO_NONCE

    # --- bytes out -----------------------------------------------------------------------------------------------

    def next_group(self, path_id: int, now: float) -> Group | None:
        """The next control record and its payload records for a path; None when there is nothing to write."""
        path = self._paths.get(path_id)
        if path is None:
            return None
        self.more = path.hello_due
        if path.hello_due:
            return self._hello_group(path)
        group = GroupBuilder(path.burst)
        control = path.control
        if control:
            at = 0
            while at < len(control) and group.room > CONTROL_RESERVE:
                group.add(control[at])
                at += 1
            del control[:at]
            self.more = bool(control)
        if path is self._active and (path.heard_hello or self._is_new):
            self._fill_active(path, group, now)
        return group.finish()

    def _hello_group(self, path: _Path) -> Group | None:
        path.hello_due = False
        hello = frames.Hello(
            self.nonce,
            self.remote_nonce,
            self.inbox.expected,
            self.inbox.window,
            self.streams.table.window,
            self._limits.max_message_bytes,
        )
        padding = frames.serialize_padding(1 + self._random(1)[0] % _FIRST_FLIGHT_PADDING)
        group = GroupBuilder()
        group.add(frames.serialize_hello(hello))
        # What the active path is told is repeated on its successor; what another carries may be lost with it.
        table = self.streams.table
        group.add(frames.serialize_max_streams(table.grant() if path is self._active else table.granted))
        group.add(padding)
        return group.finish()

    def _fill_active(self, path: _Path, group: GroupBuilder, now: float) -> None:
        inbox, outbox = self.inbox, self.outbox
        if inbox.credits_due:
            for priority in inbox.credits_due:
                group.add(frames.serialize_credit(priority, inbox.granted(priority)))
            inbox.credits_due.clear()
        self.streams.write_credits(group)
        if path.resend is not None:
            self._resend(path, group)
            self.more = True
        if path.resend is None:
            outbox.fill(group, now)
            self.more = self.more or outbox.is_full(group) or self.streams.table.grant_due
            if self._datagrams:
                self._fill_datagrams(group)
                self.more = self.more or bool(self._datagrams)
            if self._ack_wanted and outbox.retained_bytes and not outbox.has_queued():
                self._ack_wanted = False
                group.add(frames.serialize_ping(self._ping_token(path, now)))
        if self._ack_due or (group.pieces and self._unacked_bytes >= ACK_WITH_DATA):
            group.add(frames.serialize_ack(inbox.expected))
            self._ack_sent = inbox.expected
            self._ack_due = False
            self._unacked_bytes = 0
            self._timers.clear(Timer.ACK)
        if outbox.signer is not None and (due := outbox.signer.next_timeout()) is not None:
            self._timers.set_if_unset(Timer.SIGN, due)
        if outbox.retained_bytes:
            self._timers.set_if_unset(Timer.STALL, now + max(3 * path.rtt, STALL_LEAST))

    def _resend(self, path: _Path, group: GroupBuilder) -> None:
        resend, acked = path.resend, self.outbox.acked
        assert resend is not None
        while resend:
            if resend[0].number >= acked and not group.add_sent(resend[0]):
                return
            resend.popleft()
        path.resend = None

    def _fill_datagrams(self, group: GroupBuilder) -> None:
        datagrams = self._datagrams
        while datagrams and group.room > DATAGRAM_LIMIT + 1024:
            data = datagrams.popleft()
            self._datagram_bytes -= len(data)
            group.add(frames.serialize_datagram(data))

    # --- bytes in ------------------------------------------------------------------------------------------------

    def receive_group(self, path_id: int, control: bytes, payloads: list[bytes], now: float) -> None:
        """Take a control record and its payload records from a path.

        Raises:
            RemoteProtocolError: the peer broke the protocol; the session has ended with that cause.
        """
        if self.state is SessionState.ENDED:
            return
        path = self._paths[path_id]
        path.last_heard = now
        path.checking = False
        try:
            size = len(control)
            for payload in payloads:
                size += len(payload)
            if path.suspect:
                path.suspect = False
                self._choose_active(now)
            numbered = False
            for frame in frames.parse_frames(control, payloads, start=1):
                numbered = self._receive(path, frame, now) or numbered
            if numbered:
                self._note_unacknowledged(size, now)
                self._follow(path, now)
            self.delivery.check_overdue(now)
        except RemoteProtocolError as error:
            lost = PeerLost(None, f"the peer broke the protocol: {error}", getattr(error, "proof", ()))
            lost.__cause__ = error
            self._end(lost)
            raise

    def _receive(self, path: _Path, frame: frames.Frame, now: float) -> bool:
        """Take one frame; whether it is a numbered one."""
        kind = type(frame)
        if kind is frames.Hello:
            self._on_hello(path, frame, now)  # type: ignore[arg-type]
            return False
        if kind is frames.Gone:
            self._on_gone(path, frame)  # type: ignore[arg-type]
            return False
        if not path.heard_hello:
            raise RemoteProtocolError("the first frame on a path is not HELLO")
        handler = _UNNUMBERED.get(kind)
        if handler is not None:
            handler(self, path, frame, now)
            return False
        for ordered in self.inbox.accept(frame):  # type: ignore[arg-type]
            if self.remote_closed:
                raise RemoteProtocolError("frames after CLOSE")
            if self.state is SessionState.CLOSING and not self._gave_up:
                # What the peer had queued still comes; it must only not take for ever.
                self._timers.set(Timer.CLOSE, min(now + self._limits.close_timeout, self._close_latest))
            self.delivery.take(ordered, now)
        return True

    def _follow(self, path: _Path, now: float) -> None:
        """The peer prefers another path than ours: if ours is silent, our acknowledgements may be lost on it."""
        active = self._active
        if active is not None and active is not path and now - active.last_heard >= max(3 * active.rtt, STALL_LEAST):
            self._check(active, now)

    def _check(self, path: _Path, now: float) -> None:
        """Ask for an answer soon: the peer brings another path perhaps because this one is dead."""
        if (Timer.CHECK, path.id) not in self._timers:
            path.checking = True
            path.control.append(frames.serialize_ping(self._ping_token(path, now)))
            self._timers.set((Timer.CHECK, path.id), now + max(3 * path.rtt, STALL_LEAST))

    def _note_unacknowledged(self, size: int, now: float) -> None:
        self._unacked_bytes += size
        if self._unacked_bytes >= ACK_BYTES:
            self._ack_due = True
        elif not self._ack_due:
            self._timers.set_if_unset(Timer.ACK, now + ACK_DELAY)

    def _on_hello(self, path: _Path, frame: frames.Hello, now: float) -> None:
        if path.heard_hello:
            raise RemoteProtocolError("a second HELLO on a path")
        if frame.nonce == NO_NONCE or frame.your_nonce not in (NO_NONCE, self.nonce):
            raise RemoteProtocolError("HELLO names another session")
        if self.remote_nonce == NO_NONCE:
            self.remote_nonce = frame.nonce
            self.outbox.learn_session(self._name(self.nonce, frame.nonce))
        elif self.remote_nonce != frame.nonce:
            raise RemoteProtocolError("HELLO comes from another instance of the peer")
        elif self.delivery.verifier is not None:
            self.delivery.verifier.resumed()
        # A lower number than was acknowledged is no offence: ACKs over another path may have overtaken this HELLO.
        path.heard_hello = True
        self.max_message_bytes = min(self.max_message_bytes, max(frame.max_message, 1))
        self._acknowledged(frame.next_expected, now)
        for priority in range(PRIORITIES):
            self.outbox.raise_credit(priority, frame.window)
        self.streams.learn_window(frame.stream_window)
        self._choose_active(now)
        if self._active is not None and self._active is not path:
            self._check(self._active, now)

    def _on_gone(self, path: _Path, frame: frames.Gone) -> None:
        """The peer has no session of the nonce that our HELLO called its own (PROTOCOL 10)."""
        if frame.nonce != self.remote_nonce:
            return
        others = any(p.heard_hello and not p.suspect for p in self._paths.values() if p is not path)
        if others and not path.heard_hello:
            # Another program with the peer's identity: the session's own peer is there.
            self._events.append(PathDead(path.id, "leads to another instance of the peer"))
            return
        if frame.code == 1:
            self._end(ConnectionClosed("the peer has closed the connection"))
        elif frame.code == 2:
            self._end(PeerLost(None, "the peer refused the connection"))
        else:
            self._end(PeerLost(None, "the peer has restarted, or given this connection up"))

    def _on_ack(self, path: _Path, frame: frames.Ack, now: float) -> None:
        self._acknowledged(frame.next_expected, now)

    def _acknowledged(self, next_expected: int, now: float) -> None:
        if not self.outbox.acknowledge(next_expected):
            return
        if self._active is not None:
            self._active.burst = min(2 * self._active.burst, GROUP_PAYLOADS)
        self._timers.clear(Timer.STALL)
        self._arm_stall(now)
        close_number = self.outbox.close_number
        if close_number is not None and next_expected > close_number and self.remote_closed:
            self._end_after_writing(now)
        elif self.state is SessionState.CLOSING and not self._gave_up:
            self._timers.set(Timer.CLOSE, now + self._limits.close_timeout)

    def _arm_stall(self, now: float) -> None:
        if self.outbox.retained_bytes and self._active is not None:
            self._timers.set(Timer.STALL, now + max(3 * self._active.rtt, STALL_LEAST))

    def _on_credit(self, path: _Path, frame: frames.Credit, now: float) -> None:
        self.outbox.raise_credit(frame.priority, frame.limit)

    def _on_stream_credit(self, path: _Path, frame: frames.StreamCredit, now: float) -> None:
        self.streams.credit_raised(frame)

    def _on_max_streams(self, path: _Path, frame: frames.MaxStreams, now: float) -> None:
        self.streams.max_streams_raised(frame)

    def _on_ping(self, path: _Path, frame: frames.Ping, now: float) -> None:
        if len(path.control) < CONTROL_WAITING:  # a peer that floods PINGs and reads nothing gets no memory
            path.control.append(frames.serialize_pong(frame.token))
        self._ack_due = self._ack_due or self.inbox.expected > self._ack_sent

    def _on_pong(self, path: _Path, frame: frames.Pong, now: float) -> None:
        ping = self._pings.pop(frame.token, None)
        if ping is not None:
            sample = now - ping[0]
            if ping[1] == path.id:  # else an outage would count as the new path's round trip (RFC 6298 §3, Karn)
                path.rtt += (sample - path.rtt) * _RTT_GAIN
            self._events.append(Ponged(frame.token, sample))

    def _on_path_close(self, path: _Path, frame: frames.PathClose, now: float) -> None:
        self._events.append(PathDead(path.id, "surplus"))

    def _on_service(self, body: bytes) -> None:
        self._events.append(ServiceReceived(body, None))

    def _on_path_service(self, path: _Path, frame: frames.PathService, now: float) -> None:
        self._events.append(ServiceReceived(frame.body, path.id))

    def _on_datagram(self, path: _Path, frame: frames.Datagram, now: float) -> None:
        if len(frame.data) > DATAGRAM_LIMIT:
            raise RemoteProtocolError(f"a datagram of {len(frame.data)} bytes is over {DATAGRAM_LIMIT}")
        self._events.append(DatagramReceived(frame.data))

    # --- the end ---

    def _on_close(self, now: float) -> None:
        """The peer's last frame was delivered."""
        self.remote_closed = True
        self.outbox.patient = False
        self._ack_due = True
        self.streams.all_changed()
        if self.state is SessionState.OPEN:
            self.close(now)
        elif self.outbox.close_number is not None and self.outbox.acked > self.outbox.close_number:
            self._end_after_writing(now)

    def _end_after_writing(self, now: float) -> None:
        """Both ends are said: end as soon as our last acknowledgement is written."""
        self._timers.set(Timer.CLOSE, now)

    # --- verbs ---------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Refuse what can no longer be sent.

        Raises:
            ConnectionClosed: either side has closed.
            PeerLost: the peer is gone.
        """
        if self.ended is not None:
            raise self.ended
        if self.state is not SessionState.OPEN:
            raise ConnectionClosed("the connection is closing")

    def send(self, data: bytes, priority: int, deadline: float | None) -> None:
        """Queue a message; `check_open` and the queue's bound are the caller's.

        Raises:
            MessageTooLarge: over the limit.
        """
        self.outbox.queue_message(data, priority, deadline)
        if deadline is not None:
            self._timers.set_earlier(Timer.EXPIRY, deadline)

    def next_message(self) -> tuple[bytes, Priority, Any] | None:
        """Take the next message for the application."""
        return self.inbox.next_message()

    def send_datagram(self, data: bytes) -> bool:
        """Queue a datagram; the oldest is dropped when too many wait.

        Raises:
            LocalProtocolError: longer than every path can carry.
        """
        if len(data) > DATAGRAM_LIMIT:
            raise LocalProtocolError(f"a datagram has at most {DATAGRAM_LIMIT} bytes, this one {len(data)}")
        if self._datagrams is None:
            self._datagrams = deque()
        self._datagrams.append(data)
        self._datagram_bytes += len(data) + 64
        dropped = False
        while self._datagram_bytes > _DATAGRAMS_QUEUED:
            self._datagram_bytes -= len(self._datagrams.popleft()) + 64
            dropped = True
        return not dropped

    def ping(self, now: float) -> int:
        """Ask the peer for an answer; the token comes back in `Ponged`."""
        path = self._active
        token = self._ping_token(path, now)
        if path is not None:
            path.control.append(frames.serialize_ping(token))
        return token

    def forget_ping(self, token: int) -> None:
        """Nobody waits for this answer any more."""
        self._pings.pop(token, None)

    def _ping_token(self, path: _Path | None, now: float) -> int:
        token = self._next_token
        self._next_token += 1
        if len(self._pings) >= 64:
            self._pings.pop(next(iter(self._pings)))
        self._pings[token] = now, None if path is None else path.id
        return token

    def send_service(self, body: bytes, path_id: int | None = None) -> bool:
        """Tell the peer's node something; over a path, for what concerns only that. False when too much waits."""
        if path_id is None:
            self.outbox.queue_control(lambda number: frames.serialize_service(number, body))
            return True
        path = self._paths.get(path_id)
        if path is None or len(path.control) >= CONTROL_WAITING:
            return False
        path.control.append(frames.serialize_path_service(body))
        return True

    def flush_mark(self) -> FlushMark:
        """Remember what is queued now; ask `flushed` about it."""
        self._ack_wanted = True
        outbox = self.outbox
        streams = [(s, s.sent + s.pending_bytes) for s in self.streams.table.by_id.values() if s.pending_bytes]
        return FlushMark(list(outbox.queued_count), streams)

    def flushed(self, mark: FlushMark) -> bool:
        """Whether all that a mark covers is acknowledged."""
        outbox = self.outbox
        if mark.number is None:
            written = all(done >= count for done, count in zip(outbox.done_count, mark.counts, strict=True))
            if not written or any(s.sent < end and s.pending_bytes for s, end in mark.streams):
                return False
            mark.number = outbox.next_number
            self._ack_wanted = True
        return outbox.acked >= mark.number

    def close_path(self, path_id: int) -> None:
        """Tell the peer that a path is surplus."""
        path = self._paths.get(path_id)
        if path is not None:
            path.control.append(frames.serialize_path_close())

    def close(self, now: float) -> None:
        """Send what is queued, then CLOSE; `SessionEnded` follows when the peer has it, or after a time-out."""
        if self.state is SessionState.OPEN and not self._paths and not self.outbox.owes():
            # Nothing to deliver and nobody to tell; a peer that comes back is told that we have closed.
            self._end(ConnectionClosed("the connection is closed"))
        elif self.state is SessionState.OPEN:
            self.state = SessionState.CLOSING
            self.outbox.queue_close(0)
            self._timers.set(Timer.CLOSE, now + self._limits.close_timeout)
            self._close_latest = now + CLOSE_PATIENCE * self._limits.close_timeout

    def abort(self, error: CrustError) -> None:
        """End at once, without telling the peer."""
        self._end(error)

    # --- time and events -----------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        return self._timers.next_timeout()

    def next_event(self) -> SessionEvent | None:
        """The oldest event that was not taken."""
        return self._events.pop(0) if self._events else None

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""
        for name in self._timers.pop_due(now):
            if self.state is SessionState.ENDED:
                return
            if name is Timer.ACK:
                self._ack_due = True
            elif name is Timer.STALL:
                self._stalled(now)
            elif name is Timer.CLOSE:
                self._close_overdue(now)
            elif name is Timer.EXPIRY:
                if (again := self.outbox.drop_expired(now)) is not None:
                    self._timers.set(Timer.EXPIRY, again)
            elif name is Timer.RESUME:
                self._end(PeerLost(None, "no path came up again in time"))
            elif isinstance(name, tuple):
                self._path_timer(name[0], name[1], now)

    def _stalled(self, now: float) -> None:
        path = self._active
        if path is None or not self.outbox.retained_bytes:
            return
        self._timers.set(Timer.STALL, now + STALL_AGAIN)
        if now - path.last_heard < max(3 * path.rtt, STALL_LEAST):
            return  # it speaks, so it lives: the peer is merely slow to acknowledge
        path.suspect = True
        path.burst = 1
        self._probe(path, now)
        self._events.append(PathStalled(path.id))
        self._choose_active(now)

    def _probe(self, path: _Path, now: float) -> None:
        probed_at = path.probed_at
        if (Timer.DEADLINE, path.id) in self._timers and probed_at is not None and path.last_heard <= probed_at:
            return  # the last probe is not answered yet
        path.probed_at = now
        path.control.append(frames.serialize_ping(self._ping_token(path, now)))
        deadline = min(now + self._limits.path_timeout, path.last_heard + self._limits.inactivity_timeout)
        self._timers.set((Timer.DEADLINE, path.id), max(deadline, now))

    def probe(self, path_id: int, now: float) -> None:
        """Ask whether a path still answers; `PathDead` follows when it does not."""
        path = self._paths.get(path_id)
        if path is not None:
            self._probe(path, now)

    def _path_timer(self, timer: Timer, path_id: int, now: float) -> None:
        path = self._paths.get(path_id)
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
                self._choose_active(now)
        elif path.probed_at is not None and path.last_heard <= path.probed_at:
            self._events.append(PathDead(path_id, "no sign of life"))

    def _close_overdue(self, now: float) -> None:
        if self.remote_closed and not self.outbox.owes():
            self._end(ConnectionClosed("the connection is closed"))
        elif self._paths and not self._gave_up:
            # Whether it reads or not, the peer need not wait for us: one more write, then the end.
            self._gave_up = True
            for path in self._paths.values():
                path.control.append(frames.serialize_gone(self.nonce, 0))
            self._end_after_writing(now)
        else:
            self._end(PeerLost(None, "the peer did not confirm the end of the connection in time"))

    def _end(self, error: CrustError) -> None:
        if self.state is not SessionState.ENDED:
            self.state = SessionState.ENDED
            self.ended = error
            self._timers.clear_all()
            self._events.append(SessionEnded(error))


_UNNUMBERED: Final[dict[type, Callable[[Session, _Path, Any, float], None]]] = {
    frames.Ack: Session._on_ack,
    frames.Credit: Session._on_credit,
    frames.StreamCredit: Session._on_stream_credit,
    frames.MaxStreams: Session._on_max_streams,
    frames.Ping: Session._on_ping,
    frames.Pong: Session._on_pong,
    frames.PathClose: Session._on_path_close,
    frames.Datagram: Session._on_datagram,
    frames.PathService: Session._on_path_service,
}
