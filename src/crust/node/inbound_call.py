"""A peer that knocks through a rendezvous: its offer is answered only once the application has agreed.

The offer is authenticated, so the application may decide about the peer on it. Until then the peer learns nothing: no
address, not even that this node is there. What carries the connection comes afterwards, by whichever way is first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from crust.node.admission import Inbound, Stage
from crust.node.connection import Connection
from crust.node.path import AnyPath
from crust.proto.noise.handshake import Hint
from crust.proto.session.outbox import Group

if TYPE_CHECKING:
    from crust.node.acceptor import Acceptor
    from crust.node.core import Proven

__all__ = ["CalledInbound"]

_ARRIVAL_SECONDS: Final = 15.0
"""How long punching may take after the answer."""


class CalledInbound(Inbound):
    """An offer that waits for the application.

    Args:
        acceptor: who keeps the tables.
        address: from where the rendezvous sees the peer.
        answer: answers the offer, and dials the peer.
    """

    patience = _ARRIVAL_SECONDS

    def __init__(self, acceptor: Acceptor, address: tuple[str, int], answer: Callable[[], None]) -> None:
        super().__init__(acceptor)
        self._address = address
        self._answer_offer = answer

    @property
    def address(self) -> tuple[str, int]:
        """From where the rendezvous sees the peer."""
        return self._address

    def accept(self) -> None:
        """Answer the offer; the peer proves itself on whatever comes in then."""
        self.stage = Stage.PROVING
        self._set_deadline(_ARRIVAL_SECONDS)
        self._answer_offer()

    def _overdue(self) -> None:
        self.drop(None)  # it came over something else, or not at all

    def _send_hint(self, hint: Hint) -> None:
        """The rendezvous does not learn what we think of the peer."""

    def _fall_silent(self) -> None:
        self._end()

    def _hold(self, held: bool) -> None:
        """Nothing is read here."""

    def _abort(self) -> None:
        """There is nothing to close."""

    def _answer(self) -> Proven:
        raise AssertionError("a call has no handshake of its own")

    def _say_last(self, group: Group) -> None:
        raise AssertionError("a call carries nothing")

    def _make_path(self, connection: Connection, rtt: float, at_ms: float) -> AnyPath:
        raise AssertionError("a call is no path")
