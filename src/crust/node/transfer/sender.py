"""The sending side of a transfer, over a connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

from crust.errors import CrustError, RemoteProtocolError, StreamResetError
from crust.node.transfer.digest import supported
from crust.node.transfer.endpoint import STREAM_NAME, end_tasks, read_frame, say_failure, wire_error
from crust.node.transfer.error import TransferError, TransferInterruptedError, TransferRefusedError
from crust.node.transfer.frame import Frame, Offer, Plan, Result, pack
from crust.node.transfer.outflow import Outflow
from crust.node.transfer.progress import TransferProgress, TransferResult
from crust.node.transfer.source import Source
from crust.node.transfer.worker import ThreadSource, run_in_thread
from crust.types import Priority

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.stream import Stream

__all__ = ["send_files"]

# A receiver looks up each name before it answers; half a million of them take seconds.
_ANSWER_SECONDS: Final = 60.0
# After the connection or stream ended: time for the reader to find the reason that the receiver gave.
_REASON_SECONDS: Final = 0.5


async def send_files(
    connection: Connection, source: Source, *, progress: TransferProgress | None = None
) -> TransferResult:
    """Send what `scan` found to a peer that awaits `receive_files`.

    What the peer has already is not sent again: it is compared by hash first. The peer's streams and messages stay
    usable meanwhile, except that it may ask for a claim for each file, a message of this connection.

    Args:
        connection: to the peer.
        source: from `scan`.
        progress: updated while the transfer runs.

    Returns:
        What was sent; the peer has confirmed that it holds all of it.

    Raises:
        TransferRefusedError: the peer does not want it (or some of it).
        TransferError: a file vanished or changed, or the peer's disk failed.
        PeerLost, ConnectionClosed: the connection ended before the transfer did.
        Cancellation: the peer is told, and keeps what it has, to go on from there another time.
    """
    progress = progress or TransferProgress()
    stop = threading.Event()
    started = time.monotonic()
    stream = await connection.open_stream(STREAM_NAME, priority=Priority.BULK)
    outflow = Outflow(source, progress, stop)
    try:
        plan = await _agree(stream, source, outflow)
        progress.phase = "transferring"
        result = await _transfer(connection, stream, outflow, plan, progress)
        if result.files != source.manifest.files:
            raise RemoteProtocolError("the receiver counts other files than were sent")
        progress.phase = "done"
        return TransferResult(
            files=result.files,
            bytes=source.manifest.bytes,
            transferred_bytes=outflow.transferred_bytes,
            kept_files=outflow.kept_files,
            resumed_files=outflow.resumed_files,
            seconds=time.monotonic() - started,
            hashes_equal=result.digest == outflow.total_digest(),
            hash_name=plan.hash_id.name.lower(),
            claims=result.files if plan.claims else 0,
        )
    except StreamResetError as error:
        if progress.phase == "waiting":
            raise TransferRefusedError("the peer does not wait for files") from error
        raise TransferInterruptedError("the receiver stopped", remote=True) from error
    except BaseException as error:
        told = wire_error(error)
        if told is not None:
            await say_failure(connection, stream, told)
        raise
    finally:
        stop.set()
        with contextlib.suppress(CrustError):
            await stream.close()


async def _agree(stream: Stream, source: Source, outflow: Outflow) -> Plan:
    """Offer, and find out what of it is to be sent."""
    manifest = source.manifest
    stream.write(Offer(supported(), manifest.serialize()).serialize())
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await stream.drain()
            body = await read_frame(stream, Frame.PLAN, speaker="receiver")
    except TimeoutError:
        raise TransferRefusedError(f"the peer does not answer the offer within {_ANSWER_SECONDS:.0f} s") from None
    plan = Plan.parse(body, [None if entry.is_folder else entry.size for entry in manifest])
    if not plan.hash_id.bit & supported():
        raise RemoteProtocolError("the receiver asks for a hash function that was not offered")
    if plan.items:
        hashing = asyncio.ensure_future(run_in_thread(outflow.proofs, plan))
        verdict = asyncio.ensure_future(read_frame(stream, Frame.VERDICT, speaker="receiver"))
        try:
            # The receiver may give up while we read our disk.
            await asyncio.wait((hashing, verdict), return_when=asyncio.FIRST_COMPLETED)
            if verdict.done():
                await verdict
                raise RemoteProtocolError("a VERDICT before its PROOF")
            stream.write(pack(Frame.PROOF, await hashing))
            body = await verdict
        finally:
            await end_tasks(hashing, verdict)
        if len(body) != len(plan.items):
            raise RemoteProtocolError("a VERDICT of the wrong length")
        outflow.keep(plan, body)
    return plan


async def _transfer(
    connection: Connection, stream: Stream, outflow: Outflow, plan: Plan, progress: TransferProgress
) -> Result:
    """Send the content, and wait for the receiver's last word; it may give up at any time."""
    answer = asyncio.ensure_future(read_frame(stream, Frame.RESULT, speaker="receiver"))
    pump = asyncio.ensure_future(_pump(connection, stream, outflow, plan))
    try:
        await asyncio.wait((answer, pump), return_when=asyncio.FIRST_COMPLETED)
        if not pump.done() and answer.done():
            await answer
            raise RemoteProtocolError("a RESULT before the end")
        try:
            await pump
        except TransferError:
            raise
        except CrustError:
            # The receiver says why, and then stops reading: its reason counts.
            with contextlib.suppress(TimeoutError, CrustError):
                await asyncio.wait((answer,), timeout=_REASON_SECONDS)
            if answer.done() and isinstance(answer.exception(), TransferError):
                await answer
            raise
        progress.phase = "finishing"
        return Result.parse(await answer)
    finally:
        await end_tasks(answer, pump)


async def _pump(connection: Connection, stream: Stream, outflow: Outflow, plan: Plan) -> None:
    blocks = ThreadSource(outflow.blocks(plan))
    try:
        async for block in blocks:
            # All pieces at once: a cancel falls between two frames, where a FAIL can follow.
            for piece in block.pieces:
                stream.write(piece)
            await stream.drain()
            if plan.claims:
                for claim in block.claims:
                    await connection.send(claim, priority=Priority.BULK)
        stream.write_eof()
    finally:
        blocks.stop()
