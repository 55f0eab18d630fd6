"""What every part of a node shares: identity, settings, sessions, counters, events."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from crust.config import Config
from crust.crypto.aead import sha256
from crust.crypto.hashing import SUPPORTED, choose
from crust.crypto.keys import Identity, PeerId
from crust.errors import (
    BadSignatureError,
    ConnectionClosed,
    CrustError,
    LocalProtocolError,
    PeerLost,
    RemoteProtocolError,
)
from crust.net.clock import monotonic, wall_clock
from crust.net.tcp import ReadBuffer, TcpStream, WriteBuffers
from crust.node.busy_poll import AnswerWatch, BusyPoll
from crust.node.connection import Connection
from crust.node.events import Event, EventReader, PathChanged, PeerClosed, PeerConnected
from crust.node.path import TcpPath, UtpPath
from crust.node.stats import Stats
from crust.proto.noise.handshake import EphemeralCache, HandshakeResult, Hello, Network, Role, Signing
from crust.proto.noise.transport import KeyPair
from crust.proto.record import RecordCodec
from crust.proto.session.engine import Session
from crust.proto.session.limits import Limits
from crust.proto.session.registry import Registry
from crust.proto.session.signing import SigningPace
from crust.proto.session.terms import SigningTerms
from crust.types import Path, PathKind, Report
from crust.wire.service import ServiceMessage, parse_service

if TYPE_CHECKING:
    from crust.node.udp import UtpLink

__all__ = ["Core", "Proven"]

_SIGNING = {"off": Signing.OFF, "on": Signing.ON, "strict": Signing.STRICT}
_RANKS = {"direct": 10, "mapped": 11, "punched": 12, "relayed": 50}


# Why the active path changes while the transports of one dial come up, and for how long they do.
_SETTLING = frozenset({"up", "answered", "surplus"})
_SETTLING_SECONDS: Final = 5.0

# µTP is raced, never preferred: where both work, TCP carries bulk at less cost.
_UTP_RANK: Final = 10


class Proven(Protocol):
    """What a handshake over any transport tells of the peer."""

    @property
    def peer(self) -> PeerId:
        """The other side."""

    @property
    def hello(self) -> Hello:
        """What it said of itself."""


class Services(Protocol):
    """What a node does with the messages of other nodes."""

    def path_up(self, connection: Connection, path_id: int) -> None:
        """A connection has another path."""

    def received(self, connection: Connection, message: ServiceMessage, path_id: int | None) -> None:
        """A message, about a path or not."""


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
            identity.id,
            role=Role.CLIENT if config.listen == [] else Role.NODE,
            signing=_SIGNING[str(config.signing)],
            hashes=SUPPORTED,
        )
        self.stats = Stats()
        self.buffer = ReadBuffer(self.loop)
        self.pace = SigningPace()
        self.busy_poll = BusyPoll(self.loop)
        self.handshake_watch = AnswerWatch(self.busy_poll)
        self.write_buffers = WriteBuffers()
        self.random = secrets.token_bytes
        self.seen = EphemeralCache()
        self.registry: Registry[Connection] = Registry(self.random)
        self.readers: set[EventReader] = set()
        self.redial: Callable[[Connection], None] | None = None
        self.ended: Callable[[Connection], None] | None = None
        self.arrived: Callable[[Connection], None] | None = None
        self.services: Services | None = None
        self.closing = False
        self._path_ids = itertools.count(1)
        self._shown: dict[Connection, tuple[Path | None, float]] = {}

    # --- connections and paths -----------------------------------------------------------------------------------

    def new_connection(self, result: Proven, report: Report | None) -> Connection:
        """A connection without a path yet, with what the handshake agreed."""
        if self.closing:
            raise LocalProtocolError("the node is closed")
        peer = result.peer
        session = Session(
            nonce=self.registry.nonce(peer),
            side=0 if self.identity.id < peer else 1,
            limits=self.limits,
            random=self.random,
            now=monotonic(),
            terms=self._terms(result),
            name=lambda ours, theirs: self._session_name(peer, ours, theirs),
        )
        connection = Connection(self, peer, session, self.config.send_queue_bytes, report)
        self.registry.add(peer, connection)
        return connection

    def _terms(self, result: Proven) -> SigningTerms | None:
        """How both directions are signed; the handshake has refused peers whose mode does not agree with ours."""
        if self.hello.signing is Signing.OFF:
            return None
        hash_id = choose(SUPPORTED, result.hello.hashes)
        strict = self.hello.signing is Signing.STRICT
        return SigningTerms(self.identity, result.peer, hash_id, strict, self.pace, wall_clock)

    def _session_name(self, peer: PeerId, ours: bytes, theirs: bytes) -> bytes:
        """The session's identifier, the same on both sides (PROTOCOL 10)."""
        parties = sorted(((self.identity.id.bytes(), ours), (peer.bytes(), theirs)))
        return sha256(b"crust-v1 session" + self.network.network_hash + b"".join(key + nonce for key, nonce in parties))

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

    def add_utp_path(
        self, connection: Connection, link: UtpLink, *, kind: PathKind, rtt: float, at_ms: float
    ) -> UtpPath:
        """Give a connection a µTP path whose handshake is done."""
        path = UtpPath(next(self._path_ids), link, kind, connection, at_ms)
        connection.add_path(path, rank=_RANKS[kind] + _UTP_RANK, rtt=rtt)
        return path

    def connected(self, connection: Connection, path: Path, *, accepted: bool) -> None:
        """A new connection has come up."""
        self.stats.count("connections.accepted" if accepted else "connections.dialled")
        if self.arrived is not None:
            self.arrived(connection)
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
        """Tell readers when a connection changes its path; the first path is told by `PeerConnected`.

        The transports of one dial come up one after the other, and each side settles on the better (PROTOCOL 12). That
        is how the dial ends, no change: nothing was lost, and none of it tells more than which came first.
        """
        now = monotonic()
        before, since = self._shown.get(connection, (None, now))
        same_dial = (
            before is not None
            and path is not None
            and reason in _SETTLING
            and now - since < _SETTLING_SECONDS
            and (before.kind == "relayed") == (path.kind == "relayed")
        )
        self._shown[connection] = path, since if same_dial else now
        if not same_dial and (len(connection.paths) > 1 or path is None):
            self.emit(PathChanged(connection.peer, path, reason))

    def path_answered(self, connection: Connection) -> None:
        """Several paths are up: the larger PeerId closes what is surplus (PROTOCOL 12)."""
        if self.identity.id > connection.peer:
            connection.close_surplus()

    def misbehaved(self, connection: Connection, error: RemoteProtocolError) -> None:
        """Count a violation of the protocol."""
        self.stats.count("protocol_error")
        if isinstance(error, BadSignatureError):
            self.stats.count("protocol_error.signature")

    def path_up(self, connection: Connection, path_id: int) -> None:
        """Another path has come up: the node may want to know how it looks from outside."""
        if self.services is not None:
            self.services.path_up(connection, path_id)

    def service_received(self, connection: Connection, body: bytes, path_id: int | None) -> None:
        """A message from a peer's node; what cannot be read is counted, not fatal: a later version may say more."""
        try:
            message = parse_service(body)
        except RemoteProtocolError:
            self.stats.count("service.unreadable")
            return
        if self.services is not None:
            self.services.received(connection, message, path_id)

    def service_dropped(self, connection: Connection) -> None:
        """Count a message that was not sent: too much waits for the peer, or its path has gone."""
        self.stats.count("service.dropped")

    def connection_ended(self, connection: Connection, error: CrustError) -> None:
        """Forget a session, leaving its tombstone for twice `resume_timeout` (PROTOCOL 15)."""
        self._shown.pop(connection, None)
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
