"""Dial between every pair of kinds of NAT, each transport, in network namespaces of this machine.

A node on a simulated internet serves as rendezvous; the peers live behind simulated routers, 40 ms from each other and
20 ms from the rendezvous. Nothing reaches the real network. Needs Linux, and user namespaces or root; some kinds need
nft or miniupnpd. What each kind is: docs/explanation/natlab.md.

Exit code 0: every pair that can connect directly did; 3: one did not; 2: this machine cannot hold such a lab (the text
says what is missing). Slow pairs are marked, and change nothing about the exit code unless --strict is given.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
from contextlib import aclosing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from crust.cli.app import EXIT_NO_PATH, EXIT_USAGE
from crust.cli.options import positive_number
from crust.cli.output import CommandError, format_duration
from crust.cli.scratch import scratch_folder
from crust.testing.natlab import (
    NATS,
    CrustProgram,
    Lab,
    LabError,
    LabUnavailable,
    Link,
    Outcome,
    PairSummary,
    Verdict,
    markdown_table,
    prove,
    run_matrix,
    summarize,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Self

    from rich.console import Console
    from rich.status import Status
    from rich.table import Table

    from crust.cli.output import Output

__all__ = ["add_arguments", "run"]

_DIAL_SECONDS = 15.0
# Beside the dial itself a try starts and ends two programs.
_PROGRAM_SECONDS = 15.0
# What a late listener's dialler waits beyond the delay, and how much of a failing program's last words is shown.
_LATE_PATIENCE_SECONDS = 5.0
_LAST_WORDS_BYTES = 2000
_LARGEST_GRID = 8
_ROUND_TRIP_MS = 40.0
_MOST_DEAD = 60
# A dial is waiting most of the time; with more of them at once it is the machine that is measured.
_JOBS_PER_CORE = 2

Pair = tuple[str, str]


def _tries(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return number


def _kind(text: str) -> str:
    if text not in NATS:
        raise argparse.ArgumentTypeError(f"there is no kind {text!r}; there are {', '.join(NATS)}")
    return text


def _kinds(text: str) -> list[str]:
    return list(dict.fromkeys(_kind(each.strip()) for each in text.split(",")))


def _pairs(text: str) -> list[Pair]:
    pairs = []
    for each in text.split(","):
        first, colon, second = each.strip().partition(":")
        if not colon:
            raise argparse.ArgumentTypeError(f"{each!r} is not KIND:KIND")
        pairs.append((_kind(first), _kind(second)))
    return list(dict.fromkeys(pairs))


def _number(least: float, most: float, unit: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit} from {least:g} to {most:g}")
        return number

    return parse


def _dead(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _MOST_DEAD):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {_MOST_DEAD}")
    return int(text)


def _late(text: str) -> tuple[float, float]:
    """`SECONDS`, or `LEAST-MOST`."""
    low, dash, high = text.partition("-")
    if dash and low:
        least = 0.0 if low.strip() == "0" else positive_number(low)
        most = positive_number(high)
        if least <= most:
            return least, most
        raise argparse.ArgumentTypeError(f"{text!r}: the least comes first")
    number = positive_number(text)
    return number, number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust lab` takes."""
    parser.add_argument(
        "kind",
        nargs="*",
        type=_kind,
        metavar="KIND",
        help=f"every pair of these kinds only; there are {', '.join(NATS)}",
    )
    parser.add_argument("--kinds", type=_kinds, metavar="KIND,…", help="the same in one word")
    parser.add_argument("--pairs", type=_pairs, metavar="KIND:KIND,…", help="these pairs only; the first kind dials")
    parser.add_argument("--both-ways", action="store_true", help="let each side of a pair dial the other")
    parser.add_argument(
        "--transport",
        action="append",
        choices=["tcp", "utp", "any"],
        help='only this transport; "any": the race of both (default: each by itself)',
    )
    parser.add_argument("--tries", type=_tries, default=1, metavar="N", help="dials of each pair (default 1)")
    parser.add_argument(
        "--jobs",
        type=_tries,
        default=_JOBS_PER_CORE * (os.cpu_count() or 1),
        metavar="N",
        help="dials under way at a time (default two for each core)",
    )
    parser.add_argument("--prove", action="store_true", help="measure each kind first: is it what it is said to be?")
    parser.add_argument(
        "--strict", action="store_true", help="exit code 3 also where a pair is slower than it should be"
    )
    parser.add_argument("--markdown", action="store_true", help="tables for a page, medians alone")
    parser.add_argument("--reports", action="store_true", help="with --json: the report of every dial")
    _add_conditions(parser)


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    parser = parser.add_argument_group("conditions")  # type: ignore[assignment]
    parser.add_argument(
        "--late",
        type=_late,
        default=(0.0, 0.0),
        metavar="SECONDS",
        help="start the peer that is dialled so long after the dialler, which keeps asking for it; "
        "LEAST-MOST spreads the tries evenly",
    )
    parser.add_argument(
        "--round-trip",
        type=_number(0, 2000, "milliseconds"),
        default=_ROUND_TRIP_MS,
        metavar="MS",
        help=f"between two peers; half of it to the rendezvous (default {_ROUND_TRIP_MS:g})",
    )
    parser.add_argument(
        "--loss",
        type=_number(0, 50, "percent"),
        default=0.0,
        metavar="PERCENT",
        help="of the packets, on each access link, each way",
    )
    parser.add_argument(
        "--rate", type=_number(0.1, 10_000, "Mbit/s"), metavar="MBIT/S", help="of each access link, each way"
    )
    parser.add_argument(
        "--dead",
        type=_dead,
        default=0,
        metavar="N",
        help="dial contacts with so many addresses at which nobody answers, before those of the peer",
    )
    parser.add_argument(
        "--different-ranges",
        action="store_true",
        help="give the two sides different private networks (default: the same, which is harder)",
    )
    parser.add_argument(
        "--timeout",
        type=positive_number,
        default=_DIAL_SECONDS,
        metavar="SECONDS",
        help=f"how long a dial may take (default {_DIAL_SECONDS:g})",
    )


