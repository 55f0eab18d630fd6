"""Outstanding packets: acknowledgements, losses and repetitions, over the wrap of the sequence numbers."""

from __future__ import annotations

import random

import pytest

from crust.proto.utp.flight import Flight, runs

FIRST = 65_530


def flying(*sizes: int, now: float = 1.0) -> Flight:
    """A flight of one burst."""
    flight = Flight(FIRST)
    for size in sizes:
        flight.add(size, 1, size, now)
    return flight


def bits(*numbers: int) -> int:
    """A set of packets, counted from the first."""
    return sum(1 << number for number in numbers)


@pytest.mark.parametrize(
    ("mask", "expected"), [(0, []), (1, [(0, 1)]), (0b1110, [(1, 4)]), (0b1011_0001, [(0, 1), (4, 6), (7, 8)])]
)
def test_runs(mask: int, expected: list[tuple[int, int]]) -> None:
    assert list(runs(mask)) == expected


def test_add_a_run() -> None:
    flight = Flight(FIRST)
    flight.add(100, 4, 40, 1.0)
    flight.add(0, 1, 0, 1.0)
    assert flight.next_seq == FIRST + 5
    assert flight.held_bytes == flight.in_flight == flight.unreceived_bytes == 340


def test_in_order() -> None:
    flight = flying(100, 100, 50)
    assert flight.acknowledge(FIRST + 2, 0, 1.5, 0.0) == 200
    assert flight.rtt_sample == pytest.approx(0.5)
    assert (flight.una, flight.count, flight.in_flight) == (FIRST + 2, 1, 50)
    assert flight.acknowledge(FIRST + 2, 0, 1.6, 0.0) == 0
    assert flight.acknowledge(FIRST, 0, 1.6, 0.0) == 0


def test_selective_then_cumulative() -> None:
    flight = flying(10, 20, 30, 40)
    assert flight.acknowledge(FIRST, bits(1, 3), 2.0, 0.0) == 60
    assert flight.acknowledge(FIRST, bits(1, 3), 2.0, 0.0) == 0
    assert (flight.sacked, flight.sacked_bytes, flight.in_flight) == (bits(1, 3), 60, 40)
    assert flight.acknowledge(FIRST + 3, bits(0), 2.0, 0.0) == 40
    assert (flight.una, flight.sacked, flight.sacked_bytes, flight.in_flight) == (FIRST + 3, bits(0), 40, 0)
    assert flight.acknowledge(FIRST + 4, 0, 2.0, 0.0) == 0
    assert (flight.count, flight.sacked, flight.sacked_bytes, flight.held_bytes) == (0, 0, 0, 0)


def test_late_acknowledgement_still_tells() -> None:
    flight = flying(10, 20, 30, 40)
    flight.acknowledge(FIRST + 1, 0, 2.0, 0.0)
    assert flight.acknowledge(FIRST, bits(0, 2), 2.0, 0.0) == 30
    assert flight.sacked == bits(1)


def test_what_precedes_an_arrival_is_lost() -> None:
    flight = flying(10, 10, 10, 10, 10)
    flight.acknowledge(FIRST + 1, bits(1, 2), 2.0, 0.0)
    lost, sent = flight.find_losses(2.0, 0.0)
    assert (lost, sent) == (bits(0), 1.0)
    assert (flight.lost, flight.lost_bytes, flight.in_flight) == (bits(0), 10, 10)
    assert flight.find_losses(2.0, 0.0) == (0, 0.0)
    assert flight.next_lost == FIRST + 1


def test_patience_with_what_was_overtaken() -> None:
    flight = flying(10, 10, 10)
    flight.acknowledge(FIRST, bits(2), 2.0, 0.0)
    assert flight.find_losses(2.0, 0.25) == (0, 0.0)
    assert flight.next_judgement(0.25) == pytest.approx(2.25)
    assert flight.find_losses(2.25, 0.25)[0] == bits(0, 1)
    assert flight.next_judgement(0.25) is None


