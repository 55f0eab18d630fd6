"""An authenticated but hostile peer: its connection ends, with one event, and nothing grows.

Bare, anybody could have sent such a packet, as µTP has no authentication: there it is dropped and counted.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.constants import MAX_PARTS
from crust.proto.utp.events import Connected, DropReason, Ended, EndReason
from crust.wire.utp import Extension, Header, PacketType, parse_header, serialize_header, serialize_selective_ack
from tests.unit.proto.utp.pair import START, packet, sent_by

TUNNEL = UtpConfig(tunnel=True)
BARE = UtpConfig()


def victim(config: UtpConfig = TUNNEL, sending: int = 0) -> UtpConnection:
    """An end that has sent `sending` bytes."""
    end = UtpConnection.established(config, START, receive_id=10, send_id=20, seq_nr=65_500, peer_seq_nr=5)
    assert end.next_event() == Connected()
    if sending:
        end.send_data(bytes(sending), START)
        sent_by(end, START)
    return end


def extensions(*kinds: int) -> bytes:
    """Empty extensions."""
    return b"".join(bytes((kind, 0)) for kind in (*kinds[1:], 0))


VIOLATIONS: dict[str, tuple[bytes, DropReason]] = {
    "ack of the next packet": (packet(PacketType.STATE, ack_nr=65_500), DropReason.IMPOSSIBLE_ACK),
    "ack far ahead": (packet(PacketType.STATE, ack_nr=65_499 + 0x7FFF), DropReason.IMPOSSIBLE_ACK),
    "selective ack of what was never sent": (
        packet(PacketType.STATE, serialize_selective_ack(1), extension=Extension.SELECTIVE_ACK),
        DropReason.IMPOSSIBLE_ACK,
    ),
    "unknown type": (b"\x51" + packet()[1:], DropReason.MALFORMED),
    "unknown version": (b"\x02" + packet()[1:], DropReason.MALFORMED),
    "a SYN": (packet(PacketType.SYN), DropReason.UNEXPECTED),
    "chain of extensions": (packet(body=extensions(*range(100, 200)), extension=100), DropReason.MALFORMED),
    "extension past the end": (packet(body=b"\0\xff", extension=1), DropReason.MALFORMED),
    "two selective acks": (packet(body=extensions(1, 1), extension=1), DropReason.MALFORMED),
    "part past its end": (packet(body=b"\0\x04\0\x05\0\x06xxx", extension=Extension.PART), DropReason.BAD_PART),
    "empty part": (packet(body=b"\0\x04\0\x05\0\x06", extension=Extension.PART), DropReason.BAD_PART),
    "RESET from elsewhere": (packet(PacketType.RESET, ack_nr=100), DropReason.IMPOSSIBLE_ACK),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_ends_the_connection(name: str) -> None:
    datagram, reason = VIOLATIONS[name]
    end = victim()
    end.receive_datagrams([datagram, datagram], START + 1)
    ended = end.next_event()
    assert isinstance(ended, Ended)
    assert ended.reason is EndReason.VIOLATION
    assert reason.value in ended.detail
    assert end.next_event() is None
    assert end.stats.dropped[reason] >= 1
    (reset,) = sent_by(end, START + 1)
    assert parse_header(reset).type is PacketType.RESET
    assert end.next_timeout() is None


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_is_dropped_where_it_may_be_forged(name: str) -> None:
    datagram, reason = VIOLATIONS[name]
    end = victim(BARE)
    end.receive_datagrams([datagram], START + 1)
    assert end.stats.dropped == {reason: 1}
    end.receive_datagrams([packet(body=b"still here")], START + 1)
    assert end.data_to_read() == [b"still here"]


@pytest.mark.parametrize("size", range(20))
def test_short_datagrams_are_dropped(size: int) -> None:
    end = victim()
    end.receive_datagrams([packet()[:size]], START)
    assert end.stats.dropped == {DropReason.MALFORMED: 1}
    assert not end.ended


def test_other_connections_packets_are_dropped() -> None:
    end = victim()
    end.receive_datagrams([packet(connection_id=11, body=b"x")], START)
    assert end.stats.dropped == {DropReason.FOREIGN: 1}


def test_optimistic_acks_end_it() -> None:
    """A peer that acknowledges faster than it can receive runs past what was sent sooner or later."""
    end, now, ack = victim(sending=100_000), START, 65_499
    while not end.ended:
        now += 0.001
        ack += 5
        end.receive_datagrams([packet(PacketType.STATE, ack_nr=ack & 0xFFFF)], now)
        end.handle_timeout(now)
        sent_by(end, now)
    event = end.next_event()
    assert isinstance(event, Ended)
    assert event.reason is EndReason.VIOLATION


def test_optimistic_acks_gain_no_endless_window() -> None:
    """Acknowledging at once what was just sent makes the window grow, but not without end."""
    end, now = victim(), START
    block = bytes(1 << 20)
    while now < START + 0.5:
        now += 0.001
        end.send_data(block, now)
        end.handle_timeout(now)
        sent = sent_by(end, now)
        if sent:
            ack = parse_header(sent[-1]).seq_nr
            end.receive_datagrams([packet(PacketType.STATE, ack_nr=ack, wnd_size=1 << 30)], now)
    assert end.cwnd <= 64 << 20
    assert end.unacknowledged_bytes <= TUNNEL.send_buffer


def test_window_shut_for_good() -> None:
    end, now = victim(sending=100_000), START
    while not end.ended and now < START + 1000:
        end.receive_datagrams([packet(PacketType.STATE, ack_nr=65_509, wnd_size=0)], now)
        now = end.next_timeout() or now
        end.handle_timeout(now)
        sent_by(end, now)
    ended = end.next_event()
    assert ended == Ended(EndReason.STALLED, "the peer's window has been shut for 60 s")
    assert now < START + 70
    assert end.stats.packets_sent < 150  # asks now and then, and less and less often


@pytest.mark.parametrize("window", [1, 100, 1179])
def test_silly_window(window: int) -> None:
    """A window of a few bytes is used byte by byte, seldom, and never makes packets without end."""
    end, now = victim(sending=20_000), START
    ack = 65_509
    while now < START + 50 and not end.ended:
        end.receive_datagrams([packet(PacketType.STATE, ack_nr=ack & 0xFFFF, wnd_size=window)], now)
        now = end.next_timeout() or now + 1
        end.handle_timeout(now)
        for datagram in sent_by(end, now):
            ack = parse_header(datagram).seq_nr
    assert end.stats.packets_sent < 500


@pytest.mark.parametrize("difference", [1, 0x7FFFFFFE, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("congestion", ["cubic", "ledbat"])
def test_absurd_timestamps_end_it(difference: int, congestion: str) -> None:
    config = UtpConfig(tunnel=True, congestion="ledbat" if congestion == "ledbat" else "cubic")
    end, now = victim(config, 100_000), START
    for _ in range(1000):
        now += 0.01
        timestamp = int(now * 1e6) + difference + (1 << 31) & 0xFFFFFFFF  # a round trip of half of all time
        end.receive_datagrams([packet(PacketType.STATE, timestamp=timestamp, timestamp_difference=difference)], now)
        sent_by(end, now)
        if end.ended:
            break
    assert end.next_event() == Ended(EndReason.VIOLATION, "timestamps that cannot be")
    assert end.stats.absurd_timestamps == 256


def test_some_absurd_timestamps_are_forgiven() -> None:
    """A clock that was stopped makes some, and bare they may be another's."""
    for config, times in ((TUNNEL, 255), (BARE, 1000)):
        end = victim(config)
        for _ in range(times):
            end.receive_datagrams([packet(PacketType.STATE, timestamp=1 << 31, timestamp_difference=5)], START)
        assert not end.ended
        sane = int(START * 1e6) & 0xFFFFFFFF
        end.receive_datagrams([packet(PacketType.STATE, timestamp=sane, timestamp_difference=5)], START)
        end.receive_datagrams([packet(PacketType.STATE, timestamp=1 << 31, timestamp_difference=5)], START)
        assert not end.ended


