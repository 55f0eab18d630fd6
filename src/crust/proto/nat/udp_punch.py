"""UDP hole punching: which probe leaves from which socket to which address, when, and with what TTL.

Probes are handshake messages; the engine knows their times and places, not their content. It is told what came in
(`received`: an authenticated message of the peer; `established`: the handshake is done) and stops by itself.

Early packets do harm at some routers: a Linux router without an input firewall that sees a packet before the first
outgoing one moves the peer's outside port (see `FreshSocketAdvised`). So the side that begins first may hold: it sends
openers with a TTL that ends behind its own NAT, and full probes only when the peer is known to have begun, or after
`hold` seconds. Where nobody can tell who begins (contacts swapped by hand), quiet sockets send nothing but openers
until something comes in: then there is a flow that no router has seen from outside, whoever was first.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import RemoteCandidate, Trust, candidate_priority
from crust.proto.nat.checklist import Check, CheckState
from crust.proto.nat.prediction import birthday_ports
from crust.proto.nat.punch import Due, FreshSocketAdvised, Puncher, PunchOptions, SendProbe, SocketsWanted
from crust.proto.nat.strategy import Approach, Plan
from crust.types import Candidate
from crust.wire.stun import Address

__all__ = ["UdpPuncher"]

# Seconds after the first probe to an address. Dense at first, as both sides begin within a round trip of each other;
# then sparse, for a peer that begins up to two seconds later, and for lost packets.
PROBES = (0.0, 0.03, 0.07, 0.14, 0.25, 0.4, 0.6, 0.85, 1.1, 1.4, 1.7, 2.0)
PROBE_EVERY = 0.5  # after that
SLOW_EVERY = 3.0  # after `dial_seconds`, or when refused: others wait for minutes for a swapped contact
UNVERIFIED_PROBES = (0.0, 0.1, 0.4, 1.0, 2.2)
ANSWERS = (0.05, 0.12, 0.25, 0.5, 1.0, 2.0)  # after something came in: the answer itself leaves at once
OPENERS = (0.0, 0.04, 0.12)
OPENER_EVERY = 10.0  # keeps a NAT's filter open: RFC 4787 REQ-5 asks for two minutes, some routers give 20 s
PREDICTED_PROBES = (0.0, 0.05, 0.12, 0.25, 0.5, 1.0, 1.6, 2.2)
MEETING_PROBES = (0.0, 0.04, 0.1, 0.2)
MEETING_ROUND = 0.5
MEETING_SPACING = 0.0005  # keeps packets in order on their way to the NAT
SOCKETS_LEAD = 0.001  # the sockets are opened before the first packet leaves
OPEN_MANY_PASSES = (0.0, 2.5, 6.0)  # the last one with the full TTL
OPEN_MANY_SPACING = 0.001
AFTER_MEETING = 0.3  # ordinary probes of ours would use up a port in the midst of a row, perhaps the very one
UNCOORDINATED_HOLD = 3.0  # people who swapped contacts begin within two seconds, or not within three
PROBE_MANY_DELAY = 0.15  # until the other side has opened its ports
PROBE_MANY_BATCH = 5
MAX_REMOTES = 256  # addresses from which a peer may turn up during one dial


@dataclass(order=True, slots=True)
class _Send(Due):
    socket: int = field(compare=False)
    target: Address = field(compare=False)
    trust: Trust = field(compare=False)
    ttl: int | None = field(compare=False, default=None)
    kept: bool = field(compare=False, default=False)  # when the hold ends


class UdpPuncher(Puncher[_Send]):
    """The probes of one dial over UDP.

    Args:
        plan: for these two NATs.
        random: returns that many random bytes.
        budget: of the whole node.
        now: the time.
        options: of the dial.
    """

    def __init__(
        self,
        plan: Plan,
        random: Callable[[int], bytes],
        budget: DestinationBudget,
        now: float,
        options: PunchOptions | None = None,
    ) -> None:
        options = options or PunchOptions()
        super().__init__("utp", plan, random, budget, now, options)
        hold = options.hold
        if not options.coordinated and plan.approach is Approach.PREDICTED:
            hold = UNCOORDINATED_HOLD  # the other side sends all the same: openers will do
        self._go_at = now + hold if plan.careful else now
        if plan.approach is Approach.MEET:
            self._go_at = now + AFTER_MEETING
        self._opener_ttl = options.opener_ttl if plan.openers else None
        self._quiet = options.quiet if self._opener_ttl is not None else ()
        self._slow_at = now + self._limits.dial_seconds
        self._sockets = 1 + max(options.quiet, default=0)
        self._remotes: dict[Address, RemoteCandidate] = {}
        self._heard = False
        self._special_begun = False
        self._rounds: deque[tuple[float, RemoteCandidate]] = deque()
        self._advised = False

    # -- verbs ---------------------------------------------------------------------------------------------------

    def add(self, remotes: Iterable[RemoteCandidate], now: float) -> None:
        """Take the peer's candidates, also while probing (they trickle).

        Predicted ones are tried together; in a meeting their order is that of the rounds.
        """
        if self.ended is not None:
            return
        for remote in remotes:
            if remote.candidate.transport != "utp":
                continue
            if remote.candidate.kind != "predicted":
                known = self._remotes.get(remote.address)
                if self.checks.add([remote]) or (known is not None and remote.trust > known.trust):
                    self._remotes[remote.address] = remote
            elif remote not in self._predicted and len(self._predicted) < self._limits.candidates:
                self._predicted.append(remote)
        self._begin_special(now)

    def peer_started(self, now: float) -> None:
        """The peer is known to have sent its first packets (its answer came): full probes may leave."""
        if now >= self._go_at or (self._plan.approach is Approach.MEET and not self._heard):
            return
        self._go_at = now
        self._queue = [send for send in self._queue if send.kept]
        heapq.heapify(self._queue)
        for check in self.checks.checks:
            if check.state is CheckState.IN_PROGRESS and not check.remote.near:
                self._schedule_probes(check.remote, now)

    def received(self, socket: int, source: Address, now: float) -> None:
        """An authenticated message of the peer came in; the caller answers it, and this keeps the path busy.

        Args:
            socket: which of ours it came to.
            source: where from: a peer-reflexive candidate if it is new (RFC 8445 §7.3.1.3).
            now: the time.
        """
        if self.ended is not None:
            return
        self._heard = True
        self.peer_started(now)
        remote = self._remotes.get(source)
        if remote is None and len(self._remotes) >= MAX_REMOTES:
            return
        if remote is None or remote.trust is not Trust.ANSWERED:
            kind = remote.candidate.kind if remote is not None else "peer-reflexive"
            candidate = Candidate("utp", source[0], source[1], kind)
            near = remote.near if remote is not None else False
            remote = RemoteCandidate(candidate, Trust.ANSWERED, near, candidate_priority(kind, "utp"))
            self._remotes[source] = remote
            self.checks.add([remote])
            self.checks.start(now)
            self._schedule(socket, source, Trust.ANSWERED, now, ANSWERS)

    def established(self, socket: int, remote: Address, now: float) -> None:
        """The handshake with the peer is done there: nothing more is sent."""
        if self.ended is None and remote in self._remotes:
            self.checks.add([self._remotes[remote]])
        super().established(socket, remote, now)

    def unreachable(self, socket: int, target: Address, now: float) -> None:
        """ICMP said that a full probe was refused: go slowly there, and advise a fresh socket."""
        if self.ended is not None:
            return
        self._queue = [s for s in self._queue if (s.socket, s.target) != (socket, target) or s.ttl is not None]
        heapq.heapify(self._queue)
        remote = self._remotes.get(target)
        if remote is not None:
            times = itertools.takewhile(lambda t: now + t < self._ends_at, itertools.count(1.0, SLOW_EVERY))
            self._schedule(socket, target, remote.trust, now, times)
        if not self._advised and not self._heard:
            self._advised = True
            self._events.append(FreshSocketAdvised(socket, target))

    # -- the pump ------------------------------------------------------------------------------------------------

    def probes_to_send(self, now: float) -> list[SendProbe]:
        """What is to be sent now; each is returned once. Take the events first, as they may ask for sockets."""
        if self._has_ended(now):
            return []
        for check in self.checks.start(now):
            self._begin(check, now)
        while self._rounds and self._rounds[0][0] <= now:
            self._meeting_round(self._rounds.popleft()[1], now)
        probes = []
        while self._queue and self._queue[0].due <= now:
            send = heapq.heappop(self._queue)
            if self.allowance.take(send.target, send.trust, now):
                probes.append(SendProbe(send.socket, send.target, send.ttl))
        return probes

    def next_timeout(self) -> float | None:
        """When `probes_to_send` has something."""
        due = super().next_timeout()
        return min(due, self._rounds[0][0]) if due is not None and self._rounds else due

    # -- schedules -----------------------------------------------------------------------------------------------

    def _begin(self, check: Check, now: float) -> None:
        """A candidate's turn has come."""
        remote = check.remote
        if remote.near:
            self._schedule(0, remote.address, remote.trust, now, self._times(remote.trust, now), kept=True)
            return
        if self._opener_ttl is not None and remote.trust is not Trust.CLAIMED:
            for socket in self._quiet:
                every = itertools.takewhile(
                    lambda t: now + t < self._ends_at, itertools.count(OPENER_EVERY, OPENER_EVERY)
                )
                self._schedule_openers(socket, remote, now, (*OPENERS, *every))
            if now < self._go_at:
                self._schedule_openers(0, remote, now, OPENERS)
        self._schedule_probes(remote, max(now, self._go_at))

    def _schedule_probes(self, remote: RemoteCandidate, start: float) -> None:
        self._schedule(0, remote.address, remote.trust, start, self._times(remote.trust, start))

    def _times(self, trust: Trust, start: float) -> Iterable[float]:
        if trust is Trust.CLAIMED:
            return UNVERIFIED_PROBES
        times = list(PROBES)
        while start + times[-1] < self._ends_at:
            times.append(times[-1] + (PROBE_EVERY if start + times[-1] < self._slow_at else SLOW_EVERY))
        return times

    def _schedule(
        self,
        socket: int,
        target: Address,
        trust: Trust,
        start: float,
        times: Iterable[float],
        *,
        kept: bool = False,
    ) -> None:
        for offset in times:
            self._push(start + offset, socket, target, trust, kept=kept)

    def _schedule_openers(self, socket: int, remote: RemoteCandidate, start: float, times: Iterable[float]) -> None:
        for offset in times:
            self._push(start + offset, socket, remote.address, remote.trust, self._opener_ttl)

    def _push(
        self, due: float, socket: int, target: Address, trust: Trust, ttl: int | None = None, *, kept: bool = True
    ) -> None:
        heapq.heappush(self._queue, _Send(due, next(self._order), socket, target, trust, ttl, kept))

    # -- what the plan adds to the ordinary probes ---------------------------------------------------------------

    def _begin_special(self, now: float) -> None:
        """Begin the plan's own part as soon as what it needs is known."""
        if self._special_begun or self.ended is not None:
            return
        known = self._known_address()
        match self._plan.approach:
            case Approach.PREDICT_THEIRS if self._predicted:
                self._predict_theirs(now)
            case Approach.MEET if self._predicted:
                self._meet(now)
            case Approach.OPEN_MANY if known is not None:
                self._open_many(known, now)
            case Approach.PROBE_MANY if known is not None:
                self._probe_many(known, now)
            case _:
                return
        self._special_begun = True

    def _known_address(self) -> RemoteCandidate | None:
        """The peer's outside address, attested: the only one that gets many packets."""
        found = [r for r in self._remotes.values() if r.trust is not Trust.CLAIMED and not r.near]
        return max(found, key=lambda remote: remote.priority, default=None)

    def _predict_theirs(self, now: float) -> None:
        for index, remote in enumerate(self._predicted[: self._limits.predicted_ports]):
            self._remotes[remote.address] = remote
            start = now + index * MEETING_SPACING
            self._schedule(0, remote.address, remote.trust, start, PREDICTED_PROBES, kept=True)

    def _meet(self, now: float) -> None:
        for round_, remote in enumerate(self._predicted):
            self._rounds.append((now + round_ * MEETING_ROUND, remote))

    def _meeting_round(self, remote: RemoteCandidate, now: float) -> None:
        """Each round from fresh sockets: whatever the mapping depends on, each gets a port of its own."""
        count = self._limits.meeting_sockets
        first = self._want_sockets(count)
        if first is None:
            return
        for offset in MEETING_PROBES:
            for index in range(count):
                due = now + SOCKETS_LEAD + offset + index * MEETING_SPACING
                self._push(due, first + index, remote.address, remote.trust)

    def _open_many(self, known: RemoteCandidate, now: float) -> None:
        """These packets need not arrive, only leave: with a low TTL they do no harm at the other side."""
        first = self._want_sockets(self._limits.dial_sockets - self._sockets)
        if first is None:
            return
        for number, offset in enumerate(OPEN_MANY_PASSES):
            ttl = self._opener_ttl if number < len(OPEN_MANY_PASSES) - 1 else None
            for index in range(self._sockets):
                if index in self._quiet:
                    continue
                due = now + SOCKETS_LEAD + offset + index * OPEN_MANY_SPACING
                self._push(due, index, known.address, known.trust, ttl)

    def _probe_many(self, known: RemoteCandidate, now: float) -> None:
        host = known.address[0]
        seen = [address[1] for address in self._remotes if address[0] == host]
        start = max(now + PROBE_MANY_DELAY, self._go_at)
        interval = PROBE_MANY_BATCH / self._limits.birthday_rate
        for index, port in enumerate(birthday_ports(self._random, self._limits.birthday_probes, seen)):
            due = start + index // PROBE_MANY_BATCH * interval
            self._push(due, 0, (host, port), known.trust)

    def _want_sockets(self, count: int) -> int | None:
        """Ask for more sockets; the number of the first, or None at the limit."""
        first = self._sockets
        if count <= 0 or first + count > self._limits.dial_sockets:
            return None
        self._sockets += count
        self._events.append(SocketsWanted(first, first + count - 1))
        return first
