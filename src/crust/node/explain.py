"""What a report says beside its attempts: how both NATs behave, and, where a dial failed, what would help."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from crust.config import Config
from crust.net.portmap import PortMapReport
from crust.proto.nat.behaviour import NatVerdict
from crust.proto.nat.terms import Standing, Terms
from crust.proto.nat.verdict import sureness
from crust.types import NatReport, Report, Transport

__all__ = ["Explainer"]

_DEPENDENT = ("address-dependent", "address-and-port-dependent")
_SPOKE = ("wrong key", "not crust", "network mismatch", "signing mismatch", "rejected")


class Explainer:
    """Completes the reports of a node's dials.

    Args:
        config: the node's settings.
        routers: tells what our routers answered when they were asked for port mappings.
    """

    def __init__(self, config: Config, routers: Callable[[], PortMapReport | None]) -> None:
        self._config = config
        self._routers = routers

    def nats(self, report: Report, terms: Terms | None) -> None:
        """Write down what is known of both NATs."""
        if terms is not None:
            report.ours = _describe(terms.ours)
            report.theirs = _describe(terms.theirs)

    def failure(self, report: Report) -> None:
        """Add what would help, the most telling first."""
        sentences = [
            *_about_nats(report),
            *_about_answers(report),
            *self._about_rendezvous(report),
            *self._about_routers(report),
            *self._about_settings(),
        ]
        report.advice = list(dict.fromkeys((*sentences[:1], *report.advice, *sentences)))

    def _about_settings(self) -> list[str]:
        """What this side has switched off."""
        off = [name for name in ("direct", "punch") if not getattr(self._config, name)]
        if len(set(self._config.transports)) == 1:
            off.append("utp" if "tcp" in self._config.transports else "tcp")
        return [f"switched off here: {', '.join(off)}; without that there would be more ways"] if off else []

    def _about_rendezvous(self, report: Report) -> list[str]:
        """Who could have passed an offer on."""
        if report.theirs or any(attempt.outcome in _SPOKE for attempt in report.attempts):
            return []
        if not self._config.bootstrap:
            private = [each for each in report.attempts if _is_private(each.candidate)]
            where = "only addresses of the peer's own network were known: " if private == report.attempts else ""
            return [
                f"{where}name a node that both sides stay connected to (--bootstrap CONTACT): it lets them punch holes "
                "into their NATs; or swap contacts by hand (crust ping --swap)"
            ]
        return ["see that the peer is running, and that it names one of the same bootstrap nodes"]

    def _about_routers(self, report: Report) -> Sequence[str]:
        """What our own router could do; of no interest where there is no NAT before us, or the peer itself refuses."""
        if report.ours and not any(each.translated for each in report.ours.values()):
            return []
        if not report.attempts or any(attempt.outcome in _SPOKE for attempt in report.attempts):
            return []
        found = self._routers()
        if found is None:
            return () if self._config.port_mapping else ("port mapping is switched off here: a mapped port would help",)
        return [] if found.mappings else found.advice


def _about_nats(report: Report) -> list[str]:
    """What neither side can change but by other means."""
    hard = {
        transport: [
            whose
            for whose, nats in (("ours", report.ours), ("the peer's", report.theirs))
            if transport in nats and _is_random(nats[transport])
        ]
        for transport in get_args(Transport)
    }
    used = {attempt.transport for attempt in report.attempts}
    if used and all(len(hard[transport]) == 2 for transport in used):
        return [
            "both NATs are address-and-port-dependent with random ports: only a relay, a port mapping or IPv6 will do"
        ]
    if used == {"tcp"} and hard["tcp"]:
        return [
            f"a NAT with random ports ({hard['tcp'][0]}) cannot be passed over TCP: over UDP the port can be searched; "
            "a port mapping or IPv6 would help"
        ]
    return []


def _is_random(nat: NatReport) -> bool:
    """Each destination gets another port, and nobody can tell which."""
    return nat.translated and nat.mapping in _DEPENDENT and nat.allocation == "random"


def _about_answers(report: Report) -> list[str]:
    """What came back from who answered."""
    outcomes = {attempt.outcome for attempt in report.attempts}
    found = []
    if "network mismatch" in outcomes:
        found.append("give both sides the same network_name and network_key")
    if "signing mismatch" in outcomes:
        found.append("give both sides the same setting for signing")
    if outcomes & {"wrong key", "not crust"}:
        found.append("something else answers at an address of the peer: ask it for its contact of today")
    if (
        not found
        and not report.theirs
        and "refused" in {each.outcome for each in report.attempts if each.transport == "tcp"}
    ):
        found.append("a host is there, but nothing listens at that port: is the peer running?")
    return found


def _describe(standings: Mapping[Transport, Standing]) -> dict[Transport, NatReport]:
    return {transport: _nat(standing.verdict) for transport, standing in standings.items()}


def _nat(verdict: NatVerdict) -> NatReport:
    def word(value: object) -> str:
        return str(getattr(value, "name", "unknown")).lower().replace("_", "-")

    return NatReport(
        translated=verdict.translated,
        mapping=word(verdict.mapping),
        filtering=word(verdict.filtering),
        allocation=word(verdict.allocation),
        sureness=sureness(verdict.mapping_confidence).value,
        words=verdict.describe(),
    )


def _is_private(candidate: str) -> bool:
    try:
        return ipaddress.ip_address(candidate.rpartition(":")[0].strip("[]")).is_private
    except ValueError:
        return False
