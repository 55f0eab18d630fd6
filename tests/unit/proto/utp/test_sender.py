"""What is sent, when, and how large: windows, losses, packet sizes and paths."""

from __future__ import annotations

import pytest

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.wire.utp import Extension, PacketType, parse_header, serialize_selective_ack
from tests.unit.proto.utp.pair import START, Pair, established_pair, packet, sent_by, some_bytes

SEARCHING = UtpConfig(tunnel=True, mtu=1200, mtu_ceiling=1452)


def deliver(pair: Pair, data: bytes, seconds: float = 60.0) -> None:
    """Send from `a` to `b` and wait for it."""
    before = len(pair.data["b"])
    view = memoryview(data)
    while view:
        view = view[pair.a.send_data(view, pair.now) :]
        pair.run(seconds, until=lambda: pair.a.send_space)
    pair.run(seconds, until=lambda: len(pair.data["b"]) >= before + len(data))
    assert bytes(pair.data["b"][before:]) == data


def path_takes(pair: Pair, size: int) -> None:
    """Larger packets of `a` vanish."""
    pair.lose = lambda letter, datagram: letter == "a" and len(datagram) > size


def acked(end: UtpConnection, ack_nr: int, now: float, sack: int = 0, **fields: int) -> list[bytes]:
    """Acknowledge by hand; returns what is sent in answer."""
    if sack:
        body, extension = serialize_selective_ack(sack), Extension.SELECTIVE_ACK
    else:
        body, extension = b"", Extension.NONE
    end.receive_datagrams([packet(PacketType.STATE, body, extension=extension, ack_nr=ack_nr & 0xFFFF, **fields)], now)
    return sent_by(end, now)


def flying(size: int = 20_000, config: UtpConfig | None = None) -> UtpConnection:
    """An end whose first packets, from 65500 on, are under way since `START`."""
    config = config or UtpConfig(tunnel=True, mtu=1200, mtu_ceiling=1200)
    end = UtpConnection.established(config, START, receive_id=10, send_id=20, seq_nr=65_500, peer_seq_nr=5)
    end.send_data(bytes(size), START)
    assert len(sent_by(end, START)) == 10
    return end


def numbers(datagrams: list[bytes]) -> list[int]:
    return [parse_header(datagram).seq_nr for datagram in datagrams]


# -- losses --------------------------------------------------------------------------------------------------------


def test_initial_window_is_ten_packets() -> None:
    flying()


def test_three_later_arrivals_show_a_loss() -> None:
    end = flying(11_800)
    assert acked(end, 65_499, START + 0.1, 0b11) == []
    before = end.cwnd
    assert numbers(acked(end, 65_499, START + 0.101, 0b111)) == [65_500]
    assert end.cwnd == pytest.approx(before * 0.7, abs=2)
    assert end.stats.congestion_events == 1


def test_fewer_arrivals_show_it_a_quarter_of_a_round_trip_later() -> None:
    end = flying(11_800)
    acked(end, 65_499, START + 0.1, 0b1)
    deadline = end.next_timeout()
    assert deadline == pytest.approx(START + 0.125)
    end.handle_timeout(deadline or 0)
    assert numbers(sent_by(end, deadline or 0)) == [65_500]


def test_three_duplicates_from_a_peer_without_selective_acks() -> None:
    end = flying(11_800)
    acked(end, 65_500, START + 0.1)
    for at in range(2):
        assert acked(end, 65_500, START + 0.11 + at / 1000) == []
    assert numbers(acked(end, 65_500, START + 0.12)) == [65_501]
    assert acked(end, 65_500, START + 0.13) == []


@pytest.mark.parametrize("fields", [{"wnd_size": 1 << 19}, {"seq_nr": 5}])
def test_what_is_no_duplicate(fields: dict[str, int]) -> None:
    """A change of the window, and data, repeat the acknowledgement without meaning a gap."""
    end = flying(11_800)
    acked(end, 65_500, START + 0.1)
    for at in range(5):
        kind = PacketType.DATA if "seq_nr" in fields else PacketType.STATE
        changed = {name: value + at for name, value in fields.items()}
        end.receive_datagrams([packet(kind, b"x", ack_nr=65_500, **changed)], START + 0.11 + at / 100)
        assert 65_501 not in numbers(sent_by(end, START + 0.11 + at / 100))


def test_one_reduction_for_the_losses_of_a_round_trip() -> None:
    end = flying(11_800)
    acked(end, 65_499, START + 0.1, 0b111)
    assert set(numbers(acked(end, 65_499, START + 0.101, 0b1010_0111))) <= {65_504, 65_505, 65_507}
    assert end.stats.packets_lost == 4
    assert end.stats.congestion_events == 1


