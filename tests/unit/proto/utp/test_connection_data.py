"""The data of a connection: both ways, loss, acknowledgements, windows."""

from __future__ import annotations

import random
from array import array

import pytest

from crust.errors import LocalProtocolError
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.events import Ended, EndReason
from crust.wire.utp import PacketType, parse_header
from tests.unit.proto.utp.pair import (
    START,
    connected_pair,
    established_pair,
    packet,
    send_all,
    sent_by,
    some_bytes,
)

TUNNEL = UtpConfig(tunnel=True)


def test_both_directions_and_over_the_wrap() -> None:
    pair = established_pair()
    there, back = some_bytes(300_000, 1), some_bytes(200_000, 2)
    pair.a.send_data(there, START)
    pair.b.send_data(back, START)
    pair.run(5)
    assert pair.data["b"] == there
    assert pair.data["a"] == back
    assert pair.a.unacknowledged_bytes == pair.a.unsent_bytes == 0
    assert pair.a.stats.bytes_sent == pair.b.stats.bytes_received == 300_000


def test_bare() -> None:
    pair = connected_pair()
    data = some_bytes(2_000_000)
    send_all(pair, "a", data)
    assert pair.data["b"] == data


def test_buffers_of_every_kind_are_not_copied() -> None:
    pair = established_pair()
    words = array("H", range(1000))
    pieces = [b"one", bytearray(b"two"), memoryview(b"three"), memoryview(words)]
    assert pair.a.send_data(pieces, START) == 3 + 3 + 5 + 2000
    pair.run(1)
    assert pair.data["b"] == b"onetwothree" + words.tobytes()


def test_payloads_are_the_applications_memory() -> None:
    end = UtpConnection.established(TUNNEL, START, receive_id=1, send_id=2)
    data = some_bytes(5000)
    end.send_data(data, START)
    (batch,) = end.datagrams_to_send(START)
    assert [body.obj is data for body in batch.bodies if isinstance(body, memoryview)] == [True] * 5
    assert batch.segment_size == 1200


def test_send_buffer_is_bounded() -> None:
    config = UtpConfig(tunnel=True, send_buffer=100_000, unsent_limit=30_000)
    pair = established_pair(config)
    assert pair.a.send_space == 30_000
    assert pair.a.send_data([bytes(20_000), bytes(20_000), b"never"], START) == 30_000
    assert pair.a.send_data(b"x", START) == 0
    pair.reading["b"] = False
    for _ in range(20):
        pair.a.send_data(bytes(30_000), pair.now)
        pair.lose = lambda letter, datagram: letter == "b"
        pair.run(0.05)
    assert pair.a.unacknowledged_bytes <= 100_000


@pytest.mark.parametrize("seed", range(3))
def test_lossy_wire(seed: int) -> None:
    pair = established_pair()
    chance = random.Random(seed)
    pair.lose = lambda letter, datagram: chance.random() < 0.1
    there, back = some_bytes(400_000, 1), some_bytes(50_000, 2)
    pair.b.send_data(back, START)
    send_all(pair, "a", there, seconds=600)
    assert pair.data["b"] == there
    assert pair.data["a"] == back


def test_last_packet_lost_is_probed_for() -> None:
    """Nothing follows that could show the gap: a probe comes before the time-out (RFC 8985 §7)."""
    pair = established_pair()
    send_all(pair, "a", bytes(50_000))
    count = len(pair.log)
    pair.lose = lambda letter, datagram: letter == "a" and len(pair.log) == count + 1
    pair.a.send_data(b"lost at first", pair.now)
    begun = pair.now
    pair.run(5, until=lambda: pair.data["b"].endswith(b"lost at first"))
    assert pair.now - begun < 0.15
    assert pair.a.stats.loss_probes == 1
    assert pair.a.stats.timeouts == 0


def test_time_out_after_silence_and_recovery() -> None:
    pair = established_pair()
    send_all(pair, "a", bytes(50_000))
    pair.lose = lambda letter, datagram: True
    pair.a.send_data(some_bytes(30_000), pair.now)
    pair.run(3)
    assert pair.a.stats.timeouts >= 2
    pair.lose = lambda letter, datagram: False
    pair.run(10)
    assert pair.data["b"][50_000:] == some_bytes(30_000)