async def run(args: argparse.Namespace, out: Output) -> int:
    """Dial in every pair, print the table or the JSON objects.

    Raises:
        CommandError: this machine cannot hold the lab, or a program in it fails.
    """
    started = asyncio.get_running_loop().time()
    if args.pairs and (args.kinds or args.kind):
        raise CommandError("give either kinds or --pairs", code=EXIT_USAGE)
    pairs = _chosen_pairs(args)
    transports = list(dict.fromkeys(args.transport or ["tcp", "utp"]))
    missing: dict[str, str] = {}
    outcomes: list[Outcome] = []
    with scratch_folder("crust-lab-") as place:
        words = place / "words"
        with words.open("wb", buffering=0) as heard:
            try:
                async with Lab(delay=args.round_trip / 4000) as lab:
                    named = bool(args.kind or args.kinds or args.pairs)
                    pairs, missing = await _possible(lab, pairs, named, out)
                    if args.prove:
                        await _prove(lab, pairs, out)
                    await _dial(lab, _program(args, place), pairs, transports, args, (heard, outcomes, out))
            except LabUnavailable as error:
                raise CommandError(f"no lab on this machine: {error}", code=EXIT_USAGE) from error
            except LabError as error:
                raise CommandError(_with_last_words(str(error), words)) from error
    # With several jobs they come as they may.
    places = {key: number for number, key in enumerate(itertools.product(pairs, transports))}
    outcomes.sort(key=lambda each: (places[(each.first, each.second), each.transport], each.attempt))
    summaries = summarize(outcomes)
    elapsed = asyncio.get_running_loop().time() - started
    shown = _pages(summaries, transports) if args.markdown else _tables(summaries, transports)
    out.data(shown, _record(summaries, missing, args, elapsed))
    good = all(each.met if args.strict else each.connected for each in summaries)
    return 0 if good else EXIT_NO_PATH


def _chosen_pairs(args: argparse.Namespace) -> list[Pair]:
    """What the arguments name; by default every pair once, the earlier kind of the list dialling."""
    kinds = list(dict.fromkeys([*args.kind, *(args.kinds or ())])) or list(NATS)
    pairs = args.pairs or list(itertools.combinations_with_replacement(kinds, 2))
    if args.both_ways:
        pairs = [turned for first, second in pairs for turned in ((first, second), (second, first))]
    return list(dict.fromkeys(pairs))


