"""From the sender's files to the bytes of a transfer's stream: a generator that runs in the sender's thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from crust.node.transfer.digest import Hasher, HashId, claim, digest, new_hasher
from crust.node.transfer.frame import FILE, HEADER, SMALL_FILE_BYTES, WHOLE, Frame, Plan, pack
from crust.node.transfer.manifest import Entry, shown
from crust.node.transfer.progress import TransferProgress
from crust.node.transfer.source import Source, hash_prefix

__all__ = ["Block", "Outflow"]

# Large enough that handing a block from thread to loop costs nothing, small enough that the allocator reuses memory.
_BLOCK_BYTES: Final = 1 << 20


class Block(NamedTuple):
    """Some whole frames in pieces, and the claims for the files that end in them."""

    pieces: list[bytes]
    claims: list[bytes]


class Outflow:
    """Reads, hashes and packs what the receiver lacks.

    Args:
        source: the files.
        progress: kept up to date.
        stop: set by another thread to end long work early.
    """

    def __init__(self, source: Source, progress: TransferProgress, stop: threading.Event) -> None:
        self.kept_files = 0
        self.resumed_files = 0
        self.transferred_bytes = 0
        self.digests: list[bytes | None] = [None] * len(source.manifest)
        self._source = source
        self._progress = progress
        self._stop = stop
        self._hash_id = HashId.SHA256
        self._hashers: dict[int, tuple[int, Hasher]] = {}  # files of which the receiver has a part
        self._claims: list[bytes] = []
        progress.files, progress.bytes = source.manifest.files, source.manifest.bytes

    def proofs(self, plan: Plan) -> bytes:
        """The hash of as much of each file as the receiver has.

        Raises:
            TransferError: a file vanished or changed, or cannot be read.
        """
        self._hash_id = plan.hash_id
        self._progress.phase = "checking"
        self._progress.check_bytes = sum(item.have for item in plan.items)
        proofs = bytearray()
        for item in plan.items:
            hasher = new_hasher(plan.hash_id)
            read = 0
            with self._source.open(item.number) as descriptor:
                for count in hash_prefix(descriptor, item.have, hasher):
                    read += count
                    self._progress.check_done += count
                    if self._stop.is_set():
                        break
            if read != item.have:
                raise self._source.changed(item.number, "has changed")
            proofs += hasher.digest()
            self._hashers[item.number] = item.have, hasher
        return bytes(proofs)

    def keep(self, plan: Plan, verdict: bytes) -> None:
        """Learn which of it the receiver keeps."""
        for item, same in zip(plan.items, verdict, strict=True):
            if not same:
                del self._hashers[item.number]
                continue
            self._progress.bytes_kept += item.have
            self._progress.bytes_done += item.have
            if item.have == self._source.manifest[item.number].size:
                _, hasher = self._hashers.pop(item.number)
                self.kept_files += 1
                self._complete(item.number, hasher.digest())

    def blocks(self, plan: Plan) -> Generator[Block, None, None]:
        """Everything that goes out after the VERDICT.

        Raises:
            TransferError: a file vanished or changed, or cannot be read.
        """
        self._hash_id = plan.hash_id
        buffer = bytearray()
        for number, entry in enumerate(self._source.manifest):
            if entry.is_folder or self.digests[number] is not None:
                continue
            if entry.size <= SMALL_FILE_BYTES and number not in self._hashers:
                self._pack_small(number, entry, buffer)
                if len(buffer) >= _BLOCK_BYTES:
                    yield self._block(buffer)
                    buffer = bytearray()
            else:
                buffer += pack(Frame.FILE, FILE.pack(number, self._hashers.get(number, (0, None))[0]))
                yield self._block(buffer)
                yield from self._pack_large(number, entry)
                buffer = bytearray(pack(Frame.END, self.digests[number] or b""))
        buffer += pack(Frame.DONE)
        yield self._block(buffer)

    def total_digest(self) -> bytes:
        """The hash over the hashes of all files."""
        return digest(self._hash_id, b"".join(d for d in self.digests if d is not None))

    def _block(self, buffer: bytearray) -> Block:
        claims, self._claims = self._claims, []
        return Block([bytes(buffer)], claims)

    def _pack_small(self, number: int, entry: Entry, buffer: bytearray) -> None:
        self._progress.name = entry.name
        with self._source.open(number) as descriptor:
            # One byte more, to see that it did not grow.
            data = os.read(descriptor, entry.size + 1)
        if len(data) != entry.size:
            raise self._source.changed(number, "has changed")
        file_digest = digest(self._hash_id, data)
        buffer += HEADER.pack(Frame.WHOLE, WHOLE.size + len(data))
        buffer += WHOLE.pack(number, file_digest)
        buffer += data
        self._sent(len(data))
        self._complete(number, file_digest)

    def _pack_large(self, number: int, entry: Entry) -> Iterator[Block]:
        self._progress.name = shown(self._source.manifest.path(number))
        offset, hasher = self._hashers.pop(number, (0, None))
        if hasher is None:
            hasher = new_hasher(self._hash_id)
        else:
            self.resumed_files += 1
        left = entry.size - offset
        with self._source.open(number) as descriptor:
            os.lseek(descriptor, offset, os.SEEK_SET)
            while left:
                # The bytes object goes to the connection as it is: not one copy on the way.
                data = os.read(descriptor, min(left, _BLOCK_BYTES))
                if not data:
                    raise self._source.changed(number, "has changed")
                hasher.update(data)
                left -= len(data)
                self._sent(len(data))
                yield Block([HEADER.pack(Frame.DATA, len(data)), data], [])
            self._source.check_unchanged(number, descriptor)
        self._complete(number, hasher.digest())

    def _sent(self, count: int) -> None:
        self.transferred_bytes += count
        self._progress.bytes_done += count

    def _complete(self, number: int, file_digest: bytes) -> None:
        self.digests[number] = file_digest
        self._claims.append(claim(self._source.manifest[number].size, self._hash_id, file_digest))
        self._progress.files_done += 1
