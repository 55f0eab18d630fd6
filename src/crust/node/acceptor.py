"""The dialled side: listening sockets, half-open handshakes, peers that wait for a decision.

Strangers get no answer and hold nothing: handshakes under way stand in a capped table, from which a random one is
dropped when a newcomer needs its place; each has a deadline (PROTOCOL 4 and 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from crust.crypto.keys import PeerId
from crust.net.clock import monotonic
from crust.net.tcp import TcpStream
from crust.node.admission import VERDICT_SECONDS, Acceptance, Inbound, Verdict
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.inbound_tcp import TcpInbound
from crust.node.inbound_utp import UtpInbound
from crust.node.incoming import Incoming
from crust.node.listen import open_listeners
from crust.node.udp import UdpFront
from crust.proto.noise.crossing import Crossed
from crust.proto.noise.handshake import Hello, Hint
from crust.proto.tunnel.endpoint import Knock
from crust.types import PathKind, Transport, format_address

__all__ = ["Acceptor"]

_BACKLOG: Final = 1024


class Acceptor:
    """Everything that comes in.

    Args:
        core: the node's centre.
        front: the UDP sockets; None without µTP.

    Attributes:
        core: see above.
        addresses: what is listened on, by each of the configured transports.
        calling: says whether we call a peer at this moment: what comes from it then is its answer to the call.
        dialling: says whether we dial a peer at this moment, or answer its call.
        forwarded: says whether what comes to a port of ours from a host has come through a mapping of our router.
        let_in: says whether a peer comes from the outside address of its NAT, towards which we are dialling.
    """

    def __init__(self, core: Core, front: UdpFront | None = None) -> None:
        self.core = core
        self._front = front
        if front is not None:
            front.knocked = self._knocked_at_tunnel
        self.addresses: list[tuple[str, int]] = []
        self._servers: list[asyncio.Server] = []
        self._half_open: list[Inbound] = []
        self._places: dict[Inbound, int] = {}
        self._knocking: dict[Incoming, None] | None = None  # not yet shown to the application
        self._undecided: dict[Incoming, None] = {}
        self._waiting_peers: dict[PeerId, Incoming] = {}
        self._verdicts: dict[PeerId, tuple[Verdict, float, Acceptance | None]] = {}
        self._accepted: deque[Connection] = deque()
        self._waiters: set[asyncio.Future[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.calling: Callable[[PeerId], bool] = lambda peer: False
        self.dialling: Callable[[PeerId], bool] = lambda peer: False
        self.forwarded: Callable[[Transport, int, str], bool] = lambda transport, port, host: False
        self.let_in: Callable[[PeerId, Transport, str], bool] = lambda peer, transport, host: False

    # --- sockets -------------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Open the configured addresses.

        Raises:
            ConfigError: an address cannot be listened on; the text says which and why.
        """
        config = self.core.config
        for opened in open_listeners(config.listen, config.transports):
            for transport, sock in opened.items():
                address = sock.getsockname()[:2]
                if transport == "tcp":
                    server = await self.core.loop.create_server(self._make_stream, sock=sock, backlog=_BACKLOG)
                    self._servers.append(server)
                elif self._front is not None:
                    await self._front.add(sock)
                self.addresses.append(address)
        self.addresses = list(dict.fromkeys(self.addresses))

    def _make_stream(self) -> TcpStream:
        return TcpInbound(self).stream

    def _knocked_at_tunnel(self, knock: Knock) -> None:
        assert self._front is not None
        self.knocked(UtpInbound(self, self._front, knock), knock.hello)

    def take_over(self, stream: TcpStream, crossed: Crossed, kind: PathKind) -> asyncio.Future[None]:
        """A connection that we have made, and over which the peer has begun; returns what is done when it has ended."""
        return TcpInbound(self, kind).take_over(stream, crossed)

    def kind_of(self, peer: PeerId, transport: Transport, port: int, host: str, kind: PathKind) -> PathKind:
        """The kind of a path that has come in: another one if our router has a mapping for it, or a dial let it in."""
        if kind == "direct" and self.let_in(peer, transport, host):
            kind = "punched"
        return "mapped" if kind in ("direct", "punched") and self.forwarded(transport, port, host) else kind

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
        if inbound in self._places:
            return
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
    def closed(self) -> bool:
        """Whether nobody is let in any more."""
        return self._closed

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
        elif core.registry.holders_of(peer) or self.calling(peer):
            inbound.accept()  # another path of a peer that was accepted before, or one that we have called ourselves
        elif self._knocking is not None and not self.dialling(peer):
            self.ask(inbound, peer)
        elif self.is_full(queued=True):
            inbound.refuse(Hint.BUSY)
        else:
            inbound.accept()

    def ask(self, inbound: Inbound, peer: PeerId) -> None:
        """Let the application decide about a peer, once for all attempts of its dial."""
        assert self._knocking is not None
        verdict, acceptance = self._verdict(peer)
        if acceptance is not None:
            inbound.accept_for(acceptance)
        elif verdict is Verdict.REFUSED:
            inbound.refuse(Hint.REFUSED)
        elif verdict is Verdict.IGNORED:
            inbound.ignore()
        elif (known := self._waiting_peers.get(peer)) is not None:
            self.remove(inbound)
            known.join(inbound)
            inbound.wait_for_decision(known)
        elif len(self._undecided) >= self.core.config.max_incoming:
            inbound.refuse(Hint.BUSY)
        else:
            self.remove(inbound)
            incoming = Incoming(inbound, peer, inbound.address)
            self._undecided[incoming] = None
            self._waiting_peers[peer] = incoming
            inbound.wait_for_decision(incoming)
            self._knocking[incoming] = None
            self._wake()

    def is_full(self, *, queued: bool) -> bool:
        """Whether there is no room for another connection, or, `queued`, for one that the application must take.

        A node that only dials takes none: there connections that have ended make room.
        """
        config = self.core.config
        if queued and len(self._accepted) >= config.accept_queue:
            self._accepted = deque(connection for connection in self._accepted if not connection.closed)
        return self.core.registry.count >= config.max_connections or (
            queued and len(self._accepted) >= config.accept_queue
        )

    def remember(
        self,
        incoming: Incoming | None,
        verdict: Verdict,
        acceptance: Acceptance | None = None,
        seconds: float = VERDICT_SECONDS,
    ) -> None:
        """The application has decided about a peer."""
        if incoming is not None:
            self.decided(incoming)
            self._verdicts[incoming.peer] = (verdict, monotonic() + seconds, acceptance)
            while len(self._verdicts) > self.core.config.max_incoming:
                del self._verdicts[next(iter(self._verdicts))]

    def _verdict(self, peer: PeerId) -> tuple[Verdict | None, Acceptance | None]:
        """What was decided about a peer a moment ago."""
        verdict, until, acceptance = self._verdicts.get(peer, (None, 0.0, None))
        return (verdict, acceptance) if monotonic() < until else (None, None)

    def lets_in(self, peer: PeerId) -> bool:
        """Whether the application has accepted a peer that is about to come."""
        return self._verdict(peer)[1] is not None

    def came(self, connection: Connection) -> bool:
        """A peer has come over a connection; whether it is the one that somebody waits for after accepting it."""
        verdict, acceptance = self._verdict(connection.peer)
        if acceptance is None or verdict is None:
            return False
        # Whoever comes after this one is asked about again, but for the other attempts of the same dial.
        self._verdicts[connection.peer] = (verdict, monotonic() + VERDICT_SECONDS, acceptance)
        return acceptance.won(connection)

    def decided(self, incoming: Incoming) -> None:
        """An incoming peer needs no decision any more."""
        self._undecided.pop(incoming, None)
        self._waiting_peers.pop(incoming.peer, None)
        if self._knocking is not None:
            self._knocking.pop(incoming, None)

    def accepted(self, connection: Connection) -> None:
        """A connection for `async for connection in node`."""
        if self.came(connection):
            return
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
            self._knocking = {}

    @property
    def decides_first(self) -> bool:
        """Whether the application is asked about each peer."""
        return self._knocking is not None

    async def next_incoming(self) -> Incoming | None:
        """The next undecided peer; None when the node closes."""
        assert self._knocking is not None
        while True:
            if self._knocking:
                incoming = next(iter(self._knocking))
                del self._knocking[incoming]
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
        loop = self.core.loop
        for server in self._servers:
            # asyncio accepts in two turns of the loop, and fails when the server closes between them (gh-109564).
            for sock in server.sockets:
                with contextlib.suppress(NotImplementedError):  # Windows' loop has no readers, nor this fault
                    loop.remove_reader(sock)
            loop.call_soon(server.close)
        for incoming in list(self._undecided):
            incoming.drop()
        for inbound in list(self._half_open):
            inbound.drop(None)
        for task in self._tasks:
            task.cancel()
        self._wake()

    def describe(self) -> list[str]:
        """The listening addresses."""
        return [format_address(host, port) for host, port in self.addresses]
