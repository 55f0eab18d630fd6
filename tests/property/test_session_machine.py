"""Two sessions under whatever comes: each message arrives exactly once and in order, or the session has ended."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from crust.config import Config
from crust.errors import ConnectionClosed, CrustError, LocalProtocolError
from crust.proto.session.streams import StreamState
from crust.testing.pair import Link, Pair, Peer
from crust.types import Priority

KIB = 1024
sides = st.integers(0, 1)
sizes = st.one_of(st.integers(0, 200), st.integers(1000, 40_000), st.sampled_from([16_384, 16_385, 65_536, 300_000]))
picks = st.integers(0, 1000)


class Sessions(RuleBasedStateMachine):
    """An application on each side, a hostile network between them; no peer breaks the protocol."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[tuple[int, Priority], list[bytes]] = {}
        self.got: dict[tuple[int, Priority], list[bytes]] = {}
        self.written: dict[tuple[int, int], bytearray] = {}
        self.read: dict[tuple[int, int], bytearray] = {}
        self.streams: list[tuple[int, StreamState]] = []
        self.theirs: dict[tuple[int, int], StreamState] = {}
        self.flushes: list[tuple[int, object, dict[Priority, int]]] = []
        self.count = 0
        self.closed = False

    @initialize(
        signing=st.sampled_from([None, (False, False), (True, False), (True, True)]),
        window=st.sampled_from([256 * KIB, 16 * 1024 * KIB]),
        retention=st.sampled_from([512 * KIB, 16 * 1024 * KIB]),
        seed=st.integers(0, 3),
    )
    def begin(self, signing: tuple[bool, bool] | None, window: int, retention: int, seed: int) -> None:
        config = Config(receive_window_bytes=window, retention_bytes=retention, stream_window_bytes=64 * KIB)
        self.pair = Pair(config, signing=signing is not None, strict=signing or (False, False), seed=seed)
        self.expiring = False

    # --- application ---------------------------------------------------------------------------------------------

    @rule(side=sides, priority=st.sampled_from(Priority), size=sizes, times=st.integers(1, 5))
    def send(self, side: int, priority: Priority, size: int, times: int) -> None:
        peer = self.pair.peers[side]
        for _ in range(times):
            self.count += 1
            data = b"%d:" % self.count + bytes([self.count % 251]) * size
            try:
                peer.send(data, priority)
            except CrustError:
                return
            self.sent.setdefault((side, priority), []).append(data)

    @rule(side=sides)
    def receive(self, side: int) -> None:
        self.drain(self.pair.peers[side])

    @rule(side=sides, most=st.integers(1, 3))
    def receive_some(self, side: int, most: int) -> None:
        for _ in range(most):
            found = self.pair.peers[side].session.next_message()
            if found is None:
                return
            self.got.setdefault((1 - side, found[1]), []).append(found[0])

    def drain(self, peer: Peer) -> None:
        for data, priority in peer.read_marked():
            self.got.setdefault((1 - peer.side, priority), []).append(data)
        self.take_opened(peer)
        for (opener, stream_id), state in list(self.theirs.items()):
            if opener != peer.side:
                target = self.read[opener, stream_id]
                while state.chunks:
                    chunk = state.chunks.popleft()
                    state.ready_bytes -= len(chunk)
                    target += chunk
                    peer.session.streams.consume(state, len(chunk))

    def take_opened(self, peer: Peer) -> None:
        for state in peer.session.streams.opened:
            self.theirs[1 - peer.side, state.id] = state
            self.read.setdefault((1 - peer.side, state.id), bytearray())
        peer.session.streams.opened.clear()

    @rule(side=sides, priority=st.sampled_from(Priority))
    def open_stream(self, side: int, priority: Priority) -> None:
        peer = self.pair.peers[side]
        may = peer.ended is None and not self.closed and peer.session.streams.table.may_open
        if len(self.streams) < 6 and may:
            state = peer.session.streams.open("s", priority)
            self.streams.append((side, state))
            self.written[side, state.id] = bytearray()

    @precondition(lambda self: self.streams)
    @rule(pick=picks, size=st.integers(1, 100_000), end=st.booleans())
    def write_stream(self, pick: int, size: int, end: bool) -> None:
        side, state = self.streams[pick % len(self.streams)]
        streams = self.pair.peers[side].session.streams
        self.count += 1
        try:
            streams.write(state, memoryview(bytes([self.count % 251]) * size))
            self.written[side, state.id] += bytes([self.count % 251]) * size
            if end:
                streams.end(state)
        except LocalProtocolError:
            pass

    @rule(side=sides)
    def flush(self, side: int) -> None:
        peer = self.pair.peers[side]
        if peer.ended is None:
            counts = {priority: len(self.sent.get((side, priority), ())) for priority in Priority}
            self.flushes.append((side, peer.flush_mark(), counts))

    @rule(side=sides)
    def ping(self, side: int) -> None:
        if self.pair.peers[side].ended is None:
            self.pair.peers[side].session.ping(self.pair.clock.now)

    @rule(side=sides, size=st.integers(0, 1200))
    def datagram(self, side: int, size: int) -> None:
        if self.pair.peers[side].ended is None:
            self.pair.peers[side].session.send_datagram(bytes(size))

    # --- network -------------------------------------------------------------------------------------------------

    def alive(self) -> list[Link]:
        return [link for link in self.pair.links if link.alive]

    @precondition(lambda self: len(self.alive()) < 4 and not self.over())
    @rule(
        rank=st.integers(0, 3),
        delay=st.sampled_from([0.0, 0.001, 0.05, 0.7]),
        rate=st.sampled_from([0.0, 1e5, 1e7]),
        capacity=st.sampled_from([0, 64 * KIB]),
        dialler=sides,
    )
    def add_path(self, rank: int, delay: float, rate: float, capacity: int, dialler: int) -> None:
        if self.pair.peers[dialler].ended is None:
            self.pair.add_path(rank=rank, delay=delay, rate=rate, capacity=capacity, dialler=dialler)

    @precondition(lambda self: self.alive())
    @rule(pick=picks, told=st.sampled_from([(0, 1), (1, 0), (0,), (1,)]))
    def kill(self, pick: int, told: tuple[int, ...]) -> None:
        alive = self.alive()
        self.pair.kill(alive[pick % len(alive)], sides=told)

    @precondition(lambda self: self.alive())
    @rule(pick=picks, lane=sides, held=st.booleans())
    def hold(self, pick: int, lane: int, held: bool) -> None:
        alive = self.alive()
        alive[pick % len(alive)].lanes[lane].held = held

    @precondition(lambda self: self.alive())
    @rule(pick=picks, lane=sides)
    def lose(self, pick: int, lane: int) -> None:
        """One direction forgets everything from now on."""
        alive = self.alive()
        lost = alive[pick % len(alive)].lanes[lane]
        lost.lossy = True
        lost.clear()

    @precondition(lambda self: not self.over())
    @rule(
        times=st.integers(1, 6),
        keep=st.integers(0, 2),
        delay=st.sampled_from([0.0, 0.003, 0.05]),
        seconds=st.sampled_from([0.0, 0.002, 0.02, 0.3]),
        dialler=sides,
    )
    def flap(self, times: int, keep: int, delay: float, seconds: float, dialler: int) -> None:
        """Both sides lose paths and make others, again and again, with data under way."""
        for n in range(times):
            for link in self.alive()[keep:]:
                self.pair.kill(link, sides=(n % 2, 1 - n % 2))
            if self.pair.peers[dialler].ended is None:
                self.pair.add_path(rank=n % 3, delay=delay, rate=1e6, capacity=64 * KIB, dialler=(dialler + n) % 2)
            self.pair.run(seconds)

    @precondition(lambda self: len(self.alive()) > 1)
    @rule(pick=picks, side=sides)
    def surplus(self, pick: int, side: int) -> None:
        alive = self.alive()
        self.pair.peers[side].session.close_path(alive[pick % len(alive)].id)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.03, 0.06, 0.3, 1.1, 5.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.pair.run(seconds)

    # --- what must hold ------------------------------------------------------------------------------------------

    def over(self) -> bool:
        return any(peer.ended is not None for peer in self.pair.peers)

    @invariant()
    def nothing_is_lost_doubled_or_out_of_order(self) -> None:
        for key, got in self.got.items():
            assert got == self.sent.get(key, [])[: len(got)]
        for key, read in self.read.items():
            assert self.written[key][: len(read)] == read

    @invariant()
    def nobody_broke_the_protocol(self) -> None:
        if hasattr(self, "pair"):
            for peer in self.pair.peers:
                assert not peer.broken
                assert peer.session.outbox.retained_bytes >= 0
                assert min(peer.session.outbox.queued_bytes) >= 0

    @invariant()
    def what_is_flushed_is_held_by_the_peer(self) -> None:
        for side, mark, counts in list(self.flushes):
            if self.pair.peers[side].session.flushed(mark):  # type: ignore[arg-type]
                other = self.pair.peers[1 - side]
                held = other.session.inbox.messages_received
                strict = other.session.delivery._terms is not None and other.session.delivery._terms.strict
                assert strict or held >= sum(counts.values())
                self.flushes.remove((side, mark, counts))

    def teardown(self) -> None:
        """When the network is well again, everything arrives, and both can close."""
        if not hasattr(self, "pair"):
            return
        for link in self.alive():
            self.pair.kill(link)
        if not self.over():
            self.pair.add_path(delay=0.01)
            for _ in range(200):
                self.pair.run(0.5)
                for peer in self.pair.peers:
                    self.drain(peer)
                self.read.update({key: bytearray() for key in self.written if key not in self.read})
                if self.got == self.sent and self.read == self.written and self.pair.at_rest():
                    break
            assert self.got == self.sent
            assert self.read == self.written
            for _, mark, _ in self.flushes:
                assert any(peer.session.flushed(mark) for peer in self.pair.peers)  # type: ignore[arg-type]
            self.pair.a.close()
            self.pair.run(5)
            for peer in self.pair.peers:
                assert isinstance(peer.ended, ConnectionClosed)
        self.nothing_is_lost_doubled_or_out_of_order()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=40)
