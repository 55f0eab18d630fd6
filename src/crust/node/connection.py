"""A connection to a peer: the asyncio front of a session, over whatever paths there are (`crust.node.driver`)."""

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
)
from crust.net.clock import monotonic
from crust.node.driver import WRITE_AT_ONCE, SessionDriver
from crust.node.message import Message
from crust.node.stream import Stream
from crust.proto.session.engine import Session, SessionState
from crust.proto.session.events import (
    Ponged,
)
from crust.proto.session.streams import StreamState
from crust.types import Path, Priority, Report
from crust.wire.receipt import Receipt

if TYPE_CHECKING:
    from crust.node.owner import ConnectionOwner

__all__ = ["Connection"]

_DATAGRAMS_KEPT: Final = 1024
_PINGS_AT_ONCE: Final = 32


class Connection(SessionDriver):
    """A connection to one peer. Made by `Node.connect` and by iterating over a `Node`, not by hand.

    Attributes:
        peer: the PeerId at the other end, proved by the handshake.
        report: the record of the dial; None on the accepting side.
    """

    __slots__ = (
        "_accepted_streams",
        "_datagrams",
        "_pings",
        "_queue_limit",
        "_senders",
        "_streams",
        "report",
    )

    def __init__(
        self, owner: ConnectionOwner, peer: PeerId, session: Session, queue_limit: int, report: Report | None
    ) -> None:
        super().__init__(owner, peer, session)
        self._queue_limit = queue_limit
        self._senders: dict[int, deque[asyncio.Future[None]]] | None = None
        self._pings: dict[int, asyncio.Future[float]] | None = None
        self._streams: dict[int, Stream] | None = None
        self._accepted_streams: deque[Stream] | None = None
        self._datagrams: deque[bytes] | None = None
        self.report = report

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
        elif outbox.queued_total >= WRITE_AT_ONCE and not self._blocked:
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
        inbox = session.inbox
        while (found := inbox.next_message()) is None:
            self.check_readable()
            await self._wait()
        if inbox.credits_due:
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

    # --- for the driver ------------------------------------------------------------------------------------------

    @property
    def _front(self) -> Connection:
        return self

    def _written(self) -> None:
        if self._senders is not None:
            self._wake_senders(self._queue_limit // 2)
        if self._streams is not None:
            self._wake_writers()

    def _answered(self, event: Ponged) -> None:
        answer = None if self._pings is None else self._pings.get(event.token)
        if answer is not None and not answer.done():
            answer.set_result(event.rtt)

    def _take_datagram(self, data: bytes) -> None:
        if self._datagrams is None:
            self._datagrams = deque(maxlen=_DATAGRAMS_KEPT)
        self._datagrams.append(data)
        self._wake()

    def _streams_changed(self) -> None:
        changed = self.session.streams
        if changed.opened:
            if self._accepted_streams is None:
                self._accepted_streams = deque()
            self._accepted_streams.extend(map(self._add_stream, changed.opened))
            changed.opened.clear()
            self._wake()
        streams = self._streams or {}
        for state in changed.readable:
            stream = streams.get(state.id)
            if stream is not None:
                stream.wake()
        changed.readable.clear()

    def _wake_writers(self) -> None:
        streams = self._streams
        assert streams is not None
        live = self.session.streams.table.by_id
        for stream_id, stream in list(streams.items()):
            if stream.wants_room:
                stream.wake()
            elif stream_id not in live:
                del streams[stream_id]  # both halves are over; who holds the object can still read from it

    def _give_up_waiting(self, error: CrustError) -> None:
        self._wake_senders(0)
        for stream in (self._streams or {}).values():
            stream.wake()
        for answer in (self._pings or {}).values():
            if not answer.done():
                answer.set_exception(error)
