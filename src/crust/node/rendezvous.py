"""What a reachable node does for others: says from where it sees them, and passes their sealed offers on.

A rendezvous learns who talks to whom, not what, and cannot change it. It keeps presence in memory only, answers at most
as much as it is asked, and limits how often each peer may ask (PROTOCOL 21 to 24).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from crust.crypto.keys import Identity, PeerId, verify
from crust.errors import ParseError
from crust.net.clock import monotonic
from crust.node.connection import Connection
from crust.node.core import Core
from crust.wire.service import (
    SEEN_MOST,
    TRANSPORTS,
    Address,
    AskAddress,
    AskChallenge,
    Challenge,
    Forward,
    Forwarded,
    Presence,
    ServiceMessage,
    Undelivered,
    Why,
)

__all__ = ["PRESENCE_PURPOSE", "Rendezvous", "presence_statement"]

PRESENCE_PURPOSE: Final = "presence"
_PRESENT_MOST: Final = 100_000
_CALLS_MOST: Final = 16_384
_CALL_SECONDS: Final = 60.0
_FORWARDS_PER_SECOND: Final = 20.0
_FORWARDS_BURST: Final = 60.0


def presence_statement(challenge: bytes, rendezvous: PeerId, lifetime: int) -> bytes:
    """What a peer signs to be found at a rendezvous; its own PeerId is the signing key."""
    return challenge + rendezvous.bytes() + lifetime.to_bytes(4, "big")


def sign_presence(identity: Identity, challenge: bytes, rendezvous: PeerId, lifetime: int) -> bytes:
    """The signature of a `Presence`."""
    return identity.sign(PRESENCE_PURPOSE, presence_statement(challenge, rendezvous, lifetime))


class _Bucket:
    """A token bucket."""

    __slots__ = ("at", "tokens")

    def __init__(self, now: float) -> None:
        self.at = now
        self.tokens = _FORWARDS_BURST

    def take(self, now: float) -> bool:
        self.tokens = min(_FORWARDS_BURST, self.tokens + (now - self.at) * _FORWARDS_PER_SECOND)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Rendezvous:
    """Serves the peers of a node.

    Args:
        core: the node's centre.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._challenges: dict[Connection, bytes] = {}
        self._present: OrderedDict[PeerId, float] = OrderedDict()
        self._calls: OrderedDict[bytes, tuple[PeerId, float]] = OrderedDict()
        self._buckets: dict[Connection, _Bucket] = {}

    def serve(self, connection: Connection, message: ServiceMessage, path_id: int | None) -> bool:
        """Answer a peer's message; False when it is not for this service."""
        if isinstance(message, AskAddress):
            self._tell_address(connection, path_id)
        elif isinstance(message, AskChallenge):
            nonce = self._challenges[connection] = self._core.random(16)
            connection.send_service(Challenge(nonce))
        elif isinstance(message, Presence):
            self._enter(connection, message)
        elif isinstance(message, Forward):
            self._forward(connection, message)
        else:
            return False
        return True

    def forget(self, connection: Connection) -> None:
        """A connection has ended: its peer is not here any more."""
        self._challenges.pop(connection, None)
        self._buckets.pop(connection, None)
        if self._core.registry.find(connection.peer) is None:
            self._present.pop(connection.peer, None)

    @property
    def present(self) -> int:
        """How many peers can be found here."""
        return len(self._present)

    def _tell_address(self, connection: Connection, path_id: int | None) -> None:
        seen = None if path_id is None else connection.path_source(path_id)
        if seen is not None:
            connection.send_service(Address(seen.host, seen.port), path_id)

    def _enter(self, connection: Connection, message: Presence) -> None:
        challenge = self._challenges.pop(connection, None)
        if challenge is None:
            self._core.stats.count("rendezvous.unasked_presence")
            return
        statement = presence_statement(challenge, self._core.identity.id, message.lifetime)
        if not verify(connection.peer, PRESENCE_PURPOSE, message.signature, statement):
            self._core.stats.count("rendezvous.forged_presence")
            return
        self._present[connection.peer] = monotonic() + message.lifetime
        self._present.move_to_end(connection.peer)
        while len(self._present) > _PRESENT_MOST:
            self._present.popitem(last=False)

    def _forward(self, connection: Connection, message: Forward) -> None:
        now = monotonic()
        bucket = self._buckets.get(connection)
        if bucket is None:
            bucket = self._buckets[connection] = _Bucket(now)
        if not bucket.take(now):
            self._core.stats.count("rendezvous.too_many")
            connection.send_service(Undelivered(message.dial_id, Why.TOO_MANY))
            return
        target = self._find(message, now)
        if target is None or target is connection:
            self._core.stats.count("rendezvous.not_here")
            connection.send_service(Undelivered(message.dial_id, Why.NOT_HERE))
            return
        self._remember_call(connection.peer, message.dial_id, now)
        self._core.stats.count("rendezvous.forwarded")
        seen = [(TRANSPORTS.index(c.transport), c.host, c.port) for c in connection.sources()]
        target.send_service(Forwarded(message.dial_id, message.sealed, seen[:SEEN_MOST]))

    def _find(self, message: Forward, now: float) -> Connection | None:
        """The receiver's connection: it is present here, or it made the call that this answers."""
        try:
            peer = PeerId(message.to)
        except ParseError:
            return None
        call = self._calls.get(message.dial_id)
        answers = call is not None and call[0] == peer and call[1] > now
        if not answers and self._present.get(peer, 0.0) <= now:
            return None
        return self._core.registry.find(peer)

    def _remember_call(self, caller: PeerId, dial_id: bytes, now: float) -> None:
        if dial_id in self._calls:
            return
        self._calls[dial_id] = (caller, now + _CALL_SECONDS)
        while self._calls and (len(self._calls) > _CALLS_MOST or next(iter(self._calls.values()))[1] <= now):
            self._calls.popitem(last=False)
