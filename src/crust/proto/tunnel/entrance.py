"""First messages of peers: which of them become handshakes, which get a cookie, and why the others get nothing.

What comes first costs least, as a flood is made of it: the mark in the salt, copies, and under load the proof of a
cookie, and whether there is a cookie to give. Only then an envelope is opened, and nobody gets an answer before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from crust.proto.noise.envelope import SALT_BYTES
from crust.proto.noise.outcome import DiscardReason, Random
from crust.proto.noise.replay import EphemeralCache
from crust.proto.tunnel.constants import MAX_KNOCKS
from crust.proto.tunnel.cookie import Admission, Course, address_bytes
from crust.proto.tunnel.events import Knocked, KnockedAgain, Route, TunnelEvent
from crust.proto.tunnel.handshake import (
    ENVELOPE_BYTES,
    Discarded,
    OpenedRequest,
    SaltMark,
    TunnelResponder,
    open_request,
    seal_cookie,
    seal_hint,
)
from crust.proto.tunnel.pending import Knock
from crust.proto.tunnel.requests import NO_COPY, RequestMemory
from crust.wire.handshake import Hint
from crust.wire.tunnel import TunnelRequest

__all__ = ["Entrance"]

_REPLAYED: Final = f"handshake.{DiscardReason.REPLAYED.value}"


class Entrance:
    """Takes in what may be a message 1.

    Args:
        secret: our `outer_secret`.
        responder: begins the dialled side of a handshake; raises `Discarded` for a message that is not authentic.
        random: gives that many random bytes.
        seen: ephemeral keys of late, shared with the other transports.
        now: the present time.
        count: told the name of each thing worth counting.
        send: sends a datagram.
        tell: told of peers that knock.

    Attributes:
        knocks: handshakes that peers began and that are not finished, by ephemeral key.
    """

    __slots__ = (
        "_admission",
        "_count",
        "_mark",
        "_random",
        "_requests",
        "_responder",
        "_secret",
        "_seen",
        "_send",
        "_tell",
        "knocks",
    )

    def __init__(
        self,
        secret: bytes,
        responder: Callable[[TunnelRequest], TunnelResponder],
        *,
        random: Random,
        seen: EphemeralCache,
        now: float,
        count: Callable[[str], None],
        send: Callable[[bytes, Route], None],
        tell: Callable[[TunnelEvent], None],
    ) -> None:
        self.knocks: dict[bytes, Knock] = {}
        self._secret = secret
        self._responder = responder
        self._random = random
        self._seen = seen
        self._count = count
        self._send = send
        self._tell = tell
        self._mark = SaltMark(secret)
        self._admission = Admission(random, now)
        self._requests = RequestMemory(now)

    @property
    def mark(self) -> SaltMark:
        """Tells what may be a message 1 from noise."""
        return self._mark

    def receive(self, datagram: memoryview, route: Route, now: float) -> None:
        """Take in a datagram that is nothing else."""
        start = bytes(datagram[:ENVELOPE_BYTES])
        shows = self._mark.read(start, len(datagram))
        if shows is None:
            self._count("datagram.stranger")
            return
        course = self.course(start, datagram, address_bytes(str(route[1][0])), now, shows=shows)
        if course is not Course.NONE:
            self.take_in(course, datagram, route, now)

    def course(self, start: bytes, datagram: memoryview, address: bytes, now: float, *, shows: bool) -> Course:
        """How to deal with a datagram that has our mark; what is dropped is counted.

        Args:
            start: its first `ENVELOPE_BYTES`.
            datagram: all of it, of the size of a request.
            address: from where; see `address_bytes`.
            now: the present time.
            shows: whether the mark says that it shows a cookie.
        """
        ephemeral = self._requests.find(start[:SALT_BYTES], datagram)
        if ephemeral is None:
            course = self._admission.course(start, address, now, shows=shows)
            reason = "handshake.over_rate"
        elif ephemeral in self.knocks:
            return Course.COPY
        else:
            course = Course.NONE
            reason = "datagram.forged" if ephemeral == NO_COPY else _REPLAYED
        if course is Course.NONE:
            self._count(reason)
        return course

    def take_in(self, course: Course, datagram: memoryview, route: Route, now: float) -> None:
        """Deal with a datagram as `course` has said."""
        request = bytes(datagram)
        if course is Course.COPY:
            ephemeral = self._requests.find(request[:SALT_BYTES], datagram)
            self._receive_again(self.knocks[ephemeral or NO_COPY], request, route, now)
            return
        try:
            opened = open_request(self._secret, request)
            if opened is None:
                self._count("datagram.stranger")
                return
            self._requests.add(opened)
            if not self._is_known(opened, request, route, now):
                self._receive_new(course, opened, request, route, now)
        except Discarded as discarded:
            self._count(f"handshake.{discarded.reason.value}")
            if discarded.hint is not None and self._requests.may_answer(now):
                self.send_hint(request, discarded.hint, route)

    def _is_known(self, opened: OpenedRequest, datagram: bytes, route: Route, now: float) -> bool:
        """Whether a request belongs to a handshake that is under way; it is a retransmission then.

        Raises:
            Discarded: it belongs to one that is over.
        """
        knock = self.knocks.get(opened.ephemeral)
        if knock is not None:
            self._receive_again(knock, datagram, route, now)
            self._tell(KnockedAgain(knock, route))
            return True
        self._seen.expire(now)
        if opened.ephemeral in self._seen:
            raise Discarded(DiscardReason.REPLAYED)
        return False

    def _receive_new(self, course: Course, opened: OpenedRequest, datagram: bytes, route: Route, now: float) -> None:
        """A request of a handshake that is not known.

        Raises:
            Discarded: its inner part is not authentic, or impossible.
        """
        address = address_bytes(str(route[1][0]))
        if course is Course.ANSWER and not self._admission.admits(now):
            shows = self._mark.read(opened.salt, opened.size) is True
            course = self._admission.course(datagram[:ENVELOPE_BYTES], address, now, shows=shows)  # the load begins
        if course is Course.COOKIE:
            self._count("handshake.cookie_sent")
            self._send(seal_cookie(self._secret, datagram, self._admission.cookie(address, now), self._random), route)
            return
        if course is Course.NONE:
            self._count("handshake.over_rate")
            return
        responder = self._responder(opened.request)
        # Only now, so that a stranger's broken copy cannot keep the true message out.
        self._seen.add(opened.ephemeral, now)
        if len(self.knocks) >= MAX_KNOCKS:
            self._count("handshake.table_full")
            return
        knock = self.knocks[opened.ephemeral] = Knock(opened.ephemeral, responder, datagram, route, now)
        self._tell(Knocked(knock))

    def _receive_again(self, knock: Knock, datagram: bytes, route: Route, now: float) -> None:
        """A copy of a message 1, or a retransmission: our answer was lost, or is still to be decided."""
        knock.heard_at = now
        if knock.association is None:
            knock.datagram, knock.route = datagram, route
        elif knock.association.proved:
            self._count(_REPLAYED)
        elif self._requests.may_answer(now):
            self.answer(knock, datagram, route)
        else:
            self._count("handshake.over_rate")

    def answer(self, knock: Knock, datagram: bytes, route: Route) -> None:
        """Send message 2 of a handshake that was accepted, in answer to one of its requests."""
        self._send(knock.responder.response(datagram[-16:], len(datagram), self._random), route)

    def send_hint(self, datagram: bytes, hint: Hint, route: Route) -> None:
        """Tell the sender of a request why it gets no answer."""
        self._send(seal_hint(self._secret, datagram, hint, self._random), route)
