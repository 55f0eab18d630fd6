"""Masks of headers."""

from __future__ import annotations

import random

import pytest

from crust.proto.tunnel.header import HeaderMask

CHANCE = random.Random(1)


def doubled(samples: list[bytes]) -> bytes:
    return b"".join(sample * 2 for sample in samples)


@pytest.mark.parametrize("count", [1, 2, 44, 128])
def test_masking_twice_gives_the_header_back(count: int) -> None:
    mask = HeaderMask(CHANCE.randbytes(16))
    headers, samples = CHANCE.randbytes(32 * count), [CHANCE.randbytes(16) for _ in range(count)]
    masked = mask.apply(headers, doubled(samples))
    assert len(masked) == len(headers)
    assert masked != headers
    assert mask.apply(masked, doubled(samples)) == headers


def test_one_header_and_a_batch_are_masked_alike() -> None:
    mask = HeaderMask(CHANCE.randbytes(16))
    headers, samples = [CHANCE.randbytes(32) for _ in range(5)], [CHANCE.randbytes(16) for _ in range(5)]
    single = b"".join(mask.apply_one(h, s) for h, s in zip(headers, samples, strict=True))
    assert mask.apply(b"".join(headers), doubled(samples)) == single


def test_both_halves_of_a_mask_differ() -> None:
    """One block for both would show what the two halves of a header have in common."""
    mask = HeaderMask(CHANCE.randbytes(16)).apply_one(bytes(32), CHANCE.randbytes(16))
    assert mask[:16] != mask[16:]


def test_keys_and_samples_matter() -> None:
    header, sample = bytes(32), CHANCE.randbytes(16)
    mask = HeaderMask(bytes(16))
    assert mask.apply_one(header, sample) != HeaderMask(bytes(15) + b"\1").apply_one(header, sample)
    assert mask.apply_one(header, sample) != mask.apply_one(header, bytes(16))


def test_released_and_used_again() -> None:
    mask = HeaderMask(bytes(16))
    before = mask.apply_one(bytes(32), bytes(16))
    mask.release()
    assert mask.apply_one(bytes(32), bytes(16)) == before
