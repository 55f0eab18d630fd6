"""A TCP connection that a peer made, until it is a path."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from crust.errors import RemoteProtocolError
from crust.net.clock import monotonic
from crust.net.tcp import TcpStream
from crust.node.admission import Inbound, Stage
from crust.node.connection import Connection
from crust.node.core import Proven
from crust.node.path import AnyPath
from crust.proto.noise.crossing import Crossed
from crust.proto.noise.handshake import Hint, ResponderHandshake
from crust.proto.record import RecordCodec
from crust.proto.session.outbox import Group
from crust.types import PathKind

if TYPE_CHECKING:
    from crust.node.acceptor import Acceptor

__all__ = ["TcpInbound"]

_SILENCE_LEAST: Final = 0.3  # share of the time-out after which a stranger is closed at the earliest


class TcpInbound(Inbound):
    """One accepted TCP connection until it is a path.

    Args:
        acceptor: who keeps the tables.
        kind: of the path.

    Attributes:
        stream: the connection.
        ended: done when this is a path, or gone; only where we have made the connection.
    """

    def __init__(self, acceptor: Acceptor, kind: PathKind = "direct") -> None:
        super().__init__(acceptor)
        core = acceptor.core
        self._handshake: ResponderHandshake | None = ResponderHandshake(
            core.identity, core.network, random=core.random, seen=core.seen
        )
        self._codec: RecordCodec | None = None
        self._kind = kind
        self.ended: asyncio.Future[None] | None = None
        self.stream = TcpStream(core.buffer, self)

    def take_over(self, stream: TcpStream, crossed: Crossed) -> asyncio.Future[None]:
        """Go on with a connection that we have made, and over which the peer has begun; returns `ended`."""
        ended = self.ended = self._core.loop.create_future()
        self.stream = stream
        stream.consumer = self
        self._handshake = crossed.responder
        if stream.closed:
            self.drop("hung_up")
            return ended
        self._set_deadline(self._core.config.handshake_timeout)
        self._acceptor.add(self)
        self._acceptor.knocked(self, crossed.first.hello)
        stream.replay()
        return ended

    # --- StreamConsumer ------------------------------------------------------------------------------------------

    def stream_opened(self) -> None:
        """Take a place in the table of half-open handshakes."""
        if self._acceptor.closed:  # it was on its way when the node closed
            self.drop(None)
            return
        self._set_deadline(self._core.config.handshake_timeout)
        self._acceptor.add(self)

    def stream_received(self, data: memoryview) -> int:
        """Bytes from a peer that has not proved itself."""
        if self.stage in (Stage.HANDSHAKE, Stage.WAITING):
            self._handshake_received(bytes(data))
        elif self.stage is Stage.PROVING:
            return self._first_records(data)
        elif self.stage is Stage.CONFLICT:
            return 0
        return len(data)

    def stream_ended(self) -> None:
        """The peer closed its half: nothing more can come of this."""
        self.drop("hung_up")

    def stream_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self.drop("hung_up")

    def stream_writable(self) -> None:
        """Nothing waits for this."""

    def _handshake_received(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        first = handshake.receive_data(data, monotonic())
        if handshake.discarding:
            assert handshake.reason is not None
            self._core.stats.count(f"handshake.{handshake.reason.value}")
            if handshake.hint is not None:
                self.stream.write(handshake.hint)
            self._fall_silent()
        elif first is not None:
            self._acceptor.knocked(self, first.hello)

    def _first_records(self, data: memoryview) -> int:
        assert self._codec is not None
        now = monotonic()
        try:
            groups, used = self._codec.receive_data(data, now)
        except RemoteProtocolError:
            self._bad_first_record()
            return len(data)
        if not groups:
            return used
        return used if self._first_groups(groups, now) else len(data)

    # --- Inbound -------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """From where the peer comes."""
        return self.stream.address("peername")

    def _answer(self) -> Proven:
        assert self._handshake is not None
        data, result = self._handshake.accept(self._core.hello)
        self._handshake = None
        self._codec = self._core.codec(result)
        self.stream.write(data)
        return result

    def _send_hint(self, hint: Hint) -> None:
        assert self._handshake is not None
        self.stream.write(self._handshake.refuse(hint))

    def _fall_silent(self) -> None:
        """Read and discard until a random moment, as a service that is busy would."""
        self._forget_incoming()
        self.stage = Stage.SILENT
        self._handshake = None
        limit = self._core.config.handshake_timeout
        # Not a secret: the moment must only not be a constant by which Crust could be recognised.
        self._set_deadline(limit * random.uniform(_SILENCE_LEAST, 1.0))  # noqa: S311
        self._acceptor.add(self)  # who has waited for a decision had left the table

    def _say_last(self, group: Group) -> None:
        assert self._codec is not None
        self.stream.write(self._codec.seal([group], monotonic()))
        self.stream.close()

    def _hold(self, held: bool) -> None:
        if held:
            self.stream.pause_reading()
        else:
            self.stream.resume_reading()

    def _make_path(self, connection: Connection, rtt: float, at_ms: float) -> AnyPath:
        assert self._codec is not None
        kind = self._kind
        if self.ended is None:  # we have not made it ourselves
            port = self.stream.address("sockname")[1]
            kind = self._acceptor.kind_of(connection.peer, "tcp", port, self.stream.address("peername")[0], kind)
        return self._core.add_path(connection, self.stream, self._codec, kind=kind, rtt=rtt, at_ms=at_ms)

    def _abort(self) -> None:
        self.stream.abort()

    def _end(self) -> None:
        super()._end()
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)
        self._handshake = None
