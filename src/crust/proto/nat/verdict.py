"""What a network allows: from how its NAT was seen to behave to what a dial to each kind of peer would take.

Nothing is measured here. `Access` holds what is known of each transport; `outlook` plays every kind of peer against
it, with the same table that a dial decides by (`strategy.plan`); `advise` says what would help.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from crust.proto.nat.behaviour import Allocation, Filtering, Mapping, NatVerdict
from crust.proto.nat.leases import IpProtocol
from crust.proto.nat.strategy import Approach, plan

__all__ = [
    "PEERS",
    "Access",
    "Known",
    "Outlook",
    "PeerKind",
    "Reach",
    "Sureness",
    "Way",
    "advise",
    "judge_passage",
    "judge_ports",
    "mapping_is_outermost",
    "outlook",
    "sureness",
]

_SURE, _LIKELY = 0.75, 0.5
_WEB_PORTS = frozenset({80, 443})
_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))


class Way(enum.Enum):
    """How two peers come together, the better ways first."""

    DIRECT = "direct"
    MAPPED = "mapped"
    PUNCHED = "punched"
    PREDICTED = "port prediction"
    SEARCHED = "port search"
    RELAYED = "relay"

    @property
    def rank(self) -> int:
        """Lower is better."""
        return list(Way).index(self)


class Sureness(enum.Enum):
    """How far a verdict can be relied on."""

    SURE = "sure"
    LIKELY = "likely"
    GUESS = "guess"


def sureness(confidence: float) -> Sureness:
    """A confidence of `NatVerdict` as a word; one pair of trusted observers is "likely", two pairs are "sure"."""
    if confidence >= _SURE:
        return Sureness.SURE
    return Sureness.LIKELY if confidence >= _LIKELY else Sureness.GUESS


@dataclass(frozen=True, slots=True)
class Reach:
    """What came of reaching out to one observer.

    Attributes:
        host: of the observer.
        port: of the observer.
        answered: it told us our outside address.
        silent: nothing at all came back, not even a refusal.
    """

    host: str
    port: int
    answered: bool
    silent: bool


def judge_passage(here: Sequence[Reach], other: Sequence[Reach]) -> bool | None:
    """Whether a transport gets out of this network.

    Args:
        here: what was tried over this transport.
        other: what was tried over the other one: a host that answers there is not down.

    Returns:
        None where nothing can be said: nobody was asked, or nobody answers over either transport.
    """
    if any(reach.answered or not reach.silent for reach in here):
        return True
    alive = {reach.host for reach in other if reach.answered}
    return False if any(reach.host in alive for reach in here) else None


def judge_ports(tcp: Sequence[Reach]) -> frozenset[int] | None:
    """The only ports that TCP gets out to, where it looks so; None where there is no such limit, or no evidence."""
    reached = {reach.port for reach in tcp if reach.answered or not reach.silent}
    unreached = {reach.port for reach in tcp if reach.silent} - reached
    return frozenset(reached) if reached and unreached - _WEB_PORTS and reached <= _WEB_PORTS else None


def mapping_is_outermost(external: str, outside: Sequence[str]) -> bool:
    """Whether a port that a router maps can be reached from the internet.

    Args:
        external: the outside host that the router tells.
        outside: hosts by which others saw us; empty where nobody was asked.
    """
    if outside:
        return external in outside
    address = ipaddress.ip_address(external)
    return not any(address in network for network in _PRIVATE if network.version == address.version)


@dataclass(frozen=True, slots=True)
class Access:
    """What one transport has here.

    Attributes:
        verdict: of the NAT, for IPv4.
        passes: whether packets get out and back; None: not known.
        mapped: the router maps ports, and they can be reached from outside.
        only_ports: TCP: the only ports that can be reached.
        used: False where the configuration leaves the transport out.
    """

    verdict: NatVerdict
    passes: bool | None = None
    mapped: bool = False
    only_ports: frozenset[int] | None = None
    used: bool = True


@dataclass(frozen=True, slots=True)
class PeerKind:
    """A kind of peer to be dialled.

    Attributes:
        name: a stable name.
        text: for people.
        udp: its NAT over UDP; None where UDP does not pass.
        tcp: the same for TCP.
        ipv6: it has IPv6 only, behind a firewall that lets answers in.
    """

    name: str
    text: str
    udp: NatVerdict | None
    tcp: NatVerdict | None
    ipv6: bool = False


_STRICT = Filtering.ADDRESS_AND_PORT_DEPENDENT
_REACHABLE = NatVerdict(translated=False, filtering=Filtering.ENDPOINT_INDEPENDENT)
_OPEN = NatVerdict(mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=Filtering.ADDRESS_DEPENDENT)
_EASY = NatVerdict(mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=_STRICT)
_HARD = NatVerdict(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, filtering=_STRICT, allocation=Allocation.RANDOM)
_SEQUENTIAL = replace(_HARD, allocation=Allocation.SEQUENTIAL, step=1)


def _peer(name: str, text: str, verdict: NatVerdict, *, udp: bool = True, ipv6: bool = False) -> PeerKind:
    return PeerKind(name, text, verdict if udp else None, replace(verdict, protocol="tcp"), ipv6)


PEERS: tuple[PeerKind, ...] = (
    _peer("public", "reachable, no NAT", _REACHABLE),
    _peer("open-nat", "an easy NAT that lets in any port of a host that it has sent to", _OPEN),
    _peer("easy-nat", "an easy NAT: one outside port, strict filter", _EASY),
    _peer("sequential-nat", "a hard NAT with consecutive ports", _SEQUENTIAL),
    _peer("hard-nat", "a hard NAT with random ports", _HARD),
    _peer("udp-blocked", "an easy NAT, UDP blocked", _EASY, udp=False),
    _peer("ipv6", "IPv6 only, behind a firewall", NatVerdict(translated=False), ipv6=True),
)
"""The kinds of peers that `outlook` tells about, easy ones first."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a dial to one kind of peer would take.

    Attributes:
        peer: the kind.
        udp: the way over UDP; None where there is none without a relay.
        tcp: the same over TCP.
        best: the better of the two, or the relay.
        sureness: of `best`.
        why: in words.
    """

    peer: PeerKind
    udp: Way | None
    tcp: Way | None
    best: Way
    sureness: Sureness
    why: str


_OF_APPROACH = {
    Approach.PUNCH: Way.PUNCHED,
    Approach.PREDICT_THEIRS: Way.PREDICTED,
    Approach.PREDICTED: Way.PREDICTED,
    Approach.MEET: Way.PREDICTED,
    Approach.OPEN_MANY: Way.SEARCHED,
    Approach.PROBE_MANY: Way.SEARCHED,
}

_WHY = {
    Way.DIRECT: "one side can be reached as it is",
    Way.MAPPED: "the router maps a port for us",
    Way.PUNCHED: "both sides open their NATs or firewalls at the same time, with the help of a rendezvous",
    Way.PREDICTED: "one side's next outside port is guessed from the last ones",
    Way.SEARCHED: "many ports are tried until one fits, over UDP, within some seconds",
    Way.RELAYED: "no packet gets through directly",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known beside what each transport has.

    Attributes:
        observers: hosts that told us our outside address, by protocol.
        ipv4_addresses: there are IPv4 addresses that others could use.
        ipv6_addresses: there are IPv6 addresses that others could use.
        ipv6: IPv6 gets out; None: nobody was asked.
        port_mapping: what the routers' answers suggest, a sentence each.
    """

    observers: dict[IpProtocol, int] = field(default_factory=dict)
    ipv4_addresses: bool = True
    ipv6_addresses: bool = False
    ipv6: bool | None = None
    port_mapping: tuple[str, ...] = ()


