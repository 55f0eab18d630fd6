"""Streams on top of the numbered frames: the verbs of the application and the frames of the peer."""

from __future__ import annotations

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.session.inbox import append_joined
from crust.proto.session.outbox import GroupBuilder, Outbox
from crust.proto.session.streams import Half, HalfInput, StreamState, StreamTable
from crust.wire import frames

__all__ = ["StreamMultiplexer"]


class StreamMultiplexer:
    """Opens, reads, writes and ends the streams of a session.

    Args:
        table: the streams.
        outbox: where frames are queued.

    Attributes:
        readable: streams at which something has changed since the front end looked; it clears them.
        opened: streams that the peer has opened since then; the front end takes them.
    """

    __slots__ = ("_credits", "_outbox", "opened", "readable", "table")

    def __init__(self, table: StreamTable, outbox: Outbox) -> None:
        self.table = table
        self._outbox = outbox
        # Dictionaries as sets: empty ones take a quarter of the memory.
        self._credits: dict[StreamState, None] = {}
        self.readable: dict[StreamState, None] = {}
        self.opened: list[StreamState] = []

    # --- verbs ---------------------------------------------------------------------------------------------------

    def open(self, name: str, priority: int) -> StreamState:
        """A new stream; the peer learns of it at the next write.

        Raises:
            LocalProtocolError: a name over 255 bytes, or the peer takes no more streams at present.
        """
        encoded = name.encode()
        if len(encoded) > 255:
            raise LocalProtocolError("a stream's name has at most 255 bytes")
        if not self.table.may_open:
            raise LocalProtocolError("as many streams are open as the peer takes")
        stream = self.table.open_local(name, priority)
        # Before all data: openings keep the order of their numbers, whatever the priorities.
        self._outbox.queue_control(lambda n: frames.serialize_stream_open(n, stream.id, stream.priority, encoded))
        return stream

    def write(self, stream: StreamState, data: memoryview) -> None:
        """Queue bytes of a stream.

        Raises:
            LocalProtocolError: its writing half is over.
        """
        if stream.sending is not Half.OPEN:
            raise LocalProtocolError(f"stream {stream.name!r}: writing has {stream.sending.value} already")
        if data:
            stream.pending.append(data)
            stream.pending_bytes += len(data)
            self._outbox.queue_stream(stream)

    def end(self, stream: StreamState) -> None:
        """Send FIN after what is queued."""
        stream.change_sending(HalfInput.FIN)
        self._outbox.queue_stream(stream)

    def reset(self, stream: StreamState, code: int = 0) -> None:
        """Give the writing half up; what is queued is dropped."""
        if not stream.end_sent:
            stream.sending = Half.RESET
            stream.drop_pending()
            stream.reset_code = code
            self._outbox.queue_stream(stream)

    def stop(self, stream: StreamState, code: int = 0) -> None:
        """Tell the peer that we will not read on."""
        if stream.receiving is Half.OPEN and not stream.remote_end:
            stream.change_receiving(HalfInput.STOP)
            stream.stop_code = code
            self._outbox.queue_stream(stream)
        unread = stream.ready_bytes
        stream.chunks.clear()
        stream.ready_bytes = 0
        self.consume(stream, unread)

    def consume(self, stream: StreamState, size: int) -> bool:
        """The application took `size` bytes; returns whether there is credit to be told to the peer."""
        stream.consumed += size
        self.table.forget_if_finished(stream)
        window = self.table.window
        if stream.remote_end or stream.consumed + window - stream.granted < window >> 2:
            return self.table.grant_due
        stream.granted = stream.consumed + window
        self._credits[stream] = None
        return True

    # --- credit --------------------------------------------------------------------------------------------------

    def write_credits(self, group: GroupBuilder) -> None:
        """Put the credit that is due into a group, as far as there is room."""
        if self.table.grant_due:
            group.add(frames.serialize_max_streams(self.table.grant()))
        while self._credits and group.room > frames.INLINE_LIMIT:
            stream, _ = self._credits.popitem()
            group.add(frames.serialize_stream_credit(stream.id, stream.granted))

    def repeat_credits(self) -> None:
        """Tell a new active path all credit that was raised since the session's start."""
        self.table.grant_due = self.table.told > self.table.most
        self._credits.update((s, None) for s in self.table.by_id.values() if s.granted != self.table.window)

    def credit_raised(self, frame: frames.StreamCredit) -> None:
        """The peer reads on."""
        stream = self.table.find_remote(frame.stream)
        if stream is not None and frame.limit > stream.credit:
            stream.credit = frame.limit
            self._outbox.queue_stream(stream)

    def max_streams_raised(self, frame: frames.MaxStreams) -> None:
        """The peer takes more streams; a lower number than before is an old one."""
        self.table.allowed = max(self.table.allowed, frame.limit)

    def learn_window(self, window: int) -> None:
        """The peer's HELLO told the window of its streams."""
        for stream in self.table.learn_window(window):
            self._outbox.queue_stream(stream)

    # --- the peer's frames ---------------------------------------------------------------------------------------

    def opened_by_peer(self, frame: frames.StreamOpen) -> None:
        """The peer opens a stream."""
        self.opened.append(self.table.open_remote(frame.stream, frame.name, frame.priority))

    def priority_of(self, stream_id: int) -> int:
        """The priority of a stream that the peer writes to.

        Raises:
            RemoteProtocolError: it writes to a stream that is over, or never was.
        """
        stream = self.table.find_remote(stream_id)
        if stream is None:
            raise RemoteProtocolError(f"stream {stream_id}: data after its end")
        return stream.priority

    def received(self, frame: frames.StreamData) -> None:
        """The next bytes of a stream."""
        stream = self.table.find_remote(frame.stream)
        if stream is None or stream.remote_end or stream.receiving not in (Half.OPEN, Half.STOPPED):
            raise RemoteProtocolError(f"stream {frame.stream}: data after its end")
        stream.received += len(frame.data)
        if stream.received > stream.granted:
            raise RemoteProtocolError(f"stream {stream.id}: more than its credit")
        if stream.receiving is Half.STOPPED:
            self.consume(stream, len(frame.data))
            return
        append_joined(stream.chunks, frame.data)
        stream.ready_bytes += len(frame.data)
        self.readable[stream] = None

    def ended_by_peer(self, stream_id: int, given: HalfInput) -> None:
        """The peer has written all of a stream, or gives it up."""
        stream = self.table.find_remote(stream_id)
        if stream is None:
            return
        if stream.remote_end and given is HalfInput.FIN:
            raise RemoteProtocolError(f"stream {stream_id}: two ends")
        stream.change_receiving(given)
        stream.remote_end = True
        if given is HalfInput.RESET:
            stream.chunks.clear()
            stream.ready_bytes = 0
        self.readable[stream] = None
        self.table.forget_if_finished(stream)

    def stopped_by_peer(self, frame: frames.StreamStop) -> None:
        """The peer will not read on; the writer answers with its own end, so that both can forget the stream."""
        stream = self.table.find_remote(frame.stream)
        if stream is None or stream.end_sent:
            return
        stream.drop_pending()
        stream.sending = Half.STOPPED
        stream.reset_code = frame.code
        self._outbox.queue_stream(stream)
        self.readable[stream] = None

    def all_changed(self) -> None:
        """The session ends: every stream is worth a look."""
        self.readable.update(dict.fromkeys(self.table.by_id.values()))
