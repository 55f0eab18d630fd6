"""From readings to medians, ratios and the bars that Crust has set itself."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from crust.bench import ROWS
from crust.bench.control import FIGURES

if TYPE_CHECKING:
    from crust.bench.control import Plan, Results

__all__ = ["BARS", "Bar", "Check", "Figures", "check", "medians", "summary"]

Figures = dict[str, dict[str, float | None]]

_DIGITS: Final = {
    "bulk_mb_s": 1,
    "messages_per_s": 0,
    "rtt_us": 1,
    "connect_ms": 3,
    "idle_kib": 2,
    "cpu_s_per_gib": 3,
}


@dataclass(frozen=True)
class Bar:
    """One aim: a figure is at least (or at most) a multiple of a baseline's, or at most a constant.

    Attributes:
        row: whose figure.
        figure: which.
        factors: (factor, baseline row) pairs, of which the largest limit counts; an empty row name stands for 1.
    """

    row: str
    figure: str
    factors: tuple[tuple[float, str], ...]

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.figure in ("bulk_mb_s", "messages_per_s")

    def __str__(self) -> str:
        terms = [f"{factor:g} x {row}" if row else f"{factor:g}" for factor, row in self.factors]
        return (">= " if self.at_least else "<= ") + " or ".join(terms)


_PACKET_ROWS: Final = ("raw_udp_gso", "utp", "utp_1500")
_CONNECT_TCP: Final = ((4, "raw_tcp"), (1, "tls"))
_CONNECT_UTP: Final = ((5, "raw_tcp"), (1, "tls"))

BARS: Final = (
    Bar("tcp", "bulk_mb_s", ((0.4, "raw_tcp"),)),
    Bar("tcp", "bulk_mb_s", ((1, "tls"),)),
    Bar("tcp", "messages_per_s", ((0.6, "raw_tcp"),)),
    Bar("tcp", "rtt_us", ((3, "raw_tcp"),)),
    Bar("tcp", "connect_ms", _CONNECT_TCP),
    Bar("tcp", "idle_kib", ((20, ""),)),
    Bar("tcp_unsigned", "bulk_mb_s", ((0.6, "raw_tcp"),)),
    Bar("tcp_unsigned", "bulk_mb_s", ((1, "tls"),)),
    Bar("tcp_unsigned", "messages_per_s", ((0.8, "raw_tcp"),)),
    Bar("tcp_unsigned", "rtt_us", ((2.5, "raw_tcp"),)),
    Bar("tcp_unsigned", "connect_ms", _CONNECT_TCP),
    Bar("tcp_unsigned", "idle_kib", ((20, ""),)),
    Bar("utp", "bulk_mb_s", ((0.2, "raw_udp_gso"),)),
    Bar("utp", "messages_per_s", ((0.5, "raw_tcp"),)),
    Bar("utp", "rtt_us", ((3, "raw_udp_gso"),)),
    Bar("utp", "connect_ms", _CONNECT_UTP),
    Bar("utp", "idle_kib", ((20, ""),)),
    Bar("utp_1500", "bulk_mb_s", ((0.08, "raw_udp_gso"),)),
)


@dataclass(frozen=True)
class Check:
    """A bar held against what was measured; `limit` and `passed` are None where a figure is missing."""

    bar: Bar
    value: float | None
    limit: float | None
    passed: bool | None


def medians(results: Results) -> Figures:
    """The median of each figure of each row, None where nothing was measured."""
    figures: Figures = {}
    for row in ROWS:
        readings = results.figures.get(row, {})
        figures[row] = {
            name: round(statistics.median(readings[name]), _DIGITS[name]) if readings.get(name) else None
            for name in FIGURES
        }
    return figures


def check(figures: Figures) -> list[Check]:
    """Hold every bar against the figures."""
    checks = []
    for bar in BARS:
        value = figures[bar.row][bar.figure]
        limits = [_times(factor, figures[row][bar.figure] if row else 1.0) for factor, row in bar.factors]
        known = [limit for limit in limits if limit is not None]
        limit = max(known) if len(known) == len(limits) else None
        passed = None
        if value is not None and limit is not None:
            passed = value >= limit if bar.at_least else value <= limit
        checks.append(Check(bar, value, limit, passed))
    return checks


def summary(plan: Plan, results: Results) -> dict[str, Any]:
    """All that `crust bench --json` prints."""
    figures = medians(results)
    return {
        **figures,
        "ratios": _ratios(figures),
        "cpu_us_per_packet": _packet_costs(results),
        "checks": [
            {"row": c.bar.row, "figure": c.bar.figure, "bar": str(c.bar), "value": c.value, "pass": c.passed}
            for c in check(figures)
        ],
        "missing": results.missing,
        "rounds": results.rounds,
        "idle_connections": results.idle_connections,
        "idle_kib_sides": {
            row: {"accepting": round(accepting, 2), "dialling": round(dialling, 2)}
            for row, (accepting, dialling) in results.idle_sides.items()
        },
        "readings": {
            row: {name: [round(value, _DIGITS[name]) for value in values] for name, values in readings.items()}
            for row, readings in results.figures.items()
        },
        "system": {
            "python": platform.python_version(),
            "loop": results.loop,
            "cores": os.cpu_count(),
            "kernel": f"{platform.system()} {platform.release()}",
        },
    }


def _packet_costs(results: Results) -> dict[str, dict[str, float] | None]:
    """For each row of datagrams the CPU microseconds that a datagram of bulk data takes on either side."""
    costs: dict[str, dict[str, float] | None] = {}
    for row in _PACKET_ROWS:
        sides = list(zip(*results.packets.get(row, ()), strict=True))
        costs[row] = (
            {
                side: round(statistics.median(readings), 2)
                for side, readings in zip(("send", "receive"), sides, strict=True)
            }
            if sides
            else None
        )
    return costs


def _ratios(figures: Figures) -> dict[str, dict[str, dict[str, float]]]:
    """For each row of Crust and each figure: how many times that of each baseline it is."""
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for row in ROWS[3:]:
        ratios[row] = {}
        for figure in FIGURES:
            value = figures[row][figure]
            against = {base: figures[base][figure] for base in ROWS[:3]}
            if value is not None:
                ratios[row][figure] = {base: round(value / other, 4) for base, other in against.items() if other}
    return ratios


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value