@pytest.mark.parametrize("difference", [0, 0x7FFFFFFF])
def test_no_sample_yet(difference: int) -> None:
    end = victim()
    for _ in range(500):
        end.receive_datagrams([packet(PacketType.STATE, timestamp=77, timestamp_difference=difference)], START)
    assert end.stats.absurd_timestamps == 0


def grown(feed: Callable[[UtpConnection, int], None], times: int) -> int:
    """Bytes that an end holds more after being fed."""
    end = victim(UtpConfig(tunnel=True, receive_window=256 << 10))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for at in range(times):
            feed(end, at)
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_a_byte_a_packet_in_order_does_not_grow() -> None:
    """Each comes in a buffer of its own of 60 kB, of which only a byte counts."""

    def feed(end: UtpConnection, at: int) -> None:
        datagram = memoryview(packet(seq_nr=5 + at & 0xFFFF, body=b"x") + bytes(60_000))[:21]
        end.receive_datagrams([datagram], START)

    assert grown(feed, 10_000) < 200_000


def test_a_byte_a_packet_ahead_of_a_gap_does_not_grow() -> None:
    def feed(end: UtpConnection, at: int) -> None:
        datagram = memoryview(packet(seq_nr=6 + at & 0xFFFF, body=b"x") + bytes(60_000))[:21]
        end.receive_datagrams([datagram], START)

    assert grown(feed, 20_000) < 4 << 20