def test_later_bursts_have_their_own_time() -> None:
    flight = flying(10, 10, now=1.0)
    flight.add(10, 2, 10, 1.4)
    flight.acknowledge(FIRST, bits(3), 2.0, 0.0)  # a round trip of 0.6
    assert flight.find_losses(2.0, 0.3)[0] == bits(0, 1)
    assert flight.next_judgement(0.3) == pytest.approx(2.3)
    assert flight.find_losses(2.3, 0.3)[0] == bits(2)


def test_nothing_above_the_highest_arrival_is_lost() -> None:
    """A selective ack ends somewhere: what lies past it may have arrived. It is not on its way any more, though."""
    flight = flying(10, 10, 10, 10, now=1.0)
    flight.acknowledge(FIRST, bits(1), 2.0, 0.0)
    flight.find_losses(2.0, 0.0)
    flight.repeat(FIRST, 2.0)
    flight.acknowledge(FIRST + 2, 0, 3.0, 0.0)
    assert flight.find_losses(3.0, 0.0) == (0, 0.0)
    assert flight.in_flight == 0
    assert flight.unreceived_bytes == 20
    flight.acknowledge(FIRST + 4, 0, 3.1, 0.0)
    assert flight.in_flight == 0


def test_repetition() -> None:
    flight = flying(10, 20, 30)
    flight.acknowledge(FIRST, bits(1, 2), 2.0, 0.0)
    flight.find_losses(2.0, 0.0)
    assert flight.repeat(FIRST, 2.0) == flight.span(FIRST) == (0, 10)
    assert (flight.lost, flight.resent, flight.lost_bytes, flight.in_flight) == (0, 1, 0, 10)
    assert flight.next_lost is None
    assert flight.acknowledge(FIRST + 3, 0, 3.0, 1.0) == 10
    assert flight.repaired
    assert flight.spurious == 0
    assert flight.rtt_sample == 0  # of which copy, nobody knows (Karn)


def test_repetition_that_was_needless() -> None:
    flight = flying(10, 20, 30)
    flight.acknowledge(FIRST, bits(1, 2), 2.0, 0.0)
    flight.find_losses(2.0, 0.0)
    flight.repeat(FIRST, 2.0)
    flight.acknowledge(FIRST + 3, 0, 2.1, 1.0)  # much less than a round trip after the second copy
    assert flight.spurious == 1
    assert flight.reordered


def test_late_arrival_of_what_was_taken_for_lost() -> None:
    flight = flying(10, 20, 30)
    flight.acknowledge(FIRST, bits(1, 2), 2.0, 0.0)
    flight.find_losses(2.0, 0.0)
    flight.acknowledge(FIRST + 3, 0, 2.1, 1.0)
    assert flight.spurious == 1
    assert flight.reordered
    assert (flight.lost, flight.lost_bytes, flight.count) == (0, 0, 0)


def test_reordering_is_noticed() -> None:
    flight = flying(10, 10, 10)
    flight.acknowledge(FIRST, bits(2), 2.0, 0.0)
    assert not flight.reordered
    flight.acknowledge(FIRST, bits(1, 2), 2.0, 0.0)
    assert flight.reordered


def test_repetition_lost_again() -> None:
    flight = flying(10, 10, 10)
    flight.acknowledge(FIRST, bits(2), 2.0, 0.0)
    flight.find_losses(2.0, 0.0)
    flight.repeat(FIRST, 2.0)
    flight.repeat(FIRST + 1, 2.1)
    flight.acknowledge(FIRST, bits(1, 2), 3.1, 1.0)
    assert flight.next_judgement(0.0) == pytest.approx(3.0)
    assert flight.find_losses(3.1, 0.0) == (bits(0), 2.0)
    assert flight.resent == 0
    assert flight.lost_bytes == 10


def test_repetitions_of_one_moment_are_judged_in_order() -> None:
    flight = flying(10, 10, 10, 10)
    flight.acknowledge(FIRST, bits(3), 2.0, 0.0)
    flight.find_losses(2.0, 0.0)
    for at in range(3):
        flight.repeat(FIRST + at, 2.0)
    flight.acknowledge(FIRST, bits(1, 3), 3.0, 1.0)
    assert flight.find_losses(3.0, 0.0)[0] == bits(0)
    assert flight.resent == bits(2)