def test_reduction_is_taken_back_when_nothing_was_lost() -> None:
    end = flying(11_800)
    before = end.cwnd
    acked(end, 65_499, START + 0.1, 0b111)
    assert end.cwnd < before
    acked(end, 65_503, START + 0.102)  # the first copy, 2 ms after the second was sent
    assert end.cwnd >= before
    assert end.stats.spurious == 1


def test_patience_grows_with_reordering() -> None:
    """Once a packet has overtaken others, three later arrivals are no sign of a loss any more (RFC 8985 §6.2)."""
    end = flying(11_800)
    acked(end, 65_499, START + 0.1, 0b111)
    acked(end, 65_503, START + 0.102)
    assert acked(end, 65_503, START + 0.103, 0b1111) == []


def test_time_out_begins_again_with_one_packet() -> None:
    end = flying(11_800)
    acked(end, 65_501, START + 0.1)
    now = START
    while not end.stats.timeouts:
        now = end.next_timeout() or 0
        end.handle_timeout(now)
        sent = sent_by(end, now)
    assert numbers(sent) == [65_502]
    assert end.cwnd == 1180
    again = end.next_timeout()
    end.handle_timeout(again or 0)
    assert numbers(sent_by(end, again or 0)) == [65_502]
    assert end.stats.timeouts == 2
    third = end.next_timeout() or 0
    assert third - (again or 0) == pytest.approx(2 * ((again or 0) - now), rel=0.01)


def test_fin_is_sent_again_as_a_fin() -> None:
    end = flying(1180 * 10)
    end.close()
    (fin,) = sent_by(end, START)
    assert (parse_header(fin).type, parse_header(fin).seq_nr) == (PacketType.FIN, 65_510)
    now = START
    while not end.stats.packets_resent:
        now = end.next_timeout() or 0
        end.handle_timeout(now)
        sent = sent_by(end, now)
    assert [parse_header(datagram).type for datagram in sent] == [PacketType.DATA, PacketType.FIN]


# -- window and pacing ---------------------------------------------------------------------------------------------


def test_peers_window_is_kept() -> None:
    end = flying(100_000)
    sent = acked(end, 65_509, START + 0.1, wnd_size=5000)
    assert sum(len(datagram) - 20 for datagram in sent) == 4 * 1180
    assert acked(end, 65_509, START + 0.11, wnd_size=4 * 1180) == []


def test_small_window_is_waited_for_then_used() -> None:
    end = flying(13_000)
    assert acked(end, 65_509, START + 0.1, wnd_size=50) == []
    now = end.next_timeout() or 0
    end.handle_timeout(now)
    (probe,) = sent_by(end, now)
    assert len(probe) == 20 + 50
    sent = acked(end, 65_510, now + 0.1, wnd_size=1 << 20)
    assert [len(datagram) - 20 for datagram in sent] == [1150]


def test_window_is_spread_over_the_round_trip() -> None:
    pair = established_pair(UtpConfig(tunnel=True, mtu=1200, mtu_ceiling=1200), delay=0.05)
    deliver(pair, bytes(400_000))
    pair.log.clear()
    pair.a.send_data(bytes(200_000), pair.now)
    begun = pair.now
    assert pair.a.cwnd > 200_000
    bursts: dict[float, int] = {}
    while pair.now < begun + 0.1:
        count = len(pair.log)
        pair.run(0.001)
        bursts[pair.now] = len(pair.log) - count
    first, *others = bursts.values()
    assert first < 60  # the initial window and what five idle milliseconds have left
    assert max(others) < 30
    assert first + sum(others) >= 150


def test_batches_fit_one_send() -> None:
    config = UtpConfig(tunnel=True, mtu=1200, mtu_ceiling=1200, max_batch_datagrams=7, datagram_overhead=28)
    pair = established_pair(config)
    deliver(pair, bytes(2_000_000))
    pair.a.send_data(bytes(100_000), pair.now + 1)
    batches = pair.a.datagrams_to_send(pair.now + 1)
    assert [len(batch.bodies) for batch in batches[:2]] == [7, 7]
    large = established_pair(UtpConfig(tunnel=True, mtu=16_000, mtu_ceiling=16_000, datagram_overhead=28))
    large.a.send_data(bytes(150_000), START)
    for batch in large.a.datagrams_to_send(START):
        assert batch.size + 28 * len(batch.bodies) <= 65_507


def test_batches_sent_again_fit_one_send() -> None:
    config = UtpConfig(tunnel=True, mtu=16_000, mtu_ceiling=16_000, datagram_overhead=28)
    end = UtpConnection.established(config, START, receive_id=10, send_id=20, seq_nr=65_500, peer_seq_nr=5)
    end.send_data(bytes(158_000), START)
    assert len(sent_by(end, START)) == 10
    end.receive_datagrams([packet(PacketType.STATE, serialize_selective_ack(1 << 8), extension=1)], START + 0.1)
    end.handle_timeout(START + 0.2)
    batches = end.datagrams_to_send(START + 0.2)
    assert end.stats.packets_resent >= 5
    assert all(batch.size + 28 * len(batch.bodies) <= 65_507 for batch in batches)


