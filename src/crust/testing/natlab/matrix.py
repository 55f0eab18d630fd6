"""Every kind of place against every other: sets up the pairs, runs a program in both, collects what came of it."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from crust.crypto.keys import Identity
from crust.testing.natlab.declare import NATS, Behaviour, Kind, Ports
from crust.testing.natlab.errors import LabError
from crust.testing.natlab.lab import Lab
from crust.testing.natlab.places import Host
from crust.testing.natlab.probe import prove
from crust.testing.natlab.process import Process, Stdio

__all__ = ["CrustProgram", "Expectation", "Outcome", "Program", "expect", "run_matrix", "table"]

_FIRST_LINE_SECONDS = 15.0
_END_SECONDS = 5.0

_CRUST = "from crust.cli import main; raise SystemExit(main())"

Line = dict[str, Any]


class Program(Protocol):
    """What is run in a pair; each program speaks one JSON object per line on its standard output."""

    def rendezvous(self, host: Host) -> Sequence[str]:
        """The command for the node that both can reach; its first line is given to the others."""

    def listener(self, host: Host, rendezvous: Line, transport: str) -> Sequence[str]:
        """The command for the peer that is dialled; its first line is given to the dialler."""

    def dialler(self, host: Host, rendezvous: Line, listener: Line, transport: str) -> Sequence[str]:
        """The command for the peer that dials; its last line is the result, as that of `crust ping --json`."""

    def announce(self, host: Host) -> Line:
        """What the listener's first line will say, as far as the dialler needs it; asked only where it starts late."""


@dataclass(frozen=True, slots=True)
class CrustProgram:
    """`crust node` and `crust ping`.

    Attributes:
        directory: where the identities are kept, one file for each host.
        command: how to call `crust`.
        options: for all three.
        dial_options: for the dialler.
        target: the key of the listener's first line that is dialled: "id" by way of the rendezvous, "contact" directly.
        timeout: seconds that a dial may take.
        wait: seconds for which a dialler asks again where the peer is not there yet.
    """

    directory: Path
    command: tuple[str, ...] = (sys.executable, "-c", _CRUST)
    options: tuple[str, ...] = ()
    dial_options: tuple[str, ...] = ("-c", "1")
    target: str = "id"
    timeout: float = 15.0
    wait: float = 0.0

    def _key_file(self, host: Host) -> Path:
        return self.directory / f"{host.name}.key"

    def _identity(self, host: Host) -> list[str]:
        return ["--identity", str(self._key_file(host)), *self.options]

    def announce(self, host: Host) -> Line:
        """The PeerId, which needs no program: a late listener is always dialled by it."""
        return {"id": str(Identity.load_or_create(self._key_file(host)).id)}

    def rendezvous(self, host: Host) -> list[str]:
        """A node on every address of the host, at port 443."""
        return [*self.command, "node", "--json", *self._listen(host), *self._identity(host)]

    @staticmethod
    def _listen(host: Host) -> list[str]:
        """A public peer listens at 443, so that those whose firewall allows nothing else can reach it."""
        if host.site is not None:
            return []
        return [f"--listen=[{each}]:443" if ":" in each else f"--listen={each}:443" for each in host.addresses]

    def listener(self, host: Host, rendezvous: Line, transport: str) -> list[str]:
        """A node that knows the rendezvous."""
        known = ["--bootstrap", rendezvous["contact"], "--transport", transport]
        return [*self.command, "node", "--json", *self._listen(host), *known, *self._identity(host)]

    def dialler(self, host: Host, rendezvous: Line, listener: Line, transport: str) -> list[str]:
        """One dial by PeerId."""
        known = ["--bootstrap", rendezvous["contact"], "--transport", transport, "--timeout", str(self.timeout)]
        known += ["--wait", str(self.wait)] if self.wait else []
        return [
            *self.command,
            "ping",
            listener[self.target],
            "--json",
            *self.dial_options,
            *self._listen(host),
            *known,
            *self._identity(host),
        ]


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
    result: Line = field(default_factory=dict, repr=False)
    counters: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def direct(self) -> bool:
        """Whether the peers got through to each other."""
        return self.path in ("direct", "mapped", "punched")


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a pair of places makes possible.

    Attributes:
        direct: whether a direct path can be had.
        within_ms: the median that is aimed at; None without a direct path.
        why: in a few words.
    """

    direct: bool
    within_ms: float | None
    why: str


def expect(first: Kind | str, second: Kind | str, transport: str) -> Expectation:
    """Tell what can be expected of a pair, from the declarations alone."""
    pair = [NATS[kind] if isinstance(kind, str) else kind for kind in (first, second)]
    if pair[0] == pair[1] and pair[0].shared:
        return Expectation(True, 250, "same LAN")
    if not all(each.ipv4 for each in pair):
        if all(each.ipv6 for each in pair):
            return Expectation(True, 250, "IPv6, which nothing translates")
        return Expectation(False, None, "no address family in common")
    if transport == "utp" and any("udp" in _blocked(each) for each in pair):
        return Expectation(False, None, "UDP is blocked")
    if any(_restricted(each) for each in pair):
        if any(not each.routers for each in pair):
            return Expectation(True, 500, "only to port 443")
        return Expectation(False, None, "no outgoing packet may open a hole")
    if any(router.port_mapping for each in pair for router in each.routers):
        return Expectation(True, 250, "port mapping")
    hard = [each for each in pair if _mapping(each) is not Behaviour.ENDPOINT_INDEPENDENT]
    within = 500 if any("udp" in _blocked(each) for each in pair) else 250
    if not hard:
        return Expectation(True, within, "endpoint-independent mapping on both sides")
    easy = [each for each in pair if each not in hard]
    if easy and _filtering(easy[0]) is not Behaviour.ADDRESS_AND_PORT_DEPENDENT:
        return Expectation(True, within, "the easy side's filter opens for an address")
    if all(_ports(each) is Ports.SEQUENTIAL for each in hard):
        return Expectation(True, 600, "predicted ports")
    if easy and transport == "utp":
        return Expectation(True, 2000, "birthday probing")
    return Expectation(False, None, "random ports towards each endpoint")


def _blocked(kind: Kind) -> set[str]:
    return {str(name) for router in kind.routers for name in router.firewall.blocked}


def _restricted(kind: Kind) -> bool:
    return any(router.firewall.tcp_ports is not None for router in kind.routers)


def _mapping(kind: Kind) -> Behaviour:
    found = [router.nat.mapping for router in kind.routers if router.nat is not None]
    return next((each for each in found if each is not Behaviour.ENDPOINT_INDEPENDENT), Behaviour.ENDPOINT_INDEPENDENT)


def _filtering(kind: Kind) -> Behaviour:
    order = list(Behaviour)
    found = [router.nat.filtering for router in kind.routers if router.nat is not None]
    return max(found, key=order.index, default=Behaviour.ENDPOINT_INDEPENDENT)


def _ports(kind: Kind) -> Ports:
    found = [router.nat.ports for router in kind.routers if router.nat is not None]
    return next((each for each in (Ports.RANDOM, Ports.SEQUENTIAL) if each in found), Ports.PRESERVING)


class _Grounds:
    """The places of a matrix, each built once for either side and used again."""

    def __init__(self, lab: Lab, *, check_kinds: bool) -> None:
        self._lab = lab
        self._check_kinds = check_kinds
        self._proved: set[str] = set()
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
            if self._check_kinds and kind.name not in self._proved:
                await prove(self._lab, kind)
                self._proved.add(kind.name)
            host = self._places[side, kind.name] = await self._lab.place(kind, f"{kind.name}-{side}")
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
    late: float
    stderr: Stdio

    async def run(self, first: Host, second: Host, rendezvous: Line) -> Line:
        """Dial with fresh programs on both sides; returns the dialler's last line."""
        program, transport = self.program, self.transport
        async with _Programs(self.stderr) as programs:
            listening = program.listener(second, rendezvous, transport)
            if self.late:
                dialling = program.dialler(first, rendezvous, program.announce(second), transport)
                dialler = await programs.start(first, dialling)
                result = asyncio.ensure_future(self._result(dialler))
                try:
                    await asyncio.wait((result,), timeout=self.late)
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


