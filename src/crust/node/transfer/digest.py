"""The hashes of a transfer: of files, with the function that both sides agree on (BLAKE3 where both have it)."""

from __future__ import annotations

from typing import Final

from crust.crypto.hashing import HASH_BYTES, SUPPORTED, Buffer, Hasher, HashId, hasher

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

DIGEST_BYTES: Final = HASH_BYTES
CLAIM_PREFIX: Final = b"crust-file-v1\0"


def supported() -> int:
    """The set of hash functions that are fast enough here, one bit each."""
    return SUPPORTED


def choose_hash(theirs: int) -> HashId | None:
    """The best one that both sides have; None if there is none."""
    common = SUPPORTED & theirs
    return next((hash_id for hash_id in (HashId.BLAKE3, HashId.SHA256) if common & hash_id.bit), None)


def new_hasher(hash_id: HashId, data: Buffer = b"") -> Hasher:
    """A hash object, fed with `data`."""
    return hasher(hash_id)(data)


def digest(hash_id: HashId, data: Buffer) -> bytes:
    """The hash of something small."""
    return hasher(hash_id)(data).digest()


def claim(size: int, hash_id: HashId, file_digest: bytes) -> bytes:
    """The message that stands for a whole file: whoever keeps its receipt can prove who sent the file."""
    return CLAIM_PREFIX + size.to_bytes(8, "big") + bytes((hash_id,)) + file_digest
