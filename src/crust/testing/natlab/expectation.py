"""What can be hoped for in a pair of places, from their declarations alone; the figures are the project's aims."""

from __future__ import annotations

from dataclasses import dataclass

from crust.testing.natlab.declare import NATS, Behaviour, Kind, Ports

__all__ = ["Expectation", "expect"]

# Guessing a port is a matter of luck: 1,750 probes find it in 99.9 % of the dials.
_LUCK = 0.99
_LUCK_WITHIN_MS = 10_000.0
# That two ports cannot both be guessed is known as soon as both peers have told of their NATs.
_HOPELESS_MS = 2000.0
# A peer that no rendezvous knows, or no rendezvous at all.
_UNKNOWN_MS = 5000.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a pair of places makes possible.

    Attributes:
        direct: whether a direct path can be had.
        within_ms: the median that is aimed at; None without a direct path.
        why: in a few words.
        share: of the dials that have to come through.
        worst_ms: by when they have to be through; None: whenever.
        told_ms: without a direct path: by when that has to be said; None: whenever.
    """

    direct: bool
    within_ms: float | None
    why: str
    share: float = 1.0
    worst_ms: float | None = None
    told_ms: float | None = None


def expect(first: Kind | str, second: Kind | str, transport: str) -> Expectation:
    """Tell what can be expected of a pair.

    Args:
        first: a kind, or its name.
        second: the other.
        transport: "tcp", "utp", or "any" for the race of both.
    """
    pair = [NATS[kind] if isinstance(kind, str) else kind for kind in (first, second)]
    if transport == "any":
        found = [_expect(pair, each) for each in ("tcp", "utp")]
        return min(found, key=lambda each: (not each.direct, each.within_ms or 0.0))
    return _expect(pair, transport)


def _expect(pair: list[Kind], transport: str) -> Expectation:
    if pair[0] == pair[1] and pair[0].shared:
        return Expectation(True, 250, "same LAN")
    if transport == "utp" and any("udp" in _blocked(each) for each in pair):
        return Expectation(False, None, "UDP is blocked", told_ms=_UNKNOWN_MS)
    if not all(each.ipv4 for each in pair):
        if all(each.ipv6 for each in pair):
            return Expectation(True, 250, "IPv6, which nothing translates")
        return Expectation(False, None, "no address family in common")
    if any(_restricted(each) for each in pair):
        if any(not each.routers for each in pair):
            return Expectation(True, 500, "only to port 443")
        return Expectation(False, None, "no outgoing packet may open a hole")
    if any(router.port_mapping for each in pair for router in each.routers):
        return Expectation(True, 250, "port mapping")
    return _expect_punching(pair, transport)


def _expect_punching(pair: list[Kind], transport: str) -> Expectation:
    hard = [each for each in pair if _mapping(each) is not Behaviour.ENDPOINT_INDEPENDENT]
    within = 500 if any("udp" in _blocked(each) for each in pair) else 250
    if not hard:
        return Expectation(True, within, "endpoint-independent mapping on both sides")
    easy = [each for each in pair if each not in hard]
    if easy and _filtering(easy[0]) is not Behaviour.ADDRESS_AND_PORT_DEPENDENT:
        return Expectation(True, within, "the easy side's filter opens for an address")
    if any(_mapping(each) is Behaviour.ADDRESS_DEPENDENT for each in hard):
        # Where that matters the peers find out too late: the port is the same towards both ports of the rendezvous.
        return Expectation(False, None, "address-dependent mapping looks easier to a rendezvous with one address")
    if all(_ports(each) is Ports.SEQUENTIAL for each in hard):
        return Expectation(True, 600, "predicted ports")
    if easy and transport == "utp":
        return Expectation(True, 2000, "birthday probing", share=_LUCK, worst_ms=_LUCK_WITHIN_MS)
    # Over TCP one side may still try what luck brings.
    told = _HOPELESS_MS if not easy else None
    return Expectation(False, None, "random ports towards each endpoint", told_ms=told)


def _blocked(kind: Kind) -> set[str]:
    return {str(name) for router in kind.routers for name in router.firewall.blocked}


def _restricted(kind: Kind) -> bool:
    return any(router.firewall.tcp_ports is not None for router in kind.routers)


def _mapping(kind: Kind) -> Behaviour:
    found = [router.nat.mapping for router in kind.routers if router.nat is not None]
    return next((each for each in found if each is not Behaviour.ENDPOINT_INDEPENDENT), Behaviour.ENDPOINT_INDEPENDENT)


def _filtering(kind: Kind) -> Behaviour:
    order = list(Behaviour)
    found = [router.nat.filtering for router in kind.routers if router.nat is not None]
    return max(found, key=order.index, default=Behaviour.ENDPOINT_INDEPENDENT)


def _ports(kind: Kind) -> Ports:
    found = [router.nat.ports for router in kind.routers if router.nat is not None]
    return next((each for each in (Ports.RANDOM, Ports.SEQUENTIAL) if each in found), Ports.PRESERVING)
