"""The messages in which a sender stands for its files, and the receipts for them.

After each file the sender sends a claim: a message with the file's size and hash. The receiver compares it with what
arrived. The receipt for a claim proves who sent the file (`Receipt.verify_file`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from crust.errors import ReceiptError, ReceiptUnavailable, RemoteProtocolError
from crust.node.transfer.destination import Destination
from crust.node.transfer.digest import CLAIM_PREFIX, HashId, claim
from crust.node.transfer.manifest import shown
from crust.node.transfer.worker import run_in_thread
from crust.wire.receipt import Receipt

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.node.message import Message

__all__ = ["ClaimHandler", "ClaimReader", "ReceiptFolder", "await_signatures"]

ClaimHandler: TypeAlias = "Callable[[Sequence[tuple[str, Message]]], Awaitable[None]]"
"""Awaited with some files' paths in the transfer, and the messages that claim what arrived under them."""

_AT_ONCE: Final = 1024
_MOST_RECEIPT_BYTES: Final = 4096
_SUFFIX: Final = ".receipt"


class ClaimReader:
    """Takes the claims of one transfer from its connection, and hands on those of files that are there.

    They are handed on as many at a time as there are: who waits for their signatures waits once for all of them.

    Args:
        connection: to the sender.
        destination: where the files go; the sender's claims come in the order in which they are complete there.
        hash_id: the hash of the transfer.
        handler: gets the claims.
    """

    def __init__(
        self, connection: Connection, destination: Destination, hash_id: HashId, handler: ClaimHandler
    ) -> None:
        self._connection = connection
        self._destination = destination
        self._hash_id = hash_id
        self._handler = handler
        self._waiting: deque[Message] = deque()  # for their files
        self._handed_on = 0

    async def read(self, count: int) -> None:
        """Read `count` claims; `settle` then hands on those for which there was no file yet.

        Raises:
            RemoteProtocolError: a claim is for another content than what arrived.
            PeerLost, ConnectionClosed: the connection ended before.
        """
        inbox = self._connection.session.inbox
        while self._handed_on + len(self._waiting) < count:
            await self._read_one()
            while inbox.has_message and len(self._waiting) < _AT_ONCE and self._handed_on + len(self._waiting) < count:
                await self._read_one()
            await self.settle()

    async def _read_one(self) -> None:
        message = await self._connection.receive()
        if message.data.startswith(CLAIM_PREFIX):
            self._waiting.append(message)

    async def settle(self) -> None:
        """Hand on the claims of all files that are complete.

        Raises:
            RemoteProtocolError: as `read`.
        """
        destination = self._destination
        batch: list[tuple[str, Message]] = []
        while self._waiting and self._handed_on < len(destination.completed):
            number = destination.completed[self._handed_on]
            message = self._waiting.popleft()
            file_digest = destination.digests[number]
            size = destination.manifest[number].size
            if file_digest is None or message.data != claim(size, self._hash_id, file_digest):
                raise RemoteProtocolError("a claim for another content than what was sent")
            self._handed_on += 1
            batch.append((destination.manifest.path(number), message))
        if batch:
            await self._handler(batch)


async def await_signatures(claims: Sequence[tuple[str, Message]]) -> None:
    """Wait until the sender has signed these claims, and keep nothing.

    Raises:
        PeerLost, ConnectionClosed: the connection ended before.
        ReceiptUnavailable: signing is off.
    """
    await _receipt(claims[-1][1])  # signatures come in the order of the messages


async def _receipt(message: Message) -> Receipt:
    try:
        return await message.receipt()
    except ReceiptUnavailable as error:
        if error.__cause__ is not None:  # how the connection ended: a transfer may go on after that
            raise error.__cause__ from None
        raise


class ReceiptFolder:
    """Keeps the receipt for each file of a transfer: PATH.receipt in a folder.

    Args:
        directory: an existing folder.
        destination: where the files themselves go.

    Attributes:
        kept: receipts written.
        failures: why others were not, a sentence each.
    """

    def __init__(self, directory: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
        self.kept = 0
        self.failures: list[str] = []
        self._directory = os.path.realpath(directory)
        self._made: set[str] = set()
        # The files of the transfer that lie in this folder: no receipt may take the place of one.
        self._inside = _below(os.path.realpath(destination), self._directory)
        self._files: set[str] = set()

    async def keep(self, claims: Sequence[tuple[str, Message]]) -> None:
        """Wait for the signatures and write the receipts; a `ClaimHandler`.

        What cannot be written is noted in `failures`, as the file itself has arrived.

        Raises:
            PeerLost, ConnectionClosed: the connection ended before.
            ReceiptUnavailable: signing is off.
        """
        receipts = [(path, await _receipt(message)) for path, message in claims]
        await run_in_thread(self._write_all, receipts)

    def _write_all(self, receipts: list[tuple[str, Receipt]]) -> None:
        if self._inside is not None:
            self._files.update(path[len(self._inside) :] for path, _ in receipts if path.startswith(self._inside))
        for path, receipt in receipts:
            try:
                self._write(f"{path}{_SUFFIX}", bytes(receipt))
            except OSError as error:
                self.failures.append(f"no receipt is kept for {shown(path)}: {error.strerror or error}")
            else:
                self.kept += 1

    def _write(self, path: str, data: bytes) -> None:
        target = os.path.join(self._directory, *path.split("/"))
        folder = os.path.dirname(target)
        if folder not in self._made:
            os.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        if path in self._files or not _may_be_replaced(target):
            raise FileExistsError(None, "something else has its name")
        new = os.path.join(folder, f".{secrets.token_hex(8)}.new")
        try:
            with open(new, "xb") as file:
                file.write(data)
            os.replace(new, target)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise


def _below(destination: str, directory: str) -> str | None:
    """What paths in a destination begin with if they lie in a directory below it; None if that is elsewhere."""
    if directory == destination:
        return ""
    if os.path.commonpath((destination, directory)) != destination:
        return None
    return os.path.relpath(directory, destination).replace(os.sep, "/") + "/"


def _may_be_replaced(target: str) -> bool:
    """Whether nothing has this name, or an earlier receipt."""
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_RECEIPT_BYTES:
        return False
    with open(target, "rb") as file, contextlib.suppress(ReceiptError):
        Receipt.from_bytes(file.read())
        return True
    return False
