"""What two peers tell each other of their NATs, and what follows for their dial."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest

from crust.proto.nat.behaviour import Allocation, AllocationSample, Filtering, Mapping, NatVerdict
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.strategy import Approach
from crust.proto.nat.terms import Standing, Terms, parse_standings, serialize_standing, take_standing
from crust.types import Candidate, Transport
from crust.wire.offer import NatRecord, PortForecast
from tests.unit.proto.nat.support import COUNTERPARTS

EI, APD = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
OUTSIDE = "203.0.113.1"


def verdict(
    mapping: Mapping = EI,
    filtering: Filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT,
    allocation: Allocation = Allocation.PRESERVING,
    *,
    protocol: Literal["udp", "tcp"] = "udp",
    step: int = 0,
    sure: float = 0.67,
    hosts: tuple[str, ...] = (),
) -> NatVerdict:
    return NatVerdict(protocol, mapping, filtering, allocation, step, mapping_confidence=sure, hosts=hosts)


EASY = verdict()
OPEN = verdict(filtering=Filtering.ADDRESS_DEPENDENT)
HARD = verdict(APD, allocation=Allocation.RANDOM)
SEQUENTIAL = verdict(APD, allocation=Allocation.SEQUENTIAL, step=2)
UNKNOWN = NatVerdict()


def samples(*ports: int, at: float = 100.0) -> list[AllocationSample]:
    return [AllocationSample(at + index, 40_000 + index, (OUTSIDE, port), True) for index, port in enumerate(ports)]


def terms(
    ours: NatVerdict | Standing,
    theirs: NatVerdict | Standing,
    transport: Transport = "utp",
    *,
    attested: tuple[str, ...] = (),
    controlling: bool = True,
) -> Terms:
    both = [each if isinstance(each, Standing) else Standing(each) for each in (ours, theirs)]
    return Terms({transport: both[0]}, {transport: both[1]}, frozenset(attested), controlling)


class TestStanding:
    @pytest.mark.parametrize("known", [EASY, HARD, UNKNOWN])
    def test_only_a_sequential_nat_tells_of_ports(self, known: NatVerdict) -> None:
        assert take_standing(known, samples(5000, 5002), 24, 102.0) == Standing(known)

    def test_a_sequential_one_does(self) -> None:
        found = take_standing(SEQUENTIAL, samples(5000, 5002, 5004), 24, 102.1)
        assert found.prediction is not None
        assert (found.prediction.host, found.prediction.last, found.prediction.step) == (OUTSIDE, 5004, 2)
        assert len(set(found.meeting)) == len(found.meeting) == 4
        assert all(port > 5004 for port in found.meeting)

    def test_without_a_recent_measurement_it_cannot(self) -> None:
        assert take_standing(SEQUENTIAL, samples(5000), 24, 1000.0) == Standing(SEQUENTIAL)

    @pytest.mark.parametrize("transport", ["tcp", "utp"])
    def test_round_trip(self, transport: Transport) -> None:
        known = verdict(APD, allocation=Allocation.SEQUENTIAL, step=2, protocol="tcp" if transport == "tcp" else "udp")
        ours = take_standing(known, samples(5000, 5002, 5008), 24, 102.1)
        record = serialize_standing(transport, ours, 102.5)
        theirs = parse_standings([record], 7.0)[transport]
        assert theirs.verdict == known
        assert theirs.meeting == ours.meeting
        assert theirs.prediction is not None
        assert ours.prediction is not None
        assert theirs.prediction.last == 5008
        assert theirs.prediction.seen_at == pytest.approx(7.0 - 0.5)
        assert theirs.prediction.rate == pytest.approx(ours.prediction.rate, abs=0.01)

    def test_what_does_not_fit_is_left_out(self) -> None:
        forecast = PortForecast("not an address", 5000, 0, 0)
        assert parse_standings([NatRecord(1, True, 3, 3, 2, 1, 67, forecast, (1,))], 0.0)["utp"].prediction is None
        forecast = PortForecast(OUTSIDE, 5000, 0, 0)
        assert parse_standings([NatRecord(1, True, 3, 3, 2, 0, 67, forecast, (1,))], 0.0)["utp"].prediction is None
        both = parse_standings([NatRecord(1, True, 1, 1, 1), NatRecord(1, True, 3, 3, 3)], 0.0)
        assert both["utp"].verdict.mapping is EI  # of two the first counts

    def test_large_values_are_bounded(self) -> None:
        known = verdict(APD, allocation=Allocation.SEQUENTIAL, step=40_000)
        assert serialize_standing("utp", Standing(known), 0.0).step == 0
        late = take_standing(SEQUENTIAL, samples(5000, 5002), 24, 150.0)
        assert serialize_standing("utp", late, 150.0).forecast is not None
        record = serialize_standing("utp", late, 10_000.0)
        assert record.forecast is not None
        assert record.forecast.age_ms == 600_000


class TestPlan:
    def test_both_sides_take_parts_that_fit(self) -> None:
        kinds = [EASY, OPEN, HARD, SEQUENTIAL, UNKNOWN]
        for (one, other), larger in itertools.product(itertools.product(kinds, kinds), (True, False)):
            ours = terms(one, other, controlling=larger).plan("utp").approach
            theirs = terms(other, one, controlling=not larger).plan("utp").approach
            assert theirs is COUNTERPARTS[ours]

    def test_of_a_transport_of_which_nothing_was_told(self) -> None:
        assert Terms().plan("tcp").approach is Approach.PUNCH
        assert Terms().predicted("tcp", 0.0, TraversalLimits()) == []
        assert Terms().hopeless("tcp", ()) is None


class TestPredicted:
    def test_a_known_port_waits_for_the_next_ones(self) -> None:
        theirs = take_standing(SEQUENTIAL, samples(5000, 5002, 5004), 24, 102.1)
        found = terms(EASY, theirs).predicted("utp", 102.2, TraversalLimits())
        assert len(found) == 32
        assert found[0] == Candidate("utp", OUTSIDE, 5005, "predicted")
        assert Candidate("utp", OUTSIDE, 5006, "predicted") in found

    def test_two_that_count_meet(self) -> None:
        theirs = take_standing(SEQUENTIAL, samples(5000, 5002, 5004), 24, 102.1)
        found = terms(SEQUENTIAL, theirs).predicted("utp", 102.2, TraversalLimits())
        assert [candidate.port for candidate in found] == list(theirs.meeting)

    def test_where_there_is_nothing_to_predict(self) -> None:
        theirs = take_standing(SEQUENTIAL, samples(5000, 5002, 5004), 24, 102.1)
        assert terms(HARD, theirs).predicted("utp", 102.2, TraversalLimits()) == []
        assert terms(EASY, EASY).predicted("utp", 102.2, TraversalLimits()) == []


HOST = Candidate("utp", "192.168.1.2", 4000)
REFLEXIVE = Candidate("utp", OUTSIDE, 4000, "server-reflexive")
SIX, LINK = Candidate("utp", "2001:db8::1", 4000), Candidate("utp", "fe80::1", 4000)


class TestHopeless:
    @pytest.mark.parametrize(("one", "other"), [(HARD, HARD), (HARD, SEQUENTIAL), (SEQUENTIAL, HARD)])
    def test_said_with_a_reason_and_advice(self, one: NatVerdict, other: NatVerdict) -> None:
        found = terms(one, other).hopeless("utp", [HOST, REFLEXIVE])
        assert found is not None
        assert "random" in found.reason
        assert found.advice

    @pytest.mark.parametrize(("one", "other"), [(HARD, EASY), (EASY, HARD), (HARD, UNKNOWN), (SEQUENTIAL, SEQUENTIAL)])
    def test_not_where_it_may_work(self, one: NatVerdict, other: NatVerdict) -> None:
        assert terms(one, other).hopeless("utp", [HOST, REFLEXIVE]) is None

    def test_not_on_a_guess(self) -> None:
        assert terms(HARD, verdict(APD, allocation=Allocation.RANDOM, sure=0.3)).hopeless("utp", []) is None

    def test_not_with_a_way_around_the_nats(self) -> None:
        both = terms(HARD, HARD)
        mapped = Candidate("utp", OUTSIDE, 7, "mapped")
        assert both.hopeless("utp", [mapped]) is None
        assert both.hopeless("utp", [HOST], [mapped]) is None
        assert both.hopeless("utp", [HOST, SIX], [SIX]) is None
        assert both.hopeless("utp", [HOST, LINK], [LINK]) is not None
        assert both.hopeless("utp", [HOST, SIX], [HOST]) is not None  # we have no IPv6
        assert both.hopeless("utp", [Candidate("tcp", OUTSIDE, 7, "mapped")]) is not None  # another transport's

    def test_not_behind_one_nat(self) -> None:
        ours = verdict(APD, allocation=Allocation.RANDOM, hosts=(OUTSIDE,))
        assert terms(ours, HARD, attested=(OUTSIDE,)).hopeless("utp", [HOST]) is None
        assert terms(ours, HARD, attested=("203.0.113.2",)).hopeless("utp", [HOST]) is not None

    def test_tcp_needs_a_filter_that_is_known(self) -> None:
        """A random port against one that lets in whoever was written to: that works over TCP, too."""
        hard = verdict(APD, allocation=Allocation.RANDOM, protocol="tcp")
        strict = verdict(protocol="tcp")
        unknown = verdict(filtering=Filtering.UNKNOWN, protocol="tcp")
        assert terms(hard, strict, "tcp").hopeless("tcp", []) is not None
        assert terms(hard, unknown, "tcp").hopeless("tcp", []) is None
        assert terms(unknown, hard, "tcp").hopeless("tcp", []) is None

    def test_more_rendezvous_attest_more(self) -> None:
        assert terms(EASY, EASY, attested=("a",)).attests(["b"]).attested == {"a", "b"}
