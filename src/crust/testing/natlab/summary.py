"""What the dials of a matrix come to, pair by pair, beside what could be expected of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from crust.testing.natlab.declare import NATS
from crust.testing.natlab.matrix import Expectation, Outcome, expect

__all__ = ["PairSummary", "summarize"]

TOLD_MS = 2000.0
"""Where there is no direct path, that has to be said within this time."""
SHARE = 0.99
"""Share of tries that have to come through: guessing ports is a matter of luck, the others have 100 % in 20 tries."""


@dataclass(frozen=True, slots=True)
class PairSummary:
    """All tries of one pair over one transport.

    Attributes:
        first: kind of the dialler.
        second: kind of the peer that was dialled.
        transport: "tcp" or "utp".
        tries: how many dials.
        ok: how many of them came through directly.
        median_ms: of these, from the call of connect to the first echo; None without any.
        worst_ms: the slowest of these.
        kinds: kinds of path that were used, each once.
        told_ms: the median of what it took to say that there is no path; None where every dial had one
            or the dialler never said.
        expected: what the two kinds make possible.
        connected: as many tries came through as should.
        met: and they were as quick as they should, or it was said in time that there is no path.
    """

    first: str
    second: str
    transport: str
    tries: int
    ok: int
    median_ms: float | None
    worst_ms: float | None
    kinds: tuple[str, ...]
    told_ms: float | None
    expected: Expectation
    connected: bool
    met: bool


def summarize(outcomes: Iterable[Outcome]) -> list[PairSummary]:
    """Sum up the dials of each pair and transport, in the order in which they came."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.first, outcome.second, outcome.transport), []).append(outcome)
    return [_summary(*key, group) for key, group in groups.items()]


def _summary(first: str, second: str, transport: str, outcomes: list[Outcome]) -> PairSummary:
    direct = [o.connect_ms for o in outcomes if o.direct and o.connect_ms is not None]
    told = [_told_ms(o) for o in outcomes if o.connect_ms is None]
    expected = expect(NATS[first], NATS[second], transport)
    median = statistics.median(direct) if direct else None
    connected = not expected.direct or len(direct) >= SHARE * len(outcomes)
    quick = median is None or expected.within_ms is None or median <= expected.within_ms
    said = expected.direct or all(each is not None and each <= TOLD_MS for each in told)
    known = [each for each in told if each is not None]
    return PairSummary(
        first,
        second,
        transport,
        len(outcomes),
        len(direct),
        median,
        max(direct, default=None),
        tuple(sorted({o.path for o in outcomes if o.path is not None})),
        statistics.median(known) if known else None,
        expected,
        connected,
        connected and quick and said,
    )


def _told_ms(outcome: Outcome) -> float | None:
    """How long a dial took to fail, where the program said so."""
    report = outcome.result.get("report")
    elapsed = report.get("elapsed_ms") if isinstance(report, dict) else None
    return None if elapsed is None else float(elapsed)
