"""The session engine: against a peer that is authenticated and hostile, and as an honest pair on paths that break.

Here the input is operations: what applications and the network do, in an order that nobody would think of.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from crust.crypto.hashing import HashId
from crust.crypto.keys import Identity
from crust.errors import ConnectionClosed, LocalProtocolError, PeerLost, RemoteProtocolError
from crust.proto.session.engine import NO_NONCE, Session, SessionState
from crust.proto.session.events import PathDead, SessionEnded
from crust.proto.session.limits import Limits
from crust.proto.session.signing import SigningPace
from crust.proto.session.streams import Half, StreamState
from crust.proto.session.terms import SigningTerms
from crust.wire import frames
from fuzz.target import Reader, Target, block, fixed_random
from fuzz.targets.frames import frame_seeds

LIMITS = Limits(
    max_message_bytes=1 << 20,
    receive_window_bytes=256 * 1024,
    retention_bytes=512 * 1024,
    stream_window_bytes=64 * 1024,
    max_streams=8,
    heartbeat=20.0,
    inactivity_timeout=120.0,
    path_timeout=10.0,
    resume_timeout=900.0,
    close_timeout=10.0,
)
IDENTITIES = (Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32))
NONCES = (b"a" * 16, b"b" * 16)
SIZES = (0, 1, 100, 5000, 16384, 16385, 65536, 65537, 300_000)
MOST_OPERATIONS = 150


def make_session(side: int, *, signed: bool, strict: bool = False) -> Session:
    """One side of a pair."""
    terms = None
    if signed:
        remote = IDENTITIES[1 - side].id
        terms = SigningTerms(IDENTITIES[side], remote, HashId.SHA256, strict, SigningPace(), lambda: 1.7e9)

    def name(ours: bytes, theirs: bytes) -> bytes:
        return b"".join(sorted((ours, theirs)))

    return Session(nonce=NONCES[side], side=side, limits=LIMITS, random=fixed_random(), now=0.0, terms=terms, name=name)


# --- a hostile peer ------------------------------------------------------------------------------------------------


def run_peer(data: bytes) -> None:
    """Whatever frames come, the engine goes on or ends, and holds no more than its limits."""
    reader = Reader(data)
    options = reader.byte()
    session = make_session(0, signed=bool(options & 1), strict=bool(options & 2))
    session.attach(1, rank=10, now=0.0)
    ours = session.streams.open("ours", 4)
    now = 0.0
    for _ in range(MOST_OPERATIONS):
        if not reader or session.ended is not None:
            break
        what = reader.byte()
        try:
            if what < 0xC0:
                payloads = [reader.block() for _ in range(what % 3)]
                session.receive_group(1, bytes((len(payloads),)) + reader.block(), payloads, now)
            else:
                _application(session, ours, what)
        except RemoteProtocolError:
            assert session.ended is not None
            raise
        now += (what & 7) / 4
        session.handle_timeout(now)
        while session.next_group(1, now) is not None:
            pass
        _check_bounds(session)
    while session.next_event() is not None:
        pass


def _application(session: Session, ours: StreamState, what: int) -> None:
    """What a program might do meanwhile."""
    try:
        if what < 0xD0:
            session.check_open()
            session.send(bytes(SIZES[what % len(SIZES)]), what % 8, None)
        elif what < 0xD8:
            session.next_message()
        elif what < 0xE0:
            session.streams.write(ours, memoryview(bytes(1000)))
        elif what < 0xE4:
            session.streams.end(ours)
        elif what < 0xE8:
            session.streams.stop(ours)
        elif what < 0xEA:
            session.close(0.0)
        else:
            for stream in session.streams.opened:
                session.streams.consume(stream, sum(map(len, stream.chunks)))
                stream.chunks.clear()
                stream.ready_bytes = 0
    except (LocalProtocolError, ConnectionClosed, PeerLost):
        pass


def _check_bounds(session: Session) -> None:
    assert session.inbox.ready_bytes <= 8 * (LIMITS.receive_window_bytes + LIMITS.max_message_bytes)
    assert session.streams.table.remote_open <= LIMITS.max_streams
    assert all(s.ready_bytes <= LIMITS.stream_window_bytes for s in session.streams.table.by_id.values())


def _hello(*, window: int = 1 << 20) -> bytes:
    return frames.serialize_hello(frames.Hello(NONCES[1], NO_NONCE, 0, window, window, 1 << 20))


def _peer_seeds() -> list[bytes]:
    hello = b"\0" + block(_hello())
    seed = b"\0" + block(frames.serialize_seed(0, b"s" * 32))
    one_each = b"".join(b"\0" + block(frame) for frame in frame_seeds())
    external = b"\1" + block(b"p" * 100) + block(frames.serialize_fragment(0, 4, 100, 100, external=True))
    return [
        b"\0" + hello + one_each,
        b"\0" + hello + b"\xc3\xc8" + external + b"\xd0\xe0\xe5",
        b"\1" + hello + seed + one_each,
        b"\0" + b"".join(b"\0" + block(_hello() + frame) for frame in frame_seeds()),
    ]


# --- an honest pair ------------------------------------------------------------------------------------------------


class Side:
    """One side of a pair: the engine, and what its application and a bookkeeper know."""

    def __init__(self, side: int, *, signed: bool, strict: bool) -> None:
        self.side = side
        self.session = make_session(side, signed=signed, strict=strict)
        self.wire: dict[int, deque[tuple[bytes, list[bytes]]]] = {}
        self.sent: list[list[bytes]] = [[] for _ in range(8)]
        self.taken: list[list[bytes]] = [[] for _ in range(8)]
        self.streams: dict[int, StreamState] = {}
        self.written: dict[int, bytearray] = {}
        self.read: dict[int, bytearray] = {}
        self.given_up: set[int] = set()
        self.count = 0


class Pair:
    """Two engines, the paths between them, and a clock."""

    def __init__(self, *, signed: bool, strict: bool) -> None:
        self.sides = (Side(0, signed=signed, strict=strict), Side(1, signed=signed, strict=strict))
        self.paths: list[int] = []
        self.now = 0.0
        self.cuts = 0
        self._next_path = 1
        self.add_path()

    def add_path(self) -> None:
        """A new path comes up."""
        if len(self.paths) < 3:
            for side in self.sides:
                side.session.attach(self._next_path, rank=10, now=self.now, rtt=0.05)
                side.wire[self._next_path] = deque()
            self.paths.append(self._next_path)
            self._next_path += 1

    def cut(self, path: int) -> None:
        """A path dies with all that was under way on it."""
        if path in self.paths:
            self.paths.remove(path)
            self.cuts += 1
            for side in self.sides:
                del side.wire[path]
                side.session.detach(path, self.now)

    def write(self) -> None:
        """Both engines write what they have."""
        for side in self.sides:
            for path in self.paths:
                for _ in range(64):
                    group = side.session.next_group(path, self.now)
                    if group is None:
                        break
                    side.wire[path].append((group[0], [bytes(payload) for payload in group[1]]))

    def carry(self, path: int, side: Side, most: int) -> bool:
        """Bring some groups of one direction of a path over; whether there was one."""
        queue = side.wire.get(path)
        other = self.sides[1 - side.side]
        carried = False
        while queue and most:
            control, payloads = queue.popleft()
            other.session.receive_group(path, control, payloads, self.now)
            carried = True
            most -= 1
        return carried

    def tick(self, seconds: float) -> None:
        """Time passes, timers fire, dead paths are closed."""
        self.now += seconds
        for side in self.sides:
            side.session.handle_timeout(self.now)
        self.write()
        for side in self.sides:
            while (event := side.session.next_event()) is not None:
                if isinstance(event, PathDead):
                    self.cut(event.path_id)
                elif isinstance(event, SessionEnded):
                    assert isinstance(event.error, (ConnectionClosed, PeerLost)), event.error
                    assert not isinstance(event.error.__cause__, RemoteProtocolError), event.error

    def take(self, side: Side) -> None:
        """The application takes everything."""
        while (message := side.session.next_message()) is not None:
            side.taken[message[1]].append(message[0])
        side.streams.update((stream.id, stream) for stream in side.session.streams.opened)
        side.session.streams.opened.clear()
        for stream in side.streams.values():
            chunks = b"".join(stream.chunks)
            stream.chunks.clear()
            stream.ready_bytes = 0
            side.read.setdefault(stream.id, bytearray()).extend(chunks)
            side.session.streams.consume(stream, len(chunks))

    def settle(self) -> None:
        """Let everything arrive."""
        for _ in range(400):
            if not self.paths:
                self.add_path()
            self.write()
            for path in self.paths.copy():
                for side in self.sides:
                    self.carry(path, side, 1000)
            for side in self.sides:
                self.take(side)
            self.tick(0.06)  # what was taken may be credit that is written only now
            under_way = any(queue for side in self.sides for queue in side.wire.values())
            if not under_way and not any(side.session.outbox.has_work() for side in self.sides):
                return

    def check(self) -> None:
        """Nothing lost, nothing twice, nothing out of order."""
        whole = all(side.session.state is SessionState.OPEN for side in self.sides)
        for side in self.sides:
            other = self.sides[1 - side.side]
            for sent, taken in zip(side.sent, other.taken, strict=True):
                assert taken == (sent if whole else sent[: len(taken)])
            for number, written in side.written.items():
                read = other.read.get(number, bytearray())
                assert written.startswith(read)
                if whole and number not in self.given_up:
                    assert read == written, f"stream {number}: {len(read)} of {len(written)}"

    @property
    def given_up(self) -> set[int]:
        """Streams that either side has reset or stopped."""
        return self.sides[0].given_up | self.sides[1].given_up


def run_pair(data: bytes) -> None:
    """Any operations in any order, and everything arrives once."""
    reader = Reader(data)
    options = reader.byte()
    pair = Pair(signed=bool(options & 1), strict=bool(options & 2))
    try:
        _operate(pair, reader)
        pair.settle()
    except RemoteProtocolError as error:
        # Paths that break again and again before a signature gets through look like a peer that withholds it.
        if not (pair.cuts and "withheld" in str(error)):
            raise
    pair.check()


def _operate(pair: Pair, reader: Reader) -> None:
    for _ in range(MOST_OPERATIONS):
        if not reader:
            break
        what, how = reader.byte(), reader.byte()
        side = pair.sides[what >> 7]
        _OPERATIONS[(what & 0x7F) % len(_OPERATIONS)](pair, side, how)
        pair.write()  # as front ends do after every input


def _send(pair: Pair, side: Side, how: int) -> None:
    session = side.session
    if session.state is SessionState.OPEN:
        size = SIZES[how >> 3 & 15] if (how >> 3 & 15) < len(SIZES) else how
        message = (struct.pack(">I", side.count) * (size // 4 + 1))[:size]
        side.count += 1
        session.send(message, how & 7, None)
        side.sent[how & 7].append(message)


def _open(pair: Pair, side: Side, how: int) -> None:
    if side.session.state is SessionState.OPEN and side.session.streams.table.may_open:
        stream = side.session.streams.open("s", how & 7)
        side.streams[stream.id] = stream
        side.written[stream.id] = bytearray()


def _stream(side: Side, how: int) -> StreamState | None:
    """One of the streams that this side knows."""
    streams = list(side.streams.values())
    return streams[how % len(streams)] if streams else None


def _write(pair: Pair, side: Side, how: int) -> None:
    stream = _stream(side, how & 15)
    if stream is not None and stream.sending is Half.OPEN and side.session.state is SessionState.OPEN:
        size = SIZES[how >> 4] if how >> 4 < len(SIZES) else how
        piece = (struct.pack(">I", side.count) * (size // 4 + 1))[:size]
        side.count += 1
        side.session.streams.write(stream, memoryview(piece))
        side.written.setdefault(stream.id, bytearray()).extend(piece)


def _end(pair: Pair, side: Side, how: int) -> None:
    stream = _stream(side, how)
    if stream is not None and stream.sending is Half.OPEN and side.session.state is SessionState.OPEN:
        side.session.streams.end(stream)


def _give_up(pair: Pair, side: Side, how: int) -> None:
    stream = _stream(side, how >> 1)
    if stream is not None and side.session.state is SessionState.OPEN:
        side.given_up.add(stream.id)
        (side.session.streams.reset if how & 1 else side.session.streams.stop)(stream)


def _carry(pair: Pair, side: Side, how: int) -> None:
    if pair.paths:
        pair.carry(pair.paths[how % len(pair.paths)], side, 1 + (how >> 2))


def _take(pair: Pair, side: Side, how: int) -> None:
    pair.take(side)


def _wait(pair: Pair, side: Side, how: int) -> None:
    pair.tick(how / 50)


def _cut(pair: Pair, side: Side, how: int) -> None:
    if pair.paths:
        pair.cut(pair.paths[how % len(pair.paths)])


def _dial(pair: Pair, side: Side, how: int) -> None:
    pair.add_path()


def _close(pair: Pair, side: Side, how: int) -> None:
    if how > 0xF0:
        side.session.close(pair.now)


_OPERATIONS: tuple[Callable[[Pair, Side, int], None], ...] = (
    _send,
    _carry,
    _open,
    _write,
    _carry,
    _end,
    _take,
    _give_up,
    _wait,
    _cut,
    _dial,
    _close,
)


def _pair_seeds() -> list[bytes]:
    transfer = bytes((0, 0x40, 0x80, 0x41, 1, 0xFF, 0x81, 0xFF, 6, 0, 0x86, 0))
    streams = bytes((2, 4, 3, 0x30, 1, 0xFF, 0x81, 0xFF, 0x86, 0, 0x83, 0x20, 5, 0, 1, 0xFF))
    broken = bytes((0, 0x44, 1, 1, 9, 0, 0, 0x02, 10, 0, 1, 3, 8, 40, 0x81, 8))
    return [
        bytes((signed,)) + part for signed in (0, 1, 3) for part in (transfer, streams, broken, broken * 4 + streams)
    ]


TARGETS = (
    Target("session-peer", run_peer, (RemoteProtocolError,), _peer_seeds),
    Target("session-pair", run_pair, (), _pair_seeds),
)
