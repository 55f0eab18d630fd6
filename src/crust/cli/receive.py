"""Receive files and folders from a peer that runs `crust send` with the contact printed here.

Nothing is replaced without --overwrite, and nothing is visible before it is whole. After an interruption start the same
command again: it goes on where it was, after a comparison by hash.

With --receipts each file gets a receipt, PATH.receipt, also one that was there already: with it `crust verify` proves
to anybody that the sender signed the file.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import TYPE_CHECKING, Any

from crust.cli.app import EXIT_LOST, EXIT_NO_PATH, EXIT_REFUSED, EXIT_USAGE
from crust.cli.options import accepted_peers, add_from_option, add_node_options, make_node, timeout
from crust.cli.output import CommandError, Output
from crust.cli.peers import Peers
from crust.cli.progress import Bars, summary
from crust.cli.send import end_record
from crust.errors import ConnectionClosed, CrustError, PeerLost
from crust.node.transfer import (
    STREAM_NAME,
    ClaimHandler,
    ReceiptFolder,
    TransferConflictError,
    TransferInterruptedError,
    TransferProgress,
    TransferResult,
    await_signatures,
    receive_files,
    refuse_files,
)
from crust.node.transfer.endpoint import end_tasks

if TYPE_CHECKING:
    from crust.crypto.keys import PeerId
    from crust.node.connection import Connection
    from crust.node.stream import Stream

# The bandwidth-delay product that one transfer can fill: 160 MB/s at 100 ms.
_WINDOW_BYTES = 16 << 20
_MOST_AT_ONCE = 4
_FAREWELL_SECONDS = 3.0
_ANSWER_SECONDS = 2.0
_FAILURES_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust receive` takes."""
    parser.add_argument("--into", metavar="DIR", default=".", help="where to put it (default: here; created if absent)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist with other content")
    parser.add_argument("--keep", action="store_true", help="stay for further transfers")
    parser.add_argument("--receipts", metavar="DIR", help="keep a receipt for each file here (created if absent)")
    add_from_option(parser)
    add_node_options(parser)


