"""Suites, nonces, HMAC and HKDF."""

from __future__ import annotations

import hashlib
import hmac
import platform
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from crust.crypto import aead as module
from crust.crypto.aead import Suite, aead, best_suite, fast_aes, hkdf, mac, nonce, sha256


def test_aead_objects() -> None:
    assert isinstance(aead(Suite.AESGCM, bytes(32)), AESGCM)
    assert isinstance(aead(Suite.CHACHAPOLY, bytes(32)), ChaCha20Poly1305)


def test_nonces() -> None:
    # Noise §12.3 and §12.4: the byte orders differ.
    assert nonce(Suite.AESGCM, 258).hex() == "000000000000000000000102"
    assert nonce(Suite.CHACHAPOLY, 258).hex() == "000000000201000000000000"
    assert len({nonce(suite, n) for suite in Suite for n in (1, 2**63)}) == 4


def test_mac_is_hmac() -> None:
    for size in (0, 1, 31, 32, 64):
        key = bytes(range(size))
        assert mac(key, b"data") == hmac.digest(key, b"data", "sha256")
        assert mac(key, b"data", hashlib.blake2s) == hmac.digest(key, b"data", "blake2s")


def test_hkdf_is_rfc_5869() -> None:
    """Noise's HKDF is RFC 5869's, with the chaining key as salt and no info (Noise §4.3)."""
    extracted = hmac.digest(b"c" * 32, b"material", "sha256")
    first = hmac.digest(extracted, b"\1", "sha256")
    second = hmac.digest(extracted, first + b"\2", "sha256")
    third = hmac.digest(extracted, second + b"\3", "sha256")
    assert hkdf(b"c" * 32, b"material", 3) == [first, second, third]


def test_sha256() -> None:
    assert sha256(b"abc").hex().startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "fast"),
    [
        ("processor : 0\nflags\t\t: fpu aes avx\n", "x86_64", True),
        ("processor : 0\nflags\t\t: fpu vaes_not avx\n", "x86_64", False),
        ("Features\t: fp asimd aes pmull\n", "aarch64", True),
        ("Features\t: half thumb\nmodel name : aes\n", "armv7l", False),
        (None, "arm64", True),
        (None, "AMD64", True),
        (None, "riscv64", False),
    ],
)
def test_suite_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, machine: str, fast: bool
) -> None:
    def read_text(self: Path, **_: Any) -> str:
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(module.Path, "read_text", read_text)
    fast_aes.cache_clear()
    try:
        assert fast_aes() is fast
        assert best_suite() is (Suite.AESGCM if fast else Suite.CHACHAPOLY)
    finally:
        fast_aes.cache_clear()