async def _possible(lab: Lab, pairs: list[Pair], named: bool, out: Output) -> tuple[list[Pair], dict[str, str]]:
    """Build one place of each kind: what this machine lacks programs for is left out, unless it was asked for.

    Raises:
        LabUnavailable: it was.
    """
    missing = {}
    for kind in dict.fromkeys(itertools.chain.from_iterable(pairs)):
        try:
            host = await lab.place(kind)
        except LabUnavailable as error:
            if named:
                raise
            missing[kind] = str(error)
            out.say(f"left out: {kind}: {error}")
        else:
            site = host.site
            while site is not None and site.parent is not None:
                site = site.parent
            await lab.remove(site or host)
    return [pair for pair in pairs if not missing.keys() & set(pair)], missing


async def _prove(lab: Lab, pairs: list[Pair], out: Output) -> None:
    kinds = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    for kind in kinds:
        await prove(lab, NATS[kind])
    out.say(f"{len(kinds)} kinds are what they are said to be")


def _program(args: argparse.Namespace, place: Path) -> CrustProgram:
    """Nodes with keys of their own, and with no configuration but one that was given by hand."""
    config = args.config
    if config is None:
        config = place / "config.toml"
        config.touch()
    wait = args.late[1] + _LATE_PATIENCE_SECONDS if args.late[1] else 0.0
    return CrustProgram(place, options=("--config", str(config)), timeout=args.timeout, wait=wait, dead=args.dead)


async def _dial(
    lab: Lab,
    program: CrustProgram,
    pairs: Sequence[Pair],
    transports: Sequence[str],
    args: argparse.Namespace,
    sinks: tuple[IO[bytes], list[Outcome], Output],
) -> None:
    """Run the matrix; outcomes go into the list, and out as they come."""
    heard, outcomes, out = sinks
    link = Link(
        delay=args.round_trip / 4000,
        loss=args.loss / 100,
        rate=None if args.rate is None else args.rate * 1e6 / 8,
    )
    dials = run_matrix(
        lab,
        program,
        pairs=pairs,
        transports=transports,
        tries=args.tries,
        timeout=args.timeout + program.wait + _PROGRAM_SECONDS,
        check_kinds=False,
        late=args.late,
        link=link,
        same_ranges=not args.different_ranges,
        jobs=args.jobs,
        stderr=heard,
    )
    total = len(pairs) * len(transports) * args.tries
    # Closed here and not by the garbage collector: the programs must end before the lab does.
    async with aclosing(dials):  # type: ignore[type-var]
        with _Progress(total, out) as progress:
            async for outcome in dials:
                outcomes.append(outcome)
                out.record(_dial_record(outcome, reports=args.reports))
                progress.step(outcome)


def _with_last_words(text: str, words: Path) -> str:
    last = words.read_bytes()[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()
    return f"{text}: {last.splitlines()[-1]}" if last else text


class _Progress:
    """Tells on standard error what came of each dial: one live line on a terminal, else a line each."""

    def __init__(self, total: int, out: Output) -> None:
        self._total = total
        self._done = 0
        self._out = out
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._out.is_terminal():
            from rich.console import Console

            self._status = Console(stderr=True).status(f"0 of {self._total} dials")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def step(self, outcome: Outcome) -> None:
        """One more dial is done."""
        self._done += 1
        came = outcome.error if outcome.connect_ms is None else f"{outcome.path} {outcome.connect_ms:.0f} ms"
        line = f"{self._done} of {self._total}: {outcome.first} to {outcome.second}, {outcome.transport}: {came}"
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(line))
        else:
            self._out.say(line)


# --- JSON ------------------------------------------------------------------------------------------------------------


def _dial_record(outcome: Outcome, *, reports: bool) -> dict[str, Any]:
    record = {
        "first": outcome.first,
        "second": outcome.second,
        "transport": outcome.transport,
        "attempt": outcome.attempt,
        "ok": outcome.direct,
        "connect_ms": outcome.connect_ms,
        "path": outcome.path,
        "error": outcome.error,
        "counters": outcome.counters,
    }
    if reports or not outcome.direct:
        record["report"] = outcome.result.get("report")
    return record


