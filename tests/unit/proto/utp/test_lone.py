"""The shorter ways of a request and its answer: one packet that leaves at once, and one that comes next."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.wire.utp import Buffer, Extension, PacketType, parse_header
from tests.unit.proto.utp.pair import START, Pair, established_pair, packet, sent_by, some_bytes


def lone(end: UtpConnection, data: bytes, now: float = START) -> bytes | None:
    """A whole packet, sent the short way."""
    header = end.send_lone(memoryview(data), now)
    return None if header is None else header + data


def test_the_same_packet_as_the_long_way() -> None:
    short, long = established_pair().a, established_pair().a
    long.send_data(b"request", START)
    assert [lone(short, b"request")] == sent_by(long, START)
    assert short.unacknowledged_bytes == long.unacknowledged_bytes == 7
    assert short.stats == long.stats
    assert short.next_timeout() == long.next_timeout()
    assert sent_by(short, START) == []


def test_the_acknowledgement_rides_on_the_answer() -> None:
    pair = established_pair()
    request = lone(pair.a, b"request")
    assert request is not None
    pair.b.receive_one(request[:20], request[20:], START + 0.01)
    assert pair.b.read_all() == [b"request"]
    answer = lone(pair.b, b"answer", START + 0.01)
    assert answer is not None
    pair.a.receive_one(answer[:20], answer[20:], START + 0.02)
    assert pair.a.read_all() == [b"answer"]
    assert pair.a.read_all() == []
    assert pair.a.unacknowledged_bytes == 0
    assert pair.a.srtt == pytest.approx(0.02)
    assert sent_by(pair.b, START + 0.01) == []
    assert sent_by(pair.a, START + 0.02) == []
    # The answer waits for its acknowledgement, which waits for company.
    assert pair.a.next_timeout() == pytest.approx(START + 0.025)


def test_what_is_lost_is_sent_again() -> None:
    pair = established_pair()
    assert lone(pair.a, b"one") is not None
    assert lone(pair.a, b"two") is not None
    pair.run(5)
    assert pair.data["b"] == b"onetwo"
    assert pair.a.unacknowledged_bytes == 0
    assert pair.a.next_timeout() is None


def test_not_past_what_waits() -> None:
    end = established_pair().a
    end.send_data(b"first", START)
    assert lone(end, b"second") is None
    assert [datagram[20:] for datagram in sent_by(end, START)] == [b"first"]
    assert lone(end, b"second") is not None


def test_not_more_than_a_packet() -> None:
    end = established_pair(UtpConfig(tunnel=True, mtu=1000, mtu_ceiling=1400)).a
    assert lone(end, bytes(981)) is None
    assert end.unacknowledged_bytes == 0
    assert lone(end, bytes(980)) is not None


def test_not_through_the_windows() -> None:
    end = established_pair().a
    while lone(end, bytes(1000)) is not None:
        assert end.unacknowledged_bytes <= end.cwnd
    assert end.unacknowledged_bytes == 11_000  # ten packets of 1180
    end = established_pair().a
    end.receive_datagrams([packet(PacketType.STATE, wnd_size=10)], START)
    assert lone(end, bytes(11)) is None
    assert lone(end, bytes(10)) is not None


def test_not_while_packets_are_lost() -> None:
    end = established_pair().a
    for _ in range(6):
        lone(end, b"x")
    end.receive_datagrams([packet(PacketType.STATE, ack_nr=65_499, extension=1) + b"\0\4\x0f\0\0\0"], START + 0.1)
    assert lone(end, b"y") is None


def test_gaps_are_told_before() -> None:
    end = established_pair().a
    end.receive_one(*_split(packet(seq_nr=6, body=b"later")), START)
    assert lone(end, b"y") is None
    (sack,) = sent_by(end, START)
    assert parse_header(sack).extension == Extension.SELECTIVE_ACK


def test_not_after_the_end() -> None:
    end = established_pair().a
    end.close()
    assert lone(end, b"x") is None
    assert (
        UtpConnection.connect(UtpConfig(), START, random.Random(1).randbytes).send_lone(memoryview(b"x"), 1.0) is None
    )


def test_half_of_the_send_buffer_is_for_who_asks() -> None:
    end = established_pair(UtpConfig(tunnel=True, send_buffer=10_000)).a
    for _ in range(5):
        assert lone(end, bytes(1000)) is not None
    assert lone(end, bytes(1000)) is None
    assert end.send_space == 5000


@pytest.mark.parametrize("seed", range(8))
def test_any_mixture_arrives(seed: int) -> None:
    chance = random.Random(seed)
    pair = established_pair(UtpConfig(tunnel=True, mtu=600, mtu_ceiling=1400))
    pair.lose = lambda letter, datagram: chance.random() < 0.1
    sent = {"a": b"", "b": b""}
    for _ in range(300):
        letter = chance.choice("ab")
        data = some_bytes(chance.choice((1, 64, 500, 3000)), chance.randrange(1000))
        sent[letter] += _send(pair, letter, data)
        if chance.random() < 0.3:
            pair.run(chance.choice((0.0, 0.001, 0.05)))
    pair.run(60)
    assert pair.data == {"a": sent["b"], "b": sent["a"]}


def _send(pair: Pair, letter: str, data: bytes) -> bytes:
    """Send the short way if it can be, else the long one; returns what was accepted."""
    datagram = lone(pair.ends[letter], data, pair.now)
    if datagram is not None:
        pair.put(letter, datagram)
        return data
    return data[: pair.ends[letter].send_data(data, pair.now)]


def _split(datagram: bytes) -> tuple[bytes, bytes]:
    return datagram[:20], datagram[20:]


class _OneByOne(UtpConnection):
    """Takes packets in as the tunnel hands over lone ones."""

    __slots__ = ()

    def receive_datagrams(self, batch: Iterable[Buffer], now: float) -> None:
        for datagram in batch:
            self.receive_one(datagram[:20], datagram[20:], now)


@pytest.mark.parametrize("seed", range(20))
def test_packets_taken_in_one_by_one_do_the_same(seed: int) -> None:
    """The same conversation twice, to the last packet."""
    logs = []
    for kind in (UtpConnection, _OneByOne):
        chance = random.Random(seed)
        config = UtpConfig(tunnel=True, mtu=600, mtu_ceiling=1400)
        pair = Pair(
            kind.established(config, START, receive_id=10, send_id=20, seq_nr=65_500, peer_seq_nr=5),
            kind.established(config, START, receive_id=20, send_id=10, seq_nr=5, peer_seq_nr=65_500),
        )
        pair.lose = lambda letter, datagram, chance=chance: chance.random() < 0.05  # type: ignore[misc]
        for _ in range(80):
            pair.ends[chance.choice("ab")].send_data(some_bytes(chance.choice((1, 64, 3000))), pair.now)
            pair.run(chance.choice((0.0, 0.005, 0.05)))
        pair.run(60)
        logs.append((pair.log, pair.data, pair.now, pair.a.stats, pair.b.stats, pair.a.cwnd, pair.b.srtt))
    assert logs[0] == logs[1]
