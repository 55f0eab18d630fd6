"""Attempts over TCP: from a connect, made or accepted, to a path that has proved the peer's key."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from crust.crypto.keys import PeerId
from crust.net.clock import monotonic
from crust.net.tcp import TcpStream, connect_tcp, dial_tcp
from crust.node.attempt import SILENCE, DialledPath, path_kind
from crust.node.busy_poll import HANDSHAKE_SECONDS
from crust.node.connection import Connection
from crust.node.core import Core
from crust.proto.noise.crossing import Crossed, CrossingHandshake
from crust.proto.noise.handshake import HandshakeFailed, HandshakeResult, InitiatorHandshake
from crust.types import Attempt, Candidate, PathKind

__all__ = ["TcpAttempts", "is_taken"]

_TAKEN: Final = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)

Local = tuple[str, int]
TakeOver = Callable[[TcpStream, Crossed, PathKind], asyncio.Future[None]]


class _TcpDialled(DialledPath):
    """A TCP connection after its handshake."""

    def __init__(self, stream: TcpStream, result: HandshakeResult, candidate: Candidate, rtt: float) -> None:
        super().__init__(result, candidate, rtt)
        self._stream = stream
        self._keys = result

    def _attach(self, core: Core, connection: Connection, at_ms: float) -> None:
        kind = path_kind(self.candidate)
        core.add_path(connection, self._stream, core.codec(self._keys), kind=kind, rtt=self.rtt, at_ms=at_ms)
        connection.pump()
        self._stream.replay()

    def _abort(self) -> None:
        self._stream.reset()


class _Outbound:
    """A dialled TCP stream during its handshake."""

    __slots__ = ("_handshake", "_watch", "future", "opened_at", "stream")

    def __init__(self, core: Core, handshake: InitiatorHandshake | CrossingHandshake) -> None:
        self._handshake = handshake
        self._watch = core.handshake_watch
        self.future: asyncio.Future[HandshakeResult | Crossed] = core.loop.create_future()
        self.opened_at = 0.0
        self.stream = TcpStream(core.buffer)
        self.stream.consumer = self

    def stream_opened(self) -> None:
        """Message 1 goes out with the first segment that can carry data."""
        self.opened_at = monotonic()
        self.stream.write(self._handshake.data_to_send())
        self._watch.sent(self.opened_at, HANDSHAKE_SECONDS)

    def stream_received(self, data: memoryview) -> int:
        """Message 2, or something else."""
        if self.future.done():
            return 0  # kept for the path
        self._watch.received(monotonic())
        try:
            result = self._receive(bytes(data))
        except HandshakeFailed as failure:
            self._fail(failure)
            return len(data)
        if result is None:
            return len(data)
        self.future.set_result(result)
        return len(data) - len(result.rest) if isinstance(result, HandshakeResult) else len(data)

    def _receive(self, data: bytes) -> HandshakeResult | Crossed | None:
        handshake = self._handshake
        if isinstance(handshake, CrossingHandshake):
            return handshake.receive_data(data, monotonic())
        return handshake.receive_data(data)

    def stream_ended(self) -> None:
        """The peer hung up."""
        self._fail(self._handshake.receive_eof())

    def stream_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._fail(error or self._handshake.receive_eof())

    def stream_writable(self) -> None:
        """Nothing waits for this."""

    def _fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen, even if the attempt was given up meanwhile


class TcpAttempts:
    """Attempts over TCP.

    Args:
        core: the node's centre.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def dial(self, peer: PeerId, candidate: Candidate, attempt: Attempt, local: Local | None) -> DialledPath:
        """Connect, and shake hands as the initiator.

        Args:
            peer: whom to reach.
            candidate: where.
            attempt: gets a word about what is seen.
            local: from which address and port; None for any.

        Raises:
            OSError: no connection.
            HandshakeFailed: what answers refuses, or is not the peer. Cancellation closes the socket.
        """
        core = self._core
        handshake = InitiatorHandshake(core.identity, peer, core.network, core.hello, random=core.random)
        outbound = _Outbound(core, handshake)
        try:
            await dial_tcp(outbound.stream, candidate.host, candidate.port, local)
        except OSError as error:
            if local is None or not is_taken(error):
                raise
            # An older connection still holds this pair of addresses: better from another port than not at all.
            return await self.dial(peer, candidate, attempt, None)
        attempt.detail = SILENCE
        result = await self._outcome(outbound)
        assert isinstance(result, HandshakeResult)
        return _TcpDialled(outbound.stream, result, candidate, monotonic() - outbound.opened_at)

    async def punch(
        self,
        peer: PeerId,
        candidate: Candidate,
        local: Local | None,
        patience: float,
        connected: Callable[[], None],
        take_over: TakeOver,
    ) -> DialledPath:
        """One attempt to connect while the peer connects to us.

        Both may find themselves connected to the other by one and the same connection, and both begin.

        Args:
            peer: whom to reach.
            candidate: where.
            local: from which address and port; None for any.
            patience: seconds for the connect.
            connected: called when it is done, and the handshake begins.
            take_over: makes the connection one that the peer has begun.

        Raises:
            OSError: no connection, or it has ended.
            HandshakeFailed: what answers refuses, or is not the peer. Cancellation closes the socket.
        """
        core = self._core
        sock = await connect_tcp(candidate.host, candidate.port, local, patience)
        connected()
        handshake = CrossingHandshake(core.identity, peer, core.network, core.hello, random=core.random, seen=core.seen)
        outbound = _Outbound(core, handshake)
        await self._adopt(outbound.stream, sock)
        result = await self._outcome(outbound)
        if isinstance(result, HandshakeResult):
            return _TcpDialled(outbound.stream, result, candidate, monotonic() - outbound.opened_at)
        # The peer goes on: a path comes of it as if we had accepted it, and that ends this dial.
        await asyncio.shield(take_over(outbound.stream, result, path_kind(candidate)))
        raise ConnectionResetError(errno.ECONNRESET, "the peer gave the connection up")

    async def _adopt(self, stream: TcpStream, sock: socket.socket) -> None:
        try:
            await self._core.loop.create_connection(lambda: stream, sock=sock)
        except BaseException:
            sock.close()
            raise

    @staticmethod
    async def _outcome(outbound: _Outbound) -> HandshakeResult | Crossed:
        try:
            return await outbound.future
        except BaseException:
            outbound.stream.reset()
            outbound.future.cancel()
            raise


def is_taken(error: OSError) -> bool:
    """Whether a connection between this very pair of addresses exists, or existed a moment ago."""
    return error.errno in _TAKEN
