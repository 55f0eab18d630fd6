"""Measure throughput, latency, messages per second, time to connect and memory beside raw sockets and TLS.

Two processes over loopback, rounds interleaved, medians. The whole run takes at most three minutes; let nothing else
run meanwhile. What each figure means: docs/explanation/performance.md.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from crust.bench import COLUMNS, LABELS, MEASURES, ROWS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from rich.status import Status
    from rich.table import Table

    from crust.bench.control import Plan, Results
    from crust.bench.report import Check, Figures
    from crust.cli.output import Output

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `crust bench`."""
    parser.add_argument("--rounds", type=_rounds, metavar="N", help="interleaved rounds (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="one short round: rough figures in some 20 s")
    parser.add_argument("--only", type=_names(ROWS), metavar="ROW,…", help=f"only these rows: {', '.join(ROWS)}")
    parser.add_argument(
        "--measure", type=_names(MEASURES), metavar="NAME,…", help=f"only these measures: {', '.join(MEASURES)}"
    )


async def run(args: argparse.Namespace, out: Output) -> int:
    """Measure, print the table or the JSON object; 0 whatever the figures are."""
    from crust.bench.control import measure
    from crust.bench.report import check, medians, summary

    plan = _plan(args)
    with _Progress(plan, out) as progress:
        results = await measure(plan, progress.step)
    if args.json:
        out.data("", summary(plan, results))
        return 0
    figures = medians(results)
    out.data(_table(plan, figures))
    for name, reason in results.missing.items():
        row, _, part = name.partition(" ")
        out.data(f"Not measured: {LABELS[row]} {part}".rstrip() + f" ({reason})")
    checks = [held for held in check(figures) if held.passed is not None]
    if checks:
        out.data("\n" + _verdicts(checks))
    out.data("\n" + _method(plan, results))
    return 0


def _rounds(text: str) -> int:
    rounds = int(text)
    if not 1 <= rounds <= 100:
        raise argparse.ArgumentTypeError("give a number from 1 to 100")
    return rounds


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """A parser for a list of names, kept in the order of `known`."""

    def parse(text: str) -> tuple[str, ...]:
        given = {name.strip() for name in text.split(",")}
        if unknown := sorted(given - set(known)):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return tuple(name for name in known if name in given)

    return parse


def _plan(args: argparse.Namespace) -> Plan:
    from crust.bench.control import Plan

    changes = {"rounds": args.rounds, "rows": args.only, "measures": args.measure}
    changes = {name: value for name, value in changes.items() if value is not None}
    return Plan.quick(**changes) if args.quick else Plan(**changes)


class _Progress:
    """Tells on standard error what is being measured: one live line on a terminal, else a line for each round."""

    def __init__(self, plan: Plan, out: Output) -> None:
        self._plan = plan
        self._out = out
        self._stage = ""
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._out.is_terminal():
            from rich.console import Console

            self._status = Console(stderr=True).status("starting")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def step(self, number: int | None, row: str, measure: str) -> None:
        """Note that one measure of one row begins."""
        stage = "memory" if number is None else f"round {number + 1} of {self._plan.rounds}"
        if self._status is not None:
            self._status.update(f"{stage}: {LABELS[row]}, {measure}")
        elif stage != self._stage:
            self._out.say(stage)
        self._stage = stage


def _table(plan: Plan, figures: Figures) -> str:
    from rich.table import Table

    shown = [name for name in COLUMNS if any(figures[row][name] is not None for row in ROWS)]
    table = Table("", *(COLUMNS[name][0] for name in shown), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in plan.rows:
        values = [(figures[row][name], COLUMNS[name][1]) for name in shown]
        table.add_row(LABELS[row], *("-" if value is None else form.format(value) for value, form in values))
    return _render(table)


def _verdicts(checks: list[Check]) -> str:
    from rich.table import Table

    table = Table("aim", "measured", "limit", "", box=None, pad_edge=False)
    for held in checks:
        assert held.value is not None
        assert held.limit is not None
        title, form = COLUMNS[held.bar.figure]
        table.add_row(
            f"{LABELS[held.bar.row]}: {title} {_in_words(held)}",
            form.format(held.value),
            form.format(held.limit),
            "[green]reached[/]" if held.passed else "[red]missed[/]",
        )
    return _render(table)


def _in_words(held: Check) -> str:
    terms = [f"{factor:g} x {LABELS[row]}" if row else f"{factor:g}" for factor, row in held.bar.factors]
    return (">= " if held.bar.at_least else "<= ") + " or ".join(terms)


def _render(table: Table) -> str:
    from rich.console import Console

    console = Console(highlight=False, width=max(Console().width, 100))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _method(plan: Plan, results: Results) -> str:
    text = f"Two processes over loopback, event loop {results.loop or 'unknown'}"
    if results.rounds:
        text += ", one round" if results.rounds == 1 else f", medians of {results.rounds} rounds"
    if 0 < results.rounds < plan.rounds:
        text += f" (of {plan.rounds}: time ran out)"
    if results.idle_connections:
        text += f", memory over {results.idle_connections} idle connections (the larger side)"
    return text + "."