def _record(
    summaries: list[PairSummary], missing: dict[str, str], args: argparse.Namespace, elapsed: float
) -> dict[str, Any]:
    return {
        "summary": [
            {
                "first": each.first,
                "second": each.second,
                "transport": each.transport,
                "tries": each.tries,
                "ok": each.ok,
                "median_ms": each.median_ms,
                "worst_ms": each.worst_ms,
                "kinds": each.kinds,
                "transports": each.transports,
                "told_ms": each.told_ms,
                "expected": {
                    "direct": each.expected.direct,
                    "within_ms": each.expected.within_ms,
                    "worst_ms": each.expected.worst_ms,
                    "told_ms": each.expected.told_ms,
                    "share": each.expected.share,
                    "why": each.expected.why,
                },
                "verdict": each.verdict.value,
                "connected": each.connected,
                "met": each.met,
            }
            for each in summaries
        ],
        "dials": sum(each.tries for each in summaries),
        "ok": sum(each.ok for each in summaries),
        "pairs": len(summaries),
        "met": sum(each.met for each in summaries),
        "connected": all(each.connected for each in summaries),
        "missing": missing,
        "proved": args.prove,
        "jobs": args.jobs,
        "late_s": args.late,
        "round_trip_ms": args.round_trip,
        "loss_percent": args.loss,
        "rate_mbit_s": args.rate,
        "dead": args.dead,
        "elapsed_s": round(elapsed, 1),
    }


# --- for people ------------------------------------------------------------------------------------------------------


def _tables(summaries: list[PairSummary], transports: list[str]) -> str:
    from rich.console import Console

    console = Console(highlight=False)
    kinds = {kind for each in summaries for kind in (each.first, each.second)}
    parts = []
    for transport in transports:
        chosen = [each for each in summaries if each.transport == transport]
        if chosen:
            name = {"tcp": "TCP", "utp": "µTP"}.get(transport, "the race of both")
            build = _grid if len(kinds) <= _LARGEST_GRID and len(chosen) > len(kinds) else _list
            parts.append(_render(build(chosen, f"{name}: path that won, median ms"), console))
    met = sum(each.met for each in summaries)
    took = sum(each.tries for each in summaries)
    parts.append(f"{took} dials in {len(summaries)} pairs; {met} of these as they should be.")
    return "\n\n".join(parts)


def _pages(summaries: list[PairSummary], transports: list[str]) -> str:
    return "\n\n".join(f"{transport}:\n\n{markdown_table(summaries, transport)}" for transport in transports)


def _grid(summaries: list[PairSummary], title: str) -> Table:
    """Rows dial columns."""
    from rich import box
    from rich.table import Table

    rows = list(dict.fromkeys(each.first for each in summaries))
    columns = list(dict.fromkeys(each.second for each in summaries))
    cells = {(each.first, each.second): each for each in summaries}
    table = Table("", *columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(row, *(_cell(cells.get((row, column))) for column in columns))
    return table


def _list(summaries: list[PairSummary], title: str) -> Table:
    """One row for each pair."""
    from rich import box
    from rich.table import Table

    header = ("dialler", "peer", "path", "median", "worst", "tries", "aim, ms", "")
    table = Table(*header, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in table.columns[3:6]:
        column.justify = "right"
    for each in summaries:
        table.add_row(
            each.first,
            each.second,
            _path(each),
            "" if each.median_ms is None else f"{each.median_ms:.0f}",
            "" if each.worst_ms is None else f"{each.worst_ms:.0f}",
            f"{each.ok}/{each.tries}",
            _aim(each),
            _mark(each),
        )
    return table


def _cell(summary: PairSummary | None) -> str:
    if summary is None:
        return ""
    share = "" if summary.ok in (0, summary.tries) else f" {summary.ok}/{summary.tries}"
    came = "none" if summary.median_ms is None else f"{_path(summary)} {summary.median_ms:.0f}{share}"
    mark = _mark(summary)
    return f"{came}\n{mark}" if not summary.met else came


def _path(summary: PairSummary) -> str:
    """The kinds of path; in a race, what they ran over, too."""
    kinds = "+".join(summary.kinds) or "none"
    return f"{kinds} {'+'.join(summary.transports)}" if summary.transport == "any" and summary.transports else kinds


def _aim(summary: PairSummary) -> str:
    within = summary.expected.within_ms
    return f"none: {summary.expected.why}" if within is None else f"{within:.0f}: {summary.expected.why}"


def _mark(summary: PairSummary) -> str:
    match summary.verdict:
        case Verdict.AS_EXPECTED:
            return "[green]as expected[/]"
        case Verdict.SHOULD_CONNECT:
            return "[red]should connect[/]"
        case Verdict.SLOW:
            return "[yellow]slow[/]"
        case Verdict.SAID_LATE:
            told = "never" if summary.told_ms is None else f"after {format_duration(summary.told_ms / 1000)}"
            return f"[yellow]said so {told}[/]"


def _render(table: Table, console: Console) -> str:
    wide = max(console.width, 120)
    console.width = wide
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
