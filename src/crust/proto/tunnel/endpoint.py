"""All peers of a node behind its UDP sockets, told apart by the index in front of each datagram (PROTOCOL 8).

The order in which a datagram is looked at: index → what answers a pending dial → the outer envelope of a message 1 →
dropped and counted.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from crust.crypto.aead import Suite
from crust.crypto.dh import Ephemerals
from crust.crypto.keys import Identity, PeerId
from crust.proto.noise.envelope import outer_secret
from crust.proto.noise.outcome import HandshakeFailed, Network, Random
from crust.proto.noise.replay import EphemeralCache
from crust.proto.tunnel.association import Association
from crust.proto.tunnel.constants import DIALS_TRIED, MAX_PADDING, PUNCH_REQUESTS_KEPT, RETRANSMIT_SECONDS
from crust.proto.tunnel.cookie import Course
from crust.proto.tunnel.entrance import Entrance
from crust.proto.tunnel.events import DialFailed, DialSucceeded, Outgoing, Route, TunnelEvent
from crust.proto.tunnel.handshake import ENVELOPE_BYTES, TunnelInitiator, TunnelKeys, TunnelResponder, is_request
from crust.proto.tunnel.header import MAX_SEGMENTS, HeaderMask
from crust.proto.tunnel.keys import ReceiveKey
from crust.proto.tunnel.pending import Dial, Knock
from crust.proto.tunnel.sealing import BUFFER_BYTES, Opener, Sealer
from crust.proto.utp.config import UtpConfig
from crust.wire.handshake import Hello, Hint
from crust.wire.tunnel import (
    CONTROL_MARK,
    HEADER_BYTES,
    HEADER_KEY_BYTES,
    NONCE_BYTES,
    SAMPLE_BYTES,
    SMALLEST_DATAGRAM,
    Introduction,
    TunnelRequest,
)
from crust.wire.utp import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Dial", "Knock", "TunnelEndpoint"]

_NONCE: Final = Struct(">IQ")
_START: Final = "I8xI16xI12x"  # of a datagram: what holds the index, the mark of a salt, the mask of the index
_MASKED: Final = HEADER_BYTES + SAMPLE_BYTES


class TunnelEndpoint:
    """The engine behind a node's UDP sockets.

    Args:
        identity: ours.
        network: ours.
        hello: what we say of ourselves.
        random: gives that many random bytes.
        seen: ephemeral keys of late, shared with the other transports.
        now: the present time.
        count: told the name of each thing worth counting, and how many.

    Attributes:
        id: our PeerId.
        random: see above.
        sealer: seals for all associations.
        ephemerals: for our handshakes.
        config_for: gives the settings of µTP on a way; used where a dial goes to many addresses.
        touched: associations with something to do for the front end: data, events, or datagrams to send.
    """

    def __init__(
        self,
        identity: Identity,
        network: Network,
        hello: Hello,
        *,
        random: Random,
        seen: EphemeralCache,
        now: float,
        count: Callable[[str, int], None] | None = None,
    ) -> None:
        self.id: Final = identity.id
        self.random: Final = random
        self.sealer: Final = Sealer()
        self.ephemerals: Final = Ephemerals(random)
        self.stats: Counter[str] = Counter()
        self.touched: dict[Association, None] = {}
        self._identity = identity
        self._network = network
        self._hello = hello
        self._opener = Opener()
        self._header_key = random(HEADER_KEY_BYTES)
        self._mask = HeaderMask(self._header_key)
        self._by_index: dict[int, ReceiveKey | Dial | None] = {}
        self._dials: dict[Route, list[Dial]] = {}
        self._events: deque[TunnelEvent] = deque()
        self._outgoing: deque[Outgoing] = deque()
        self._agenda: list[tuple[float, int, Association | Dial]] = []
        self._agenda_count = 0
        self._count = count
        self._entrance = Entrance(
            outer_secret(identity.id),
            self.responder,
            random=random,
            seen=seen,
            now=now,
            count=self.count,
            send=self._send,
            tell=self.tell,
        )
        self.config_for: Callable[[Route], UtpConfig] = lambda route: UtpConfig(tunnel=True)

    # --- for associations ----------------------------------------------------------------------------------------

    def count(self, name: str, by: int = 1) -> None:
        """Count something by name."""
        self.stats[name] += by
        if self._count is not None:
            self._count(name, by)

    def touch(self, association: Association) -> None:
        """There is something to do for the front end."""
        self.touched[association] = None

    def tell(self, event: TunnelEvent) -> None:
        """Queue an event."""
        self._events.append(event)

    def reserve_index(self) -> int:
        """A free index; random, so that it tells nothing."""
        while True:
            index = int.from_bytes(self.random(4), "big")
            if index not in self._by_index:
                self._by_index[index] = None
                return index

    def register(self, index: int, key: ReceiveKey) -> None:
        """Datagrams with this index are opened with this key."""
        self._by_index[index] = key

    def unregister(self, index: int) -> None:
        """Forget an index."""
        self._by_index.pop(index, None)

    def introduction(self, index: int) -> Introduction:
        """What we say of ourselves in a handshake."""
        return Introduction(index, self._header_key, self._hello)

    def initiator(
        self,
        peer: PeerId,
        index: int,
        now: float,
        suite: Suite | None = None,
        *,
        renews: bytes = b"",
    ) -> TunnelInitiator:
        """The dialling side of a handshake."""
        return TunnelInitiator(
            self._identity,
            peer,
            self._network,
            self.introduction(index),
            outer_secret(peer),
            random=self.random,
            ephemeral=self.ephemerals.take(now),
            suite=suite,
            renews=renews,
        )

    def responder(self, request: TunnelRequest, *, renews: bytes = b"") -> TunnelResponder:
        """The dialled side of a handshake.

        Raises:
            Discarded: the request is not authentic.
        """
        return TunnelResponder(self._identity, self._network, request, renews=renews)

    # --- verbs ---------------------------------------------------------------------------------------------------

    @property
    def receive_buffer(self) -> memoryview:
        """To receive into: what lies there is opened fastest."""
        return self._opener.buffer

    @property
    def pending(self) -> int:
        """Handshakes that peers began and that are not finished."""
        return len(self._entrance.knocks)

    @property
    def indexes(self) -> int:
        """Indexes in use: one for each dial and association, and one more while keys are renewed."""
        return len(self._by_index)

    def sockets_in_use(self) -> set[int]:
        """Numbers of the sockets over which associations go."""
        keys = (key for key in self._by_index.values() if isinstance(key, ReceiveKey))
        return {key.association.route[0] for key in keys}

    @property
    def dialling(self) -> bool:
        """Whether an answer to a dial is awaited."""
        return bool(self._dials)

    def dial(self, peer: PeerId, route: Route, config: UtpConfig, now: float) -> Dial:
        """Begin a handshake; `DialSucceeded` or `DialFailed` follows, or nothing: time-outs are the caller's."""
        index = self.reserve_index()
        dial = Dial(peer, route, index, self.initiator(peer, index, now), config, now)
        self._by_index[index] = dial
        self._dials.setdefault(route, []).append(dial)
        self._send_request(dial, now)
        return dial

    def punch(self, peer: PeerId, now: float) -> Dial:
        """Begin one handshake with all addresses that a peer may have; `probe` sends its requests."""
        index = self.reserve_index()
        dial = Dial(peer, None, index, self.initiator(peer, index, now), None, now)
        dial.handshake.keep_requests(PUNCH_REQUESTS_KEPT)
        self._by_index[index] = dial
        return dial

    def probe(
        self, dial: Dial, route: Route, now: float, *, ttl: int | None = None, padding: int = MAX_PADDING
    ) -> None:
        """Send the request of a dial to many addresses to one of them, once."""
        if dial.due is None:
            return
        if route not in dial.routes:
            dial.routes[route] = None
            self._dials.setdefault(route, []).append(dial)
        dial.sends += 1
        dial.sent_at = now
        datagram = dial.handshake.request(route, padding)
        self._outgoing.append(Outgoing(datagram, len(datagram), route, ttl=ttl))

    def cancel(self, dial: Dial) -> None:
        """Give a dial up."""
        if dial.due is None:
            return
        dial.due = None
        self.unregister(dial.index)
        self._forget_dial(dial)

    def _forget_dial(self, dial: Dial) -> None:
        for route in dial.routes:
            dials = self._dials[route]
            dials.remove(dial)
            if not dials:
                del self._dials[route]

    def answer(self, knock: Knock, now: float) -> None:
        """Make message 2 ready to go out; `accept` follows at once, while the peer works on it."""
        knock.index = self.reserve_index()
        knock.responder.answer(self.introduction(knock.index), self.ephemerals.take(now))
        self._entrance.answer(knock, knock.datagram, knock.route)

    def accept(self, knock: Knock, config: UtpConfig, now: float) -> Association:
        """The association of a peer that was answered, or is now; nothing is sent over it before it is proved."""
        if knock.index is None:
            self.answer(knock, now)
        assert knock.index is not None
        knock.association = Association(self, knock.responder.keys, knock.index, knock.route, config, now)
        self._arm(knock.association)
        return knock.association

    def refuse(self, knock: Knock, hint: Hint) -> None:
        """Turn a peer down with a sealed hint."""
        self._entrance.send_hint(knock.datagram, hint, knock.route)
        self.forget(knock)

    def forget(self, knock: Knock) -> None:
        """Answer nothing (more): the handshake is finished, or unwanted."""
        self._entrance.knocks.pop(knock.ephemeral, None)

    # --- from the network ----------------------------------------------------------------------------------------

    def receive_datagrams(self, data: memoryview, size: int, route: Route, now: float) -> None:
        """Take in datagrams of one source that lie one after the other, as UDP_GRO gives them.

        Args:
            data: the datagrams.
            size: of each but the last, which may be shorter.
            route: from where.
            now: the present time.
        """
        if len(data) <= size:
            self._receive_single(data, route, now)
            return
        most = max(min(MAX_SEGMENTS, BUFFER_BYTES // size), 1) * size
        if len(data) <= most:
            self._receive_batch(data, size, route, now)
            return
        for at in range(0, len(data), most):
            # A copy, as what does not begin where the buffer does is not for the prepared slices of it.
            piece = memoryview(bytes(data[at : at + most]))
            if len(piece) <= size:
                self._receive_single(piece, route, now)
            else:
                self._receive_batch(piece, size, route, now)

    def receive_many(
        self,
        datagrams: Sequence[memoryview],
        route: Callable[[int], Route],
        address: Callable[[int], bytes],
        now: float,
    ) -> None:
        """Take in single datagrams of many sources.

        A flood is made of them, so what belongs to nobody is told by three passes over all of them, without a word of
        Python for each.

        Args:
            datagrams: one by one.
            route: from where the n-th came; asked only where it matters.
            address: the `address_bytes` of that, which are had for less.
            now: the present time.
        """
        places = [at for at, datagram in enumerate(datagrams) if len(datagram) >= SMALLEST_DATAGRAM]
        if len(places) < len(datagrams):
            self.count("datagram.short", len(datagrams) - len(places))
        starts = b"".join([datagrams[at][:_MASKED] for at in places])
        fields = _starts(len(places))
        masked, masks = fields.unpack(starts)[0::3], fields.unpack(self._mask.masks(starts))[2::3]
        marks = fields.unpack(self._entrance.mark.unmask(starts))[1::3]
        strangers = 0
        entrance = self._entrance
        for at, index, mask, mark in zip(places, masked, masks, marks, strict=True):
            if index ^ mask in self._by_index:
                self._receive_single(datagrams[at], route(at), now)
            elif self._dials:
                self._receive_stranger(datagrams[at], route(at), now)
            elif is_request(mark, len(datagrams[at])):
                datagram = datagrams[at]
                start = bytes(datagram[:ENVELOPE_BYTES])
                course = entrance.course(start, datagram, address(at), now, shows=mark == 1)
                if course is not Course.NONE:
                    entrance.take_in(course, datagram, route(at), now)
            else:
                strangers += 1
        if strangers:
            self.count("datagram.stranger", strangers)

    def _receive_single(self, datagram: memoryview, route: Route, now: float) -> None:
        """Take in one datagram: the same as a batch of one, in half of the time."""
        if len(datagram) < SMALLEST_DATAGRAM:
            self.count("datagram.short")
            return
        start = bytes(datagram[:_MASKED])
        header = self._mask.apply_one(start[:HEADER_BYTES], start[HEADER_BYTES:])
        index, counter = _NONCE.unpack_from(header)
        key = self._by_index.get(index)
        if not isinstance(key, ReceiveKey):
            if key is None:
                self._receive_stranger(datagram, route, now)
            else:
                self._opener.headers[:HEADER_BYTES] = header
                self._receive_response(key, datagram, 0, route, now)
            return
        window = key.window
        newest = counter > window.highest
        if not newest and not window.is_fresh(counter):
            self.count("datagram.replayed")
            return
        try:
            body = key.aead.decrypt(header[:NONCE_BYTES], datagram[HEADER_BYTES:], header)
        except InvalidTag:
            self.count("datagram.forged")
            return
        window.add(counter)
        key.association.receive_one(key, route, header[NONCE_BYTES:], body, now, newest=newest)
        self.touched[key.association] = None

    def _receive_batch(self, data: memoryview, size: int, route: Route, now: float) -> None:
        count = -(-len(data) // size)
        if len(data) - size * (count - 1) < SMALLEST_DATAGRAM:
            short = 1 if size >= SMALLEST_DATAGRAM else count
            self.count("datagram.short", short)
            count -= short
            data = data[: size * count]
            if not count:
                return
        fields = self._opener.unmask(self._mask, data, size, count)
        key = self._by_index.get(fields[0])
        if isinstance(key, ReceiveKey) and self._receive_run(key, fields, data, size, route, now):
            return
        for at in range(count):
            datagram = data[at * size : (at + 1) * size]
            self._receive_one(fields[2 * at], fields[2 * at + 1], datagram, at, route, now)

    def _receive_run(
        self, key: ReceiveKey, fields: tuple[int, ...], data: memoryview, size: int, route: Route, now: float
    ) -> bool:
        """Take in a batch in one piece, if it is a plain run of new datagrams of one association."""
        first, count = fields[1], len(fields) >> 1
        window = key.window
        opener = self._opener
        if first <= window.highest or CONTROL_MARK in bytes(
            opener.headers[NONCE_BYTES : HEADER_BYTES * count : HEADER_BYTES]
        ):
            return False
        if count > 1 and (fields[0::2].count(fields[0]) != count or fields[1::2] != tuple(range(first, first + count))):
            return False
        try:
            bodies = opener.open_run(key, data, size, count)
        except InvalidTag:
            return False
        window.add_run(first, count)
        association = key.association
        association.receive_run(key, route, opener.utp_headers(count), bodies, size - SMALLEST_DATAGRAM, now)
        self.touched[association] = None
        return True

    def _receive_one(self, index: int, counter: int, datagram: memoryview, at: int, route: Route, now: float) -> None:
        known = self._by_index.get(index)
        if isinstance(known, ReceiveKey):
            self._receive_known(known, counter, datagram, at, route, now)
        elif known is not None:
            self._receive_response(known, datagram, at, route, now)
        else:
            self._receive_stranger(datagram, route, now)

    def _receive_known(
        self, key: ReceiveKey, counter: int, datagram: memoryview, at: int, route: Route, now: float
    ) -> None:
        window = key.window
        if not window.is_fresh(counter):
            self.count("datagram.replayed")
            return
        try:
            body = self._opener.open_one(key, datagram, at)
        except InvalidTag:
            self.count("datagram.forged")
            return
        newest = counter > window.highest
        window.add(counter)
        header = bytes(self._opener.headers[at * HEADER_BYTES + NONCE_BYTES : (at + 1) * HEADER_BYTES])
        key.association.receive_one(key, route, header, body, now, newest=newest)
        self.touched[key.association] = None

    # --- handshakes ----------------------------------------------------------------------------------------------

    def _receive_response(self, dial: Dial, datagram: memoryview, at: int, route: Route, now: float) -> None:
        """A datagram with the index of a dial: message 2, or a forgery."""
        header = bytes(self._opener.headers[at * HEADER_BYTES : (at + 1) * HEADER_BYTES])
        try:
            keys = dial.handshake.receive_response(header, datagram[HEADER_BYTES:], _key(dial, route))
        except HandshakeFailed as error:
            self._fail(dial, error)
            return
        if keys is None:
            self.count("datagram.forged")
            return
        self._succeed(dial, keys, route, now)

    def _succeed(self, dial: Dial, keys: TunnelKeys, route: Route, now: float) -> None:
        dial.due = None
        self._forget_dial(dial)
        # Only the last request can be the one that was answered so soon; else the round trip is not known.
        rtt = now - dial.sent_at if dial.sends == 1 else 0.0
        config = dial.config if dial.config is not None else self.config_for(route)
        association = Association(self, keys, dial.index, route, config, now, rtt)
        self.touch(association)
        self._arm(association)
        self.tell(DialSucceeded(dial, association))

    def _fail(self, dial: Dial, error: HandshakeFailed) -> None:
        self.cancel(dial)
        self.tell(DialFailed(dial, error))

    def _receive_stranger(self, datagram: memoryview, route: Route, now: float) -> None:
        """A datagram of no association: an answer to a dial without state, a message 1, or noise."""
        if not self._dials or not self._receive_reply(datagram, route, now):
            self._entrance.receive(datagram, route, now)

    def _receive_reply(self, datagram: memoryview, route: Route, now: float) -> bool:
        """Take in what may be a cookie or a hint; whether it was one."""
        for dial in self._dials.get(route, ())[:DIALS_TRIED]:
            try:
                news = dial.handshake.receive_reply(datagram, _key(dial, route))
            except HandshakeFailed as error:
                self._fail(dial, error)
                return True
            if news is not None:
                if news:
                    self.count("handshake.cookie_received")
                    if dial.route is None:
                        self.probe(dial, route, now)
                    else:
                        self._send_request(dial, now)
                return True
        return False

    def _send_request(self, dial: Dial, now: float) -> None:
        pause = RETRANSMIT_SECONDS[min(dial.sends, len(RETRANSMIT_SECONDS) - 1)]
        dial.sends += 1
        dial.sent_at = now
        # Not to the millisecond: what several dials send at once would collide again and again.
        dial.due = now + pause * (1 + self.random(1)[0] / 1024)
        self._schedule(dial.due, dial)
        assert dial.route is not None
        self._send(dial.handshake.request(), dial.route)

    def _send(self, datagram: bytes, route: Route) -> None:
        self._outgoing.append(Outgoing(datagram, len(datagram), route))

    # --- time ----------------------------------------------------------------------------------------------------

    def _schedule(self, due: float, subject: Association | Dial) -> None:
        self._agenda_count += 1
        heapq.heappush(self._agenda, (due, self._agenda_count, subject))

    def _arm(self, association: Association) -> None:
        """Have an association's timers looked at in time. A deadline that moved back is noticed when it comes."""
        due = association.next_timeout()
        if due is not None and due < association.armed:
            association.armed = due
            self._schedule(due, association)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        return self._agenda[0][0] if self._agenda else None

    def handle_timeout(self, now: float) -> None:
        """Do what is due; associations that may have something to say are touched."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= now:
            due, _, subject = heapq.heappop(agenda)
            if isinstance(subject, Dial):
                if subject.due is not None and subject.due <= now:
                    self._send_request(subject, now)
            elif not subject.closed and subject.armed == due:
                subject.armed = float("inf")
                if (wanted := subject.next_timeout()) is not None and wanted <= now:
                    subject.handle_timeout(now)
                    self.touch(subject)
                self._arm(subject)

    # --- to the network ------------------------------------------------------------------------------------------

    def next_event(self) -> TunnelEvent | None:
        """The oldest event that was not taken."""
        return self._events.popleft() if self._events else None

    def next_outgoing(self) -> Outgoing | None:
        """The next datagram of a handshake."""
        return self._outgoing.popleft() if self._outgoing else None

    def lone_outgoing(self, association: Association, data: Buffer, now: float) -> Outgoing | None:
        """Data of an association in one datagram, at once; None when it must take the usual way (`send_data`)."""
        found = association.lone_outgoing(data, now)
        if found is not None:
            due = association.next_timeout()
            if due is not None and due < association.armed:
                association.armed = due
                self._schedule(due, association)
        return found

    def association_outgoing(self, association: Association, now: float, max_bytes: int = 0) -> Outgoing | None:
        """The next datagrams of an association; when `has_more` is false afterwards, its timers are armed."""
        found = association.next_outgoing(now, max_bytes)
        if not association.has_more and not association.closed:
            self._arm(association)
        return found


@cache
def _starts(count: int) -> Struct:
    return Struct(">" + _START * count)


def _key(dial: Dial, route: Route) -> Route | None:
    """To tell the requests of a dial to many addresses apart."""
    return route if dial.route is None else None
