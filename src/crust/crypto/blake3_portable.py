"""BLAKE3 in pure Python, so that a machine without the `blake3` package can still verify what was hashed with it.

Many chunks are compressed at once: word i of all of them stands in one large integer, a chunk to each 64-bit lane, so
that one addition or shift works on hundreds of chunks. That makes about 20 MB/s of what would be 0.5 MB/s word by word.

Only the plain 32-byte hash is here (no keyed mode, no key derivation, no longer output). Section numbers are those of
the BLAKE3 paper, "BLAKE3: one function, fast everywhere".
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["Blake3"]

# The initialisation vector, that of SHA-256 (§2.2).
_IV: Final = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
_PERMUTATION: Final = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)  # §2.2
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8  # §2.2
_CHUNK, _BLOCK, _KEY = 1024, 64, 32
_GROUP_CHUNKS: Final = 256  # chunks compressed at once; larger integers fall out of the processor's cache
_GROUP: Final = _GROUP_CHUNKS * _CHUNK

# The eight quarter rounds of a round: columns, then diagonals (§2.2).
_QUARTERS: Final = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


def _schedule() -> tuple[tuple[tuple[int, int, int, int, int, int], ...], ...]:
    """For each of the seven rounds, the four state words and two message words of each quarter round."""
    order = list(range(16))
    rounds = []
    for _ in range(7):
        rounds.append(tuple((*q, order[2 * i], order[2 * i + 1]) for i, q in enumerate(_QUARTERS)))
        order = [order[i] for i in _PERMUTATION]
    return tuple(rounds)


_ROUNDS: Final = _schedule()


def _ones(lanes: int) -> int:
    """The value 1 in each lane; times x, it is x in each lane."""
    return int.from_bytes(b"\1\0\0\0\0\0\0\0" * lanes, "little")


def _words(data: bytes | bytearray, offset: int, stride: int, count: int, lanes: int) -> list[int]:
    """`count` little-endian words at `offset` in every `stride` bytes of `data`, each word gathered into lanes."""
    words = []
    slots = bytearray(8 * lanes)
    for at in range(offset, offset + 4 * count, 4):
        for byte in range(4):
            slots[byte::8] = data[at + byte :: stride]
        words.append(int.from_bytes(slots, "little"))
    return words


def _unwords(words: list[int], lanes: int) -> bytearray:
    """The eight words of each lane as 32 bytes, lane after lane."""
    data = bytearray(_KEY * lanes)
    for index, word in enumerate(words):
        slots = word.to_bytes(8 * lanes, "little")
        for byte in range(4):
            data[4 * index + byte :: _KEY] = slots[byte::8]
    return data


def _compress(
    value: list[int], message: list[int], counter: tuple[int, int], tail: tuple[int, int], ones: int
) -> list[int]:
    """The compression function, on all lanes (§2.2).

    Args:
        value: the eight words of the chaining value.
        message: the sixteen words of the block.
        counter: low and high word of the chunk counter, in lanes.
        tail: block length and flags, the same in each lane.
        ones: 1 in each lane.
    """
    mask = ones * 0xFFFFFFFF
    v = [*value, *(ones * word for word in _IV[:4]), *counter, ones * tail[0], ones * tail[1]]
    for quarters in _ROUNDS:
        for ia, ib, ic, id_, ix, iy in quarters:
            a, b, c, d = v[ia], v[ib], v[ic], v[id_]
            # A word fills the lower half of its lane. Sums carry, and shifts spill, into upper halves only.
            a = (a + b + message[ix]) & mask
            d ^= a
            d = (d >> 16 | d << 16) & mask
            c = (c + d) & mask
            b ^= c
            b = (b >> 12 | b << 20) & mask
            a = (a + b + message[iy]) & mask
            d ^= a
            d = (d >> 8 | d << 24) & mask
            c = (c + d) & mask
            b ^= c
            b = (b >> 7 | b << 25) & mask
            v[ia], v[ib], v[ic], v[id_] = a, b, c, d
    return [v[i] ^ v[i + 8] for i in range(8)]


def _full_chunks(data: bytes | bytearray, first: int) -> bytearray:
    """The chaining values of whole chunks, none of them the only one, 32 bytes each (§2.4)."""
    lanes = len(data) // _CHUNK
    if not lanes:
        return bytearray()
    ones = _ones(lanes)
    numbers = range(first, first + lanes)
    low = int.from_bytes(struct.pack(f"<{lanes}Q", *(number & 0xFFFFFFFF for number in numbers)), "little")
    high = int.from_bytes(struct.pack(f"<{lanes}Q", *(number >> 32 for number in numbers)), "little")
    value = [ones * word for word in _IV]
    for at in range(0, _CHUNK, _BLOCK):
        flags = (_CHUNK_START if at == 0 else 0) | (_CHUNK_END if at == _CHUNK - _BLOCK else 0)
        value = _compress(value, _words(data, at, _CHUNK, 16, lanes), (low, high), (_BLOCK, flags), ones)
    return _unwords(value, lanes)


def _last_chunk(data: bytes | bytearray, number: int, root: int) -> bytearray:
    """The chaining value of the last chunk, or with `root` = _ROOT the hash of a lone one (§2.4, 2.6)."""
    value = list(_IV)
    blocks = max(1, -(-len(data) // _BLOCK))
    for index in range(blocks):
        block = data[index * _BLOCK : (index + 1) * _BLOCK]
        flags = (_CHUNK_START if index == 0 else 0) | (_CHUNK_END | root if index == blocks - 1 else 0)
        words = list(struct.unpack("<16I", block.ljust(_BLOCK, b"\0")))
        value = _compress(value, words, (number & 0xFFFFFFFF, number >> 32), (len(block), flags), 1)
    return _unwords(value, 1)


def _parents(values: bytes | bytearray, root: int) -> bytearray:
    """The chaining values above each pair of 32-byte ones (§2.5)."""
    lanes = len(values) // _BLOCK
    ones = _ones(lanes)
    words = _words(values, 0, _BLOCK, 16, lanes)
    return _unwords(_compress([ones * word for word in _IV], words, (0, 0), (_BLOCK, _PARENT | root), ones), lanes)


def _subtree(values: bytearray, root: int) -> bytearray:
    """The chaining value above a row of 32-byte ones; one left over at the end of a level goes up as it is."""
    while len(values) > _KEY:
        paired = len(values) // _BLOCK * _BLOCK
        values = _parents(values[:paired], root if len(values) == _BLOCK else 0) + values[paired:]
    return values


class Blake3:
    """A hash of bytes that arrive piece by piece, used as `hashlib`'s objects are."""

    __slots__ = ("_groups", "_pending", "_stack")

    def __init__(self, data: bytes | bytearray | memoryview = b"") -> None:
        self._pending = bytearray()  # 1 to _GROUP bytes once there are any: the last group may hold the root
        self._stack: list[bytearray] = []  # chaining values of whole subtrees, the largest first
        self._groups = 0
        self.update(data)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take more bytes."""
        view = memoryview(data).cast("B")
        while len(self._pending) + len(view) > _GROUP:
            room = _GROUP - len(self._pending)
            self._pending += view[:room]
            view = view[room:]
            value = _subtree(_full_chunks(self._pending, self._groups * _GROUP_CHUNKS), 0)
            self._pending = bytearray()
            self._groups += 1
            # As many subtrees are complete as the number of groups has zero bits at its end.
            groups = self._groups
            while not groups & 1:
                value = _parents(self._stack.pop() + value, 0)
                groups >>= 1
            self._stack.append(value)
        self._pending += view

    def digest(self) -> bytes:
        """The 32-byte hash of all bytes so far; more may follow."""
        first = self._groups * _GROUP_CHUNKS
        data = self._pending
        whole = max(0, len(data) - 1) // _CHUNK  # the last chunk, even a full one, goes by itself: it may be the root
        lone = not self._stack and not whole
        last = _last_chunk(data[whole * _CHUNK :], first + whole, _ROOT if lone else 0)
        value = _subtree(_full_chunks(data[: whole * _CHUNK], first) + last, 0 if self._stack else _ROOT)
        for depth, left in enumerate(reversed(self._stack), 1):
            value = _parents(left + value, _ROOT if depth == len(self._stack) else 0)
        return bytes(value)
