"""Two engines and any network: whatever is lost, copied or reordered, the bytes arrive once and in order.

And one engine fed with anything: nothing is raised, it ends at most once, and its sums stay what they must be.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.events import Ended, PeerFinished
from crust.wire.utp import Header, PacketType, serialize_header

SIZES = st.sampled_from([0, 1, 100, 1180, 1181, 5000, 60_000])


class Network(RuleBasedStateMachine):
    """Two ends inside a tunnel; a rule decides what becomes of the datagrams on the wire."""

    datagrams = Bundle("datagrams")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        config = UtpConfig(tunnel=True, mtu=1200, mtu_ceiling=1452, receive_window=100_000, unsent_limit=50_000)
        self.ends = [
            UtpConnection.established(config, self.now, receive_id=1, send_id=2, seq_nr=65_530, peer_seq_nr=9),
            UtpConnection.established(config, self.now, receive_id=2, send_id=1, seq_nr=9, peer_seq_nr=65_530),
        ]
        self.wire: list[tuple[int, bytes]] = []  # (to, datagram)
        self.sent = [bytearray(), bytearray()]  # accepted by each end
        self.read = [bytearray(), bytearray()]
        self.unconsumed = [0, 0]
        self.closed = [False, False]
        self.finished = [False, False]
        self.ended: list[Ended | None] = [None, None]
        self.counter = 0

    def drain(self, which: int) -> None:
        end = self.ends[which]
        for batch in end.datagrams_to_send(self.now):
            self.wire += [(1 - which, datagram) for datagram in batch.datagrams()]
        for buffer in end.data_to_read():
            self.read[which] += buffer
            self.unconsumed[which] += len(buffer)
        while (event := end.next_event()) is not None:
            assert self.ended[which] is None
            if isinstance(event, PeerFinished):
                assert self.read[which] == self.sent[1 - which]
                self.finished[which] = True
            elif isinstance(event, Ended):
                self.ended[which] = event

    @initialize()
    def begin(self) -> None:
        for which in (0, 1):
            self.drain(which)

    @rule(which=st.integers(0, 1), size=SIZES)
    def send(self, which: int, size: int) -> None:
        if not self.closed[which] and self.ended[which] is None:
            self.counter += 1
            data = self.counter.to_bytes(4, "big") * (size // 4 + 1)
            accepted = self.ends[which].send_data(memoryview(data)[:size], self.now)
            self.sent[which] += data[:accepted]
            self.drain(which)

    @rule(which=st.integers(0, 1))
    def consume(self, which: int) -> None:
        self.ends[which].consumed(self.unconsumed[which])
        self.unconsumed[which] = 0
        self.drain(which)

    @rule(which=st.integers(0, 1))
    def close(self, which: int) -> None:
        self.closed[which] = True
        self.ends[which].close()
        self.drain(which)

    @precondition(lambda self: self.wire)
    @rule(count=st.integers(1, 20), lose=st.booleans(), at=st.integers(0, 100))
    def deliver(self, count: int, lose: bool, at: int) -> None:
        """Some datagrams arrive, not necessarily the oldest, or are lost."""
        at %= len(self.wire)
        some, self.wire[at : at + count] = self.wire[at : at + count], []
        if not lose:
            for which in (0, 1):
                batch = [memoryview(datagram) for to, datagram in some if to == which]
                if batch:
                    self.ends[which].receive_datagrams(batch, self.now)
                    self.drain(which)

    @precondition(lambda self: self.wire)
    @rule(at=st.integers(0, 100))
    def copy(self, at: int) -> None:
        if len(self.wire) < 1000:
            self.wire.append(self.wire[at % len(self.wire)])

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.3, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for which in (0, 1):
            self.ends[which].handle_timeout(self.now)
            self.drain(which)

    @rule(which=st.integers(0, 1), seconds=st.sampled_from([0.0, 0.5]))
    def roam(self, which: int, seconds: float) -> None:
        self.ends[which].path_changed(self.now + seconds)
        self.now += seconds

    @invariant()
    def bytes_are_right(self) -> None:
        for which in (0, 1):
            assert self.sent[1 - which].startswith(self.read[which])
            assert self.ends[which].unacknowledged_bytes >= 0
            assert self.ends[which].stats.bytes_received - len(self.read[which]) + self.unconsumed[which] <= 101_500

    def teardown(self) -> None:
        """On a network that works again everything arrives, unless an end has given up for good reason."""
        for _ in range(3000):
            for which in (0, 1):
                self.consume(which)
            if self.wire:
                wire, self.wire = self.wire, []
                for to, datagram in wire:
                    self.ends[to].receive_datagrams([memoryview(datagram)], self.now)
                self.drain(0)
                self.drain(1)
                self.now += 0.01
                continue
            deadlines = [deadline for end in self.ends if (deadline := end.next_timeout()) is not None]
            if not deadlines or min(deadlines) > self.now + 120:
                break
            self.wait(max(min(deadlines) - self.now, 0.0))
        if self.ended == [None, None] or all(end and end.reason.name == "CLOSED" for end in self.ended):
            for which in (0, 1):
                assert self.read[which] == self.sent[1 - which]


Network.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestNetwork = Network.TestCase

fields = st.tuples(
    st.sampled_from(PacketType),
    st.sampled_from([0, 0, 0, 1, 0x43, 0x44, 77]),
    st.sampled_from([1, 1, 1, 2]),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([0, 1, 5000, 0xFFFFFFFF]),
    st.integers(0, 12) | st.integers(0, 0xFFFF),
    st.integers(65_525, 65_535) | st.integers(0, 0xFFFF),
)


@given(
    st.lists(st.tuples(fields, st.binary(max_size=40)) | st.binary(max_size=40), max_size=30),
    st.booleans(),
    st.sampled_from(["cubic", "ledbat"]),
    st.booleans(),
)
@settings(max_examples=300)
def test_anything_fed_to_an_engine(packets: list[object], tunnel: bool, congestion: str, runs: bool) -> None:
    now = 1000.0
    config = UtpConfig(tunnel=tunnel, congestion="ledbat" if congestion == "ledbat" else "cubic", receive_window=10_000)
    end = UtpConnection.established(config, now, receive_id=1, send_id=2, seq_nr=65_530, peer_seq_nr=3)
    end.send_data(bytes(20_000), now)
    ends = 0
    for packet in packets:
        now += 0.1
        if isinstance(packet, bytes):
            end.receive_datagrams([packet], now)
        elif isinstance(packet, tuple):
            header, body = serialize_header(Header(*packet[0])), packet[1]
            if runs and body:
                end.receive_run(header, body, len(body), now)
            else:
                end.receive_datagrams([header + body], now)
        end.data_to_read()
        end.handle_timeout(now)
        end.datagrams_to_send(now)
        while (event := end.next_event()) is not None:
            ends += isinstance(event, Ended)
        assert ends <= 1
        assert end.ended == bool(ends)
        assert end.unacknowledged_bytes <= 20_000
        assert end.cwnd > 0
