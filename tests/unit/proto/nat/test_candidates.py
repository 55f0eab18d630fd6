"""Priorities, duplicates, and the screening of a stranger's candidates."""

from __future__ import annotations

import ipaddress

import pytest

from crust.proto.nat.candidates import (
    LocalView,
    Trust,
    candidate_priority,
    deduplicate,
    order_local,
    pair_priority,
    screen,
)
from crust.proto.nat.limits import TraversalLimits
from crust.types import Candidate

HOME = LocalView(
    on_link=(ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("2001:db8:1::/64")),
    outside_hosts=frozenset({"198.51.100.1"}),
    own=frozenset({("192.168.1.5", 4000)}),
)


def utp(host: str, port: int = 5000, kind: str = "host") -> Candidate:
    return Candidate("utp", host, port, kind)  # type: ignore[arg-type]


def test_priorities_as_in_rfc_8445() -> None:
    assert candidate_priority("host", "tcp", 65535) == 2**24 * 126 + 2**8 * 65535 + 255
    assert candidate_priority("relayed", "utp", -5) == 254
    order = [
        candidate_priority("host", "tcp", 0),
        candidate_priority("mapped", "tcp"),
        candidate_priority("peer-reflexive", "tcp"),
        candidate_priority("server-reflexive", "tcp"),
        candidate_priority("server-reflexive", "utp"),
        candidate_priority("server-reflexive", "tcp", 7),
        candidate_priority("predicted", "tcp"),
        candidate_priority("relayed", "tcp", 70000),
    ]
    assert order == sorted(order, reverse=True)
    assert pair_priority(5, 3) == 2**32 * 3 + 2 * 5 + 1
    assert pair_priority(3, 5) == 2**32 * 3 + 2 * 5


def test_duplicates_keep_the_better_kind() -> None:
    candidates = [
        utp("198.51.100.1", kind="server-reflexive"),
        utp("198.51.100.1", kind="host"),
        utp("198.51.100.1", kind="predicted"),
        Candidate("tcp", "198.51.100.1", 5000, "server-reflexive"),
    ]
    assert deduplicate(candidates) == [candidates[1], candidates[3]]


def test_own_candidates_in_order() -> None:
    candidates = [
        utp("198.51.100.1", kind="predicted"),
        utp("198.51.100.1", 5001, kind="server-reflexive"),
        utp("192.168.1.5"),
        utp("2001:db8:1::5"),
        utp("198.51.100.1", 4000, kind="mapped"),
    ]
    ordered = order_local(candidates, ["2001:db8:1::5", "192.168.1.5"])
    assert [c.kind for c in ordered] == ["host", "host", "mapped", "server-reflexive", "predicted"]
    assert ordered[0].host == "2001:db8:1::5"


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("224.0.0.1", 5000, "multicast"),
        ("ff02::1", 5000, "multicast"),
        ("239.255.255.250", 1900, "multicast"),
        ("255.255.255.255", 5000, "broadcast"),
        ("192.168.1.255", 5000, "broadcast"),
        ("192.168.1.0", 5000, "a network, not a host"),
        ("0.0.0.0", 5000, "unspecified"),
        ("0.1.2.3", 5000, "unspecified"),
        ("::", 5000, "unspecified"),
        ("127.0.0.1", 6379, "loopback of somebody else"),
        ("127.9.9.9", 6379, "loopback of somebody else"),
        ("::1", 6379, "loopback of somebody else"),
        ("::ffff:127.0.0.1", 6379, "IPv4 written as IPv6"),
        ("::ffff:192.0.2.1", 5000, "IPv4 written as IPv6"),
        ("192.0.2.1", 0, "no such port"),
        ("192.0.2.1", 65536, "no such port"),
        ("example.org", 5000, "not a numeric address"),
        ("192.168.1.5", 4000, "our own address"),
        ("10.0.0.7", 5000, "private, and neither on our link nor behind our outside address"),
        ("192.168.2.7", 5000, "private, and neither on our link nor behind our outside address"),
        ("172.16.0.1", 5000, "private, and neither on our link nor behind our outside address"),
        ("fd00::7", 5000, "private, and neither on our link nor behind our outside address"),
        ("fe80::7", 5000, "private, and neither on our link nor behind our outside address"),
    ],
)
def test_lying_candidates_are_refused(host: str, port: int, reason: str) -> None:
    result = screen([utp(host, port)], HOME, attested_hosts=frozenset({"203.0.113.5"}))
    assert result.kept == []
    assert result.refused == [(utp(host, port), reason)]