def test_three_duplicates() -> None:
    flight = flying(10, 20)
    assert flight.lose_first()
    assert not flight.lose_first()
    assert flight.lost_bytes == 10
    flight.repeat(FIRST, 2.0)
    assert not flight.lose_first()
    assert not Flight(1).lose_first()


def test_all_lost() -> None:
    flight = flying(10, 20, 30, 40)
    flight.acknowledge(FIRST, bits(2), 2.0, 0.0)
    flight.find_losses(2.0, 0.0)
    flight.repeat(FIRST, 2.0)
    flight.lose_all()
    assert (flight.lost, flight.resent, flight.in_flight) == (bits(0, 1, 3), 0, 0)
    assert flight.find_losses(3.0, 0.0) == (0, 0.0)
    assert flight.acknowledge(FIRST + 4, 0, 3.0, 0.1) == 70
    assert flight.in_flight == 0


def test_one_lost() -> None:
    flight = flying(10, 20, 30)
    flight.acknowledge(FIRST, bits(2), 2.0, 0.0)
    flight.lose(FIRST + 1)
    flight.lose(FIRST + 1)
    flight.lose(FIRST + 2)
    assert (flight.lost, flight.lost_bytes) == (bits(1), 20)
    flight.repeat(FIRST + 1, 2.0)
    flight.lose(FIRST + 1)
    assert (flight.lost, flight.resent, flight.lost_bytes) == (bits(1), 0, 20)


def test_edges() -> None:
    flight = flying(10, 10, 10, 10)
    flight.acknowledge(FIRST, bits(3), 2.0, 0.0)
    assert flight.unreceived_edges() == (FIRST, FIRST + 2)
    assert Flight(1).unreceived_edges() is None


@pytest.mark.parametrize("seed", range(20))
def test_sums_agree_with_a_plain_model(seed: int) -> None:
    """Random arrivals, losses and repetitions: every sum is that of the sets, and all is acknowledged in the end."""
    chance = random.Random(seed)
    flight, now = Flight(FIRST), 1.0
    sizes: dict[int, int] = {}
    arrived: set[int] = set()
    for _ in range(300):
        now += chance.random() / 10
        if chance.random() < 0.4:
            size, count = chance.choice([100, 1400]), chance.randrange(1, 6)
            sizes |= {flight.next_seq + at: size for at in range(count)}
            flight.add(size, count, size, now)
        while flight.next_lost is not None and chance.random() < 0.7:
            flight.repeat(flight.next_lost, now)
        arrived |= {seq for seq in range(flight.una, flight.next_seq) if chance.random() < 0.3}
        una = flight.una
        while una in arrived:
            una += 1
        before = sum(size for seq, size in sizes.items() if seq < flight.una or flight.sacked >> (seq - flight.una) & 1)
        sack = sum(1 << (seq - una) for seq in arrived if seq >= una)
        delivered = flight.acknowledge(una, sack, now, 0.02)
        assert before + delivered == sum(size for seq, size in sizes.items() if seq in arrived)
        flight.find_losses(now, 0.01)
        missing = {seq for seq in range(flight.una, flight.next_seq) if seq not in arrived}
        lost = {seq for seq in missing if flight.lost >> (seq - flight.una) & 1}
        assert flight.sacked & (flight.lost | flight.resent) == 0
        assert flight.lost & flight.resent == 0
        assert flight.unreceived_bytes == sum(sizes[seq] for seq in missing)
        assert flight.lost_bytes == sum(sizes[seq] for seq in lost)
        assert 0 <= flight.in_flight <= flight.unreceived_bytes - flight.lost_bytes
    flight.acknowledge(flight.next_seq, 0, now, 0.02)
    assert (flight.count, flight.in_flight, flight.sacked, flight.lost, flight.resent) == (0, 0, 0, 0, 0)