def test_peer_that_vanishes() -> None:
    pair = established_pair()
    pair.lose = lambda letter, datagram: True
    pair.a.send_data(b"x", START)
    pair.run(70)
    assert pair.ended("a") == Ended(EndReason.TIMED_OUT, "nothing acknowledged for 60 s")
    assert pair.a.send_space == 0
    with pytest.raises(LocalProtocolError):
        pair.a.send_data(b"x", pair.now)


def test_idle_peer_ends_when_asked_for() -> None:
    pair = established_pair(UtpConfig(tunnel=True, idle_timeout=5.0))
    pair.a.send_data(b"x", START)
    pair.run(4)
    pair.b.send_data(b"y", pair.now)
    pair.run(4)
    assert pair.ended("a") is None
    pair.run(4)
    assert pair.ended("a") == Ended(EndReason.TIMED_OUT, "nothing heard for 5 s")


def test_nothing_to_wait_for_when_idle() -> None:
    pair = established_pair()
    send_all(pair, "a", bytes(10_000))
    pair.run(5)
    assert pair.a.next_timeout() is None
    assert pair.b.next_timeout() is None


def test_keepalive() -> None:
    """As libutp: a STATE with the ack before the last one."""
    pair = established_pair(UtpConfig(keepalive=10.0), TUNNEL)
    pair.a.send_data(b"x", START)
    pair.run(4)
    count = len(pair.log)
    pair.run(30)
    kept = [header for letter, header, _ in pair.log[count:] if letter == "a"]
    assert [header.type for header in kept] == [PacketType.STATE] * 3
    assert {header.ack_nr for header in kept} == {3}


def test_single_packet_is_acknowledged_late_and_two_at_once() -> None:
    pair = established_pair()
    pair.a.send_data(b"x", START)
    pair.run(0.0101)
    assert [letter for letter, _, _ in pair.log] == ["a"]
    pair.run(0.005)
    assert [letter for letter, _, _ in pair.log] == ["a", "b"]
    pair.a.send_data(bytes(2000), pair.now)
    pair.run(0.0101)
    assert [letter for letter, _, _ in pair.log] == ["a", "b", "a", "a", "b"]


def test_one_ack_for_a_batch() -> None:
    a = UtpConnection.established(TUNNEL, START, receive_id=1, send_id=2)
    b = UtpConnection.established(TUNNEL, START, receive_id=2, send_id=1)
    a.send_data(bytes(11_800), START)
    datagrams = sent_by(a, START)
    assert len(datagrams) == 10
    b.receive_datagrams(datagrams, START)
    (ack,) = sent_by(b, START)
    assert parse_header(ack).ack_nr == 10


def test_receive_run() -> None:
    """As the tunnel hands over: headers and bodies apart, and the data comes out in one piece."""
    a = UtpConnection.established(TUNNEL, START, receive_id=1, send_id=2)
    b = UtpConnection.established(TUNNEL, START, receive_id=2, send_id=1)
    data = some_bytes(30_000)
    a.send_data(data, START)
    got: list[bytes] = []
    now = START
    for _ in range(20):
        now += 0.01
        for batch in a.datagrams_to_send(now):
            b.receive_run(bytes(batch.headers), b"".join(batch.bodies), len(batch.bodies[0]), now)
            got += b.data_to_read()
        for batch in b.datagrams_to_send(now):
            a.receive_run(bytes(batch.headers), b"".join(batch.bodies), len(batch.bodies[0]), now)
        a.handle_timeout(now)
        b.handle_timeout(now)
    assert b"".join(got) == data
    assert max(map(len, got)) > 10_000
    assert b.stats.packets_received == a.stats.packets_sent


def test_run_of_acks_and_data() -> None:
    """Of acknowledgements that follow each other the last is enough; repetitions count."""
    end = established_pair().a
    end.send_data(bytes(1180 * 8), START)
    assert len(sent_by(end, START)) == 8
    acks = [65_499, 65_500, 65_502, 65_502]
    parts = [packet(PacketType.STATE, ack_nr=ack) for ack in acks] + [packet(ack_nr=65_503, body=b"data")]
    end.receive_run(b"".join(part[:20] for part in parts), b"data", 0, START + 0.1)
    assert end.stats.packets_received == 5
    assert end.unacknowledged_bytes == 1180 * 4
    end.receive_datagrams([packet(PacketType.STATE, seq_nr=6, ack_nr=65_504)], START + 0.1)
    end.receive_datagrams(
        [packet(PacketType.STATE, seq_nr=6, ack_nr=ack) for ack in (65_505, 65_506)] + [packet(seq_nr=6, body=b"x")],
        START + 0.1,
    )
    assert end.unacknowledged_bytes == 1180


