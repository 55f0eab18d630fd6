"""One live TCP path of a connection: records in, records out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crust.errors import RemoteProtocolError
from crust.net.tcp import TcpStream, WriteBuffers
from crust.proto.record import RecordCodec
from crust.proto.session.outbox import Group
from crust.types import Path, PathKind, format_address

if TYPE_CHECKING:
    from crust.node.connection import Connection

__all__ = ["TcpPath"]


class TcpPath:
    """A TCP connection after its handshake; feeds a session and carries its groups.

    Args:
        path_id: unique in this process.
        stream: whose consumer this becomes.
        codec: with the keys of the handshake.
        kind: how the path came up.
        connection: whose path this is.
        buffers: to seal into.
        at_ms: when it came up, since the dial.
    """

    __slots__ = ("_buffers", "_codec", "_connection", "_held", "_stream", "id", "info")

    def __init__(
        self,
        path_id: int,
        stream: TcpStream,
        codec: RecordCodec,
        kind: PathKind,
        connection: Connection,
        buffers: WriteBuffers,
        at_ms: float,
    ) -> None:
        self.id = path_id
        self._stream = stream
        self._codec = codec
        self._connection = connection
        self._buffers = buffers
        self._held: memoryview | None = None  # of which the kernel has not all
        self.info = Path(
            "tcp", kind, format_address(*stream.address("sockname")), format_address(*stream.address("peername")), at_ms
        )
        stream.consumer = self

    # --- StreamConsumer ------------------------------------------------------------------------------------------

    def stream_opened(self) -> None:
        """The stream was up before."""

    def stream_received(self, data: memoryview) -> int:
        """Open the records that are whole and hand them to the session."""
        connection = self._connection
        now = connection.now()
        try:
            groups, used = self._codec.receive_data(data, now)
        except RemoteProtocolError as error:
            connection.path_broken(self, error)
            return len(data)
        if self._codec.has_outgoing:
            self._stream.write(self._codec.seal((), now))
        if groups:
            connection.path_received(self, groups, now)
        return used

    def stream_ended(self) -> None:
        """FIN ends the path, not the session (PROTOCOL 7)."""

    def stream_lost(self, error: Exception | None) -> None:
        """The path is over."""
        self._connection.path_lost(self, "reset" if error else "ended")

    def stream_writable(self) -> None:
        """Room for more."""
        if self._held is not None:
            self._buffers.give_back(self._held)
            self._held = None
        self._connection.pump()

    # --- for the connection --------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether the kernel takes more."""
        return self._stream.writable

    def write(self, groups: list[Group], now: float) -> None:
        """Seal and send; only when `writable`."""
        buffer = self._buffers.take(self._codec.sealed_bytes(groups))
        self._stream.write(buffer[: self._codec.seal_into(groups, buffer, now)])
        if self._stream.writable:
            self._buffers.give_back(buffer)
        else:
            self._held = buffer

    def idle(self) -> None:
        """Nothing happens at present: hold as little memory as possible."""
        self._codec.release()

    def close(self) -> None:
        """Close after what was written has gone out."""
        self._stream.close()

    def abort(self) -> None:
        """Close at once."""
        self._stream.abort()
