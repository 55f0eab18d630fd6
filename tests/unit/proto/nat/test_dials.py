"""Thousands of dials between simulated NATs: every pair, both transports, late starts, loss, jitter, noise.

Times are simulated: 40 ms round trip between the sites, and offers that take half of that through the rendezvous.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import pytest

from crust.proto.nat.behaviour import Allocation
from crust.proto.nat.limits import TraversalLimits
from crust.testing.simnat import NatType
from tests.nat_dial import AD, HOST, TYPES, DialResult, dial

EASY = ["public", "full cone", "address-restricted", "port-restricted", "port-restricted random", "linux"]
OPEN = ["public", "full cone", "address-restricted"]
STRICT = ["port-restricted", "port-restricted random", "linux"]
SEQUENTIAL, RANDOM = TYPES["symmetric sequential"], TYPES["symmetric random"]
PORT_RESTRICTED, LINUX = TYPES["port-restricted"], TYPES["linux"]
assert SEQUENTIAL is not None
assert RANDOM is not None
assert PORT_RESTRICTED is not None
LIMITS = TraversalLimits()

Protocol = Literal["udp", "tcp"]
PROTOCOLS = pytest.mark.parametrize("protocol", ["udp", "tcp"])


def dials(ours: NatType | None, theirs: NatType | None, count: int = 20, **options: Any) -> list[DialResult]:
    return [dial(ours, theirs, seed=seed, **options) for seed in range(count)]


def check(results: list[DialResult], *, median: float, share: float = 1.0) -> None:
    """Enough of them connected, in time, politely, and from the port that was measured."""
    connected = [result for result in results if result.connected]
    assert len(connected) >= share * len(results)
    assert statistics.median(result.seconds for result in connected) <= median
    for result in results:
        assert max(result.sent) <= LIMITS.dial_datagrams
        assert max(result.sockets) <= LIMITS.dial_sockets
        assert result.source_port_is_measured


@PROTOCOLS
@pytest.mark.parametrize(("ours", "theirs"), list(product(EASY, EASY)))
def test_endpoint_independent_mapping_on_both_sides(protocol: Protocol, ours: str, theirs: str) -> None:
    check(dials(TYPES[ours], TYPES[theirs], 12, protocol=protocol), median=0.15)


@PROTOCOLS
@pytest.mark.parametrize("hard", ["symmetric sequential", "symmetric random"])
@pytest.mark.parametrize("easy", OPEN)
@pytest.mark.parametrize("turn", [False, True])
def test_symmetric_against_open(protocol: Protocol, hard: str, easy: str, turn: bool) -> None:
    """The packet passes directly: nothing is guessed."""
    pair = (TYPES[hard], TYPES[easy])
    results = dials(*(reversed(pair) if turn else pair), 12, protocol=protocol)
    check(results, median=0.2)
    assert max(max(result.sent) for result in results) < 10


@PROTOCOLS
@pytest.mark.parametrize("easy", STRICT)
@pytest.mark.parametrize("step", [1, 2, -1, 5])
@pytest.mark.parametrize("turn", [False, True])
def test_symmetric_sequential_against_port_restricted(protocol: Protocol, easy: str, step: int, turn: bool) -> None:
    pair = (replace(SEQUENTIAL, step=step), TYPES[easy])
    check(dials(*(reversed(pair) if turn else pair), 10, protocol=protocol), median=0.25)


@PROTOCOLS
@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (1, 2), (2, 2), (-1, 1), (3, 1), (8, -8)])
def test_symmetric_sequential_on_both_sides(protocol: Protocol, ours: int, theirs: int) -> None:
    results = dials(replace(SEQUENTIAL, step=ours), replace(SEQUENTIAL, step=theirs), 15, protocol=protocol)
    check(results, median=0.35)


@pytest.mark.parametrize("easy", ["port-restricted", "linux"])
@pytest.mark.parametrize("turn", [False, True])
def test_symmetric_random_against_port_restricted(easy: str, turn: bool) -> None:
    """Birthday probing: median below 2 s, 99 % within 10 s."""
    pair = (RANDOM, TYPES[easy])
    results = dials(*(reversed(pair) if turn else pair), 100)
    check(results, median=2.0, share=0.99)
    assert {result.sockets for result in results} == {(1, 256) if turn else (256, 1)}


def test_a_nat_that_is_dependent_on_the_host_only() -> None:
    """Address-dependent mapping and filtering: found by birthday probing even from a hard NAT."""
    by_host = replace(RANDOM, mapping=AD, filtering=HOST)
    check(dials(by_host, RANDOM, 30), median=2.0, share=0.96)
    check(dials(by_host, by_host, 30), median=2.0, share=0.96)


@PROTOCOLS
@pytest.mark.parametrize("theirs", ["symmetric random", "symmetric sequential"])
def test_hopeless_pairs_are_named_at_once(protocol: Protocol, theirs: str) -> None:
    for result in dials(RANDOM, TYPES[theirs], 5, protocol=protocol):
        assert not result.connected
        assert result.hopeless_after is not None
        assert result.hopeless_after < 0.2
        assert max(result.sent) < 50


def test_symmetric_random_over_tcp_is_hopeless() -> None:
    for result in dials(RANDOM, PORT_RESTRICTED, 5, protocol="tcp"):
        assert result.hopeless_after is not None


@PROTOCOLS
@pytest.mark.parametrize(("ours", "theirs"), list(product(STRICT, STRICT)))
@pytest.mark.parametrize("late", [0.0, 0.05, 0.6, 2.0, -0.6, -2.0])
def test_late_starts_with_contacts_swapped_by_hand(protocol: Protocol, ours: str, theirs: str, late: float) -> None:
    """Nobody tells who begins; a Linux router without an input firewall punishes whoever is early."""
    quiet = protocol == "udp"
    results = dials(TYPES[ours], TYPES[theirs], 8, protocol=protocol, late=late, quiet=quiet)
    assert all(result.connected for result in results)
    after = [result.seconds - abs(late) for result in results]
    assert statistics.median(after) < 0.25


def test_without_a_quiet_socket_the_late_linux_router_wins() -> None:
    """The trap that the quiet socket is for: if this connects, the simulation has lost its teeth."""
    results = dials(PORT_RESTRICTED, LINUX, 5, late=0.6, quiet=False)
    assert not any(result.connected for result in results)


@pytest.mark.parametrize("late", [0.6, 2.0, -0.6, -2.0])
def test_late_starts_with_prediction(late: float) -> None:
    for ours, theirs in ((SEQUENTIAL, LINUX), (LINUX, SEQUENTIAL), (SEQUENTIAL, SEQUENTIAL)):
        results = dials(ours, theirs, 8, late=late, quiet=True)
        assert all(result.connected for result in results)
        assert statistics.median(result.seconds for result in results) < abs(late) + 0.6


@PROTOCOLS
@pytest.mark.parametrize(("loss", "jitter"), [(0.02, 0.0), (0.1, 0.0), (0.0, 0.02), (0.05, 0.05)])
def test_bad_networks(protocol: Protocol, loss: float, jitter: float) -> None:
    for ours, theirs in ((PORT_RESTRICTED, PORT_RESTRICTED), (SEQUENTIAL, PORT_RESTRICTED), (LINUX, LINUX)):
        results = dials(ours, theirs, 15, protocol=protocol, loss=loss, jitter=jitter)
        check(results, median=0.6)


@PROTOCOLS
@pytest.mark.parametrize("noise", [5.0, 20.0, 100.0])
def test_others_behind_the_same_nat(protocol: Protocol, noise: float) -> None:
    busy = replace(SEQUENTIAL, noise=noise)
    check(dials(busy, PORT_RESTRICTED, 25, protocol=protocol), median=0.25, share=0.96)
    check(dials(PORT_RESTRICTED, busy, 25, protocol=protocol), median=0.25, share=0.96)
    # At a hundred ports a second, somebody else is often given the very port of the meeting: more rounds, and luck.
    loud = noise == 100.0
    check(dials(busy, busy, 25, protocol=protocol), median=1.5 if loud else 0.3, share=0.5 if loud else 0.92)


def test_syns_answered_with_rst() -> None:
    rst = replace(PORT_RESTRICTED, syn="rst")
    rst_sequential = replace(SEQUENTIAL, syn="rst")
    for ours, theirs in ((rst, rst), (rst, PORT_RESTRICTED), (PORT_RESTRICTED, rst)):
        check(dials(ours, theirs, protocol="tcp"), median=0.15)
        check(dials(ours, theirs, protocol="tcp", jitter=0.03), median=0.3)
        for late in (0.6, -0.6, 2.0, -2.0):
            results = dials(ours, theirs, protocol="tcp", late=late)
            assert all(result.connected for result in results)
            assert statistics.median(result.seconds for result in results) < abs(late) + 0.3
    check(dials(rst_sequential, rst, protocol="tcp"), median=0.3)
    check(dials(rst_sequential, rst_sequential, protocol="tcp"), median=0.4)


@PROTOCOLS
def test_carrier_grade_nat(protocol: Protocol) -> None:
    carrier = replace(PORT_RESTRICTED, allocation=Allocation.RANDOM)
    check(dials(PORT_RESTRICTED, PORT_RESTRICTED, protocol=protocol, carriers=(carrier, None)), median=0.15)
    check(dials(PORT_RESTRICTED, PORT_RESTRICTED, protocol=protocol, carriers=(carrier, carrier)), median=0.15)
    check(dials(PORT_RESTRICTED, LINUX, protocol=protocol, carriers=(SEQUENTIAL, None)), median=0.25)
    if protocol == "udp":
        check(dials(PORT_RESTRICTED, LINUX, 30, carriers=(RANDOM, None)), median=2.0, share=0.96)


def test_no_address_gets_more_than_its_share() -> None:
    for ours, theirs in product(TYPES.values(), repeat=2):
        for result in dials(ours, theirs, 2):
            assert result.to_one_address <= 1024


@PROTOCOLS
@pytest.mark.parametrize("kind", ["full cone", "port-restricted", "symmetric random", "symmetric sequential"])
@pytest.mark.parametrize("hairpinning", [True, False])
def test_two_hosts_behind_one_nat(protocol: Protocol, kind: str, hairpinning: bool) -> None:
    """The address on the common link is tried first, whatever the NAT does with packets to itself."""
    behind = TYPES[kind]
    assert behind is not None
    results = dials(replace(behind, hairpinning=hairpinning), None, 5, protocol=protocol, place="one site")
    check(results, median=0.15)


@PROTOCOLS
def test_firewalls_that_translate_nothing(protocol: Protocol) -> None:
    """IPv6: both sides drop what they did not ask for."""
    results = dials(PORT_RESTRICTED, PORT_RESTRICTED, 10, protocol=protocol, place="firewalls")
    check(results, median=0.15)
    rst = replace(PORT_RESTRICTED, syn="rst")
    check(dials(rst, rst, 10, protocol=protocol, place="firewalls"), median=0.15)


@PROTOCOLS
def test_the_measured_port_must_be_the_used_one(protocol: Protocol) -> None:
    """A side that sends from another port is found out, or not reached at all."""
    for ours in ("full cone", "port-restricted", "symmetric random"):
        results = dials(TYPES[ours], TYPES["full cone"], 5, protocol=protocol, cheat=True)
        if ours == "symmetric random":
            continue  # nobody expects its port
        assert not any(result.connected and result.source_port_is_measured for result in results)
