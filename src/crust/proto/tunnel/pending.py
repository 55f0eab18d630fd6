"""Handshakes under way: those that we began, and those that peers began."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crust.crypto.keys import PeerId
from crust.proto.tunnel.events import Route
from crust.proto.tunnel.handshake import TunnelInitiator, TunnelResponder
from crust.wire.handshake import Hello

if TYPE_CHECKING:
    from crust.proto.tunnel.association import Association
    from crust.proto.utp.config import UtpConfig

__all__ = ["Dial", "Knock"]


class Dial:
    """A handshake that we began.

    Attributes:
        peer: whom we dial.
        route: where; None for a dial to many addresses.
        routes: everywhere it went.
        sends: requests sent so far.
        owner: for the front end.
    """

    __slots__ = ("_handshake", "config", "due", "index", "owner", "peer", "route", "routes", "sends", "sent_at")

    def __init__(
        self,
        peer: PeerId,
        route: Route | None,
        index: int,
        handshake: TunnelInitiator,
        config: UtpConfig | None,
        now: float,
    ) -> None:
        self.peer = peer
        self.route = route
        self.routes: dict[Route, None] = {} if route is None else {route: None}
        self.index = index
        self.config = config
        self.sends = 0
        self.due: float | None = now
        self.sent_at = now
        self.owner: object = None
        self._handshake = handshake

    @property
    def handshake(self) -> TunnelInitiator:
        """The engine of the messages."""
        return self._handshake


class Knock:
    """A handshake that a peer began: claimed, not proved.

    Attributes:
        hello: what it says of itself.
        route: from where it came last.
        heard_at: when it came last.
        index: ours, once it has been answered.
        association: once it has been accepted.
        owner: for the front end.
    """

    __slots__ = ("association", "datagram", "ephemeral", "heard_at", "index", "owner", "responder", "route")

    def __init__(self, ephemeral: bytes, responder: TunnelResponder, datagram: bytes, route: Route, now: float) -> None:
        self.ephemeral = ephemeral
        self.responder = responder
        self.datagram = datagram  # the newest copy of message 1
        self.route = route
        self.heard_at = now
        self.index: int | None = None
        self.association: Association | None = None
        self.owner: object = None

    @property
    def hello(self) -> Hello:
        """What the peer says of itself."""
        return self.responder.introduction.hello
