"""Join standard input and output of two machines.

  crust pipe --listen     waits for a peer; prints the contact on standard error, as standard output carries the data
  crust pipe TARGET       dials it

Each side ends when the input of both has ended; a terminal's input counts as ended when the peer's has. What the peer
breaks off never looks like its end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING

from crust.cli.app import EXIT_NO_PATH, EXIT_USAGE
from crust.cli.options import accepted_peers, add_from_option, add_node_options, make_node, timeout
from crust.cli.output import CommandError, Output, OutputClosed
from crust.cli.peers import Peers
from crust.cli.stdio import StdoutWriter, stdin_chunks
from crust.errors import ConnectionClosed, CrustError, RefusedError, StreamResetError
from crust.node.transfer.endpoint import end_tasks
from crust.node.transfer.worker import ThreadSource

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.node import Node
    from crust.node.stream import Stream

_STREAM = "crust/pipe"
_WINDOW_BYTES = 16 << 20
_CHUNK_BYTES = 256 << 10
_BREAK_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust pipe` takes."""
    parser.add_argument("target", metavar="TARGET", nargs="?", help="the contact that `crust pipe --listen` printed")
    add_from_option(parser)
    add_node_options(parser, listen_alone="wait for a peer instead of dialling one; with a value, on this address")


async def run(args: argparse.Namespace, out: Output) -> int:
    """Find the peer, then copy both ways."""
    if bool(args.target) == (args.listen is not None):
        raise CommandError("give either a TARGET or --listen", code=EXIT_USAGE)
    accepted = accepted_peers(args)
    async with make_node(args, stream_window_bytes=_WINDOW_BYTES) as node:
        if args.listen is not None:
            contact = str(await node.contact())
            out.say(json.dumps({"contact": contact, "id": str(node.id)}) if args.json else contact)
            waiting = _Waiting()
            connection, stream = await waiting.first(Peers(node, accepted), args.timeout)
        else:
            connection, stream = await _dial(node, args)
        out.say(f"Connected to {connection.peer} over {connection.path}")
        if connection.signed:
            out.say(f"Every byte is signed: the peer's by its key, ours by {node.id}")
        else:
            out.say("Nothing is signed: both sides have switched signing off")
        try:
            await _join(connection, stream)
        except BaseException:
            stream.reset()  # an end would tell the peer that it has everything
            raise
        await connection.close()
    return 0


async def _dial(node: Node, args: argparse.Namespace) -> tuple[Connection, Stream]:
    connection = await node.connect(args.target, timeout=timeout(args))
    return connection, await connection.open_stream(_STREAM)


class _Waiting:
    """Waits for the first peer that opens a pipe, and turns others away."""

    def __init__(self) -> None:
        self._found: asyncio.Future[tuple[Connection, Stream]] = asyncio.get_running_loop().create_future()
        self._serving: asyncio.Future[None] | None = None

    async def first(self, peers: Peers, limit: float | None) -> tuple[Connection, Stream]:
        self._serving = asyncio.ensure_future(peers.serve(self._look))
        try:
            async with asyncio.timeout(limit):
                await asyncio.wait((self._found, self._serving), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise CommandError(f"nobody came within {limit:g} s", code=EXIT_NO_PATH) from None
        if self._serving.done():
            await self._serving
        return await self._found

    async def _look(self, connection: Connection) -> None:
        async for stream in connection.streams():
            if stream.name == _STREAM and not self._found.done():
                self._found.set_result((connection, stream))
            else:
                stream.reset()


async def _join(connection: Connection, stream: Stream) -> None:
    """Copy both ways until both inputs have ended."""
    source = stdin_chunks()
    sending = asyncio.ensure_future(_send(source, stream))
    receiving = asyncio.ensure_future(_receive(stream))
    ended = asyncio.ensure_future(connection.wait_ended())
    try:
        await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await sending
        await receiving
        if sending.done() or not _stdin_is_terminal():
            await asyncio.wait((sending, ended), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ended.result()
            await sending
        with contextlib.suppress(CrustError):
            await stream.close()
    except StreamResetError as error:
        # Who breaks off closes the connection as well; who does not know pipes only refuses the stream.
        await asyncio.wait((ended,), timeout=_BREAK_SECONDS)
        if ended.done():
            raise ConnectionClosed("the peer has broken off, or its reader is gone") from error
        raise RefusedError("the peer does not wait for a pipe") from error
    finally:
        source.stop()
        await end_tasks(sending, receiving, ended)


def _stdin_is_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False


async def _send(source: ThreadSource[bytes], stream: Stream) -> None:
    async for chunk in source:
        stream.write(chunk)
        await stream.drain()
    stream.write_eof()


async def _receive(stream: Stream) -> None:
    output = StdoutWriter()
    try:
        while chunk := await stream.read(_CHUNK_BYTES):
            await output.write(chunk)
        await output.finish()
    except BrokenPipeError:
        stream.reset()
        raise OutputClosed from None
    finally:
        output.stop()
