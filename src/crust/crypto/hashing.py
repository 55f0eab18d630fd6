"""The hash functions of signing: which one a session uses, any of them by its number, and the salts of leaves.

SHA-256 is everywhere and hashes what is short: tree nodes, and contents up to 2 KiB (0.4 µs a call here, where the
`blake3` package takes 0.6). BLAKE3 hashes long contents, three times as fast, where both sides of a session have the
package. A machine without it never takes part in such a session, but must be able to verify what came out of one: the
hash of a receipt falls back to a slow BLAKE3 in pure Python (30 MB/s).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from crust.crypto.blake3_portable import Blake3

__all__ = ["HASH_BYTES", "SUPPORTED", "Buffer", "HashId", "Hasher", "choose", "hasher", "salts"]

Buffer: TypeAlias = bytes | bytearray | memoryview

HASH_BYTES: Final = 32


class HashId(enum.IntEnum):
    """How long contents are hashed: a byte in everything that is signed."""

    SHA256 = 1
    BLAKE3 = 2

    @property
    def bit(self) -> int:
        """Its bit in the set that each side announces."""
        return 1 << (self - 1)


class Hasher(Protocol):
    """What `hashlib`'s objects are, as far as it is needed here."""

    def update(self, data: Buffer, /) -> object:
        """Take more bytes."""
        ...

    def digest(self) -> bytes:
        """The hash of all bytes so far."""
        ...


_sha256: Callable[..., Hasher] = hashlib.sha256
_blake3: Callable[..., Hasher]
try:
    from blake3 import blake3 as _blake3
except ImportError:  # the extra `fast` is not installed
    _blake3 = Blake3
    SUPPORTED: int = HashId.SHA256.bit
else:
    SUPPORTED = HashId.SHA256.bit | HashId.BLAKE3.bit
"""The hashes that are fast enough here for a session to use, as a set of `HashId.bit`."""


def choose(ours: int, theirs: int) -> HashId:
    """The hash of a session from the sets that its two sides announced; SHA-256 is part of every set, said or not."""
    return HashId.BLAKE3 if ours & theirs & HashId.BLAKE3.bit else HashId.SHA256


def hasher(hash_id: HashId) -> Callable[..., Hasher]:
    """The constructor of a hash; it may be given the first bytes."""
    return _blake3 if hash_id == HashId.BLAKE3 else _sha256


def salts(seed: bytes, first: int, count: int) -> bytes:
    """The salts of `count` units from number `first` on, 16 bytes each, in one call.

    The salt of unit n is AES-256 of n (as 16 bytes) under the seed: whoever learns some salts, as from receipts, cannot
    tell the others from random bytes.
    """
    counter = CTR(first.to_bytes(16, "big"))
    return Cipher(AES(seed), counter).encryptor().update(bytes(16 * count))
