"""Attempts over µTP."""

from __future__ import annotations

import asyncio
from functools import partial

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

    def dial(self, peer: PeerId, candidate: Candidate) -> asyncio.Future[DialledPath]:
        """Begin to shake hands over UDP; cancel what this returns to give up.

        No task: the request goes out at once, and nobody has to be woken before who waits for the answer.
        """
        began = monotonic()
        made = partial(_dialled, candidate, began)
        try:
            dial = self.front.dial(peer, candidate.host, candidate.port, made)
        except OSError as error:
            failed: asyncio.Future[DialledPath] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        dial.future.add_done_callback(lambda future: self.front.cancel(dial) if future.cancelled() else None)
        return dial.future


def _dialled(candidate: Candidate, began: float, link: UtpLink) -> DialledPath:
    return UtpDialled(link, candidate, monotonic() - began)
