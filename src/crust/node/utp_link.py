"""One peer's µTP as a link that carries groups of records, inside a tunnel association."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from crust.errors import RemoteProtocolError
from crust.net.clock import monotonic
from crust.proto.plain import PlainRecords
from crust.proto.session.outbox import Group
from crust.proto.tunnel.association import Association
from crust.proto.tunnel.events import Route
from crust.proto.utp.events import Ended, PeerFinished
from crust.proto.utp.state import State

if TYPE_CHECKING:
    from crust.node.udp import UdpFront

__all__ = ["GROUP_BYTES", "LinkConsumer", "UtpLink"]

_UNSENT_BYTES: Final = 128 * 1024
"""Not yet given to the network: priorities cannot overtake these (PROTOCOL 14)."""

_IDLE_SECONDS: Final = 0.5
"""Without a datagram in either direction."""

GROUP_BYTES: Final = 768 * 1024
"""Room for the largest group."""

_UNSETTLED: Final = (State.CLOSING, State.CLOSING_BOTH, State.LAST_ACK)


class LinkConsumer(Protocol):
    """Who reads a link and is told when it may write."""

    def link_received(self, groups: list[tuple[bytes, list[bytes]]], now: float) -> None:
        """Groups that came."""

    def link_broken(self, error: RemoteProtocolError) -> None:
        """The peer wrote something that is no record; the link is of no more use."""

    def link_lost(self, reason: str) -> None:
        """The link is over; nothing follows."""

    def link_writable(self) -> None:
        """There is room again."""

    def link_moved(self) -> None:
        """The peer has another address."""


class UtpLink:
    """Groups of records over µTP inside a tunnel association.

    Args:
        front: whose sockets carry it.
        association: the engine; this becomes its owner.

    Attributes:
        consumer: who reads; may be replaced while the link lives. What comes before there is one waits.
        association: see above.
    """

    __slots__ = ("_front", "_over", "_records", "_stalled", "association", "consumer", "local", "paused", "remote")

    def __init__(self, front: UdpFront, association: Association, local: tuple[str, int]) -> None:
        self._front = front
        self._records = PlainRecords()
        self._stalled = self._over = False
        self.paused = False
        self.association = association
        self.consumer: LinkConsumer | None = None
        self.local = local
        self.remote: tuple[str, int] = association.route[1][:2]
        association.owner = self

    # --- for the front -------------------------------------------------------------------------------------------

    def drain(self, now: float) -> None:
        """Take what the engine has for us."""
        utp, consumer = self.association.utp, self.consumer
        if consumer is not None and not self.paused and (chunks := utp.read_all()):
            try:
                groups = self._records.receive(chunks)
            except RemoteProtocolError as error:
                consumer.link_broken(error)
                return
            if groups:
                consumer.link_received(groups, now)
        while (event := utp.next_event()) is not None:
            if isinstance(event, Ended):
                self._end(event.detail)
            elif isinstance(event, PeerFinished):
                # A path is for both directions: the peer has closed it.
                utp.close()
                self._tell_lost("ended")

    def check_writable(self) -> None:
        """Tell the consumer when there is room again."""
        if self._stalled and self._has_room:
            self._stalled = False
            if self.consumer is not None:
                self.consumer.link_writable()

    def moved(self, route: Route, local: tuple[str, int]) -> None:
        """The peer has another address."""
        self.remote = route[1][:2]
        self.local = local
        if self.consumer is not None:
            self.consumer.link_moved()

    def lost(self, reason: str) -> None:
        """The association cannot go on."""
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._over = True
        self._front.finish(self.association)
        self._tell_lost(reason)

    def _tell_lost(self, reason: str) -> None:
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            consumer.link_lost(reason)

    # --- for the consumer ----------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read what waits, after `consumer` or `paused` was set."""
        self._front.endpoint.touch(self.association)
        self._front.pump_soon()

    @property
    def writable(self) -> bool:
        """Whether a group can be written."""
        return not self._stalled

    @property
    def _has_room(self) -> bool:
        utp = self.association.utp
        return utp.unsent_bytes < _UNSENT_BYTES and utp.send_space >= GROUP_BYTES

    def write(self, groups: list[Group], now: float) -> None:
        """Send groups; only when `writable`."""
        if self._over:
            return
        buffers = self._records.buffers(groups)
        if len(buffers) == len(groups):  # without payloads
            data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
            if self._front.send_lone(self.association, data, now):
                return
        self.association.utp.send_data(buffers, now)
        self._front.flush(self.association, now, whole=True)
        self._stalled = not self._has_room

    def idle(self) -> None:
        """Hold as little memory as possible, if nothing happens indeed: what is given up must be made again."""
        if monotonic() - self.association.active_at >= _IDLE_SECONDS:
            self.association.release()

    def close(self) -> None:
        """Close after what was written has arrived; nothing is read any more."""
        self.consumer = None
        if not self._over:
            self.association.utp.close()
            self._front.closing(self)
            self.read()

    @property
    def settled(self) -> bool:
        """After `close`: the peer has everything."""
        return self._over or self.association.utp.state not in _UNSETTLED

    def abort(self) -> None:
        """Close at once; the peer is told, if it can be."""
        self.consumer = None
        if not self._over:
            self.association.utp.abort()
            self.read()
