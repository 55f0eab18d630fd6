"""Every kind of place against every other: sets up the pairs, runs a program in both, collects what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from crust.testing.natlab.declare import NATS, Kind, Link
from crust.testing.natlab.errors import LabError
from crust.testing.natlab.lab import Lab
from crust.testing.natlab.places import Host
from crust.testing.natlab.probe import prove
from crust.testing.natlab.process import Process, Stdio
from crust.testing.natlab.programs import CRUST, Line, Program

__all__ = ["Outcome", "run_matrix", "table"]

_FIRST_LINE_SECONDS = 15.0
_END_SECONDS = 5.0
# With the same private range on both sides, a peer's inside address is one's own, or a neighbour's.
_LAN, _OTHER_LAN = "192.168.1.0/24", "192.168.2.0/24"


_Work = Callable[[int, "asyncio.Queue[Outcome | None]"], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one dial.

    Attributes:
        first: kind of the dialler.
        second: kind of the peer that was dialled.
        transport: "tcp" or "utp".
        attempt: number of the try, from 0.
        connect_ms: from the call of connect to the first echo; None when there was no connection.
        path: `kind` of the path that was used: "direct", "mapped", "punched", "relayed"; None without one.
        error: why there was none.
        late: seconds after the dialler at which the peer started; 0 where it was there before.
        result: all that the dialler said.
        counters: how busy the lab was: `overrun`, `late`, `latest_us` (see `Lab.counters`).
    """

    first: str
    second: str
    transport: str
    attempt: int
    connect_ms: float | None
    path: str | None
    error: str | None
    late: float = 0.0
    result: Line = field(default_factory=dict, repr=False)
    counters: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def direct(self) -> bool:
        """Whether the peers got through to each other."""
        return self.path in ("direct", "mapped", "punched")


