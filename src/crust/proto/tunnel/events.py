"""What a tunnel endpoint tells and gives out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from crust.proto.noise.outcome import HandshakeFailed
    from crust.proto.tunnel.association import Association
    from crust.proto.tunnel.endpoint import Dial, Knock

__all__ = [
    "DialFailed",
    "DialSucceeded",
    "Knocked",
    "KnockedAgain",
    "Lost",
    "Moved",
    "Outgoing",
    "Route",
    "TunnelEvent",
]

Route: TypeAlias = tuple[int, tuple[Any, ...]]
"""One way to a peer: the front end's number of a socket, and an address as that socket knows it (host first)."""


class Outgoing(NamedTuple):
    """Datagrams to send in one call: all of one size, the last perhaps shorter.

    Attributes:
        data: valid until the endpoint is called again.
        size: of each datagram.
        route: where to.
        probe: a probe of the path MTU, not to be fragmented.
        association: whose they are; None for a handshake's.
        ttl: a low one, for a datagram that only has to leave our own network; None: the system's.
    """

    data: bytes | memoryview
    size: int
    route: Route
    probe: bool = False
    association: Association | None = None
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Knocked:
    """A peer sent an authentic message 1: accept it, refuse it, or forget it."""

    knock: Knock


@dataclass(frozen=True, slots=True)
class KnockedAgain:
    """The same message 1 came again: from another address perhaps, or because our answer was lost."""

    knock: Knock
    route: Route


@dataclass(frozen=True, slots=True)
class DialSucceeded:
    """A dial was answered by the peer that was dialled."""

    dial: Dial
    association: Association


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial was answered with a refusal."""

    dial: Dial
    error: HandshakeFailed


@dataclass(frozen=True, slots=True)
class Moved:
    """The peer has another address, which it has proved."""

    association: Association
    route: Route


@dataclass(frozen=True, slots=True)
class Lost:
    """An association cannot go on: its keys are used up and the peer does not renew them."""

    association: Association


TunnelEvent: TypeAlias = Knocked | KnockedAgain | DialSucceeded | DialFailed | Moved | Lost
