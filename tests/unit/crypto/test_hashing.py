from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from crust.crypto.hashing import SUPPORTED, HashId, choose, hasher, salts


def test_bits_are_those_of_the_handshake() -> None:
    assert (HashId.SHA256.bit, HashId.BLAKE3.bit) == (1, 2)


@pytest.mark.parametrize(
    ("ours", "theirs", "hash_id"),
    [
        (3, 3, HashId.BLAKE3),
        (3, 1, HashId.SHA256),
        (1, 3, HashId.SHA256),
        (2, 2, HashId.BLAKE3),
        (0, 0, HashId.SHA256),
        (3, 0xFFFC, HashId.SHA256),
    ],
)
def test_blake3_only_where_both_have_it(ours: int, theirs: int, hash_id: HashId) -> None:
    assert choose(ours, theirs) is hash_id


def test_sha256_is_always_there() -> None:
    assert SUPPORTED & HashId.SHA256.bit
    assert hasher(HashId.SHA256)(b"abc").digest() == hashlib.sha256(b"abc").digest()


def test_every_hash_can_be_computed_in_pieces() -> None:
    for hash_id in HashId:
        whole, pieces = hasher(hash_id)(b"abcdef"), hasher(hash_id)()
        pieces.update(b"abc")
        pieces.update(memoryview(bytearray(b"def")))
        assert pieces.digest() == whole.digest()


def test_without_the_package_blake3_is_not_offered_but_still_computed() -> None:
    script = """
import sys
sys.modules["blake3"] = None
from crust.crypto import hashing
from crust.crypto.blake3_portable import Blake3
assert hashing.SUPPORTED == 1
assert hashing.hasher(hashing.HashId.BLAKE3) is Blake3
assert hashing.choose(hashing.SUPPORTED, 3) is hashing.HashId.SHA256
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_salt_is_aes_of_its_number() -> None:
    seed = bytes(range(32))
    for number in (0, 1, 2**32 - 1, 2**64 - 1):
        block = Cipher(AES(seed), ECB()).encryptor().update(number.to_bytes(16, "big"))
        assert salts(seed, number, 1) == block


def test_salts_of_a_row_are_those_of_each() -> None:
    seed = bytes(32)
    assert salts(seed, 250, 10) == b"".join(salts(seed, number, 1) for number in range(250, 260))
    assert salts(seed, 3, 0) == b""
