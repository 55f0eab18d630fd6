"""Two session engines joined without sockets, on a fake clock.

The paths between them can delay, hold, lose and reorder, and be killed with all that is under way. Everything follows
from the arguments and a seed: a run can be repeated to the byte.

    pair = Pair()
    pair.add_path()
    pair.a.send(b"hello")
    pair.settle()
    assert pair.b.read_all() == [b"hello"]
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from crust.config import Config
from crust.crypto.hashing import HashId
from crust.crypto.keys import Identity
from crust.errors import CrustError, RemoteProtocolError
from crust.proto.session.engine import Session, SessionState
from crust.proto.session.events import PathDead, PathStalled, SessionEnded, SessionEvent
from crust.proto.session.flush import FlushMark
from crust.proto.session.limits import Limits
from crust.proto.session.outbox import Group
from crust.proto.session.signing import SigningPace
from crust.proto.session.terms import SigningTerms
from crust.testing.clock import FakeClock
from crust.types import Priority
from crust.wire import frames

__all__ = ["Link", "Pair", "Parcel", "Peer"]

_STEPS: Final = 200_000
"""Moments after which a run is taken for one that never ends."""

_WALL_START: Final = 1_800_000_000.0


@dataclass(slots=True)
class Parcel:
    """A group under way.

    Attributes:
        due: when it arrives; None: the sender has closed the path, and this is its end.
        control: the control record.
        payloads: the payload records.
        end: whether it is the end of the path instead of a group.
    """

    due: float
    control: bytes = b""
    payloads: list[bytes] = field(default_factory=list)
    end: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.control) + sum(map(len, self.payloads))

    @property
    def frames(self) -> list[frames.Frame]:
        """What it says."""
        return frames.parse_frames(self.control, self.payloads, start=1)


class Lane:
    """One direction of a link: first in, first out.

    Attributes:
        queue: what is under way.
        delay: seconds that a group takes.
        capacity: bytes under way beyond which the sender cannot write; 0 for no limit.
        rate: bytes a second; 0 for no limit.
        held: nothing arrives, nothing is lost: a network that is merely slow.
        lossy: what is written vanishes, and nobody is told: a network that has forgotten the path.
        carried: groups that have arrived.
        carried_bytes: their bytes.
    """

    __slots__ = ("capacity", "carried", "carried_bytes", "delay", "free_at", "held", "lossy", "queue", "queued", "rate")

    def __init__(self, delay: float, capacity: int, rate: float) -> None:
        self.queue: deque[Parcel] = deque()
        self.queued = 0
        self.delay = delay
        self.capacity = capacity
        self.rate = rate
        self.free_at = 0.0
        self.held = False
        self.lossy = False
        self.carried = 0
        self.carried_bytes = 0

    @property
    def writable(self) -> bool:
        """Whether the sender may write."""
        return not self.capacity or self.queued < self.capacity

    def put(self, parcel: Parcel, now: float) -> None:
        """Send something on its way."""
        if self.lossy:
            return
        size = parcel.size
        self.free_at = max(self.free_at, now) + (size / self.rate if self.rate else 0.0)
        parcel.due = self.free_at + self.delay
        self.queue.append(parcel)
        self.queued += size

    def next_due(self) -> float | None:
        """When something arrives."""
        return self.queue[0].due if self.queue and not self.held else None

    def take(self, now: float) -> Parcel | None:
        """What arrives now."""
        if self.held or not self.queue or self.queue[0].due > now:
            return None
        parcel = self.queue.popleft()
        self.queued -= parcel.size
        if not parcel.end:
            self.carried += 1
            self.carried_bytes += parcel.size
        return parcel

    def clear(self) -> int:
        """Lose what is under way; returns how many groups."""
        lost = len(self.queue)
        self.queue.clear()
        self.queued = 0
        return lost


class Link:
    """A path between the two peers.

    Attributes:
        id: its number, on both sides.
        lanes: of each sender, by its side (0: what `Pair.a` sends).
        attached: the sides that hold the path.
        ranks: how good each side thinks it is.
    """

    def __init__(self, link_id: int, ranks: tuple[int, int], delay: float, capacity: int, rate: float) -> None:
        self.id = link_id
        self.ranks = ranks
        self.lanes = (Lane(delay, capacity, rate), Lane(delay, capacity, rate))
        self.attached = [False, False]

    @property
    def alive(self) -> bool:
        """Whether either side holds it."""
        return any(self.attached)

    def hold(self, *, held: bool = True) -> None:
        """Let nothing arrive for the time being, in both directions; nothing is lost."""
        for lane in self.lanes:
            lane.held = held

    def blackhole(self, *, lossy: bool = True) -> None:
        """Lose everything from now on, what is under way included; neither side is told."""
        for lane in self.lanes:
            lane.lossy = lossy
            lane.clear()


class Peer:
    """One of the two: a session, and what an application would do with it.

    Attributes:
        session: the engine.
        side: 0 or 1, also which PeerId is the smaller one.
        events: what the session said, and was not the pair's to handle.
        broken: violations of the protocol by the other side.
    """

    def __init__(self, pair: Pair, side: int, session: Session) -> None:
        self._pair = pair
        self.side = side
        self.session = session
        self.events: list[SessionEvent] = []
        self.broken: list[RemoteProtocolError] = []

    def send(self, data: bytes, priority: Priority = Priority.NORMAL, *, expires_in: float | None = None) -> None:
        """Queue a message."""
        self.session.check_open()
        self.session.send(data, priority, None if expires_in is None else self._pair.clock.now + expires_in)

    def read(self) -> bytes | None:
        """The next message, if there is one."""
        found = self.session.next_message()
        return None if found is None else found[0]

    def read_all(self) -> list[bytes]:
        """All messages that are there."""
        return [data for data, _ in self.read_marked()]

    def read_marked(self) -> list[tuple[bytes, Priority]]:
        """All messages that are there, with their priorities."""
        messages = []
        while (found := self.session.next_message()) is not None:
            messages.append(found[:2])
        return messages

    def close(self) -> None:
        """Send what is queued, then CLOSE."""
        self.session.close(self._pair.clock.now)

    def flush_mark(self) -> FlushMark:
        """Remember what is queued now."""
        return self.session.flush_mark()

    @property
    def ended(self) -> CrustError | None:
        """How the session ended."""
        return self.session.ended

    def count(self, kind: type) -> int:
        """How many events of a kind there were."""
        return sum(isinstance(event, kind) for event in self.events)


class Pair:
    """Two peers.

    Args:
        config: limits of both.
        configs: limits of each, instead.
        signing: whether both sign.
        strict: which sides deliver only what is verified.
        seed: of all randomness.

    Attributes:
        clock: the time of both.
        a: the peer with the smaller PeerId.
        b: the other.
        links: every path that there was.
        redial: called when a side wants a path, with the side.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        configs: tuple[Config, Config] | None = None,
        signing: bool = False,
        strict: tuple[bool, bool] = (False, False),
        seed: int = 0,
    ) -> None:
        self.clock = FakeClock()
        self.random = random.Random(seed)  # noqa: S311 - a run must be repeatable
        self.identities = sorted(
            (Identity.from_seed(hashlib.sha256(b"pair %d %d" % (seed, n)).digest()) for n in range(2)),
            key=lambda identity: identity.id,
        )
        self.links: list[Link] = []
        self.redial: Callable[[Peer], object] | None = None
        self._ids = itertools.count(1)
        used = configs or (config or Config(), config or Config())
        peers = []
        for side in range(2):
            terms = self._terms(side, strict=strict[side]) if signing else None
            peers.append(Peer(self, side, self.new_session(side, used[side], terms)))
        self.a, self.b = peers

    def new_session(self, side: int, config: Config, terms: SigningTerms | None = None) -> Session:
        """An engine for a side, with a nonce of its own."""
        return Session(
            nonce=self.random.randbytes(16),
            side=side,
            limits=Limits.of(config),
            random=self.random.randbytes,
            now=self.clock.now,
            terms=terms,
            name=lambda ours, theirs: hashlib.sha256(b"".join(sorted((ours, theirs)))).digest(),
        )

    def _terms(self, side: int, *, strict: bool) -> SigningTerms:
        ours, theirs = self.identities[side], self.identities[1 - side]
        return SigningTerms(ours, theirs.id, HashId.SHA256, strict, SigningPace(), lambda: _WALL_START + self.clock.now)

    @property
    def peers(self) -> tuple[Peer, Peer]:
        """Both."""
        return self.a, self.b

    def other(self, peer: Peer) -> Peer:
        """The peer of a peer."""
        return self.peers[1 - peer.side]

    # --- paths ---------------------------------------------------------------------------------------------------

    def add_path(
        self,
        *,
        rank: int = 10,
        ranks: tuple[int, int] | None = None,
        delay: float = 0.0,
        capacity: int = 0,
        rate: float = 0.0,
        dialler: int = 0,
    ) -> Link:
        """Join the peers by another path.

        Args:
            rank: how good both sides think it is; lower is better.
            ranks: what each side thinks, instead.
            delay: seconds that a group takes.
            capacity: bytes under way beyond which a sender cannot write; 0 for no limit.
            rate: bytes a second; 0 for no limit.
            dialler: the side that holds it at once; the other does when the first group arrives.
        """
        link = Link(next(self._ids), ranks or (rank, rank), delay, capacity, rate)
        self.links.append(link)
        self._attach(link, dialler)
        return link

    def _attach(self, link: Link, side: int) -> None:
        link.attached[side] = True
        session = self.peers[side].session
        session.attach(link.id, rank=link.ranks[side], now=self.clock.now, rtt=2 * link.lanes[side].delay)

    def _detach(self, link: Link, side: int) -> None:
        if link.attached[side]:
            link.attached[side] = False
            self.peers[side].session.detach(link.id, self.clock.now)

    def kill(self, link: Link, *, sides: tuple[int, ...] = (0, 1)) -> None:
        """Lose a path with everything under way; the given sides are told."""
        for lane in link.lanes:
            lane.clear()
            lane.lossy = True
        for side in sides:
            self._detach(link, side)

    def close_link(self, link: Link, side: int) -> None:
        """Let one side close a path: what it has written still arrives, and then the end of it."""
        self._detach(link, side)
        link.lanes[side].put(Parcel(0.0, end=True), self.clock.now)
        link.lanes[1 - side].clear()
        link.lanes[1 - side].lossy = True

    # --- time ----------------------------------------------------------------------------------------------------

    def pump(self, peer: Peer) -> None:
        """What a front end does after each input: write, take events; timers are `step`'s."""
        session, now = peer.session, self.clock.now
        for link in list(self.links):
            if not link.attached[peer.side]:
                continue
            lane = link.lanes[peer.side]
            while lane.writable and (group := session.next_group(link.id, now)) is not None:
                lane.put(self._parcel(group), now)
                if not session.more:
                    break
        while (event := session.next_event()) is not None:
            peer.events.append(event)
            self._handle(peer, event)

    @staticmethod
    def _parcel(group: Group) -> Parcel:
        control, payloads = group
        assert len(control) <= frames.RECORD_LIMIT
        assert control[0] == len(payloads)
        return Parcel(0.0, control, [bytes(payload) for payload in payloads])

    def _handle(self, peer: Peer, event: SessionEvent) -> None:
        if isinstance(event, PathDead):
            link = next(link for link in self.links if link.id == event.path_id)
            if link.attached[peer.side]:
                self.close_link(link, peer.side)
                self._want_path(peer)
        elif isinstance(event, PathStalled):
            self._want_path(peer)
        elif isinstance(event, SessionEnded):
            for link in self.links:
                if link.attached[peer.side]:
                    self.close_link(link, peer.side)

    def _want_path(self, peer: Peer) -> None:
        if self.redial is not None and peer.ended is None:
            self.redial(peer)

    def deliver(self, link: Link, sender: int, parcel: Parcel) -> None:
        """Hand a group to its receiver."""
        receiver = 1 - sender
        peer = self.peers[receiver]
        if parcel.end:
            self._detach(link, receiver)
        elif peer.session.state is not SessionState.ENDED:
            if not link.attached[receiver]:
                self._attach(link, receiver)
            try:
                peer.session.receive_group(link.id, parcel.control, parcel.payloads, self.clock.now)
            except RemoteProtocolError as error:
                peer.broken.append(error)

    def _deliver_due(self) -> bool:
        delivered = False
        for link in list(self.links):
            for sender, lane in enumerate(link.lanes):
                while (parcel := lane.take(self.clock.now)) is not None:
                    self.deliver(link, sender, parcel)
                    delivered = True
        return delivered

    def step(self) -> bool:
        """Do all that is due at the present moment, once round; False when there was nothing to do."""
        before = self._written()
        for peer in self.peers:
            self.pump(peer)
        busy = self._written() != before
        busy = self._deliver_due() or busy
        for peer in self.peers:
            due = peer.session.next_timeout()
            if due is not None and due <= self.clock.now:
                peer.session.handle_timeout(self.clock.now)
                busy = True
        return busy

    def _written(self) -> tuple[Any, ...]:
        return tuple((lane.queued, lane.carried, len(lane.queue)) for link in self.links for lane in link.lanes)

    def _next_moment(self) -> float | None:
        moments = [lane.next_due() for link in self.links for lane in link.lanes]
        moments += [peer.session.next_timeout() for peer in self.peers]
        return min((moment for moment in moments if moment is not None), default=None)

    def run(self, seconds: float = 0.0, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, doing everything when it is due.

        Args:
            seconds: how long at most.
            until: ends the run as soon as it is true.

        Returns:
            Whether `until` came true; without one, True.
        """
        end = self.clock.now + seconds
        if until is not None and until():
            return True
        for _ in range(_STEPS):
            busy = self.step()
            if until is not None and until():
                return True
            if busy:
                continue
            moment = self._next_moment()
            if moment is None or moment > end:
                self.clock.advance_to(end)
                return until is None
            self.clock.advance_to(moment)
        raise AssertionError("the engines never come to rest")

    def settle(self, seconds: float = 10.0) -> None:
        """Run until nothing is under way, queued or unacknowledged, or for some seconds."""
        self.run(seconds, until=self.at_rest)

    def at_rest(self) -> bool:
        """Whether nothing is under way, queued or unacknowledged."""
        if any(lane.queue for link in self.links for lane in link.lanes if not lane.held):
            return False
        return all(peer.ended is not None or not peer.session.outbox.has_work() for peer in self.peers)
