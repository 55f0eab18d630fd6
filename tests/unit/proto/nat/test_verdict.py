"""From the behaviour of a NAT to what a dial would take; pure, so every case is a row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crust.proto.nat.behaviour import Allocation, Filtering, Mapping, NatVerdict
from crust.proto.nat.verdict import (
    PEERS,
    Access,
    Known,
    Reach,
    Sureness,
    Way,
    advise,
    judge_passage,
    judge_ports,
    mapping_is_outermost,
    outlook,
    sureness,
)

STRICT = Filtering.ADDRESS_AND_PORT_DEPENDENT
EASY = NatVerdict(mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=STRICT, mapping_confidence=0.8)
CONE = replace(EASY, filtering=Filtering.ENDPOINT_INDEPENDENT)
RANDOM = NatVerdict(
    mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
    filtering=STRICT,
    allocation=Allocation.RANDOM,
    mapping_confidence=0.67,
)
SEQUENTIAL = replace(RANDOM, allocation=Allocation.SEQUENTIAL, step=2)
PUBLIC = NatVerdict(translated=False, filtering=Filtering.ENDPOINT_INDEPENDENT, mapping_confidence=0.8)
FIREWALL = NatVerdict(translated=False, filtering=STRICT, mapping=Mapping.ENDPOINT_INDEPENDENT)

D, M, P, G, S, R = Way.DIRECT, Way.MAPPED, Way.PUNCHED, Way.PREDICTED, Way.SEARCHED, Way.RELAYED


def both(verdict: NatVerdict, *, passes: bool | None = True, mapped: bool = False) -> tuple[Access, Access]:
    return (
        Access(verdict, passes, mapped),
        Access(replace(verdict, protocol="tcp"), passes, mapped),
    )


@pytest.mark.parametrize(
    ("access", "best"),
    [
        # To: public, open NAT, easy NAT, sequential NAT, hard NAT, UDP blocked, IPv6 only.
        (both(PUBLIC), [D, D, D, D, D, D, R]),
        (both(FIREWALL), [D, P, P, G, S, P, R]),
        (both(CONE), [D, P, P, P, P, P, R]),
        (both(EASY), [D, P, P, G, S, P, R]),
        (both(SEQUENTIAL), [D, P, G, G, R, G, R]),
        (both(RANDOM), [D, P, S, R, R, R, R]),
        (both(RANDOM, mapped=True), [D, M, M, M, M, M, R]),
        ((Access(EASY, False), Access(replace(EASY, protocol="tcp"), True)), [D, P, P, G, R, P, R]),
        ((Access(EASY, False), Access(EASY, True, only_ports=frozenset({443}))), [D, R, R, R, R, R, R]),
        ((Access(EASY, False), Access(EASY, False)), [R, R, R, R, R, R, R]),
    ],
)
def test_best_way_to_each_kind_of_peer(access: tuple[Access, Access], best: list[Way]) -> None:
    found = outlook(*access, Known(ipv6=False))
    assert [each.best for each in found] == best
    assert [each.peer for each in found] == list(PEERS)
    assert all(each.why for each in found)


def test_each_transport_by_itself() -> None:
    udp, tcp = both(EASY)
    found = {each.peer.name: each for each in outlook(udp, replace(tcp, verdict=RANDOM), Known(ipv6=False))}
    assert (found["easy-nat"].udp, found["easy-nat"].tcp, found["easy-nat"].best) == (P, None, P)
    assert (found["udp-blocked"].udp, found["udp-blocked"].tcp, found["udp-blocked"].best) == (None, None, R)
    found = {each.peer.name: each for each in outlook(replace(udp, used=False), tcp, Known(ipv6=False))}
    assert (found["public"].udp, found["public"].tcp) == (None, D)
    assert found["hard-nat"].best is R


def test_mapped_over_one_transport_is_better_than_punched_over_the_other() -> None:
    udp, tcp = both(EASY)
    found = {each.peer.name: each for each in outlook(udp, replace(tcp, mapped=True), Known())}
    assert (found["easy-nat"].udp, found["easy-nat"].tcp, found["easy-nat"].best) == (P, M, M)


def test_ipv6() -> None:
    for ipv6, best, sure in ((True, P, "sure"), (None, P, "guess"), (False, R, "sure")):
        found = outlook(*both(RANDOM), Known(ipv6=ipv6))[-1]
        assert (found.best, found.sureness.value) == (best, sure)
    without_ipv4 = outlook(*both(NatVerdict(), passes=None), Known(ipv4_addresses=False, ipv6=True))
    assert [each.best for each in without_ipv4] == [R, R, R, R, R, R, P]


def test_how_sure_it_is() -> None:
    assert [sureness(each) for each in (0.0, 0.3, 0.5, 0.667, 0.75, 1.0)] == [
        Sureness.GUESS,
        Sureness.GUESS,
        Sureness.LIKELY,
        Sureness.LIKELY,
        Sureness.SURE,
        Sureness.SURE,
    ]

    def words(access: tuple[Access, Access]) -> list[str]:
        return [each.sureness.value for each in outlook(*access, Known(ipv6=False))]

    assert words(both(RANDOM)) == ["sure", "likely", "likely", "likely", "likely", "likely", "sure"]
    assert words(both(EASY, passes=None))[:6] == ["guess"] * 6
    assert words(both(FIREWALL))[1] == "sure"
    # A relay is as sure as the less known of the two transports.
    udp, tcp = both(RANDOM)
    assert outlook(udp, replace(tcp, passes=None), Known())[4].sureness is Sureness.GUESS


def reach(host: str, port: int, outcome: str) -> Reach:
    return Reach(host, port, outcome == "answered", outcome == "silent")


@pytest.mark.parametrize(
    ("here", "other", "passes"),
    [
        ([], [], None),
        ([("a", "answered")], [], True),
        ([("a", "refused")], [], True),
        ([("a", "silent"), ("b", "answered")], [], True),
        ([("a", "silent")], [("a", "answered")], False),
        ([("a", "silent")], [("b", "answered")], None),  # a may be down
        ([("a", "silent")], [("a", "silent")], None),
    ],
)
def test_whether_a_transport_gets_out(
    here: list[tuple[str, str]], other: list[tuple[str, str]], passes: bool | None
) -> None:
    found = judge_passage([reach(h, 1, o) for h, o in here], [reach(h, 1, o) for h, o in other])
    assert found is passes


@pytest.mark.parametrize(
    ("tried", "ports"),
    [
        ([], None),
        ([(443, "answered")], None),
        ([(443, "answered"), (3478, "silent")], {443}),
        ([(443, "answered"), (80, "refused"), (3478, "silent")], {80, 443}),
        ([(443, "answered"), (3478, "silent"), (3478, "answered")], None),
        ([(443, "silent"), (3478, "answered")], None),
        ([(443, "answered"), (80, "silent")], None),
        ([(3478, "silent")], None),
    ],
)
def test_the_only_ports(tried: list[tuple[int, str]], ports: set[int] | None) -> None:
    assert judge_ports([reach("a", port, outcome) for port, outcome in tried]) == ports


def test_a_mapping_behind_another_nat_is_worth_nothing() -> None:
    assert mapping_is_outermost("11.0.0.1", ["11.0.0.1"])
    assert not mapping_is_outermost("100.64.0.2", ["11.0.0.1"])
    assert mapping_is_outermost("11.0.0.1", [])
    assert not mapping_is_outermost("100.64.0.2", [])
    assert not mapping_is_outermost("192.168.1.7", [])
    # Test networks and the like are ordinary addresses where others confirm them.
    assert mapping_is_outermost("192.168.1.7", ["192.168.1.7"])
    assert mapping_is_outermost("2001:db8::1", [])


def said(udp: Access, tcp: Access, known: Known) -> str:
    return "\n".join(advise(udp, tcp, known))


def test_advice() -> None:
    two: Known = Known(observers={"udp": 2, "tcp": 2}, port_mapping=("switch on UPnP in the router",))
    assert "nobody was there to say" in said(*both(NatVerdict(), passes=None), Known())
    assert "only one observer" in said(*both(NatVerdict()), Known(observers={"udp": 1}))
    assert "only one observer" not in said(*both(EASY), Known(observers={"udp": 1}))  # it has looked at two ports
    assert said(*both(EASY), replace(two, port_mapping=())) == ""
    assert said(*both(EASY), two) == "switch on UPnP in the router"
    assert said(*both(PUBLIC), two) == ""
    hard = said(*both(RANDOM), two)
    assert "switch on UPnP" in hard
    assert "another port" in hard
    assert "another port" not in said(*both(RANDOM, mapped=True), two)
    udp, tcp = both(EASY)
    assert "UDP does not get out" in said(replace(udp, passes=False), tcp, two)
    assert "UDP does not get out" not in said(replace(udp, used=False), tcp, two)
    assert "port 443 only" in said(udp, replace(tcp, only_ports=frozenset({443})), two)
    assert "IPv6 does not get out" in said(udp, tcp, replace(two, ipv6_addresses=True, ipv6=False))
    assert "IPv6 does not get out" not in said(udp, tcp, replace(two, ipv6_addresses=True))
