from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from crust.proto.session.merkle import Tree, root_of
from crust.wire.receipt import path_length, root_above

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "receipts.json").read_text())
LEAVES = [hashlib.sha256(bytes((value,))).digest() for value in range(255)]


def rfc_9162_root(leaves: list[bytes]) -> bytes:
    """RFC 9162 §2.1.1 word for word, but for the leaves, which are hashed already."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + rfc_9162_root(leaves[:k]) + rfc_9162_root(leaves[k:])).digest()


def rfc_9162_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 9162 §2.1.3.1 word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if index < k:
        return [*rfc_9162_path(index, leaves[:k]), rfc_9162_root(leaves[k:])]
    return [*rfc_9162_path(index - k, leaves[k:]), rfc_9162_root(leaves[:k])]


@pytest.mark.parametrize("width", [*range(1, 35), 63, 64, 65, 100, 127, 128, 129, 200])
def test_root_and_paths_are_those_of_rfc_9162(width: int) -> None:
    leaves = LEAVES[:width]
    tree = Tree(leaves)
    root = root_of(leaves)
    assert root == rfc_9162_root(leaves)
    assert tree.width == width
    for index in range(width):
        path = tree.path(index)
        assert path == b"".join(rfc_9162_path(index, leaves))
        assert len(path) == 32 * path_length(index, width)
        assert root_above(leaves[index], index, width, path) == root


@pytest.mark.parametrize("vector", VECTORS["trees"], ids=lambda vector: str(vector["leaves"]))
def test_vectors(vector: dict[str, object]) -> None:
    assert root_of(LEAVES[: int(str(vector["leaves"]))]).hex() == vector["root"]


def test_a_leaf_does_not_prove_itself_at_another_place() -> None:
    width = 13
    tree = Tree(LEAVES[:width])
    root = root_of(LEAVES[:width])
    for index in range(width):
        path = tree.path(index)
        for other in range(width):
            if other != index and path_length(other, width) * 32 == len(path):
                assert root_above(LEAVES[index], other, width, path) != root


def test_the_leaves_are_not_changed() -> None:
    leaves = LEAVES[:5]
    root_of(leaves)
    assert leaves == LEAVES[:5]


@pytest.mark.parametrize(("index", "width", "length"), [(0, 1, 0), (0, 2, 1), (2, 3, 1), (0, 3, 2), (8, 9, 1)])
def test_path_length(index: int, width: int, length: int) -> None:
    assert path_length(index, width) == length


def test_the_longest_path_has_40_steps() -> None:
    assert path_length(0, 1 << 40) == path_length((1 << 40) - 1, 1 << 40) == 40
