"""What the punching of both transports has in common: actions, events, the limits of one dial, and its frame."""

from __future__ import annotations

import enum
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from crust.proto.nat.budget import DestinationBudget, Kind
from crust.proto.nat.candidates import RemoteCandidate, Trust
from crust.proto.nat.checklist import CheckList
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.strategy import Approach, Plan
from crust.types import Transport
from crust.wire.stun import Address

__all__ = [
    "Allowance",
    "Connect",
    "Due",
    "Established",
    "FreshSocketAdvised",
    "GaveUp",
    "Hopeless",
    "PunchEnd",
    "PunchEvent",
    "PunchOptions",
    "Puncher",
    "SendProbe",
    "SocketsWanted",
]


@dataclass(frozen=True, slots=True)
class PunchOptions:
    """Settings of one dial.

    Attributes:
        limits: how much it may send.
        hold: of the side that answers; 0 where the peer is known to have begun. UDP: seconds for which full probes wait
            for `peer_started` where the plan is careful. TCP: how long our answer travels: both begin together.
        opener_ttl: TTL of UDP openers, None for none; 2 passes one NAT.
        coordinated: offer and answer went through a rendezvous, so that both sides begin within a round trip. Else
            nobody knows who begins: contacts were swapped by hand.
        quiet: numbers of measured UDP sockets that send only openers (where the plan is careful) until something
            comes in: for uncoordinated dials.
        rtt: an estimate of the round trip time to the peer, in seconds: TCP waits at least three of them.
        patience: seconds after which a dial without any answer ends; None: `limits.dial_seconds`.
    """

    limits: TraversalLimits = field(default_factory=TraversalLimits)
    hold: float = 0.0
    opener_ttl: int | None = None
    coordinated: bool = True
    quiet: tuple[int, ...] = ()
    rtt: float = 0.05
    patience: float | None = None


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send a handshake message now.

    Attributes:
        socket: 0 is the main one (its port was measured); others were asked for by `SocketsWanted`.
        target: where to.
        ttl: None for the system's; a low one opens our own NAT without reaching the other.
    """

    socket: int
    target: Address
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect by TCP now, from a bound port that a listener may share.

    Attributes:
        socket: 0 is the main port; others were asked for by `SocketsWanted`.
        target: where to.
        timeout: seconds; then give the socket up and report `timed_out`, unless the system tells that the handshake is
            under way (`TCP_INFO`: not SYN-SENT any more): to cut it off then would cost the connection.
    """

    socket: int
    target: Address
    timeout: float


@dataclass(frozen=True, slots=True)
class SocketsWanted:
    """Open sockets (or bind ports) with the numbers `first` to `last`, before the next actions are taken."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Established:
    """The peer has been authenticated on a path."""

    socket: int
    remote: Address


@dataclass(frozen=True, slots=True)
class Hopeless:
    """The two NATs cannot be passed; said at once. Candidates that do not need them are tried all the same."""

    reason: str
    advice: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FreshSocketAdvised:
    """The far router refused our packet before the peer had sent anything.

    A Linux router without an input firewall then gives the peer's packets to us another outside port for half a minute
    (its connection tracking has an entry for this flow). Only a flow that it has not seen will do: measure a fresh
    socket and offer its address.
    """

    socket: int
    target: Address


class PunchEnd(enum.Enum):
    """Why an engine stopped."""

    ESTABLISHED = "a path stands"
    TIMEOUT = "no answer in time"
    STOPPED = "called off"


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Nothing more will be sent."""

    reason: PunchEnd


PunchEvent = SocketsWanted | Established | Hopeless | FreshSocketAdvised | GaveUp


