"""Draws from a source of bytes."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from random import Random

from crust.proto.nat.draw import below, permutation, shuffle, uniform


def test_uniform_and_below() -> None:
    random = Random(1).randbytes
    draws = [uniform(random) for _ in range(2000)]
    assert 0 <= min(draws) < 0.01
    assert 0.99 < max(draws) < 1
    assert uniform(lambda n: b"\xff" * n) < 1
    counts = Counter(below(random, 4) for _ in range(4000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert min(counts.values()) > 900


def test_shuffle_and_permutation_keep_every_item_once() -> None:
    random = Random(2).randbytes
    items = list(range(100))
    shuffle(random, items)
    assert items != list(range(100))
    assert sorted(items) == list(range(100))
    numbers = list(permutation(random, 1024, 2047))
    assert sorted(numbers) == list(range(1024, 2048))
    assert numbers[:5] != [1024, 1025, 1026, 1027, 1028]


def test_permutation_is_lazy_and_even() -> None:
    firsts = Counter(next(permutation(Random(seed).randbytes, 1, 4)) for seed in range(2000))
    assert sorted(firsts) == [1, 2, 3, 4]
    assert min(firsts.values()) > 400
    assert len(set(islice(permutation(Random(3).randbytes, 0, 2**40), 1000))) == 1000
