"""A connection: beginning and end."""

from __future__ import annotations

import random

import pytest

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.events import Connected, DropReason, Ended, EndReason, PeerFinished
from crust.proto.utp.state import State
from crust.wire.utp import PacketType, parse_header
from tests.unit.proto.utp.pair import (
    START,
    connected_pair,
    established_pair,
    packet,
    sent_by,
    some_bytes,
)

TUNNEL = UtpConfig(tunnel=True)


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
