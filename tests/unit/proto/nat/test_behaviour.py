"""NAT behaviour: verdicts from simulated NATs, steadiness, and what liars can do (PROTOCOL 23)."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from crust.proto.nat.behaviour import (
    MAX_LOCALS,
    MAX_OBSERVERS,
    Allocation,
    Filtering,
    FilteringKind,
    FilteringTest,
    Mapping,
    NatBehaviour,
    NatVerdict,
    Observation,
    OutsideAddress,
    network_of,
)
from crust.testing.simnat import NatType, SimHost, SimInternet

EI, AD, APD = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
OBSERVERS = [("198.51.100.1", 1000), ("192.0.2.1", 1000), ("203.0.114.1", 1000), ("198.18.0.1", 1000)]
SECOND_PORTS = [("198.51.100.1", 1001), ("192.0.2.1", 1001)]
LOCAL = ("192.168.1.2", 5000)


class World:
    """A host behind a NAT, and observers that it asks over UDP."""

    def __init__(self, kind: NatType | None, seed: int = 0, *, trusted: bool = True, life: float = 0.0) -> None:
        self.net = SimInternet(seed)
        nat = self.net.nat("203.0.113.1", kind) if kind else None
        self.host = self.net.host("192.168.1.2" if kind else "203.0.113.1", nat)
        self.behaviour = NatBehaviour("udp")
        self.trusted = trusted
        self.servers: dict[str, SimHost] = {}
        for address, port in [*OBSERVERS, *SECOND_PORTS]:
            server = self.servers.get(address) or self.net.host(address)
            self.servers[address] = server
            server.listen_udp(
                port, lambda data, source, s=server, p=port: s.send(p, source, (data, source, (s.address, p)))
            )

    def ask(self, local_port: int, observers: list[tuple[str, int]], *, gap: float = 0.001) -> NatVerdict:
        def answered(reply: Any, _: object) -> None:
            sent_at, observed, observer = reply
            self.behaviour.observe(
                Observation((self.host.address, local_port), observer, observed, sent_at, self.trusted)
            )

        self.host.listen_udp(local_port, answered)
        for observer in observers:
            self.host.send(local_port, observer, self.net.now)
            self.net.run(self.net.now + gap)
        self.net.run(self.net.now + 0.2)
        return self.behaviour.verdict


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mapping", [EI, AD, APD])
@pytest.mark.parametrize("allocation", [Allocation.PRESERVING, Allocation.SEQUENTIAL, Allocation.RANDOM])
@pytest.mark.parametrize("trusted", [True, False])
def test_verdicts(mapping: Mapping, allocation: Allocation, trusted: bool, seed: int) -> None:
    kind = NatType(mapping=mapping, allocation=allocation, step=2)
    world = World(kind, seed, trusted=trusted)
    world.ask(5000, [*OBSERVERS[:3], *SECOND_PORTS])
    verdict = world.ask(5001, OBSERVERS[:3])
    assert verdict.mapping is mapping
    assert verdict.mapping_confidence > 0.5
    assert verdict.translated
    assert verdict.hosts == (("203.0.113.1",) if trusted or mapping is EI else ())
    if allocation is Allocation.PRESERVING and mapping is not EI:
        # kept for the first destination, random for the others: not the same port, so this is what matters
        assert verdict.allocation in (Allocation.RANDOM, Allocation.PRESERVING)
    else:
        assert verdict.allocation is allocation
    if allocation is Allocation.SEQUENTIAL:
        assert verdict.step in (1, 2)


@pytest.mark.parametrize("step", [1, 2, -1, -3])
def test_two_nodes_suffice_for_a_first_verdict(step: int) -> None:
    """What a node that is connected to two rendezvous knows: one socket, two observers."""
    world = World(NatType(mapping=APD, allocation=Allocation.SEQUENTIAL, step=step))
    verdict = world.ask(5000, OBSERVERS[:2])
    assert verdict.mapping is APD
    assert verdict.allocation is Allocation.SEQUENTIAL
    assert (verdict.step > 0) == (step > 0)
    assert "in sequence" in verdict.describe()


def test_wrapping_and_noise() -> None:
    world = World(NatType(mapping=APD, allocation=Allocation.SEQUENTIAL, step=1, noise=50.0))
    for port in range(5000, 5008):
        verdict = world.ask(port, OBSERVERS[:3], gap=0.02)
    assert verdict.allocation is Allocation.SEQUENTIAL
    assert verdict.step == 1
    behaviour = NatBehaviour("udp")
    for n, port in enumerate((65530, 65534, 1026, 1030)):
        seen = Observation(LOCAL, (f"10.{n}.0.1", 1), ("203.0.113.1", port), n / 10, trusted=True)
        behaviour.observe(seen)
    assert behaviour.verdict.allocation is Allocation.SEQUENTIAL


def test_no_nat() -> None:
    world = World(None)
    verdict = world.ask(5000, OBSERVERS[:2])
    assert not verdict.translated
    assert verdict.mapping is EI
    assert verdict.describe() == "no NAT, perhaps a firewall"
    verdict = world.behaviour.filtering_test(FilteringTest(FilteringKind.OTHER_ADDRESS, True, OBSERVERS[0]))
    assert verdict.describe() == "no NAT, no firewall"
    world.behaviour.filtering_test(FilteringTest(FilteringKind.OTHER_ADDRESS, False, OBSERVERS[0], True))
    world.behaviour.filtering_test(FilteringTest(FilteringKind.OTHER_ADDRESS, False, OBSERVERS[1], True))
    verdict = world.behaviour.filtering_test(FilteringTest(FilteringKind.OTHER_ADDRESS, False, OBSERVERS[2], True))
    assert verdict.describe() == "no NAT, a firewall"


def test_one_stranger_cannot_say_anything() -> None:
    behaviour = NatBehaviour("udp")
    for port in range(1, 10):
        observer = (f"198.51.100.{port}", port)  # one /16
        behaviour.observe(Observation(LOCAL, observer, ("203.0.113.1", 1000 * port), 0.0))
    assert behaviour.verdict == NatVerdict("udp")
    assert not any(outside.confirmed for outside in behaviour.outside(LOCAL))
    assert behaviour.samples == ()


def test_two_strangers_that_differ_make_a_guess_only() -> None:
    behaviour = NatBehaviour("udp")
    behaviour.observe(Observation(LOCAL, OBSERVERS[0], ("203.0.113.1", 6000), 0.0))
    verdict = behaviour.observe(Observation(LOCAL, OBSERVERS[1], ("203.0.113.1", 7000), 0.1))
    assert verdict.mapping is APD
    assert verdict.mapping_confidence < 0.5
    verdict = behaviour.observe(Observation(LOCAL, OBSERVERS[2], ("203.0.113.1", 6000), 0.2))
    assert verdict.mapping is EI
    assert behaviour.outside(LOCAL) == [
        OutsideAddress(("203.0.113.1", 6000), confirmed=True, seen_at=0.2),
        OutsideAddress(("203.0.113.1", 7000), confirmed=False, seen_at=0.1),
    ]


@pytest.mark.parametrize("trusted", [True, False])
def test_a_liar_does_not_change_the_verdict(trusted: bool) -> None:
    world = World(NatType(mapping=EI), trusted=trusted)
    before = world.ask(5000, OBSERVERS[:3])
    random = Random(3)
    for n in range(200):
        liar = (f"10.66.0.{n % 250}", random.randrange(1, 65536))
        lie = (random.choice(["203.0.113.1", "203.0.113.2", "192.168.1.2"]), random.choice([5000, 1024 + n]))
        verdict = world.behaviour.observe(Observation(LOCAL, liar, lie, world.net.now + n / 1000))
        assert (verdict.mapping, verdict.translated, verdict.hosts) == (EI, True, before.hosts)
        assert verdict.allocation is before.allocation
    for n in range(20):
        verdict = world.behaviour.filtering_test(
            FilteringTest(FilteringKind.OTHER_ADDRESS, False, (f"10.66.1.{n}", n + 1))
        )
        assert verdict.filtering is Filtering.UNKNOWN
    assert world.behaviour.outside(LOCAL)[0].address == ("203.0.113.1", 5000)


def test_two_liars_in_different_networks_are_heard() -> None:
    """The limit of the rule: it takes two."""
    world = World(NatType(mapping=EI))
    world.ask(5000, OBSERVERS[:2])
    for n in range(8):
        for network in (66, 77):
            lie = ("203.0.113.1", 2000 + n + network)
            world.behaviour.observe(Observation(LOCAL, (f"10.{network}.0.{n}", 1), lie, world.net.now))
    assert world.behaviour.verdict.mapping in (EI, APD)


def test_the_verdict_does_not_flap() -> None:
    """One odd observation in five (a mapping that lapsed, a port that was taken) changes nothing."""
    behaviour = NatBehaviour("udp")
    random = Random(1)
    changes, last = 0, None
    for n in range(400):
        local = ("192.168.1.2", 5000 + n // 4)
        odd = random.random() < 0.1
        outside = ("203.0.113.1", 30000 + n if odd else local[1])
        verdict = behaviour.observe(Observation(local, OBSERVERS[n % 4], outside, float(n), trusted=True))
        changes += last is not None and verdict.mapping is not last
        last = verdict.mapping
    assert last is EI
    assert changes <= 1  # from unknown


def test_a_nat_that_changes_is_noticed_after_a_few_looks() -> None:
    behaviour = NatBehaviour("udp")
    for n in range(4):
        behaviour.observe(Observation(LOCAL, OBSERVERS[n % 2], ("203.0.113.1", 5000), n, trusted=True))
    assert behaviour.verdict.mapping is EI
    verdicts = []
    for n in range(4, 24):
        local = ("192.168.1.2", 6000 + n // 2)
        outside = ("203.0.113.9", 20000 + 777 * n % 40000)
        verdicts.append(behaviour.observe(Observation(local, OBSERVERS[n % 2], outside, n, trusted=True)).mapping)
    assert verdicts[1] is EI
    assert verdicts[-1] is APD
    assert sorted(verdicts) == verdicts
    behaviour.network_changed()
    assert behaviour.verdict == NatVerdict("udp")


def test_a_mapping_that_lapsed_is_not_compared_with_the_one_before() -> None:
    behaviour = NatBehaviour("udp")
    behaviour.observe(Observation(LOCAL, OBSERVERS[0], ("203.0.113.1", 6000), 0.0, trusted=True))
    behaviour.observe(Observation(LOCAL, OBSERVERS[1], ("203.0.113.1", 6000), 1.0, trusted=True))
    verdict = behaviour.verdict
    behaviour.observe(Observation(LOCAL, OBSERVERS[0], ("203.0.113.1", 7000), 30.0, trusted=True))
    behaviour.observe(Observation(LOCAL, OBSERVERS[1], ("203.0.113.1", 7000), 30.1, trusted=True))
    assert behaviour.verdict.mapping is verdict.mapping is EI
    assert behaviour.outside(LOCAL)[0].address == ("203.0.113.1", 7000)
    # nor are observations that lie far apart
    other = NatBehaviour("udp")
    other.observe(Observation(LOCAL, OBSERVERS[0], ("203.0.113.1", 6000), 0.0, trusted=True))
    assert (
        other.observe(Observation(LOCAL, OBSERVERS[1], ("203.0.113.1", 7000), 90.0, trusted=True)).mapping
        is Mapping.UNKNOWN
    )


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        (True, True, Filtering.ENDPOINT_INDEPENDENT),
        (False, True, Filtering.ADDRESS_DEPENDENT),
        (False, False, Filtering.ADDRESS_AND_PORT_DEPENDENT),
        (False, None, Filtering.ADDRESS_AND_PORT_DEPENDENT),
        (None, True, Filtering.ADDRESS_DEPENDENT),
        (None, False, Filtering.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_filtering(address: bool | None, port: bool | None, expected: Filtering) -> None:
    behaviour = NatBehaviour("udp")
    for kind, answered in ((FilteringKind.OTHER_ADDRESS, address), (FilteringKind.OTHER_PORT, port)):
        if answered is not None:
            behaviour.filtering_test(FilteringTest(kind, answered, OBSERVERS[0], trusted=True))
    assert behaviour.verdict.filtering is expected
    assert (behaviour.verdict.filtering_confidence > 0.4) == (expected is not Filtering.UNKNOWN)


def test_an_answer_that_came_in_needs_no_second_witness() -> None:
    behaviour = NatBehaviour("udp")
    verdict = behaviour.filtering_test(FilteringTest(FilteringKind.OTHER_ADDRESS, True, OBSERVERS[0]))
    assert verdict.filtering is Filtering.ENDPOINT_INDEPENDENT
    # two strangers whose tests failed do not outweigh it
    for observer in OBSERVERS[1:3]:
        behaviour.filtering_test(FilteringTest(FilteringKind.OTHER_ADDRESS, False, observer))
    assert behaviour.verdict.filtering is Filtering.ENDPOINT_INDEPENDENT


def test_hairpinning() -> None:
    behaviour = NatBehaviour("udp")
    assert behaviour.verdict.hairpinning is None
    assert behaviour.hairpin_test(True).hairpinning is True
    assert behaviour.hairpin_test(False).hairpinning is True  # once is not enough
    assert behaviour.hairpin_test(False).hairpinning is False
    assert "no hairpinning" in behaviour.verdict.describe()


def test_memory_is_bounded() -> None:
    behaviour = NatBehaviour("udp")
    for n in range(800):
        local = ("192.168.1.2", 1024 + n % 500)
        observer = (f"{n % 200 + 1}.{n % 7}.0.1", n % 100 + 1)
        behaviour.observe(Observation(local, observer, ("203.0.113.1", 1024 + n), float(n)))
    for n in range(100):
        trusted = Observation(LOCAL, (f"9.{n}.0.1", 1), ("203.0.113.1", 2000 + n), 3000.0 + n, trusted=True)
        behaviour.observe(trusted)
    assert len(behaviour.samples) <= 64
    assert len(behaviour._seen) <= MAX_LOCALS
    assert all(len(seen) <= MAX_OBSERVERS for seen in behaviour._seen.values())


def test_words() -> None:
    verdict = NatVerdict("udp", EI, Filtering.ADDRESS_AND_PORT_DEPENDENT, Allocation.PRESERVING)
    assert verdict.describe() == ("endpoint-independent mapping, address-and-port-dependent filtering, ports preserved")
    assert not verdict.dependent
    assert replace(verdict, mapping=AD).dependent
    unknown = NatVerdict("udp", allocation=Allocation.RANDOM, hairpinning=True)
    assert unknown.describe() == "mapping unknown, filtering unknown, random ports, hairpinning"
    assert network_of("198.51.100.7") == "198.51.0.0/16"
    assert network_of("2001:db8:1:2::3%eth0") == "2001:db8::/32"


class TestOneObserverWithTwoPorts:
    """All that one rendezvous with one address can tell."""

    def sees(self, *ports: int, trusted: bool = True) -> NatBehaviour:
        behaviour = NatBehaviour("udp")
        for number, port in enumerate(ports):
            observer = (OBSERVERS[0][0], 443 + number)
            behaviour.observe(Observation(LOCAL, observer, ("203.0.113.1", port), float(number), trusted=trusted))
        return behaviour

    def test_the_same_port_at_both(self) -> None:
        verdict = self.sees(6000, 6000).verdict
        assert verdict.mapping is EI
        assert verdict.mapping_confidence == pytest.approx(0.5, abs=0.01)  # the address may count all the same
        assert verdict.allocation is Allocation.RANDOM  # not preserved, that is

    def test_another_port_at_the_other(self) -> None:
        verdict = self.sees(6000, 6001).verdict
        assert verdict.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
        assert (verdict.allocation, verdict.step) == (Allocation.SEQUENTIAL, 1)

    def test_a_stranger_alone_is_not_believed_that_ports_differ(self) -> None:
        assert self.sees(6000, 6001, trusted=False).verdict.mapping is EI

    def test_who_comes_second_decides(self) -> None:
        behaviour = self.sees(6000, 6000)
        behaviour.observe(Observation(LOCAL, OBSERVERS[1], ("203.0.113.1", 7000), 3.0, trusted=True))
        assert behaviour.verdict.mapping is Mapping.ADDRESS_DEPENDENT

    def test_filtering_silence_of_a_stranger_proves_nothing(self) -> None:
        behaviour = NatBehaviour("udp")
        behaviour.filtering_test(FilteringTest(FilteringKind.OTHER_PORT, False, OBSERVERS[0], trusted=False))
        assert behaviour.verdict.filtering is Filtering.UNKNOWN

    def test_a_host_without_a_nat_of_which_one_host_knows(self) -> None:
        behaviour = NatBehaviour("udp")
        behaviour.observe(Observation(LOCAL, OBSERVERS[0], LOCAL, 0.0, trusted=True))
        behaviour.filtering_test(FilteringTest(FilteringKind.OTHER_PORT, True, OBSERVERS[0], trusted=True))
        assert behaviour.verdict.describe() == "no NAT, perhaps a firewall"
