"""What every part of a node shares: identity, settings, sessions, counters, events."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable

from crust.config import Config
from crust.crypto.keys import Identity, PeerId
from crust.errors import ConnectionClosed, CrustError, LocalProtocolError, PeerLost, RemoteProtocolError
from crust.net.clock import monotonic
from crust.net.tcp import ReadBuffer, TcpStream, WriteBuffers
from crust.node.connection import Connection
from crust.node.events import Event, EventReader, PathChanged, PeerClosed, PeerConnected
from crust.node.path import TcpPath
from crust.node.stats import Stats
from crust.proto.noise.handshake import EphemeralCache, HandshakeResult, Hello, Network, Role, Signing
from crust.proto.noise.transport import KeyPair
from crust.proto.record import RecordCodec
from crust.proto.session.engine import Session
from crust.proto.session.limits import Limits
from crust.proto.session.registry import Registry
from crust.types import Path, PathKind, Report

__all__ = ["Core"]

_RANKS = {"direct": 10, "mapped": 11, "punched": 12, "relayed": 50}


class Core:
    """The centre of a node; owner of its connections.

    Args:
        identity: the node's key.
        config: its settings.
    """

    def __init__(self, identity: Identity, config: Config) -> None:
        self.loop = asyncio.get_running_loop()
        self.identity = identity
        self.config = config
        self.limits = Limits.of(config)
        self.network = Network.of(config.network_name, config.network_key)
        self.hello = Hello(
            identity.id, role=Role.CLIENT if config.listen == [] else Role.NODE, signing=Signing.OFF, hashes=1
        )
        self.stats = Stats()
        self.buffer = ReadBuffer(self.loop)
        self.write_buffers = WriteBuffers()
        self.random = secrets.token_bytes
        self.seen = EphemeralCache()
        self.registry: Registry[Connection] = Registry(self.random)
        self.readers: set[EventReader] = set()
        self.redial: Callable[[Connection], None] | None = None
        self.ended: Callable[[Connection], None] | None = None
        self.closing = False
        self._path_ids = itertools.count(1)

    # --- connections and paths -----------------------------------------------------------------------------------

    def new_connection(self, peer: PeerId, report: Report | None) -> Connection:
        """A connection without a path yet."""
        if self.closing:
            raise LocalProtocolError("the node is closed")
        session = Session(
            nonce=self.registry.nonce(peer),
            side=0 if self.identity.id < peer else 1,
            limits=self.limits,
            random=self.random,
            now=monotonic(),
        )
        connection = Connection(self, peer, session, self.config.send_queue_bytes, report)
        self.registry.add(peer, connection)
        return connection

    def codec(self, result: HandshakeResult) -> RecordCodec:
        """The record layer for a finished handshake."""
        keys = KeyPair(result.root, result.send, result.receive)
        return RecordCodec(keys, initiator=result.initiator, random=self.random, now=monotonic())

    def add_path(
        self, connection: Connection, stream: TcpStream, codec: RecordCodec, *, kind: PathKind, rtt: float, at_ms: float
    ) -> TcpPath:
        """Give a connection a TCP path whose handshake is done."""
        path = TcpPath(next(self._path_ids), stream, codec, kind, connection, self.write_buffers, at_ms)
        connection.add_path(path, rank=_RANKS[kind], rtt=rtt)
        return path

    def connected(self, connection: Connection, path: Path, *, accepted: bool) -> None:
        """A new connection has come up."""
        self.stats.count("connections.accepted" if accepted else "connections.dialled")
        self.emit(PeerConnected(connection.peer, path, accepted))

    def emit(self, event: Event) -> None:
        """Tell every reader of events."""
        for reader in self.readers:
            reader.put(event)

    # --- ConnectionOwner -----------------------------------------------------------------------------------------

    def path_stalled(self, connection: Connection) -> None:
        """Dial again, beside the path that makes no progress."""
        self.stats.count("path.stalled")
        if self.redial is not None:
            self.redial(connection)

    def path_needed(self, connection: Connection) -> None:
        """Dial again: no path is left."""
        self.stats.count("path.none_left")
        if self.redial is not None and not self.closing:
            self.redial(connection)

    def path_changed(self, connection: Connection, path: Path | None, reason: str) -> None:
        """Tell readers when a connection changes its path; the first path is told by `PeerConnected`."""
        if len(connection.paths) > 1 or path is None:
            self.emit(PathChanged(connection.peer, path, reason))

    def path_answered(self, connection: Connection) -> None:
        """Several paths are up: the larger PeerId closes what is surplus (PROTOCOL 12)."""
        if self.identity.id > connection.peer:
            connection.close_surplus()

    def misbehaved(self, connection: Connection, error: RemoteProtocolError) -> None:
        """Count a violation of the protocol."""
        self.stats.count("protocol_error")

    def connection_ended(self, connection: Connection, error: CrustError) -> None:
        """Forget a session, leaving its tombstone for twice `resume_timeout` (PROTOCOL 15)."""
        closed = isinstance(error, ConnectionClosed)
        until = monotonic() + 2 * self.config.resume_timeout
        self.registry.remove(connection.peer, connection, closed=closed, until=until)
        self.stats.count("connections.closed" if closed else "connections.lost")
        if closed:
            self.emit(PeerClosed(connection.peer))
        elif isinstance(error, PeerLost):
            self.emit(error)
        if self.ended is not None:
            self.ended(connection)
