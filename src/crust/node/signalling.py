"""Our side of a rendezvous: being found, learning our outside addresses, calling peers and answering calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from crust.crypto.keys import PeerId
from crust.errors import CrustError, NoPathError, RemoteProtocolError
from crust.net.clock import monotonic
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.rendezvous import sign_presence
from crust.node.surroundings import Surroundings
from crust.proto.nat.strategy import Approach
from crust.proto.nat.terms import Standing, Terms, parse_standings, serialize_standing
from crust.proto.signal import DialMemory, offer_hash, open_offer, seal_offer
from crust.types import Candidate, Transport
from crust.wire.contact import Contact, is_dialable
from crust.wire.offer import Offer
from crust.wire.service import (
    TRANSPORTS,
    Address,
    AskAddress,
    AskChallenge,
    Challenge,
    Forward,
    Forwarded,
    Presence,
    ServiceMessage,
    Undelivered,
)

__all__ = ["Call", "Callee", "Signalling"]

_PRESENCE_SECONDS: Final = 300
_ANSWER_SECONDS: Final = 4.0
_ANSWER_LEAST: Final = 1.0
_SETTLE_SECONDS: Final = 1.0
_ASK_AGAIN_SECONDS: Final = 0.4
_CANDIDATES_MOST: Final = 32

_DIAL_SECONDS: Final = 15.0
"""So long further candidates are of use."""

_BY_PREDICTION: Final = (Approach.PREDICTED, Approach.MEET)
"""Where our own next ports matter."""

_ANSWERS_KEPT: Final = 256

_TRICKLE_PAUSE: Final = 0.02
"""News of our addresses come in pairs, for TCP and for UDP: they go out together."""

_TRICKLES_MOST: Final = 8
"""So often further candidates of one dial are sent, and taken."""

AnswerHandler = Callable[[Sequence[Candidate], Terms], None]
"""Told of the candidates of a peer that we dial, and of both NATs."""


class Callee(Protocol):
    """What a node does when peers dial it through a rendezvous."""

    def called(
        self, contact: Contact, candidates: Sequence[Candidate], terms: Terms, again: Callable[[], None]
    ) -> bool:
        """A peer dials us: its candidates, with what the rendezvous has seen, and both NATs.

        Returns:
            Whether to answer with our addresses; if not now, `again` may be called later to be asked once more.
        """

    def more(self, peer: PeerId, candidates: Sequence[Candidate]) -> None:
        """It has further candidates."""

    async def widen(self, connection: Connection) -> None:
        """Give a connection paths over the other IP version, where there is one."""


@dataclass(slots=True)
class _Answer:
    """An offer that we answer.

    Attributes:
        peer: whose.
        until: when the dial is over, one way or the other.
        terms: what was said.
        ways: through whom it was answered, and the hash of the offer.
        told: our candidates, as the peer knows them.
        trickled: how often further candidates were sent and taken.
    """

    peer: PeerId
    until: float
    terms: Terms = field(default_factory=Terms)
    ways: list[tuple[Connection, bytes]] = field(default_factory=list)
    told: list[Candidate] = field(default_factory=list)
    trickled: int = 0


class Call:
    """One dial through rendezvous nodes.

    Attributes:
        dial_id: 16 random bytes.
        terms: both NATs, as far as they are known.
    """

    def __init__(
        self, peer: PeerId, dial_id: bytes, ours: dict[Transport, Standing], on_candidates: AnswerHandler
    ) -> None:
        self.peer = peer
        self.dial_id = dial_id
        self.terms = Terms(ours)
        self.on_candidates = on_candidates
        self.hashes: set[bytes] = set()
        self.open: set[Connection] = set()
        self.told: list[Candidate] = []
        self.trickled = 0
        self.answered = False
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self) -> None:
        """Wake who waits when there is nothing more to wait for."""
        if (self.answered or not self.open) and not self.decided.done():
            self.decided.set_result(None)


class Signalling:
    """Talks to the rendezvous nodes of a node.

    Args:
        core: the node's centre.
        own_candidates: gives our addresses, to be told to a peer.
        callee: told of peers that dial us.
        listens_on: says whether a local port is one that we listen on.
        surroundings: keeps how our NATs behave.
    """

    def __init__(
        self,
        core: Core,
        own_candidates: Callable[[], list[Candidate]],
        callee: Callee,
        listens_on: Callable[[int], bool],
        surroundings: Surroundings,
    ) -> None:
        self._core = core
        self._listens_on = listens_on
        self._surroundings = surroundings
        self._path_times: dict[tuple[Connection, int], float] = {}
        self._answering: dict[bytes, Terms] = {}
        self._answers: dict[bytes, _Answer] = {}
        self._trickling: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_candidates = own_candidates
        self._callee = callee
        self._servers: dict[Connection, asyncio.TimerHandle | None] = {}
        self._observed: dict[tuple[Connection, int], Candidate] = {}
        self._calls: dict[bytes, Call] = {}
        self._unsettled: dict[Connection, asyncio.Future[None]] = {}
        self._memory = DialMemory()

    # --- being found ---------------------------------------------------------------------------------------------

    def use(self, connection: Connection) -> None:
        """A connection to a bootstrap node has come up: let it serve us."""
        if connection not in self._servers:
            self._servers[connection] = None
            self._unsettled[connection] = self._core.loop.create_future()
            if self._core.config.listen != []:
                connection.send_service(AskChallenge())
            for path_id in connection.session.path_ids:
                self.path_up(connection, path_id)

    async def settled(self) -> None:
        """Wait until our servers have told us our outside addresses, and know us. Each has a second for it."""
        waiting = list(self._unsettled.values())
        if waiting:
            await asyncio.wait(waiting, timeout=_SETTLE_SECONDS)

    def _settle(self, connection: Connection) -> None:
        waiting = self._unsettled.pop(connection, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def path_up(self, connection: Connection, path_id: int) -> None:
        """A path of a server is up: ask for our address on it."""
        if connection in self._servers:
            self._path_times[connection, path_id] = monotonic()
            self._surroundings.path_up(connection, path_id)
            connection.send_service(AskAddress(), path_id)

    def ask_again(self) -> None:
        """Our network has changed: have every server say from where it sees us now."""
        for connection in self.servers:
            for path_id in connection.session.path_ids:
                self.path_up(connection, path_id)

    def forget(self, connection: Connection) -> None:
        """A server's connection has ended."""
        self._settle(connection)
        timer = self._servers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        for key in [key for key in self._observed if key[0] is connection]:
            del self._observed[key]
        for key in [key for key in self._path_times if key[0] is connection]:
            del self._path_times[key]
        self._surroundings.forget(connection)
        for call in self._calls.values():
            call.open.discard(connection)
            call.settle()

    @property
    def servers(self) -> list[Connection]:
        """Rendezvous nodes that we are connected to."""
        return [connection for connection in self._servers if not connection.closed]

    @property
    def reflexive(self) -> list[Candidate]:
        """Our outside addresses, as our rendezvous nodes see them; they were named by us, so each is believed."""
        live = [c for (conn, path_id), c in self._observed.items() if path_id in conn.session.path_ids]
        return list(dict.fromkeys(live))

    @property
    def sightings(self) -> list[tuple[Candidate, Candidate, int]]:
        """Who sees us where: our outside address, the rendezvous node that told it, and our port on the way to it."""
        found = []
        for (connection, path_id), seen in self._observed.items():
            observer = connection.path_source(path_id)
            if observer is not None:
                found.append((seen, observer, connection.path_local_port(path_id)))
        return found

    # --- messages ------------------------------------------------------------------------------------------------

    def receive(self, connection: Connection, message: ServiceMessage, path_id: int | None) -> None:
        """A message that is not for our own rendezvous service."""
        if connection in self._servers and self._surroundings.receive(connection, message, path_id):
            return
        if isinstance(message, Address) and path_id is not None:
            self._learn_address(connection, message, path_id)
        elif isinstance(message, Challenge):
            self._answer_challenge(connection, message)
        elif isinstance(message, Forwarded):
            self._forwarded(connection, message)
        elif isinstance(message, Undelivered):
            call = self._calls.get(message.dial_id)
            if call is not None:
                call.open.discard(connection)
                call.settle()

    def _learn_address(self, connection: Connection, message: Address, path_id: int) -> None:
        path = connection.path_source(path_id)
        if not is_dialable(message.host):
            self._core.stats.count("service.impossible_address")
            path = None
        # What was measured must be what will be used: only paths from a listening port count.
        if connection in self._servers and path is not None and self._listens_on(connection.path_local_port(path_id)):
            found = Candidate(path.transport, message.host, message.port, "server-reflexive")
            if self._observed.get((connection, path_id)) != found:
                self._observed[connection, path_id] = found
                self.addresses_changed()
            asked_at = self._path_times.get((connection, path_id), monotonic())
            self._surroundings.address_seen(connection, path_id, (message.host, message.port), asked_at)
        # Asked after the challenge, so our presence is on its way before this answer.
        self._settle(connection)

    def _answer_challenge(self, connection: Connection, message: Challenge) -> None:
        if connection not in self._servers:
            return
        core = self._core
        signature = sign_presence(core.identity, message.nonce, connection.peer, _PRESENCE_SECONDS)
        connection.send_service(Presence(_PRESENCE_SECONDS, signature))
        self._servers[connection] = core.loop.call_later(_PRESENCE_SECONDS / 2, self._renew, connection)

    def _renew(self, connection: Connection) -> None:
        if connection in self._servers and not connection.closed:
            connection.send_service(AskChallenge())

    # --- calling -------------------------------------------------------------------------------------------------

    async def call(self, peer: PeerId, on_candidates: AnswerHandler, until: float) -> None:
        """Ask every rendezvous to pass our offer to a peer; its candidates and both NATs come to `on_candidates`.

        Returns when the peer has answered; candidates may trickle in until the caller cancels. A peer that is known
        nowhere may be starting at this moment, so it is asked for again.

        Args:
            peer: whom to reach.
            on_candidates: told of each answer.
            until: when to stop asking for a peer that is known nowhere, or does not answer, on the monotonic clock.

        Raises:
            NoPathError: no rendezvous is connected, or none knows the peer, or nobody answers in time.
        """
        while not await self._call(peer, on_candidates, until):
            if monotonic() + _ASK_AGAIN_SECONDS > until:
                raise NoPathError("no rendezvous that we are connected to knows this peer")
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _call(self, peer: PeerId, on_candidates: AnswerHandler, until: float) -> bool:
        """Make one offer; returns whether the peer has answered it, False if nobody knows it."""
        servers = self.servers
        if not servers:
            raise NoPathError("no address of this peer is known, and no rendezvous is connected")
        call = Call(peer, self._core.random(16), await self._surroundings.prepare(), on_candidates)
        call.terms = replace(call.terms, controlling=self._core.identity.id > peer)
        self._calls[call.dial_id] = call
        try:
            for server in servers:
                self._send_offer(call, server)
            try:
                async with asyncio.timeout(max(until - monotonic(), _ANSWER_LEAST)):
                    await call.decided
            except TimeoutError:
                raise NoPathError("the peer did not answer through the rendezvous") from None
        finally:
            if not call.answered:
                self._calls.pop(call.dial_id, None)
            else:
                self._core.loop.call_later(_ANSWER_SECONDS, self._calls.pop, call.dial_id, None)
        return call.answered

    def _send_offer(self, call: Call, server: Connection) -> None:
        call.told = self._told()
        sealed = self._seal(call.peer, call.dial_id, b"", server.peer, call.terms)
        call.hashes.add(offer_hash(sealed))
        call.open.add(server)
        server.send_service(Forward(call.dial_id, call.peer.bytes(), sealed))

    def _seal(self, peer: PeerId, dial_id: bytes, answers: bytes, through: PeerId, terms: Terms) -> bytes:
        core = self._core
        now = monotonic()
        contact = Contact(core.identity.id, tuple(self._told()))
        nats = tuple(serialize_standing(transport, ours, now) for transport, ours in terms.ours.items())
        offer = Offer(dial_id, answers, contact, peer, through, nats=nats)
        return seal_offer(core.identity, core.network, offer, random=core.random)

    def _told(self) -> list[Candidate]:
        """What we tell a peer at present."""
        return self._own_candidates()[:_CANDIDATES_MOST]

    # --- trickling -----------------------------------------------------------------------------------------------

    def addresses_changed(self) -> None:
        """We have other addresses than before: tell the peers of dials that are under way."""
        if self._trickling is None and (self._calls or self._answers):
            self._trickling = self._core.loop.call_later(_TRICKLE_PAUSE, self._trickle)

    def _trickle(self) -> None:
        self._trickling = None
        told, now = self._told(), monotonic()
        for call in self._calls.values():
            if call.told != told and call.trickled < _TRICKLES_MOST:
                call.trickled += 1
                call.told = told
                for server in self.servers:
                    sealed = self._seal(call.peer, call.dial_id, b"", server.peer, call.terms)
                    server.send_service(Forward(call.dial_id, call.peer.bytes(), sealed))
        for dial_id, answer in self._answers.items():
            if answer.ways and answer.told != told and answer.trickled < _TRICKLES_MOST and now < answer.until:
                answer.trickled += 1
                answer.told = told
                for server, answers in answer.ways:
                    if not server.closed:
                        sealed = self._seal(answer.peer, dial_id, answers, server.peer, answer.terms)
                        server.send_service(Forward(dial_id, answer.peer.bytes(), sealed))

    def _take_more(self, offer: Offer) -> None:
        """A dial that we have answered goes on: the caller has further candidates."""
        answer = self._answers.get(offer.dial_id)
        known = answer is not None and answer.peer == offer.contact.id and monotonic() < answer.until
        if answer is None or not known or answer.trickled >= _TRICKLES_MOST:
            self._core.stats.count("offer.repeated")
            return
        answer.trickled += 1
        self._core.stats.count("offer.more")
        self._callee.more(answer.peer, offer.contact.candidates)

    # --- answering -----------------------------------------------------------------------------------------------

    def _forwarded(self, connection: Connection, message: Forwarded) -> None:
        core = self._core
        if connection not in self._servers:
            core.stats.count("offer.not_from_a_server")
            return
        try:
            offer = open_offer(core.identity, core.network, message.sealed, through=connection.peer)
        except (RemoteProtocolError, CrustError):
            core.stats.count("offer.not_authentic")
            return
        if offer.dial_id != message.dial_id:
            core.stats.count("offer.not_authentic")
            return
        if offer.answers:
            self._answered(offer, message)
        elif self._memory.is_new(
            offer.contact.id, offer.dial_id + connection.peer.bytes(), offer.lifetime, monotonic()
        ):
            self._keep_answer(offer)
            self._run(self._answer_soon(connection, offer, message))
        else:
            self._take_more(offer)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._core.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_soon(self, connection: Connection, offer: Offer, message: Forwarded) -> None:
        """Answer an offer, once we know where our NAT stands."""
        peer = offer.contact.id
        if offer.dial_id not in self._answering and self._must_prepare(offer):
            await self._surroundings.prepare()
        terms = self._answering.get(offer.dial_id)
        if terms is None:
            # The same for every rendezvous that the offer comes through: both sides go by what was said.
            theirs = parse_standings(offer.nats, monotonic())
            ours = self._surroundings.standings()
            terms = Terms(ours, theirs, controlling=self._core.identity.id > peer, caller=False)
            while len(self._answering) >= _ANSWERS_KEPT:
                del self._answering[next(iter(self._answering))]
        terms = self._answering[offer.dial_id] = terms.attests(host for _, host, _ in message.seen)

        def again() -> None:
            self._run(self._answer_soon(connection, offer, message))

        if not self._callee.called(offer.contact, _with_seen(offer.contact, message.seen), terms, again):
            self._core.stats.count("offer.withheld")
            return
        answers = offer_hash(message.sealed)
        sealed = self._seal(peer, offer.dial_id, answers, connection.peer, terms)
        if connection.closed:  # while the application thought about it
            return
        connection.send_service(Forward(offer.dial_id, peer.bytes(), sealed))
        self._core.stats.count("offer.answered")
        answer = self._answers.get(offer.dial_id)
        if answer is not None:
            answer.terms, answer.told = terms, self._told()
            answer.ways.append((connection, answers))

    def _must_prepare(self, offer: Offer) -> bool:
        """Whether to ask where our NAT stands before we answer: not if the peer takes us from whatever port."""
        if self._surroundings.learning:
            return True
        now = monotonic()
        terms = Terms(self._surroundings.standings(), parse_standings(offer.nats, now))
        plans = [terms.plan(transport).approach for transport in terms.ours]
        return not self._surroundings.ready and any(plan in _BY_PREDICTION for plan in plans)

    def _keep_answer(self, offer: Offer) -> None:
        """Remember a dial, whose further candidates are taken, and who is told of ours."""
        now = monotonic()
        for old in [key for key, each in self._answers.items() if each.until <= now]:
            del self._answers[old]
        if len(self._answers) < _ANSWERS_KEPT:
            self._answers.setdefault(offer.dial_id, _Answer(offer.contact.id, now + _DIAL_SECONDS))

    def _answered(self, offer: Offer, message: Forwarded) -> None:
        call = self._calls.get(offer.dial_id)
        if call is None or offer.contact.id != call.peer or offer.answers not in call.hashes:
            self._core.stats.count("offer.unexpected_answer")
            return
        call.answered = True
        theirs = call.terms.theirs or parse_standings(offer.nats, monotonic())
        call.terms = replace(call.terms, theirs=theirs).attests(host for _, host, _ in message.seen)
        call.on_candidates(_with_seen(offer.contact, message.seen), call.terms)
        call.settle()

    def close(self) -> None:
        """Stop."""
        if self._trickling is not None:
            self._trickling.cancel()
        for task in self._tasks:
            task.cancel()


def _with_seen(contact: Contact, seen: Sequence[tuple[int, str, int]]) -> list[Candidate]:
    """A peer's own candidates, and the addresses from which the rendezvous sees it.

    A peer that tells no address of its own does not want to be dialled directly.
    """
    if not contact.candidates:
        return []
    extra = [Candidate(TRANSPORTS[t], host, port, "server-reflexive") for t, host, port in seen if is_dialable(host)]
    return list(dict.fromkeys((*contact.candidates, *extra)))
