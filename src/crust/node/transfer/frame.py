"""What the two sides of a transfer say to each other on their stream.

    sender                         receiver
    OFFER (hashes, manifest)  ->
                              <-   PLAN (hash, what is there already)
    PROOF (hashes of that)    ->        only if the plan has items
                              <-   VERDICT (which of it is the same)
    WHOLE | FILE DATA… END …  ->
    DONE                      ->
                              <-   RESULT (files, hash over all)

Either side may say FAIL and stop. Each frame is a type u8 and a length u32, big-endian, then its body.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from crust.errors import RemoteProtocolError
from crust.node.transfer.digest import DIGEST_BYTES, HashId
from crust.node.transfer.error import (
    FailureKind,
    TransferError,
    TransferInterruptedError,
    TransferRefusedError,
)
from crust.node.transfer.manifest import MAX_ENTRIES, MAX_MANIFEST_BYTES, shown

__all__ = [
    "HEADER",
    "MAX_DATA_BYTES",
    "MAX_TEXT_BYTES",
    "SMALL_FILE_BYTES",
    "VERSION",
    "Frame",
    "Offer",
    "Plan",
    "PlanItem",
    "Result",
    "failure",
    "pack",
    "parse_failure",
    "parse_header",
]

VERSION: Final = 1

# A file up to this size travels in one WHOLE frame and is written in one go: it is never resumed.
SMALL_FILE_BYTES: Final = 128 << 10
MAX_DATA_BYTES: Final = 1 << 20
MAX_TEXT_BYTES: Final = 4096

HEADER: Final = struct.Struct(">BI")
FILE: Final = struct.Struct(">IQ")  # number of the entry, offset
WHOLE: Final = struct.Struct(f">I{DIGEST_BYTES}s")  # number of the entry, hash; then the content
_OFFER: Final = struct.Struct(">BBB")  # version, hashes, flags
_PLAN: Final = struct.Struct(">BBI")  # hash, flags, items
_ITEM: Final = struct.Struct(">IQ")  # number of the entry, bytes that are there
_RESULT: Final = struct.Struct(f">I{DIGEST_BYTES}s")
_CLAIMS: Final = 1


class Frame(enum.IntEnum):
    """Types of frames."""

    OFFER = 1
    PLAN = 2
    PROOF = 3
    VERDICT = 4
    FILE = 5
    DATA = 6
    END = 7
    WHOLE = 8
    DONE = 9
    FAIL = 10
    RESULT = 11


# The longest body of each type, so that a length alone cannot make the other side hold much.
_MAX_BODY: Final[dict[Frame, int]] = {
    Frame.OFFER: _OFFER.size + MAX_MANIFEST_BYTES,
    Frame.PLAN: _PLAN.size + MAX_ENTRIES * _ITEM.size,
    Frame.PROOF: MAX_ENTRIES * DIGEST_BYTES,
    Frame.VERDICT: MAX_ENTRIES,
    Frame.FILE: FILE.size,
    Frame.DATA: MAX_DATA_BYTES,
    Frame.END: DIGEST_BYTES,
    Frame.WHOLE: WHOLE.size + SMALL_FILE_BYTES,
    Frame.DONE: 0,
    Frame.FAIL: 1 + MAX_TEXT_BYTES,
    Frame.RESULT: _RESULT.size,
}


def pack(kind: Frame, body: bytes | bytearray = b"") -> bytes:
    """A frame of some type."""
    return HEADER.pack(kind, len(body)) + body


def parse_header(data: bytes | bytearray | memoryview) -> tuple[Frame, int]:
    """The type of a frame, and the length of its body.

    Raises:
        RemoteProtocolError: no such type, or too long for it.
    """
    number, length = HEADER.unpack(data)
    try:
        kind = Frame(number)
    except ValueError:
        raise RemoteProtocolError(f"a frame of the unknown type {number}") from None
    if length > _MAX_BODY[kind]:
        raise RemoteProtocolError(f"a {kind.name} of {length} bytes is too long")
    return kind, length


def failure(error: TransferError) -> bytes:
    """The FAIL that tells the other side why we stop."""
    return pack(Frame.FAIL, bytes((error.kind,)) + error.public.encode(errors="replace")[:MAX_TEXT_BYTES])


def parse_failure(body: bytes, speaker: str) -> TransferError:
    """The error in a FAIL.

    Args:
        body: of the frame.
        speaker: "sender" or "receiver", who says so.
    """
    text = shown(body[1:].decode(errors="replace"))
    kind = body[0] if body else 0
    if kind == FailureKind.INTERRUPTED:
        return TransferInterruptedError(f"the {speaker} was interrupted", remote=True)
    if kind == FailureKind.REFUSED:
        return TransferRefusedError(f"the {speaker} refuses: {text}", remote=True)
    return TransferError(f"the {speaker} gave up: {text}", remote=True)


@dataclass(frozen=True, slots=True)
class Offer:
    """What the sender has.

    Attributes:
        hashes: the hash functions that it can compute, one bit each.
        manifest: the list of files, not parsed yet.
    """

    hashes: int
    manifest: bytes | bytearray

    def serialize(self) -> bytes:
        """The frame."""
        return pack(Frame.OFFER, _OFFER.pack(VERSION, self.hashes, 0) + self.manifest)

    @classmethod
    def parse(cls, body: bytes) -> Offer:
        """Read the body.

        Raises:
            RemoteProtocolError: truncated, or of another version.
        """
        if len(body) < _OFFER.size:
            raise RemoteProtocolError("a truncated OFFER")
        version, hashes, _flags = _OFFER.unpack_from(body)
        if version != VERSION:
            raise RemoteProtocolError(
                f"the sender speaks version {version} of file transfer, this is version {VERSION}"
            )
        return cls(hashes, body[_OFFER.size :])


@dataclass(frozen=True, slots=True)
class PlanItem:
    """A file of which the receiver has something.

    Attributes:
        number: of the manifest's entry.
        have: bytes from its start.
    """

    number: int
    have: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How the receiver wants it.

    Attributes:
        hash_id: the hash function.
        claims: the sender shall send a claim for each file, as a message.
        items: what it has something of.
    """

    hash_id: HashId
    claims: bool
    items: tuple[PlanItem, ...]

    def serialize(self) -> bytes:
        """The frame."""
        body = bytearray(_PLAN.pack(self.hash_id, _CLAIMS if self.claims else 0, len(self.items)))
        for item in self.items:
            body += _ITEM.pack(item.number, item.have)
        return pack(Frame.PLAN, body)

    @classmethod
    def parse(cls, body: bytes, sizes: list[int | None]) -> Plan:
        """Read the body.

        Args:
            body: of the frame.
            sizes: the size of each file offered, None for a folder.

        Raises:
            RemoteProtocolError: malformed, or not about what was offered.
        """
        if len(body) < _PLAN.size:
            raise RemoteProtocolError("a truncated PLAN")
        number, flags, count = _PLAN.unpack_from(body)
        if len(body) != _PLAN.size + count * _ITEM.size:
            raise RemoteProtocolError("a PLAN of the wrong length")
        try:
            hash_id = HashId(number)
        except ValueError:
            raise RemoteProtocolError(f"the unknown hash function {number}") from None
        return cls(hash_id, bool(flags & _CLAIMS), tuple(_parse_items(memoryview(body)[_PLAN.size :], sizes)))


def _parse_items(data: memoryview, sizes: list[int | None]) -> Iterator[PlanItem]:
    previous = -1
    for number, have in _ITEM.iter_unpack(data):
        # Ascending, so that none comes twice.
        if not previous < number < len(sizes):
            raise RemoteProtocolError("a PLAN with a file out of order")
        size = sizes[number]
        if size is None or have > size:
            raise RemoteProtocolError("a PLAN with more than was offered")
        previous = number
        yield PlanItem(number, have)


@dataclass(frozen=True, slots=True)
class Result:
    """What the receiver has in the end.

    Attributes:
        files: how many.
        digest: the hash over the hashes of all files, in the order of the manifest.
    """

    files: int
    digest: bytes

    def serialize(self) -> bytes:
        """The frame."""
        return pack(Frame.RESULT, _RESULT.pack(self.files, self.digest))

    @classmethod
    def parse(cls, body: bytes) -> Result:
        """Read the body.

        Raises:
            RemoteProtocolError: of the wrong length.
        """
        if len(body) != _RESULT.size:
            raise RemoteProtocolError("a RESULT of the wrong length")
        return cls(*_RESULT.unpack(body))
