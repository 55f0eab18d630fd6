"""Attempts over TCP: from a connect, made or accepted, to a path that has proved the peer's key."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import Final

from crust.crypto.keys import PeerId
from crust.net.clock import monotonic
from crust.net.tcp import TcpStream, dial_tcp
from crust.node.attempt import SILENCE, Adopted, DialledPath, Punch, path_kind
from crust.node.connection import Connection
from crust.node.core import Core
from crust.proto.noise.handshake import HandshakeFailed, HandshakeResult, InitiatorHandshake
from crust.types import Attempt, Candidate

__all__ = ["TcpAttempts"]

# PROTOCOL 22: more than 2 TCP attempts only to an address from which the rendezvous sees the peer.
_PUNCH_TRIES: Final = 40
_UNATTESTED_TRIES: Final = 2
_PUNCH_PAUSE: Final = 0.1
_CALLER_BEGINS: Final = 0.4


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
        self._stream.abort()


class _Outbound:
    """A dialled TCP stream during its handshake."""

    __slots__ = ("_handshake", "future", "opened_at", "stream")

    def __init__(self, core: Core, handshake: InitiatorHandshake, stream: TcpStream | None = None) -> None:
        self._handshake = handshake
        self.future: asyncio.Future[HandshakeResult] = core.loop.create_future()
        self.opened_at = 0.0
        self.stream = stream or TcpStream(core.buffer)
        self.stream.consumer = self

    def stream_opened(self) -> None:
        """Message 1 goes out with the first segment that can carry data."""
        self.opened_at = monotonic()
        self.stream.write(self._handshake.data_to_send())

    def stream_received(self, data: memoryview) -> int:
        """Message 2, or something else."""
        if self.future.done():
            return 0  # kept for the path
        try:
            result = self._handshake.receive_data(bytes(data))
        except HandshakeFailed as failure:
            self._fail(failure)
            return len(data)
        if result is None:
            return len(data)
        self.future.set_result(result)
        return len(data) - len(result.rest)

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

    async def dial(self, peer: PeerId, candidate: Candidate, attempt: Attempt, punch: Punch | None) -> DialledPath:
        """Dial one candidate; where a hole is to be punched, again and again, from the port that the peer knows."""
        if punch is None:
            return await self._connect(peer, candidate, attempt, None)
        local = punch.acceptor.local_for(candidate.host)
        tries = _PUNCH_TRIES if candidate.kind == "server-reflexive" else _UNATTESTED_TRIES
        for left in reversed(range(tries)):
            try:
                if punch.caller:
                    return await self._connect(peer, candidate, attempt, local)
                return await self._answer(peer, candidate, attempt, local, punch)
            except OSError:
                # Refused or reset by a NAT that has not seen the other side's packet yet.
                if not left:
                    raise
                await asyncio.sleep(_PUNCH_PAUSE)
        raise AssertionError("unreachable")

    async def _connect(
        self, peer: PeerId, candidate: Candidate, attempt: Attempt, local: tuple[str, int] | None
    ) -> DialledPath:
        """Connect, and shake hands as the initiator."""
        outbound = self._outbound(peer)
        try:
            await dial_tcp(outbound.stream, candidate.host, candidate.port, local)
            attempt.detail = SILENCE
            return await self._finish(outbound, candidate)
        except OSError as error:
            if local is None or error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
        # An older connection still holds this pair of addresses: better from another port than not at all.
        return await self._connect(peer, candidate, attempt, None)

    async def _answer(
        self, peer: PeerId, candidate: Candidate, attempt: Attempt, local: tuple[str, int] | None, punch: Punch
    ) -> DialledPath:
        """Connect, and let the caller begin the handshake; begin it ourselves when it does not."""
        inbound = punch.acceptor.make_inbound(path_kind(candidate))
        await dial_tcp(inbound.stream, candidate.host, candidate.port, local)
        attempt.detail = SILENCE
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CALLER_BEGINS):
                await inbound.heard
            # It becomes a path by itself, and that ends this dial.
            await self._core.loop.create_future()
        outbound = self._outbound(peer, inbound.give_up_stream())
        outbound.stream_opened()
        return await self._finish(outbound, candidate)

    async def adopt(self, peer: PeerId, adopted: Adopted) -> DialledPath:
        """Shake hands as the initiator over a connection that the called peer has made to our listener."""
        outbound = self._outbound(peer, adopted.stream)
        outbound.stream_opened()
        return await self._finish(outbound, adopted.candidate)

    def _outbound(self, peer: PeerId, stream: TcpStream | None = None) -> _Outbound:
        core = self._core
        handshake = InitiatorHandshake(core.identity, peer, core.network, core.hello, random=core.random)
        return _Outbound(core, handshake, stream)

    async def _finish(self, outbound: _Outbound, candidate: Candidate) -> DialledPath:
        try:
            result = await outbound.future
        except BaseException:
            outbound.stream.abort()
            outbound.future.cancel()
            raise
        return _TcpDialled(outbound.stream, result, candidate, monotonic() - outbound.opened_at)
