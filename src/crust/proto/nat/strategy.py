"""What to do about two NATs: one table of approaches, decided from the two verdicts.

What counts of a side is whether its outside port towards the other is known beforehand:

- fixed: endpoint-independent mapping (the measured port is the used one), no NAT, or a mapped port;
- sequential: dependent mapping whose next port can be predicted;
- hard: dependent mapping with random ports.

and whom it lets in: anyone, anyone at a host that it has sent to, or only the very address that it has sent to. What is
unknown is taken for the common case (fixed; the strictest filtering), since trying costs little.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from crust.proto.nat.behaviour import Allocation, Filtering, Mapping, NatVerdict

__all__ = ["Approach", "Plan", "PortKnowledge", "knowledge_of", "plan"]


class PortKnowledge(enum.Enum):
    """What the other side can know of the port that our packets to it will have outside."""

    FIXED = "known"
    SEQUENTIAL = "predictable"
    HARD = "unpredictable"


class Approach(enum.Enum):
    """What one side does."""

    PUNCH = "both sides send to the addresses that were measured"
    PREDICT_THEIRS = "our port is known: send to the ports that their NAT is expected to give"
    PREDICTED = "their port is known: send to it, from the port that they expect"
    MEET = "both sides try to obtain a predicted port with many sockets"
    OPEN_MANY = "open many random ports towards their known one"
    PROBE_MANY = "probe random ports from our known one"
    HOPELESS = "no packet can get through"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do on this side, and why.

    Attributes:
        approach: see there.
        reason: for people.
        advice: what would help, where the approach is hopeless or a matter of luck.
        careful: the peer's router may be one that takes packets amiss which come before the peer has sent any
            (`punch.FreshSocketAdvised`): hold full probes until it has.
        openers: we stand behind a NAT that a packet with a low TTL can open meanwhile.
    """

    approach: Approach
    reason: str
    advice: tuple[str, ...] = ()
    careful: bool = False
    openers: bool = False


_ADVICE = (
    "IPv6 on both sides would connect directly",
    "a port mapping (UPnP, NAT-PMP, PCP or by hand) on either router would connect directly",
    "a relay works",
)


def knowledge_of(verdict: NatVerdict) -> PortKnowledge:
    """What can be known of a side's outside port."""
    if not verdict.translated or not verdict.dependent:
        return PortKnowledge.FIXED
    if verdict.allocation is Allocation.SEQUENTIAL and verdict.step:
        return PortKnowledge.SEQUENTIAL
    return PortKnowledge.HARD


def plan(ours: NatVerdict, theirs: NatVerdict, *, controlling: bool) -> Plan:
    """Decide on this side's approach; the other side, given the same verdicts, decides on the one that fits.

    Args:
        ours: of our NAT, for the transport in question.
        theirs: of the peer's, as it tells us.
        controlling: we have the larger PeerId: decides where both could take either part.
    """
    careful = _may_move(theirs)
    # Without a NAT there is nothing to open, and a low TTL may reach the other router all the same.
    return replace(_decide(ours, theirs, controlling), careful=careful, openers=careful and ours.translated)


def _may_move(verdict: NatVerdict) -> bool:
    """Whether it may be a Linux router without an input firewall: so it looks to observers."""
    return (
        verdict.translated
        and not verdict.dependent
        and verdict.filtering in (Filtering.ADDRESS_AND_PORT_DEPENDENT, Filtering.UNKNOWN)
        and verdict.allocation in (Allocation.PRESERVING, Allocation.UNKNOWN)
    )


def _decide(ours: NatVerdict, theirs: NatVerdict, controlling: bool) -> Plan:
    our_port, their_port = knowledge_of(ours), knowledge_of(theirs)
    words = f"ours: {ours.describe()}; theirs: {theirs.describe()}"
    fixed, sequential = PortKnowledge.FIXED, PortKnowledge.SEQUENTIAL
    if our_port is fixed and their_port is fixed:
        return Plan(Approach.PUNCH, f"both ports are known ({words})")
    for easy, port in ((ours, our_port), (theirs, their_port)):
        if port is fixed and easy.filtering in (Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT):
            # Its known port takes what comes from the other host, whatever the port: once it has sent there itself.
            return Plan(Approach.PUNCH, f"one side's port is known and open to the other host ({words})")
    if our_port is fixed and their_port is sequential:
        return Plan(Approach.PREDICT_THEIRS, f"their ports are predicted ({words})")
    if our_port is sequential and their_port is fixed:
        return Plan(Approach.PREDICTED, f"our ports are predicted ({words})")
    if our_port is sequential and their_port is sequential:
        return Plan(Approach.MEET, f"the ports of both sides are predicted ({words})")
    return _search(ours, theirs, controlling, words)


def _search(ours: NatVerdict, theirs: NatVerdict, controlling: bool, words: str) -> Plan:
    """At least one side is hard: random ports have to be found, over UDP."""
    if ours.protocol == "tcp" or theirs.protocol == "tcp":
        return Plan(Approach.HOPELESS, f"random ports cannot be searched over TCP ({words})", _ADVICE)
    # Open many ports here when the peer's port is one known port for all of them (and so passes their filters), or
    # when our NAT neither asks for their port nor gives us another one for it.
    we_open, they_open = _searchable(ours, theirs), _searchable(theirs, ours)
    if we_open and (controlling or not they_open):
        return Plan(Approach.OPEN_MANY, f"our ports are random: the peer searches them ({words})", _ADVICE)
    if they_open:
        return Plan(Approach.PROBE_MANY, f"their ports are random: we search them ({words})", _ADVICE)
    return Plan(
        Approach.HOPELESS, f"both NATs are dependent on the destination, and ports are random ({words})", _ADVICE
    )


def _searchable(opener: NatVerdict, prober: NatVerdict) -> bool:
    """Whether many ports opened by one side can be found by the other."""
    if knowledge_of(opener) is PortKnowledge.FIXED:
        return False
    if knowledge_of(opener) is PortKnowledge.HARD and knowledge_of(prober) is PortKnowledge.FIXED:
        return True
    return opener.mapping is Mapping.ADDRESS_DEPENDENT and opener.filtering in (
        Filtering.ENDPOINT_INDEPENDENT,
        Filtering.ADDRESS_DEPENDENT,
    )