def test_parts_that_never_become_whole_do_not_grow() -> None:
    def feed(end: UtpConnection, at: int) -> None:
        body = b"\0\x04\0\0\xff\xffx"
        end.receive_datagrams([packet(seq_nr=6 + at & 0xFFFF, extension=Extension.PART, body=body)], START)

    assert grown(feed, 2000) < 1 << 20


def test_a_packet_in_ever_smaller_parts_ends_it() -> None:
    """Each part is compared with all others, so a part for each byte would cost more and more."""
    end = victim()
    for at in range(MAX_PARTS + 1):
        body = b"\0\x04" + (2 * at).to_bytes(2, "big") + b"\xff\xffx"
        assert not end.ended
        end.receive_datagrams([packet(seq_nr=6, extension=Extension.PART, body=body)], START)
    event = end.next_event()
    assert isinstance(event, Ended)
    assert DropReason.BAD_PART.value in event.detail


def test_more_than_the_window_is_dropped() -> None:
    end = victim(UtpConfig(tunnel=True, receive_window=10_000))
    end.receive_datagrams([packet(seq_nr=5 + at, body=bytes(1000)) for at in range(20)], START)
    assert sum(map(len, end.data_to_read())) == 10_000
    assert end.stats.dropped == {DropReason.OUT_OF_WINDOW: 10}
    assert not end.ended


def test_data_after_the_end_of_the_stream() -> None:
    end = victim()
    end.receive_datagrams([packet(PacketType.FIN, seq_nr=7)], START)
    end.receive_datagrams([packet(seq_nr=8, body=b"x")], START)
    event = end.next_event()
    assert isinstance(event, Ended)
    assert DropReason.AFTER_END.value in event.detail


def test_fin_before_data_that_has_arrived() -> None:
    end = victim()
    end.receive_datagrams([packet(seq_nr=9, body=b"x"), packet(PacketType.FIN, seq_nr=7)], START)
    assert isinstance(end.next_event(), Ended)


@pytest.mark.parametrize("config", [TUNNEL, BARE], ids=["tunnel", "bare"])
def test_random_packets(config: UtpConfig) -> None:
    """Whatever comes, nothing is raised, and a connection that has ended stays so."""
    chance = random.Random(3)
    for _ in range(300):
        end = victim(config, sending=30_000)
        events = 0
        for at in range(30):
            header = serialize_header(
                Header(
                    PacketType(chance.choice([0, 0, 0, 1, 2, 2, 3, 4])),
                    chance.choice([0, 0, 0, 1, 0x43, 0x44, 99]),
                    10,
                    chance.getrandbits(32),
                    chance.getrandbits(32),
                    chance.choice([0, 1, 1000, 1 << 32]),
                    chance.choice([5 + at, chance.getrandbits(16)]),
                    chance.choice([65_499, 65_505, chance.getrandbits(16)]),
                )
            )
            end.receive_datagrams([header + chance.randbytes(chance.choice([0, 1, 6, 40]))], START + at)
            end.data_to_read()
            sent_by(end, START + at)
            end.handle_timeout(START + at)
            while end.next_event() is not None:
                events += 1
            assert events <= 2
