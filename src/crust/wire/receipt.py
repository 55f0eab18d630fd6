"""Receipts: portable proof that a peer signed a message.

A receipt holds the signed statement about a batch, the head of one leaf, and the path from that leaf up to the root
that was signed. Layout, integers big-endian:

    "crust-receipt" 13 | version 1 = 1
    hash id 1 | sender 32 | receiver 32 | session id 32          the direction
    batch 8 | first 8 | last 8 | time 8 | signature 64           the statement; its root is computed
    0x00 1 | kind 1 | priority 1 | length 5 | salt 16 | number 8 the head of the leaf
    sibling 32, as often as the place in the tree asks for       the path, from the leaf up

    leaf = SHA-256(head ‖ content)         content of at most 2048 bytes
         = SHA-256(head ‖ H(content))      longer content, H as the hash id says
    node = SHA-256(0x01 ‖ left ‖ right)

The tree is that of RFC 9162 §2.1.1: nodes are paired level by level, one left over goes up as it is. The text form is
"crust-receipt:" and all but the first 13 bytes in base64url without padding. Nothing in a receipt can be left out,
added or written in two ways. `docs/explanation/receipts.md` says what it proves.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

import msgspec

from crust.crypto.hashing import HASH_BYTES, Buffer, HashId, hasher
from crust.errors import ReceiptError
from crust.wire.statement import MAX_BATCH, MAX_TIME, Statement, parse_direction

if TYPE_CHECKING:
    from crust.crypto.keys import PeerId

__all__ = [
    "INLINE_CONTENT",
    "MAX_LENGTH",
    "SALT_BYTES",
    "Claims",
    "Kind",
    "Receipt",
    "file_claim",
    "leaf_hash",
    "leaf_head",
    "path_length",
    "root_above",
]

INLINE_CONTENT: Final = 2048
"""Contents up to this size are hashed together with the head of their leaf: one call instead of two."""

MAX_LENGTH: Final = (1 << 40) - 1
SALT_BYTES: Final = 16

_MAGIC: Final = b"crust-receipt"
_VERSION: Final = 1
_DIRECTION_AT: Final = len(_MAGIC) + 1
_STATEMENT: Final = struct.Struct(">QQQQ64s")
_STATEMENT_AT: Final = _DIRECTION_AT + 97
_HEAD: Final = struct.Struct(f">Q{SALT_BYTES}sQ")
_HEAD_AT: Final = _STATEMENT_AT + _STATEMENT.size
_PATH_AT: Final = _HEAD_AT + _HEAD.size
_MAX_BYTES: Final = _PATH_AT + 40 * HASH_BYTES
_TEXT_PREFIX: Final = "crust-receipt:"
_MAX_TEXT: Final = 4 * _MAX_BYTES  # twice what the longest takes: blanks and line ends are let through

_FILE_CLAIM: Final = b"crust-file-v1\0"
_FILE_CLAIM_BYTES: Final = len(_FILE_CLAIM) + 8 + 1 + HASH_BYTES
_READ_BYTES: Final = 1 << 20

_sha256 = hashlib.sha256


class Kind(enum.IntEnum):
    """What a numbered unit is."""

    MESSAGE = 0
    STREAM_CHUNK = 1
    ABORTED = 2
    """A large message that was given up; it has a number, but nobody can have a receipt for it."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What the signer says in a receipt; true if `Receipt.verify` says that the signature is genuine.

    Attributes:
        signer: who signed.
        receiver: to whom the message was sent.
        session: 32 bytes that no other session has.
        number: place of the unit among all that the signer sent in the session, from 0.
        kind: a message or a piece of a stream.
        priority: the priority that it was sent with.
        length: its bytes.
        batch: number of the batch that was signed.
        time: when it was signed by the signer's own clock, in seconds since 1970. Nobody else attests it.
    """

    signer: PeerId
    receiver: PeerId
    session: bytes
    number: int
    kind: Kind
    priority: int
    length: int
    batch: int
    time: float


# --- leaves and paths ----------------------------------------------------------------------------------------------


def leaf_head(kind: int, priority: int, length: int, salt: bytes, number: int) -> bytes:
    """The 32 bytes before the content of a leaf. The first is zero, which no inner node begins with."""
    return _HEAD.pack(kind << 48 | priority << 40 | length, salt, number)


def leaf_hash(head: bytes, content: Buffer, hash_id: HashId) -> bytes:
    """The leaf of a unit whose whole content is at hand."""
    if len(content) > INLINE_CONTENT:
        content = hasher(hash_id)(content).digest()
    return _sha256(head + content).digest()


def path_length(index: int, width: int) -> int:
    """How many siblings a leaf has on its way up, in a tree of `width` leaves."""
    steps = 0
    while width > 1:
        steps += index & 1 or index + 1 < width
        index >>= 1
        width = (width + 1) >> 1
    return steps


def root_above(leaf: bytes, index: int, width: int, path: Buffer) -> bytes:
    """The root of a tree of `width` leaves from leaf `index` and its path, of just `path_length` siblings."""
    at = 0
    while width > 1:
        if index & 1:
            leaf = _sha256(b"\1" + path[at : at + HASH_BYTES] + leaf).digest()
            at += HASH_BYTES
        elif index + 1 < width:
            leaf = _sha256(b"\1" + leaf + path[at : at + HASH_BYTES]).digest()
            at += HASH_BYTES
        index >>= 1
        width = (width + 1) >> 1
    return leaf


def file_claim(hash_id: HashId, size: int, digest: bytes) -> bytes:
    """The message by which a sender stands for a whole file, for `Receipt.verify_file`.

    Args:
        hash_id: the hash of the session in which the message is sent.
        size: bytes in the file.
        digest: the hash of all of them.
    """
    return _FILE_CLAIM + struct.pack(">QB", size, hash_id) + digest


# --- receipts ------------------------------------------------------------------------------------------------------


class Receipt:
    """Proof that a PeerId signed a message, for anyone, with no network and no other message (PROTOCOL 18).

    Immutable, hashable; `bytes()` and `str()` are its two portable forms. Made by `Message.receipt()`, `from_bytes` or
    `from_text`. A receipt proves something only after `verify` or `verify_file`.

    Attributes:
        claims: what the signer says.
    """

    __slots__ = ("_raw", "_statement", "claims")

    _raw: bytes
    _statement: Statement
    claims: Claims

    def __init__(self, statement: Statement, head: bytes, path: bytes) -> None:
        """Put a receipt together from its parts, which are already known to fit (see `from_bytes`)."""
        tag, _, number = _HEAD.unpack(head)
        direction = statement.direction
        claims = Claims(
            signer=direction.sender,
            receiver=direction.receiver,
            session=direction.session,
            number=number,
            kind=Kind(tag >> 48),
            priority=tag >> 40 & 0xFF,
            length=tag & MAX_LENGTH,
            batch=statement.batch,
            time=statement.time_us / 1e6,
        )
        fields = (statement.batch, statement.first, statement.last, statement.time_us, statement.signature)
        raw = b"".join((_MAGIC, bytes((_VERSION,)), bytes(direction), _STATEMENT.pack(*fields), head, path))
        object.__setattr__(self, "_raw", raw)
        object.__setattr__(self, "_statement", statement)
        object.__setattr__(self, "claims", claims)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Receipt:
        """Read the binary form.

        Raises:
            ReceiptError: it is no receipt, or one of a later version; nothing else, whatever the bytes.
        """
        raw = _sized(memoryview(data).cast("B"))
        if not raw.startswith(_MAGIC):
            raise ReceiptError("not a receipt")
        if raw[len(_MAGIC)] != _VERSION:
            raise ReceiptError(f"a receipt of version {raw[len(_MAGIC)]}; this program knows version {_VERSION}")
        batch, first, last, time_us, signature = _STATEMENT.unpack_from(raw, _STATEMENT_AT)
        tag, _, number = _HEAD.unpack_from(raw, _HEAD_AT)
        if not first <= number <= last < first + MAX_BATCH or time_us > MAX_TIME:
            raise ReceiptError("not a receipt: its numbers contradict each other")
        if tag >> 48 not in (Kind.MESSAGE, Kind.STREAM_CHUNK) or tag >> 40 & 0xFF > 7:
            raise ReceiptError("not a receipt for a message or a piece of a stream")
        if len(raw) != _PATH_AT + HASH_BYTES * path_length(number - first, last - first + 1):
            raise ReceiptError("not a receipt: its proof has the wrong length")
        # Last, because looking at points costs more than all the rest.
        direction = parse_direction(raw, _DIRECTION_AT)
        # The root is what `verify` computes; a statement without it is never looked at.
        statement = Statement(direction, batch, first, last, b"", time_us, signature)
        return cls(statement, raw[_HEAD_AT:_PATH_AT], raw[_PATH_AT:])

    @classmethod
    def from_text(cls, text: str) -> Receipt:
        """Read the text form; blanks and line ends in it do not matter.

        Raises:
            ReceiptError: it is no receipt.
        """
        if len(text) > _MAX_TEXT:
            raise ReceiptError("not a receipt: too long")
        text = "".join(text.split())
        if not text.startswith(_TEXT_PREFIX):
            raise ReceiptError(f'not a receipt: it does not begin with "{_TEXT_PREFIX}"')
        body = text.removeprefix(_TEXT_PREFIX)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except ValueError as error:
            raise ReceiptError("not a receipt: damaged text") from error
        receipt = cls.from_bytes(_MAGIC + data)
        if str(receipt) != text:
            raise ReceiptError("not a receipt: damaged text")
        return receipt

    def verify(self, data: Buffer) -> PeerId:
        """Check that `data` is the message, and that the signer signed it.

        Args:
            data: the whole message.

        Returns:
            The signer's PeerId. `claims` has the rest.

        Raises:
            ReceiptError: the data, the receipt or the signature is not genuine.
        """
        data = memoryview(data).cast("B")
        if len(data) != self.claims.length:
            raise ReceiptError(f"the receipt is for {self.claims.length} bytes, not for these {len(data)}")
        if len(data) > INLINE_CONTENT:
            data = hasher(self._statement.direction.hash_id)(data).digest()
        return self._verify(data)

    def verify_file(self, file: str | os.PathLike[str] | BinaryIO) -> PeerId:
        """Check a file: one that the signer stood for as a whole (`crust send`), or that holds the signed message.

        The file is read once, from where it stands, and never held in memory.

        Args:
            file: a path, or a file opened for reading bytes.

        Returns:
            The signer's PeerId.

        Raises:
            ReceiptError: the file, the receipt or the signature is not genuine.
            OSError: the file cannot be read.
        """
        if isinstance(file, (str, os.PathLike)):
            with open(file, "rb") as opened:
                return self.verify_file(opened)
        hash_id = self._statement.direction.hash_id
        content, size, head = hasher(hash_id)(), 0, b""
        while block := file.read(_READ_BYTES):
            content.update(block)
            size += len(block)
            if len(head) <= INLINE_CONTENT:  # all of it, if it turns out to be a short message
                head += block[: INLINE_CONTENT + 1]
        candidates = []
        if self.claims.length == _FILE_CLAIM_BYTES:
            candidates.append(file_claim(hash_id, size, content.digest()))
        if self.claims.length == size:
            candidates.append(head if size <= INLINE_CONTENT else content.digest())
        if not candidates:
            raise ReceiptError(f"the receipt is for {self.claims.length} bytes, not for a file of {size}")
        for candidate in candidates[:-1]:
            try:
                return self._verify(candidate)
            except ReceiptError:
                continue
        return self._verify(candidates[-1])

    def _verify(self, content: Buffer) -> PeerId:
        """Check the signature over the root above a leaf with this content, or this hash of a long one."""
        statement = self._statement
        raw = self._raw
        leaf = _sha256(raw[_HEAD_AT:_PATH_AT] + content).digest()
        first = statement.first
        root = root_above(leaf, self.claims.number - first, statement.last - first + 1, raw[_PATH_AT:])
        if not msgspec.structs.replace(statement, root=root).is_genuine():
            raise ReceiptError("the signature does not match: the data or the receipt was altered, or another signed")
        return statement.direction.sender

    def __bytes__(self) -> bytes:
        return self._raw

    def __str__(self) -> str:
        return _TEXT_PREFIX + base64.urlsafe_b64encode(self._raw[len(_MAGIC) :]).decode("ascii").rstrip("=")

    def __repr__(self) -> str:
        claims = self.claims
        return f"<Receipt: {claims.kind.name} {claims.number} of {claims.length} bytes, said to be by {claims.signer}>"

    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, Receipt) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._raw)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a receipt cannot be changed ({name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a receipt cannot be changed ({name})")

    def __reduce__(self) -> tuple[Any, ...]:
        return Receipt.from_bytes, (self._raw,)


def _sized(data: memoryview) -> bytes:
    """A copy of what may be a receipt by its length."""
    if not _PATH_AT <= len(data) <= _MAX_BYTES or (len(data) - _PATH_AT) % HASH_BYTES:
        raise ReceiptError(f"not a receipt: {len(data)} bytes")
    return data.tobytes()
