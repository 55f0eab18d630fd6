"""UDP hole punching of one dial: `UdpPuncher` over the node's sockets.

Every probe is the first message of one and the same handshake, so that whichever gets through makes the path. Sockets
that are opened for one dial become sockets of the node like any other when the path goes over one of them; the rest is
closed at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crust.crypto.keys import PeerId
from crust.net.clock import monotonic
from crust.node.attempt import DialledPath, Punch, path_kind
from crust.node.core import Core
from crust.node.dial_utp import UtpDialled
from crust.node.udp import UdpFront, UtpDial, UtpLink
from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import RemoteCandidate
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.punch import PunchOptions, SocketsWanted
from crust.proto.nat.strategy import Approach, Plan
from crust.proto.nat.terms import Terms
from crust.proto.nat.udp_punch import UdpPuncher
from crust.types import Attempt, Candidate, PathKind

__all__ = ["UtpPunch"]

Address = tuple[str, int]

_HOLD: Final = 0.1
_HOLD_SPARE: Final = 0.08
_HOLD_MOST: Final = 0.4
"""Of the side that is called: at least so long, so much longer than its answer travels, and never longer."""

_OPENER_TTL: Final = 2
"""Passes our own NAT."""

_MANY: Final = frozenset({Approach.OPEN_MANY, Approach.PROBE_MANY})


@dataclass(slots=True, eq=False)
class _Wanted:
    """Candidates of one entry of the report, and who waits for a path over one of them."""

    found: asyncio.Future[DialledPath]
    attempt: Attempt
    kinds: dict[Address, Candidate]


class UtpPunch:
    """Probes of one dial, while the peer probes us.

    Args:
        core: the node's centre.
        front: the UDP sockets.
        peer: whom to reach.
        terms: what both sides have told of their NATs.
        punch: how.
        budget: of the node.
    """

    def __init__(
        self, core: Core, front: UdpFront, peer: PeerId, terms: Terms, punch: Punch, budget: DestinationBudget
    ) -> None:
        self._core = core
        self._front = front
        self._peer = peer
        self.plan: Plan = terms.plan("utp")
        config = core.config
        self._limits = TraversalLimits(dial_datagrams=config.max_punch_datagrams, dial_sockets=config.max_punch_sockets)
        called = punch.coordinated and not terms.caller
        options = PunchOptions(
            self._limits,
            hold=min(max(_HOLD, punch.hold + _HOLD_SPARE), _HOLD_MOST) if called else 0.0,
            opener_ttl=_OPENER_TTL,
            coordinated=punch.coordinated,
            quiet=() if punch.coordinated or front.quiet is None else (1,),
            patience=punch.patience,
        )
        self._engine = UdpPuncher(self.plan, core.random, budget, monotonic(), options)
        self._dial: UtpDial[UtpLink] | None = None
        self._sockets: dict[tuple[int, bool], int] = {}  # of the engine's number, and whether for IPv6
        if options.quiet and front.quiet is not None:
            self._sockets[1, False] = front.quiet
        self._extra: list[int] = []
        self._family = False
        self._wanted: list[_Wanted] = []
        self._timer: asyncio.TimerHandle | None = None
        self._began = monotonic()
        self.closed = False

    async def reach(self, remotes: Sequence[RemoteCandidate], attempt: Attempt) -> DialledPath:
        """Probe until a path has come up over one of some candidates.

        Args:
            remotes: which; those of one call are one entry in the report.
            attempt: that entry.

        Raises:
            OSError: no socket can be opened.
            TimeoutError: nothing came back in time.
            HandshakeFailed: the peer refuses. Cancellation gives these candidates up.
        """
        wanted = _Wanted(
            self._core.loop.create_future(), attempt, {remote.address: remote.candidate for remote in remotes}
        )
        self._wanted.append(wanted)
        try:
            for remote in remotes:
                self._open_main(remote.address[0])
            self._begin()
            self._engine.add(remotes, monotonic())
            self._pump()
            return await wanted.found
        finally:
            self._wanted.remove(wanted)
            if not self._wanted:
                self.close()

    def _open_main(self, host: str) -> None:
        key = (0, ":" in host)
        if key not in self._sockets:
            self._sockets[key] = self._front.main_socket(host)
            self._family = ":" in host and not any(not six for _, six in self._sockets)

    def _begin(self) -> None:
        if self._dial is None and not self.closed:
            self._dial = self._front.punch(self._peer, self)
            self._dial.future.add_done_callback(self._dialled)

    def close(self) -> None:
        """Give everything up."""
        if self.closed:
            return
        self.closed = True
        self._engine.stop(monotonic())
        if self._timer is not None:
            self._timer.cancel()
        if self._dial is not None:
            self._front.cancel_punch(self, self._dial, self._extra)

    # --- what comes in -------------------------------------------------------------------------------------------

    def heard(self, number: int, source: Address) -> None:
        """An authentic request of the peer came to a socket."""
        for (ours, _), theirs in self._sockets.items():
            if theirs == number:
                self._engine.received(ours, source, monotonic())
                self._pump()
                return

    def unreachable(self, number: int, target: Address) -> None:
        """ICMP says that nobody is there: not yet, perhaps."""
        for (ours, _), theirs in self._sockets.items():
            if theirs == number:
                self._engine.unreachable(ours, target, monotonic())
                self._pump()
                return

    def kind_of(self, source: Address) -> PathKind:
        """How a path to where the peer comes from came up."""
        known = (wanted.kinds[source] for wanted in self._wanted if source in wanted.kinds)
        return path_kind(next(known, Candidate("utp", *source, "peer-reflexive")))

    def _dialled(self, future: asyncio.Future[UtpLink]) -> None:
        """Our handshake has succeeded, or was refused."""
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._fail(error)
            return
        link = future.result()
        waiting = [wanted for wanted in self._wanted if not wanted.found.done()]
        if not waiting:
            link.abort()
            return
        remote = link.remote
        wanted = next((w for w in waiting if remote in w.kinds), None) or _likeliest(waiting, remote[0])
        candidate = wanted.kinds.get(remote) or Candidate("utp", *remote, "peer-reflexive")
        self._engine.established(0, remote, monotonic())
        wanted.found.set_result(UtpDialled(link, candidate, monotonic() - self._began))

    # --- the pump ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Open sockets and send what is due, tell who waits in vain, arm one timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.closed or self._dial is None:
            return
        self._take_events()
        self._send(self._dial)
        self._take_events()  # a round of a meeting asks for its sockets when its time has come
        if self._engine.ended is not None:
            self._fail(TimeoutError("no answer"))
            return
        due = self._engine.next_timeout()
        if due is not None:
            self._timer = self._core.loop.call_later(max(due - monotonic(), 0), self._pump)

    def _take_events(self) -> None:
        while (event := self._engine.next_event()) is not None:
            if isinstance(event, SocketsWanted):
                self._open(event)

    def _send(self, dial: UtpDial[UtpLink]) -> None:
        probes = self._engine.probes_to_send(monotonic())
        small = self.plan.approach in _MANY
        for probe in probes:
            number = self._sockets.get((probe.socket, ":" in probe.target[0]))
            if number is not None:
                self._front.probe(dial, number, probe.target, ttl=probe.ttl, small=small)
        if probes:
            self._front.pump_soon()

    def _fail(self, error: BaseException) -> None:
        for wanted in self._wanted:
            if not wanted.found.done():
                wanted.found.set_exception(error)

    def _open(self, event: SocketsWanted) -> None:
        count = event.last - event.first + 1
        found = self._front.open_extra("::" if self._family else "0.0.0.0", count)  # noqa: S104
        self._extra += found
        for offset, number in enumerate(found):
            self._sockets[event.first + offset, self._family] = number


def _likeliest(waiting: Sequence[_Wanted], host: str) -> _Wanted:
    """Whose candidates are at the same host: the peer has come through at another port of it."""
    for wanted in waiting:
        if any(address[0] == host for address in wanted.kinds):
            return wanted
    return waiting[0]
