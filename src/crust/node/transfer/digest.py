"""The hash functions of a transfer: BLAKE3 where both sides have it, else SHA-256."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from typing import Any, Final, Protocol

__all__ = [
    "CLAIM_PREFIX",
    "DIGEST_BYTES",
    "HashId",
    "Hasher",
    "choose_hash",
    "claim",
    "digest",
    "new_hasher",
    "supported",
]

DIGEST_BYTES: Final = 32
CLAIM_PREFIX: Final = b"crust-file-v1\0"


class HashId(enum.IntEnum):
    """Hash functions by their number on the wire; each is one bit, so that a set of them is a number too."""

    SHA256 = 1
    BLAKE3 = 2


class Hasher(Protocol):
    """What we use of a `hashlib` object."""

    def update(self, data: Any, /) -> Any:
        """Add bytes."""

    def digest(self) -> bytes:
        """The hash of all bytes so far."""
        ...


_blake3: Callable[..., Hasher] | None
try:
    from blake3 import blake3 as _blake3
except ImportError:  # the extra `fast` is not installed
    _blake3 = None


def supported() -> int:
    """The set of hash functions that this installation has, one bit each."""
    return HashId.SHA256 | (HashId.BLAKE3 if _blake3 is not None else 0)


def choose_hash(theirs: int) -> HashId | None:
    """The best one that both sides have; None if there is none."""
    common = supported() & theirs
    return next((hash_id for hash_id in (HashId.BLAKE3, HashId.SHA256) if common & hash_id), None)


def new_hasher(hash_id: HashId, data: Any = b"") -> Hasher:
    """A hash object, fed with `data`.

    Raises:
        LookupError: this installation lacks the function.
    """
    if hash_id is HashId.SHA256:
        return hashlib.sha256(data)
    if _blake3 is None:
        raise LookupError(f"{hash_id.name} needs the extra `fast`")
    return _blake3(data)


def digest(hash_id: HashId, data: Any) -> bytes:
    """The hash of something small."""
    return new_hasher(hash_id, data).digest()


def claim(size: int, hash_id: HashId, file_digest: bytes) -> bytes:
    """The message that stands for a whole file: whoever keeps its receipt can prove who sent the file."""
    return CLAIM_PREFIX + size.to_bytes(8, "big") + bytes((hash_id,)) + file_digest
