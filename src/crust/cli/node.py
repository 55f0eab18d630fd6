"""Run a node and its services until Ctrl-C or SIGTERM. The first line of output is its contact."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from crust.cli.options import accepted_peers, add_from_option, add_node_options, listen_address, make_node
from crust.cli.output import CommandError, Output, to_json
from crust.cli.peers import Peers
from crust.errors import CrustError

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.node import Node

INTERRUPTED = 0
"""Exit code after Ctrl-C or SIGTERM: to stop a node is no failure."""

# Well below the 2 s within which a signal ends the command.
_CLOSE_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust node` takes."""
    parser.add_argument("--qr", action="store_true", help="show the contact as a QR code, on standard error")
    parser.add_argument("--events", action="store_true", help="print what happens, one JSON object per line")
    parser.add_argument("--directory", metavar="URL", help="a shared directory, such as redis://HOST/0")
    parser.add_argument(
        "--stun-service",
        action="append",
        type=listen_address,
        metavar="ADDR:PORT",
        help="serve others' STUN clients here, UDP and TCP (repeatable: two addresses at one port tell them the "
        "behaviour of their NATs)",
    )
    add_from_option(parser)
    add_node_options(parser)


async def run(args: argparse.Namespace, out: Output) -> int:
    """Run until interrupted."""
    defaults: dict[str, Any] = {"close_timeout": _CLOSE_SECONDS}
    accepted = accepted_peers(args)
    async with make_node(args, **defaults) as node:
        contact = str(await node.contact())
        events = asyncio.create_task(_print_events(node, out)) if args.events else None
        out.data(contact, {"contact": contact, "id": node.id})
        if args.qr:
            _show_qr(contact, out)
        peers = asyncio.create_task(Peers(node, accepted).serve(_hold))
        tasks = [task for task in (events, peers) if task is not None]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    return 0


async def _hold(connection: Connection) -> None:
    """Keep a peer connected; what it sends is of no interest to a bare node."""
    with contextlib.suppress(CrustError):
        reader = asyncio.create_task(_drop_messages(connection))
        try:
            async for stream in connection.streams():
                stream.reset()
        finally:
            reader.cancel()


async def _drop_messages(connection: Connection) -> None:
    with contextlib.suppress(CrustError):
        async for _message in connection:
            pass


async def _print_events(node: Node, out: Output) -> None:
    """One JSON object per event, with or without `--json`."""
    lines = Output(json=True)
    async for event in node.events():
        lines.record({"event": type(event).__name__, "time": round(time.time(), 3), **_fields(event)})


def _fields(event: Any) -> dict[str, Any]:
    if isinstance(event, BaseException):  # PeerLost is an error too
        return {name: to_json(value) for name, value in vars(event).items() if not name.startswith("_")}
    fields: dict[str, Any] = to_json(event)
    return fields


def _show_qr(contact: str, out: Output) -> None:
    try:
        import segno
    except ModuleNotFoundError:
        raise CommandError("--qr needs segno: pip install 'crust-p2p[cli]'", code=2) from None
    import io

    text = io.StringIO()
    # Upper case: the alphanumeric mode of QR codes, and the smaller code for it; contacts ignore case.
    segno.make(contact.upper(), error="l").terminal(text, compact=True)
    out.say(text.getvalue())
