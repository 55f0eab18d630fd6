"""AEAD suites, HKDF and the choice between AES and ChaCha20; thin over `cryptography`."""

from __future__ import annotations

import enum
import hashlib
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

__all__ = ["TAG_BYTES", "Aead", "Hash", "Suite", "aead", "best_suite", "fast_aes", "hkdf", "mac", "nonce", "sha256"]

Aead: TypeAlias = AESGCM | ChaCha20Poly1305
Hash: TypeAlias = Callable[[bytes], Any]  # a constructor of `hashlib`

TAG_BYTES: Final = 16
_INNER_PAD: Final = bytes(value ^ 0x36 for value in range(256))
_OUTER_PAD: Final = bytes(value ^ 0x5C for value in range(256))


class Suite(enum.Enum):
    """A Noise cipher; the value is its number on the wire."""

    AESGCM = 1
    CHACHAPOLY = 2


def aead(suite: Suite, key: bytes) -> Aead:
    """The AEAD object of a 32-byte key; AES-256-GCM's holds about 2.5 KiB of OpenSSL state."""
    return AESGCM(key) if suite is Suite.AESGCM else ChaCha20Poly1305(key)


def nonce(suite: Suite, n: int) -> bytes:
    """The 12-byte nonce of counter `n`: 4 zero bytes, then 64 bits, big-endian for AES-GCM (Noise §12.3, §12.4)."""
    return n.to_bytes(12, "big") if suite is Suite.AESGCM else b"\0\0\0\0" + n.to_bytes(8, "little")


def sha256(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def mac(key: bytes, data: bytes, hash_function: Hash = hashlib.sha256) -> bytes:
    """HMAC (RFC 2104) with a key of at most 64 bytes.

    A handshake takes 46 of them, and `hmac.digest` needs 1.6 times as long for such short input.
    """
    block = key.ljust(64, b"\0")  # the block size of SHA-256 and of BLAKE2s
    inner = hash_function(block.translate(_INNER_PAD) + data).digest()
    digest: bytes = hash_function(block.translate(_OUTER_PAD) + inner).digest()
    return digest


def hkdf(chaining_key: bytes, material: bytes, outputs: int, hash_function: Hash = hashlib.sha256) -> list[bytes]:
    """HKDF as in Noise §4.3: `outputs` keys, each as long as the hash."""
    temp_key = mac(chaining_key, material, hash_function)
    keys: list[bytes] = []
    last = b""
    for number in range(1, outputs + 1):
        last = mac(temp_key, last + bytes((number,)), hash_function)
        keys.append(last)
    return keys


@cache
def fast_aes() -> bool:
    """Whether the processor has AES instructions (without them AES-GCM is slow, and its tables leak through caches)."""
    machine = platform.machine().lower()
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        # Not Linux: every x86-64 and 64-bit ARM machine that macOS and Windows still run on has them.
        return machine in ("x86_64", "amd64", "arm64", "aarch64")
    return any(line.startswith(("flags", "Features")) and "aes" in line.split() for line in flags.splitlines())


def best_suite() -> Suite:
    """AES-256-GCM where AES is in hardware, else ChaCha20-Poly1305."""
    return Suite.AESGCM if fast_aes() else Suite.CHACHAPOLY
