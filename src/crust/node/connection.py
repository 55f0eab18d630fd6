"""A connection to a peer: the asyncio front of a session, over whatever paths there are.

`Connection.pump` is the one place that drains the engine: it writes what the session has to say, hands out its
events, and arms one timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from crust.crypto.keys import PeerId
from crust.errors import (
    ConnectionClosed,
    CrustError,
    MessageTooLarge,
    PeerLost,
    ReceiptUnavailable,
    RemoteProtocolError,
)
from crust.net.clock import monotonic
from crust.node.message import Message
from crust.node.path import AnyPath
from crust.node.stream import Stream
from crust.proto.session.engine import Session, SessionState
from crust.proto.session.events import (
    DatagramReceived,
    PathDead,
    PathStalled,
    Ponged,
    ServiceReceived,
    SessionEnded,
)
from crust.proto.session.streams import StreamState
from crust.types import Candidate, Path, Priority, Report, Transport, split_address
from crust.wire.receipt import Receipt
from crust.wire.service import ServiceMessage, serialize_service_message

if TYPE_CHECKING:
    from crust.node.owner import ConnectionOwner

__all__ = ["Connection"]

_PUMP_BYTES: Final = 1024 * 1024
"""Written in one go before others get a turn of the event loop."""

_WRITE_AT_ONCE: Final = 256 * 1024
"""Queued bytes that are worth a write before the end of the loop's turn."""

_DATAGRAMS_KEPT: Final = 1024
_PINGS_AT_ONCE: Final = 32
_PATHS_KEPT: Final = 64