async def run(args: argparse.Namespace, out: Output) -> int:
    """Print the contact, then receive."""
    directory = _directory("--into", args.into)
    accepted = accepted_peers(args)
    node = make_node(args, stream_window_bytes=_WINDOW_BYTES)
    if args.receipts is not None:
        if node.config.signing == "off":
            raise CommandError("--receipts: signing is off in the configuration, so there are none", code=EXIT_USAGE)
        args.receipts = _directory("--receipts", args.receipts)
    async with node:
        contact = str(await node.contact())
        out.data(contact, {"contact": contact, "id": node.id})
        out.say(f"Receiving into {directory}. On the other machine: crust send {contact} FILE…")
        reception = _Reception(args, out, directory)
        peers = asyncio.create_task(Peers(node, accepted).serve(reception.serve))
        end = asyncio.create_task(reception.wait())
        try:
            await asyncio.wait((peers, end), return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                await end
            else:
                await peers
        finally:
            await end_tasks(peers, end)
    return 0


def _directory(option: str, path: str) -> str:
    """A folder to write into, created if absent; refused now if nothing could be written there."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{option} {path}: {error.strerror or error}", code=EXIT_USAGE) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise CommandError(f"{option} {path}: this folder cannot be written", code=EXIT_USAGE)
    return os.path.abspath(path)


class _Reception:
    """The transfers of one run: a single one, or with --keep any number."""

    def __init__(self, args: argparse.Namespace, out: Output, directory: str) -> None:
        self._keep = args.keep
        self._overwrite = args.overwrite
        self._first_seconds: float | None = args.timeout
        self._again_seconds = timeout(args)
        self._out = out
        self._directory = directory
        self._receipts: str | None = args.receipts
        self._bars = Bars(out, "Receiving")
        self._running: dict[Connection, asyncio.Event] = {}
        self._changed = asyncio.Event()
        self._ended = False
        self._error: CrustError | CommandError | None = None

    async def wait(self) -> None:
        """Return after the transfer; never with --keep.

        Raises:
            CommandError: it failed, nobody came in time, or a lost sender did not come back.
        """
        limit = self._first_seconds
        while not self._ended:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self._running or self._keep else limit):
                    await self._changed.wait()
            except TimeoutError:
                if self._error is None:
                    raise CommandError(f"nobody sent anything within {limit:g} s", code=EXIT_NO_PATH) from None
                raise CommandError(str(self._error), code=EXIT_LOST) from self._error
            if self._error is not None:
                limit = self._again_seconds
        if self._error is not None:
            raise self._error

    async def serve(self, connection: Connection) -> None:
        """Take the transfers of a peer."""
        async for stream in connection.streams():
            if stream.name != STREAM_NAME:
                stream.reset()
                continue
            await self._supersede(connection)
            if self._ended or len(self._running) >= (_MOST_AT_ONCE if self._keep else 1):
                await refuse_files(connection, stream, "another transfer is under way")
                continue
            done = asyncio.Event()
            self._running[connection] = done
            self._changed.set()
            try:
                await self._receive(connection, stream)
            finally:
                del self._running[connection]
                done.set()
                self._changed.set()

    async def _supersede(self, connection: Connection) -> None:
        """A sender that was killed and started again comes before its old connection is known to be lost."""
        for old, done in list(self._running.items()):
            if old.peer == connection.peer and old is not connection and not await _answers(old):
                old.abort(PeerLost(old.peer, "it has started anew"))
                await done.wait()

    async def _receive(self, connection: Connection, stream: Stream) -> None:
        out = self._out
        progress = TransferProgress()
        path = connection.path
        receipts = None if self._receipts is None else ReceiptFolder(self._receipts, self._directory)
        out.say(f"Transfer from {connection.peer} over {path}")
        try:
            async with self._bars.show(progress):
                result = await receive_files(
                    connection,
                    stream,
                    self._directory,
                    overwrite=self._overwrite,
                    on_claims=_claim_handler(connection, receipts),
                    progress=progress,
                )
        except (PeerLost, ConnectionClosed, TransferInterruptedError) as error:
            self._lost(connection, error)
        except TransferConflictError as error:
            self._fail(connection, CommandError(f"{error}: nothing was received (see --overwrite)", code=EXIT_REFUSED))
        except CrustError as error:
            self._fail(connection, error)
        else:
            await self._succeed(connection, result, connection.path or path, receipts)

    async def _succeed(
        self, connection: Connection, result: TransferResult, path: Any, receipts: ReceiptFolder | None
    ) -> None:
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await connection.flush()
        except (CrustError, TimeoutError):
            pass  # the sender has gone; what it sent is here
        self._out.say(summary("Received", result))
        signer = connection.peer if result.claims else None
        if signer is not None:
            self._out.say(_signed(signer, receipts))
        self._out.record(end_record(result, connection.peer, path, signer, receipts.kept if receipts else 0))
        self._error = None
        self._ended = not self._keep
        if receipts is not None and receipts.failures:
            self._tell_failures(connection, receipts.failures)

    def _tell_failures(self, connection: Connection, failures: list[str]) -> None:
        for text in failures[:_FAILURES_SHOWN]:
            self._out.say(text)
        self._fail(connection, CommandError(f"{len(failures):,} receipts could not be kept: {failures[0]}"))

    def _lost(self, connection: Connection, error: CrustError) -> None:
        """The sender may come back, with the same contact, for the rest."""
        if isinstance(error, TransferInterruptedError):
            text = "the sender was interrupted"
        else:
            text = f"the sender was lost ({error})"
        if self._keep:
            self._fail(connection, CommandError(text, code=EXIT_LOST))
        else:
            self._error = CommandError(text, code=EXIT_LOST)
            self._out.say(f"{text[0].upper()}{text[1:]}. Waiting {self._again_seconds:g} s for it to come back.")

    def _fail(self, connection: Connection, error: CrustError | CommandError) -> None:
        if self._keep:
            self._out.say(f"crust: {error}")
            self._out.record({"peer": connection.peer, "error": str(error)})
        else:
            self._error = error
            self._ended = True


async def _answers(connection: Connection) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await connection.ping()
    except (CrustError, TimeoutError):
        return False
    return True


def _claim_handler(connection: Connection, receipts: ReceiptFolder | None) -> ClaimHandler | None:
    """What is done with the sender's claims: without signatures they are of no use."""
    if not connection.signed:
        return None
    return await_signatures if receipts is None else receipts.keep


def _signed(signer: PeerId, receipts: ReceiptFolder | None) -> str:
    text = f"Each file is signed by {signer}"
    return text if receipts is None else f"{text}; receipts kept: {receipts.kept:,} (see crust verify)"