class Allowance:
    """What one dial may still send, to anybody and to each address (PROTOCOL 22).

    Args:
        kind: "datagram" or "connect".
        budget: of the whole node.
        limits: of the dial.
    """

    def __init__(self, kind: Kind, budget: DestinationBudget, limits: TraversalLimits) -> None:
        datagrams = kind == "datagram"
        self._kind: Kind = kind
        self._budget = budget
        self._total = limits.dial_datagrams if datagrams else limits.dial_connects
        self._unverified = limits.unverified_datagrams if datagrams else limits.unverified_connects
        self._sent: Counter[Address] = Counter()
        self._sent_unverified: Counter[str] = Counter()  # by host: a victim is a machine, not a port
        self.spent = 0
        """Sent in this dial."""
        self.refused: Counter[str] = Counter()
        """Not sent, by reason."""

    def take(self, target: Address, trust: Trust, now: float) -> bool:
        """Ask for one sending, which is counted when granted."""
        if self.spent >= self._total:
            self.refused["dial"] += 1
        elif trust is Trust.CLAIMED and self._sent_unverified[target[0]] >= self._unverified:
            self.refused["unverified"] += 1
        elif not self._budget.take(target[0], self._kind, trust, now):
            self.refused["host"] += 1
        else:
            self.spent += 1
            self._sent[target] += 1
            self._sent_unverified[target[0]] += trust is Trust.CLAIMED
            return True
        return False

    def sent_to(self, target: Address) -> int:
        """How often this dial sent to an address."""
        return self._sent[target]


@dataclass(order=True, slots=True)
class Due:
    """What waits in an engine's queue; of two with the same time, the one that was put in first goes first."""

    due: float
    order: int


DueT = TypeVar("DueT", bound=Due)


class Puncher(Generic[DueT]):
    """The frame of an engine: a queue, a check list, an allowance, and one end.

    Args:
        transport: "tcp" or "utp".
        plan: for these two NATs.
        random: returns that many random bytes.
        budget: of the whole node.
        now: the time.
        options: of the dial.
    """

    def __init__(
        self,
        transport: Transport,
        plan: Plan,
        random: Callable[[int], bytes],
        budget: DestinationBudget,
        now: float,
        options: PunchOptions,
    ) -> None:
        self._transport: Transport = transport
        self._plan = plan
        self._random = random
        self._limits = options.limits
        self._ends_at = now + (options.patience or self._limits.dial_seconds)
        self._queue: list[DueT] = []
        self._order = itertools.count()
        self._events: deque[PunchEvent] = deque()
        self._predicted: list[RemoteCandidate] = []
        self.checks = CheckList(stagger=self._limits.stagger, limit=self._limits.candidates)
        """What is tried, for the report."""
        self.allowance = Allowance("connect" if transport == "tcp" else "datagram", budget, self._limits)
        """What was sent or attempted, and what was not."""
        self.ended: PunchEnd | None = None
        """Why nothing more is sent or attempted."""
        if plan.approach is Approach.HOPELESS:
            self._events.append(Hopeless(plan.reason, plan.advice))

    def established(self, socket: int, remote: Address, now: float) -> None:
        """The handshake with the peer is done there, whoever began it: nothing more is sent or attempted."""
        if self.ended is None:
            self._events.append(Established(socket, remote))
            if (self._transport, remote) in self.checks:
                self.checks.succeeded((self._transport, remote), now)
            self._end(PunchEnd.ESTABLISHED, now)

    def stop(self, now: float) -> None:
        """Call the dial off."""
        if self.ended is None:
            self._end(PunchEnd.STOPPED, now)

    def next_event(self) -> PunchEvent | None:
        """The oldest event that was not taken yet."""
        return self._events.popleft() if self._events else None

    def next_timeout(self) -> float | None:
        """When something is to be sent or attempted."""
        if self.ended is not None:
            return None
        times = [self._ends_at]
        if self._queue:
            times.append(self._queue[0].due)
        if (start := self.checks.next_timeout()) is not None:
            times.append(start)
        return min(times)

    def _has_ended(self, now: float) -> bool:
        """Whether it is over, perhaps because the time has just run out."""
        if self.ended is None and now >= self._ends_at:
            self._end(PunchEnd.TIMEOUT, now)
        return self.ended is not None

    def _end(self, reason: PunchEnd, now: float) -> None:
        self.ended = reason
        self._queue.clear()
        self.checks.close(now, reason.value)
        if reason is not PunchEnd.ESTABLISHED:
            self._events.append(GaveUp(reason))
