"""The session with one peer, above the paths that carry it.

The engine knows paths by number only. A path is attached when its handshake is done, and detached when it ends;
frames that were written and not acknowledged are then written again on the next active path, so that suspend,
roaming, a reset and a change from a relayed to a direct path are all the same event. See PROTOCOL 10 to 16.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

from crust.errors import ConnectionClosed, CrustError, PeerLost, RemoteProtocolError
from crust.proto.session.datagram import DATAGRAM_LIMIT, DatagramQueue
from crust.proto.session.delivery import Delivery
from crust.proto.session.events import DatagramReceived, PathDead, ServiceReceived, SessionEnded, SessionEvent
from crust.proto.session.flush import FlushMark
from crust.proto.session.inbox import Inbox
from crust.proto.session.limits import Limits
from crust.proto.session.multiplexer import StreamMultiplexer
from crust.proto.session.outbox import GROUP_PAYLOADS, PRIORITIES, Group, GroupBuilder, Outbox
from crust.proto.session.paths import CONTROL_WAITING, SERVICES_WAITING, SessionPath, SessionPaths
from crust.proto.session.streams import StreamTable
from crust.proto.session.terms import SigningTerms
from crust.proto.session.timer import Timer
from crust.proto.timers import TimerTable
from crust.types import Priority
from crust.wire import frames

__all__ = ["NO_NONCE", "Session", "SessionState"]

NO_NONCE: Final = bytes(16)

# PROTOCOL 11: one acknowledgement for 256 KiB or 50 ms.
ACK_BYTES: Final = 256 * 1024
ACK_DELAY: Final = 0.05

ACK_WITH_DATA: Final = 16 * 1024
"""So much is acknowledged when something is written anyway; for less it is not worth the peer's time."""

CLOSE_PATIENCE: Final = 10
"""How many times `close_timeout` a peer may go on sending after we have closed."""

CONTROL_RESERVE: Final = 32 * 1024
"""Room in a group that these leave for numbered frames."""

_FIRST_FLIGHT_PADDING: Final = 255


class SessionState(enum.Enum):
    """Where a session is."""

    OPEN = "open"
    CLOSING = "closing"  # we have said, or are about to say, our last frame
    ENDED = "ended"


