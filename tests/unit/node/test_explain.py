"""What the report of a failed dial says: both NATs, and what would help."""

from __future__ import annotations

from typing import Any

import pytest

from crust.config import Config
from crust.net.mapping_methods import PortMapping
from crust.net.portmap import PortMapReport
from crust.node.explain import Explainer
from crust.proto.nat.behaviour import Allocation, Filtering, Mapping, NatVerdict
from crust.proto.nat.terms import Standing, Terms
from crust.types import Attempt, Report, Transport

EASY = NatVerdict(mapping=Mapping.ENDPOINT_INDEPENDENT, mapping_confidence=0.9)
HARD = NatVerdict(
    mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    allocation=Allocation.RANDOM,
    mapping_confidence=0.6,
)
NONE = NatVerdict(translated=False)
SWITCHED_OFF = "the router 192.168.1.1 answers PCP, but it is switched off for this host: allow it there"


def attempt(outcome: str, transport: Transport = "tcp", candidate: str = "203.0.113.5:4000") -> Attempt:
    return Attempt(candidate, transport, "host", 0.0, 1.0, outcome)


def explained(
    *attempts: Attempt,
    ours: NatVerdict | None = None,
    theirs: NatVerdict | None = None,
    routers: PortMapReport | None = None,
    advice: tuple[str, ...] = (),
    **config: Any,
) -> Report:
    explainer = Explainer(Config(**config), lambda: routers)
    report = Report("crust…", list(attempts), advice=list(advice))
    if ours is not None or theirs is not None:
        tell = {t: Standing(ours) for t in ("tcp", "utp")} if ours else {}
        told = {t: Standing(theirs) for t in ("tcp", "utp")} if theirs else {}
        explainer.nats(report, Terms(tell, told))  # type: ignore[arg-type]
    explainer.failure(report)
    return report


def said(report: Report) -> str:
    return "\n".join(report.advice)


def test_both_nats_in_words() -> None:
    report = explained(attempt("timed out"), ours=EASY, theirs=HARD)
    assert report.ours["tcp"].mapping == "endpoint-independent"
    assert report.ours["tcp"].sureness == "sure"
    assert report.theirs["utp"].allocation == "random"
    assert report.to_dict()["theirs"]["utp"]["filtering"] == "address-and-port-dependent"
    assert "random ports" in report.theirs["utp"].words


def test_two_hard_nats() -> None:
    report = explained(
        attempt("cancelled"),
        attempt("cancelled", "utp"),
        ours=HARD,
        theirs=HARD,
        advice=("a relay works",),
        bootstrap=[],
    )
    assert report.advice[0].startswith("both NATs are address-and-port-dependent with random ports: only a relay")
    assert report.advice[1] == "a relay works"


def test_a_hard_nat_and_nothing_but_tcp() -> None:
    report = explained(attempt("cancelled"), ours=EASY, theirs=HARD, transports=["tcp"])
    assert "(the peer's) cannot be passed over TCP" in report.advice[0]
    assert "switched off here: utp" in said(report)
    assert explained(attempt("cancelled", "utp"), ours=EASY, theirs=HARD).advice == []


@pytest.mark.parametrize(
    ("ours", "mentioned"), [(EASY, True), (HARD, True), (None, True), (NONE, False)], ids=["easy", "hard", "?", "none"]
)
def test_what_our_router_said(ours: NatVerdict | None, mentioned: bool) -> None:
    report = explained(attempt("timed out"), ours=ours, routers=PortMapReport(advice=[SWITCHED_OFF]))
    assert (SWITCHED_OFF in report.advice) is mentioned


def test_a_router_that_maps_is_no_news() -> None:
    mapping = PortMapping("pcp", "tcp", ("192.168.1.2", 1), ("203.0.113.9", 1), "192.168.1.1", 0.0)
    found = PortMapReport(mappings=[mapping], advice=["behind another NAT"])
    assert "behind another NAT" not in explained(attempt("timed out"), ours=EASY, routers=found).advice


def test_port_mapping_that_is_switched_off() -> None:
    assert "port mapping is switched off here" in said(explained(attempt("timed out"), port_mapping=False))


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("network mismatch", "same network_name"),
        ("signing mismatch", "same setting for signing"),
        ("wrong key", "contact of today"),
        ("not crust", "contact of today"),
        ("refused", "is the peer running?"),
    ],
)
def test_what_answered(outcome: str, words: str) -> None:
    report = explained(attempt(outcome), routers=PortMapReport(advice=[SWITCHED_OFF]))
    assert words in said(report)
    assert (SWITCHED_OFF in report.advice) is (outcome == "refused")


def test_who_could_help() -> None:
    assert "--swap" in said(explained(attempt("timed out")))
    private = explained(attempt("timed out", candidate="[fd00::1]:4000"), attempt("timed out", candidate="10.0.0.1:1"))
    assert "only addresses of the peer's own network were known" in said(private)
    named = explained(attempt("timed out"), bootstrap=["crust:whoever"])
    assert "the same bootstrap nodes" in said(named)
    assert "bootstrap" not in said(explained(attempt("timed out"), theirs=EASY))


def test_what_is_switched_off() -> None:
    report = explained(attempt("timed out"), direct=False, punch=False, transports=["utp"])
    assert "switched off here: direct, punch, tcp" in said(report)
    assert "switched off here: " not in said(explained(attempt("timed out")))
