"""The process that tells the two workers what to do and collects their figures."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from crust.bench import BULK_MESSAGE_BYTES, COLUMNS, MEASURES, ROWS
from crust.bench.process import UnsupportedError, Worker, WorkerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

__all__ = ["FIGURES", "Plan", "Results", "measure"]

FIGURES = tuple(COLUMNS)

_IDLE_SHARE = 0.45  # of the time, at most
_LEAST_SECONDS = 1.0  # with less time left, nothing is begun


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: how many rounds, unless time runs out.
        rows: which rows.
        measures: which measures.
        bulk: messages of 64 KiB.
        messages: messages of 100 B.
        pings: round trips.
        connects: connections opened one after the other.
        idle: idle connections whose memory is measured, after `idle // 10` others as warm-up.
        seconds: time for everything.
        call_seconds: time for one measure.
    """

    rounds: int = 5
    rows: Collection[str] = ROWS
    measures: Collection[str] = MEASURES
    bulk: int = (1 << 30) // BULK_MESSAGE_BYTES
    messages: int = 200_000
    pings: int = 2_000
    connects: int = 40
    idle: int = 1_000
    seconds: float = 175.0
    call_seconds: float = 60.0

    @classmethod
    def quick(cls, **changes: Any) -> Self:
        """About a tenth of everything, in one round."""
        small = {"rounds": 1, "bulk": 2_048, "messages": 30_000, "pings": 500, "connects": 30, "idle": 200}
        return cls(**(small | changes))


@dataclass
class Results:
    """What was measured.

    Attributes:
        figures: for each row and figure the readings, one of each round.
        missing: why a row ("tcp"), or its memory ("tcp idle"), has no figures, or not from every round.
        rounds: rounds that were completed.
        loop: the event loop of the workers.
        idle_connections: how many idle connections were held for the memory figure.
        idle_sides: for each row the KiB of (accepting, dialling) side.
        packets: for each row of datagrams, and each round, the CPU microseconds of (sending, receiving) side for each
            datagram that bulk data took.
    """

    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    loop: str = ""
    idle_connections: int = 0
    idle_sides: dict[str, tuple[float, float]] = field(default_factory=dict)
    packets: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, row: str, figure: str, value: float) -> None:
        """Keep one reading."""
        self.figures.setdefault(row, {}).setdefault(figure, []).append(value)


async def measure(plan: Plan, progress: Callable[[int | None, str, str], None]) -> Results:
    """Measure every row in every round.

    Args:
        plan: what and how much.
        progress: told round (from 0; None for memory, which comes before the rounds), row and measure before each.

    Returns:
        The readings; rows that fail are named in `missing`, nothing is raised for them.
    """
    results = Results()
    deadline = time.monotonic() + plan.seconds
    if "idle" in plan.measures:
        # On a machine with other work thousands of connections take long, which must not cost every other figure.
        idle_deadline = deadline - plan.seconds * (1 - _IDLE_SHARE)
        for row in plan.rows:
            if row != "raw_udp_gso":  # has no connections
                progress(None, row, "idle")
                await _measure(_measure_idle, plan, results, row, idle_deadline, part=" idle")
    longest = _LEAST_SECONDS
    measures = [name for name in plan.measures if name != "idle"]
    for number in range(plan.rounds if measures else 0):
        began = time.monotonic()
        if began + longest > deadline:
            break
        for row in plan.rows:
            for_round = partial(_measure_round, measures, partial(progress, number, row))
            await _measure(for_round, plan, results, row, deadline)
        longest = max(longest, time.monotonic() - began)
        results.rounds += 1
    return results


async def _measure(
    do: Callable[[Plan, Results, str, float], Awaitable[None]],
    plan: Plan,
    results: Results,
    row: str,
    deadline: float,
    *,
    part: str = "",
) -> None:
    """Measure something of a row (`part` of it), unless the row failed before or no time is left."""
    left = deadline - time.monotonic()
    if row in results.missing:
        return
    if left < _LEAST_SECONDS:
        if row not in results.figures or part:
            results.missing[row + part] = "no time left"
        return
    try:
        await do(plan, results, row, min(left, plan.call_seconds))
    except UnsupportedError as error:
        results.missing[row] = str(error)
    except WorkerError as error:
        results.missing[row + part] = str(error)


async def _measure_round(
    measures: Sequence[str], progress: Callable[[str], None], plan: Plan, results: Results, row: str, seconds: float
) -> None:
    """One round of one row, between fresh processes."""
    async with _Pair(row, seconds) as pair:
        results.loop = pair.loop
        for name in measures:
            progress(name)
            await getattr(pair, name)(plan, results)