class Connection:
    """A connection to one peer. Made by `Node.connect` and by iterating over a `Node`, not by hand.

    Attributes:
        peer: the PeerId at the other end, proved by the handshake.
        report: the record of the dial; None on the accepting side.
    """

    __slots__ = (
        "__weakref__",
        "_accepted_streams",
        "_blocked",
        "_datagrams",
        "_ended",
        "_history",
        "_loop",
        "_owner",
        "_paths",
        "_pings",
        "_pump_due",
        "_queue_limit",
        "_senders",
        "_shown_path",
        "_streams",
        "_timer",
        "_timer_at",
        "_waiters",
        "peer",
        "report",
        "session",
    )

    def __init__(
        self, owner: ConnectionOwner, peer: PeerId, session: Session, queue_limit: int, report: Report | None
    ) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._queue_limit = queue_limit
        self._paths: dict[int, AnyPath] = {}
        self._history: list[Path] = []
        self._shown_path: int | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._pump_due = False
        self._blocked = False  # kernel or peer take no more at present, so that `send` need not try
        self._senders: dict[int, deque[asyncio.Future[None]]] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._pings: dict[int, asyncio.Future[float]] | None = None
        self._streams: dict[int, Stream] | None = None
        self._accepted_streams: deque[Stream] | None = None
        self._datagrams: deque[bytes] | None = None
        self._ended = False
        self.peer = peer
        self.report = report
        self.session = session

    def __repr__(self) -> str:
        state = self.path if self.session.ended is None else self.session.ended
        return f"<Connection {str(self.peer)[:14]}… {state}>"

    # --- messages ------------------------------------------------------------------------------------------------

    async def send(
        self,
        data: bytes | bytearray | memoryview,
        *,
        priority: Priority = Priority.NORMAL,
        expires_in: float | None = None,
    ) -> None:
        """Queue a message for the peer; waits while too much of that priority is queued.

        A message that was queued is delivered once, in order within its priority, also when the connection changes its
        path meanwhile. Returning says nothing about delivery: `flush` does.

        Args:
            data: any number of bytes up to `Config.max_message_bytes`; an empty message is a message.
            priority: more urgent messages overtake less urgent ones, also in the midst of a large one.
            expires_in: seconds after which a message that was not yet written is dropped instead; also one that
                still waits here, and then this returns.

        Raises:
            MessageTooLarge: over this node's or the peer's limit; nothing was sent.
            ConnectionClosed: either side has closed the connection.
            PeerLost: the peer is gone.
            CancelledError: while waiting; the message was not queued.
        """
        if type(data) is not bytes:
            data = bytes(memoryview(data))  # bytes(5) would be five zeros
        session = self.session
        if session.state is not SessionState.OPEN:
            session.check_open()
        outbox = session.outbox
        if type(priority) is not Priority:
            priority = Priority(priority)
        if len(data) > session.max_message_bytes:
            raise MessageTooLarge(f"a message of {len(data)} bytes; at most {session.max_message_bytes} are taken")
        deadline = None if expires_in is None else monotonic() + expires_in
        full = outbox.queued_bytes[priority] >= self._queue_limit or self._senders is not None
        if full and not await self._wait_for_room(priority, expires_in):
            outbox.expired += 1
            return
        if deadline is None:
            outbox.queue_message(data, priority, None)
        else:
            session.send(data, priority, deadline)
        if self._senders is not None:
            self._wake_senders(self._queue_limit - 1)
        # The first message of a loop's turn goes out at once, those behind it together.
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump_soon)
            self.pump()
        elif outbox.queued_total >= _WRITE_AT_ONCE and not self._blocked:
            self.pump()

    async def _wait_for_room(self, priority: int, seconds: float | None) -> bool:
        """Wait for our turn to queue a message; False when there was none in so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._wait_for_turn(priority)
        except TimeoutError:
            return False
        return True

    async def _wait_for_turn(self, priority: int) -> None:
        if self._senders is None:
            self._senders = {}
        queue = self._senders.setdefault(priority, deque())
        if not queue and self.session.outbox.queued_bytes[priority] < self._queue_limit:
            return  # others wait, but not in this priority
        # Who came first sends first: each stays at its place until it goes on, and newcomers stand behind it.
        waiter: asyncio.Future[None] = self._loop.create_future()
        queue.append(waiter)
        try:
            await waiter
            self.session.check_open()
        except BaseException:
            queue.remove(waiter)
            self._wake_senders(self._queue_limit - 1)  # pass the turn on
            raise
        queue.popleft()

    def _wake_senders(self, most: int) -> None:
        """Let the first waiting sender go on in each priority that has at most so many bytes queued.

        When it has queued its message, it wakes the next.
        """
        senders = self._senders
        if senders is None:
            return
        queued = self.session.outbox.queued_bytes
        closing = self.session.state is not SessionState.OPEN
        for priority in list(senders):
            queue = senders[priority]
            if not queue:
                del senders[priority]
            elif (queued[priority] <= most or closing) and not queue[0].done():
                queue[0].set_result(None)
        if not senders:
            self._senders = None

    async def receive(self) -> Message:
        """The next message: the oldest of the most urgent priority that has one.

        Raises:
            ConnectionClosed: the connection was closed and everything was received.
            PeerLost: the peer is gone and everything was received.
            CancelledError: nothing is lost.
        """
        session = self.session
        while (found := session.next_message()) is None:
            self.check_readable()
            await self._wait()
        if session.inbox.credits_due:
            self._schedule_pump()
        data, priority, mark = found
        return Message(data, priority, self, mark)

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> Message:
        """The next message; ends quietly after an orderly close."""
        try:
            return await self.receive()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    async def flush(self) -> None:
        """Wait until the peer holds all that was sent before this call.

        Raises:
            ConnectionClosed, PeerLost: the end came first; what was not acknowledged is "unknown, perhaps delivered".
            CancelledError: nothing is lost.
        """
        mark = self.session.flush_mark()
        self._schedule_pump()
        while not self.session.flushed(mark):
            if self.session.ended is not None:
                raise self.session.ended
            await self._wait()

    def send_datagram(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes that may be lost or overtaken: encrypted, not signed, at most 1,200 bytes. Never waits.

        Raises:
            LocalProtocolError: too long.
            ConnectionClosed, PeerLost: the connection has ended.
        """
        self.session.check_open()
        self.session.send_datagram(bytes(memoryview(data)))
        self._schedule_pump()

    async def receive_datagram(self) -> bytes:
        """The next datagram; the oldest are dropped when more than 1,024 wait.

        Raises:
            ConnectionClosed, PeerLost: the connection has ended. Cancellation loses nothing.
        """
        if self._datagrams is None:
            self._datagrams = deque(maxlen=_DATAGRAMS_KEPT)
        while not self._datagrams:
            self.check_readable()
            await self._wait()
        return self._datagrams.popleft()

    async def ping(self) -> float:
        """Ask the peer for an echo.

        Returns:
            The round-trip time in seconds.

        Raises:
            ConnectionClosed, PeerLost: the connection has ended. Cancellation loses nothing.
        """
        if self.session.ended is not None:
            raise self.session.ended
        if self._pings is None:
            self._pings = {}
        while len(self._pings) >= _PINGS_AT_ONCE:  # more than these the peer need not answer
            await asyncio.wait(list(self._pings.values()), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)
            if self.session.ended is not None:
                raise self.session.ended
        token = self.session.ping(monotonic())
        answer: asyncio.Future[float] = self._loop.create_future()
        self._pings[token] = answer
        self.pump()
        try:
            return await answer
        finally:
            self._pings.pop(token, None)
            self.session.forget_ping(token)

    async def receipt(self, mark: Any) -> Receipt:
        """For `Message.receipt`."""
        if mark is None:
            raise ReceiptUnavailable("signing is off on this connection: there are no receipts")
        segment, number = mark
        while (receipt := segment.receipt(number)) is None:
            if self.session.ended is not None:
                raise ReceiptUnavailable(
                    "the connection was lost before the message was signed"
                ) from self.session.ended
            await self._wait()
        assert isinstance(receipt, Receipt)
        return receipt

    # --- streams -------------------------------------------------------------------------------------------------

    async def open_stream(self, name: str = "", *, priority: Priority = Priority.NORMAL) -> Stream:
        """Open a stream; the peer finds it in `streams()`. Waits while as many are open as the peer takes.

        Args:
            name: up to 255 bytes of UTF-8, for the peer to know what it is for.
            priority: among the connection's messages and streams.

        Raises:
            LocalProtocolError: the name is too long.
            ConnectionClosed, PeerLost: the connection has ended.
            CancelledError: while waiting; no stream was opened.
        """
        self.session.check_open()
        while not self.session.streams.table.may_open:
            await self._wait()
            self.session.check_open()
        stream = self._add_stream(self.session.streams.open(name, Priority(priority)))
        self._schedule_pump()
        return stream

    async def streams(self) -> AsyncIterator[Stream]:
        """The streams that the peer opens, as they come; ends quietly after an orderly close.

        Raises:
            PeerLost: the peer is gone. Cancellation loses nothing.
        """
        if self._accepted_streams is None:
            self._accepted_streams = deque()
        while True:
            while self._accepted_streams:
                yield self._accepted_streams.popleft()
            try:
                self.check_readable()
            except ConnectionClosed:
                return
            await self._wait()

    def _add_stream(self, state: StreamState) -> Stream:
        if self._streams is None:
            self._streams = {}
        stream = self._streams[state.id] = Stream(self, state)
        return stream

    def write_stream(self, state: StreamState, data: memoryview) -> None:
        """For `Stream`."""
        self.check_writable()
        self.session.streams.write(state, data)
        self._schedule_pump()

    def end_stream(self, state: StreamState) -> None:
        """For `Stream`."""
        self.session.streams.end(state)
        self._schedule_pump()

    def stop_stream(self, state: StreamState) -> None:
        """For `Stream`."""
        self.session.streams.stop(state)
        self._schedule_pump()

    def reset_stream(self, state: StreamState) -> None:
        """For `Stream`."""
        self.session.streams.reset(state)
        self.session.streams.stop(state)
        self._schedule_pump()

    def stream_consumed(self, state: StreamState, size: int) -> None:
        """For `Stream`."""
        if self.session.streams.consume(state, size):
            self._schedule_pump()

    # --- state ---------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The path that carries our data at present; None while the peer is out of reach."""
        active = self.session.active_path
        return None if active is None or active not in self._paths else self._paths[active].info

    @property
    def paths(self) -> list[Path]:
        """Every path that this connection has held, in order."""
        return list(self._history)

    @property
    def signed(self) -> bool:
        """Whether what both sides send is signed (`Config.signing`), so that messages have receipts."""
        return self.session.outbox.signer is not None

    @property
    def stats(self) -> dict[str, int | float]:
        """Counters: messages, queued, unacknowledged and unread bytes, and the round-trip time in milliseconds."""
        session = self.session
        active = session.active_path
        return {
            "messages_sent": session.outbox.messages_sent,
            "messages_received": session.inbox.messages_received,
            "messages_expired": session.outbox.expired,
            "queued_bytes": session.outbox.queued_total,
            "unacknowledged_bytes": session.outbox.retained_bytes,
            "unread_bytes": session.inbox.ready_bytes,
            "rtt_ms": 0.0 if active is None else session.path_rtt(active) * 1000,
            "paths": len(self._paths),
        }

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self.session.ended is not None

    def check_readable(self) -> None:
        """Raise when nothing more will come."""
        session = self.session
        if session.ended is not None:
            raise session.ended
        if session.remote_closed:
            raise ConnectionClosed("the peer has closed the connection")

    def check_writable(self) -> None:
        """Raise when nothing more can be sent."""
        self.session.check_open()

    async def close(self) -> None:
        """Deliver what was sent, then close. Returns when both sides know, or after `Config.close_timeout`.

        Cancellation: closing goes on in the background.
        """
        self.session.close(monotonic())
        self.pump()
        while self.session.ended is None:
            await self._wait()

    async def wait_ended(self) -> CrustError:
        """Wait for the end of the connection, and tell its cause. Cancellation loses nothing."""
        while self.session.ended is None:
            await self._wait()
        return self.session.ended

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def abort(self, error: CrustError | None = None) -> None:
        """End at once, telling nobody."""
        self.session.abort(error or PeerLost(self.peer, "the connection was aborted"))
        self.pump()

    # --- between the nodes ---------------------------------------------------------------------------------------

    def send_service(self, message: ServiceMessage, path_id: int | None = None) -> None:
        """Tell the peer's node something; over a path, where it concerns only that."""
        if self.session.ended is None:
            self.session.send_service(serialize_service_message(message), path_id)
            self._schedule_pump()

    def path_source(self, path_id: int) -> Candidate | None:
        """From where the peer comes on a path; None for a relayed path, and when it is gone."""
        path = self._paths.get(path_id)
        if path is None or path.info.kind == "relayed":
            return None
        host, port = split_address(path.info.remote)
        return Candidate(path.info.transport, host, port, "peer-reflexive")

    def path_local(self, path_id: int) -> tuple[str, int] | None:
        """Our host and port on a path; None when it is gone."""
        path = self._paths.get(path_id)
        return None if path is None else split_address(path.info.local)

    def path_local_port(self, path_id: int) -> int:
        """Our port on a path; 0 when it is gone."""
        path = self._paths.get(path_id)
        return 0 if path is None else split_address(path.info.local)[1]

    def sources(self) -> list[Candidate]:
        """From where the peer comes, on each path whose keys it has proved to hold."""
        found = [self.path_source(path_id) for path_id in self._paths if self.session.confirmed(path_id)]
        return [candidate for candidate in found if candidate is not None]

    # --- the pump ------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Monotonic seconds of the event loop."""
        return monotonic()

    def _schedule_pump(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump_soon)

    def _pump_soon(self) -> None:
        self._pump_due = False
        self.pump()

    def pump(self) -> None:
        """Write what the session has to say, hand out its events, arm the timer."""
        now = monotonic()
        session = self.session
        for path in tuple(self._paths.values()):
            self._write(path, now)
        while (event := session.next_event()) is not None:
            self._handle(event, now)
        if self._senders is not None:
            self._wake_senders(self._queue_limit // 2)
        if self._streams is not None:
            self._wake_writers()
        self._arm()

    def _write(self, path: AnyPath, now: float) -> None:
        session = self.session
        written = 0
        while path.writable:
            group = session.next_group(path.id, now)
            if group is None:
                break
            path.write([group], now)
            if not session.more:
                break
            written += len(group[0])
            for payload in group[1]:
                written += len(payload)
            if written >= _PUMP_BYTES:
                self._schedule_pump()
                break
        self._blocked = not path.writable or session.outbox.queued_total >= _WRITE_AT_ONCE

    def _arm(self) -> None:
        due = self.session.next_timeout()
        if self._timer is not None:
            # A deadline that moved back is looked at when the timer fires: cheaper than a new timer for each record.
            if due is not None and due >= self._timer_at - 0.0005:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_at = due
            self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = monotonic()
        for path in self._paths.values():
            path.idle()
        self.session.handle_timeout(now)
        self.pump()

    def _handle(self, event: Any, now: float) -> None:
        kind = type(event)
        if kind is Ponged:
            answer = None if self._pings is None else self._pings.get(event.token)
            if answer is not None and not answer.done():
                answer.set_result(event.rtt)
        elif kind is DatagramReceived:
            if self._datagrams is None:
                self._datagrams = deque(maxlen=_DATAGRAMS_KEPT)
            self._datagrams.append(event.data)
            self._wake()
        elif kind is ServiceReceived:
            self._owner.service_received(self, event.body, event.path_id)
        elif kind is PathStalled:
            self._owner.path_stalled(self)
        elif kind is PathDead:
            self._drop_path(event.path_id, event.reason, now)
        elif kind is SessionEnded:
            self._finish(event.error)

    # --- paths ---------------------------------------------------------------------------------------------------

    def add_path(self, path: AnyPath, *, rank: int, rtt: float) -> None:
        """Take over a path whose handshake is done."""
        now = monotonic()
        self._paths[path.id] = path
        self._history.append(path.info)
        del self._history[:-_PATHS_KEPT]
        self.session.attach(path.id, rank=rank, now=now, rtt=rtt)
        self._note_path("up")
        self._owner.path_up(self, path.id)

    def path_received(self, path: AnyPath, groups: list[tuple[bytes, list[bytes]]], now: float) -> None:
        """Groups that came over a path."""
        session = self.session
        try:
            for control, payloads in groups:
                session.receive_group(path.id, control, payloads, now)
        except RemoteProtocolError as error:
            self._owner.misbehaved(self, error)
        if self._waiters:
            self._wake()
        if session.streams.opened:
            self._take_opened()
        if session.streams.readable:
            self._wake_readers(session.streams.readable)
        self._note_path("answered")
        if len(self._paths) > 1:
            self._owner.path_answered(self)
        self._schedule_pump()

    def _take_opened(self) -> None:
        if self._accepted_streams is None:
            self._accepted_streams = deque()
        self._accepted_streams.extend(map(self._add_stream, self.session.streams.opened))
        self.session.streams.opened.clear()
        self._wake()

    def path_broken(self, path: AnyPath, error: RemoteProtocolError) -> None:
        """Bytes that are no records: the path ends, as an injected byte would do it; the session goes on."""
        self._owner.misbehaved(self, error)
        self._drop_path(path.id, str(error), monotonic())
        self.pump()

    def path_moved(self, path: AnyPath) -> None:
        """The peer is at another address by now, on the same path."""
        if path.id in self._paths:
            self._history.append(path.info)
            if path.id == self._shown_path:
                self._owner.path_changed(self, path.info, "moved")

    def path_lost(self, path: AnyPath, reason: str) -> None:
        """The path's socket is gone."""
        if path.id in self._paths:
            self._drop_path(path.id, reason, monotonic())
            self.pump()

    def _drop_path(self, path_id: int, reason: str, now: float) -> None:
        path = self._paths.pop(path_id, None)
        if path is None:
            return
        if reason == "surplus":
            path.close()
        else:
            path.abort()
        self.session.detach(path_id, now)
        self._note_path(reason)
        if not self._paths and self.session.ended is None:
            self._owner.path_needed(self)

    def close_surplus(self) -> None:
        """Close every path but the one that carries our data and the best one of the other transport, which stands by.

        The larger PeerId's task (PROTOCOL 12).
        """
        active = self.session.active_path
        if active is None or active not in self._paths or not self.session.confirmed(active):
            return
        kept = {self._paths[active].info.transport: active}
        for path_id in sorted(self._paths, key=self.session.path_rank):
            if kept.setdefault(self._paths[path_id].info.transport, path_id) != path_id:
                self.session.close_path(path_id)
                self._write(self._paths[path_id], monotonic())
                self._drop_path(path_id, "surplus", monotonic())

    def has_transport(self, transport: Transport) -> bool:
        """Whether a live path uses a transport."""
        return any(path.info.transport == transport for path in self._paths.values())

    @property
    def path_count(self) -> int:
        """Live paths."""
        return len(self._paths)

    def _note_path(self, reason: str) -> None:
        active = self.session.active_path
        if active != self._shown_path:
            self._shown_path = active
            if self.session.ended is None:
                self._owner.path_changed(self, self.path, reason)

    # --- waking --------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _wake_readers(self, readable: dict[StreamState, None]) -> None:
        streams = self._streams or {}
        for state in readable:
            stream = streams.get(state.id)
            if stream is not None:
                stream.wake()
        readable.clear()

    def _wake_writers(self) -> None:
        streams = self._streams
        assert streams is not None
        live = self.session.streams.table.by_id
        for stream_id, stream in list(streams.items()):
            if stream.wants_room:
                stream.wake()
            elif stream_id not in live:
                del streams[stream_id]  # both halves are over; who holds the object can still read from it

    def _finish(self, error: CrustError) -> None:
        """The session has ended: everybody who waits gets the same cause."""
        if self._ended:
            return
        self._ended = True
        if isinstance(error, PeerLost):
            error.peer = self.peer
        for path in self._paths.values():
            if isinstance(error, ConnectionClosed):
                path.close()
            else:
                path.abort()
        self._paths.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        self._wake_senders(0)
        for stream in (self._streams or {}).values():
            stream.wake()
        for answer in (self._pings or {}).values():
            if not answer.done():
                answer.set_exception(error)
        self._owner.connection_ended(self, error)
