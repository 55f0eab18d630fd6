"""Reach a TCP service that a peer offers with `crust expose`: connect to LOCAL_PORT of this machine instead.

The first line of output is the address to connect to; with port 0 the system picks one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from crust.cli.app import EXIT_USAGE
from crust.cli.options import add_node_options, make_node, timeout
from crust.cli.output import CommandError, Output
from crust.cli.splice import TCP_STREAM, reset, splice
from crust.errors import CrustError

if TYPE_CHECKING:
    from crust.node.node import Node

_HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust forward` takes."""
    parser.add_argument("target", metavar="TARGET", help="the contact that `crust expose` printed")
    parser.add_argument("port", metavar="LOCAL_PORT", type=_port, help="port on 127.0.0.1; 0 for any")
    add_node_options(parser)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number")
    return int(text)


async def run(args: argparse.Namespace, out: Output) -> int:
    """Forward until interrupted."""
    async with make_node(args) as node:
        connection = await node.connect(args.target, timeout=timeout(args))
        forwarder = _Forwarder(node, args.target, timeout(args), out)
        try:
            server = await asyncio.start_server(forwarder.handle, _HOST, args.port)
        except OSError as error:
            text = f"cannot listen on {_HOST}:{args.port}: {os.strerror(error.errno) if error.errno else error}"
            raise CommandError(text, code=EXIT_USAGE) from error
        async with server:
            host, port = server.sockets[0].getsockname()[:2]
            address = f"{host}:{port}"
            out.data(address, {"listening": address, "peer": connection.peer})
            out.say(f"Connected to {connection.peer} over {connection.path}")
            await server.serve_forever()
    return 0


class _Forwarder:
    def __init__(self, node: Node, target: str, limit: float, out: Output) -> None:
        self._node = node
        self._target = target
        self._limit = limit
        self._out = out

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join a local connection with a stream; a peer that was lost is dialled again."""
        try:
            connection = await self._node.connect(self._target, timeout=self._limit)
            stream = await connection.open_stream(TCP_STREAM)
        except CrustError as error:
            self._out.say(f"crust: {error}")
            reset(writer)
            return
        with contextlib.suppress(asyncio.CancelledError):  # the server is closing: its tasks are ours to end quietly
            await splice(stream, reader, writer)