def test_data_then_an_ack_in_one_batch() -> None:
    end = established_pair().a
    end.send_data(b"x", START)
    sent_by(end, START)
    end.receive_datagrams([packet(body=b"1", ack_nr=65_499)], START)
    batch = [packet(seq_nr=6 + at, body=b"2") for at in range(3)] + [packet(PacketType.STATE, seq_nr=9, ack_nr=65_500)]
    end.receive_datagrams(batch, START + 0.1)
    assert end.data_to_read() == [b"1222"]
    assert end.unacknowledged_bytes == 0


def test_one_packet() -> None:
    end = established_pair().a
    datagram = packet(body=b"lone")
    end.receive_one(datagram[:20], datagram[20:], START)
    assert end.data_to_read() == [b"lone"]


def test_run_with_a_new_ack_and_out_of_order() -> None:
    end = established_pair().a
    end.send_data(bytes(2000), START)
    sent_by(end, START)
    run = [packet(seq_nr=5 + at, ack_nr=65_500) for at in range(3)]
    end.receive_run(b"".join(run), b"112233", 2, START + 0.1)
    assert end.unacknowledged_bytes == 820
    end.receive_run(b"".join([packet(seq_nr=10, ack_nr=65_501), packet(seq_nr=8, ack_nr=65_501)]), b"xxyy", 2, START)
    assert b"".join(end.data_to_read()) == b"112233yy"
    assert end.unacknowledged_bytes == 0


def test_data_past_the_end_in_one_batch() -> None:
    end = established_pair().a
    end.receive_datagrams([packet(body=b"1")], START)
    end.receive_datagrams([packet(PacketType.FIN, seq_nr=7)], START)
    end.receive_datagrams([packet(seq_nr=6 + at, body=b"2") for at in range(3)], START)
    assert end.ended
    assert end.data_to_read() == [b"12"]


@pytest.mark.parametrize(("mtu", "extensions"), [(276, {0, 1}), (1200, {0, 1, 0x43})])
def test_gaps_farther_than_a_selective_ack_reaches(mtu: int, extensions: set[int]) -> None:
    """Far acks tell of them, where they fit into a packet."""
    config = UtpConfig(tunnel=True, mtu=mtu, mtu_ceiling=mtu)
    end = UtpConnection.established(config, START, receive_id=10, send_id=20, seq_nr=65_500, peer_seq_nr=5)
    kinds: set[int] = set()
    for at in range(1, 2500):
        end.receive_datagrams([packet(seq_nr=5 + at, body=b"x")], START)
        for datagram in sent_by(end, START):
            assert len(datagram) <= mtu
            kind, body = datagram[1], datagram[20:]
            while kind:
                kinds.add(kind)
                kind, body = body[0], body[2 + body[1] :]
            kinds.add(kind)
    assert kinds == extensions


def test_window_shuts_and_opens() -> None:
    config = UtpConfig(tunnel=True, receive_window=20_000)
    pair = established_pair(config)
    pair.reading["b"] = False
    data = some_bytes(200_000)
    pair.a.send_data(data, START)
    pair.run(2)
    assert pair.b.stats.bytes_received <= 20_000
    pair.reading["b"] = True
    pair.run(10)
    assert pair.data["b"] == data


def test_window_update_that_is_lost_is_asked_for() -> None:
    pair = established_pair(UtpConfig(tunnel=True, receive_window=20_000))
    pair.reading["b"] = False
    data = some_bytes(60_000)
    pair.a.send_data(data, START)
    pair.run(1)
    pair.lose = lambda letter, datagram: letter == "b"
    pair.reading["b"] = True
    pair.run(0.05)
    pair.lose = lambda letter, datagram: False
    pair.run(10)
    assert pair.data["b"] == data


def test_consumed_more_than_read() -> None:
    with pytest.raises(LocalProtocolError):
        established_pair().a.consumed(1)
