"""Throughput of µTP under trouble, in the simulated network: `python -m crust.testing.utp_table [--write FILE]`.

Prints the table of docs/explanation/utp.md, or puts it there between its two marks. Takes some minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from crust.proto.utp.config import UtpConfig
from crust.testing.simnet import Link, LinkConfig, SimNet
from crust.testing.utp_sim import Transfer, pair, simulate

__all__ = ["Case", "Result", "Share", "allowed_rate", "cases", "ledbat_alone", "main", "run_case", "share"]

BEGIN, END = (
    "<!-- table: python -m crust.testing.utp_table --write docs/explanation/utp.md -->",
    "<!-- end of table -->",
)

PAYLOAD = 1432
ON_THE_LINK = 1480  # with the header of µTP, UDP and IPv4
MBIT = 1e6
# A buffer of one bandwidth-delay product, as routers have it, and at least that of a cheap one.
LEAST_BUFFER = 64_000


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the table.

    Attributes:
        rtt: seconds, without queueing.
        rate: bits a second.
        loss: share of data packets lost at random.
        trouble: "", "reordered" (5 % held up by as much as a quarter of the round trip) or "duplicated" (5 %).
    """

    rtt: float
    rate: float
    loss: float
    trouble: str = ""

    @property
    def total(self) -> int:
        """Bytes to transfer: enough for the start to matter little, and for some hundred losses."""
        packets = self.rate / 8 / ON_THE_LINK * 30 if not self.loss else 200 / self.loss
        return int(max(packets, 20_000)) * PAYLOAD

    def links(self) -> tuple[LinkConfig, LinkConfig]:
        """The way of the data, and that of the acknowledgements."""
        back = LinkConfig(
            delay=self.rtt / 2, rate=self.rate, buffer_bytes=int(max(self.rate * self.rtt / 8, LEAST_BUFFER))
        )
        if self.trouble == "reordered":
            back = replace(back, reorder=0.05, reorder_delay=self.rtt / 4)
        elif self.trouble == "duplicated":
            back = replace(back, duplicate=0.05)
        return replace(back, loss=self.loss), back


@dataclass(frozen=True, slots=True)
class Result:
    """What a transfer reached.

    Attributes:
        rate: payload in bits a second.
        allowed: what link and response function allow.
        intact: every byte arrived, once and in its place.
        resent: repetitions for each packet.
    """

    rate: float
    allowed: float
    intact: bool
    resent: float

    @property
    def ratio(self) -> float:
        """The part of it that was reached."""
        return self.rate / self.allowed


def allowed_rate(rtt: float, rate: float, loss: float) -> float:
    """Payload in bits a second that the link and CUBIC's response function allow (RFC 9438 §5.1, with §4.3)."""
    link = rate * PAYLOAD / ON_THE_LINK
    if not loss:
        return link
    rtt += ON_THE_LINK * 8 / rate
    c, beta = 0.4, 0.7
    cubic = (c * (3 + beta) / (4 * (1 - beta))) ** 0.25 * rtt**0.75 / loss**0.75
    alpha = 3 * (1 - beta) / (1 + beta)
    reno = (alpha * (1 + beta) / (2 * (1 - beta) * loss)) ** 0.5
    return float(min(max(cubic, reno) * PAYLOAD * 8 / rtt, link))


def run_case(case: Case, seed: int = 1, total: int = 0) -> Result:
    """Transfer and measure, the start included."""
    there, back = case.links()
    transfer, elapsed = simulate(there, back, total=total or case.total, seed=seed)
    stats = transfer.sender.connection.stats
    return Result(
        transfer.receiver.received * 8 / elapsed,
        allowed_rate(case.rtt, case.rate, case.loss),
        transfer.done and transfer.intact,
        stats.packets_resent / stats.packets_sent,
    )


def cases() -> list[Case]:
    """The whole table."""
    return [
        Case(rtt, rate, loss, trouble)
        for rate in (10 * MBIT, 100 * MBIT)
        for rtt in (0.01, 0.05, 0.2)
        for loss in (0.0, 0.001, 0.01, 0.05)
        for trouble in ("", "reordered", "duplicated")
    ]


@dataclass(frozen=True, slots=True)
class Share:
    """How two flows divide a link.

    Attributes:
        first: payload in bits a second of the one that was there first, over the second half of the time.
        second: that of the other.
        queueing_delay: mean seconds in the queue, over the same time.
    """

    first: float
    second: float
    queueing_delay: float


