"""Live paths of a connection: groups of records in, groups of records out, over TCP or over µTP."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from crust.errors import RemoteProtocolError
from crust.net.tcp import TcpStream, WriteBuffers
from crust.proto.record import RecordCodec
from crust.proto.session.outbox import GROUP_PAYLOADS, Group
from crust.types import Path, PathKind, format_address

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.udp import UtpLink

__all__ = ["AnyPath", "TcpPath", "UtpPath"]


class AnyPath(Protocol):
    """What a connection asks of its paths.

    Attributes:
        id: unique in this process.
        info: for users.
        largest_burst: payload records that are worth writing together while the path is fast.
    """

    id: int
    info: Path
    largest_burst: int

    @property
    def writable(self) -> bool:
        """Whether it takes more."""

    def write(self, groups: list[Group], now: float) -> None:
        """Send; only when `writable`."""

    def idle(self) -> None:
        """Nothing happens at present: hold as little memory as possible."""

    def close(self) -> None:
        """Close after what was written has gone out."""

    def abort(self) -> None:
        """Close at once."""


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

    largest_burst = GROUP_PAYLOADS

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
        try:
            size = self._codec.seal_into(groups, buffer, now)
        except RemoteProtocolError as error:
            # Our key is used up, and the peer did not renew it.
            self._buffers.give_back(buffer)
            self._connection.path_broken(self, error)
            return
        self._stream.write(buffer[:size])
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


class UtpPath:
    """A µTP connection inside the tunnel; feeds a session and carries its groups.

    Args:
        path_id: unique in this process.
        link: whose consumer this becomes.
        kind: how the path came up.
        connection: whose path this is.
        at_ms: when it came up, since the dial.
    """

    __slots__ = ("_connection", "_link", "id", "info")

    largest_burst = 2 * GROUP_PAYLOADS  # what a write costs beside sealing is more than over TCP

    def __init__(self, path_id: int, link: UtpLink, kind: PathKind, connection: Connection, at_ms: float) -> None:
        self.id = path_id
        self._link = link
        self._connection = connection
        self.info = Path("utp", kind, format_address(*link.local), format_address(*link.remote), at_ms)
        link.consumer = self

    # --- LinkConsumer --------------------------------------------------------------------------------------------

    def link_received(self, groups: list[tuple[bytes, list[bytes]]], now: float) -> None:
        """Hand what came to the session."""
        self._connection.path_received(self, groups, now)

    def link_broken(self, error: RemoteProtocolError) -> None:
        """The peer wrote something that is no record."""
        self._connection.path_broken(self, error)

    def link_lost(self, reason: str) -> None:
        """The path is over."""
        self._connection.path_lost(self, reason)

    def link_writable(self) -> None:
        """Room for more."""
        self._connection.pump()

    def link_moved(self) -> None:
        """The peer has another address."""
        self.info = replace(
            self.info, local=format_address(*self._link.local), remote=format_address(*self._link.remote)
        )
        self._connection.path_moved(self)

    # --- for the connection --------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether µTP takes more."""
        return self._link.writable

    def write(self, groups: list[Group], now: float) -> None:
        """Send; only when `writable`."""
        self._link.write(groups, now)

    def idle(self) -> None:
        """Nothing happens at present: hold as little memory as possible."""
        self._link.idle()

    def close(self) -> None:
        """Close after what was written has arrived."""
        self._link.close()

    def abort(self) -> None:
        """Close at once."""
        self._link.abort()
