"""What the dials of a matrix come to, pair by pair, beside what could be expected of them."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from crust.testing.natlab.declare import NATS
from crust.testing.natlab.expectation import Expectation, expect
from crust.testing.natlab.matrix import Outcome

__all__ = ["PairSummary", "Verdict", "markdown_table", "summarize"]


class Verdict(enum.StrEnum):
    """How a pair fared, beside what was expected of it."""

    AS_EXPECTED = "as expected"
    SLOW = "slow"
    SHOULD_CONNECT = "should connect"
    SAID_LATE = "no path, and said late"


@dataclass(frozen=True, slots=True)
class PairSummary:
    """All tries of one pair over one transport.

    Attributes:
        first: kind of the dialler.
        second: kind of the peer that was dialled.
        transport: "tcp", "utp" or "any".
        tries: how many dials.
        ok: how many of them came through directly.
        median_ms: of these, from the call of connect to the first echo; None without any.
        worst_ms: the slowest of these.
        kinds: kinds of path that were used, each once.
        transports: what these paths ran over, each once.
        told_ms: the median of what it took to say that there is no path; None where every dial had one
            or the dialler never said.
        expected: what the two kinds make possible.
        verdict: the two together.
    """

    first: str
    second: str
    transport: str
    tries: int
    ok: int
    median_ms: float | None
    worst_ms: float | None
    kinds: tuple[str, ...]
    transports: tuple[str, ...]
    told_ms: float | None
    expected: Expectation
    verdict: Verdict

    @property
    def connected(self) -> bool:
        """As many tries came through as should."""
        return self.verdict is not Verdict.SHOULD_CONNECT

    @property
    def met(self) -> bool:
        """And they were as quick as they should, or it was said in time that there is no path."""
        return self.verdict is Verdict.AS_EXPECTED


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
    known = [each for each in told if each is not None]
    return PairSummary(
        first,
        second,
        transport,
        len(outcomes),
        len(direct),
        statistics.median(direct) if direct else None,
        max(direct, default=None),
        tuple(sorted({o.path for o in outcomes if o.path is not None})),
        tuple(sorted({_transport(o) for o in outcomes} - {""})),
        statistics.median(known) if known else None,
        expected,
        _verdict(expected, outcomes, told),
    )


def _verdict(expected: Expectation, outcomes: list[Outcome], told: list[float | None]) -> Verdict:
    # A peer that starts late is not there before it is: what it is late by does not count.
    direct = [_since_both(o) for o in outcomes if o.direct]
    if expected.direct:
        in_time = [each for each in direct if expected.worst_ms is None or each <= expected.worst_ms]
        if len(in_time) < expected.share * len(outcomes):
            return Verdict.SHOULD_CONNECT
        slow = expected.within_ms is not None and statistics.median(direct) > expected.within_ms
        return Verdict.SLOW if slow else Verdict.AS_EXPECTED
    late = expected.told_ms is not None and any(each is None or each > expected.told_ms for each in told)
    return Verdict.SAID_LATE if late else Verdict.AS_EXPECTED


def _since_both(outcome: Outcome) -> float:
    """How long the dial took; only what was dialled before the peer was there is longer than it was late."""
    milliseconds = outcome.connect_ms or 0.0
    late = outcome.late * 1000
    return milliseconds - late if milliseconds > late else milliseconds


def _transport(outcome: Outcome) -> str:
    path = outcome.result.get("path")
    return str(path.get("transport", "")) if isinstance(path, dict) else ""


def _told_ms(outcome: Outcome) -> float | None:
    """How long a dial took to fail, where the program said so."""
    report = outcome.result.get("report")
    elapsed = report.get("elapsed_ms") if isinstance(report, dict) else None
    return None if elapsed is None else float(elapsed)


def markdown_table(summaries: Iterable[PairSummary], transport: str) -> str:
    """One transport as a table for a page: rows dial columns; median milliseconds, or "none"."""
    cells = {(each.first, each.second): each for each in summaries if each.transport == transport}
    rows = list(dict.fromkeys(first for first, _ in cells))
    columns = list(dict.fromkeys(second for _, second in cells))
    lines = [["", *columns], ["---", *("---:" for _ in columns)]]
    lines += [[f"**{row}**", *(_markdown(cells.get((row, column))) for column in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown(summary: PairSummary | None) -> str:
    if summary is None:
        return ""
    share = "" if summary.ok in (0, summary.tries) else f" ({summary.ok} of {summary.tries})"
    return "none" if summary.median_ms is None else f"{summary.median_ms:.0f}{share}"