def share(
    first: str, second: str, *, rtt: float, rate: float, buffer_seconds: float, seconds: float = 160.0, seed: int = 1
) -> Share:
    """Let two flows meet, the second 10 s later; `second` may be "" for none.

    Args:
        first: congestion control of the first.
        second: that of the second.
        rtt: seconds, without queueing.
        rate: bits a second.
        buffer_seconds: what the buffer holds.
        seconds: how long, of which the second half counts.
        seed: of the simulation.
    """
    net = SimNet(seed)
    buffer_bytes = int(max(rate * buffer_seconds / 8, LEAST_BUFFER))
    there = Link(net, LinkConfig(delay=rtt / 2, rate=rate, buffer_bytes=buffer_bytes))
    back = Link(net, LinkConfig(delay=rtt / 2, rate=rate))
    transfers: list[Transfer] = []

    def begin(congestion: str) -> None:
        config = UtpConfig(tunnel=True, congestion="ledbat" if congestion == "ledbat" else "cubic")
        transfers.append(Transfer(*pair(net, there, back, config)))
        transfers[-1].start()

    begin(first)
    if second:
        net.call_at(net.now + 10, lambda: begin(second))
    half = net.now + seconds / 2
    net.run(half)
    there.mean_queueing_delay()
    before = [transfer.receiver.received for transfer in transfers]
    net.run(half + seconds / 2)
    rates = [(transfer.receiver.received - was) * 16 / seconds for transfer, was in zip(transfers, before, strict=True)]
    return Share(rates[0], rates[1] if second else 0.0, there.mean_queueing_delay())


def ledbat_alone(*, rtt: float, rate: float, seconds: float = 120.0) -> Share:
    """LEDBAT by itself before a buffer of 400 ms."""
    return share("ledbat", "", rtt=rtt, rate=rate, buffer_seconds=0.4, seconds=seconds)


# -- the document ------------------------------------------------------------------------------------------------


def _throughput_lines(results: Iterable[tuple[Case, Result]]) -> list[str]:
    lines = [
        "| link | RTT | loss | allowed Mbit/s | reached | with reordering | with duplicates | sent again |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[tuple[float, float, float], list[Result]] = {}
    for case, result in results:
        rows.setdefault((case.rate, case.rtt, case.loss), []).append(result)
    for (rate, rtt, loss), found in rows.items():
        cells = [f"{result.ratio:.0%}{'' if result.intact else ' BROKEN'}" for result in found]
        lines.append(
            f"| {rate / MBIT:.0f} Mbit/s | {rtt * 1e3:.0f} ms | {loss:.1%} | {found[0].allowed / MBIT:.2f} | "
            f"{found[0].rate / MBIT:.2f} = {cells[0]} | {' | '.join(cells[1:])} | {found[0].resent:.2%} |"
        )
    return lines


def _share_lines() -> list[str]:
    lines = [
        "",
        "| flows | link | RTT | buffer | first Mbit/s | second Mbit/s | mean queueing delay |",
        "|---|---|---|---|---|---|---|",
    ]
    for names, rtt, rate, buffer_seconds in (
        (("ledbat", ""), 0.05, 10 * MBIT, 0.4),
        (("ledbat", ""), 0.01, 10 * MBIT, 0.4),
        (("ledbat", ""), 0.05, 100 * MBIT, 0.4),
        (("ledbat", "cubic"), 0.05, 10 * MBIT, 0.3),
        (("cubic", "ledbat"), 0.05, 10 * MBIT, 0.3),
        (("cubic", "cubic"), 0.01, 10 * MBIT, 0.05),
        (("cubic", "cubic"), 0.05, 10 * MBIT, 0.05),
        (("cubic", "cubic"), 0.05, 100 * MBIT, 0.05),
    ):
        # Two CUBIC flows need some hundred seconds to share a fast link: their cycles are long there.
        seconds = 300.0 if names == ("cubic", "cubic") and rate > 10 * MBIT else 160.0
        found = share(*names, rtt=rtt, rate=rate, buffer_seconds=buffer_seconds, seconds=seconds)
        second = f"{found.second / MBIT:.2f}" if names[1] else ""
        lines.append(
            f"| {', then '.join(filter(None, names))} | {rate / MBIT:.0f} Mbit/s | {rtt * 1e3:.0f} ms | "
            f"{buffer_seconds * 1e3:.0f} ms | {found.first / MBIT:.2f} | {second} | "
            f"{found.queueing_delay * 1e3:.0f} ms |"
        )
    return lines


def make_table(workers: int = 2) -> str:
    """The whole table as Markdown."""
    todo = cases()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = list(zip(todo, pool.imap(run_case, todo), strict=True))
    return "\n".join(_throughput_lines(results) + _share_lines())


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m crust.testing.utp_table", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, help="put the table between its marks in FILE")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    options = parser.parse_args(arguments)
    table = make_table(options.workers)
    if options.write is None:
        sys.stdout.write(table + "\n")
        return 0
    text = options.write.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.stderr.write(f"{options.write}: the marks of the table are missing\n")
        return 1
    options.write.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
