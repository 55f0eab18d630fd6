"""Two engines on a fake clock, with a wire between them that a test can cut, and packets made by hand."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.events import Ended, UtpEvent
from crust.wire.utp import Header, PacketType, parse_header, serialize_header

__all__ = ["Pair", "connected_pair", "established_pair", "packet", "send_all", "sent_by", "some_bytes"]

START = 1000.0


def some_bytes(size: int, seed: int = 1) -> bytes:
    """The same bytes each time."""
    return random.Random(seed).randbytes(size)


class Pair:
    """`a` and `b`, `delay` seconds apart.

    Attributes:
        now: simulated seconds.
        lose: told the sender's letter and a datagram; True loses it.
        log: (letter, header, size of the body) of everything sent.
        data: by letter, what was read.
        events: by letter.
    """

    def __init__(self, a: UtpConnection, b: UtpConnection, delay: float = 0.01) -> None:
        self.ends = {"a": a, "b": b}
        self.now = START
        self.delay = delay
        self.lose: Callable[[str, bytes], bool] = lambda letter, datagram: False
        self.log: list[tuple[str, Header, int]] = []
        self.data = {"a": bytearray(), "b": bytearray()}
        self.events: dict[str, list[UtpEvent]] = {"a": [], "b": []}
        self.reading = {"a": True, "b": True}
        self._wire: list[tuple[float, int, str, bytes]] = []
        self._count = 0

    @property
    def a(self) -> UtpConnection:
        return self.ends["a"]

    @property
    def b(self) -> UtpConnection:
        return self.ends["b"]

    def pump(self, letter: str) -> None:
        """Drain one end."""
        end = self.ends[letter]
        while (event := end.next_event()) is not None:
            self.events[letter].append(event)
        if self.reading[letter]:
            for buffer in end.data_to_read():
                self.data[letter] += buffer
                end.consumed(len(buffer))
        while batches := end.datagrams_to_send(self.now):
            for batch in batches:
                for datagram in batch.datagrams():
                    self.put(letter, datagram)

    def put(self, letter: str, datagram: bytes) -> None:
        """Send a datagram from one end to the other."""
        self.log.append((letter, parse_header(datagram), len(datagram) - 20))
        if self.lose(letter, datagram):
            return
        self._count += 1
        heapq.heappush(self._wire, (self.now + self.delay, self._count, "b" if letter == "a" else "a", datagram))

    def run(self, seconds: float, *, until: Callable[[], object] = lambda: False) -> None:
        """Let time pass."""
        end = self.now + seconds
        for letter in self.ends:
            self.pump(letter)
        while not until():
            deadlines = [(deadline, letter) for letter, one in self.ends.items() if (deadline := one.next_timeout())]
            timer = min(deadlines, default=(float("inf"), ""))
            if self._wire and self._wire[0][0] <= timer[0]:
                if self._wire[0][0] > end:
                    break
                self.now, _, letter, datagram = heapq.heappop(self._wire)
                self.ends[letter].receive_datagrams([memoryview(datagram)], self.now)
            else:
                if timer[0] > end:
                    break
                self.now, letter = max(timer[0], self.now), timer[1]
                self.ends[letter].handle_timeout(self.now)
            self.pump(letter)
        else:
            return
        self.now = end

    def ended(self, letter: str) -> Ended | None:
        """The last event of one end, and that it is the last and the only one."""
        ends = [event for event in self.events[letter] if isinstance(event, Ended)]
        assert len(ends) <= 1
        if ends:
            assert self.events[letter][-1] is ends[0]
        return ends[0] if ends else None


def established_pair(config: UtpConfig | None = None, other: UtpConfig | None = None, delay: float = 0.01) -> Pair:
    """Two ends as inside the tunnel; sequence numbers of `a` wrap soon."""
    config = config or UtpConfig(tunnel=True)
    a = UtpConnection.established(config, START, receive_id=10, send_id=20, seq_nr=65_500, peer_seq_nr=5)
    b = UtpConnection.established(other or config, START, receive_id=20, send_id=10, seq_nr=5, peer_seq_nr=65_500)
    return Pair(a, b, delay)


def connected_pair(config: UtpConfig | None = None, delay: float = 0.01) -> Pair:
    """Two ends that meet by a SYN, not exchanged yet; `b` is made by the first datagram."""
    config = config or UtpConfig()
    a = UtpConnection.connect(config, START, random.Random(1).randbytes)
    (syn,) = a.datagrams_to_send(START)[0].datagrams()
    b = UtpConnection.accept(syn, config, START, random.Random(2).randbytes)
    return Pair(a, b, delay)


def packet(kind: PacketType = PacketType.DATA, body: bytes = b"", **fields: int) -> bytes:
    """A packet to an end of `established_pair` that has received and sent nothing: to `a`, unless told otherwise."""
    values = {
        "extension": 0,
        "connection_id": 10,
        "timestamp": 1,
        "timestamp_difference": 0,
        "wnd_size": 1 << 20,
        "seq_nr": 5,
        "ack_nr": 65_499,
    } | fields
    return serialize_header(Header(kind, **values)) + body


def sent_by(connection: UtpConnection, now: float) -> list[bytes]:
    """All that an end sends at once."""
    found: list[bytes] = []
    while batches := connection.datagrams_to_send(now):
        for batch in batches:
            found += batch.datagrams()
    return found


def send_all(pair: Pair, letter: str, data: bytes, *, seconds: float = 60.0) -> None:
    """Feed the data as there is room, until it has arrived."""
    view, other = memoryview(data), "b" if letter == "a" else "a"
    goal = len(pair.data[other]) + len(data)
    while view:
        view = view[pair.ends[letter].send_data(view, pair.now) :]
        pair.run(seconds, until=lambda: pair.ends[letter].send_space or pair.ended(letter))
    pair.run(seconds, until=lambda: len(pair.data[other]) >= goal)
