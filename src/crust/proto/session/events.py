"""What a session tells its front end."""

from __future__ import annotations

import msgspec

from crust.errors import CrustError

__all__ = ["DatagramReceived", "PathDead", "PathStalled", "Ponged", "ServiceReceived", "SessionEnded", "SessionEvent"]


class PathStalled(msgspec.Struct, frozen=True):
    """Data make no progress on the active path: another dial is worth while."""

    path_id: int


class PathDead(msgspec.Struct, frozen=True):
    """A path is to be closed: it gives no sign of life, or the peer calls it surplus."""

    path_id: int
    reason: str


class Ponged(msgspec.Struct, frozen=True):
    """The answer to a PING."""

    token: int
    rtt: float


class DatagramReceived(msgspec.Struct, frozen=True):
    """A datagram of the application."""

    data: bytes


class ServiceReceived(msgspec.Struct, frozen=True):
    """A message from the peer's node to ours; `path_id` is None where it does not concern a path."""

    body: bytes
    path_id: int | None


class SessionEnded(msgspec.Struct, frozen=True):
    """The last event of a session."""

    error: CrustError


SessionEvent = PathStalled | PathDead | Ponged | DatagramReceived | ServiceReceived | SessionEnded
