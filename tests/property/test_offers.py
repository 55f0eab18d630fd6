"""Offers and service messages: whatever the bytes, whatever a peer says of its NAT."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from crust.crypto.keys import Identity
from crust.errors import RemoteProtocolError
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.terms import Terms, parse_standings, serialize_standing
from crust.types import Candidate, Transport
from crust.wire.contact import Contact
from crust.wire.offer import MEETINGS_MOST, NatRecord, Offer, PortForecast, parse_offer, serialize_offer
from crust.wire.probe import parse_probe
from crust.wire.service import parse_service

ALICE, BOB = (Identity.from_seed(bytes([number]) * 32).id for number in (1, 2))

ports = st.integers(1, 65535)
kinds = st.integers(0, 3)
forecasts = st.builds(
    PortForecast,
    st.sampled_from(["203.0.113.1", "2001:db8::1", "", "x", "1.2.3.4.5"]),
    ports,
    st.integers(0, 600_000),
    st.integers(0, 200_000),
)
records = st.builds(
    NatRecord,
    st.integers(0, 1),
    st.booleans(),
    kinds,
    kinds,
    kinds,
    st.integers(-32767, 32767),
    st.integers(0, 100),
    st.none() | forecasts,
    st.lists(ports, max_size=MEETINGS_MOST).map(tuple),
)
TRANSPORTS: tuple[Transport, ...] = ("tcp", "utp")


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for parse in (parse_offer, parse_service, parse_probe):
        with contextlib.suppress(RemoteProtocolError):
            parse(data)


@given(st.lists(records, max_size=4).map(tuple))
def test_offers_round_trip(nats: tuple[NatRecord, ...]) -> None:
    offer = Offer(bytes(16), b"", Contact(ALICE), BOB, ALICE, nats=nats)
    assert parse_offer(serialize_offer(offer)) == offer


@given(st.lists(records, max_size=4), st.lists(records, max_size=4), st.booleans(), st.booleans())
def test_whatever_is_told_gives_a_plan(
    ours: list[NatRecord], theirs: list[NatRecord], controlling: bool, caller: bool
) -> None:
    """Addresses that it leads to are valid ones, at the host that was told, and few."""
    now = 1000.0
    terms = Terms(parse_standings(ours, now), parse_standings(theirs, now), frozenset(), controlling, caller)
    limits = TraversalLimits()
    for transport in TRANSPORTS:
        assert terms.plan(transport).reason
        predicted = terms.predicted(transport, now, limits)
        assert len(predicted) <= limits.predicted_ports
        for candidate in predicted:
            assert 1 <= candidate.port <= 65535
            assert candidate.host in ("203.0.113.1", "2001:db8::1")
        terms.hopeless(transport, [Candidate(transport, "192.0.2.1", 1)], predicted)


@given(st.lists(records, min_size=1, max_size=1), st.floats(0, 500))
def test_what_is_told_can_be_told_again(told: list[NatRecord], later: float) -> None:
    now = 1000.0
    for transport, standing in parse_standings(told, now).items():
        again = serialize_standing(transport, standing, now + later)
        assert parse_standings([again], now + later)[transport].verdict == standing.verdict