def _outcome(first: Kind, second: Kind, transport: str, attempt: int, result: Line) -> Outcome:
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
        result=result,
    )


async def run_matrix(  # noqa: PLR0913 - options by keyword, each with a default
    lab: Lab,
    program: Program,
    *,
    pairs: Iterable[tuple[Kind | str, Kind | str]],
    transports: Sequence[str] = ("utp", "tcp"),
    tries: int = 1,
    timeout: float = 30.0,
    check_kinds: bool = True,
    late: float = 0.0,
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
        late: seconds after the dialler at which the listener starts; by default it starts first.
        stderr: where the programs write what they have to say; by default where we do.

    Yields:
        One outcome for each dial, as it comes.

    Raises:
        LabError: a program does not even start.
        LabUnavailable: a kind needs a program that is missing.
        NotAsDeclared: a kind is not what it is said to be.
    """
    grounds = _Grounds(lab, check_kinds=check_kinds)
    async with _Programs(stderr) as programs:
        middle = await lab.public("rendezvous")
        rendezvous = await _first_line(await programs.start(middle, program.rendezvous(middle)), "rendezvous")
        for one, two in pairs:
            first = NATS[one] if isinstance(one, str) else one
            second = NATS[two] if isinstance(two, str) else two
            for transport in transports:
                call = _Call(program, transport, timeout, late, stderr)
                for attempt in range(tries):
                    hosts = await grounds.pair(first, second)
                    before = await lab.counters()
                    result = await call.run(*hosts, rendezvous)
                    after = await lab.counters()
                    busy = {name: after[name] - before[name] for name in ("overrun", "late")}
                    outcome = _outcome(first, second, transport, attempt, result)
                    yield replace(outcome, counters={**busy, "latest_us": after["latest_us"]})


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
