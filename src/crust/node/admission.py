"""From a peer's first message to a path, whatever the transport: who is let in, and to which session the path belongs.

Until the peer's first record has come, it has proved nothing and gets nothing (PROTOCOL 2): no event, no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from crust.errors import CrustError, PeerLost, RemoteProtocolError
from crust.net.clock import monotonic
from crust.node.busy_poll import HANDSHAKE_SECONDS
from crust.node.connection import Connection
from crust.node.core import Core, Proven
from crust.node.events import DuplicateIdentity
from crust.node.incoming import Incoming
from crust.node.path import AnyPath
from crust.proto.noise.handshake import Hint
from crust.proto.session.engine import NO_NONCE, SessionState
from crust.proto.session.outbox import Group, GroupBuilder
from crust.proto.session.registry import Decision
from crust.wire import frames

if TYPE_CHECKING:
    from crust.node.acceptor import Acceptor

__all__ = ["Acceptance", "Groups", "Inbound", "Stage", "Verdict"]

_CONFLICT_WAIT: Final = 1.0

VERDICT_SECONDS: Final = 1.0
"""So long the attempts of one dial may lie apart."""

Groups = list[tuple[bytes, list[bytes]]]


class Stage(enum.Enum):
    """How far a peer has come."""

    HANDSHAKE = "we wait for message 1"
    WAITING = "the application decides"
    PROVING = "message 2 is out, we wait for the first record"
    CONFLICT = "we ask an older session with the same peer whether it lives"
    SILENT = "a stranger: read and discard"
    DONE = "a path, or gone"


class Verdict(enum.Enum):
    """What the application decided about a peer."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    IGNORED = "ignored"


