"""The node: one identity, its listeners, its connections."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Final

from crust.config import Config
from crust.crypto.keys import Identity, PeerId
from crust.errors import (
    ConnectError,
    ConnectionClosed,
    CrustError,
    LocalProtocolError,
    NoPathError,
    SelfDialError,
)
from crust.net.clock import monotonic
from crust.net.interfaces import candidate_hosts, local_addresses
from crust.net.tcp import raise_descriptor_limit
from crust.node.acceptor import Acceptor
from crust.node.attempt import DialledPath, Punch
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.dial import CandidateFeed, Dialler, explain_timeout
from crust.node.events import EventReader
from crust.node.incoming import Incoming
from crust.node.mapping import PortMappings
from crust.node.network import Neighbourhood
from crust.node.stats import Stats
from crust.node.udp import UdpFront
from crust.proto.nat.terms import Terms
from crust.types import Candidate, Report
from crust.wire.contact import Contact, parse_target

__all__ = ["Node"]

_REDIAL_PAUSES: Final = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0)
"""Seconds before each further dial of a connection that lost its path: at most one a second (PROTOCOL 16)."""

_SETTLE_SECONDS: Final = 1.0
_REDIAL_TIMEOUT: Final = 15.0
_KNOWN_PEERS: Final = 4096
_CONTACT_SECONDS: Final = 3.0
_MAPPING_SECONDS: Final = 0.5
_ANSWERING_SECONDS: Final = 15.0
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class _Mode(enum.Enum):
    """How a dial goes about it."""

    CALL = "through rendezvous nodes too, if there are any"
    DIRECT = "to a rendezvous itself, from the listening port: it then knows the outside address of that port"
    ANSWER = "a peer calls us: both dial at the same time"


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
        self._dialler: Dialler | None = None
        self._front: UdpFront | None = None
        self._neighbourhood: Neighbourhood | None = None
        self._mappings: PortMappings | None = None
        self._arrivals: dict[PeerId, asyncio.Future[Connection]] = {}
        self._dials: dict[PeerId, asyncio.Task[Connection]] = {}
        self._dial_waiters: dict[asyncio.Task[Connection], int] = {}
        self._redials: dict[Connection, asyncio.Task[None]] = {}
        self._redial_again: dict[Connection, asyncio.Event] = {}  # the path that was being confirmed has gone, too
        self._known: dict[PeerId, tuple[Candidate, ...]] = {}
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
        core.redial = self._redial
        core.ended = self._connection_ended
        front = self._front = UdpFront(core) if "utp" in self._config.transports else None
        self._dialler = Dialler(core, front)
        acceptor = self._acceptor = Acceptor(core, front)
        self._acceptor.expected = self._dialler.expected
        core.arrived = self._arrived
        core.services = self._neighbourhood = Neighbourhood(
            core,
            connect=self._connect_directly,
            own_candidates=self._own_candidates,
            known=lambda peer: self._known.get(peer, ()),
            called=self._called,
            listens_on=lambda port: any(port == own for _, own in acceptor.addresses),
            local_for=acceptor.local_for,
            front=front,
        )
        try:
            await self._acceptor.listen()
        except BaseException:
            self._acceptor.close()
            if front is not None:
                front.close()
            raise
        self._mappings = PortMappings(self._config, changed=self._addresses_changed, outside=self._outside_hosts)
        self._mappings.start(self._acceptor.addresses)
        self._neighbourhood.bootstrap.start()

    async def bootstrapped(self, timeout: float = 10) -> None:
        """Wait until each bootstrap node is connected or was tried once, or the time is up. Cancellation loses nothing.

        Args:
            timeout: seconds.
        """
        self._started()
        assert self._neighbourhood is not None
        await self._neighbourhood.tried(timeout)

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
        unmapping = core.loop.create_task(self._unmap())
        tasks: list[asyncio.Task[object]] = [*self._dials.values(), *self._redials.values()]
        for task in tasks:
            task.cancel()
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
            if self._dialler is not None:
                self._dialler.close()
            if self._front is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SETTLE_SECONDS):
                        await self._front.settled()
                self._front.close()
            await asyncio.shield(unmapping)
        # Let sockets that were told to close do so before the event loop may go away.
        await asyncio.sleep(0)

    async def _unmap(self) -> None:
        """Give port mappings back, within little more than a second."""
        if self._mappings is not None:
            await self._mappings.close()

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

    async def contact(self) -> Contact:
        """What to give away so that others can dial this node; `str()` is the line of text.

        Where bootstrap nodes are configured it waits for them, three seconds at most: they tell the outside addresses,
        and the contact names them as rendezvous. For a router that may map our port it waits half a second at most.
        Cancellation loses nothing.
        """
        self._started()
        assert self._neighbourhood is not None
        assert self._mappings is not None
        await asyncio.gather(self._neighbourhood.tried(_CONTACT_SECONDS), self._mappings.settled(_MAPPING_SECONDS))
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

    async def connect(self, target: PeerId | Contact | str, *, timeout: float = 30) -> Connection:
        """Connect to a peer by its key; a connection that exists is returned.

        Args:
            target: a PeerId, a Contact, or the text of either, or "PEERID@HOST:PORT".
            timeout: seconds for the whole dial.

        Raises:
            ParseError: the text is none of these.
            SelfDialError: the target is this node.
            NotAuthenticError: something answers, but does not hold this key.
            NetworkMismatchError: the peer belongs to another network.
            RefusedError: the peer does not want this node.
            NoPathError: nothing answers. All but the first are `ConnectError`, with a `report`.
            CancelledError: gives the dial up, unless somebody else waits for the same peer.
        """
        core = self._started()
        contact = _contact_of(target)
        peer = contact.id
        started = monotonic()
        report = Report(str(peer))
        if peer == self.id:
            raise _failed(SelfDialError("this is the PeerId of the dialling node itself"), report, 0.0)
        if contact.candidates:
            self._remember(peer, contact.candidates)
        found = core.registry.find(peer)
        if found is not None and found.path_count:
            return found
        task = self._dials.get(peer)
        if task is None:
            return await self._wait_for_dial(peer, self._start_dial(contact, report, started, timeout))
        try:
            async with asyncio.timeout(timeout):  # the dial under way may have more time than this call
                return await self._wait_for_dial(peer, task)
        except TimeoutError:
            raise _failed(NoPathError("no candidate answered in time"), report, monotonic() - started) from None

    async def _wait_for_dial(self, peer: PeerId, task: asyncio.Task[Connection]) -> Connection:
        """Wait for a dial, which is given up when nobody waits for it any more."""
        waiters = self._dial_waiters
        waiters[task] = waiters.get(task, 0) + 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._core is not None and self._core.closing:
                raise LocalProtocolError("the node is closed") from None
            raise
        finally:
            waiters[task] -= 1
            if not waiters[task]:
                del waiters[task]
                task.cancel()  # has no effect on a dial that is done
                self._forget_dial(peer, task)

    def _forget_dial(self, peer: PeerId, task: asyncio.Task[Connection]) -> None:
        """A dial is over, or about to be: who comes now starts another."""
        if self._dials.get(peer) is task:
            del self._dials[peer]

    def _start_dial(
        self,
        contact: Contact,
        report: Report,
        started: float,
        limit: float,
        mode: _Mode = _Mode.CALL,
        terms: Terms | None = None,
    ) -> asyncio.Task[Connection]:
        core = self._started()
        task = core.loop.create_task(self._dial(contact, report, started, limit, mode, terms))
        self._dials[contact.id] = task
        task.add_done_callback(lambda task: self._forget_dial(contact.id, task))
        return task

    async def _connect_directly(self, contact: Contact, limit: float) -> Connection:
        """Connect to a bootstrap or rendezvous node, of whose address we know."""
        core = self._started()
        found = core.registry.find(contact.id)
        if found is not None and found.path_count:
            return found
        self._remember(contact.id, contact.candidates)
        task = self._dials.get(contact.id)
        if task is None:
            task = self._start_dial(contact, Report(str(contact.id)), monotonic(), limit, _Mode.DIRECT)
        return await self._wait_for_dial(contact.id, task)

    def _called(self, contact: Contact, candidates: Sequence[Candidate], terms: Terms) -> bool:
        """A peer dials us through a rendezvous: dial it too, so that NATs on both sides open (PROTOCOL 21)."""
        assert self._acceptor is not None
        assert self._core is not None
        peer = contact.id
        if self._acceptor.decides_first and self._core.registry.find(peer) is None:
            return False  # the application has not agreed to show this node to that peer
        if peer not in self._dials and self._core.registry.find(peer) is None:
            self._remember(peer, tuple(candidates))
            report = Report(str(peer))
            task = self._start_dial(contact, report, monotonic(), _ANSWERING_SECONDS, _Mode.ANSWER, terms)
            self._dial_waiters[task] = 1  # the caller, for whom nobody here waits
            task.add_done_callback(lambda task: self._dial_waiters.pop(task, None))
            task.add_done_callback(_forget_failure)
        return True

    def _arrived(self, connection: Connection) -> None:
        """A connection is up: a dial of the same peer has come to its end."""
        arrival = self._arrivals.get(connection.peer)
        if arrival is not None and not arrival.done():
            arrival.set_result(connection)

    async def _dial(
        self, contact: Contact, report: Report, started: float, limit: float, mode: _Mode, terms: Terms | None
    ) -> Connection:
        core = self._started()
        peer = contact.id
        race = core.loop.create_task(self._race(contact, report, started, mode, terms))
        arrival: asyncio.Future[Connection] = core.loop.create_future()
        self._arrivals[peer] = arrival
        try:
            async with asyncio.timeout_at(core.loop.time() + limit):
                await asyncio.wait((race, arrival), return_when=asyncio.FIRST_COMPLETED)
                if arrival.done():
                    return self._finish_dial(arrival.result(), report, started)
                won = race.result()
        except TimeoutError:
            race.cancel()
            await asyncio.wait((race,))
            raise _failed(explain_timeout(report), report, monotonic() - started) from None
        except ConnectError as error:
            raise _failed(error, report, monotonic() - started) from error.__cause__
        except OSError as error:
            raise _failed(NoPathError(str(error)), report, monotonic() - started) from error
        finally:
            if self._arrivals.get(peer) is arrival:
                del self._arrivals[peer]
            race.add_done_callback(_close_late)
            race.cancel()
        # A connection may have come in while we dialled; then this is one more path of it.
        connection = core.registry.find(peer)
        new = connection is None
        if connection is None:
            connection = core.new_connection(won.result, report)
        self._attach(connection, won, started)
        if new and connection.path is not None:
            core.connected(connection, connection.path, accepted=False)
        return self._finish_dial(connection, report, started)

    def _finish_dial(self, connection: Connection, report: Report, started: float) -> Connection:
        report.elapsed_ms = (monotonic() - started) * 1000
        report.winner = connection.path
        if connection.report is None:
            connection.report = report
        return connection

    async def _race(
        self, contact: Contact, report: Report, started: float, mode: _Mode, terms: Terms | None = None
    ) -> DialledPath:
        """Race the addresses that are known, and those that come through rendezvous nodes."""
        assert self._dialler is not None
        assert self._core is not None
        assert self._neighbourhood is not None
        feed = CandidateFeed(self._known.get(contact.id, ()))
        feed.terms = terms
        calling: asyncio.Task[None] | None = None
        assert self._acceptor is not None
        if mode is not _Mode.CALL:
            feed.punch = Punch(self._acceptor, caller=mode is _Mode.DIRECT)
        if mode is _Mode.CALL and (contact.rendezvous or self._config.bootstrap):
            feed.punch = Punch(self._acceptor, caller=True)
            calling = self._core.loop.create_task(self._neighbourhood.call(contact, feed))
        elif not self._known.get(contact.id):
            raise NoPathError(
                "no address of this peer is known: dial its contact, or PEERID@HOST:PORT, or name bootstrap nodes"
            )
        else:
            feed.close()
        try:
            return await self._dialler.race(contact.id, feed, report, started)
        finally:
            if calling is not None:
                calling.cancel()

    def _attach(self, connection: Connection, won: DialledPath, started: float) -> None:
        core = self._core
        assert core is not None
        assert self._dialler is not None
        won.attach(core, connection, (monotonic() - started) * 1000)
        self._dialler.follow(won, connection, started)

    def _own_candidates(self) -> list[Candidate]:
        """Where this node can be reached: each listening address, wildcards as the addresses of the interfaces."""
        assert self._acceptor is not None
        listening = self._acceptor.addresses
        hosts = candidate_hosts(local_addresses())
        addresses: list[tuple[str, int]] = []
        for host, port in listening:
            if host in _WILDCARDS:
                addresses += [(own, port) for own in hosts if (":" in own) == (":" in host)]
            else:
                addresses.append((host, port))
        if not addresses:  # nothing but loopback
            addresses = [(_WILDCARDS.get(host, host), port) for host, port in listening]
        transports = sorted(set(self._config.transports))
        found = [Candidate(transport, host, port) for host, port in addresses for transport in transports]
        return [*found, *(self._mappings.candidates if self._mappings is not None else ())]

    def _outside_hosts(self) -> set[str]:
        """Our outside hosts, as the rendezvous nodes that we have named see them."""
        assert self._neighbourhood is not None
        return {candidate.host for candidate in self._neighbourhood.signalling.reflexive}

    def _addresses_changed(self) -> None:
        """A router maps a port for us, or does so no more."""
        assert self._core is not None
        self._core.stats.count("addresses.changed")

    def _remember(self, peer: PeerId, candidates: tuple[Candidate, ...]) -> None:
        """Keep where a peer was said to be, for dialling it again."""
        known = self._known.pop(peer, ())
        self._known[peer] = tuple(dict.fromkeys((*candidates, *known)))[:64]
        while len(self._known) > _KNOWN_PEERS:
            del self._known[next(iter(self._known))]

    # --- dialling again ------------------------------------------------------------------------------------------

    def _redial(self, connection: Connection) -> None:
        if connection in self._redials:
            self._redial_again[connection].set()
            return
        if connection.peer not in self._known:
            return
        assert self._core is not None
        again = self._redial_again[connection] = asyncio.Event()
        task = self._core.loop.create_task(self._keep_dialling(connection, again))
        self._redials[connection] = task
        task.add_done_callback(lambda _: self._redial_ended(connection, again))

    def _redial_ended(self, connection: Connection, again: asyncio.Event) -> None:
        if self._redial_again.get(connection) is again:
            del self._redials[connection], self._redial_again[connection]

    async def _keep_dialling(self, connection: Connection, again: asyncio.Event) -> None:
        """Dial a peer whose connection needs a path, until it has a good one or has ended."""
        try:
            await self._dial_until_good(connection, again)
        finally:
            # Now: a path that is lost between the end of this task and its callbacks needs another one.
            self._redial_ended(connection, again)

    async def _dial_until_good(self, connection: Connection, again: asyncio.Event) -> None:
        core = self._core
        assert core is not None
        attempts = 0
        paths = set(connection.session.path_ids)
        while not self._given_up(connection):
            await asyncio.sleep(_REDIAL_PAUSES[min(attempts, len(_REDIAL_PAUSES) - 1)])
            attempts += 1
            if not connection.session.needs_path() or set(connection.session.path_ids) - paths:
                return
            started = monotonic()
            try:
                async with asyncio.timeout(_REDIAL_TIMEOUT):
                    won = await self._race(Contact(connection.peer), Report(str(connection.peer)), started, _Mode.CALL)
            except (ConnectError, TimeoutError, OSError):
                continue
            if self._given_up(connection):
                won.abort()
                return
            self._attach(connection, won, started)
            core.stats.count("path.redialled")
            again.clear()
            await self._confirmed(connection, again)
            if connection.session.active_path is not None and not connection.session.needs_path():
                return

    def _given_up(self, connection: Connection) -> bool:
        """Whether a connection needs no path any more."""
        return connection.closed or self._core is None or self._core.closing

    async def _confirmed(self, connection: Connection, again: asyncio.Event) -> None:
        """Wait for an echo over the new path, or for its end."""
        waiting = {asyncio.ensure_future(connection.ping()), asyncio.ensure_future(again.wait())}
        try:
            done, _ = await asyncio.wait(waiting, timeout=_REDIAL_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        for task in done:
            task.exception()  # how the connection ended is its own affair

    def _connection_ended(self, connection: Connection) -> None:
        task = self._redials.get(connection)
        if task is not None:
            task.cancel()
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


def _failed(error: ConnectError, report: Report, seconds: float) -> ConnectError:
    """Complete the report of a failed dial and hang it on the error."""
    report.elapsed_ms = seconds * 1000
    report.error = str(error)
    error.report = report
    return error


def _forget_failure(task: asyncio.Task[Connection]) -> None:
    """A dial that nobody waits for has ended."""
    if not task.cancelled():
        task.exception()


def _close_late(task: asyncio.Task[DialledPath]) -> None:
    """A race that nobody waits for any more has been won: the path is surplus."""
    if not task.cancelled() and task.exception() is None and task.result().taken is False:
        task.result().abort()
