"""Hash trees over the units of a batch (RFC 9162 §2.1, with SHA-256).

Nodes are paired from the left, level by level; the one left over at the end of a level goes up as it is. That is the
tree of RFC 9162, which splits n leaves at the largest power of two below n. How a path leads back to the root stands in
`wire.receipt`.
"""

from __future__ import annotations

import hashlib
from typing import Final

from crust.crypto.hashing import HASH_BYTES

__all__ = ["Tree", "root_of"]

_sha256: Final = hashlib.sha256


def root_of(leaves: list[bytes]) -> bytes:
    """The root over at least one leaf."""
    sha256 = _sha256
    level = leaves
    while len(level) > 1:
        above = [sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        if len(level) & 1:
            above.append(level[-1])
        level = above
    return level[0]


class Tree:
    """A tree that gives paths; of one that nobody asks, only the leaves take memory.

    Args:
        leaves: hashes of the leaves, at least one.

    Attributes:
        width: the number of leaves.
    """

    __slots__ = ("_levels", "width")

    def __init__(self, leaves: list[bytes]) -> None:
        self.width = len(leaves)
        self._levels = [b"".join(leaves)]

    def path(self, index: int) -> bytes:
        """The siblings on the way from leaf `index` up, joined."""
        if len(self._levels) == 1 < self.width:
            self._build()
        siblings = []
        for level in self._levels[:-1]:
            at = (index ^ 1) * HASH_BYTES
            siblings.append(level[at : at + HASH_BYTES])  # empty, where the node is left over and goes up as it is
            index >>= 1
        return b"".join(siblings)

    def _build(self) -> None:
        """Compute and keep the levels above the leaves."""
        level = self._levels[0]
        pair = 2 * HASH_BYTES
        while len(level) > HASH_BYTES:
            paired = len(level) // pair * pair
            above = [_sha256(b"\1" + level[at : at + pair]).digest() for at in range(0, paired, pair)]
            level = b"".join(above) + level[paired:]
            self._levels.append(level)
