"""How the NAT before us behaves, in the terms of RFC 4787, worked out from what others saw of our packets.

Nothing is asked here: whoever sends a request from a socket and learns how it arrived hands in an `Observation`; tests
of filtering and hairpinning (RFC 5780 §4.4, §4.5) hand in whether they were answered.

Two rules make the verdict trustworthy (PROTOCOL 23) and steady:

- That two observers saw the *same* outside address cannot be forged by one of them alone. That they saw *different*
  ones can: it counts only when it stays true without any single stranger's network (/16, IPv6 /32). Nodes that the
  user named in `bootstrap` are believed.
- A pair of observers that changes its testimony is heard when it does so for the second or third time; the verdict
  changes only when there is twice as much evidence for another one.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from crust.proto.nat.leases import IpProtocol
from crust.wire.stun import Address

__all__ = [
    "Allocation",
    "AllocationSample",
    "Filtering",
    "FilteringKind",
    "FilteringTest",
    "Mapping",
    "NatBehaviour",
    "NatVerdict",
    "Observation",
    "OutsideAddress",
    "network_of",
]

MAPPING_LIFE = 60.0
"""Observations of one socket further apart than this are not compared: its mapping may have lapsed (RFC 4787 REQ-5
asks for two minutes, many give one)."""
HOST_LIFE = 600.0
"""An outside host that was not seen for so long while others were is no longer ours."""
ALLOCATION_GAP = 10.0  # allocations further apart say little about the step between two
SEQUENTIAL_REACH = 128  # a random port falls this near to the one before in 0.4 % of cases
MAX_LOCALS = 64
MAX_OBSERVERS = 16
MAX_VOTES = 64
MAX_SAMPLES = 32
MAX_OBSERVERS_OF_NETWORK = 4
MAX_SAMPLES_OF_NETWORK = 4
FIRMNESS = 2
"""A testimony that was repeated stands until it was contradicted once more often than this."""
STEADINESS = 2.0
"""A verdict falls when there is twice as much evidence for another one."""

V = TypeVar("V", bound=Hashable)


class Mapping(enum.IntEnum):
    """When a NAT gives a socket another outside port (RFC 4787 §4.1). The numbers travel in offers."""

    UNKNOWN = 0
    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3


class Filtering(enum.IntEnum):
    """From whom a NAT lets packets in (RFC 4787 §5). The numbers travel in offers."""

    UNKNOWN = 0
    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3


class Allocation(enum.IntEnum):
    """Which outside port a new mapping gets (RFC 4787 §4.2.1). The numbers travel in offers."""

    UNKNOWN = 0
    PRESERVING = 1
    SEQUENTIAL = 2
    RANDOM = 3


class FilteringKind(enum.Enum):
    """Who answers in a test of filtering (RFC 5780 §4.4)."""

    OTHER_ADDRESS = "a host that we sent nothing to"
    OTHER_PORT = "another port of a host that we sent to"


@dataclass(frozen=True, slots=True)
class Observation:
    """How a packet of ours arrived somewhere.

    Attributes:
        local: the socket that it left from; the host is an address of ours, not the unspecified one.
        observer: who saw it.
        observed: its source as the observer saw it.
        sent_at: when it left: new mappings are ordered by it.
        trusted: the user named the observer in `bootstrap`.
    """

    local: Address
    observer: Address
    observed: Address
    sent_at: float
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class FilteringTest:
    """Whether an answer got in from where we had sent nothing.

    Attributes:
        kind: who answered, or should have.
        answered: it got in; when False, only after several tries: a lost datagram proves nothing.
        observer: who was asked to have it sent.
        trusted: the user named the observer in `bootstrap`.
    """

    kind: FilteringKind
    answered: bool
    observer: Address
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class OutsideAddress:
    """An outside address of one of our sockets.

    Attributes:
        address: as seen outside.
        confirmed: by two observers in different networks, or by one that the user named. An unconfirmed one is tried
            last (PROTOCOL 23).
        seen_at: when it was last seen.
    """

    address: Address
    confirmed: bool
    seen_at: float


@dataclass(frozen=True, slots=True)
class AllocationSample:
    """One new mapping.

    Attributes:
        at: when it was made.
        local_port: of the socket.
        outside: which address it got.
        trusted: a trusted node saw it.
        strangers: networks of the strangers that saw it.
    """

    at: float
    local_port: int
    outside: Address
    trusted: bool = False
    strangers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NatVerdict:
    """How a NAT behaves, and how sure that is.

    Attributes:
        protocol: "udp" or "tcp"; many NATs treat them differently.
        mapping: how outside ports depend on the destination.
        filtering: from whom packets get in.
        allocation: which port a new mapping gets.
        step: between two new ports, for sequential allocation; may be negative.
        hairpinning: packets to our own outside address come back to us; None: unknown.
        translated: False when our own address is seen outside: there is no NAT (there may be a firewall).
        mapping_confidence: 0 to 1; below 0.5 it is a guess.
        filtering_confidence: the same.
        allocation_confidence: the same.
        hosts: confirmed outside hosts.
    """

    protocol: IpProtocol = "udp"
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    allocation: Allocation = Allocation.UNKNOWN
    step: int = 0
    hairpinning: bool | None = None
    translated: bool = True
    mapping_confidence: float = 0.0
    filtering_confidence: float = 0.0
    allocation_confidence: float = 0.0
    hosts: tuple[str, ...] = ()

    @property
    def dependent(self) -> bool:
        """Another destination gets another outside port: the port that was measured is not the port that is used."""
        return self.mapping in (Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT)

    def describe(self) -> str:
        """One line for people."""
        if not self.translated:
            firewall = {
                Filtering.ENDPOINT_INDEPENDENT: "no firewall",
                Filtering.UNKNOWN: "perhaps a firewall",
                Filtering.ADDRESS_DEPENDENT: "perhaps a firewall",  # which one other host would tell
            }.get(self.filtering, "a firewall")
            return f"no NAT, {firewall}"
        words = [
            f"{_words(self.mapping)} mapping" if self.mapping else "mapping unknown",
            f"{_words(self.filtering)} filtering" if self.filtering else "filtering unknown",
        ]
        if self.allocation is Allocation.SEQUENTIAL:
            words.append(f"ports in sequence (step {self.step:+d})")
        elif self.allocation:
            words.append("ports preserved" if self.allocation is Allocation.PRESERVING else "random ports")
        if self.hairpinning is not None:
            words.append("hairpinning" if self.hairpinning else "no hairpinning")
        return ", ".join(words)


def _words(value: enum.IntEnum) -> str:
    return value.name.lower().replace("_", "-")


@functools.lru_cache(maxsize=1024)
def network_of(host: str) -> str:
    """The network that counts as one stranger: /16 for IPv4, /32 for IPv6 (PROTOCOL 23)."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return str(ipaddress.ip_network(f"{address}/{16 if address.version == 4 else 32}", strict=False))