class Acceptance:
    """What `Incoming.accept` waits for: that one of the attempts of a dial proves the peer."""

    __slots__ = ("_attempts", "_future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._attempts: dict[Inbound, None] = {}
        self._future: asyncio.Future[Connection] = loop.create_future()

    def join(self, attempt: Inbound) -> None:
        """One more attempt of the same dial."""
        self._attempts[attempt] = None

    def won(self, connection: Connection) -> bool:
        """An attempt has proved the peer; False when nobody waits for it any more."""
        if not self._future.done():
            self._future.set_result(connection)
        return not self._future.cancelled() and self._future.exception() is None

    def lost(self, attempt: Inbound, reason: str) -> None:
        """An attempt has failed; whoever waits hears of the last one."""
        self._attempts.pop(attempt, None)
        if not self._attempts and not self._future.done():
            self._future.set_exception(PeerLost(None, reason))

    async def wait(self) -> Connection:
        """Wait for the first success, or the last failure."""
        try:
            return await self._future
        except asyncio.CancelledError:
            for attempt in list(self._attempts):
                attempt.drop("cancelled")
            raise


class Inbound(ABC):
    """A peer that came to us, until it has a path.

    Args:
        acceptor: who keeps the tables.

    Attributes:
        stage: how far it has come.
    """

    patience: ClassVar[float] = VERDICT_SECONDS
    """So long after the application has accepted the peer further attempts of its dial may come."""

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self._core: Core = acceptor.core
        self.stage = Stage.HANDSHAKE
        self._proven: Proven | None = None
        self._hello: frames.Hello | None = None
        self._incoming: Incoming | None = None
        self._acceptance: Acceptance | None = None
        self._groups: Groups = []
        self._deadline: asyncio.TimerHandle | None = None
        self._opened_at = self._sent_at = monotonic()

    # --- what the transport does ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def address(self) -> tuple[str, int]:
        """From where the peer comes."""

    @abstractmethod
    def _answer(self) -> Proven:
        """Send message 2; returns who it is that must now prove itself."""

    @abstractmethod
    def _send_hint(self, hint: Hint) -> None:
        """Tell the peer why it is refused."""

    @abstractmethod
    def _fall_silent(self) -> None:
        """Say nothing more, and be gone at a moment that tells nothing."""

    @abstractmethod
    def _say_last(self, group: Group) -> None:
        """Send a last group, then close."""

    @abstractmethod
    def _hold(self, held: bool) -> None:
        """Stop or resume reading."""

    @abstractmethod
    def _make_path(self, connection: Connection, rtt: float, at_ms: float) -> AnyPath:
        """Give what carries us to a connection."""

    @abstractmethod
    def _abort(self) -> None:
        """Close at once."""

    # --- decisions -----------------------------------------------------------------------------------------------

    def refuse(self, hint: Hint) -> None:
        """Turn the peer down with a sealed hint."""
        self._core.stats.count(f"refused.{hint.name.lower()}")
        self._send_hint(hint)
        self._fall_silent()

    def ignore(self) -> None:
        """Say nothing, as if nobody were here."""
        self._core.stats.count("refused.ignored")
        self._fall_silent()

    def wait_for_decision(self, incoming: Incoming) -> None:
        """The application decides; the peer moves to a table of its own."""
        self.stage = Stage.WAITING
        self._incoming = incoming
        self._set_deadline(self._core.config.incoming_timeout)

    def accept(self) -> None:
        """Answer with message 2."""
        self._proven = self._answer()
        self.stage = Stage.PROVING
        self._set_deadline(self._core.config.handshake_timeout)
        self._sent_at = monotonic()
        self._core.handshake_watch.sent(self._sent_at, HANDSHAKE_SECONDS)

    def accept_incoming(self, others: Sequence[Inbound]) -> Coroutine[Any, Any, Connection]:
        """For `Incoming.accept`: answers at once, and waits until the peer has proved itself."""
        acceptance = Acceptance(self._core.loop)
        seconds = max(attempt.patience for attempt in (self, *others))
        self._acceptor.remember(self._incoming, Verdict.ACCEPTED, acceptance, seconds)
        for attempt in (self, *others):
            attempt.accept_for(acceptance)
        return acceptance.wait()

    def accept_for(self, acceptance: Acceptance) -> None:
        """Answer an attempt of a peer that was accepted."""
        acceptance.join(self)
        self._acceptance = acceptance
        if self.stage is Stage.WAITING:
            self._forget_incoming()
            self._acceptor.add(self)
        self.accept()

    def refuse_incoming(self) -> None:
        """For `Incoming.refuse`."""
        if self.stage is Stage.WAITING:
            self._acceptor.remember(self._incoming, Verdict.REFUSED)
            self.refuse(Hint.REFUSED)

    def ignore_incoming(self) -> None:
        """For `Incoming.ignore`."""
        if self.stage is Stage.WAITING:
            self._acceptor.remember(self._incoming, Verdict.IGNORED)
            self.ignore()

    def _forget_incoming(self) -> None:
        if self._incoming is not None:
            if self._incoming.leave(self):
                self._acceptor.decided(self._incoming)
            self._incoming = None

    # --- the first record ----------------------------------------------------------------------------------------

    def _first_groups(self, groups: Groups, now: float) -> bool:
        """Take the first records of the peer; False when they are not what they must be."""
        self._core.handshake_watch.received(now)
        try:
            first = frames.parse_frames(*groups[0], start=1)
            if not first or not isinstance(first[0], frames.Hello):
                raise RemoteProtocolError("the first frame is not HELLO")
        except RemoteProtocolError:
            self._bad_first_record()
            return False
        self._groups = groups
        self._hello = first[0]
        self._decide(first[0], now)
        return True

    def _bad_first_record(self) -> None:
        self._core.stats.count("handshake.bad_first_record")
        self._fail("the peer did not prove itself")
        self._fall_silent()

    def _decide(self, hello: frames.Hello, now: float) -> None:
        """Find out to which session the path belongs (PROTOCOL 10)."""
        assert self._proven is not None
        decision, holder, code = self._core.registry.decide(self._proven.peer, hello, now)
        if decision is Decision.ATTACH:
            assert holder is not None
            self._become_path(holder, new=False)
        elif decision is Decision.NEW and self._acceptor.is_full(queued=not self._awaited()):
            # Others have proved themselves meanwhile.
            self._core.stats.count("refused.busy")
            self._say_gone(hello.your_nonce, 2)
        elif decision is Decision.NEW:
            self._become_path(self._core.new_connection(self._proven, None), new=True)
        elif decision is Decision.GONE:
            self._say_gone(hello.your_nonce, code)
        else:
            assert holder is not None
            self._resolve_conflict(holder)

    def _say_gone(self, nonce: bytes, code: int) -> None:
        group = GroupBuilder()
        group.add(frames.serialize_gone(nonce, code))
        finished = group.finish()
        assert finished is not None
        self._core.stats.count("handshake.session_gone")
        self._fail("the peer wanted to go on with a connection that does not exist any more")
        self._end()
        self._say_last(finished)

    def _resolve_conflict(self, old: Connection) -> None:
        """The peer shows a new nonce while we hold an older session: it restarted, or two instances share one key."""
        assert self._proven is not None
        if old.session.state is not SessionState.OPEN:
            self._become_path(self._core.new_connection(self._proven, None), new=True)  # that one is being closed
            return
        if old.path_count == 0 or old.session.remote_nonce == NO_NONCE:
            self._replace(old)
            return
        self.stage = Stage.CONFLICT
        self._hold(True)
        self._acceptor.run(self._ask_old(old))

    async def _ask_old(self, old: Connection) -> None:
        alive = False
        with contextlib.suppress(TimeoutError, CrustError):
            async with asyncio.timeout(_CONFLICT_WAIT):
                await old.ping()
                alive = True
        if self.stage is not Stage.CONFLICT or self._proven is None:
            return
        assert self._hello is not None
        self._hold(False)
        decision, holder, _ = self._core.registry.decide(self._proven.peer, self._hello, monotonic())
        if decision is Decision.ATTACH and holder is not None:
            self._become_path(holder, new=False)  # another path of the same instance has been decided meanwhile
        elif alive and old.session.state is not SessionState.OPEN:
            self._resolve_conflict(old)
        elif alive:
            self._core.stats.count("connections.duplicate_identity")
            self._core.emit(DuplicateIdentity(self._proven.peer))
            self._become_path(self._core.new_connection(self._proven, None), new=True)
        else:
            self._replace(old)

    def _replace(self, old: Connection) -> None:
        assert self._proven is not None
        old.abort(PeerLost(self._proven.peer, "the peer has restarted"))
        self._become_path(self._core.new_connection(self._proven, None), new=True)

    def _awaited(self) -> bool:
        """Whether somebody waits for this peer by name, so that the queue of accepted connections does not get it."""
        assert self._proven is not None
        return self._acceptance is not None or self._acceptor.calling(self._proven.peer)

    def _become_path(self, connection: Connection, *, new: bool) -> None:
        now = monotonic()
        called = self._acceptor.calling(connection.peer)
        self._end()
        path = self._make_path(connection, now - self._sent_at, (now - self._opened_at) * 1000)
        with connection.pumped_late():
            connection.path_received(path, self._groups, now)
            self._tell(connection, path, new=new, called=called)

    def _tell(self, connection: Connection, path: AnyPath, *, new: bool, called: bool) -> None:
        """The peer has a path: who waits for it is told."""
        self._groups = []
        if new:
            self._core.connected(connection, path.info, accepted=not called)
        elif self._core.arrived is not None:
            self._core.arrived(connection)
        acceptance, self._acceptance = self._acceptance, None
        if acceptance is not None and not new:
            acceptance.won(connection)
        elif acceptance is not None:
            if not self._acceptor.came(connection) and not acceptance.won(connection) and not called:
                self._acceptor.accepted(connection)
        elif new and not called:
            self._acceptor.accepted(connection)

    # --- the end -------------------------------------------------------------------------------------------------

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._core.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        if self.stage is Stage.HANDSHAKE:
            self._core.stats.count("handshake.timed_out")
        elif self.stage is Stage.PROVING:
            self._core.stats.count("handshake.never_proved")
        elif self.stage is Stage.WAITING:
            self._core.stats.count("refused.undecided")
        self.drop(None)

    def drop(self, reason: str | None) -> None:
        """Forget this peer and close what it came by."""
        if self.stage is Stage.DONE:
            return
        if reason is not None and self.stage is not Stage.SILENT:
            self._core.stats.count(f"handshake.{reason}")
        self._fail("the peer went away before it proved itself")
        self._end()
        self._abort()

    def _fail(self, reason: str) -> None:
        """Tell who waits in `accept_incoming` that no connection will come of this."""
        if self._acceptance is not None:
            self._acceptance.lost(self, reason)

    def _end(self) -> None:
        """This is over, one way or the other."""
        self.stage = Stage.DONE
        self._forget_incoming()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._acceptor.remove(self)
