"""Offer a TCP service that this machine can reach to peers that run `crust forward`. The contact is printed first.

Whoever has the contact can use the service, unless --from says who may.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from crust.cli.options import accepted_peers, add_from_option, add_node_options, make_node
from crust.cli.output import Output
from crust.cli.peers import Peers
from crust.cli.splice import TCP_STREAM, splice

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.stream import Stream

_CONNECT_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust expose` takes."""
    parser.add_argument("service", metavar="HOST:PORT", type=_address, help="the service, such as localhost:22")
    add_from_option(parser)
    add_node_options(parser)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


async def run(args: argparse.Namespace, out: Output) -> int:
    """Serve until interrupted."""
    accepted = accepted_peers(args)
    async with make_node(args) as node:
        contact = str(await node.contact())
        out.data(contact, {"contact": contact, "id": node.id})
        host, port = args.service
        out.say(f"Offering {host} port {port}. On the other machine: crust forward {contact} LOCAL_PORT")
        await Peers(node, accepted).serve(_Service(host, port, out).serve)
    return 0


class _Service:
    def __init__(self, host: str, port: int, out: Output) -> None:
        self._host = host
        self._port = port
        self._out = out
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, connection: Connection) -> None:
        async for stream in connection.streams():
            if stream.name != TCP_STREAM:
                stream.reset()
                continue
            task = asyncio.create_task(self._join(stream))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _join(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(self._host, self._port)
        except (OSError, TimeoutError) as error:
            self._out.say(f"{self._host} port {self._port}: {getattr(error, 'strerror', None) or 'does not answer'}")
            stream.reset()
            return
        await splice(stream, reader, writer)
