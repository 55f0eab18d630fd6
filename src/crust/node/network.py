"""The node among others: bootstrap nodes, rendezvous for others, calls through rendezvous."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from crust.crypto.keys import PeerId
from crust.errors import NoPathError, ParseError
from crust.net.clock import monotonic
from crust.node.bootstrap import Bootstrap
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.dial import CandidateFeed
from crust.node.observer import ObserverService
from crust.node.rendezvous import Rendezvous
from crust.node.signalling import Callee, Signalling
from crust.node.surroundings import Surroundings
from crust.node.udp import UdpFront
from crust.proto.nat.terms import Terms
from crust.types import Candidate
from crust.wire.contact import Contact, parse_target
from crust.wire.service import ServiceMessage

__all__ = ["Neighbourhood"]


_REACH_SECONDS: Final = 3.0
# A dial of a peer that nobody knows fails within 5 s; until then it may still be starting.
_ASKING_SECONDS: Final = 3.8
_SETTLE_SECONDS: Final = 0.5
# Where what would show us how our NAT behaves is blocked, nobody waits for it longer than this.
_LEARNING_SECONDS: Final = 0.6


class Neighbourhood:
    """What a node has to do with nodes other than the peer at hand; the `Services` of a `Core`.

    Args:
        core: the node's centre.
        connect: dials a contact directly, within some seconds.
        own_candidates: gives the addresses at which this node listens.
        known: gives the addresses at which a peer was reached.
        callee: told of peers that dial us through a rendezvous.
        listens_on: says whether a local port is one that we listen on.
        local_for: gives the listening address from which to dial a host.
        front: the UDP sockets; None without µTP.
    """

    def __init__(
        self,
        core: Core,
        connect: Callable[[Contact, float], Awaitable[Connection]],
        own_candidates: Callable[[], list[Candidate]],
        known: Callable[[PeerId], tuple[Candidate, ...]],
        callee: Callee,
        listens_on: Callable[[int], bool],
        local_for: Callable[[str], tuple[str, int] | None],
        front: UdpFront | None,
    ) -> None:
        self._core = core
        self._connect = connect
        self._known = known
        self._own_candidates = own_candidates
        self._opened_at = monotonic()
        self.rendezvous = Rendezvous(core)
        self.observers = ObserverService(core)
        contacts = [_bootstrap_contact(text) for text in core.config.bootstrap]
        named = {contact.id for contact in contacts}
        self.surroundings = Surroundings(core, front, local_for, listens_on, named.__contains__)
        self.signalling = Signalling(core, self.candidates, callee, listens_on, self.surroundings)
        self.bootstrap = Bootstrap(core, contacts, connect, self.signalling.use, callee.widen)

    # --- Services ------------------------------------------------------------------------------------------------

    def path_up(self, connection: Connection, path_id: int) -> None:
        """A connection has another path."""
        self.signalling.path_up(connection, path_id)

    def received(self, connection: Connection, message: ServiceMessage, path_id: int | None) -> None:
        """A message from a peer's node."""
        served = self.rendezvous.serve(connection, message, path_id)
        if not served and not self.observers.serve(connection, message, path_id):
            self.signalling.receive(connection, message, path_id)

    # --- for the node --------------------------------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        """Our addresses: those of the interfaces, and those that others see."""
        found = dict.fromkeys((*self._own_candidates(), *self.signalling.reflexive))
        return [candidate for candidate in found if self._core.config.allows(candidate.kind)]

    def addresses_changed(self, moved: bool) -> None:
        """We have other addresses than before.

        Args:
            moved: interfaces or routes have changed: paths may be dead, and rendezvous nodes may see us elsewhere.
        """
        if moved:
            self._core.stats.count("network.moved")
            for connection in self._core.registry.holders():
                connection.check_paths()
            self.signalling.ask_again()
        self.signalling.addresses_changed()

    def contact(self) -> Contact:
        """Our contact, with the rendezvous nodes through which we can be called."""
        servers = [Contact(c.peer, self._known(c.peer)) for c in self.signalling.servers]
        return Contact(self._core.identity.id, tuple(self.candidates()[:64]), tuple(servers[:8]))

    async def call(self, contact: Contact, feed: CandidateFeed) -> None:
        """Add a peer's candidates to a dial as they come through rendezvous nodes, then end the feed."""
        peer = contact.id

        def answered(candidates: Sequence[Candidate], terms: Terms) -> None:
            feed.terms = terms
            feed.add(candidates)

        until = monotonic() + _ASKING_SECONDS
        try:
            # A bootstrap node that does not answer holds nobody up but in the node's first seconds.
            patience = max(self._opened_at + _REACH_SECONDS - monotonic(), _SETTLE_SECONDS)
            await asyncio.gather(self.tried(patience), self._reach(contact.rendezvous))
            await self.signalling.call(peer, answered, until)
        except NoPathError as error:
            feed.failure = error
        finally:
            feed.close()

    async def _reach(self, contacts: Sequence[Contact]) -> None:
        """Connect to the rendezvous nodes that a peer's contact names."""
        here = {connection.peer for connection in self.signalling.servers} | {self._core.identity.id}
        wanted = [self._connect(contact, _REACH_SECONDS) for contact in contacts if contact.id not in here]
        for found in await asyncio.gather(*wanted, return_exceptions=True):
            if isinstance(found, Connection):
                self.signalling.use(found)

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self.rendezvous.forget(connection)
        self.observers.forget(connection)
        self.signalling.forget(connection)

    async def tried(self, seconds: float) -> None:
        """Wait until the bootstrap nodes are connected, or were tried once, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.bootstrap.tried()
                await self.signalling.settled()

    async def standing(self, seconds: float) -> None:
        """The same, and until we know what these nodes can show us of our NAT, a few round trips more."""
        await self.tried(seconds)
        await self.surroundings.learnt(_LEARNING_SECONDS)

    def close(self) -> None:
        """Stop."""
        self.bootstrap.close()
        self.signalling.close()
        self.surroundings.close()
        self.observers.close()


def _bootstrap_contact(text: str) -> Contact:
    """A contact out of the configuration.

    Raises:
        ParseError: it is none.
    """
    try:
        return parse_target(text)
    except ParseError as error:
        raise ParseError(f"bootstrap: {error}") from error