async def _measure_idle(plan: Plan, results: Results, row: str, seconds: float) -> None:
    """Memory of one idle connection on the larger side; once, as it does not vary from round to round.

    First one accepting endpoint is dialled by many, then one dialling endpoint dials many; each time it is the process
    with the one endpoint whose growth is read, as a peer has one connection with another, and the many nodes of the
    other process would count too. Fresh processes each time: memory that was freed before would hide growth.
    """
    kib = []
    count = 0
    for one_identity in (False, True):
        async with _Pair(row, seconds) as pair:
            count = min(plan.idle, await pair.most_idle())
            results.loop = pair.loop
            kib.append(await pair.idle(count, one_identity=one_identity))
    results.idle_connections = count
    results.idle_sides[row] = (kib[0], kib[1])
    results.add(row, "idle_kib", max(kib))


class _Pair:
    """The two workers of one row; a method for each measure."""

    def __init__(self, row: str, seconds: float) -> None:
        self._row = row
        self._seconds = seconds
        self._workers: list[Worker] = []
        self.loop = ""

    async def __aenter__(self) -> Self:
        try:
            for _ in range(2):
                self._workers.append(await Worker.start("crust.bench.worker"))
            self._acceptor, self._dialler = self._workers
            both = await asyncio.gather(*(worker.call("row", name=self._row) for worker in self._workers))
        except BaseException:
            await self.__aexit__()
            raise
        self.loop = str(both[0])
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(asyncio.gather(*(worker.stop() for worker in self._workers)))

    async def bulk(self, plan: Plan, results: Results) -> None:
        before = await self._cpu()
        seconds = await self._run("bulk", "bulk", plan.bulk)
        receiving, sending = (after - begun for after, begun in zip(await self._cpu(), before, strict=True))
        packets = await self._dialler.call("packets")
        if seconds is not None:
            size = plan.bulk * BULK_MESSAGE_BYTES
            results.add(self._row, "bulk_mb_s", size / seconds / 1e6)
            results.add(self._row, "cpu_s_per_gib", (receiving + sending) / size * (1 << 30))
        if packets:
            results.packets.setdefault(self._row, []).append((sending / packets * 1e6, receiving / packets * 1e6))

    async def messages(self, plan: Plan, results: Results) -> None:
        seconds = await self._run("messages", "messages", plan.messages)
        if seconds is not None:
            results.add(self._row, "messages_per_s", plan.messages / seconds)

    async def rtt(self, plan: Plan, results: Results) -> None:
        seconds = await self._run("rtt", "echo", plan.pings)
        if seconds is not None:
            results.add(self._row, "rtt_us", seconds * 1e6)

    async def connect(self, plan: Plan, results: Results) -> None:
        seconds = await self._run("connect", "echo", plan.connects)
        if seconds is not None:
            results.add(self._row, "connect_ms", seconds * 1e3)

    async def most_idle(self) -> int:
        """How many idle connections the limit on open files allows."""
        files = min([await worker.call("limit") for worker in self._workers])
        return int((files - 100) / 1.1 / 4)  # a node that listens may take three files beside the connection

    async def idle(self, count: int, *, one_identity: bool) -> float:
        """KiB by which each of `count` connections makes the side with one endpoint grow, after a tenth as warm-up."""
        warm_up = count // 10
        many_listeners = one_identity and self._row not in ("raw_tcp", "tls")
        addresses = await self._serve("hold", 0, count + warm_up if many_listeners else 1)
        watched = self._dialler if one_identity else self._acceptor
        await self._hold(addresses[:warm_up], warm_up, one_identity)
        before = (await watched.call("usage"))["rss"]
        await self._hold(addresses[warm_up:] or addresses, count, one_identity)
        return float(((await watched.call("usage"))["rss"] - before) / count / 1024)

    async def _hold(self, addresses: list[Any], count: int, one_identity: bool) -> None:
        await self._dialler.call(
            "hold", seconds=self._seconds, addresses=addresses, count=count, one_identity=one_identity
        )

    async def _cpu(self) -> list[float]:
        """CPU seconds of the accepting and the dialling side."""
        return [(await worker.call("usage"))["cpu_s"] for worker in self._workers]

    async def _serve(self, role: str, count: int, listeners: int = 1) -> list[Any]:
        addresses: list[Any] = await self._acceptor.call(
            "serve", seconds=self._seconds, role=role, count=count, listeners=listeners
        )
        return addresses

    async def _run(self, do: str, role: str, count: int) -> float | None:
        """Have the acceptor listen, the dialler measure, and both close."""
        [address] = await self._serve(role, count)
        seconds: float | None = await self._dialler.call(do, seconds=self._seconds, address=address, count=count)
        await self._dialler.call("close")
        await self._acceptor.call("close")
        return seconds
