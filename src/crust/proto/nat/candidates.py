"""Candidates: what we tell of ourselves, what we believe of others, and which pair is tried first.

Formulas are those of RFC 8445 §5.1.2 and §6.1.2.3. A stranger's list is screened before anything is sent (PROTOCOL 22):
it may name neither groups nor itself nor our own machine, private addresses only where they can mean the peer, and
what nobody but the peer vouches for gets a handful of datagrams.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crust.proto.nat.limits import TraversalLimits
from crust.types import Candidate, CandidateKind, Transport
from crust.wire.stun import Address

__all__ = [
    "LocalView",
    "RemoteCandidate",
    "Screening",
    "Trust",
    "candidate_priority",
    "deduplicate",
    "order_local",
    "pair_priority",
    "screen",
]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 8445 §5.1.2.2 recommends 126, 110, 100 and 0. A mapped port is as good as a public address once the router has
# made it, but takes the long way on a common LAN; a predicted one is a guess.
TYPE_PREFERENCE: dict[CandidateKind, int] = {
    "host": 126,
    "mapped": 115,
    "peer-reflexive": 110,
    "server-reflexive": 100,
    "predicted": 60,
    "relayed": 0,
}

# What counts as private. Test networks, CGNAT and the like are ordinary addresses (no registry class is skipped);
# these are the ranges in which the same address stands for somebody else behind each NAT.
_PRIVATE: tuple[IpNetwork, ...] = tuple(
    ipaddress.ip_network(n)
    for n in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
)
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")


class Trust(enum.IntEnum):
    """Who says that a peer can be reached at an address; a higher one allows more."""

    CLAIMED = 0  # the peer alone
    ATTESTED = 1  # a rendezvous saw the peer's authenticated path come from this host
    BY_HAND = 2  # the user typed or pasted it
    ANSWERED = 3  # an authenticated packet of the peer came from there


@dataclass(frozen=True, slots=True)
class LocalView:
    """Where we stand: what makes a remote address sensible.

    Attributes:
        on_link: prefixes reached without a router.
        outside_hosts: our own outside hosts, confirmed.
        own: our own transport addresses, which are not dialled (a TCP port can connect to itself).
        hairpinning: what is known of our NAT; None: unknown.
        families: IP versions that we can use.
    """

    on_link: tuple[IpNetwork, ...] = ()
    outside_hosts: frozenset[str] = frozenset()
    own: frozenset[Address] = frozenset()
    hairpinning: bool | None = None
    families: frozenset[int] = frozenset({4, 6})


@dataclass(frozen=True, slots=True)
class RemoteCandidate:
    """A candidate of a peer that passed the screening.

    Attributes:
        candidate: as the peer wrote it.
        trust: who vouches for it.
        near: on our link, or private behind a common outside address: tried first.
        priority: RFC 8445 §5.1.2, by our own judgement; what a peer says of its priorities is not asked.
    """

    candidate: Candidate
    trust: Trust
    near: bool
    priority: int

    @property
    def address(self) -> Address:
        """Host and port."""
        return self.candidate.host, self.candidate.port


@dataclass(slots=True)
class Screening:
    """The outcome of `screen`.

    Attributes:
        kept: sensible candidates, best first.
        refused: the others, each with the reason.
    """

    kept: list[RemoteCandidate] = field(default_factory=list)
    refused: list[tuple[Candidate, str]] = field(default_factory=list)


def candidate_priority(kind: CandidateKind, transport: Transport, local_preference: int = 0xFFFF) -> int:
    """RFC 8445 §5.1.2.1, with the component id in the lowest byte standing for the transport.

    Both transports are raced and neither waits for the other, so that which comes first matters little; TCP does, as
    it carries bulk better.

    Args:
        kind: how the address was learned.
        transport: "tcp" or "utp".
        local_preference: 0 to 65535: among addresses of the same kind.
    """
    component = 1 if transport == "tcp" else 2
    return (TYPE_PREFERENCE[kind] << 24) + (min(max(local_preference, 0), 0xFFFF) << 8) + (256 - component)


def pair_priority(controlling: int, controlled: int) -> int:
    """Of a pair, from the priorities of the larger PeerId's candidate and the other's (RFC 8445 §6.1.2.3)."""
    low, high = sorted((controlling, controlled))
    return (low << 32) + 2 * high + (controlling > controlled)


def deduplicate(candidates: Iterable[Candidate]) -> list[Candidate]:
    """One candidate for each transport and address: the kind of the highest preference (RFC 8445 §5.1.3)."""
    best: dict[tuple[Transport, Address], Candidate] = {}
    for candidate in candidates:
        key = (candidate.transport, (candidate.host, candidate.port))
        known = best.get(key)
        if known is None or TYPE_PREFERENCE[candidate.kind] > TYPE_PREFERENCE[known.kind]:
            best[key] = candidate
    return list(best.values())


def order_local(candidates: Iterable[Candidate], hosts: Sequence[str] = ()) -> list[Candidate]:
    """What we tell of ourselves: without duplicates, best first.

    Args:
        candidates: host, mapped, reflexive, predicted, relayed, in any order.
        hosts: our own hosts, best first (`net.interfaces.candidate_hosts`); others come after them.
    """
    rank = {host: index for index, host in enumerate(hosts)}

    def priority(candidate: Candidate) -> int:
        return candidate_priority(candidate.kind, candidate.transport, 0xFFFF - rank.get(candidate.host, len(rank)))

    return sorted(deduplicate(candidates), key=priority, reverse=True)


def screen(
    candidates: Iterable[Candidate],
    view: LocalView,
    *,
    attested_hosts: frozenset[str] = frozenset(),
    by_hand: bool = False,
    limits: TraversalLimits = TraversalLimits(),  # noqa: B008 - frozen
) -> Screening:
    """Judge a peer's candidates before anything is sent to them (PROTOCOL 22).

    Args:
        candidates: as the peer wrote them.
        view: where we stand.
        attested_hosts: from which a rendezvous saw the peer's authenticated path come.
        by_hand: the user gave the contact itself; nothing is private or loopback to a user's own words.
        limits: how many are kept.
    """
    result = Screening()
    seen: set[tuple[Transport, Address]] = set()
    order = 0
    # Addresses of the same network mean the same to both sides when both leave it by the same way.
    shared = bool(view.outside_hosts & attested_hosts)
    for candidate in candidates:
        key = (candidate.transport, (candidate.host, candidate.port))
        if key in seen:
            continue
        seen.add(key)
        try:
            host = ipaddress.ip_address(candidate.host)
        except ValueError:
            result.refused.append((candidate, "not a numeric address"))
            continue
        reason = _refusal(candidate, host, view, shared, candidate.host in attested_hosts, by_hand)
        if not reason and len(result.kept) >= limits.candidates:
            reason = f"more than {limits.candidates} candidates"
        if reason:
            result.refused.append((candidate, reason))
            continue
        trust = Trust.BY_HAND if by_hand else Trust.ATTESTED if candidate.host in attested_hosts else Trust.CLAIMED
        near = _on_link(host, view) or (shared and _private(host))
        preference = 0xFFFF - 2 * order - (host.version == 4)  # the peer's order, IPv6 before IPv4 (RFC 8421 §4)
        priority = candidate_priority(candidate.kind, candidate.transport, preference)
        result.kept.append(RemoteCandidate(candidate, trust, near, priority))
        order += 1
    result.kept.sort(key=lambda kept: (not kept.near, -kept.priority))
    return result


def _refusal(
    candidate: Candidate, host: IpAddress, view: LocalView, shared: bool, attested: bool, by_hand: bool
) -> str:
    """Why nothing is to be sent there, or ""."""
    if not 0 < candidate.port < 65536:
        return "no such port"
    mapped = getattr(host, "ipv4_mapped", None)
    if mapped is not None:
        return "IPv4 written as IPv6"  # would get around every other rule
    if reason := _never(host, view):
        return reason
    if host.version not in view.families:
        return f"no IPv{host.version} here"
    if (candidate.host, candidate.port) in view.own:
        return "our own address"
    if host.is_loopback and not by_hand and not (attested and shared):
        return "loopback of somebody else"
    hairpin = candidate.host in view.outside_hosts
    if hairpin and view.hairpinning is False:
        return "our NAT does not hairpin"
    if _private(host) and not (by_hand or attested or shared or _on_link(host, view) or _at_home(host, view)):
        return "private, and neither on our link nor behind our outside address"
    return ""


def _never(host: IpAddress, view: LocalView) -> str:
    """Addresses that are nobody's, or everybody's."""
    if host.is_multicast:
        return "multicast"
    if host.is_unspecified or (host.version == 4 and host in _THIS_NETWORK):
        return "unspecified"
    if str(host) == "255.255.255.255":
        return "broadcast"
    for network in view.on_link:
        if network.version == 4 and network.prefixlen < 31 and host == network.broadcast_address:
            return "broadcast"
        if network.version == 4 and network.prefixlen < 31 and host == network.network_address:
            return "a network, not a host"
    return ""


def _private(host: IpAddress) -> bool:
    return any(host in network for network in _PRIVATE)


def _on_link(host: IpAddress, view: LocalView) -> bool:
    return any(host in network for network in view.on_link)


def _at_home(host: IpAddress, view: LocalView) -> bool:
    """Our own outside address is in the same private range: then that range is our outside (a lab, a CGNAT)."""
    ranges = [network for network in _PRIVATE if host in network]
    return any(ipaddress.ip_address(outside) in network for outside in view.outside_hosts for network in ranges)
