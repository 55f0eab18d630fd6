"""Random draws from a source of bytes, which engines get as an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableSequence
from typing import TypeVar

__all__ = ["below", "permutation", "shuffle", "uniform"]

T = TypeVar("T")


def uniform(random: Callable[[int], bytes]) -> float:
    """A number from 0 to just below 1."""
    return (int.from_bytes(random(7), "big") >> 3) / (1 << 53)


def below(random: Callable[[int], bytes], bound: int) -> int:
    """A whole number from 0 to `bound` - 1; the bias of 64 bits over a small bound does not matter here."""
    return int.from_bytes(random(8), "big") % bound


def shuffle(random: Callable[[int], bytes], items: MutableSequence[T]) -> None:
    """Put `items` into random order (Fisher-Yates)."""
    for index in range(len(items) - 1, 0, -1):
        other = below(random, index + 1)
        items[index], items[other] = items[other], items[index]


def permutation(random: Callable[[int], bytes], first: int, last: int) -> Iterator[int]:
    """The numbers from `first` to `last`, each once, in random order, drawn only as far as they are taken."""
    moved: dict[int, int] = {}  # the few places of a shuffled range that were touched
    for left in range(last - first + 1, 0, -1):
        index = below(random, left)
        yield first + moved.get(index, index)
        moved[index] = moved.pop(left - 1, left - 1)
