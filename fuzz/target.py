"""What a fuzz target is."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"


@dataclass(frozen=True, slots=True)
class Target:
    """One entry for arbitrary bytes.

    Attributes:
        name: for the command line, and the folder of its corpus.
        run: takes the bytes; asserts what must hold.
        may_raise: the errors that are an answer to bad bytes; everything else is a finding.
        seeds: well-formed inputs to begin from.
    """

    name: str
    run: Callable[[bytes], None]
    may_raise: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]

    def try_input(self, data: bytes) -> None:
        """Run one input; what the target may raise is swallowed."""
        with contextlib.suppress(*self.may_raise):
            self.run(data)

    def kept(self) -> Iterator[bytes]:
        """The inputs of the kept corpus, in the order of their names."""
        for path in sorted((CORPUS / self.name).glob("*.bin")):
            yield path.read_bytes()


class Reader:
    """Cuts an input into choices: numbers for what to do, and bytes to do it with."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """The next byte, or 0 at the end."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def take(self, size: int) -> bytes:
        """Up to `size` bytes."""
        self._at += size
        return self._data[self._at - size : self._at]

    def block(self) -> bytes:
        """A piece of which the input itself says how long it is."""
        return self.take(int.from_bytes(self.take(2), "big"))

    def rest(self) -> bytes:
        """What is left."""
        return self.take(len(self._data))


def block(data: bytes) -> bytes:
    """What `Reader.block` reads: for seeds."""
    return len(data).to_bytes(2, "big") + data


def fixed_random(seed: bytes = b"fuzz") -> Callable[[int], bytes]:
    """Bytes that look random and are the same in every run."""
    count = 0

    def draw(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_128(seed + count.to_bytes(4, "big")).digest(size)

    return draw
