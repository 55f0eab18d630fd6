"""Which session a HELLO belongs to (PROTOCOL 10), for all peers of one node.

A process keeps one random nonce for each peer and renews it when the session ends; the pair of nonces names a
session. Ended sessions leave a tombstone, so that a late HELLO is told GONE, and why.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from crust.crypto.keys import PeerId
from crust.proto.session.engine import NO_NONCE, Session, SessionState
from crust.wire import frames

__all__ = ["Decision", "Registry"]

_TOMBSTONES: Final = 4096


class Decision(enum.Enum):
    """What to do with a path whose first HELLO has come."""

    ATTACH = "attach to a session that exists"
    NEW = "make a session"
    GONE = "say that the session is gone"
    CONFLICT = "another session with this peer exists: ask whether its old path still answers"


class HasSession(Protocol):
    """The front end's object around a session."""

    @property
    def session(self) -> Session:
        """The engine."""


Holder = TypeVar("Holder", bound=HasSession)


class Registry(Generic[Holder]):
    """The live sessions and nonces of a node.

    Args:
        random: gives random bytes.
    """

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._nonces: dict[PeerId, bytes] = {}
        self._holders: dict[PeerId, list[Holder]] = {}
        self._tombstones: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self.count = 0

    def nonce(self, peer: PeerId) -> bytes:
        """Our nonce for another session with a peer; a new one when the last is over, or about to be."""
        nonce = self._nonces.get(peer)
        open_ones = (h for h in self._holders.get(peer, ()) if h.session.state is SessionState.OPEN)
        used = peer in self._holders and not any(h.session.nonce == nonce for h in open_ones)
        if nonce is None or used:
            nonce = self._nonces[peer] = self._random(16)
        return nonce

    def find(self, peer: PeerId) -> Holder | None:
        """The peer's session that still takes data, the newest first."""
        for holder in reversed(self._holders.get(peer, ())):
            if holder.session.state is SessionState.OPEN:
                return holder
        return None

    def holders(self) -> list[Holder]:
        """Every session."""
        return [holder for holders in self._holders.values() for holder in holders]

    def holders_of(self, peer: PeerId) -> list[Holder]:
        """Every session with a peer."""
        return list(self._holders.get(peer, ()))

    def add(self, peer: PeerId, holder: Holder) -> None:
        """Register a session."""
        self._holders.setdefault(peer, []).append(holder)
        self.count += 1

    def remove(self, peer: PeerId, holder: Holder, *, closed: bool, until: float) -> None:
        """Forget an ended session; its tombstone stays until the given time."""
        holders = self._holders.get(peer, [])
        if holder not in holders:
            return
        holders.remove(holder)
        self.count -= 1
        nonce = holder.session.nonce
        if not holders:
            del self._holders[peer]
        if not any(h.session.nonce == nonce for h in holders):
            if self._nonces.get(peer) == nonce:
                del self._nonces[peer]
            self._tombstones[nonce] = (1 if closed else 0, until)
            while len(self._tombstones) > _TOMBSTONES:
                self._tombstones.popitem(last=False)

    def decide(self, peer: PeerId, hello: frames.Hello, now: float) -> tuple[Decision, Holder | None, int]:
        """What a HELLO on a fresh path means: the decision, the session concerned, and the code for GONE."""
        holders = self._holders.get(peer, [])
        for holder in holders:
            session = holder.session
            known = session.remote_nonce in (NO_NONCE, hello.nonce)
            if known and hello.your_nonce in (NO_NONCE, session.nonce) and session.state is not SessionState.ENDED:
                return Decision.ATTACH, holder, 0
        if hello.your_nonce != NO_NONCE:
            code, until = self._tombstones.get(hello.your_nonce, (0, 0.0))
            return Decision.GONE, None, code if now < until else 0
        if holders:
            return Decision.CONFLICT, holders[-1], 0
        return Decision.NEW, None, 0
