"""What the punching of both transports has in common: actions, events, and the limits of one dial."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import Trust
from crust.proto.nat.limits import TraversalLimits
from crust.wire.stun import Address

__all__ = [
    "Allowance",
    "Connect",
    "Established",
    "FreshSocketAdvised",
    "GaveUp",
    "Hopeless",
    "PunchEnd",
    "PunchEvent",
    "PunchOptions",
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

    def __init__(self, kind: str, budget: DestinationBudget, limits: TraversalLimits) -> None:
        datagrams = kind == "datagram"
        self._kind = "datagram" if datagrams else "connect"
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
        elif not self._budget.take(target[0], "datagram" if self._kind == "datagram" else "connect", trust, now):
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