def test_max_bytes() -> None:
    pair = established_pair()
    deliver(pair, bytes(1_000_000))
    pair.a.send_data(bytes(500_000), pair.now)
    pair.run(0.0001)
    batches = pair.a.datagrams_to_send(pair.now + 1, 5000)
    assert 0 < sum(batch.size for batch in batches) <= 6000


def test_what_fills_batches_goes_without_the_rest() -> None:
    config = UtpConfig(tunnel=True, mtu=1200, mtu_ceiling=1200, max_batch_datagrams=7, datagram_overhead=28)
    pair = established_pair(config)
    deliver(pair, bytes(2_000_000))
    assert pair.a.whole_batches_bytes == 0
    pair.a.send_data(bytes(20_000), pair.now + 1)
    assert pair.a.whole_batches_bytes == 2 * 7 * 1180
    batches = pair.a.datagrams_to_send(pair.now + 1, pair.a.whole_batches_bytes)
    assert [len(batch.bodies) for batch in batches] == [7, 7]
    assert pair.a.whole_batches_bytes == 0
    pair.a.send_data(bytes(8260 - 20_000 % 8260), pair.now + 1)  # fills another one
    assert pair.a.whole_batches_bytes == pair.a.unsent_bytes == 7 * 1180
    (batch,) = pair.a.datagrams_to_send(pair.now + 1)
    assert len(batch.bodies) == 7


def test_without_a_limit_full_batches_are_given_out() -> None:
    pair = established_pair(UtpConfig(tunnel=True, mtu=1400, mtu_ceiling=1400, datagram_overhead=48))
    deliver(pair, bytes(5_000_000))
    pair.a.send_data(bytes(600_000), pair.now + 1)
    batches = pair.a.datagrams_to_send(pair.now + 1)
    assert [len(batch.bodies) for batch in batches] == [45] * 4


# -- packet size ---------------------------------------------------------------------------------------------------


def test_probes_find_the_size_of_the_path() -> None:
    pair = established_pair(SEARCHING)
    deliver(pair, some_bytes(200_000))
    assert pair.a.mtu == 1452
    assert max(size for letter, _, size in pair.log if letter == "a") == 1432


def test_probe_is_marked_and_alone() -> None:
    end = flying(100_000, SEARCHING)
    end.receive_datagrams([packet(PacketType.STATE, ack_nr=65_505)], START + 0.1)
    batches = end.datagrams_to_send(START + 0.1)
    (probe,) = [batch for batch in batches if batch.probe]
    assert len(probe.bodies) == 1
    assert probe.segment_size == 1452


def test_lost_probes_are_no_congestion_and_come_again_in_parts() -> None:
    pair = established_pair(SEARCHING)
    path_takes(pair, 1400)
    deliver(pair, some_bytes(3_000_000))
    assert pair.a.mtu == 1392
    assert pair.a.stats.congestion_events == 0
    assert pair.a.stats.timeouts == 0
    assert Extension.PART in {header.extension for _, header, _ in pair.log}


def test_search_goes_on_after_ten_minutes() -> None:
    pair = established_pair(SEARCHING)
    path_takes(pair, 1300)
    for _ in range(20):
        deliver(pair, some_bytes(500_000))
    assert pair.a.mtu == 1232
    pair.lose = lambda letter, datagram: False
    pair.run(700)
    deliver(pair, some_bytes(100_000))
    pair.run(1)
    assert pair.a.mtu == 1452


def test_bare_probe_comes_again_whole() -> None:
    """Others know no parts: the system must cut the packet, so it goes without the mark of a probe."""
    end = flying(100_000, UtpConfig(mtu=1200, mtu_ceiling=1452))
    end.receive_datagrams([packet(PacketType.STATE, ack_nr=65_505)], START + 0.1)
    datagrams = sent_by(end, START + 0.1)
    (probe,) = [datagram for datagram in datagrams if len(datagram) == 1452]
    seq = parse_header(probe).seq_nr
    above = sum(1 << (number - seq - 1 & 0xFFFF) for number in numbers(datagrams) if 0 < (number - seq & 0xFFFF) < 100)
    end.receive_datagrams(
        [
            packet(
                PacketType.STATE,
                serialize_selective_ack(above),
                extension=Extension.SELECTIVE_ACK,
                ack_nr=(seq - 1) & 0xFFFF,
            )
        ],
        START + 0.2,
    )
    batches = end.datagrams_to_send(START + 0.2)
    again = [batch for batch in batches if seq in numbers(batch.datagrams())]
    assert [(batch.segment_size, batch.probe) for batch in again] == [(1452, False)]
    assert end.stats.congestion_events == 0


