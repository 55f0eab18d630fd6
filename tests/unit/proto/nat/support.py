"""What the tests of hole punching share: remote candidates, events, and which approaches fit each other."""

from __future__ import annotations

from typing import Protocol

from crust.proto.nat.candidates import RemoteCandidate, Trust, candidate_priority
from crust.proto.nat.punch import PunchEvent
from crust.proto.nat.strategy import Approach
from crust.types import Candidate, CandidateKind, Transport

PEER = "203.0.113.5"

# What one side does, and what the other one has to do then.
COUNTERPARTS = {
    Approach.PUNCH: Approach.PUNCH,
    Approach.PREDICT_THEIRS: Approach.PREDICTED,
    Approach.PREDICTED: Approach.PREDICT_THEIRS,
    Approach.MEET: Approach.MEET,
    Approach.OPEN_MANY: Approach.PROBE_MANY,
    Approach.PROBE_MANY: Approach.OPEN_MANY,
    Approach.HOPELESS: Approach.HOPELESS,
}


class Puncher(Protocol):
    """An engine of either transport."""

    def next_event(self) -> PunchEvent | None: ...


def remote(
    transport: Transport,
    host: str = PEER,
    port: int = 5000,
    kind: CandidateKind = "server-reflexive",
    trust: Trust = Trust.ATTESTED,
    *,
    near: bool = False,
) -> RemoteCandidate:
    return RemoteCandidate(Candidate(transport, host, port, kind), trust, near, candidate_priority(kind, transport))


def events(engine: Puncher) -> list[PunchEvent]:
    found = []
    while (event := engine.next_event()) is not None:
        found.append(event)
    return found
