"""A handshake that a peer began over UDP, until it is a path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from crust.errors import RemoteProtocolError
from crust.net.clock import monotonic
from crust.node.admission import Groups, Inbound, Stage
from crust.node.connection import Connection
from crust.node.core import Proven
from crust.node.incoming import Incoming
from crust.node.path import AnyPath
from crust.node.udp import UdpFront, UtpLink
from crust.proto.noise.handshake import Hint
from crust.proto.session.outbox import Group
from crust.proto.tunnel.endpoint import Knock

if TYPE_CHECKING:
    from crust.node.acceptor import Acceptor

__all__ = ["UtpInbound"]

_LONGEST_SILENCE: Final = 20.0
"""More than twice the longest pause between two requests of a dial."""


class UtpInbound(Inbound):
    """One knock at the tunnel until it is a path.

    Strangers do not come here: who knocks knows our PeerId, and holds the key that it claims or ours.

    Args:
        acceptor: who keeps the tables.
        front: whose knock it is.
        knock: the handshake.
    """

    def __init__(self, acceptor: Acceptor, front: UdpFront, knock: Knock) -> None:
        super().__init__(acceptor)
        self._front = front
        self._knock = knock
        self._link: UtpLink | None = None
        self._set_deadline(self._core.config.handshake_timeout)
        acceptor.add(self)

    def _overdue(self) -> None:
        """Who waits for a decision asks now and then; who does not has gone away."""
        waited = monotonic() - self._opened_at
        if self.stage is Stage.WAITING and waited < self._core.config.incoming_timeout:
            if monotonic() - self._knock.heard_at < _LONGEST_SILENCE:
                self._set_deadline(min(_LONGEST_SILENCE, self._core.config.incoming_timeout - waited))
            else:
                self.drop("hung_up")
            return
        super()._overdue()

    def wait_for_decision(self, incoming: Incoming) -> None:
        """The application decides; the peer moves to a table of its own."""
        super().wait_for_decision(incoming)
        self._set_deadline(min(_LONGEST_SILENCE, self._core.config.incoming_timeout))

    # --- LinkConsumer --------------------------------------------------------------------------------------------

    def link_received(self, groups: Groups, now: float) -> None:
        """The first records; while we hold, more of them cannot come."""
        if self.stage is Stage.PROVING:
            self._first_groups(groups, now)

    def link_broken(self, error: RemoteProtocolError) -> None:
        """The peer wrote something that is no record."""
        self._bad_first_record()

    def link_lost(self, reason: str) -> None:
        """The peer gave up."""
        self.drop("hung_up")

    def link_writable(self) -> None:
        """Nothing waits for this."""

    def link_moved(self) -> None:
        """The path will look where the peer is."""

    # --- Inbound -------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """From where the peer comes."""
        return self._knock.route[1][:2]

    def _answer(self) -> Proven:
        self._link = self._front.accept(self._knock)
        self._link.consumer = self
        return self._link.association

    def _send_hint(self, hint: Hint) -> None:
        self._front.endpoint.refuse(self._knock, hint)
        self._front.pump_soon()

    def _fall_silent(self) -> None:
        """Nothing to close: whoever listens to the wire sees no answer either way."""
        self._end()
        self._abort()

    def _say_last(self, group: Group) -> None:
        assert self._link is not None
        self._link.write([group], monotonic())
        self._link.close()

    def _hold(self, held: bool) -> None:
        assert self._link is not None
        self._link.paused = held
        if not held:
            self._link.read()

    def _make_path(self, connection: Connection, rtt: float, at_ms: float) -> AnyPath:
        assert self._link is not None
        kind = self._front.kind_of(connection.peer, self._link.remote)
        kind = self._acceptor.kind_of(connection.peer, "utp", self._link.local[1], self._link.remote[0], kind)
        return self._core.add_utp_path(connection, self._link, kind=kind, rtt=rtt, at_ms=at_ms)

    def _abort(self) -> None:
        if self._link is not None:
            self._link.abort()

    def _end(self) -> None:
        super()._end()
        self._front.endpoint.forget(self._knock)
