from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from crust.crypto.blake3_portable import Blake3
from tests.signing_pair import pattern

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "receipts.json").read_text())

# The lengths of BLAKE3's own test vectors, and those around the groups of 256 chunks that are compressed at once.
LENGTHS = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2048, 2049, 3072, 3073, 4096, 4097, 5120,
    5121, 6144, 6145, 7168, 7169, 8192, 8193, 16384, 31744, 102400,
    256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 512 * 1024, 512 * 1024 + 1, 768 * 1024 + 5000, 1024 * 1024 + 1,
]  # fmt: skip


def test_the_empty_hash() -> None:
    # The best known vector of BLAKE3.
    assert Blake3().digest().hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@pytest.mark.parametrize("vector", VECTORS["blake3"], ids=lambda vector: str(vector["pattern"]))
def test_vectors(vector: dict[str, object]) -> None:
    blake3 = pytest.importorskip("blake3").blake3
    data = pattern(int(str(vector["pattern"])))
    assert Blake3(data).digest().hex() == vector["hash"] == blake3(data).hexdigest()


@pytest.mark.parametrize("length", LENGTHS)
def test_like_the_library(length: int) -> None:
    blake3 = pytest.importorskip("blake3").blake3
    data = pattern(length)
    assert Blake3(data).digest() == blake3(data).digest()


def test_in_pieces_of_any_size() -> None:
    random_ = random.Random(3)
    data = random_.randbytes(600_000)
    whole = Blake3(data).digest()
    for largest in (500, 5_000, 300_000):
        pieces = Blake3()
        at = 0
        while at < len(data):
            size = random_.randint(0, largest)
            pieces.update(memoryview(data)[at : at + size])
            at += size
        assert pieces.digest() == whole


def test_a_digest_can_be_asked_for_on_the_way() -> None:
    hash_ = Blake3(b"abc")
    assert hash_.digest() == hash_.digest() == Blake3(b"abc").digest()
    hash_.update(bytearray(b"def"))
    assert hash_.digest() == Blake3(b"abcdef").digest()


def test_chunk_counters_above_32_bits() -> None:
    # Nobody hashes 4 TiB in a test: the counter is an argument of the function inside.
    from crust.crypto.blake3_portable import _full_chunks

    data = pattern(3 * 1024)
    across = _full_chunks(data, 2**32 - 1)
    one_by_one = b"".join(_full_chunks(data[at : at + 1024], 2**32 - 1 + at // 1024) for at in (0, 1024, 2048))
    assert across == one_by_one
    assert len({bytes(across[at : at + 32]) for at in (0, 32, 64)}) == 3
    assert bytes(_full_chunks(data[:1024], 0)) != bytes(_full_chunks(data[:1024], 2**32))
