"""A connection: beginning, data both ways, loss, end."""

from __future__ import annotations

import random
from array import array

import pytest

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.events import Connected, DropReason, Ended, EndReason, PeerFinished
from crust.proto.utp.state import State
from crust.wire.utp import PacketType, parse_header
from tests.unit.proto.utp.pair import START, Pair, connected_pair, established_pair, packet, sent_by, some_bytes

TUNNEL = UtpConfig(tunnel=True)


def send_all(pair: Pair, letter: str, data: bytes, *, seconds: float = 60.0) -> None:
    """Feed the data as there is room, until it has arrived."""
    view, other = memoryview(data), "b" if letter == "a" else "a"
    goal = len(pair.data[other]) + len(data)
    while view:
        view = view[pair.ends[letter].send_data(view, pair.now) :]
        pair.run(seconds, until=lambda: pair.ends[letter].send_space or pair.ended(letter))
    pair.run(seconds, until=lambda: len(pair.data[other]) >= goal)


# -- beginning -----------------------------------------------------------------------------------------------------


def test_established_at_once() -> None:
    pair = established_pair()
    assert pair.a.next_event() == Connected()
    assert pair.a.state is State.ESTABLISHED
    pair.a.send_data(b"hello", START)
    pair.run(1)
    assert pair.data["b"] == b"hello"
    assert pair.log[0][1].type is PacketType.DATA


def test_syn_as_in_bep_29() -> None:
    """The SYN carries the id to receive with; what follows carries one more; the answer the next seq_nr."""
    pair = connected_pair()
    pair.run(1)
    (_, answer, _), (_, confirmation, _) = pair.log
    assert answer.type is PacketType.STATE
    assert answer.connection_id == pair.a.receive_id
    assert pair.b.receive_id == pair.a.receive_id + 1
    assert confirmation.connection_id == pair.b.receive_id
    assert confirmation.ack_nr == (answer.seq_nr - 1) & 0xFFFF
    assert pair.events == {"a": [Connected()], "b": [Connected()]}
    assert pair.a.srtt == pytest.approx(0.01)  # the SYN went over when `b` was made


def test_data_waits_for_the_answer_and_for_its_confirmation() -> None:
    pair = connected_pair()
    pair.a.send_data(b"from a", START)
    pair.b.send_data(b"from b", START)
    pair.run(1)
    assert pair.data == {"a": b"from b", "b": b"from a"}
    assert pair.log[0][1].type is PacketType.STATE


def test_syn_is_repeated_and_given_up() -> None:
    a = UtpConnection.connect(UtpConfig(), START, random.Random(1).randbytes)
    now, syns = START, 0
    while not a.ended:
        for datagram in sent_by(a, now):
            syns += parse_header(datagram).type is PacketType.SYN
        now = a.next_timeout() or 0
        a.handle_timeout(now)
    assert syns == 6
    assert a.next_event() == Ended(EndReason.TIMED_OUT, "no answer to the SYN")
    assert sent_by(a, now) == []
    assert a.next_timeout() is None


def test_lost_answer_is_sent_again() -> None:
    pair = connected_pair()
    lost = []
    pair.lose = lambda letter, datagram: letter == "b" and not lost and not lost.append(datagram)
    pair.run(5)
    assert [header.type for _, header, _ in pair.log[:3]] == [PacketType.STATE, PacketType.SYN, PacketType.STATE]
    assert pair.a.state is pair.b.state is State.ESTABLISHED


def test_late_copy_of_a_syn_is_acknowledged() -> None:
    pair = connected_pair()
    pair.run(1)
    syn = packet(
        PacketType.SYN,
        connection_id=pair.a.receive_id,
        seq_nr=(
            parse_header(sent_by(UtpConnection.connect(UtpConfig(), START, random.Random(1).randbytes), START)[0])
        ).seq_nr,
    )
    pair.b.receive_datagrams([syn], pair.now)
    (answer,) = sent_by(pair.b, pair.now)
    assert parse_header(answer).type is PacketType.STATE
    pair.b.receive_datagrams([packet(PacketType.SYN, connection_id=1)], pair.now)
    assert pair.b.stats.dropped == {DropReason.UNEXPECTED: 1}


def test_refused() -> None:
    a = UtpConnection.connect(UtpConfig(), START, random.Random(1).randbytes)
    syn = parse_header(sent_by(a, START)[0])
    wrong = packet(PacketType.RESET, connection_id=a.receive_id, ack_nr=syn.seq_nr + 1)
    a.receive_datagrams([wrong], START)
    assert not a.ended
    a.receive_datagrams([packet(PacketType.RESET, connection_id=a.receive_id, ack_nr=syn.seq_nr)], START)
    assert a.next_event() == Ended(EndReason.REFUSED, "the peer refused the connection")
    assert sent_by(a, START) == []