def test_what_nobody_attests_is_claimed() -> None:
    candidates = [utp("203.0.113.5", 5000, "server-reflexive"), utp("192.0.2.99", 53)]
    result = screen(candidates, HOME, attested_hosts=frozenset({"203.0.113.5"}))
    assert {kept.address: kept.trust for kept in result.kept} == {
        ("203.0.113.5", 5000): Trust.ATTESTED,
        ("192.0.2.99", 53): Trust.CLAIMED,
    }


def test_near_addresses_come_first() -> None:
    """Both behind one NAT: on-link, then private ones elsewhere in the same network, then hairpinning."""
    candidates = [
        utp("198.51.100.1", 5000, "server-reflexive"),
        utp("10.0.0.7"),
        utp("192.168.1.7"),
        utp("203.0.113.5"),
    ]
    result = screen(candidates, HOME, attested_hosts=frozenset({"198.51.100.1"}))
    assert [(kept.candidate.host, kept.near) for kept in result.kept] == [
        ("10.0.0.7", True),
        ("192.168.1.7", True),
        ("203.0.113.5", False),
        ("198.51.100.1", False),
    ]
    assert result.refused == []


def test_hairpinning_only_where_it_may_work() -> None:
    view = LocalView(outside_hosts=frozenset({"198.51.100.1"}), hairpinning=False)
    candidate = utp("198.51.100.1", 5000, "server-reflexive")
    assert screen([candidate], view).refused == [(candidate, "our NAT does not hairpin")]
    assert screen([candidate], LocalView(outside_hosts=frozenset({"198.51.100.1"}))).kept


def test_private_ranges_that_are_the_outside() -> None:
    """In a lab, or behind a CGNAT, "public" addresses are private ones."""
    inside_cgnat = LocalView(outside_hosts=frozenset({"100.64.3.4"}))
    assert screen([utp("100.64.9.9")], inside_cgnat).kept
    assert not screen([utp("10.1.2.3")], inside_cgnat).kept
    # what a rendezvous sees is never private
    assert screen([utp("10.1.2.3")], HOME, attested_hosts=frozenset({"10.1.2.3"})).kept
    # no other registry class is skipped
    for host in ("192.0.2.1", "198.18.0.1", "203.0.113.1", "240.0.0.1", "2001:db8::1", "64:ff9b::102:304"):
        assert screen([utp(host)], HOME).kept


def test_a_contact_that_the_user_gave() -> None:
    result = screen([utp("127.0.0.1"), utp("10.9.9.9"), utp("224.0.0.1")], HOME, by_hand=True)
    assert [(kept.candidate.host, kept.trust) for kept in result.kept] == [
        ("127.0.0.1", Trust.BY_HAND),
        ("10.9.9.9", Trust.BY_HAND),
    ]
    assert result.refused == [(utp("224.0.0.1"), "multicast")]


def test_families_and_numbers_are_limited() -> None:
    view = LocalView(families=frozenset({4}))
    assert screen([utp("2001:db8::1")], view).refused[0][1] == "no IPv6 here"
    candidates = [utp(f"203.0.113.{n}") for n in range(1, 100)] + [utp("203.0.113.1")]
    result = screen(candidates, HOME, limits=TraversalLimits(candidates=10))
    assert len(result.kept) == 10
    assert len(result.refused) == 89
    assert result.refused[0][1] == "more than 10 candidates"


def test_a_point_to_point_link_has_no_broadcast() -> None:
    view = LocalView(on_link=(ipaddress.ip_network("10.0.0.0/31"), ipaddress.ip_network("10.8.0.2/32")))
    assert len(screen([utp("10.0.0.0"), utp("10.0.0.1"), utp("10.8.0.2")], view).kept) == 3


def test_the_peers_own_order_and_ipv6_first() -> None:
    candidates = [utp("203.0.113.1"), utp("203.0.113.2"), utp("2001:db8::3")]
    assert [kept.candidate.host for kept in screen(candidates, HOME).kept] == [
        "203.0.113.1",
        "203.0.113.2",
        "2001:db8::3",
    ]
