"""Peers that knock: decided before anything about this node is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crust.crypto.keys import PeerId
from crust.errors import LocalProtocolError, PeerLost

if TYPE_CHECKING:
    from crust.node.admission import Inbound
    from crust.node.connection import Connection

__all__ = ["Incoming"]


class Incoming:
    """A peer that wants a connection; `Node.incoming()` yields it.

    Nothing was sent to the peer so far. Its PeerId is claimed, not proved: who stole this node's key can forge it,
    and a first message can be replayed. `accept` returns only after the peer has proved itself.

    Attributes:
        peer: who it says it is.
        address: (host, port) from which it comes.
    """

    def __init__(self, inbound: Inbound, peer: PeerId, address: tuple[str, int]) -> None:
        self._inbounds = [inbound]
        self._decided = False
        self.peer = peer
        self.address = address

    def join(self, inbound: Inbound) -> None:
        """The same peer knocks once more, as dials race several addresses and transports."""
        self._inbounds.append(inbound)

    def leave(self, inbound: Inbound) -> bool:
        """An attempt is over; True when it was the last."""
        if inbound in self._inbounds:
            self._inbounds.remove(inbound)
        return not self._inbounds

    def __repr__(self) -> str:
        return f"<Incoming {str(self.peer)[:14]}… from {self.address[0]}>"

    def _decide(self) -> None:
        if self._decided:
            raise LocalProtocolError("this peer was already accepted or refused")
        self._decided = True

    async def accept(self) -> Connection:
        """Answer the peer, and wait until it has proved itself.

        Returns:
            The connection, which does not appear in `async for connection in node` too.

        Raises:
            PeerLost: the peer went away, or did not prove itself in time.
            LocalProtocolError: already decided. Cancellation refuses the peer.
        """
        self._decide()
        if not self._inbounds:
            raise PeerLost(self.peer, "the peer has gone away")
        first, *others = self._inbounds
        return await first.accept_incoming(others)

    def refuse(self) -> None:
        """Turn the peer down; it learns only that it was refused.

        Raises:
            LocalProtocolError: already decided.
        """
        self._decide()
        for inbound in list(self._inbounds):
            inbound.refuse_incoming()

    def ignore(self) -> None:
        """Answer nothing, as if nobody were here.

        Raises:
            LocalProtocolError: already decided.
        """
        self._decide()
        for inbound in list(self._inbounds):
            inbound.ignore_incoming()

    def drop(self) -> None:
        """The node closes: nobody decides any more."""
        for inbound in list(self._inbounds):
            inbound.drop(None)
