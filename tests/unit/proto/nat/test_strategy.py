"""The table of approaches: both sides decide alike, and hopeless pairs are named at once."""

from __future__ import annotations

from itertools import product

import pytest

from crust.proto.nat.behaviour import Allocation, Filtering, Mapping, NatVerdict
from crust.proto.nat.strategy import Approach, PortKnowledge, knowledge_of, plan
from tests.unit.proto.nat.support import COUNTERPARTS

EI, AD, APD = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
OPEN, HOST, STRICT = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
SEQUENTIAL, RANDOM, PRESERVING = Allocation.SEQUENTIAL, Allocation.RANDOM, Allocation.PRESERVING

PUBLIC = NatVerdict("udp", EI, OPEN, PRESERVING, translated=False)
FULL_CONE = NatVerdict("udp", EI, OPEN, PRESERVING)
RESTRICTED = NatVerdict("udp", EI, HOST, PRESERVING)
PORT_RESTRICTED = NatVerdict("udp", EI, STRICT, PRESERVING)
PREDICTABLE = NatVerdict("udp", APD, STRICT, SEQUENTIAL, step=1)
HARD = NatVerdict("udp", APD, STRICT, RANDOM)
HARD_BY_HOST = NatVerdict("udp", AD, HOST, RANDOM)
UNKNOWN = NatVerdict("udp")
ALL = [PUBLIC, FULL_CONE, RESTRICTED, PORT_RESTRICTED, PREDICTABLE, HARD, HARD_BY_HOST, UNKNOWN]


@pytest.mark.parametrize(
    ("ours", "theirs", "approach"),
    [
        (PUBLIC, HARD, Approach.PUNCH),
        (HARD, FULL_CONE, Approach.PUNCH),
        (HARD, RESTRICTED, Approach.PUNCH),
        (PORT_RESTRICTED, PORT_RESTRICTED, Approach.PUNCH),
        (UNKNOWN, PORT_RESTRICTED, Approach.PUNCH),
        (PORT_RESTRICTED, PREDICTABLE, Approach.PREDICT_THEIRS),
        (PREDICTABLE, UNKNOWN, Approach.PREDICTED),
        (PREDICTABLE, PREDICTABLE, Approach.MEET),
        (HARD, PORT_RESTRICTED, Approach.OPEN_MANY),
        (PORT_RESTRICTED, HARD, Approach.PROBE_MANY),
        (HARD_BY_HOST, HARD, Approach.OPEN_MANY),
        (HARD_BY_HOST, PREDICTABLE, Approach.OPEN_MANY),
        (HARD, HARD, Approach.HOPELESS),
        (HARD, PREDICTABLE, Approach.HOPELESS),
    ],
)
def test_approaches(ours: NatVerdict, theirs: NatVerdict, approach: Approach) -> None:
    assert plan(ours, theirs, controlling=True).approach is approach
    assert plan(theirs, ours, controlling=False).approach is COUNTERPARTS[approach]


@pytest.mark.parametrize(("ours", "theirs"), list(product(ALL, ALL)))
@pytest.mark.parametrize("controlling", [True, False])
def test_both_sides_fit(ours: NatVerdict, theirs: NatVerdict, controlling: bool) -> None:
    one = plan(ours, theirs, controlling=controlling)
    other = plan(theirs, ours, controlling=not controlling)
    assert COUNTERPARTS[one.approach] is other.approach
    assert one.reason
    if one.approach is Approach.HOPELESS:
        assert any("IPv6" in line for line in one.advice)


def test_the_larger_key_opens_where_both_could() -> None:
    assert plan(HARD_BY_HOST, HARD_BY_HOST, controlling=True).approach is Approach.OPEN_MANY
    assert plan(HARD_BY_HOST, HARD_BY_HOST, controlling=False).approach is Approach.PROBE_MANY


def test_random_ports_are_not_searched_over_tcp() -> None:
    hard = NatVerdict("tcp", APD, STRICT, RANDOM)
    easy = NatVerdict("tcp", EI, STRICT, PRESERVING)
    assert plan(hard, easy, controlling=True).approach is Approach.HOPELESS
    assert "TCP" in plan(hard, easy, controlling=True).reason


def test_what_is_known_of_a_port() -> None:
    assert knowledge_of(UNKNOWN) is PortKnowledge.FIXED
    assert knowledge_of(PREDICTABLE) is PortKnowledge.SEQUENTIAL
    assert knowledge_of(NatVerdict("udp", APD, STRICT, SEQUENTIAL)) is PortKnowledge.HARD  # a step of nothing
    assert knowledge_of(NatVerdict("udp", APD, translated=False)) is PortKnowledge.FIXED


@pytest.mark.parametrize(
    ("theirs", "careful"),
    [
        (PORT_RESTRICTED, True),
        (UNKNOWN, True),
        (PUBLIC, False),
        (RESTRICTED, False),
        (HARD, False),
        (PREDICTABLE, False),
    ],
)
def test_care_is_taken_where_early_packets_may_do_harm(theirs: NatVerdict, careful: bool) -> None:
    assert plan(PORT_RESTRICTED, theirs, controlling=True).careful is careful
    assert plan(PORT_RESTRICTED, theirs, controlling=True).openers is careful
    assert plan(PUBLIC, theirs, controlling=True).openers is False
