"""The receiving side of a transfer, over a connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from crust.errors import ConnectionClosed, CrustError, PeerLost, RemoteProtocolError, StreamResetError
from crust.node.transfer.claims import ClaimHandler, ClaimReader
from crust.node.transfer.destination import Destination, TransferStopped
from crust.node.transfer.digest import DIGEST_BYTES, HashId, choose_hash
from crust.node.transfer.endpoint import end_tasks, read_frame, say_failure, wire_error
from crust.node.transfer.error import TransferError, TransferInterruptedError, TransferRefusedError
from crust.node.transfer.frame import Frame, Offer, Plan, Result, pack
from crust.node.transfer.intake import Intake
from crust.node.transfer.manifest import Manifest, parse_manifest
from crust.node.transfer.progress import TransferProgress, TransferResult
from crust.node.transfer.worker import DiskThread

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.stream import Stream

__all__ = ["receive_files", "refuse_files"]

# The more the disk lags behind, the larger the pieces it gets: each hand-over from thread to thread costs the same.
_READ_BYTES: Final = 1 << 20
_OFFER_SECONDS: Final = 120.0
_CLAIM_SECONDS: Final = 60.0
_END_SECONDS: Final = 0.5
_REASON_SECONDS: Final = 2.0


async def receive_files(
    connection: Connection,
    stream: Stream,
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    on_claims: ClaimHandler | None = None,
    progress: TransferProgress | None = None,
) -> TransferResult:
    """Take the files that a peer sends with `send_files`.

    A file appears under its name when it is whole and its hash is right; until then it grows in a hidden folder of the
    destination, from where a later call goes on. Nothing is created when anything is refused.

    Args:
        connection: to the peer.
        stream: from its `streams()`, of the name `STREAM_NAME`.
        directory: an existing folder.
        overwrite: replace files that differ.
        on_claims: if given, the sender is asked for a claim for each file (see `digest.claim`), also for those that
            were there already, and this is awaited with some of them at a time; the sender is told that all is well
            when it has returned for all. Messages of this connection are then read here until all claims have come,
            and others than claims are dropped.
        progress: updated while the transfer runs.

    Returns:
        What arrived.

    Raises:
        TransferConflictError: files exist with other content.
        TransferRefusedError: a name could do harm, or something is in the way.
        TransferError: the disk is full or fails, or the sender gave up.
        PeerLost, ConnectionClosed: the connection ended before the transfer did.
        Cancellation: the sender is told; what has arrived is kept.
    """
    intake = _Receiver(connection, stream, os.fspath(directory), overwrite, on_claims, progress or TransferProgress())
    try:
        return await intake.run()
    except StreamResetError as error:
        raise TransferInterruptedError("the sender was interrupted", remote=True) from error
    except TransferStopped as error:
        raise TransferError("the transfer was stopped") from error
    except BaseException as error:
        told = wire_error(error)
        if told is not None:
            await say_failure(connection, stream, told)
        if isinstance(error, RemoteProtocolError):
            raise TransferRefusedError(str(error)) from error
        raise
    finally:
        await intake.end()
        with contextlib.suppress(CrustError):
            await stream.close()


async def refuse_files(connection: Connection, stream: Stream, reason: str) -> None:
    """Turn a transfer down."""
    await say_failure(connection, stream, TransferRefusedError(reason))
    with contextlib.suppress(CrustError):
        await stream.close()


class _Receiver:
    def __init__(
        self,
        connection: Connection,
        stream: Stream,
        directory: str,
        overwrite: bool,
        on_claims: ClaimHandler | None,
        progress: TransferProgress,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._directory = directory
        self._overwrite = overwrite
        self._on_claims = on_claims
        self._progress = progress
        self._stop = threading.Event()
        self._disk = DiskThread()
        self._destination: Destination | None = None

    async def run(self) -> TransferResult:
        stream = self._stream
        try:
            async with asyncio.timeout(_OFFER_SECONDS):
                offer = Offer.parse(await read_frame(stream, Frame.OFFER, speaker="sender"))
        except TimeoutError:
            raise TransferRefusedError("the list of files takes too long") from None
        started = time.monotonic()
        hash_id = choose_hash(offer.hashes)
        if hash_id is None:
            raise TransferRefusedError("there is no hash function that both sides have")
        destination, plan = await self._disk.call(self._look, bytes(offer.manifest), hash_id)
        stream.write(plan.serialize())
        await self._agree(destination, plan)
        self._progress.phase = "transferring"
        total = await self._take(destination, plan)
        stream.write(Result(self._progress.files, total).serialize())
        await stream.drain()
        self._progress.phase = "done"
        return TransferResult(
            files=self._progress.files,
            bytes=self._progress.bytes,
            transferred_bytes=destination.transferred_bytes,
            kept_files=destination.kept_files,
            resumed_files=destination.resumed_files,
            seconds=time.monotonic() - started,
            hashes_equal=True,  # any that differs ends the transfer
            hash_name=hash_id.name.lower(),
            claims=0 if self._on_claims is None else self._progress.files,
        )

    async def end(self) -> None:
        """Let the thread come to its end, whatever it is at, and wait for it unless the disk hangs."""
        self._stop.set()
        await asyncio.wait((self._disk.end(self._release),), timeout=_END_SECONDS)

    def _stop_unless_done(self, work: asyncio.Future[None]) -> None:
        if not work.done():
            self._stop.set()

    def _release(self) -> None:
        if self._destination is not None:
            self._destination.release()

    def _look(self, offered: bytes, hash_id: HashId) -> tuple[Destination, Plan]:
        manifest: Manifest = parse_manifest(offered)
        destination = self._destination = Destination(
            self._directory,
            _file_name(self._connection.peer),
            manifest,
            overwrite=self._overwrite,
            progress=self._progress,
            stop=self._stop,
        )
        return destination, Plan(hash_id, self._on_claims is not None, tuple(destination.plan()))

    async def _agree(self, destination: Destination, plan: Plan) -> None:
        """Compare what is there with the sender's hashes, and make the folders."""
        proofs: list[bytes] = []
        if plan.items:
            self._progress.phase = "checking"
            hashing = asyncio.ensure_future(self._disk.call(destination.hash_found, plan.hash_id))
            try:
                body = await read_frame(self._stream, Frame.PROOF, speaker="sender")
                if len(body) != len(plan.items) * DIGEST_BYTES:
                    raise RemoteProtocolError("a PROOF of the wrong length")
                proofs = [body[at : at + DIGEST_BYTES] for at in range(0, len(body), DIGEST_BYTES)]
                await hashing
            finally:
                self._stop_unless_done(hashing)
                await end_tasks(hashing)
        verdict = await self._disk.call(destination.accept, plan.hash_id, proofs)
        if plan.items:
            self._stream.write(pack(Frame.VERDICT, verdict))

    async def _take(self, destination: Destination, plan: Plan) -> bytes:
        """Hand what comes to the disk; returns the hash over the hashes of all files."""
        intake = Intake(destination)
        pump = asyncio.ensure_future(self._pump(intake))
        working: list[asyncio.Future[None]] = [pump]
        claims = None
        if self._on_claims is not None:
            claims = ClaimReader(self._connection, destination, plan.hash_id, self._on_claims)
            working.append(asyncio.ensure_future(claims.read(self._progress.files)))
        try:
            await self._watch(working)
            self._progress.phase = "finishing"
            total = await self._disk.call(intake.done)
            if claims is not None:
                async with asyncio.timeout(_CLAIM_SECONDS):
                    await working[-1]
                    await claims.settle()
        except (ConnectionClosed, PeerLost, StreamResetError):
            await self._find_reason(pump)
            raise
        except TimeoutError:
            raise RemoteProtocolError("claims or their signatures are missing") from None
        finally:
            await end_tasks(*working)
        return total

    async def _find_reason(self, pump: asyncio.Future[None]) -> None:
        """The connection has ended: what came before that may hold the sender's reason, and waits for the disk yet.

        Raises:
            TransferError: the reason.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REASON_SECONDS):
                await asyncio.wait((pump,))
                await self._disk.call(int)

    async def _watch(self, working: list[asyncio.Future[None]]) -> None:
        """Wait for the end of the first, or for an error of any of them or of the disk."""
        failed = self._disk.failed
        while not working[0].done():
            waiting = [failed, *(task for task in working if not task.done())]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in filter(done.__contains__, waiting):
                task.result()
        working[0].result()

    async def _pump(self, intake: Intake) -> None:
        while chunk := await self._stream.read(_READ_BYTES):
            await self._disk.feed(intake.feed, chunk)


def _file_name(peer: Any) -> str:
    """Enough of a peer's id to tell its folder from others', without what could be no name."""
    return "".join(c for c in str(peer) if c.isascii() and c.isalnum())[:32]
