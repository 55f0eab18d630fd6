"""Attempts over µTP."""

from __future__ import annotations

from crust.crypto.keys import PeerId
from crust.net.clock import monotonic
from crust.node.attempt import DialledPath, path_kind
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.udp import UdpFront, UtpLink
from crust.types import Candidate

__all__ = ["UtpAttempts", "UtpDialled"]


class UtpDialled(DialledPath):
    """A tunnel association after its handshake."""

    def __init__(self, link: UtpLink, candidate: Candidate, rtt: float) -> None:
        super().__init__(link.association, candidate, rtt)
        self._link = link

    def _attach(self, core: Core, connection: Connection, at_ms: float) -> None:
        core.add_utp_path(connection, self._link, kind=path_kind(self.candidate), rtt=self.rtt, at_ms=at_ms)
        connection.pump()
        self._link.read()

    def _abort(self) -> None:
        self._link.abort()


class UtpAttempts:
    """Attempts over µTP.

    Args:
        front: the UDP sockets.

    Attributes:
        front: see above.
    """

    def __init__(self, front: UdpFront) -> None:
        self.front = front

    async def dial(self, peer: PeerId, candidate: Candidate) -> DialledPath:
        """Shake hands over UDP."""
        began = monotonic()
        dial = await self.front.dial(peer, candidate.host, candidate.port)
        try:
            link = await dial.future
        except BaseException:
            self.front.cancel(dial)
            raise
        return UtpDialled(link, candidate, monotonic() - began)
