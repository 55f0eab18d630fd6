"""What drives the session of one connection: its paths, its events, and its one timer.

`SessionDriver.pump` is the one place that drains the engine: it writes what the session has to say, hands out its
events, and arms the timer. What applications see is made of it in `crust.node.connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from crust.crypto.keys import PeerId
from crust.errors import ConnectionClosed, CrustError, PeerLost, RemoteProtocolError
from crust.net.clock import TIMER_SLACK, monotonic, seconds_slept
from crust.node.busy_poll import HANDSHAKE_SECONDS, AnswerWatch
from crust.node.path import AnyPath
from crust.proto.session.engine import Session
from crust.proto.session.events import (
    DatagramReceived,
    PathDead,
    PathStalled,
    Ponged,
    ServiceReceived,
    SessionEnded,
    SessionEvent,
)
from crust.proto.session.outbox import Group
from crust.types import Candidate, Path, Transport, split_address
from crust.wire.service import ServiceMessage, serialize_service_message

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.owner import ConnectionOwner

__all__ = ["SessionDriver"]

_SMALL_GROUP: Final = 512
_SMALL_GROUPS: Final = 4
"""So many groups of at most so many bytes wait for the next one to be written with it."""

_PUMP_BYTES: Final = 1024 * 1024
"""Written in one go before others get a turn of the event loop."""

WRITE_AT_ONCE: Final = 512 * 1024
"""Queued bytes that are worth a write before the end of the loop's turn."""

_PATHS_KEPT: Final = 64
_MOST_PATHS: Final = 16

_SLEEP_LEAST: Final = 1.0
"""Seconds of sleep that count: the two clocks are not read at the same moment."""