@dataclass(slots=True)
class _Vote(Generic[V]):
    value: V
    strangers: frozenset[str]
    weight: float
    firmness: int = 1


@dataclass(slots=True)
class _Ballot(Generic[V]):
    """Testimonies, one for each witness (or pair of them)."""

    votes: dict[Hashable, _Vote[V]] = field(default_factory=dict)

    def cast(self, witness: Hashable, value: V, strangers: frozenset[str]) -> None:
        vote = self.votes.pop(witness, None)
        if vote is None or (vote.value != value and vote.firmness == 0):
            vote = _Vote(value, strangers, 1.0 if strangers else 2.0)
        elif vote.value == value:
            vote.firmness = min(vote.firmness + 1, FIRMNESS)
        else:
            vote.firmness -= 1
        self.votes[witness] = vote
        if len(self.votes) > MAX_VOTES:
            del self.votes[next(iter(self.votes))]

    def weight(self, value: V) -> float:
        return sum(vote.weight for vote in self.votes.values() if vote.value == value)

    def robust(self, value: V) -> bool:
        """Whether `value` stands without any one stranger's network."""
        strangers = [vote.strangers for vote in self.votes.values() if vote.value == value]
        return bool(strangers) and not frozenset.intersection(*strangers)


class NatBehaviour:
    """Collects what was seen of one transport's packets, and says how the NAT behaves.

    Args:
        protocol: "udp" or "tcp".
    """

    def __init__(self, protocol: IpProtocol) -> None:
        self._protocol: IpProtocol = protocol
        self._verdict = NatVerdict(protocol)
        self._reset()

    def _reset(self) -> None:
        self._seen: dict[Address, dict[Address, Observation]] = {}
        self._same: _Ballot[bool] = _Ballot()  # do two hosts see the same address?
        self._same_host: _Ballot[bool] = _Ballot()  # do two ports of one host?
        self._untranslated: _Ballot[bool] = _Ballot()
        self._reach: dict[FilteringKind, _Ballot[bool]] = {kind: _Ballot() for kind in FilteringKind}
        self._hairpin: _Ballot[bool] = _Ballot()
        self._samples: list[AllocationSample] = []
        self._allocation: tuple[Mapping, tuple[Allocation, int, float]] | None = None  # of these samples
        self._hosts: dict[str, float] = {}  # confirmed outside hosts, and when they were last seen

    def network_changed(self) -> None:
        """We are somewhere else: forget everything."""
        self._reset()
        self._verdict = NatVerdict(self._protocol)

    @property
    def verdict(self) -> NatVerdict:
        """As of now; equal to the one before unless something has changed."""
        return self._verdict

    @property
    def samples(self) -> tuple[AllocationSample, ...]:
        """New mappings in the order in which they were made, for `prediction`; strangers' only for want of better."""
        trusted = tuple(sample for sample in self._samples if sample.trusted)
        networks = frozenset().union(*(sample.strangers for sample in self._samples))
        return trusted if len(trusted) >= 2 or len(networks) < 2 else tuple(self._samples)

    def observe(self, observation: Observation) -> NatVerdict:
        """Take how a packet arrived; the verdict after it."""
        seen = self._seen.setdefault(observation.local, {})
        before = seen.get(observation.observer)
        if before is not None and before.observed != observation.observed:
            before = None  # the mapping lapsed; what others saw earlier was another one, if this one is to be believed
            if observation.trusted:
                seen.clear()
        if before is None:
            self._note_allocation(observation)
        for other in seen.values():
            if abs(other.sent_at - observation.sent_at) <= MAPPING_LIFE and other.observer != observation.observer:
                self._compare(other, observation)
        seen.pop(observation.observer, None)
        seen[observation.observer] = observation
        self._bound_observers(seen, observation)
        if len(self._seen) > MAX_LOCALS:
            del self._seen[next(iter(self._seen))]
        witness = observation.observer if observation.trusted else network_of(observation.observer[0])
        strangers = frozenset() if observation.trusted else frozenset({network_of(observation.observer[0])})
        self._untranslated.cast(witness, observation.observed == observation.local, strangers)
        self._note_hosts(observation.local)
        return self._judge()

    @staticmethod
    def _bound_observers(seen: dict[Address, Observation], newest: Observation) -> None:
        """A stranger's network has few places, so that it cannot crowd out the others."""
        network = network_of(newest.observer[0])
        ours = [key for key, o in seen.items() if not o.trusted and network_of(key[0]) == network]
        if len(ours) > MAX_OBSERVERS_OF_NETWORK:
            del seen[ours[0]]
        elif len(seen) > MAX_OBSERVERS:
            del seen[next((key for key, o in seen.items() if not o.trusted), next(iter(seen)))]

    def filtering_test(self, test: FilteringTest) -> NatVerdict:
        """Take the outcome of a test of filtering; the verdict after it."""
        network = network_of(test.observer[0])
        witness = test.observer if test.trusted else network
        # What got in, got in: no stranger can make that up. What did not may never have been sent.
        strangers = frozenset() if test.trusted or test.answered else frozenset({network})
        self._reach[test.kind].cast(witness, test.answered, strangers)
        return self._judge()

    def hairpin_test(self, answered: bool) -> NatVerdict:
        """Take whether a packet to our own outside address came back; the verdict after it."""
        self._hairpin.cast("we", answered, frozenset())
        return self._judge()

    def outside(self, local: Address) -> list[OutsideAddress]:
        """Outside addresses of a socket: the confirmed ones first, then by age."""
        by_address: dict[Address, list[Observation]] = {}
        for observation in self._seen.get(local, {}).values():
            by_address.setdefault(observation.observed, []).append(observation)
        found = [
            OutsideAddress(address, _confirmed(observations), max(o.sent_at for o in observations))
            for address, observations in by_address.items()
        ]
        found.sort(key=lambda outside: (not outside.confirmed, -outside.seen_at))
        return found

    # -- evidence ------------------------------------------------------------------------------------------------

    def _compare(self, one: Observation, other: Observation) -> None:
        """Two observers of one socket: one vote."""
        strangers = frozenset(network_of(o.observer[0]) for o in (one, other) if not o.trusted)
        same = one.observed == other.observed
        if one.observer[0] == other.observer[0]:
            self._same_host.cast(strangers or one.observer[0], same, strangers)
            return
        networks = frozenset(network_of(o.observer[0]) for o in (one, other))
        if len(networks) == 1 and strangers:
            return  # the word of one stranger
        names = frozenset(o.observer[0] if o.trusted else network_of(o.observer[0]) for o in (one, other))
        self._same.cast(names, same, strangers)

    def _note_allocation(self, observation: Observation) -> None:
        """A mapping that was not seen before, or another witness of one that was."""
        network = network_of(observation.observer[0])
        strangers = frozenset() if observation.trusted else frozenset({network})
        made = AllocationSample(
            observation.sent_at, observation.local[1], observation.observed, observation.trusted, strangers
        )
        for index, known in enumerate(self._samples):
            same = (known.local_port, known.outside) == (made.local_port, made.outside)
            if same and abs(known.at - made.at) <= MAPPING_LIFE:
                if strangers <= known.strangers and known.trusted >= made.trusted:
                    return
                self._allocation = None
                self._samples[index] = replace(
                    known, trusted=known.trusted or made.trusted, strangers=known.strangers | strangers
                )
                return
        self._allocation = None
        self._samples.append(made)
        self._samples.sort(key=lambda sample: sample.at)
        of_network = [s for s in self._samples if not s.trusted and s.strangers == strangers]
        if len(of_network) > MAX_SAMPLES_OF_NETWORK:
            self._samples.remove(of_network[0])
        elif len(self._samples) > MAX_SAMPLES:
            self._samples.remove(next((s for s in self._samples if not s.trusted), self._samples[0]))

    def _note_hosts(self, local: Address) -> None:
        for outside in self.outside(local):
            if outside.confirmed:
                self._hosts[outside.address[0]] = outside.seen_at
        latest = max(self._hosts.values(), default=0.0)
        self._hosts = {host: at for host, at in self._hosts.items() if latest - at <= HOST_LIFE}

    # -- judgement -----------------------------------------------------------------------------------------------

    def _judge(self) -> NatVerdict:
        mapping, mapping_confidence = self._judge_mapping()
        filtering, filtering_confidence = self._judge_filtering()
        allocation, step, allocation_confidence = self._judge_allocation(mapping)
        verdict = NatVerdict(
            self._protocol,
            mapping,
            filtering,
            allocation,
            step,
            self._judge_hairpinning(),
            not (self._untranslated.robust(True) and self._leads(self._untranslated, True)),
            mapping_confidence,
            filtering_confidence,
            allocation_confidence,
            tuple(sorted(self._hosts, key=lambda host: -self._hosts[host])),
        )
        if verdict != self._verdict:
            self._verdict = verdict
        return self._verdict

    @staticmethod
    def _leads(ballot: _Ballot[bool], value: bool) -> bool:
        return ballot.weight(value) > ballot.weight(not value)

    def _judge_mapping(self) -> tuple[Mapping, float]:
        same = self._same.weight(True)
        differ = self._same.weight(False)
        robust = self._same.robust(False)
        if not robust:
            if same == 0 and differ > 0 and self._verdict.mapping is Mapping.UNKNOWN:
                return Mapping.ADDRESS_AND_PORT_DEPENDENT, 0.3  # two strangers differ, and one of them may lie
            if same == differ == 0 and self._same_host.votes:
                return self._judge_mapping_by_ports()
            if same == 0:
                return self._verdict.mapping, self._verdict.mapping_confidence
            return Mapping.ENDPOINT_INDEPENDENT, _confidence(same, 0.0)
        bias = {Mapping.UNKNOWN: 1.0, Mapping.ENDPOINT_INDEPENDENT: STEADINESS}.get(
            self._verdict.mapping, 1 / STEADINESS
        )
        if same * bias > differ:
            return Mapping.ENDPOINT_INDEPENDENT, _confidence(same, differ)
        if self._same_host.robust(True) and self._leads(self._same_host, True):
            return Mapping.ADDRESS_DEPENDENT, _confidence(differ, same)
        # Without a test of two ports of one host the worse is assumed, which costs probes but never a connection.
        known = self._same_host.robust(False)
        return Mapping.ADDRESS_AND_PORT_DEPENDENT, _confidence(differ, same) * (1.0 if known else 0.75)

    def _judge_mapping_by_ports(self) -> tuple[Mapping, float]:
        """All that is known is what two ports of one host saw."""
        same, differ = self._same_host.weight(True), self._same_host.weight(False)
        if self._same_host.robust(False) and differ > same:
            return Mapping.ADDRESS_AND_PORT_DEPENDENT, _confidence(differ, same)
        # Few NATs look at the address alone; they look like this, too.
        return Mapping.ENDPOINT_INDEPENDENT, 0.75 * _confidence(same, differ)

    def _judge_filtering(self) -> tuple[Filtering, float]:
        address, port = self._reach[FilteringKind.OTHER_ADDRESS], self._reach[FilteringKind.OTHER_PORT]
        if address.weight(True) and address.weight(True) * STEADINESS >= address.weight(False):
            return Filtering.ENDPOINT_INDEPENDENT, _confidence(address.weight(True), address.weight(False))
        if not address.robust(False) and not address.votes and port.votes:
            return self._judge_filtering_by_ports(port)
        if not address.robust(False):
            return self._verdict.filtering, self._verdict.filtering_confidence
        if self._leads(port, True):
            return Filtering.ADDRESS_DEPENDENT, _confidence(port.weight(True), port.weight(False))
        # Without a test of the other port the stricter is assumed.
        known = port.robust(False)
        confidence = _confidence(address.weight(False), address.weight(True)) * (1.0 if known else 0.75)
        return Filtering.ADDRESS_AND_PORT_DEPENDENT, confidence

    def _judge_filtering_by_ports(self, port: _Ballot[bool]) -> tuple[Filtering, float]:
        """No second host took part: what lets another port in may let everyone in, what does not lets nobody in."""
        answered, silent = port.weight(True), port.weight(False)
        if answered and answered * STEADINESS >= silent:
            return Filtering.ADDRESS_DEPENDENT, 0.75 * _confidence(answered, silent)
        if port.robust(False):
            return Filtering.ADDRESS_AND_PORT_DEPENDENT, _confidence(silent, answered)
        return self._verdict.filtering, self._verdict.filtering_confidence

    def _judge_hairpinning(self) -> bool | None:
        if not self._hairpin.votes:
            return None
        return self._leads(self._hairpin, True)

    def _judge_allocation(self, mapping: Mapping) -> tuple[Allocation, int, float]:
        if self._allocation is None or self._allocation[0] is not mapping:
            self._allocation = mapping, self._weigh_allocation(mapping)
        return self._allocation[1]

    def _weigh_allocation(self, mapping: Mapping) -> tuple[Allocation, int, float]:
        dependent = mapping in (Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT)
        samples = self.samples
        whole = _allocation(samples, dependent)
        networks = frozenset().union(*(sample.strangers for sample in samples if not sample.trusted))
        if not networks:
            return whole
        # What strangers say must hold without any one of them.
        parts = [
            _allocation([s for s in samples if s.trusted or s.strangers - {network}], dependent) for network in networks
        ]
        if len(networks) >= 2 and all(part[0] is whole[0] for part in parts):
            return whole
        if self._verdict.allocation is not Allocation.UNKNOWN or len(networks) < 2:
            return self._verdict.allocation, self._verdict.step, self._verdict.allocation_confidence
        if all(part[0] in (whole[0], Allocation.UNKNOWN) for part in parts):
            return whole[0], whole[1], min(whole[2], 0.3)
        return Allocation.UNKNOWN, 0, 0.0