class _Proofs:
    """Kinds that have shown what they are; each does it once."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._proved: dict[str, asyncio.Lock] = {}
        self._done: set[str] = set()

    async def of(self, kind: Kind) -> None:
        async with self._proved.setdefault(kind.name, asyncio.Lock()):
            if kind.name not in self._done:
                await prove(self._lab, kind)
                self._done.add(kind.name)


class _Grounds:
    """The places of one line of dials, each built once for either side and used again."""

    def __init__(self, lab: Lab, number: int, link: Link, proofs: _Proofs | None, lans: tuple[str, str]) -> None:
        self._lab = lab
        self._number = number
        self._link = link
        self._proofs = proofs
        self._lans = {"first": lans[0], "second": lans[1]}
        self._places: dict[tuple[str, str], Host] = {}

    async def pair(self, first: Kind, second: Kind) -> tuple[Host, Host]:
        """Two hosts with routers that remember nothing."""
        one = await self._host("first", first)
        if first == second and first.shared:
            two = await self._neighbour(one)
        else:
            two = await self._host("second", second)
        for host in (one, two):
            site = host.site
            while site is not None:
                await site.flush()
                site = site.parent
        return one, two

    async def _host(self, side: str, kind: Kind) -> Host:
        host = self._places.get((side, kind.name))
        if host is None:
            if self._proofs is not None:
                await self._proofs.of(kind)
            name = f"{kind.name}-{side}-{self._number}"
            host = await self._lab.place(kind, name, lan=self._lans[side], link=self._link)
            self._places[side, kind.name] = host
        return host

    async def _neighbour(self, host: Host) -> Host:
        site = host.site
        if site is None:
            raise LabError(f"{host.name} has no neighbours")
        if len(site.hosts) == 1:
            await site.host(f"{host.name}-neighbour")
        return site.hosts[1]


async def _first_line(process: Process, who: str) -> Line:
    if process.stdout is None:
        raise LabError(f"the {who} has no standard output")
    try:
        async with asyncio.timeout(_FIRST_LINE_SECONDS):
            line = await process.stdout.readline()
    except TimeoutError:
        raise LabError(f"the {who} said nothing for {_FIRST_LINE_SECONDS:.0f} s") from None
    if not line:
        raise LabError(f"the {who} ended with code {await process.wait()} before its first line")
    found: Line = json.loads(line)
    return found


async def _end(process: Process) -> None:
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
    process.close()


class _Programs(AsyncExitStack):
    """The programs of one try: they end in an orderly way, or at once where the matrix is called off."""

    def __init__(self, stderr: Stdio) -> None:
        super().__init__()
        self._stderr = stderr

    async def start(self, host: Host, argv: Sequence[str]) -> Process:
        if argv[0] == CRUST:
            process = await host.run_crust(*argv[1:], stdin=subprocess.DEVNULL, stderr=self._stderr)
        else:
            process = await host.run(argv, stdin=subprocess.DEVNULL, stderr=self._stderr)

        async def end(kind: type[BaseException] | None, *_: object) -> None:
            if kind is not None and not issubclass(kind, Exception):
                process.kill()
                process.close()
            else:
                await _end(process)

        self.push_async_exit(end)
        return process


@dataclass(frozen=True, slots=True)
class _Call:
    """One dial to be made."""

    program: Program
    transport: str
    timeout: float
    stderr: Stdio

    async def run(self, first: Host, second: Host, rendezvous: Line, late: float) -> Line:
        """Dial with fresh programs on both sides; returns the dialler's last line."""
        program, transport = self.program, self.transport
        async with _Programs(self.stderr) as programs:
            listening = program.listener(second, rendezvous, transport)
            if late:
                dialling = program.dialler(first, rendezvous, program.announce(second), transport)
                dialler = await programs.start(first, dialling)
                result = asyncio.ensure_future(self._result(dialler))
                try:
                    await asyncio.wait((result,), timeout=late)
                    await _first_line(await programs.start(second, listening), "listener")
                    return await result
                finally:
                    result.cancel()
            listener = await _first_line(await programs.start(second, listening), "listener")
            return await self._result(
                await programs.start(first, program.dialler(first, rendezvous, listener, transport))
            )

    async def _result(self, dialler: Process) -> Line:
        try:
            async with asyncio.timeout(self.timeout):
                out, _ = await dialler.communicate()
        except TimeoutError:
            return {"error": f"the dialler did not end within {self.timeout:.0f} s"}
        lines = out.splitlines()
        if not lines:
            return {"error": f"the dialler ended with code {dialler.returncode} and said nothing"}
        result: Line = json.loads(lines[-1])
        return result


