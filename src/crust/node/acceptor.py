"""The dialled side: listening sockets, half-open handshakes, peers that wait for a decision.

Strangers get no answer and hold nothing: handshakes under way stand in a capped table, from which a random one is
dropped when a newcomer needs its place; each has a deadline (PROTOCOL 4 and 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from crust.config import parse_listen
from crust.errors import ConfigError, CrustError, PeerLost, RemoteProtocolError
from crust.net.clock import monotonic
from crust.net.tcp import TcpStream, share_port
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.events import DuplicateIdentity
from crust.node.incoming import Incoming
from crust.proto.noise.handshake import HandshakeResult, Hello, Hint, ResponderHandshake
from crust.proto.record import RecordCodec
from crust.proto.session.engine import NO_NONCE
from crust.proto.session.outbox import GroupBuilder
from crust.proto.session.registry import Decision
from crust.types import PathKind, format_address
from crust.wire import frames

__all__ = ["Acceptor", "Inbound"]

_BACKLOG: Final = 1024
_PORT_TRIES: Final = 16
_SILENCE_LEAST: Final = 0.3  # share of the time-out after which a stranger is closed at the earliest
_CONFLICT_WAIT: Final = 1.0

Groups = list[tuple[bytes, list[bytes]]]


class _Stage(enum.Enum):
    """How far a peer has come."""

    HANDSHAKE = "we wait for message 1"
    WAITING = "the application decides"
    PROVING = "message 2 is out, we wait for the first record"
    CONFLICT = "we ask an older session with the same peer whether it lives"
    SILENT = "a stranger: read and discard"
    DONE = "a path, or gone"


class Inbound:
    """One accepted TCP connection until it is a path.

    Attributes:
        heard: done when the peer has sent something, or is gone.
        stream: the connection.
    """

    __slots__ = (
        "_acceptor",
        "_codec",
        "_core",
        "_deadline",
        "_future",
        "_groups",
        "_handshake",
        "_incoming",
        "_kind",
        "_opened_at",
        "_result",
        "_sent_at",
        "_stage",
        "heard",
        "stream",
    )

    def __init__(self, acceptor: Acceptor, kind: PathKind = "direct") -> None:
        core = acceptor.core
        self._acceptor = acceptor
        self._core = core
        self._stage = _Stage.HANDSHAKE
        self._handshake: ResponderHandshake | None = ResponderHandshake(
            core.identity, core.network, random=core.random, seen=core.seen
        )
        self._codec: RecordCodec | None = None
        self._result: HandshakeResult | None = None
        self._incoming: Incoming | None = None
        self._future: asyncio.Future[Connection] | None = None
        self._groups: Groups = []
        self._deadline: asyncio.TimerHandle | None = None
        self._opened_at = self._sent_at = monotonic()
        self._kind = kind
        self.heard: asyncio.Future[None] = core.loop.create_future()
        self.stream = TcpStream(core.buffer, self)

    # --- StreamConsumer ------------------------------------------------------------------------------------------

    def stream_opened(self) -> None:
        """Take a place in the table of half-open handshakes, unless this is the far end of a hole that we punch."""
        if self._acceptor.expected(self.stream):
            self._stage = _Stage.DONE
            return
        self._set_deadline(self._core.config.handshake_timeout)
        self._acceptor.add(self)

    def stream_received(self, data: memoryview) -> int:
        """Bytes from a peer that has not proved itself."""
        if not self.heard.done():
            self.heard.set_result(None)
        if self._stage in (_Stage.HANDSHAKE, _Stage.WAITING):
            self._handshake_received(bytes(data))
        elif self._stage is _Stage.PROVING:
            return self._first_records(data)
        elif self._stage is _Stage.CONFLICT:
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

    # --- message 1 -----------------------------------------------------------------------------------------------

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

    def _fall_silent(self) -> None:
        """Read and discard until a random moment, as a service that is busy would."""
        self._forget_incoming()
        self._stage = _Stage.SILENT
        self._handshake = None
        limit = self._core.config.handshake_timeout
        # Not a secret: the moment must only not be a constant by which Crust could be recognised.
        self._set_deadline(limit * random.uniform(_SILENCE_LEAST, 1.0))  # noqa: S311

    def refuse(self, hint: Hint) -> None:
        """Turn the peer down with a sealed hint."""
        assert self._handshake is not None
        self._core.stats.count(f"refused.{hint.name.lower()}")
        self.stream.write(self._handshake.refuse(hint))
        self._fall_silent()

    def wait_for_decision(self, incoming: Incoming) -> None:
        """The application decides; the peer moves to a table of its own."""
        self._stage = _Stage.WAITING
        self._incoming = incoming
        self._set_deadline(self._core.config.incoming_timeout)

    def give_up_stream(self) -> TcpStream:
        """The peer says nothing: let somebody else use the connection."""
        self._end()
        return self.stream

    @property
    def waiting(self) -> bool:
        """Whether the application has to decide."""
        return self._stage is _Stage.WAITING

    # --- decisions -----------------------------------------------------------------------------------------------

    def accept(self) -> None:
        """Answer with message 2."""
        assert self._handshake is not None
        data, self._result = self._handshake.accept(self._core.hello)
        self._handshake = None
        self._codec = self._core.codec(self._result)
        self._stage = _Stage.PROVING
        self._set_deadline(self._core.config.handshake_timeout)
        self._sent_at = monotonic()
        self.stream.write(data)

    async def accept_incoming(self) -> Connection:
        """For `Incoming.accept`."""
        if self._stage is not _Stage.WAITING:
            raise PeerLost(None, "the peer has gone away")
        self._forget_incoming()
        self._future = self._core.loop.create_future()
        self._acceptor.add(self)
        try:
            self.accept()
            return await self._future
        except asyncio.CancelledError:
            self.drop("cancelled")
            raise

    def refuse_incoming(self) -> None:
        """For `Incoming.refuse`."""
        if self._stage is _Stage.WAITING:
            self.refuse(Hint.REFUSED)

    def ignore_incoming(self) -> None:
        """For `Incoming.ignore`."""
        if self._stage is _Stage.WAITING:
            self._core.stats.count("refused.ignored")
            self._fall_silent()

    def _forget_incoming(self) -> None:
        if self._incoming is not None:
            self._acceptor.decided(self._incoming)
            self._incoming = None

    # --- the first record ----------------------------------------------------------------------------------------

    def _first_records(self, data: memoryview) -> int:
        assert self._codec is not None
        assert self._result is not None
        now = monotonic()
        try:
            groups, used = self._codec.receive_data(data, now)
            if not groups:
                return used
            first = frames.parse_frames(*groups[0], start=1)
            if not first or not isinstance(first[0], frames.Hello):
                raise RemoteProtocolError("the first frame is not HELLO")
        except RemoteProtocolError:
            self._core.stats.count("handshake.bad_first_record")
            self._fall_silent()
            return len(data)
        self._groups = groups
        self._decide(first[0], now)
        return used

    def _decide(self, hello: frames.Hello, now: float) -> None:
        """Find out to which session the path belongs (PROTOCOL 10)."""
        assert self._result is not None
        peer = self._result.peer
        decision, holder, code = self._core.registry.decide(peer, hello, now)
        if decision is Decision.ATTACH:
            assert holder is not None
            self._become_path(holder, new=False)
        elif decision is Decision.NEW:
            self._become_path(self._core.new_connection(self._result, None), new=True)
        elif decision is Decision.GONE:
            self._say_gone(hello.your_nonce, code)
        else:
            assert holder is not None
            self._resolve_conflict(holder)

    def _say_gone(self, nonce: bytes, code: int) -> None:
        assert self._codec is not None
        group = GroupBuilder()
        group.add(frames.serialize_gone(nonce, code))
        finished = group.finish()
        assert finished is not None
        self.stream.write(self._codec.seal([finished], monotonic()))
        self._core.stats.count("handshake.session_gone")
        self._end()
        self.stream.close()

    def _resolve_conflict(self, old: Connection) -> None:
        """The peer shows a new nonce while we hold an older session: it restarted, or two instances share one key."""
        assert self._result is not None
        if old.path_count == 0 or old.session.remote_nonce == NO_NONCE:
            self._replace(old)
            return
        self._stage = _Stage.CONFLICT
        self.stream.pause_reading()
        self._acceptor.run(self._ask_old(old))

    async def _ask_old(self, old: Connection) -> None:
        alive = False
        with contextlib.suppress(TimeoutError, CrustError):
            async with asyncio.timeout(_CONFLICT_WAIT):
                await old.ping()
                alive = True
        if self._stage is not _Stage.CONFLICT or self._result is None:
            return
        self.stream.resume_reading()
        if alive:
            self._core.stats.count("connections.duplicate_identity")
            self._core.emit(DuplicateIdentity(self._result.peer))
            self._become_path(self._core.new_connection(self._result, None), new=True)
        else:
            self._replace(old)

    def _replace(self, old: Connection) -> None:
        assert self._result is not None
        old.abort(PeerLost(self._result.peer, "the peer has restarted"))
        self._become_path(self._core.new_connection(self._result, None), new=True)

    def _become_path(self, connection: Connection, *, new: bool) -> None:
        codec = self._codec
        assert codec is not None
        now = monotonic()
        self._end()
        path = self._core.add_path(
            connection,
            self.stream,
            codec,
            kind=self._kind,
            rtt=now - self._sent_at,
            at_ms=(now - self._opened_at) * 1000,
        )
        connection.path_received(path, self._groups, now)
        self._groups = []
        if new:
            self._core.connected(connection, path.info, accepted=True)
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(connection)
        elif new:
            self._acceptor.accepted(connection)

    # --- the end -------------------------------------------------------------------------------------------------

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._core.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        if self._stage is _Stage.HANDSHAKE:
            self._core.stats.count("handshake.timed_out")
        elif self._stage is _Stage.PROVING:
            self._core.stats.count("handshake.never_proved")
        elif self._stage is _Stage.WAITING:
            self._core.stats.count("refused.undecided")
        self.drop(None)

    def drop(self, reason: str | None) -> None:
        """Forget this peer and close its socket."""
        if self._stage is _Stage.DONE:
            return
        if reason is not None and self._stage is not _Stage.SILENT:
            self._core.stats.count(f"handshake.{reason}")
        self._end()
        if self._future is not None and not self._future.done():
            self._future.set_exception(PeerLost(None, "the peer went away before it proved itself"))
        self.stream.abort()

    def _end(self) -> None:
        self._stage = _Stage.DONE
        if not self.heard.done():
            self.heard.set_result(None)
        self._forget_incoming()
        self._handshake = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._acceptor.remove(self)


class Acceptor:
    """Everything that comes in.

    Args:
        core: the node's centre.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.addresses: list[tuple[str, int]] = []
        self._servers: list[asyncio.Server] = []
        self._half_open: list[Inbound] = []
        self._places: dict[Inbound, int] = {}
        self._knocking: deque[Incoming] | None = None
        self._undecided: dict[Incoming, None] = {}
        self._accepted: deque[Connection] = deque()
        self._waiters: set[asyncio.Future[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.expected: Callable[[TcpStream], bool] = lambda stream: False

    # --- sockets -------------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Open the configured addresses.

        Raises:
            ConfigError: an address cannot be listened on; the text says which and why.
        """
        entries = self.core.config.listen
        if "tcp" not in self.core.config.transports:
            return
        if entries is None:
            await self._listen_everywhere()
            return
        for entry in entries:
            host, port = parse_listen(entry)
            try:
                await self._serve(_bind(host, port))
            except OSError as error:
                raise ConfigError(f"cannot listen on {entry}: {error.strerror or error}") from error

    async def _listen_everywhere(self) -> None:
        """One random port, the same for IPv4 and IPv6."""
        last: OSError | None = None
        for _ in range(_PORT_TRIES):
            try:
                four = _bind("0.0.0.0", 0)  # noqa: S104
            except OSError as error:
                last = error
                break
            port = four.getsockname()[1]
            try:
                six: socket.socket | None = _bind("::", port)
            except OSError as error:
                if socket.has_ipv6 and error.errno == 98:  # EADDRINUSE: try another port for both
                    four.close()
                    last = error
                    continue
                six = None
            await self._serve(four)
            if six is not None:
                await self._serve(six)
            return
        raise ConfigError(f"cannot listen on a random port: {last}")

    async def _serve(self, sock: socket.socket) -> None:
        server = await self.core.loop.create_server(self._make_stream, sock=sock, backlog=_BACKLOG)
        self._servers.append(server)
        self.addresses.append(sock.getsockname()[:2])

    def _make_stream(self) -> TcpStream:
        return Inbound(self).stream

    def make_inbound(self, kind: PathKind) -> Inbound:
        """For a connection that we make, and over which the peer begins."""
        return Inbound(self, kind)

    def local_for(self, host: str) -> tuple[str, int] | None:
        """The listening address from which to dial a host when the port matters; None without one."""
        for own, port in self.addresses:
            if (":" in own) == (":" in host):
                return own, port
        return None

    # --- tables --------------------------------------------------------------------------------------------------

    def add(self, inbound: Inbound) -> None:
        """Give a handshake its place; a random other one makes room."""
        table = self._half_open
        if len(table) >= self.core.config.max_half_open:
            self.core.stats.count("handshake.evicted")
            # Not a secret: only a stranger must not be able to choose the victim.
            table[random.randrange(len(table))].drop(None)  # noqa: S311
        self._places[inbound] = len(table)
        table.append(inbound)

    def remove(self, inbound: Inbound) -> None:
        """Free the place of a handshake."""
        place = self._places.pop(inbound, None)
        if place is None:
            return
        last = self._half_open.pop()
        if last is not inbound:
            self._half_open[place] = last
            self._places[last] = place

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return len(self._half_open)

    def knocked(self, inbound: Inbound, hello: Hello) -> None:
        """A first message has opened: refuse, ask the application, or go on."""
        core = self.core
        peer = hello.peer
        if peer == core.identity.id:
            inbound.refuse(Hint.REFUSED)
        elif not core.hello.signing.agrees_with(hello.signing):
            inbound.refuse(Hint.SIGNING_MISMATCH)
        elif core.registry.count >= core.config.max_connections and core.registry.find(peer) is None:
            inbound.refuse(Hint.BUSY)
        elif core.registry.holders_of(peer):
            inbound.accept()  # another path of a peer that was accepted before
        elif self._knocking is not None:
            if len(self._undecided) >= core.config.max_incoming:
                inbound.refuse(Hint.BUSY)
                return
            self.remove(inbound)
            incoming = Incoming(inbound, peer, inbound.stream.address("peername"))
            self._undecided[incoming] = None
            inbound.wait_for_decision(incoming)
            self._knocking.append(incoming)
            self._wake()
        elif len(self._accepted) >= core.config.accept_queue:
            inbound.refuse(Hint.BUSY)
        else:
            inbound.accept()

    def decided(self, incoming: Incoming) -> None:
        """An incoming peer needs no decision any more."""
        self._undecided.pop(incoming, None)

    def accepted(self, connection: Connection) -> None:
        """A connection for `async for connection in node`."""
        self._accepted.append(connection)
        self._wake()

    def run(self, work: Any) -> None:
        """Do something in the background until the node closes."""
        task = self.core.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- for the node --------------------------------------------------------------------------------------------

    def decide_first(self) -> None:
        """From now on ask the application about each peer."""
        if self._knocking is None:
            self._knocking = deque()

    @property
    def decides_first(self) -> bool:
        """Whether the application is asked about each peer."""
        return self._knocking is not None

    async def next_incoming(self) -> Incoming | None:
        """The next undecided peer; None when the node closes."""
        assert self._knocking is not None
        while True:
            while self._knocking:
                incoming = self._knocking.popleft()
                if incoming in self._undecided:
                    return incoming
            if self._closed:
                return None
            await self._wait()

    async def next_connection(self) -> Connection | None:
        """The next accepted connection; None when the node closes."""
        while not self._accepted:
            if self._closed:
                return None
            await self._wait()
        return self._accepted.popleft()

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = self.core.loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Close the sockets, drop what has not become a connection, wake who waits."""
        self._closed = True
        for server in self._servers:
            server.close()
        for inbound in list(self._half_open):
            inbound.drop(None)
        for incoming in list(self._undecided):
            incoming.ignore()
        for task in self._tasks:
            task.cancel()
        self._wake()

    def describe(self) -> list[str]:
        """The listening addresses."""
        return [format_address(host, port) for host, port in self.addresses]


def _bind(host: str, port: int) -> socket.socket:
    """A TCP socket on an address; IPv6 ones leave IPv4 alone.

    Raises:
        OSError: the address cannot be used.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(found[0], socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if found[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(found[4])
        # Only now: another listener on this port is refused, but our own outgoing connections may come from it.
        share_port(sock)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