def _allocation(samples: Sequence[AllocationSample], dependent: bool) -> tuple[Allocation, int, float]:
    """Allocation, step and confidence from new mappings in order."""
    kept = [s for s in samples if s.outside[1] == s.local_port]
    moved = [s for s in samples if s.outside[1] != s.local_port]
    # A dependent NAT may keep the port for the first destination; what counts is what the others get.
    if len(kept) > len(moved) or (kept and not moved) or (kept and not dependent and len(kept) == len(moved)):
        return Allocation.PRESERVING, 0, _confidence(2 * len(kept), len(moved))
    differences = [
        _difference(one.outside[1], other.outside[1])
        for one, other in itertools.pairwise(moved)
        if one.outside[0] == other.outside[0] and other.at - one.at <= ALLOCATION_GAP
    ][-16:]
    if not differences and moved and not dependent:
        return Allocation.RANDOM, 0, 0.5  # not preserved, at least; the port is the same for all destinations
    if not differences:
        return Allocation.UNKNOWN, 0, 0.0
    near = [d for d in differences if 0 < abs(d) <= SEQUENTIAL_REACH]
    rising = sum(d > 0 for d in near)
    monotonous = max(rising, len(near) - rising)
    if 3 * monotonous >= 2 * len(differences):
        sign = 1 if 2 * rising >= len(near) else -1
        step = _step([abs(d) for d in near if d * sign > 0])
        return Allocation.SEQUENTIAL, sign * step, _confidence(2 * monotonous, len(differences) - monotonous)
    return Allocation.RANDOM, 0, _confidence(2 * (len(differences) - monotonous), monotonous)


def _confirmed(observations: list[Observation]) -> bool:
    """PROTOCOL 23."""
    return any(o.trusted for o in observations) or len({network_of(o.observer[0]) for o in observations}) >= 2


def _confidence(support: float, against: float) -> float:
    """0.5 for one stranger's worth of evidence, 0.67 for two or one trusted node, 0.8 for four; less when disputed."""
    return round(support / (support + 1) * support / (support + against), 3)


def _difference(one: int, other: int) -> int:
    """From one port to the next, the short way around (allocators wrap at the end of their range)."""
    difference = (other - one) % 65536
    return difference - 65536 if difference >= 32768 else difference


def _step(differences: list[int]) -> int:
    """What every difference is a multiple of; with little evidence rather 1, as others' packets take ports between."""
    step = math.gcd(*differences)
    certain = len(differences) >= 4 or (len(differences) >= 2 and min(differences) == max(differences))
    return step if step <= 2 or certain else 1
