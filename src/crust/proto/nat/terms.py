"""What two peers tell each other of their NATs in offers, and what follows for a dial of both.

Each side decides by the same two records, its own as it sent it and the other's, so that both parts fit.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from crust.proto.nat.behaviour import Allocation, AllocationSample, Filtering, NatVerdict
from crust.proto.nat.behaviour import Mapping as NatMapping
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.prediction import Prediction, predict
from crust.proto.nat.strategy import Approach, Plan, PortKnowledge, knowledge_of, plan
from crust.types import Candidate, Transport
from crust.wire.offer import MEETINGS_MOST, NatRecord, PortForecast
from crust.wire.service import TRANSPORTS

__all__ = ["Standing", "Terms", "parse_standings", "serialize_standing", "take_standing"]

MEETING_ROUNDS = 4
MEETING_EVERY = 0.5
"""Seconds between two rounds of a meeting, as in `udp_punch` and `tcp_punch`."""
MEETING_LEAD = 0.05
"""From the measurement to the first packet of a meeting, about."""
SURE = 0.5


@dataclass(frozen=True, slots=True)
class Standing:
    """What one side tells of its NAT for one transport.

    Attributes:
        verdict: how it behaves.
        prediction: where it stands, if its ports are sequential.
        meeting: the ports that this side will try to obtain, one for each round.
    """

    verdict: NatVerdict
    prediction: Prediction | None = None
    meeting: tuple[int, ...] = ()


def take_standing(verdict: NatVerdict, samples: Sequence[AllocationSample], sockets: int, now: float) -> Standing:
    """Say where we stand.

    Args:
        verdict: of our NAT.
        samples: of `NatBehaviour`, the newest of a moment ago.
        sockets: that try to obtain one predicted port (UDP and TCP differ).
        now: the time.
    """
    if knowledge_of(verdict) is not PortKnowledge.SEQUENTIAL:
        return Standing(verdict)
    prediction = predict(samples, verdict.step, now)
    if prediction is None:
        return Standing(verdict)
    at = now + MEETING_LEAD
    meeting = [prediction.meeting_port(sockets, at + r * MEETING_EVERY, r) for r in range(MEETING_ROUNDS)]
    return Standing(verdict, prediction, tuple(meeting))


def serialize_standing(transport: Transport, standing: Standing, now: float) -> NatRecord:
    """For an offer."""
    verdict, prediction = standing.verdict, standing.prediction
    forecast = None
    if prediction is not None:
        age_ms = min(max(round((now - prediction.seen_at) * 1000), 0), 600_000)
        forecast = PortForecast(prediction.host, prediction.last, age_ms, min(round(prediction.rate * 100), 200_000))
    return NatRecord(
        TRANSPORTS.index(transport),
        verdict.translated,
        int(verdict.mapping),
        int(verdict.filtering),
        int(verdict.allocation),
        verdict.step if abs(verdict.step) < 32768 else 0,
        round(verdict.mapping_confidence * 100),
        forecast,
        standing.meeting[:MEETINGS_MOST],
    )


def parse_standings(records: Iterable[NatRecord], now: float) -> dict[Transport, Standing]:
    """Out of an offer; of two records about one transport the first counts."""
    found: dict[Transport, Standing] = {}
    for record in records:
        transport = TRANSPORTS[record.transport]
        if transport not in found:
            found[transport] = _standing(record, now)
    return found


def _standing(record: NatRecord, now: float) -> Standing:
    verdict = NatVerdict(
        "tcp" if TRANSPORTS[record.transport] == "tcp" else "udp",
        NatMapping(record.mapping),
        Filtering(record.filtering),
        Allocation(record.allocation),
        record.step,
        translated=record.translated,
        mapping_confidence=record.certain / 100,
    )
    forecast = record.forecast
    if forecast is None or not record.step or not _numeric(forecast.host):
        return Standing(verdict)
    prediction = Prediction(
        forecast.host, forecast.last, now - forecast.age_ms / 1000, record.step, forecast.rate / 100
    )
    return Standing(verdict, prediction, record.meeting)


def _numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _unknown(transport: Transport) -> Standing:
    return Standing(NatVerdict("tcp" if transport == "tcp" else "udp"))


@dataclass(frozen=True, slots=True)
class Terms:
    """What is known on this side when both sides of a dial begin.

    Attributes:
        ours: as we told it.
        theirs: as the peer told it.
        attested: hosts from which the rendezvous saw the peer come.
        controlling: we have the larger PeerId.
        caller: we made the offer; the peer began as soon as it had it.
    """

    ours: Mapping[Transport, Standing] = field(default_factory=dict)
    theirs: Mapping[Transport, Standing] = field(default_factory=dict)
    attested: frozenset[str] = frozenset()
    controlling: bool = False
    caller: bool = True

    def attests(self, hosts: Iterable[str]) -> Terms:
        """The same, with what another rendezvous attests."""
        return replace(self, attested=self.attested | frozenset(hosts))

    def standing(self, transport: Transport) -> Standing:
        """The peer's, unknown where it told nothing."""
        return self.theirs.get(transport) or _unknown(transport)

    def plan(self, transport: Transport) -> Plan:
        """What to do on this side."""
        ours = self.ours.get(transport) or _unknown(transport)
        return plan(ours.verdict, self.standing(transport).verdict, controlling=self.controlling)

    def predicted(self, transport: Transport, now: float, limits: TraversalLimits) -> list[Candidate]:
        """Addresses that the peer's NAT is expected to give, as far as the plan asks for them; likeliest first."""
        standing, approach = self.standing(transport), self.plan(transport).approach
        prediction = standing.prediction
        if prediction is None:
            return []
        if approach is Approach.MEET:
            ports: Sequence[int] = standing.meeting
        elif approach is Approach.PREDICT_THEIRS:
            ports = prediction.ports(limits.predicted_ports, now)
        else:
            return []
        return [Candidate(transport, prediction.host, port, "predicted") for port in ports]

    def hopeless(
        self, transport: Transport, theirs: Iterable[Candidate], ours: Iterable[Candidate] = ()
    ) -> Plan | None:
        """Whether no path over this transport can come about, as far as is known: the plan with reason and advice.

        Args:
            transport: which.
            theirs: all candidates of the peer.
            ours: all candidates of our own, which the peer dials.

        Returns:
            None where it can, or where too little is known to say that it cannot.
        """
        found = self.plan(transport)
        if found.approach is not Approach.HOPELESS:
            return None
        mine, other = self.ours.get(transport), self.theirs.get(transport)
        if mine is None or other is None or not self._certain(mine.verdict, other.verdict):
            return None
        theirs, ours = tuple(theirs), tuple(ours)
        if self.attested.intersection(mine.verdict.hosts):
            return None  # behind one NAT: there are ways that do not leave it
        if self._passable(transport, theirs, ours) or self._passable(transport, ours, theirs):
            return None
        return found

    @staticmethod
    def _certain(*verdicts: NatVerdict) -> bool:
        hard = [v for v in verdicts if knowledge_of(v) is not PortKnowledge.FIXED]
        if any(v.mapping_confidence < SURE for v in hard):
            return False
        # One easy side: only if its filter is known to ask for the very port.
        easy = [v for v in verdicts if knowledge_of(v) is PortKnowledge.FIXED]
        return all(v.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT and v.translated for v in easy)

    def _passable(self, transport: Transport, candidates: tuple[Candidate, ...], others: tuple[Candidate, ...]) -> bool:
        """Whether one of these addresses needs no NAT to be passed."""
        there = {":" in c.host for c in others if c.transport == transport}
        for candidate in candidates:
            if candidate.transport != transport:
                continue
            if candidate.kind == "mapped":
                return True
            if ":" in candidate.host and True in there and not ipaddress.ip_address(candidate.host).is_link_local:
                return True
        return False
