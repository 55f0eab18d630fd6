"""The node's UDP sockets: one pump for the tunnel engine behind them, and a link for each peer.

`UdpFront.pump` is the one place that drains the engine; it is called after every input, and arms one timer.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from crust.net.clock import TIMER_SLACK, monotonic
from crust.net.udp import Features, SendOutcome, Sources, UdpSocket, bind_udp, route_info, sockaddr
from crust.node.busy_poll import HANDSHAKE_SECONDS
from crust.node.utp_dial import PunchWatcher, UtpDial
from crust.node.utp_link import GROUP_BYTES, LinkConsumer, UtpLink
from crust.proto.noise.handshake import HandshakeFailed
from crust.proto.tunnel.association import Association
from crust.proto.tunnel.constants import MAX_PADDING, PUNCH_PADDING
from crust.proto.tunnel.endpoint import Dial, Knock, TunnelEndpoint
from crust.proto.tunnel.events import (
    DialFailed,
    DialSucceeded,
    Knocked,
    KnockedAgain,
    Lost,
    Moved,
    Outgoing,
    Route,
    TunnelEvent,
)
from crust.proto.utp.config import UtpConfig
from crust.types import PathKind
from crust.wire.service import REACH_BYTES
from crust.wire.stun import looks_like_stun
from crust.wire.tunnel import OVERHEAD_BYTES
from crust.wire.utp import Buffer

if TYPE_CHECKING:
    from crust.crypto.keys import PeerId
    from crust.node.core import Core

__all__ = ["LinkConsumer", "PunchWatcher", "UdpFront", "UtpDial", "UtpLink"]

# RFC 8200 §5: every IPv6 link takes packets of 1280 bytes; a header of IPv6 is 40 bytes, of IPv4 20, of UDP 8.
_LEAST_MTU: Final = 1280
_IP4_UDP: Final = 28
_IP6_UDP: Final = 48
_LARGEST_PAYLOAD: Final = 65_507

_WAY_SECONDS: Final = 0.2
"""For a dial and its answer the system is asked once about the way to an address."""

_WAYS_KEPT: Final = 256
_FLUSH_BYTES: Final = 512 * 1024
"""Sent for one peer before others get a turn of the event loop."""

_ANY: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104


T = TypeVar("T")


class UdpFront:
    """All UDP sockets of a node.

    Args:
        core: the node's centre.
        features: what sockets may use.
    """

    def __init__(self, core: Core, features: Features = Features()) -> None:  # noqa: B008 - immutable
        self._core = core
        self._loop = core.loop
        self._features = features
        self._sockets: dict[int, UdpSocket] = {}
        self._numbers = itertools.count()
        self._extra: set[int] = set()  # opened for one dial
        self._punches: dict[PeerId, PunchWatcher] = {}
        self._on_demand: dict[int, UdpSocket] = {}  # by family, opened for dialling
        self._ways: dict[tuple[int, str], tuple[float, UtpConfig, tuple[str, int]]] = {}
        self._held: Outgoing | None = None  # what the kernel did not take
        self._unflushed: dict[Association, None] = {}
        self._waiting: dict[Association, None] = {}  # to be flushed when it does
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._pump_due = False
        self._closed = False
        self._dials: dict[Dial, UtpDial[Any]] = {}
        self._closing: dict[UtpLink, None] = {}
        self._settling: asyncio.Future[None] | None = None
        self._awaited: dict[bytes, Callable[[], None]] = {}
        self.quiet: int | None = None
        self.stun_received: Callable[[bytes, tuple[str, int]], bool] | None = None
        self.knocked: Callable[[Knock], None] | None = None
        self.endpoint: Final = self._make_endpoint()

    def _make_endpoint(self) -> TunnelEndpoint:
        core = self._core
        endpoint = TunnelEndpoint(
            core.identity,
            core.network,
            core.hello,
            random=core.random,
            seen=core.seen,
            now=monotonic(),
            count=core.stats.count,
        )
        endpoint.config_for = lambda route: self._config(self._sockets[route[0]], route[1])[0]
        return endpoint

    # --- sockets -------------------------------------------------------------------------------------------------

    async def add(self, sock: socket.socket) -> UdpSocket:
        """Use a bound socket."""
        found = self._adopt(sock)
        await found.start()
        return found

    def _adopt(self, sock: socket.socket) -> UdpSocket:
        number = next(self._numbers)
        found = self._sockets[number] = UdpSocket(self._loop, sock, number, self, self._features)
        return found

    def _open(self, family: int) -> UdpSocket:
        """Open a socket on every address."""
        found = self._adopt(bind_udp(_ANY[socket.AddressFamily(family)], 0))
        if not found.start_now():
            self._loop.create_task(found.start())
        return found

    def _socket_for(self, host: str) -> UdpSocket:
        """A socket to dial from: one that listens on every address, or on ours on the way there, if there is.

        What answers then finds it later, too, and the outside address that others see is the one that we tell.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = [s for n, s in self._sockets.items() if s.family == family and n not in self._extra]
        for found in listening:
            if found.local[0] == _ANY[socket.AddressFamily(family)]:
                return found
        if listening:
            own = route_info(sockaddr(host, 1), family).local
            for found in listening:
                if found.local[0] == own and found is not self._on_demand.get(family):
                    return found
        found = self._on_demand[family] = self._on_demand.get(family) or self._open(family)
        return found

    async def settled(self) -> None:
        """Wait until the peers have all that closed links had to say. Cancellation loses nothing."""
        while any(not link.settled for link in self._closing):
            self._settling = self._loop.create_future()
            await self._settling

    def closing(self, link: UtpLink) -> None:
        """A link was closed, and has perhaps something to say yet."""
        self._closing[link] = None

    def close(self) -> None:
        """Send what is left to say, as far as the kernel takes it, and close every socket."""
        if not self._closed:
            self._closed = True
            self.pump()
            self._flush_all()
        for found in self._sockets.values():
            found.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _config(self, sock: UdpSocket, address: tuple[Any, ...]) -> tuple[UtpConfig, tuple[str, int]]:
        """How µTP runs on the way to an address; and our own address there."""
        key, now = (sock.number, address[0]), monotonic()
        known = self._ways.get(key)
        if known is not None and now - known[0] < _WAY_SECONDS:
            return known[1:]
        if len(self._ways) >= _WAYS_KEPT:
            self._ways.clear()
        config, local = self._ask_config(sock, address)
        self._ways[key] = now, config, local
        return config, local

    def _ask_config(self, sock: UdpSocket, address: tuple[Any, ...]) -> tuple[UtpConfig, tuple[str, int]]:
        info = route_info(address, sock.family)
        headers = _IP6_UDP if sock.family == socket.AF_INET6 else _IP4_UDP
        largest = min(min(info.mtu, self._core.config.max_datagram_bytes) - headers, _LARGEST_PAYLOAD)
        least = _LEAST_MTU - _IP6_UDP - OVERHEAD_BYTES
        limits = self._core.config
        config = UtpConfig(
            tunnel=True,
            mtu=least,
            mtu_ceiling=max(largest - OVERHEAD_BYTES, least),
            datagram_overhead=OVERHEAD_BYTES,
            receive_window=limits.receive_window_bytes,
            send_buffer=max(limits.retention_bytes, 4 * GROUP_BYTES),
        )
        local = sock.local if sock.local[0] != _ANY[sock.family] else (info.local or sock.local[0], sock.local[1])
        return config, local

    def _link(self, association: Association) -> UtpLink:
        _, local = self._config(self._sockets[association.route[0]], association.route[1])
        return UtpLink(self, association, local)

    # --- verbs ---------------------------------------------------------------------------------------------------

    def dial(self, peer: PeerId, host: str, port: int, made: Callable[[UtpLink], T]) -> UtpDial[T]:
        """Begin a handshake with a numeric address.

        Args:
            peer: whom to reach.
            host: where.
            port: where.
            made: makes of the link what is waited for.

        Raises:
            OSError: there is no way to it.
        """
        address = sockaddr(host, port)
        sock = self._socket_for(host)
        sock.watch_refusals(True)
        now = monotonic()
        config, _ = self._config(sock, address)
        dial = self.endpoint.dial(peer, (sock.number, address), config, now)
        found = self._dials[dial] = UtpDial(dial, self._loop.create_future(), made)
        self.pump()
        self._core.handshake_watch.sent(now, HANDSHAKE_SECONDS)
        self.endpoint.ephemerals.prepare(now)
        return found

    def cancel(self, dial: UtpDial[Any]) -> None:
        """Give a dial up; a link that it brought is closed."""
        self._dials.pop(dial.dial, None)
        self.endpoint.cancel(dial.dial)
        future = dial.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:
            future.result().abort()
        self._stop_watching()

    # --- punching ------------------------------------------------------------------------------------------------

    def punch(self, peer: PeerId, watcher: PunchWatcher) -> UtpDial[UtpLink]:
        """Begin one handshake with all addresses of a peer; `probe` sends its requests. End it with `cancel_punch`."""
        dial = self.endpoint.punch(peer, monotonic())
        found = self._dials[dial] = UtpDial(dial, self._loop.create_future(), lambda link: link)
        self._punches[peer] = watcher
        return found

    def kind_of(self, peer: PeerId, source: tuple[str, int]) -> PathKind:
        """How a path that a peer has begun came up."""
        watcher = self._punches.get(peer)
        return "direct" if watcher is None else watcher.kind_of(source)

    def main_socket(self, host: str) -> int:
        """The socket that will carry data to a host.

        Raises:
            OSError: none can be opened.
        """
        sock = self._socket_for(host)
        sock.watch_refusals(True)
        return sock.number

    def probe(
        self,
        dial: UtpDial[UtpLink],
        number: int,
        target: tuple[str, int],
        *,
        ttl: int | None = None,
        small: bool = False,
    ) -> None:
        """Queue a request from a socket; `pump_soon` sends it.

        Args:
            dial: whose.
            number: of the socket.
            target: numeric host, and port.
            ttl: a low one, or None.
            small: with little padding, as there will be many.
        """
        padding = PUNCH_PADDING if small else MAX_PADDING
        self.endpoint.probe(dial.dial, (number, sockaddr(*target)), monotonic(), ttl=ttl, padding=padding)

    def open_extra(self, host: str, count: int) -> list[int]:
        """Open sockets for one dial; fewer than asked for where the system has no more. `release` follows."""
        found: list[int] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for _ in range(count):
            try:
                found.append(self._open(family).number)
            except OSError:
                self._core.stats.count("punch.no_more_sockets")
                break
        self._extra.update(found)
        return found

    def open_quiet(self) -> tuple[str, int] | None:
        """Open another IPv4 socket that stays, from which nothing is sent but what a dial without a rendezvous needs.

        Returns:
            Its address; None where the system has no more.
        """
        for number in self.open_extra(_ANY[socket.AF_INET], 1):
            self._extra.discard(number)
            self.quiet = number
            return self._sockets[number].local
        return None

    def cancel_punch(self, watcher: PunchWatcher, dial: UtpDial[UtpLink], numbers: Sequence[int]) -> None:
        """End a dial; of the sockets that were opened for it those stay over which the peer is reached."""
        if self._punches.get(dial.dial.peer) is watcher:  # not one that was begun since
            del self._punches[dial.dial.peer]
        self._dials.pop(dial.dial, None)
        self.endpoint.cancel(dial.dial)
        self._close_unused(set(numbers))
        self._stop_watching()

    def _close_unused(self, numbers: set[int]) -> None:
        for number in numbers - self.endpoint.sockets_in_use():
            self._extra.discard(number)
            sock = self._sockets.pop(number, None)
            if sock is not None:
                sock.close()

    # --- datagrams that are nobody's -----------------------------------------------------------------------------

    def send_plain(self, data: bytes, local_port: int, host: str, port: int) -> bool:
        """Send a datagram as it is, from the socket with that port; whether there is such a socket.

        Raises:
            OSError: not a numeric address.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for sock in self._sockets.values():
            if sock.family == family and sock.local[1] == local_port:
                sock.send(data, len(data), sockaddr(host, port))
                return True
        return False

    def await_plain(self, word: bytes, heard: Callable[[], None]) -> None:
        """Be told, once, when a datagram of just these bytes comes, wherever from."""
        self._awaited[word] = heard

    def forget_plain(self, word: bytes) -> None:
        """Do not wait for a datagram any more."""
        self._awaited.pop(word, None)

    def _stop_watching(self) -> None:
        if not self.endpoint.dialling:
            for sock in self._sockets.values():
                sock.watch_refusals(False)

    def accept(self, knock: Knock) -> UtpLink:
        """Answer with message 2."""
        now = monotonic()
        self.endpoint.answer(knock, now)
        self._send_handshakes(now)  # the peer works on it while we go on
        config, local = self._config(self._sockets[knock.route[0]], knock.route[1])
        association = self.endpoint.accept(knock, config, now)
        self.endpoint.ephemerals.prepare(now)
        self._arm()
        return UtpLink(self, association, local)

    def finish(self, association: Association) -> None:
        """Forget an association, after what its end still has to say."""
        now = monotonic()
        self.flush(association, now)
        association.close()
        self._closing.pop(association.owner, None)
        self._note_settled()
        if self._extra:
            self._close_unused(self._extra)

    def _note_settled(self) -> None:
        if self._settling is not None and not self._settling.done():
            self._settling.set_result(None)

    # --- UdpConsumer ---------------------------------------------------------------------------------------------

    @property
    def receive_buffer(self) -> memoryview:
        """To receive into."""
        return self.endpoint.receive_buffer

    def udp_received(self, number: int, data: memoryview, size: int, address: tuple[Any, ...]) -> None:
        """Datagrams of one source."""
        if self._awaited and len(data) == REACH_BYTES and (heard := self._awaited.pop(bytes(data), None)) is not None:
            heard()
            return
        # A datagram of the tunnel looks like this once in 2^34 times, and is sent again.
        if self.stun_received is not None and looks_like_stun(data) and self.stun_received(bytes(data), address[:2]):
            return
        self.endpoint.receive_datagrams(data, size, (number, address), monotonic())

    def udp_received_many(self, number: int, datagrams: Sequence[memoryview], sources: Sources) -> None:
        """Single datagrams of many sources: a crowd of peers, or a flood."""
        if self._awaited or self.stun_received is not None:
            for at, datagram in enumerate(datagrams):
                self.udp_received(number, datagram, len(datagram), sources.address(at))
            return
        self.endpoint.receive_many(datagrams, lambda at: (number, sources.address(at)), sources.host, monotonic())

    def udp_drained(self) -> None:
        """Time to answer."""
        self.pump()

    def udp_writable(self, number: int) -> None:
        """The kernel takes more."""
        held, self._held = self._held, None
        now = monotonic()
        if held is None or self._transmit(held, now):
            waiting, self._waiting = self._waiting, {}
            for association in waiting:
                self.endpoint.touch(association)
        self.pump()

    def udp_refused(self, number: int, address: tuple[Any, ...], error: OSError) -> None:
        """Nobody is there: what dials this address has failed."""
        if error.errno == errno.ECONNREFUSED:
            for watcher in self._punches.values():
                watcher.unreachable(number, address[:2])
        for dial, waiting in list(self._dials.items()):
            if dial.route == (number, address) and not waiting.future.done():
                self._dials.pop(dial)
                self.endpoint.cancel(dial)
                waiting.future.set_exception(
                    ConnectionRefusedError(error.errno, error.strerror) if error.errno == errno.ECONNREFUSED else error
                )
        self._loop.call_soon(self._stop_watching)

    # --- the pump ------------------------------------------------------------------------------------------------

    def pump_soon(self) -> None:
        """Pump at the end of the loop's turn."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._pump_due = False
        self.pump()

    def pump(self) -> None:
        """Drain the engine, then arm the timer."""
        endpoint = self.endpoint
        now = monotonic()
        while (event := endpoint.next_event()) is not None:
            self._handle(event)
        touched = endpoint.touched
        while touched:
            association = touched.popitem()[0]
            link: UtpLink | None = association.owner
            if link is not None:
                link.drain(now)
            self._flush_later(association)
            if link is not None:
                link.check_writable()
                if self._closing and link in self._closing and link.settled:
                    self._note_settled()
        self._send_handshakes(now)
        self._arm()

    def _send_handshakes(self, now: float) -> None:
        """Send the messages of handshakes that wait."""
        next_outgoing = self.endpoint.next_outgoing
        while self._held is None and (out := next_outgoing()) is not None:
            self._transmit(out, now)

    def _flush_later(self, association: Association) -> None:
        """Flush once who reads has had the chance to answer, so that acknowledgements go with the answer."""
        if not self._unflushed:
            self._loop.call_soon(self._flush_all)
        self._unflushed[association] = None

    def _flush_all(self) -> None:
        now = monotonic()
        while self._unflushed:
            self.flush(next(iter(self._unflushed)), now)

    def send_lone(self, association: Association, data: Buffer, now: float) -> bool:
        """Send data in one datagram at once; False, and nothing done, when they must take the usual way."""
        if self._held is not None:
            return False
        out = self.endpoint.lone_outgoing(association, data, now)
        if out is None:
            return False
        self._unflushed.pop(association, None)
        self._transmit(out, now)
        self._arm()
        return True

    def flush(self, association: Association, now: float, *, whole: bool = False) -> None:
        """Send what an association has to say.

        Args:
            association: which.
            now: the present time.
            whole: if there are full batches, only these now: the rest at the end of the loop's turn, with what may be
                written until then.
        """
        self._unflushed.pop(association, None)
        most = association.utp.whole_batches_bytes if whole else 0
        sent = 0
        outgoing = self.endpoint.association_outgoing
        while self._held is None:
            out = outgoing(association, now, most)
            if out is not None:
                self._transmit(out, now)
                sent += len(out.data)
            if not association.has_more:
                if most and association.utp.unsent_bytes:
                    self._flush_later(association)
                self._arm()
                return
            if sent >= _FLUSH_BYTES:
                self.endpoint.touch(association)
                self.pump_soon()
                return
        self._waiting[association] = None

    def _transmit(self, out: Outgoing, now: float) -> bool:
        number, address = out.route
        sock = self._sockets.get(number)
        if sock is None:
            return True
        if out.ttl is not None:
            sock.send_low(out.data, address, out.ttl)
            return True
        self._core.stats["udp.datagrams_sent"] += -(-len(out.data) // out.size)
        outcome = sock.send(out.data, out.size, address)
        if outcome is SendOutcome.BLOCKED:
            self._held = out
            return False
        if outcome is SendOutcome.TOO_BIG and out.association is not None:
            out.association.datagram_too_big(out.size, now)
            self.endpoint.touch(out.association)
        return True

    def _arm(self) -> None:
        due = self.endpoint.next_timeout()
        if self._timer is not None:
            if due is not None and due >= self._timer_at - 0.0002:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_at = due
            self._timer = self._loop.call_at(due + TIMER_SLACK, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.endpoint.handle_timeout(monotonic())
        self.pump()

    def _handle(self, event: TunnelEvent) -> None:
        if isinstance(event, KnockedAgain):
            self._tell_punch(event.knock, event.route)
        elif isinstance(event, Knocked):
            self._tell_punch(event.knock, event.knock.route)
            if self.knocked is not None:
                self.knocked(event.knock)
            else:
                self.endpoint.forget(event.knock)
        elif isinstance(event, DialSucceeded):
            self._core.handshake_watch.received(monotonic())
            waiting = self._dials.pop(event.dial, None)
            link = self._link(event.association)
            if waiting is not None and not waiting.future.done():
                waiting.future.set_result(waiting.made(link))
            else:
                link.abort()
            self._stop_watching()
        elif isinstance(event, DialFailed):
            self._fail(event.dial, event.error)
        elif isinstance(event, Moved):
            link = event.association.owner
            if link is not None:
                _, local = self._config(self._sockets[event.route[0]], event.route[1])
                link.moved(event.route, local)
            if self._extra:
                self._close_unused(self._extra)
        elif isinstance(event, Lost) and event.association.owner is not None:
            event.association.owner.lost("the peer does not renew its keys")

    def _tell_punch(self, knock: Knock, route: Route) -> None:
        watcher = self._punches.get(knock.hello.peer)
        if watcher is not None:
            watcher.heard(route[0], route[1][:2])

    def _fail(self, dial: Dial, error: HandshakeFailed) -> None:
        waiting = self._dials.pop(dial, None)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_exception(error)
        self._stop_watching()