class SessionDriver(ABC):
    """Drives a session over whatever paths there are.

    Args:
        owner: the node.
        peer: the PeerId at the other end.
        session: the engine.
    """

    __slots__ = (
        "__weakref__",
        "_blocked",
        "_ended",
        "_history",
        "_loop",
        "_owner",
        "_path_changes",
        "_paths",
        "_pump_due",
        "_shown_path",
        "_slept",
        "_timer",
        "_timer_at",
        "_waiters",
        "_watch",
        "_wrote",
        "peer",
        "session",
    )

    def __init__(self, owner: ConnectionOwner, peer: PeerId, session: Session) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._paths: dict[int, AnyPath] = {}
        self._history: list[Path] = []
        self._shown_path: int | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._path_changes = 0  # when the node last looked for surplus paths
        self._pump_due = False
        self._blocked = False  # kernel or peer take no more at present, so that `send` need not try
        self._slept = seconds_slept()  # when this was last looked at
        self._waiters: list[asyncio.Future[None]] = []
        self._ended = False
        self._watch = AnswerWatch(owner.busy_poll)
        self._wrote = 0  # numbered frames, when this was last looked at
        self.peer = peer
        self.session = session

    # --- what the front makes of it ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _front(self) -> Connection:
        """The connection, for its node."""

    @abstractmethod
    def _written(self) -> None:
        """Something was perhaps written: there may be room for more."""

    @abstractmethod
    def _streams_changed(self) -> None:
        """The peer has opened streams, or something has come on some."""

    @abstractmethod
    def _answered(self, event: Ponged) -> None:
        """The answer to a ping has come."""

    @abstractmethod
    def _take_datagram(self, data: bytes) -> None:
        """A datagram has come."""

    @abstractmethod
    def _give_up_waiting(self, error: CrustError) -> None:
        """The session has ended: everybody who waits gets the same cause."""

    # --- the pump ------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Monotonic seconds of the event loop."""
        return monotonic()

    def _schedule_pump(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump_soon)

    def _pump_soon(self) -> None:
        self._pump_due = False
        self.pump()

    @contextlib.contextmanager
    def pumped_late(self) -> Iterator[None]:
        """What is caused within is written in the turn of the event loop after the next.

        A peer's first data follow its first record at once: whoever takes the connection may have answered them by
        then, and the answers to both go out together.
        """
        self._pump_due = True
        try:
            yield
        finally:
            self._loop.call_soon(self._loop.call_soon, self._pump_soon)

    def pump(self) -> None:
        """Write what the session has to say, hand out its events, arm the timer."""
        now = monotonic()
        session = self.session
        for path in tuple(self._paths.values()):
            self._write(path, now)
        while (event := session.next_event()) is not None:
            self._handle(event, now)
        self._written()
        self._arm()

    def _write(self, path: AnyPath, now: float) -> None:
        session = self.session
        written = 0
        groups: list[Group] = []
        while path.writable:
            group = session.next_group(path.id, now)
            if group is None:
                break
            groups.append(group)
            if not session.more:
                break
            if not group[1] and len(group[0]) < _SMALL_GROUP and len(groups) < _SMALL_GROUPS:
                continue  # what a path begins with goes out as one
            path.write(groups, now)
            for control, payloads in groups:
                written += len(control) + sum(map(len, payloads))
            groups = []
            if written >= _PUMP_BYTES:
                self._schedule_pump()
                break
        if groups:
            path.write(groups, now)
            if session.outbox.next_number != self._wrote:
                self._wrote = session.outbox.next_number
                control, payloads = groups[0]
                if not written and len(groups) == 1 and not payloads and len(control) < _SMALL_GROUP:
                    self._watch.sent(now)
        self._blocked = not path.writable or session.outbox.queued_total >= WRITE_AT_ONCE

    def _arm(self) -> None:
        due = self.session.next_timeout()
        if self._timer is not None:
            # A deadline that moved back is looked at when the timer fires: cheaper than a new timer for each record.
            if due is not None and due >= self._timer_at - 0.0005:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_at = due
            self._timer = self._loop.call_at(due + TIMER_SLACK, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = monotonic()
        if (slept := seconds_slept()) > self._slept + _SLEEP_LEAST:
            self._slept = slept
            self.session.woke(now)
        for path in self._paths.values():
            path.idle()
        self.session.handle_timeout(now)
        self.pump()

    def _handle(self, event: SessionEvent, now: float) -> None:
        if isinstance(event, Ponged):
            self._answered(event)
        elif isinstance(event, DatagramReceived):
            self._take_datagram(event.data)
        elif isinstance(event, ServiceReceived):
            self._owner.service_received(self._front, event.body, event.path_id)
        elif isinstance(event, PathStalled):
            self._owner.path_stalled(self._front)
        elif isinstance(event, PathDead):
            self._drop_path(event.path_id, event.reason, now)
        elif isinstance(event, SessionEnded):
            self._finish(event.error)

    def _finish(self, error: CrustError) -> None:
        if self._ended:
            return
        self._ended = True
        if isinstance(error, PeerLost):
            error.peer = self.peer
        for path in self._paths.values():
            if isinstance(error, ConnectionClosed) or self.session.says_gone:
                path.close()
            else:
                path.abort()
        self._paths.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        self._give_up_waiting(error)
        self._owner.connection_ended(self._front, error)

    # --- paths ---------------------------------------------------------------------------------------------------

    def add_path(self, path: AnyPath, *, rank: int, rtt: float) -> None:
        """Take over a path whose handshake is done."""
        now = monotonic()
        self._paths[path.id] = path
        self._remember(path.info)
        self.session.attach(path.id, rank=rank, now=now, rtt=rtt, largest_burst=path.largest_burst)
        if len(self._paths) > _MOST_PATHS:
            self._drop_worst(path.id, now)
        self._watch.sent(now, HANDSHAKE_SECONDS)
        self._note_path("up")
        self._owner.path_up(self._front, path.id)

    def _drop_worst(self, newest: int, now: float) -> None:
        """A peer whose task it is to close surplus paths may leave that undone; each takes a descriptor."""
        kept = (newest, self.session.active_path)
        worst = max((path_id for path_id in self._paths if path_id not in kept), key=self.session.path_rank)
        self._drop_path(worst, "surplus", now)

    def path_received(self, path: AnyPath, groups: list[tuple[bytes, list[bytes]]], now: float) -> None:
        """Groups that came over a path."""
        session = self.session
        self._watch.received(now)
        try:
            for control, payloads in groups:
                session.receive_group(path.id, control, payloads, now)
        except RemoteProtocolError as error:
            self._owner.misbehaved(self._front, error)
        if self._waiters:
            self._wake()
        if session.streams.opened or session.streams.readable:
            self._streams_changed()
        self._note_path("answered")
        if len(self._paths) > 1 and session.path_changes != self._path_changes:
            self._path_changes = session.path_changes
            self._owner.path_answered(self._front)
        self._schedule_pump()

    def path_broken(self, path: AnyPath, error: RemoteProtocolError) -> None:
        """Bytes that are no records: the path ends, as an injected byte would do it; the session goes on."""
        self._owner.misbehaved(self._front, error)
        self._drop_path(path.id, str(error), monotonic())
        self.pump()

    def path_moved(self, path: AnyPath) -> None:
        """The peer is at another address by now, on the same path."""
        if path.id in self._paths:
            self._remember(path.info)
            if path.id == self._shown_path:
                self._owner.path_changed(self._front, path.info, "moved")

    def _remember(self, info: Path) -> None:
        self._history.append(info)
        del self._history[:-_PATHS_KEPT]

    def path_lost(self, path: AnyPath, reason: str) -> None:
        """The path's socket is gone."""
        if path.id in self._paths:
            self._drop_path(path.id, reason, monotonic())
            self.pump()

    def _drop_path(self, path_id: int, reason: str, now: float) -> None:
        path = self._paths.pop(path_id, None)
        if path is None:
            return
        if reason == "surplus":
            path.close()
        else:
            path.abort()
        self.session.detach(path_id, now)
        self._note_path(reason)
        if not self._paths and self.session.ended is None:
            self._owner.path_needed(self._front)

    def close_surplus(self) -> None:
        """Close every path but the one that carries our data, and the best one of each other transport and IP version.

        These stand by, and over those of a rendezvous it is seen from where they come. The larger PeerId's task
        (PROTOCOL 12).
        """
        active = self.session.active_path
        if active is None or active not in self._paths or not self.session.confirmed(active):
            return
        kept = {_way(self._paths[active]): active}
        for path_id in sorted(self._paths, key=self.session.path_rank):
            if kept.setdefault(_way(self._paths[path_id]), path_id) != path_id:
                self.session.close_path(path_id)
                self._write(self._paths[path_id], monotonic())
                self._drop_path(path_id, "surplus", monotonic())

    def check_paths(self) -> None:
        """The network has changed: find out at once which paths still answer."""
        now = monotonic()
        for path_id in self.session.path_ids:
            self.session.probe(path_id, now)
        self.pump()

    def has_transport(self, transport: Transport) -> bool:
        """Whether a live path uses a transport."""
        return any(path.info.transport == transport for path in self._paths.values())

    @property
    def path_count(self) -> int:
        """Live paths."""
        return len(self._paths)

    def _note_path(self, reason: str) -> None:
        active = self.session.active_path
        if active != self._shown_path:
            self._shown_path = active
            if self.session.ended is None:
                self._owner.path_changed(self._front, self._front.path, reason)

    # --- between the nodes ---------------------------------------------------------------------------------------

    def send_service(self, message: ServiceMessage, path_id: int | None = None) -> None:
        """Tell the peer's node something; over a path, where it concerns only that."""
        if self.session.ended is None:
            if not self.session.send_service(serialize_service_message(message), path_id):
                self._owner.service_dropped(self._front)
            self._schedule_pump()

    def path_source(self, path_id: int) -> Candidate | None:
        """From where the peer comes on a path; None for a relayed path, and when it is gone."""
        path = self._paths.get(path_id)
        if path is None or path.info.kind == "relayed":
            return None
        host, port = split_address(path.info.remote)
        return Candidate(path.info.transport, host, port, "peer-reflexive")

    def path_local(self, path_id: int) -> tuple[str, int] | None:
        """Our host and port on a path; None when it is gone."""
        path = self._paths.get(path_id)
        return None if path is None else split_address(path.info.local)

    def path_local_port(self, path_id: int) -> int:
        """Our port on a path; 0 when it is gone."""
        local = self.path_local(path_id)
        return 0 if local is None else local[1]

    def sources(self) -> list[Candidate]:
        """From where the peer comes, on each path whose keys it has proved to hold."""
        found = [self.path_source(path_id) for path_id in self._paths if self.session.confirmed(path_id)]
        return [candidate for candidate in found if candidate is not None]

    # --- waking --------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _way(path: AnyPath) -> tuple[Transport, bool]:
    """The transport of a path, and whether it is over IPv6."""
    return path.info.transport, path.info.remote.startswith("[")
