"""The node: one identity, its listeners, its connections."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final

from crust.config import Config
from crust.crypto.keys import Identity, PeerId
from crust.errors import (
    ConnectionClosed,
    CrustError,
    LocalProtocolError,
    SelfDialError,
)
from crust.net.clock import monotonic
from crust.net.interfaces import local_addresses
from crust.net.tcp import raise_descriptor_limit
from crust.node.acceptor import Acceptor
from crust.node.carry import carry_through
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.dial import Dialler
from crust.node.dials import Dials, failed
from crust.node.events import EventReader
from crust.node.explain import Explainer
from crust.node.incoming import Incoming
from crust.node.network import Neighbourhood
from crust.node.premises import RECENT, Premises
from crust.node.stats import Stats
from crust.node.udp import UdpFront
from crust.proto.nat.candidates import LocalView
from crust.types import Candidate, Report, split_address
from crust.wire.contact import Contact, parse_target

__all__ = ["Node"]

_SETTLE_SECONDS: Final = 1.0
_CONTACT_SECONDS: Final = 3.0


class Node:
    """A local endpoint. Use it as an asynchronous context manager.

    Args:
        identity: the node's key; a new one that is kept nowhere when left out.
        config: settings and limits.
    """

    def __init__(self, identity: Identity | None = None, config: Config | None = None) -> None:
        self._identity = identity or Identity.generate()
        self._config = config or Config()
        self._core: Core | None = None
        self._acceptor: Acceptor | None = None
        self._front: UdpFront | None = None
        self._neighbourhood: Neighbourhood | None = None
        self._premises: Premises | None = None
        self._dials: Dials | None = None
        self._stats = Stats()

    def __repr__(self) -> str:
        return f"<Node {self.id}>"

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the listeners; `async with` does it.

        Raises:
            ConfigError: an address cannot be listened on.
            LocalProtocolError: started before.
        """
        if self._core is not None:
            raise LocalProtocolError("a node can be started once")
        raise_descriptor_limit()
        core = self._core = Core(self._identity, self._config)
        self._stats = core.stats
        core.ended = self._connection_ended
        front = self._front = UdpFront(core) if "utp" in self._config.transports else None
        acceptor = self._acceptor = Acceptor(core, front)
        dials = self._dials = Dials(core, Dialler(core, acceptor, self._view, front), acceptor)
        core.services = self._neighbourhood = dials.neighbourhood = Neighbourhood(
            core,
            connect=dials.connect_directly,
            own_candidates=self._own_candidates,
            known=dials.known,
            callee=dials,
            listens_on=lambda port: any(port == own for _, own in acceptor.addresses),
            local_for=acceptor.local_for,
            front=front,
        )
        premises = self._premises = Premises(
            core, front, seen=self._seen_hosts, changed=self._neighbourhood.addresses_changed
        )
        dials.explainer = Explainer(self._config, premises.port_mapping)
        acceptor.forwarded = premises.is_forwarded
        try:
            # Half open sockets would be nobody's to close.
            await carry_through(self._open(acceptor, premises))
        except BaseException:
            acceptor.close()
            if front is not None:
                front.close()
            await carry_through(premises.close())
            raise
        self._neighbourhood.bootstrap.start()

    @staticmethod
    async def _open(acceptor: Acceptor, premises: Premises) -> None:
        await acceptor.listen()
        await premises.open(acceptor.addresses)

    async def bootstrapped(self, timeout: float = 10) -> None:
        """Wait until each bootstrap node is connected or was tried once, or the time is up. Cancellation loses nothing.

        Then, for a moment at most, until these nodes have shown how the NAT before this one behaves.

        Args:
            timeout: seconds.
        """
        self._started()
        assert self._neighbourhood is not None
        await self._neighbourhood.standing(timeout)

    async def close(self) -> None:
        """Close every connection in an orderly way, then the listeners. Bounded by `Config.close_timeout`.

        Cancellation: what is left is closed at once.
        """
        core, acceptor = self._core, self._acceptor
        if core is None or acceptor is None or core.closing:
            return
        core.closing = True
        if self._neighbourhood is not None:
            self._neighbourhood.close()
        leaving = core.loop.create_task(self._leave())
        if self._dials is not None:
            self._dials.cancel()
        acceptor.close()
        connections = core.registry.holders()
        try:
            if connections:
                async with asyncio.timeout(self._config.close_timeout + 1):
                    await asyncio.gather(*(connection.close() for connection in connections), return_exceptions=True)
        except TimeoutError:
            pass
        finally:
            for connection in core.registry.holders():
                connection.abort(CrustError("the node was closed"))
            for reader in list(core.readers):
                reader.end()
            try:
                await self._settle()
            finally:
                if self._front is not None:
                    self._front.close()
            await asyncio.shield(leaving)
        # Let sockets that were told to close do so before the event loop may go away.
        await asyncio.sleep(0)

    async def _settle(self) -> None:
        """Let peers over µTP hear the last words."""
        if self._front is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_SECONDS):
                    await self._front.settled()

    async def _leave(self) -> None:
        """Give port mappings back, within little more than a second."""
        if self._premises is not None:
            await self._premises.close()

    def _started(self) -> Core:
        if self._core is None:
            raise LocalProtocolError("the node is not started: use `async with crust.Node() as node`")
        if self._core.closing:
            raise LocalProtocolError("the node is closed")
        return self._core

    # --- who and where -------------------------------------------------------------------------------------------

    @property
    def id(self) -> PeerId:
        """The node's PeerId."""
        return self._identity.id

    @property
    def config(self) -> Config:
        """The settings that the node was made with."""
        return self._config

    @property
    def addresses(self) -> list[str]:
        """The listening addresses, "HOST:PORT"."""
        return [] if self._acceptor is None else self._acceptor.describe()

    async def contact(self, *, patience: float = 0.5) -> Contact:
        """What to give away so that others can dial this node; `str()` is the line of text.

        Where bootstrap nodes are configured it waits for them, three seconds at most: they tell the outside addresses,
        and the contact names them as rendezvous. Cancellation loses nothing.

        Args:
            patience: seconds to wait, at most, for routers that may map our port, and for STUN servers.
        """
        self._started()
        assert self._neighbourhood is not None
        assert self._premises is not None
        await asyncio.gather(self._neighbourhood.standing(_CONTACT_SECONDS), self._premises.settled(patience))
        return self._neighbourhood.contact()

    @property
    def connections(self) -> list[Connection]:
        """The connections that have not ended."""
        return [] if self._core is None else self._core.registry.holders()

    @property
    def stats(self) -> Stats:
        """Counters by reason, such as "handshake.outer_tag", and what is open at present."""
        stats = Stats(self._stats)
        if self._core is not None and self._acceptor is not None:
            stats["connections.open"] = self._core.registry.count
            stats["handshake.half_open"] = self._acceptor.half_open
        return stats

    # --- dialling ------------------------------------------------------------------------------------------------

    async def connect(
        self, target: PeerId | Contact | str, *, timeout: float = 30, swapped: bool = False
    ) -> Connection:
        """Connect to a peer by its key; a connection that exists is returned.

        Args:
            target: a PeerId, a Contact, or the text of either, or "PEERID@HOST:PORT".
            timeout: seconds for the whole dial.
            swapped: the peer was given our contact, and dials us within a minute or so: where no rendezvous helps,
                keep trying until the time is up, and punch holes for it.

        Raises:
            ParseError: the text is none of these.
            SelfDialError: the target is this node.
            NotAuthenticError: something answers, but does not hold this key.
            NetworkMismatchError: the peer belongs to another network.
            RefusedError: the peer does not want this node.
            NoPathError: nothing answers. All but the first are `ConnectError`, with a `report`.
            CancelledError: gives the dial up, unless somebody else waits for the same peer.
        """
        self._started()
        contact = _contact_of(target)
        peer = contact.id
        started = monotonic()
        report = Report(str(peer))
        if peer == self.id:
            raise failed(SelfDialError("this is the PeerId of the dialling node itself"), report, 0.0)
        assert self._dials is not None
        return await self._dials.connect(contact, report, started, timeout, swapped=swapped)

    def _own_candidates(self) -> list[Candidate]:
        """Where this node can be reached, as far as it knows by itself."""
        return [] if self._premises is None else self._premises.candidates

    def _view(self) -> LocalView:
        """Where we stand: what makes an address of a peer sensible."""
        assert self._neighbourhood is not None
        own = {(c.host, c.port) for c in self._neighbourhood.candidates()}
        on_link = tuple(address.network for address in local_addresses(recent=RECENT))
        outside = {
            host
            for host in self._outside_hosts()
            # Only a rendezvous on this very machine can see us there.
            if not ipaddress.ip_address(host).is_loopback or self._has_local_rendezvous()
        }
        return LocalView(on_link, frozenset(outside), frozenset(own))

    def _has_local_rendezvous(self) -> bool:
        assert self._neighbourhood is not None
        servers = self._neighbourhood.signalling.servers
        remotes = [split_address(path.remote)[0] for server in servers if (path := server.path) is not None]
        return any(ipaddress.ip_address(remote).is_loopback for remote in remotes)

    def _seen_hosts(self) -> set[str]:
        """Our outside hosts, as the rendezvous nodes that we have named see them."""
        assert self._neighbourhood is not None
        return {candidate.host for candidate in self._neighbourhood.signalling.reflexive}

    def _outside_hosts(self) -> set[str]:
        """Our outside hosts, whoever tells them."""
        return {each.host for each in self._own_candidates() if each.kind == "server-reflexive"} | self._seen_hosts()

    def _connection_ended(self, connection: Connection) -> None:
        if self._dials is not None:
            self._dials.forget(connection)
        if self._neighbourhood is not None:
            self._neighbourhood.forget(connection)

    # --- accepting -----------------------------------------------------------------------------------------------

    async def accept(self) -> Connection:
        """The next connection that a peer has made; `async for connection in node` gives the same.

        Raises:
            ConnectionClosed: the node was closed. Cancellation loses nothing.
        """
        try:
            return await anext(self)
        except StopAsyncIteration:
            raise ConnectionClosed("the node is closed") from None

    def __aiter__(self) -> Node:
        return self

    async def __anext__(self) -> Connection:
        """The next connection that a peer has made; ends quietly when the node closes. Cancellation loses nothing."""
        self._require_started()
        assert self._acceptor is not None
        connection = await self._acceptor.next_connection()
        if connection is None:
            raise StopAsyncIteration
        return connection

    def _require_started(self) -> None:
        if self._core is None:
            raise LocalProtocolError("the node is not started: use `async with crust.Node() as node`")

    def incoming(self) -> AsyncIterator[Incoming]:
        """Decide about each new peer before anything about this node is shown to it.

        From this call on no peer is accepted by itself. A peer that is not decided about within
        `Config.incoming_timeout` is dropped. The iteration ends when the node closes; cancellation loses nothing.
        """
        self._started()
        assert self._acceptor is not None
        self._acceptor.decide_first()
        return self._iterate_incoming(self._acceptor)

    @staticmethod
    async def _iterate_incoming(acceptor: Acceptor) -> AsyncIterator[Incoming]:
        while (incoming := await acceptor.next_incoming()) is not None:
            yield incoming

    def events(self) -> EventReader:
        """An iterator over what happens from now on; each call gives an independent one."""
        core = self._started()
        return EventReader(self._config.event_queue, core.readers)


def _contact_of(target: PeerId | Contact | str) -> Contact:
    if isinstance(target, Contact):
        return target
    if isinstance(target, PeerId):
        return Contact(target)
    return parse_target(target)