def test_black_hole() -> None:
    """A path that begins to swallow large packets: what is under way arrives in parts, and later packets are small."""
    pair = established_pair(SEARCHING)
    deliver(pair, some_bytes(500_000))
    assert pair.a.mtu == 1452
    path_takes(pair, 1200)
    begun = pair.now
    deliver(pair, some_bytes(200_000, 2))
    assert pair.now - begun < 5
    assert pair.a.mtu == 1200


def test_system_refuses_large_packets() -> None:
    pair = established_pair(SEARCHING)
    deliver(pair, some_bytes(500_000))
    path_takes(pair, 1300)
    pair.a.send_data(some_bytes(50_000, 3), pair.now)
    before = len(pair.data["b"])
    pair.run(0.001)
    pair.a.datagram_too_big(1452, pair.now)
    begun = pair.now
    pair.run(10, until=lambda: len(pair.data["b"]) == before + 50_000)
    assert pair.now - begun < 1
    assert bytes(pair.data["b"][before:]) == some_bytes(50_000, 3)
    assert pair.a.mtu == 1232 or pair.a.mtu == 1200


@pytest.mark.parametrize("tunnel", [True, False])
def test_last_packet_is_a_lost_probe(tunnel: bool) -> None:
    """Nothing follows that could show it. That it arrives in another way says nothing of the path."""
    pair = established_pair(UtpConfig(tunnel=tunnel, mtu=1200, mtu_ceiling=1452))
    pair.a.send_data(bytes(3000), START)
    pair.run(1)
    lost: list[bytes] = []
    pair.lose = lambda letter, datagram: letter == "a" and len(lost) < 2 and not lost.append(datagram)
    pair.a.send_data(some_bytes(1500), pair.now)
    pair.run(5)
    assert list(map(len, lost)) == [1452, 88]
    assert pair.data["b"][3000:] == some_bytes(1500)
    assert pair.a.stats.timeouts == 0
    assert pair.a.mtu == 1200


def test_probe_lost_with_others_is_congestion() -> None:
    end = flying(100_000, SEARCHING)
    end.receive_datagrams([packet(PacketType.STATE, ack_nr=65_505)], START + 0.1)
    datagrams = sent_by(end, START + 0.1)
    at = [len(datagram) for datagram in datagrams].index(1452)
    seq = numbers(datagrams)[at]
    acked(end, seq - 1, START + 0.2, 0b1110)
    assert end.stats.packets_lost == 2
    assert end.stats.congestion_events == 1
    assert end.mtu == 1200


def test_given_up_only_without_progress() -> None:
    """Acknowledgements that trickle in keep a connection alive."""
    end = flying(1180 * 10, UtpConfig(tunnel=True, mtu=1200, mtu_ceiling=1200, stall_timeout=10.0))
    for at in range(9):
        now = START + 4 * at
        while (deadline := end.next_timeout()) is not None and deadline < now:
            end.handle_timeout(deadline)
            sent_by(end, deadline)
        acked(end, 65_500 + at, now)
    assert not end.ended
    while not end.ended:
        now = end.next_timeout() or 0
        end.handle_timeout(now)
        sent_by(end, now)
    assert now == pytest.approx(START + 42)


# -- another path --------------------------------------------------------------------------------------------------


def test_another_path() -> None:
    pair = established_pair(SEARCHING)
    deliver(pair, some_bytes(500_000))
    cwnd = pair.a.cwnd
    pair.a.send_data(some_bytes(300_000, 5), pair.now)
    pair.run(0.005)
    pair.lose = lambda letter, datagram: True
    pair.run(0.005)
    pair.lose = lambda letter, datagram: False
    pair.a.path_changed(pair.now, 9000)
    assert pair.a.cwnd < cwnd
    assert pair.a.srtt == 0
    before = 500_000
    begun = pair.now
    pair.run(20, until=lambda: len(pair.data["b"]) == before + 300_000)
    assert bytes(pair.data["b"][before:]) == some_bytes(300_000, 5)
    assert pair.now - begun < 2
    pair.run(1)
    pair.a.path_changed(pair.now)
    assert pair.a.mtu == 1200
    deliver(pair, some_bytes(1000))


def test_acknowledged_before_the_probe_left() -> None:
    end = flying(11_800)
    now = end.next_timeout() or 0
    end.handle_timeout(now)
    assert acked(end, 65_509, now) == []


def test_reductions_for_losses_of_another_round_trip() -> None:
    end = flying(200_000)
    acked(end, 65_499, START + 0.1, 0b111)
    sent = acked(end, 65_509, START + 0.2)
    first = numbers(sent)[0]
    acked(end, first - 1, START + 0.3, 0b111)
    assert end.stats.congestion_events == 2
