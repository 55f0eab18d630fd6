"""One peer behind the tunnel: its keys, its address, and the µTP connection inside.

Datagrams reach it opened, by way of the endpoint that knows the keys by their index. Roaming follows PROTOCOL 9, the
renewal of keys PROTOCOL 6: a whole new handshake, whose messages travel inside the association that it renews, so that
no stranger can begin one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crust.crypto.aead import Suite
from crust.errors import RemoteProtocolError
from crust.proto.noise.outcome import HandshakeFailed
from crust.proto.timers import TimerTable
from crust.proto.tunnel.constants import (
    KEEPALIVE_SECONDS,
    MAX_CONTROL_QUEUE,
    OLD_KEY_SECONDS,
    QUIET_BYTES,
    QUIET_SECONDS,
    QUIET_TRIES,
    RENEW_DATAGRAMS,
    RENEW_RESPONDER_DELAY,
    RENEW_RETRY_SECONDS,
    RENEW_SECONDS,
)
from crust.proto.tunnel.events import Lost, Moved, Outgoing, Route
from crust.proto.tunnel.handshake import Discarded, TunnelInitiator, TunnelKeys
from crust.proto.tunnel.header import HeaderMask
from crust.proto.tunnel.keys import KeyExhaustedError, ReceiveKey, SendKey
from crust.proto.tunnel.roaming import CHALLENGE_BYTES, NewAddress
from crust.proto.tunnel.timers import Timer
from crust.proto.utp.batch import Batch
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.constants import BATCHES_AT_ONCE
from crust.wire.tunnel import (
    CONTROL_MARK,
    OVERHEAD_BYTES,
    ControlKind,
    TunnelRequest,
    parse_control,
    serialize_control,
)
from crust.wire.utp import HEADER_BYTES as UTP_BYTES
from crust.wire.utp import Buffer

if TYPE_CHECKING:
    from crust.proto.tunnel.endpoint import TunnelEndpoint

__all__ = ["Association"]

_INITIATOR_ID: Final = 1
_RESPONDER_ID: Final = 2


class Association:
    """What two endpoints share after a handshake.

    Args:
        endpoint: whose it is.
        keys: of the handshake.
        index: ours.
        route: where the peer is.
        config: of the µTP connection.
        now: the present time.
        rtt: the handshake's round trip, 0 for unknown.

    Attributes:
        peer: the other side; on the responder's side proved when `proved` is true.
        hello: what it said of itself.
        initiator: whether we dialled.
        utp: the connection inside, for its data, events and verbs.
        proved: an authentic datagram has come.
        has_more: `next_outgoing` may have more to give.
        route: where the peer is.
        owner: for the front end.
    """

    __slots__ = (
        "_batches",
        "_burst",
        "_control",
        "_drained",
        "_endpoint",
        "_hash",
        "_heard",
        "_new_address",
        "_newest_route",
        "_next",
        "_old",
        "_quiet_tries",
        "_receive",
        "_renewal",
        "_renewal_index",
        "_renewal_tries",
        "_renewed",
        "_send",
        "_sent_at",
        "_suite",
        "_timers",
        "armed",
        "closed",
        "has_more",
        "hello",
        "initiator",
        "owner",
        "peer",
        "proved",
        "route",
        "utp",
    )

    def __init__(
        self,
        endpoint: TunnelEndpoint,
        keys: TunnelKeys,
        index: int,
        route: Route,
        config: UtpConfig,
        now: float,
        rtt: float = 0.0,
    ) -> None:
        self._endpoint = endpoint
        self.peer = keys.peer
        self.hello = keys.hello
        self.initiator = keys.initiator
        self.proved = keys.initiator
        self.route = route
        self.owner: Any = None
        self.closed = False
        self.armed = float("inf")  # when the endpoint will look at our timers
        ids = (_INITIATOR_ID, _RESPONDER_ID) if keys.initiator else (_RESPONDER_ID, _INITIATOR_ID)
        self.utp = UtpConnection.established(config, now, receive_id=ids[0], send_id=ids[1], rtt=rtt)
        self.utp.stats.told = endpoint.count
        self._timers: TimerTable[Timer] = TimerTable()
        self._suite = keys.suite
        self._hash = keys.handshake_hash
        self._send = self._send_key(keys)
        self._receive = self._receive_key(keys, index)
        self._next: tuple[ReceiveKey, SendKey, bytes] | None = None  # of a renewal that the peer has not used yet
        self._old: ReceiveKey | None = None
        self._renewal: TunnelInitiator | None = None
        self._renewal_index = 0
        self._renewal_tries = 0
        self._renewed: tuple[bytes, bytes] | None = None  # the last RENEW and our answer, should it come again
        self._new_address: NewAddress | None = None
        self._newest_route = route
        # Lists, as there are a few at most, and an empty deque takes 760 bytes.
        self._control: list[tuple[ControlKind, bytes, Route | None]] = []
        self._batches: list[Batch] = []
        self._drained = True
        self.has_more = False
        self._sent_at = self._heard = now
        self._burst = self._quiet_tries = 0
        self._timers.set(Timer.KEEPALIVE, now + KEEPALIVE_SECONDS)
        self._set_renewal(now)

    def __repr__(self) -> str:
        return f"<Association {str(self.peer)[:14]}… {self.route[1][0]}>"

    # --- keys ----------------------------------------------------------------------------------------------------

    def _send_key(self, keys: TunnelKeys) -> SendKey:
        return SendKey(keys.suite, keys.send_key, keys.index, HeaderMask(keys.header_key))

    def _receive_key(self, keys: TunnelKeys, index: int) -> ReceiveKey:
        key = ReceiveKey(keys.suite, keys.receive_key, index, self)
        self._endpoint.register(index, key)
        return key

    @property
    def active_at(self) -> float:
        """When a datagram of µTP last came or went."""
        return max(self._sent_at, self._heard)

    def release(self) -> None:
        """Give up what an idle association can make again."""
        self._send.release()
        self._receive.release()

    def close(self) -> None:
        """Forget everything; datagrams that still come are strangers'."""
        if self.closed:
            return
        self.closed = True
        self._timers.clear_all()
        self._drop_renewal()
        self._drop_next()
        self._drop_old()
        self._endpoint.unregister(self._receive.index)

    # --- from the network ----------------------------------------------------------------------------------------

    def receive_run(
        self, key: ReceiveKey, route: Route, headers: bytes, bodies: bytes, body_bytes: int, now: float
    ) -> None:
        """Take in µTP packets that lay in one batch of datagrams, all newer than what came before.

        Args:
            key: under which they came.
            route: from where.
            headers: 20 bytes each.
            bodies: one after the other.
            body_bytes: of each but the last, which may be shorter.
            now: the present time.
        """
        if key is not self._receive:
            self._used(key, now)
        self._newest_route = route
        if route != self.route:
            self._came_from(route, len(headers) + len(bodies), now)
        self.proved = True
        self._heard = now
        self._burst += len(bodies)
        if self._burst >= QUIET_BYTES:
            self._watch_for_quiet(now)
        self.utp.receive_run(headers, bodies, body_bytes, now)

    def receive_one(
        self, key: ReceiveKey, route: Route, header: bytes, body: bytes, now: float, *, newest: bool
    ) -> None:
        """Take in one datagram.

        Args:
            key: under which it came.
            route: from where.
            header: µTP's, or that of a control packet.
            body: what it carries.
            now: the present time.
            newest: no datagram with a higher counter came before.
        """
        if key is not self._receive:
            self._used(key, now)
        if newest and key is self._receive:
            self._newest_route = route
            if route != self.route:
                self._came_from(route, UTP_BYTES + len(body), now)
        self.proved = True
        if header[0] == CONTROL_MARK:
            self._receive_control(header, body, route, now)
            return
        self._heard = now
        self._burst += len(body)
        if self._burst >= QUIET_BYTES:
            self._watch_for_quiet(now)
        self.utp.receive_one(header, body, now)

    def _receive_control(self, header: bytes, body: bytes, route: Route, now: float) -> None:
        kind = parse_control(header)
        if kind is ControlKind.CHALLENGE:
            if len(body) == CHALLENGE_BYTES:
                self._queue(ControlKind.RESPONSE, body, route)
        elif kind is ControlKind.RESPONSE:
            self._on_response(body, route, now)
        elif kind is ControlKind.RENEW:
            self._on_renew(body, now)
        elif kind is ControlKind.RENEWED:
            self._on_renewed(body, now)

    def _queue(self, kind: ControlKind, body: bytes = b"", route: Route | None = None) -> None:
        # A peer that floods challenges gets no memory.
        if len(self._control) < MAX_CONTROL_QUEUE:
            self._control.append((kind, body, route))
            self._endpoint.touch(self)

    # --- roaming -------------------------------------------------------------------------------------------------

    def _came_from(self, route: Route, size: int, now: float) -> None:
        """The newest datagram came from an address that is not the peer's so far."""
        found = self._new_address
        if found is None or found.route != route:
            found = self._new_address = NewAddress(route, self._endpoint.random(CHALLENGE_BYTES), now)
            self._endpoint.count("tunnel.new_address")
        found.received(size + OVERHEAD_BYTES)
        if found.due <= now and not found.given_up:
            self._challenge_address(found, now)

    def _challenge_address(self, found: NewAddress, now: float) -> None:
        self._queue(ControlKind.CHALLENGE, found.token, found.route)
        found.challenged(now)
        self._timers.set(Timer.CHALLENGE, found.due)

    def _on_response(self, body: bytes, route: Route, now: float) -> None:
        found = self._new_address
        if found is None or found.route != route or body != found.token:
            self._endpoint.count("tunnel.stale_response")
            return
        self._new_address = None
        self._timers.clear(Timer.CHALLENGE)
        self.route = route
        self.utp.path_changed(now)
        self._endpoint.tell(Moved(self, route))

    def _route_for(self, size: int) -> Route:
        """Where data go: to a new address as far as it is allowed, if the newest datagram came from there."""
        found = self._new_address
        if found is not None and found.route == self._newest_route and found.spend(size):
            return found.route
        return self.route

    # --- renewal of keys -----------------------------------------------------------------------------------------

    def _set_renewal(self, now: float) -> None:
        """Arm the next renewal; who dialled begins, the other side only if it does not."""
        self._timers.set(Timer.RENEW, now + RENEW_SECONDS + (0 if self.initiator else RENEW_RESPONDER_DELAY))

    def renew(self, now: float) -> None:
        """Begin to renew the keys, or ask again."""
        if self._renewal is None:
            self._renewal_index = self._endpoint.reserve_index()
            self._renewal = self._endpoint.initiator(
                self.peer, self._renewal_index, now, self._suite, renews=self._hash
            )
            self._renewal_tries = 0
        self._queue(ControlKind.RENEW, self._renewal.message)
        self._timers.set(Timer.RENEW, now + RENEW_RETRY_SECONDS[min(self._renewal_tries, len(RENEW_RETRY_SECONDS) - 1)])
        self._renewal_tries += 1

    def _on_renew(self, body: bytes, now: float) -> None:
        if self._renewed is not None and self._renewed[0] == body:
            self._queue(ControlKind.RENEWED, self._renewed[1])
            return
        if self._renewal is not None and self._endpoint.id > self.peer:
            return  # both began: the larger PeerId's stands (PROTOCOL 6)
        try:
            request = TunnelRequest(Suite(body[0]), body[1:])
            responder = self._endpoint.responder(request, renews=self._hash)
        except (Discarded, IndexError, ValueError):
            self._endpoint.count("tunnel.bad_renewal")
            return
        if responder.introduction.hello.peer != self.peer:
            self._endpoint.count("tunnel.bad_renewal")
            return
        self._drop_renewal()
        self._drop_next()
        index = self._endpoint.reserve_index()
        keys = responder.accept(self._endpoint.introduction(index), self._endpoint.random)
        self._next = (self._receive_key(keys, index), self._send_key(keys), keys.handshake_hash)
        self._renewed = (body, responder.message)
        self._queue(ControlKind.RENEWED, responder.message)

    def _on_renewed(self, body: bytes, now: float) -> None:
        renewal = self._renewal
        if renewal is None:
            return
        self._renewal = None
        try:
            keys = renewal.receive_message(body)
        except (HandshakeFailed, RemoteProtocolError):
            self._endpoint.count("tunnel.bad_renewal")
            self._endpoint.unregister(self._renewal_index)
            return
        receive = self._receive_key(keys, self._renewal_index)
        self._switch(receive, self._send_key(keys), keys.handshake_hash, now)
        # The peer goes on with its old key until it has seen the new one.
        self._queue(ControlKind.KEEPALIVE)

    def _used(self, key: ReceiveKey, now: float) -> None:
        """A datagram came under another key than the present one: the next, or one that was replaced."""
        if self._next is not None and key is self._next[0]:
            receive, send, hash_ = self._next
            self._next = None
            self._switch(receive, send, hash_, now)

    def _switch(self, receive: ReceiveKey, send: SendKey, hash_: bytes, now: float) -> None:
        self._drop_old()
        self._old = self._receive
        self._timers.set(Timer.OLD_KEY, now + OLD_KEY_SECONDS)
        self._receive, self._send, self._hash = receive, send, hash_
        self._set_renewal(now)
        self._endpoint.count("tunnel.renewed")

    def _drop_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal = None
            self._endpoint.unregister(self._renewal_index)

    def _drop_next(self) -> None:
        if self._next is not None:
            self._endpoint.unregister(self._next[0].index)
            self._next = None

    def _drop_old(self) -> None:
        if self._old is not None:
            self._endpoint.unregister(self._old.index)
            self._old = None

    # --- time ----------------------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        own, inner = self._timers.deadlines, self.utp.deadlines
        if not inner:
            return min(own.values()) if own else None
        due = min(inner.values())
        return min(due, *own.values())

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""
        for timer in self._timers.pop_due(now):
            if timer is Timer.KEEPALIVE:
                due = self._sent_at + KEEPALIVE_SECONDS
                if due <= now:
                    self._queue(ControlKind.KEEPALIVE)
                    due = now + KEEPALIVE_SECONDS
                self._timers.set(Timer.KEEPALIVE, due)
            elif timer is Timer.CHALLENGE:
                found = self._new_address
                if found is not None and found.given_up:
                    self._new_address = None
                elif found is not None:
                    self._challenge_address(found, now)
            elif timer is Timer.RENEW:
                self.renew(now)
            elif timer is Timer.OLD_KEY:
                self._drop_old()
            elif timer is Timer.QUIET:
                self._on_quiet(now)
        self.utp.handle_timeout(now)

    def _watch_for_quiet(self, now: float) -> None:
        self._quiet_tries = 0
        self._timers.set_if_unset(Timer.QUIET, now + QUIET_SECONDS)

    def _on_quiet(self, now: float) -> None:
        """A stream of data may have stopped: the NAT between may have lost us, and only we can tell the peer."""
        due = self._heard + max(QUIET_SECONDS, 3 * self.utp.srtt) * 2**self._quiet_tries
        if due <= now:
            self._burst = 0
            self._queue(ControlKind.KEEPALIVE)
            self._quiet_tries += 1
            due = now + max(QUIET_SECONDS, 3 * self.utp.srtt) * 2**self._quiet_tries
        if self._quiet_tries < QUIET_TRIES:
            self._timers.set(Timer.QUIET, due)

    # --- to the network ------------------------------------------------------------------------------------------

    def next_outgoing(self, now: float, max_bytes: int = 0) -> Outgoing | None:
        """The next datagrams to send; None when there are none (any more) at present.

        Afterwards `has_more` says whether to ask again.

        Args:
            now: the present time.
            max_bytes: of data, when none was given out that is still to be sealed; 0 for as much as there is.
        """
        self.has_more = False
        if self.closed:
            return None
        try:
            if self._control:
                return self._seal_control(now)
            batches = self._batches
            if not batches:
                batches = self._batches = self.utp.datagrams_to_send(now, max_bytes)
                if not batches:
                    return None
                # It has given as much as was asked for; or all, if that is less than it may give at once.
                self._drained = max_bytes > 0 or len(batches) < BATCHES_AT_ONCE
                if self._send.counter >= RENEW_DATAGRAMS and self._renewal is None and self._next is None:
                    self.renew(now)
            batch = batches.pop(0)
            self.has_more = bool(batches) or not self._drained
            data, size = self._endpoint.sealer.seal(self._send, batch.headers, batch.bodies, is_run=batch.is_run)
        except KeyExhaustedError:
            self.close()
            self._endpoint.tell(Lost(self))
            return None
        self._sent_at = now
        route = self.route if self._new_address is None else self._route_for(len(data))
        return Outgoing(data, size, route, batch.probe, self)

    def lone_outgoing(self, data: Buffer, now: float) -> Outgoing | None:
        """Data in one datagram that leaves at once; None when it is not that easy, and nothing has been done."""
        if self._control or self._batches or self._new_address is not None or self.closed:
            return None
        send = self._send
        if send.counter >= RENEW_DATAGRAMS:
            return None
        header = self.utp.send_lone(memoryview(data), now)
        if header is None:
            return None
        self._sent_at = now
        sealed = self._endpoint.sealer.seal_one(send, header, data)
        return Outgoing(sealed, len(sealed), self.route, False, self)

    def _seal_control(self, now: float) -> Outgoing:
        kind, body, route = self._control.pop(0)
        self.has_more = True
        data, size = self._endpoint.sealer.seal(self._send, serialize_control(kind), [body])
        if route is None:
            route = self._route_for(size)
        elif self._new_address is not None and route == self._new_address.route:
            self._new_address.spend(size)
        self._sent_at = now
        return Outgoing(data, size, route, probe=False, association=self)

    def datagram_too_big(self, size: int, now: float) -> None:
        """The system refused a datagram of that size (EMSGSIZE)."""
        self.utp.datagram_too_big(size - OVERHEAD_BYTES, now)