def _outcome(first: Kind, second: Kind, transport: str, attempt: int, late: float, result: Line) -> Outcome:
    path, milliseconds = result.get("path"), result.get("connect_ms")
    error = result.get("error")
    return Outcome(
        first=first.name,
        second=second.name,
        transport=transport,
        attempt=attempt,
        connect_ms=None if milliseconds is None else float(milliseconds),
        path=path["kind"] if isinstance(path, dict) else path,
        error=None if error is None else str(error),
        late=late,
        result=result,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """All dials of one pair with one transport."""

    first: Kind
    second: Kind
    call: _Call

    async def run(
        self, lab: Lab, grounds: _Grounds, rendezvous: Line, lateness: Sequence[float]
    ) -> AsyncIterator[Outcome]:
        for attempt, late in enumerate(lateness):
            hosts = await grounds.pair(self.first, self.second)
            before = await lab.counters()
            result = await self.call.run(*hosts, rendezvous, late)
            after = await lab.counters()
            busy = {name: after[name] - before[name] for name in ("overrun", "late")}
            outcome = _outcome(self.first, self.second, self.call.transport, attempt, late, result)
            yield replace(outcome, counters={**busy, "latest_us": after["latest_us"]})


def _lateness(late: float | tuple[float, float], tries: int) -> list[float]:
    """How late the listener is in each try: evenly spread, where a range is given."""
    if not isinstance(late, tuple):
        return [late] * tries
    low, high = late
    return [low + (high - low) * each / max(1, tries - 1) for each in range(tries)] if tries > 1 else [high]


async def run_matrix(  # noqa: PLR0913 - options by keyword, each with a default
    lab: Lab,
    program: Program,
    *,
    pairs: Iterable[tuple[Kind | str, Kind | str]],
    transports: Sequence[str] = ("utp", "tcp"),
    tries: int = 1,
    timeout: float = 30.0,
    check_kinds: bool = True,
    late: float | tuple[float, float] = 0.0,
    link: Link | None = None,
    same_ranges: bool = True,
    jobs: int = 1,
    stderr: Stdio = None,
) -> AsyncIterator[Outcome]:
    """Dial in every pair; a try starts with routers that remember nothing and with fresh programs.

    Args:
        lab: where to build the places; they stay until the lab ends, as does the rendezvous, which stands at the core.
        program: what to run.
        pairs: kinds of the dialler and of the peer that is dialled.
        transports: passed on to the program.
        tries: how often each pair dials with each transport.
        timeout: seconds after which a dialler is given up.
        check_kinds: whether each kind has to prove itself before it is used.
        late: seconds after the dialler at which the listener starts, or the least and the most of them, over which the
            tries are spread; by default it starts first.
        link: the access link of each place; by default with the lab's delay.
        same_ranges: whether the private networks of both sides have the same addresses.
        jobs: how many dials may be under way at a time, each in places of its own.
        stderr: where the programs write what they have to say; by default where we do.

    Yields:
        One outcome for each dial, as it comes.

    Raises:
        LabError: a program does not even start.
        LabUnavailable: a kind needs a program that is missing.
        NotAsDeclared: a kind is not what it is said to be.
    """
    named = [[NATS[each] if isinstance(each, str) else each for each in pair] for pair in pairs]
    rows = iter(
        [
            _Row(first, second, _Call(program, transport, timeout, stderr))
            for first, second in named
            for transport in transports
        ]
    )
    proofs = _Proofs(lab) if check_kinds else None
    lans = (_LAN, _LAN if same_ranges else _OTHER_LAN)
    link = link or Link(delay=lab.delay)
    async with _Programs(stderr) as programs:
        middle = await lab.public("rendezvous")
        rendezvous = await _first_line(await programs.start(middle, program.rendezvous(middle)), "rendezvous")

        async def work(number: int, outcomes: asyncio.Queue[Outcome | None]) -> None:
            grounds = _Grounds(lab, number, link, proofs, lans)
            for row in rows:
                async for outcome in row.run(lab, grounds, rendezvous, _lateness(late, tries)):
                    outcomes.put_nowait(outcome)

        async with contextlib.aclosing(_merged(work, max(1, min(jobs, len(named) * len(transports))))) as found:
            async for outcome in found:
                yield outcome


async def _merged(work: _Work, jobs: int) -> AsyncGenerator[Outcome, None]:
    """What several lines of dials bring, as it comes; the first that fails ends the others."""
    outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
    tasks = [asyncio.create_task(work(number, outcomes)) for number in range(jobs)]
    for task in tasks:
        task.add_done_callback(lambda _: outcomes.put_nowait(None))
    try:
        for _ in tasks:
            while (outcome := await outcomes.get()) is not None:
                yield outcome
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def table(outcomes: Iterable[Outcome], transport: str) -> str:
    """A table of one transport: rows dial columns; median milliseconds, path, and how many tries came through."""
    cells: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.transport == transport:
            cells.setdefault((outcome.first, outcome.second), []).append(outcome)
    rows = list(dict.fromkeys(first for first, _ in cells))
    columns = list(dict.fromkeys(second for _, second in cells))
    grid = [["", *columns], *([row, *(_cell(cells.get((row, column), [])) for column in columns)] for row in rows)]
    widths = [max(len(line[index]) for line in grid) for index in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in grid
    )


def _cell(outcomes: list[Outcome]) -> str:
    if not outcomes:
        return "·"
    good = [outcome for outcome in outcomes if outcome.connect_ms is not None]
    if not good:
        return "none"
    median = statistics.median(outcome.connect_ms or 0.0 for outcome in good)
    paths = sorted({outcome.path or "?" for outcome in good})
    share = "" if len(good) == len(outcomes) else f" {len(good)}/{len(outcomes)}"
    return f"{median:.0f} {'+'.join(paths)}{share}"
