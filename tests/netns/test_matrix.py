"""The matrix driver, tried with a plain hole puncher: what works and what fails is what the textbooks say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from crust.crypto.keys import Identity
from crust.testing.natlab import (
    NATS,
    Findings,
    Host,
    Kind,
    Lab,
    LabError,
    LabUnavailable,
    Outcome,
    expect,
    matrix,
    programs,
    prove,
    run_matrix,
    table,
)
from crust.types import Candidate
from crust.wire.contact import Contact

pytestmark = pytest.mark.netns

PUNCH = [sys.executable, "-I", "-S", str(Path(__file__).with_name("punch.py"))]


@dataclass(frozen=True)
class Puncher:
    """The hole puncher as a program of the matrix; the listener may be late, the dialler, or neither."""

    listener_late: float = 0.0
    dialler_late: float = 0.0

    def rendezvous(self, host: Host) -> Sequence[str]:
        return [*PUNCH, "rendezvous", *host.addresses]

    def _contact(self, host: Host, rendezvous: dict[str, list[str]]) -> str:
        six = ":" in host.address
        return next(each for each in rendezvous["contact"] if (":" in each) == six)

    def listener(self, host: Host, rendezvous: dict[str, list[str]], transport: str) -> Sequence[str]:
        contact = self._contact(host, rendezvous)
        return [*PUNCH, "listener", host.name, transport, contact, str(self.listener_late)]

    def dialler(
        self, host: Host, rendezvous: dict[str, list[str]], listener: dict[str, str], transport: str
    ) -> Sequence[str]:
        contact = self._contact(host, rendezvous)
        return [*PUNCH, "dialler", f"dialler-{host.name}", transport, contact, listener["name"], str(self.dialler_late)]


async def outcomes(lab: Lab, pairs: list[tuple[str, str]], transport: str, program: Puncher) -> list[Outcome]:
    try:
        dials = run_matrix(lab, program, pairs=pairs, transports=[transport], check_kinds=False)
        return [each async for each in dials]
    except LabUnavailable as error:
        pytest.skip(str(error))


EASY = ["public", "full-cone", "address-restricted", "port-restricted", "port-restricted-random", "cgnat"]


async def test_endpoint_independent_mappings_are_punched(lab: Lab) -> None:
    """Each kind dials the next: a ring covers every kind on either side."""
    ring = list(zip(EASY, [*EASY[1:], EASY[0]], strict=True))
    for transport in ("utp", "tcp"):
        found = await outcomes(lab, ring, transport, Puncher())
        assert [each.error for each in found] == [None] * len(ring), transport
        assert all(each.direct and each.connect_ms and each.connect_ms < 1000 for each in found)


@pytest.mark.parametrize(
    ("first", "second", "transport", "works"),
    [
        ("symmetric-random", "public", "utp", True),
        ("symmetric-random", "full-cone", "utp", True),
        ("symmetric-sequential", "address-restricted", "utp", True),
        ("symmetric-random", "port-restricted", "utp", False),
        ("symmetric-sequential", "symmetric-sequential", "utp", False),
        ("symmetric-random", "full-cone", "tcp", True),
        ("symmetric-random", "port-restricted", "tcp", False),
        ("udp-blocked", "port-restricted", "tcp", True),
        ("same-nat-hairpin", "same-nat-hairpin", "utp", True),
        ("same-nat-hairpin", "same-nat-hairpin", "tcp", True),
        ("same-nat", "same-nat", "utp", False),
        ("ipv6-firewall", "ipv6-firewall", "utp", True),
        ("ipv6-firewall", "ipv6-firewall", "tcp", True),
        ("tcp-reset", "tcp-reset", "tcp", True),
    ],
)
async def test_plain_punching(lab: Lab, first: str, second: str, transport: str, works: bool) -> None:
    [found] = await outcomes(lab, [(first, second)], transport, Puncher())
    assert found.direct is works, found.result


@pytest.mark.parametrize(("transport", "works"), [("utp", False), ("tcp", True)])
async def test_an_early_probe_spoils_an_open_linux_router_for_udp(lab: Lab, transport: str, works: bool) -> None:
    """The probe makes a connection-tracking entry, so that the port of the late side moves; TCP is reset instead."""
    [found] = await outcomes(lab, [("port-restricted", "linux-open")], transport, Puncher(listener_late=0.3))
    assert found.direct is works, found.result
    [found] = await outcomes(lab, [("port-restricted", "port-restricted")], transport, Puncher(listener_late=0.3))
    assert found.direct, found.result


async def test_a_table_of_what_came_of_it(lab: Lab) -> None:
    found = await outcomes(lab, [("public", "public"), ("public", "symmetric-random")], "utp", Puncher())
    lines = table(found, "utp").splitlines()
    assert lines[0].split() == ["public", "symmetric-random"]
    assert lines[1].split()[0] == "public"
    assert lines[1].count("punched") == 2
    assert table([], "tcp") == ""


async def test_kinds_prove_themselves_before_they_are_used(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    proved = []

    async def note(_lab: Lab, kind: Kind) -> Findings:
        proved.append(kind.name)
        return await prove(_lab, kind)

    monkeypatch.setattr(matrix, "prove", note)
    pairs = [("full-cone", "public"), ("public", "full-cone")]
    found = [each async for each in run_matrix(lab, Puncher(), pairs=pairs, transports=["utp"])]
    assert [each.direct for each in found] == [True, True]
    assert proved == ["full-cone", "public"]


async def test_several_at_a_time_in_places_of_their_own(lab: Lab) -> None:
    pairs = [("public", "full-cone"), ("full-cone", "public"), ("full-cone", "full-cone")]
    dials = run_matrix(lab, Puncher(), pairs=pairs, transports=["utp"], tries=2, check_kinds=False, jobs=3)
    found = [each async for each in dials]
    assert sorted({(each.first, each.second) for each in found}) == sorted(pairs)
    assert len(found) == 6
    assert all(each.direct for each in found), [each.result for each in found]


@pytest.mark.parametrize("jobs", [1, 3])
async def test_a_program_that_does_not_start(lab: Lab, jobs: int) -> None:
    class Broken(Puncher):
        def listener(self, *_: object) -> Sequence[str]:
            return ["false"]

    dials = run_matrix(
        lab, Broken(), pairs=[("public", "public")] * 4, transports=["utp"], check_kinds=False, jobs=jobs
    )
    with pytest.raises(LabError, match="listener ended with code 1"):
        [each async for each in dials]


@pytest.mark.parametrize(
    ("late", "tries", "spread"),
    [(0.0, 2, [0.0, 0.0]), (1.0, 2, [1.0, 1.0]), ((0.0, 2.0), 3, [0.0, 1.0, 2.0]), ((0.5, 2.0), 1, [2.0])],
)
def test_lateness_is_spread_over_the_tries(late: float | tuple[float, float], tries: int, spread: list[float]) -> None:
    assert matrix._lateness(late, tries) == spread


def test_dead_addresses_come_first() -> None:
    peer = Identity.generate().id
    own = Candidate("tcp", "11.0.1.1", 443)
    for line in ({"id": str(peer)}, {"id": str(peer), "contact": str(Contact(peer, (own,)))}):
        contact = Contact.parse(programs.with_dead_candidates(line, 20))
        assert contact.id == peer
        assert len({each.host for each in contact.candidates[:20]}) == 10
        assert contact.candidates[20:] == ((own,) if "contact" in line else ())


@pytest.mark.parametrize(
    ("first", "second", "transport", "within"),
    [
        ("public", "public", "tcp", 250),
        ("cgnat", "port-restricted", "utp", 250),
        ("symmetric-random", "address-restricted", "tcp", 250),
        ("symmetric-sequential", "port-restricted", "tcp", 600),
        ("symmetric-random", "port-restricted", "utp", 2000),
        ("symmetric-random", "port-restricted", "tcp", None),
        ("symmetric-random", "symmetric-sequential", "utp", None),
        ("udp-blocked", "full-cone", "utp", None),
        ("address-dependent", "port-restricted", "utp", None),
        ("address-dependent", "address-restricted", "utp", 250),
        ("udp-blocked", "full-cone", "tcp", 500),
        ("tcp-443-only", "public", "tcp", 500),
        ("tcp-443-only", "full-cone", "tcp", None),
        ("igd-symmetric", "symmetric-random", "utp", 250),
        ("ipv6-firewall", "ipv6-firewall", "utp", 250),
        ("ipv6-firewall", "public", "utp", 250),
        ("ipv6-firewall", "full-cone", "utp", None),
        ("same-nat", "same-nat", "utp", 250),
    ],
)
def test_expectations(first: str, second: str, transport: str, within: float | None) -> None:
    assert expect(first, second, transport).within_ms == within
    assert expect(second, first, transport) == expect(first, second, transport)


def test_the_race_is_expected_to_be_as_good_as_the_better_transport() -> None:
    assert expect("udp-blocked", "full-cone", "any") == expect("udp-blocked", "full-cone", "tcp")
    assert expect("symmetric-random", "port-restricted", "any") == expect("symmetric-random", "port-restricted", "utp")
    assert expect("public", "cgnat", "any").within_ms == 250
    assert not expect("symmetric-random", "symmetric-random", "any").direct


def test_every_pair_has_an_expectation() -> None:
    for first in NATS:
        for second in NATS:
            for transport in ("utp", "tcp"):
                found = expect(first, second, transport)
                assert found.direct == (found.within_ms is not None)
                assert found.why
