"""Mutations of the plain runner: small changes, cuts and splices, all drawn from one seeded generator."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_INTERESTING = (0, 1, 0x0F, 0x10, 0x7F, 0x80, 0xFE, 0xFF)
_INTERESTING_WORDS = (0, 1, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MOST_BYTES = 1 << 17


def mutate(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """One to eight changes of `data`, some with pieces of other inputs."""
    out = bytearray(data)
    for _ in range(1 << random.randrange(4)):
        random.choice(_MUTATIONS)(out, others, random)
    return bytes(out[:_MOST_BYTES])


def _flip_bit(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    if out:
        out[random.randrange(len(out))] ^= 1 << random.randrange(8)


def _set_byte(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    if out:
        out[random.randrange(len(out))] = random.choice((*_INTERESTING, random.randrange(256)))


def _set_word(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    size = random.choice((2, 4, 8))
    if len(out) >= size:
        at = random.randrange(len(out) - size + 1)
        value = random.choice(_INTERESTING_WORDS) % (1 << 8 * size)
        out[at : at + size] = value.to_bytes(size, "big")


def _add_to_byte(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    if out:
        at = random.randrange(len(out))
        out[at] = (out[at] + random.randrange(-4, 5)) % 256


def _cut(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    if out:
        at = random.randrange(len(out))
        del out[at : at + 1 + random.randrange(16)]


def _truncate(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    del out[random.randrange(len(out) + 1) :]


def _insert(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(out) + 1)
    out[at:at] = random.randbytes(1 + random.randrange(16))


def _repeat(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    start = random.randrange(len(out) + 1)
    piece = out[start : start + 1 + random.randrange(64)]
    at = random.randrange(len(out) + 1)
    out[at:at] = piece * (1 + random.randrange(4))


def _splice(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    other = random.choice(others)
    at, start = random.randrange(len(out) + 1), random.randrange(len(other) + 1)
    out[at:] = other[start:]


_MUTATIONS = (_flip_bit, _set_byte, _set_word, _add_to_byte, _cut, _truncate, _insert, _repeat, _splice)
