"""Plain records that every layer shares: candidates, priorities, paths, reports."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "Attempt",
    "Candidate",
    "CandidateKind",
    "NatReport",
    "Path",
    "PathKind",
    "Priority",
    "Report",
    "Transport",
    "format_address",
    "split_address",
]

Transport = Literal["tcp", "utp"]
PathKind = Literal["direct", "mapped", "punched", "relayed"]
CandidateKind = Literal["host", "server-reflexive", "peer-reflexive", "mapped", "predicted", "relayed"]


class Priority(enum.IntEnum):
    """Eight classes of messages: a lower value overtakes a higher one between two frames."""

    CRITICAL = 0
    URGENT = 1
    HIGH = 2
    RAISED = 3
    NORMAL = 4
    LOW = 5
    BULK = 6
    IDLE = 7


def format_address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """Host and port of what `format_address` made."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A transport address where a peer may answer (RFC 8445 §5.1.1).

    Attributes:
        transport: "tcp" or "utp".
        host: numeric IPv4 or IPv6 address (a name only in a target typed by a person).
        port: 1 to 65535.
        kind: how the address was learned.
    """

    transport: Transport
    host: str
    port: int
    kind: CandidateKind = "host"

    def __str__(self) -> str:
        return f"{self.transport} {format_address(self.host, self.port)} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Path:
    """One live secured association with the peer, as shown to users.

    Attributes:
        transport: "tcp" or "utp".
        kind: "direct", "mapped", "punched" or "relayed".
        local: our `HOST:PORT`.
        remote: the peer's `HOST:PORT`.
        at_ms: when it came up, in milliseconds since the dial (or, on the accepting side, the first path).
    """

    transport: Transport
    kind: PathKind
    local: str
    remote: str
    at_ms: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.transport} {self.local} -> {self.remote}"


@dataclass(slots=True)
class Attempt:
    """One candidate of a dial.

    Attributes:
        candidate: `HOST:PORT`.
        transport: "tcp" or "utp".
        kind: the candidate's kind.
        started_ms: when it was tried, since the dial began.
        ended_ms: when the outcome was known; None while it was still open.
        outcome: "won", "surplus", "refused", "unreachable", "timed out", "not crust", "wrong key",
            "network mismatch", "signing mismatch", "rejected", "cancelled", "standby", "skipped" (nothing
            was sent there) or "failed".
        detail: the same in words, for people.
    """

    candidate: str
    transport: Transport
    kind: CandidateKind
    started_ms: float
    ended_ms: float | None = None
    outcome: str = "pending"
    detail: str = ""


@dataclass(slots=True)
class NatReport:
    """How the NAT before one side treats one transport, in the words of RFC 4787.

    Attributes:
        translated: False: there is none.
        mapping: "endpoint-independent", "address-dependent", "address-and-port-dependent" or "unknown".
        filtering: the same words.
        allocation: of outside ports: "preserving", "sequential", "random" or "unknown".
        sureness: of the mapping: "sure", "likely" or "guess".
        words: all of it in a line for people.
    """

    translated: bool
    mapping: str
    filtering: str
    allocation: str
    sureness: str
    words: str


@dataclass(slots=True)
class Report:
    """The record of one dial.

    Attributes:
        target: PeerId in text form, or what was asked for.
        attempts: each candidate in the order in which it was tried.
        winner: the first path that came up.
        elapsed_ms: from the call to the outcome.
        error: why the dial failed, or "".
        advice: what would help, a sentence each.
        ours: our NAT, by transport, as far as it is known.
        theirs: the peer's, as the peer told it through a rendezvous.
    """

    target: str
    attempts: list[Attempt] = field(default_factory=list)
    winner: Path | None = None
    elapsed_ms: float = 0.0
    error: str = ""
    advice: list[str] = field(default_factory=list)
    ours: dict[Transport, NatReport] = field(default_factory=dict)
    theirs: dict[Transport, NatReport] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready dictionaries, lists, strings and numbers."""
        return asdict(self)