def test_data_before_the_answer_is_left_for_later() -> None:
    """libtorrent may send data right after its answer: where the stream begins only the answer tells."""
    a = UtpConnection.connect(UtpConfig(), START, random.Random(1).randbytes)
    syn = parse_header(sent_by(a, START)[0])
    a.receive_datagrams(
        [
            packet(body=b"early", connection_id=a.receive_id, seq_nr=7, ack_nr=syn.seq_nr),
            packet(PacketType.STATE, connection_id=a.receive_id, seq_nr=7, ack_nr=syn.seq_nr + 1),
        ],
        START,
    )
    assert a.state is State.SYN_SENT
    a.receive_datagrams([packet(PacketType.STATE, connection_id=a.receive_id, seq_nr=7, ack_nr=syn.seq_nr)], START)
    a.receive_datagrams([packet(body=b"early", connection_id=a.receive_id, seq_nr=7, ack_nr=syn.seq_nr)], START)
    assert a.data_to_read() == [b"early"]
    assert a.stats.dropped == {DropReason.UNEXPECTED: 2}


def test_unconfirmed_acceptor_sends_nothing_and_ends() -> None:
    pair = connected_pair()
    pair.lose = lambda letter, datagram: True
    pair.b.send_data(bytes(5000), START)
    pair.run(61, until=lambda: pair.ended("b"))
    assert all(not size for _, _, size in pair.log)
    assert pair.ended("b") == Ended(EndReason.TIMED_OUT, "nothing acknowledged for 60 s")


def test_wrong_confirmation() -> None:
    pair = connected_pair()
    (answer,) = sent_by(pair.b, START)
    header = parse_header(answer)
    forged = packet(connection_id=pair.b.receive_id, seq_nr=header.ack_nr + 1, ack_nr=header.seq_nr - 2, body=b"x")
    pair.b.receive_datagrams([forged], START)
    assert pair.b.state is State.SYN_RECEIVED
    assert pair.b.stats.dropped == {DropReason.UNEXPECTED: 1}
    assert pair.b.data_to_read() == []


