"""What a connection asks of the node that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from crust.errors import CrustError, RemoteProtocolError
    from crust.node.busy_poll import BusyPoll
    from crust.node.connection import Connection
    from crust.types import Path

__all__ = ["ConnectionOwner"]


class ConnectionOwner(Protocol):
    """A node, as its connections see it.

    Attributes:
        busy_poll: keeps the event loop awake where an answer is near.
    """

    busy_poll: BusyPoll

    def path_stalled(self, connection: Connection) -> None:
        """Data make no progress: dial again, beside the path."""

    def path_needed(self, connection: Connection) -> None:
        """No path is left: dial again."""

    def path_changed(self, connection: Connection, path: Path | None, reason: str) -> None:
        """Another path carries the data, or none."""

    def path_answered(self, connection: Connection) -> None:
        """More than one path is up."""

    def misbehaved(self, connection: Connection, error: RemoteProtocolError) -> None:
        """The peer broke the protocol."""

    def path_up(self, connection: Connection, path_id: int) -> None:
        """Another path has come up."""

    def service_received(self, connection: Connection, body: bytes, path_id: int | None) -> None:
        """A message from the peer's node to ours; about a path, or not."""

    def service_dropped(self, connection: Connection) -> None:
        """Too much waits for a peer that does not read, or its path has gone."""

    def connection_ended(self, connection: Connection, error: CrustError) -> None:
        """The last that is heard of a connection."""
