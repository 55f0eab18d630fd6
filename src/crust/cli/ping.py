"""Connect to a peer, measure round trips, show the path.

TARGET is a contact (crust:…), a PeerId (crust…) or PEERID@HOST:PORT. With --swap no TARGET is given: each side prints
its contact and reads the other's from standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

from crust.cli.app import EXIT_USAGE, exit_code, sentence
from crust.cli.options import add_node_options, make_node, positive_number, timeout
from crust.cli.output import CommandError, Output, table
from crust.errors import ConnectionClosed, CrustError, NoPathError, ParseError
from crust.types import Report

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.node import Node

_INTERVAL_SECONDS = 0.2
# A bootstrap node that has not answered by then will not do so in time.
_BOOTSTRAP_SECONDS = 4.0
# Between two dials of --wait.
_RETRY_SECONDS = 1.0
# With --swap the other person may still have to paste our contact.
_SWAP_SECONDS = 120.0
# For routers that may map our port, and STUN servers: the contact cannot be mended later.
_PATIENCE_SECONDS = 3.0
_FAREWELL = b"crust-ping-done"
_FAREWELL_SECONDS = 30.0


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000000")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust ping` takes."""
    parser.add_argument("target", metavar="TARGET", nargs="?", help="whom to dial")
    parser.add_argument("-c", "--count", type=_count, default=4, metavar="N", help="round trips (default 4)")
    parser.add_argument("--explain", action="store_true", help="show what was tried, as a table")
    parser.add_argument(
        "--wait", type=positive_number, default=0.0, metavar="SECONDS", help="keep trying until the peer is there"
    )
    parser.add_argument("--swap", action="store_true", help="swap contacts by hand: print ours, read the peer's")
    add_node_options(parser)


async def run(args: argparse.Namespace, out: Output) -> int:
    """Dial, ping, report."""
    if bool(args.target) == args.swap:
        raise CommandError("give either a TARGET or --swap", code=EXIT_USAGE)
    if args.target:
        _peer_of(args.target)  # mistyped: say so before a node is started
    async with make_node(args) as node:
        target = await _swap(node, out) if args.swap else args.target
        peer = _peer_of(target)
        # The time to connect counts from here: the node is up and its bootstrap connections stand.
        await node.bootstrapped(min(_BOOTSTRAP_SECONDS, timeout(args)))
        try:
            connection, connect_ms, first = await _connect(node, target, args, out)
        except CrustError as error:
            report = getattr(error, "report", None) or Report(peer, error=str(error))
            raise _failed(peer, error, report, args, out) from error
        try:
            rtts = await _measure(connection, first, connect_ms, args, out)
            if args.swap:
                await _say_farewell(connection)
        except CrustError as error:
            raise _failed(peer, error, connection.report or Report(peer), args, out) from error
        record = {
            "peer": peer,
            "connect_ms": round(connect_ms, 3),
            "path": connection.path or connection.paths[-1],
            "paths": connection.paths,
            "rtt_ms": [round(rtt, 3) for rtt in rtts],
            "report": connection.report,
        }
        await connection.close()
    if args.explain and connection.report is not None:
        out.say(explain(connection.report))
    least, middle, most = min(rtts), statistics.median(rtts), max(rtts)
    out.data(f"{len(rtts)} round trips, least / median / most: {least:.2f} / {middle:.2f} / {most:.2f} ms", record)
    return 0


def _peer_of(target: str) -> str:
    from crust.wire.contact import parse_target

    return str(parse_target(target).id)


def _failed(peer: str, error: CrustError, report: Report, args: argparse.Namespace, out: Output) -> CommandError:
    if args.explain:
        out.say(explain(report))
    record: dict[str, Any] = {"peer": peer, "error": str(error), "report": report}
    return CommandError(sentence(error), code=exit_code(error), record=record)


async def _swap(node: Node, out: Output) -> str:
    """Print our contact, read the peer's."""
    from crust.cli.stdio import read_line

    contact = str(await node.contact(patience=_PATIENCE_SECONDS))
    out.data(contact, {"contact": contact, "id": node.id})
    out.say("Give this line to the other side, and paste theirs here:")
    line = (await read_line()).strip()
    if not line:
        raise ParseError("standard input ended without the peer's contact")
    return line


async def _connect(node: Node, target: str, args: argparse.Namespace, out: Output) -> tuple[Connection, float, float]:
    """Dial, again and again as long as --wait says; returns the milliseconds to the first echo, and its round trip."""
    started = time.monotonic()
    deadline = started + max(args.wait, _SWAP_SECONDS if args.swap and not args.wait else 0.0)
    told = False
    while True:
        started = time.monotonic()
        try:
            connection = await node.connect(target, timeout=timeout(args), swapped=args.swap)
            first = await connection.ping()
            return connection, (time.monotonic() - started) * 1000, first * 1000
        except NoPathError as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if not told:
                told = True
                out.say(f"{error}; trying again for {left:.0f} s")
            await asyncio.sleep(min(_RETRY_SECONDS, left))


async def _measure(
    connection: Connection, first: float, connect_ms: float, args: argparse.Namespace, out: Output
) -> list[float]:
    rtts = [first]
    out.data(f"{connection.peer}\nconnected in {connect_ms:.1f} ms: {connection.path}\n1: {first:.2f} ms")
    for number in range(2, args.count + 1):
        await asyncio.sleep(_INTERVAL_SECONDS)
        rtt = await connection.ping() * 1000
        rtts.append(rtt)
        out.data(f"{number}: {rtt:.2f} ms")
    return rtts


async def _say_farewell(connection: Connection) -> None:
    """Both sides ping: who is ready first must not close the connection under the other."""
    try:
        await connection.send(_FAREWELL)
        async with asyncio.timeout(_FAREWELL_SECONDS):
            while (await connection.receive()).data != _FAREWELL:
                pass
    except (ConnectionClosed, TimeoutError):
        pass


def explain(report: Report) -> str:
    """The record of a dial as a table for people."""
    rows = [
        [
            f"{attempt.started_ms:.1f}",
            "" if attempt.ended_ms is None else f"{attempt.ended_ms - attempt.started_ms:.1f}",
            attempt.transport,
            attempt.candidate,
            attempt.kind,
            attempt.outcome,
            attempt.detail,
        ]
        for attempt in report.attempts
    ]
    lines = [f"dial of {report.target}: {report.elapsed_ms:.1f} ms"]
    if rows:
        lines.append(table(["at ms", "took", "over", "candidate", "kind", "outcome", ""], rows))
    else:
        lines.append("no candidate was tried")
    for side, nats in (("our NAT", report.ours), ("the peer's NAT", report.theirs)):
        for transport, nat in sorted(nats.items()):
            sure = f" (mapping: {nat.sureness})" if nat.mapping != "unknown" else ""
            lines.append(f"{side}, {transport}: {nat.words}{sure}")
    if report.winner is not None:
        lines.append(f"won: {report.winner}")
    if report.error:
        lines.append(f"failed: {report.error}")
    lines += [f"advice: {sentence}" for sentence in report.advice]
    return "\n".join(lines)