def _no_name(ours: bytes, theirs: bytes) -> bytes:
    """Without signatures nobody needs the session's name."""
    return b""


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
        self._timers: TimerTable[Timer | tuple[Timer, int]] = TimerTable()
        self._events: list[SessionEvent] = []
        self._events_taken = 0  # of these: a peer can cause many at once, and each removal would move all the others
        self._paths = SessionPaths(limits, self._timers, self._events, self.outbox, self._activated)
        self._ack_due = False
        self._ack_sent = 0
        self._unacked_bytes = 0
        self._services_waiting = 0
        self._ack_wanted = False
        self._datagrams: DatagramQueue | None = None  # made when needed: an empty deque takes 760 bytes
        self._close_latest = 0.0
        self._ends_next = False  # all is said, but for our last acknowledgement
        self.says_gone = False  # it has ended, and what is written once more tells the peer
        self._timers.set(Timer.RESUME, now + limits.resume_timeout)

    # --- paths ---------------------------------------------------------------------------------------------------

    def attach(
        self, path_id: int, *, rank: int, now: float, rtt: float = 0.1, largest_burst: int = GROUP_PAYLOADS
    ) -> None:
        """Add a path whose handshake is done; its HELLO goes out next.

        Args:
            path_id: the front end's number for it.
            rank: lower is better; the best answering path carries the data.
            now: monotonic seconds.
            rtt: a first guess of its round-trip time.
            largest_burst: payload records in a group while it turns out to be fast.
        """
        self._timers.clear(Timer.RESUME)
        self._paths.attach(path_id, rank, now, rtt, largest_burst)

    def detach(self, path_id: int, now: float) -> None:
        """Remove a path that has ended."""
        if self.state is SessionState.ENDED:
            self._paths.by_id.pop(path_id, None)
        elif self._paths.detach(path_id, now) and not self._paths.by_id:
            if self.remote_closed and not self.outbox.owes():
                # The peer said its last frame and has gone: nothing more can come, nor has to go.
                self._end(ConnectionClosed("the peer has closed the connection"))
            else:
                self._timers.set(Timer.RESUME, now + self._limits.resume_timeout)

    @property
    def path_ids(self) -> list[int]:
        """The attached paths."""
        return list(self._paths.by_id)

    @property
    def active_path(self) -> int | None:
        """The path that carries our data."""
        active = self._paths.active
        return None if active is None else active.id

    def needs_path(self) -> bool:
        """Whether no attached path answers."""
        return all(path.suspect for path in self._paths.by_id.values())

    def confirmed(self, path_id: int) -> bool:
        """Whether the peer's HELLO has come over this path, and the path has answered since another came up."""
        path = self._paths.by_id.get(path_id)
        return path is not None and path.heard_hello and not path.checking

    @property
    def path_changes(self) -> int:
        """Grows when it may be other paths than before that are surplus."""
        return self._paths.changes

    def path_rank(self, path_id: int) -> tuple[bool, int, int]:
        """What orders paths, the best first: whether it is silent, its rank, its age."""
        path = self._paths.by_id[path_id]
        return path.suspect, path.rank, path.id

    def path_rtt(self, path_id: int) -> float:
        """The smoothed round-trip time of a path in seconds."""
        return self._paths.by_id[path_id].rtt

    def probe(self, path_id: int, now: float) -> None:
        """Ask whether a path still answers; `PathDead` follows when it does not."""
        self._paths.probe(path_id, now)

    def close_path(self, path_id: int) -> None:
        """Tell the peer that a path is surplus."""
        self._paths.close_surplus(path_id)

    def _activated(self, path: SessionPath) -> None:
        """Another path carries our data: credit and acknowledgements that went over the last one may be lost."""
        inbox = self.inbox
        path.control.extend(frames.serialize_credit(p, inbox.granted(p)) for p in inbox.raised_credits())
        self.streams.repeat_credits()
        self.delivery.repeat_delay()
        self._ack_due = self._ack_due or inbox.expected > 0

    # --- bytes out -----------------------------------------------------------------------------------------------

    def next_group(self, path_id: int, now: float) -> Group | None:
        """The next control record and its payload records for a path; None when there is nothing to write."""
        path = self._paths.by_id.get(path_id)
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
        if path is self._paths.active and self._paths.may_carry(path) and not self.says_gone:
            self._fill_active(path, group, now)
            if self._ends_next and not self.more:
                self._end(ConnectionClosed("the connection is closed"))
        return group.finish()

    def _hello_group(self, path: SessionPath) -> Group | None:
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
        group.add(frames.serialize_max_streams(table.grant() if path is self._paths.active else table.granted))
        group.add(padding)
        return group.finish()

    def _fill_active(self, path: SessionPath, group: GroupBuilder, now: float) -> None:
        inbox, outbox = self.inbox, self.outbox
        if inbox.credits_due:
            for priority in inbox.credits_due:
                group.add(frames.serialize_credit(priority, inbox.granted(priority)))
            inbox.credits_due.clear()
        self.streams.write_credits(group)
        if self.delivery.delay_due:
            group.add(frames.serialize_signature_delay(self.delivery.take_delay()))
        if path.resend is not None:
            self._resend(path, group)
            self.more = self.more or path.resend is not None
        if path.resend is None:
            outbox.fill(group, now)
            self.more = self.more or outbox.is_full(group) or self.streams.table.grant_due
            if self._datagrams:
                self._datagrams.fill(group)
                self.more = self.more or bool(self._datagrams)
            if self._ack_wanted and outbox.retained_bytes and not outbox.has_queued():
                self._ack_wanted = False
                group.add(frames.serialize_ping(self._paths.ping_token(path, now)))
        if self._ack_due or (group.pieces and self._unacked_bytes >= ACK_WITH_DATA):
            group.add(frames.serialize_ack(inbox.expected))
            self._ack_sent = inbox.expected
            self._ack_due = False
            self._unacked_bytes = 0
            self._timers.clear(Timer.ACK)
        timers = self._timers.deadlines
        signer = outbox.signer
        if signer is not None and Timer.SIGN not in timers and (due := signer.next_timeout()) is not None:
            timers[Timer.SIGN] = due
        if outbox.retained_bytes and Timer.STALL not in timers:
            timers[Timer.STALL] = now + path.patience

    def _resend(self, path: SessionPath, group: GroupBuilder) -> None:
        resend, acked = path.resend, self.outbox.acked
        assert resend is not None
        while resend:
            if resend[0].number >= acked and not group.add_sent(resend[0]):
                return
            resend.popleft()
        path.resend = None

    # --- bytes in ------------------------------------------------------------------------------------------------

    def receive_group(self, path_id: int, control: bytes, payloads: list[bytes], now: float) -> None:
        """Take a control record and its payload records from a path.

        Raises:
            RemoteProtocolError: the peer broke the protocol; the session has ended with that cause.
        """
        if self.state is SessionState.ENDED:
            return
        path = self._paths.by_id[path_id]
        try:
            self._paths.heard(path, now)
            size = len(control)
            for payload in payloads:
                size += len(payload)
            numbered = False
            for frame in frames.parse_frames(control, payloads, start=1):
                numbered = self._receive(path, frame, now) or numbered
            if numbered:
                self._note_unacknowledged(size, now)
                if path is not self._paths.active:
                    self._paths.follow(path, now)
            self.delivery.check_overdue(now)
        except RemoteProtocolError as error:
            lost = PeerLost(None, f"the peer broke the protocol: {error}", getattr(error, "proof", ()))
            lost.__cause__ = error
            self._give_up(lost, 3)
            raise

    def _receive(self, path: SessionPath, frame: frames.Frame, now: float) -> bool:
        """Take one frame; whether it is a numbered one."""
        kind = type(frame)
        handler = _UNNUMBERED.get(kind)
        if handler is not None:
            if not path.heard_hello and kind not in _FIRST:
                raise RemoteProtocolError(_NO_HELLO)
            handler(self, path, frame, now)
            return False
        if not path.heard_hello:
            raise RemoteProtocolError(_NO_HELLO)
        if self.inbox.is_next(frame.number):  # type: ignore[union-attr]
            self._deliver(frame, now)  # type: ignore[arg-type]
        else:
            for ordered in self.inbox.accept(frame):  # type: ignore[arg-type]
                self._deliver(ordered, now)
        return True

    def _deliver(self, frame: frames.NumberedFrame, now: float) -> None:
        """Take the next numbered frame."""
        if self.remote_closed:
            raise RemoteProtocolError("frames after CLOSE")
        if self.state is SessionState.CLOSING:
            # What the peer had queued still comes; it must only not take for ever.
            self._timers.set(Timer.CLOSE, min(now + self._limits.close_timeout, self._close_latest))
        self.delivery.take(frame, now)

    def _note_unacknowledged(self, size: int, now: float) -> None:
        self._unacked_bytes += size
        if self._unacked_bytes >= ACK_BYTES:
            self._ack_due = True
        elif not self._ack_due:
            self._timers.set_if_unset(Timer.ACK, now + ACK_DELAY)

    def _on_hello(self, path: SessionPath, frame: frames.Hello, now: float) -> None:
        if path.heard_hello:
            raise RemoteProtocolError("a second HELLO on a path")
        if frame.nonce == NO_NONCE or frame.your_nonce not in (NO_NONCE, self.nonce):
            raise RemoteProtocolError("HELLO names another session")
        if self.remote_nonce == NO_NONCE:
            self.remote_nonce = frame.nonce
            self._paths.is_new = False
            self.outbox.learn_session(self._name(self.nonce, frame.nonce))
        elif self.remote_nonce != frame.nonce:
            raise RemoteProtocolError("HELLO comes from another instance of the peer")
        elif self.delivery.verifier is not None:
            self.delivery.verifier.resumed()
        # A lower number than was acknowledged is no offence: ACKs over another path may have overtaken this HELLO.
        self.max_message_bytes = min(self.max_message_bytes, max(frame.max_message, 1))
        self._acknowledged(frame.next_expected, now)
        for priority in range(PRIORITIES):
            self.outbox.raise_credit(priority, frame.window)
        self.streams.learn_window(frame.stream_window)
        self._paths.heard_hello(path, now)

    def _on_gone(self, path: SessionPath, frame: frames.Gone, now: float) -> None:
        """The peer has no session of the nonce that our HELLO called its own (PROTOCOL 10)."""
        if frame.nonce != self.remote_nonce:
            return
        if not path.heard_hello and self._paths.others_answer(path):
            # Another program with the peer's identity: the session's own peer is there.
            self._events.append(PathDead(path.id, "leads to another instance of the peer"))
            return
        if frame.code == 1:
            self._end(ConnectionClosed("the peer has closed the connection"))
        elif frame.code == 2:
            self._end(PeerLost(None, "the peer refused the connection"))
        elif frame.code == 3:
            self._end(PeerLost(None, "the peer has cut us off, as it holds that we broke the protocol"))
        else:
            self._end(PeerLost(None, "the peer has restarted, or given this connection up"))

    def _acknowledged(self, next_expected: int, now: float) -> None:
        outbox = self.outbox
        first, retained = not outbox.acked, outbox.retained_bytes
        if not outbox.acknowledge(next_expected):
            return
        if first:
            self.delivery.peer_hears()
        self._paths.progressed(retained - outbox.retained_bytes, now)
        close_number = outbox.close_number
        if close_number is not None and next_expected > close_number and self.remote_closed:
            self._end_after_writing(now)
        elif self.state is SessionState.CLOSING:
            self._timers.set(Timer.CLOSE, now + self._limits.close_timeout)

    def _on_ping(self, path: SessionPath, frame: frames.Ping, now: float) -> None:
        if len(path.control) < CONTROL_WAITING:  # a peer that floods PINGs and reads nothing gets no memory
            path.control.append(frames.serialize_pong(frame.token))
        self._ack_due = self._ack_due or self.inbox.expected > self._ack_sent

    def _on_path_close(self, path: SessionPath, frame: frames.PathClose, now: float) -> None:
        self._events.append(PathDead(path.id, "surplus"))

    def _on_service(self, body: bytes) -> None:
        self._events.append(ServiceReceived(body, None))

    def _on_path_service(self, path: SessionPath, frame: frames.PathService, now: float) -> None:
        self._events.append(ServiceReceived(frame.body, path.id))

    def _on_datagram(self, path: SessionPath, frame: frames.Datagram, now: float) -> None:
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
        """Both ends are said: end as soon as our last acknowledgement is written, or at once where no path takes it."""
        self._ends_next = True
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
        """Queue a message; `check_open`, `max_message_bytes` and the queue's bound are the caller's to see to."""
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
        if self._datagrams is None:
            self._datagrams = DatagramQueue()
        return self._datagrams.put(data)

    def ping(self, now: float) -> int:
        """Ask the peer for an answer; the token comes back in `Ponged`."""
        return self._paths.ping(now)

    def forget_ping(self, token: int) -> None:
        """Nobody waits for this answer any more."""
        self._paths.forget_ping(token)

    def send_service(self, body: bytes, path_id: int | None = None) -> bool:
        """Tell the peer's node something; over a path, for what concerns only that. False when too much waits."""
        if path_id is None:
            if self._services_waiting >= SERVICES_WAITING:
                return False
            self._services_waiting += 1
            self.outbox.queue_control(lambda number: self._service_frame(number, body))
            return True
        path = self._paths.by_id.get(path_id)
        if path is None or len(path.control) >= CONTROL_WAITING:
            return False
        path.control.append(frames.serialize_path_service(body))
        return True

    def _service_frame(self, number: int, body: bytes) -> bytes:
        self._services_waiting -= 1
        return frames.serialize_service(number, body)

    def flush_mark(self) -> FlushMark:
        """Remember what is queued now; ask `flushed` about it."""
        self._ack_wanted = True
        return FlushMark(self.outbox, self.streams.table)

    def flushed(self, mark: FlushMark) -> bool:
        """Whether all that a mark covers is acknowledged."""
        if mark.written():
            self._ack_wanted = True
        return mark.acknowledged()

    def close(self, now: float) -> None:
        """Send what is queued, then CLOSE; `SessionEnded` follows when the peer has it, or after a time-out."""
        if self.state is SessionState.OPEN and not self._paths.by_id and not self.outbox.owes():
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
        taken = self._events_taken
        if taken < len(self._events):
            self._events_taken = taken + 1
            return self._events[taken]
        self._events.clear()
        self._events_taken = 0
        return None

    def woke(self, now: float) -> None:
        """The machine has slept: the time to come back starts anew (PROTOCOL 15), and no path is taken for alive."""
        if Timer.RESUME in self._timers:
            self._timers.set(Timer.RESUME, now + self._limits.resume_timeout)
        self._paths.probe_all(now)

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""
        for name in self._timers.pop_due(now):
            if self.state is SessionState.ENDED:
                return
            if name is Timer.ACK:
                self._ack_due = True
            elif name is Timer.STALL:
                self._paths.stalled(now)
            elif name is Timer.CLOSE:
                self._close_overdue()
            elif name is Timer.EXPIRY:
                if (again := self.outbox.drop_expired(now)) is not None:
                    self._timers.set(Timer.EXPIRY, again)
            elif name is Timer.RESUME:
                self._end(PeerLost(None, "no path came up again in time"))
            elif isinstance(name, tuple):
                self._paths.path_timer(name[0], name[1], now)

    def _close_overdue(self) -> None:
        if self.remote_closed and not self.outbox.owes():
            self._end(ConnectionClosed("the connection is closed"))
        else:
            self._give_up(PeerLost(None, "the peer did not confirm the end of the connection in time"), 0)

    def _give_up(self, error: CrustError, code: int) -> None:
        """End, and say so in one more write: the peer, which perhaps cannot dial us, need not wait for our return."""
        for path in self._paths.by_id.values():
            path.control = [frames.serialize_gone(self.nonce, code)]
            self.says_gone = True
        self._end(error)

    def _end(self, error: CrustError) -> None:
        if self.state is not SessionState.ENDED:
            self.state = SessionState.ENDED
            self.ended = error
            self._timers.clear_all()
            self._events.append(SessionEnded(error))


_UNNUMBERED: Final[dict[type, Callable[[Session, SessionPath, Any, float], None]]] = {
    frames.Hello: Session._on_hello,
    frames.Gone: Session._on_gone,
    frames.Ack: lambda session, path, frame, now: session._acknowledged(frame.next_expected, now),
    frames.Credit: lambda session, path, frame, now: session.outbox.raise_credit(frame.priority, frame.limit),
    frames.StreamCredit: lambda session, path, frame, now: session.streams.credit_raised(frame),
    frames.MaxStreams: lambda session, path, frame, now: session.streams.max_streams_raised(frame),
    frames.SignatureDelay: lambda session, path, frame, now: session.outbox.ask_delay(frame.milliseconds / 1000),
    frames.Ping: Session._on_ping,
    frames.Pong: lambda session, path, frame, now: session._paths.answered(path, frame.token, now),
    frames.PathClose: Session._on_path_close,
    frames.Datagram: Session._on_datagram,
    frames.PathService: Session._on_path_service,
}
_FIRST: Final = (frames.Hello, frames.Gone)
_NO_HELLO: Final = "the first frame on a path is not HELLO"
