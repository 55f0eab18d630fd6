"""The dials of a node: one for each peer at a time; calls through rendezvous nodes, answers to calls, redialling."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from crust.crypto.keys import PeerId
from crust.errors import ConnectError, LocalProtocolError, NoPathError, RefusedError
from crust.net.clock import monotonic
from crust.node.acceptor import Acceptor
from crust.node.attempt import DialledPath, Punch
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.dial import CandidateFeed, Dialler, explain_timeout
from crust.node.explain import Explainer
from crust.node.inbound_call import CalledInbound
from crust.node.network import Neighbourhood
from crust.proto.nat.terms import Terms
from crust.types import Candidate, Report, Transport
from crust.wire.contact import Contact

__all__ = ["Dials", "failed"]

_REDIAL_PAUSES: Final = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0)
"""Seconds before each further dial of a connection that lost its path: at most one a second (PROTOCOL 16)."""

_REDIAL_TIMEOUT: Final = 15.0
_ANSWERING_SECONDS: Final = 15.0
_KNOWN_PEERS: Final = 4096
_KNOWN_ADDRESSES: Final = 64
_RTT_LEAST: Final = 0.05
_RTT_UNKNOWN: Final = 0.1
_WIDEN_SECONDS: Final = 3.0

_Way = tuple[Transport, bool]
"""A transport, and whether over IPv6."""


class _Mode(enum.Enum):
    """How a dial goes about it."""

    CALL = "through rendezvous nodes too, if there are any"
    DIRECT = "to a rendezvous itself, from the listening port: it then knows the outside address of that port"
    SWAPPED = "as a call, and without rendezvous nodes at the same time as the peer, who was told to"
    ANSWER = "a peer calls us: both dial at the same time"


class Dials:
    """Everything that a node dials.

    Args:
        core: the node's centre.
        dialler: runs the races.
        acceptor: takes what comes in, which may be the answer to a call.

    Attributes:
        neighbourhood: through whom peers are called; set before the first dial.
        explainer: completes reports; the same.
    """

    neighbourhood: Neighbourhood
    explainer: Explainer

    def __init__(self, core: Core, dialler: Dialler, acceptor: Acceptor) -> None:
        self._core = core
        self._dialler = dialler
        self._acceptor = acceptor
        self._arrivals: dict[PeerId, asyncio.Future[Connection]] = {}
        self._dials: dict[PeerId, asyncio.Task[Connection]] = {}
        self._dial_waiters: dict[asyncio.Task[Connection], int] = {}
        self._calling: set[PeerId] = set()
        self._feeds: dict[PeerId, CandidateFeed] = {}
        self._redials: dict[Connection, asyncio.Task[None]] = {}
        self._redial_again: dict[Connection, asyncio.Event] = {}  # the path that was being confirmed has gone, too
        self._known: dict[PeerId, tuple[Candidate, ...]] = {}
        self._claimed: dict[PeerId, tuple[Candidate, ...]] = {}
        core.redial = self.redial
        core.arrived = self._arrived
        acceptor.calling = self._calling.__contains__
        acceptor.dialling = self._dials.__contains__
        acceptor.let_in = self.lets_in

    def cancel(self) -> None:
        """Give everything up."""
        tasks: list[asyncio.Task[object]] = [*self._dials.values(), *self._redials.values()]
        for task in tasks:
            task.cancel()
        self._dialler.close()

    # --- addresses -----------------------------------------------------------------------------------------------

    def known(self, peer: PeerId) -> tuple[Candidate, ...]:
        """Where a peer has answered, or is according to the user."""
        return self._known.get(peer, ())

    def claimed(self, peer: PeerId) -> tuple[Candidate, ...]:
        """Where a peer says that it is."""
        return self._claimed.get(peer, ())

    def lets_in(self, peer: PeerId, transport: Transport, host: str) -> bool:
        """Whether we are dialling a peer, or have just done so, and a host is known as the outside of its NAT only."""
        dialled = peer in self._feeds or self._core.registry.find(peer) is not None
        every = (*self.known(peer), *self.claimed(peer)) if dialled else ()
        kinds = {each.kind for each in every if each.transport == transport and each.host == host}
        return "server-reflexive" in kinds and "host" not in kinds

    def remember(self, peer: PeerId, candidates: Sequence[Candidate]) -> None:
        """Keep where a peer is, for dialling it again."""
        _keep(self._known, peer, candidates)

    # --- dialling ------------------------------------------------------------------------------------------------

    async def connect(
        self, contact: Contact, report: Report, started: float, limit: float, *, swapped: bool = False
    ) -> Connection:
        """Connect to a peer; a connection that exists is returned, a dial under way is joined.

        Raises:
            ConnectError: with the report. Cancellation gives the dial up, unless somebody else waits for the same peer.
        """
        peer = contact.id
        if contact.candidates:
            self.remember(peer, contact.candidates)
        found = self._core.registry.find(peer)
        if found is not None and found.path_count:
            return found
        task = self._dials.get(peer)
        if task is None:
            mode = _Mode.SWAPPED if swapped else _Mode.CALL
            return await self._wait_for_dial(peer, self._start_dial(contact, report, started, limit, mode))
        try:
            async with asyncio.timeout(limit):  # the dial under way may have more time than this call
                return await self._wait_for_dial(peer, task)
        except TimeoutError:
            raise failed(NoPathError("no candidate answered in time"), report, monotonic() - started) from None

    async def _wait_for_dial(self, peer: PeerId, task: asyncio.Task[Connection]) -> Connection:
        """Wait for a dial, which is given up when nobody waits for it any more."""
        waiters = self._dial_waiters
        waiters[task] = waiters.get(task, 0) + 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._core.closing:
                raise LocalProtocolError("the node is closed") from None
            raise
        finally:
            # A dial that answers a call forgets its waiters when it is done.
            left = waiters.get(task, 1) - 1
            if left:
                waiters[task] = left
            else:
                waiters.pop(task, None)
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
        task = self._core.loop.create_task(self._dial(contact, report, started, limit, mode, terms))
        self._dials[contact.id] = task
        task.add_done_callback(lambda task: self._forget_dial(contact.id, task))
        return task

    async def connect_directly(self, contact: Contact, limit: float) -> Connection:
        """Connect to a bootstrap or rendezvous node, of whose address we know."""
        found = self._core.registry.find(contact.id)
        if found is not None and found.path_count:
            return found
        self.remember(contact.id, contact.candidates)
        task = self._dials.get(contact.id)
        if task is None:
            task = self._start_dial(contact, Report(str(contact.id)), monotonic(), limit, _Mode.DIRECT)
        return await self._wait_for_dial(contact.id, task)

    async def widen(self, connection: Connection) -> None:
        """Give the connection to a rendezvous a path of each transport over the IP version that it has none of.

        So that it sees us, and tells our outside addresses, over both. Failures are of no interest.
        """
        peer = connection.peer
        ways: dict[_Way, list[Candidate]] = {}
        for each in self.known(peer):
            if each.transport in self._core.config.transports:
                ways.setdefault((each.transport, ":" in each.host), []).append(each)
        if len({six for _, six in ways}) > 1:
            await asyncio.gather(*(self._add_path(connection, way, ways[way]) for way in ways))

    async def _add_path(self, connection: Connection, way: _Way, candidates: list[Candidate]) -> None:
        if way[0] == "tcp":
            # What is left of the dial may bring this very path, and holds the port from which it is to be dialled.
            await self._dialler.followed(connection)
        if way in {(path.transport, path.remote.startswith("[")) for path in connection.paths}:
            return
        started = monotonic()
        feed = CandidateFeed(candidates)
        feed.own_port = True
        feed.close()
        report = Report(str(connection.peer))
        try:
            async with asyncio.timeout(_WIDEN_SECONDS):
                won = await self._dialler.race(connection.peer, feed, report, started)
        except (ConnectError, OSError, TimeoutError):
            return
        assert isinstance(won, DialledPath)
        if self._given_up(connection):
            won.abort()
        else:
            won.attach(self._core, connection, (monotonic() - started) * 1000)

    def called(
        self, contact: Contact, candidates: Sequence[Candidate], terms: Terms, again: Callable[[], None]
    ) -> bool:
        """A peer dials us through a rendezvous: dial it too, so that NATs on both sides open (PROTOCOL 21).

        Args:
            contact: the peer's.
            candidates: its addresses, and those that the rendezvous has seen.
            terms: both NATs.
            again: called when the application, which is to decide first, has accepted the peer.

        Returns:
            Whether to answer with our addresses.
        """
        peer = contact.id
        if self._core.closing:
            return False
        if not self._is_agreed(peer):
            where = next(((c.host, c.port) for c in reversed(candidates)), ("", 0))
            self._acceptor.ask(CalledInbound(self._acceptor, where, again), peer)
            return False
        # Both call: to both of them the other's connection is as much an incoming one as their own.
        self._calling.discard(peer)
        if peer not in self._dials and candidates:
            _keep(self._claimed, peer, candidates)
            report = Report(str(peer))
            task = self._start_dial(contact, report, monotonic(), _ANSWERING_SECONDS, _Mode.ANSWER, terms)
            self._dial_waiters[task] = 1  # the caller, for whom nobody here waits
            task.add_done_callback(lambda task: self._dial_waiters.pop(task, None))
            task.add_done_callback(_forget_failure)
        return True

    def _is_agreed(self, peer: PeerId) -> bool:
        """Whether this node may be shown to a peer: the application has agreed, or leaves it to us."""
        acceptor = self._acceptor
        known = self._core.registry.find(peer) is not None or peer in self._dials
        return known or not acceptor.decides_first or acceptor.lets_in(peer)

    def more(self, peer: PeerId, candidates: Sequence[Candidate]) -> None:
        """A peer that dials us has further addresses."""
        if not self._is_agreed(peer):
            return
        _keep(self._claimed, peer, candidates)
        feed = self._feeds.get(peer)
        if feed is not None:
            feed.add(candidates)

    def _arrived(self, connection: Connection) -> None:
        """A connection, or another path of one, has come in: a dial of the same peer has come to its end."""
        arrival = self._arrivals.get(connection.peer)
        if arrival is not None and not arrival.done():
            arrival.set_result(connection)

    async def _dial(
        self, contact: Contact, report: Report, started: float, limit: float, mode: _Mode, terms: Terms | None
    ) -> Connection:
        peer = contact.id
        if mode is _Mode.CALL and self._through_rendezvous(contact):
            self._calling.add(peer)
        try:
            return await self._dial_and_attach(contact, report, started, limit, mode, terms)
        finally:
            self._calling.discard(peer)

    def _through_rendezvous(self, contact: Contact) -> bool:
        """Whether there is anybody through whom a peer can be called."""
        return bool(contact.rendezvous or self._core.config.bootstrap)

    async def _dial_and_attach(
        self, contact: Contact, report: Report, started: float, limit: float, mode: _Mode, terms: Terms | None
    ) -> Connection:
        core, peer = self._core, contact.id
        try:
            won = await self._race(contact, report, started, limit, mode, terms)
        except TimeoutError:
            self.explainer.failure(report)
            raise failed(explain_timeout(report), report, monotonic() - started) from None
        except ConnectError as error:
            self.explainer.failure(report)
            raise failed(error, report, monotonic() - started) from error.__cause__
        except OSError as error:
            raise failed(NoPathError(str(error)), report, monotonic() - started) from error
        if isinstance(won, Connection):
            return self._finish_dial(won, report, started)
        # A connection may have come in while we dialled; then this is one more path of it.
        connection = core.registry.find(peer)
        new, answering = connection is None, mode is _Mode.ANSWER
        if connection is None:
            if answering and self._acceptor.is_full(queued=True):
                won.abort()
                raise failed(RefusedError("there is no room for another connection"), report, monotonic() - started)
            connection = core.new_connection(won.result, report)
        self._attach(connection, won, started)
        self.remember(peer, [won.candidate])
        if new and connection.path is not None:
            core.connected(connection, connection.path, accepted=answering)
            if answering:
                self._acceptor.accepted(connection)
        return self._finish_dial(connection, report, started)

    def _finish_dial(self, connection: Connection, report: Report, started: float) -> Connection:
        report.elapsed_ms = (monotonic() - started) * 1000
        report.winner = connection.path
        if connection.report is None:
            connection.report = report
        return connection

    async def _race(
        self,
        contact: Contact,
        report: Report,
        started: float,
        limit: float,
        mode: _Mode,
        terms: Terms | None = None,
    ) -> DialledPath | Connection:
        """Race the addresses that are known, and those that come through rendezvous nodes; what comes in from the peer
        meanwhile wins, too.

        Raises:
            TimeoutError: the time is up.
            ConnectError: every address failed.
        """
        peer, known, claimed = contact.id, self.known(contact.id), self.claimed(contact.id)
        feed = CandidateFeed(() if mode is _Mode.SWAPPED else claimed, known)
        feed.terms = terms
        feed.own_port = mode is _Mode.DIRECT
        feed.punch = self._how_to_punch(mode, limit)
        calling: asyncio.Task[None] | None = None
        if mode in (_Mode.CALL, _Mode.SWAPPED) and self._through_rendezvous(contact):
            calling = self._core.loop.create_task(self.neighbourhood.call(contact, feed))
        elif not (known or claimed):
            raise NoPathError(
                "no address of this peer is known: dial its contact, or PEERID@HOST:PORT, or name bootstrap nodes"
            )
        else:
            seen = any(each.kind == "server-reflexive" for each in known)
            if mode is _Mode.SWAPPED or (mode is _Mode.CALL and seen):
                self._punch_by_hand(feed, peer, limit)
            feed.close()
        self._feeds[peer] = feed
        try:
            async with asyncio.timeout(limit):
                with self._arrival(peer) as arrival:
                    return await self._dialler.race(peer, feed, report, started, arrival)
        finally:
            self.explainer.nats(report, feed.terms)
            if self._feeds.get(peer) is feed:
                del self._feeds[peer]
            if calling is not None:
                calling.cancel()

    @contextlib.contextmanager
    def _arrival(self, peer: PeerId) -> Iterator[asyncio.Future[Connection]]:
        """Be told of the connection that comes in from a peer while it is dialled."""
        arrival: asyncio.Future[Connection] = self._core.loop.create_future()
        self._arrivals[peer] = arrival
        try:
            yield arrival
        finally:
            if self._arrivals.get(peer) is arrival:
                del self._arrivals[peer]

    def _how_to_punch(self, mode: _Mode, limit: float) -> Punch:
        """The times of a dial: our answer travels about as long as to our rendezvous and back."""
        sessions = [server.session for server in self.neighbourhood.signalling.servers]
        way = min((s.path_rtt(s.active_path) for s in sessions if s.active_path is not None), default=0.0)
        return Punch(way if mode is _Mode.ANSWER else 0.0, max(2 * way, _RTT_LEAST), limit)

    def _punch_by_hand(self, feed: CandidateFeed, peer: PeerId, limit: float) -> None:
        """Contacts were swapped without a rendezvous: the peer dials us, too, sooner or later."""
        first = self._core.identity.id > peer
        feed.terms = Terms(self.neighbourhood.surroundings.standings(), controlling=first, caller=first)
        feed.punch = Punch(0.0, _RTT_UNKNOWN, limit, coordinated=False)

    def _attach(self, connection: Connection, won: DialledPath, started: float) -> None:
        won.attach(self._core, connection, (monotonic() - started) * 1000)
        self._dialler.follow(won, connection, started)

    # --- dialling again ------------------------------------------------------------------------------------------

    def redial(self, connection: Connection) -> None:
        """Find another path for a connection."""
        if connection in self._redials:
            self._redial_again[connection].set()
            return
        peer = connection.peer
        if not (self.known(peer) or self.claimed(peer) or self._core.config.bootstrap):
            return
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
        peer, attempts = connection.peer, 0
        paths = set(connection.session.path_ids)
        while not self._given_up(connection):
            await asyncio.sleep(_REDIAL_PAUSES[min(attempts, len(_REDIAL_PAUSES) - 1)])
            attempts += 1
            if not connection.session.needs_path() or set(connection.session.path_ids) - paths:
                return
            started = monotonic()
            # A rendezvous is to see the port that we listen on, also after we have changed networks.
            mode = _Mode.DIRECT if connection in self.neighbourhood.signalling.servers else _Mode.CALL
            try:
                won = await self._race(Contact(peer), Report(str(peer)), started, _REDIAL_TIMEOUT, mode)
            except (ConnectError, TimeoutError, OSError):
                continue
            if not isinstance(won, Connection):
                if self._given_up(connection):
                    won.abort()
                    return
                self._attach(connection, won, started)
            self._core.stats.count("path.redialled")
            again.clear()
            await self._confirmed(connection, again)
            if connection.session.active_path is not None and not connection.session.needs_path():
                return

    def _given_up(self, connection: Connection) -> bool:
        """Whether a connection needs no path any more."""
        return connection.closed or self._core.closing

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

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        task = self._redials.get(connection)
        if task is not None:
            task.cancel()


def failed(error: ConnectError, report: Report, seconds: float) -> ConnectError:
    """Complete the report of a failed dial and hang it on the error."""
    report.elapsed_ms = seconds * 1000
    report.error = str(error)
    error.report = report
    return error


def _forget_failure(task: asyncio.Task[Connection]) -> None:
    """A dial that nobody waits for has ended."""
    if not task.cancelled():
        task.exception()


def _keep(places: dict[PeerId, tuple[Candidate, ...]], peer: PeerId, candidates: Sequence[Candidate]) -> None:
    """Put a peer's addresses before those that are kept of it; of many peers the oldest is forgotten."""
    known = places.pop(peer, ())
    places[peer] = tuple(dict.fromkeys((*candidates, *known)))[:_KNOWN_ADDRESSES]
    while len(places) > _KNOWN_PEERS:
        del places[next(iter(places))]