def outlook(udp: Access, tcp: Access, known: Known) -> list[Outlook]:
    """What a dial to each kind of peer would take.

    Args:
        udp: what UDP has here.
        tcp: what TCP has here.
        known: addresses, and whether IPv6 gets out.
    """
    return [_outlook(peer, udp, tcp, known) for peer in PEERS]


def _outlook(peer: PeerKind, udp: Access, tcp: Access, network: Known) -> Outlook:
    if not peer.ipv6 and not network.ipv4_addresses:
        why = "there is no IPv4 here; a peer that has IPv6 too is the last row"
        return Outlook(peer, None, None, Way.RELAYED, Sureness.SURE, why)
    if peer.ipv6:
        if network.ipv6 is False:
            return Outlook(peer, None, None, Way.RELAYED, Sureness.SURE, "there is no IPv6 here")
        sure = Sureness.GUESS if network.ipv6 is None else Sureness.SURE
        return Outlook(peer, Way.PUNCHED, Way.PUNCHED, Way.PUNCHED, sure, _WHY[Way.PUNCHED])
    over_udp, over_tcp = _way(udp, peer.udp), _way(tcp, peer.tcp)
    known = [(way, access) for way, access in ((over_udp, udp), (over_tcp, tcp)) if way is not None]
    if not known:
        sure = max((_sureness(udp, None), _sureness(tcp, None)), key=list(Sureness).index)
        return Outlook(peer, over_udp, over_tcp, Way.RELAYED, sure, _WHY[Way.RELAYED])
    best, access = min(known, key=lambda each: (each[0].rank, -_weight(each[1])))
    return Outlook(peer, over_udp, over_tcp, best, _sureness(access, best), _WHY[best])