@pytest.mark.parametrize(
    "first", [packet(PacketType.DATA), packet(PacketType.STATE), b"", packet(PacketType.SYN, extension=1)]
)
def test_accept_takes_a_syn_only(first: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        UtpConnection.accept(first, UtpConfig(), START, random.Random(1).randbytes)


def test_accept_skips_extensions() -> None:
    """libutp's SYN has extension bits."""
    syn = packet(PacketType.SYN, extension=2, body=b"\0\x08" + bytes(8), seq_nr=77)
    b = UtpConnection.accept(syn, UtpConfig(), START, random.Random(1).randbytes)
    assert parse_header(sent_by(b, START)[0]).ack_nr == 77


def test_known_round_trip() -> None:
    end = UtpConnection.established(TUNNEL, START, receive_id=1, send_id=2, rtt=0.25)
    assert end.srtt == 0.25


# -- data ----------------------------------------------------------------------------------------------------------


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


# -- end -----------------------------------------------------------------------------------------------------------


def test_close_delivers_and_both_know() -> None:
    pair = established_pair()
    data = some_bytes(100_000)
    pair.a.send_data(data, START)
    pair.a.close()
    pair.run(1)
    assert pair.data["b"] == data
    assert pair.events["b"] == [Connected(), PeerFinished()]
    assert pair.a.state is State.HALF_CLOSED
    pair.b.send_data(b"still open", pair.now)
    pair.b.close()
    pair.run(5)
    assert pair.data["a"] == b"still open"
    assert pair.ended("a") == pair.ended("b") == Ended(EndReason.CLOSED, "closed in order")
    assert pair.a.state is pair.b.state is State.CLOSED
    pair.a.close()
    pair.a.abort()
    assert pair.a.next_event() is None


def test_both_close_at_once() -> None:
    pair = established_pair()
    pair.a.close()
    pair.b.close()
    pair.run(5)
    assert pair.ended("a") == pair.ended("b") == Ended(EndReason.CLOSED, "closed in order")


def test_close_before_the_connection_is_up() -> None:
    pair = connected_pair()
    pair.a.send_data(b"last words", START)
    pair.a.close()
    pair.b.close()
    with pytest.raises(LocalProtocolError):
        pair.a.send_data(b"more", START)
    pair.run(5)
    assert pair.data["b"] == b"last words"
    assert pair.ended("a") == pair.ended("b") == Ended(EndReason.CLOSED, "closed in order")


@pytest.mark.parametrize("letter", "ab")
def test_lost_fin_and_lost_ack_of_it(letter: str) -> None:
    pair = established_pair()
    chance = random.Random(4)
    pair.lose = lambda who, datagram: who == letter and chance.random() < 0.6
    pair.a.close()
    pair.run(2)
    pair.b.close()
    pair.run(30)
    assert pair.ended("a") == pair.ended("b") == Ended(EndReason.CLOSED, "closed in order")


def test_peer_that_does_not_follow() -> None:
    pair = established_pair()
    pair.a.close()
    pair.run(9)
    assert pair.ended("a") is None
    pair.b.send_data(b"wait", pair.now)  # still talking: wait on
    pair.run(9)
    assert pair.ended("a") is None
    pair.run(3)
    assert pair.ended("a") == Ended(EndReason.CLOSED, "closed in order")


def test_peer_that_forgets_before_our_fin() -> None:
    """libtorrent and libutp are gone once they have sent all and have got all."""
    pair = established_pair()
    pair.b.close()
    pair.run(0.5)
    pair.lose = lambda letter, datagram: True
    pair.a.close()
    pair.run(10)
    assert pair.ended("a") == Ended(EndReason.CLOSED, "closed in order")


def test_last_data_is_not_given_up_so_lightly() -> None:
    pair = established_pair(UtpConfig(tunnel=True, close_timeout=40.0))
    pair.b.close()
    pair.run(0.5)
    pair.lose = lambda letter, datagram: True
    pair.a.send_data(b"important", pair.now)
    pair.a.close()
    pair.run(20)
    assert pair.ended("a") is None
    pair.lose = lambda letter, datagram: False
    pair.run(60)
    assert pair.data["b"] == b"important"


@pytest.mark.parametrize("state", [State.ESTABLISHED, State.LAST_ACK, State.PEER_CLOSED])
def test_reset_by_the_peer(state: State) -> None:
    pair = established_pair()
    if state is not State.ESTABLISHED:
        pair.b.close()
        pair.run(0.1)
    if state is State.LAST_ACK:
        pair.lose = lambda letter, datagram: True
        pair.a.close()
        pair.run(0)
    assert pair.a.state is state
    ack = 65_499 + (state is State.LAST_ACK)
    pair.a.receive_datagrams([packet(PacketType.RESET, ack_nr=ack)], pair.now)
    pair.pump("a")
    reason = EndReason.CLOSED if state is State.LAST_ACK else EndReason.RESET
    ended = pair.ended("a")
    assert ended is not None
    assert ended.reason is reason


def test_forged_reset_is_dropped() -> None:
    bare = UtpConnection.established(UtpConfig(), START, receive_id=10, send_id=20, seq_nr=65_500, peer_seq_nr=5)
    bare.receive_datagrams([packet(PacketType.RESET, ack_nr=1000)], START)
    assert not bare.ended
    assert bare.stats.dropped == {DropReason.IMPOSSIBLE_ACK: 1}


def test_abort_tells_the_peer() -> None:
    pair = established_pair()
    pair.a.send_data(bytes(100_000), START)
    pair.run(0.005)
    pair.a.abort("no more")
    pair.run(1)
    assert pair.ended("a") == Ended(EndReason.ABORTED, "no more")
    ended = pair.ended("b")
    assert ended is not None
    assert ended.reason is EndReason.RESET
    assert pair.a.unacknowledged_bytes == 0
    pair.a.path_changed(pair.now)
    pair.a.datagram_too_big(1200, pair.now)
    assert sent_by(pair.a, pair.now) == []


def test_abort_before_an_answer_is_silent() -> None:
    a = UtpConnection.connect(UtpConfig(), START, random.Random(1).randbytes)
    a.abort()
    assert sent_by(a, START) == []
    assert a.next_event() == Ended(EndReason.ABORTED, "aborted")


def test_what_arrived_can_be_read_after_the_end() -> None:
    pair = established_pair()
    pair.reading["b"] = False
    pair.a.send_data(b"x" * 1000, START)
    pair.run(0.1)
    pair.a.abort()
    pair.run(0.1)
    assert pair.b.ended
    assert b"".join(pair.b.data_to_read()) == b"x" * 1000