def _way(ours: Access, theirs: NatVerdict | None) -> Way | None:
    """The way over one transport, if any."""
    if ours.passes is False or theirs is None or not ours.used:
        return None
    reachable = not theirs.translated and theirs.filtering is Filtering.ENDPOINT_INDEPENDENT
    if ours.only_ports is not None:
        return Way.DIRECT if reachable else None  # it may listen at such a port; no other packet gets out
    if reachable or (not ours.verdict.translated and ours.verdict.filtering is Filtering.ENDPOINT_INDEPENDENT):
        return Way.DIRECT
    if ours.mapped:
        return Way.MAPPED
    return _OF_APPROACH.get(plan(ours.verdict, theirs, controlling=True).approach)


def _weight(access: Access) -> float:
    return access.verdict.mapping_confidence if access.passes else -1.0


def _sureness(access: Access, way: Way | None) -> Sureness:
    """How sure a way is: as sure as what it rests on."""
    if not access.used:
        return Sureness.SURE
    if access.passes is None:
        return Sureness.GUESS
    if way in (Way.DIRECT, Way.MAPPED) or access.passes is False:
        return Sureness.SURE
    if not access.verdict.translated:
        return Sureness.SURE
    return sureness(access.verdict.mapping_confidence)


def advise(udp: Access, tcp: Access, known: Known) -> list[str]:
    """What would help, or would tell more; a sentence each."""
    advice = []
    most = max(known.observers.values(), default=0)
    if most == 0:
        advice.append(
            "nobody was there to say how this network looks from outside: name bootstrap nodes (--bootstrap) or "
            "STUN servers (--stun HOST:PORT), two of them, in different networks"
        )
    elif most == 1 and any(each.verdict.translated and not each.verdict.mapping for each in (udp, tcp) if each.used):
        advice.append("only one observer answered: a second one, at another host, would tell how the NAT maps ports")
    if udp.used and udp.passes is False and tcp.passes:
        advice.append("UDP does not get out of this network: TCP has to do, which cannot search random ports")
    if tcp.only_ports is not None:
        ports = " and ".join(map(str, sorted(tcp.only_ports)))
        advice.append(f"TCP gets out to port {ports} only: peers and relays have to listen there (--listen ADDR:443)")
    mapped = udp.mapped or tcp.mapped
    open_here = any(
        not each.verdict.translated and each.verdict.filtering is Filtering.ENDPOINT_INDEPENDENT for each in (udp, tcp)
    )
    if not open_here:
        advice += known.port_mapping
    if not mapped and _is_hard(udp) and _is_hard(tcp):
        advice.append(
            "the NAT gives each destination another port: a port mapping in the router, a port forwarded by hand or "
            "IPv6 would make every dial direct"
        )
    if known.ipv6_addresses and known.ipv6 is False:
        advice.append("this machine has IPv6 addresses, but IPv6 does not get out: ask who runs the network")
    return list(dict.fromkeys(advice))


def _is_hard(access: Access) -> bool:
    return access.passes is False or not access.used or (access.verdict.translated and access.verdict.dependent)
