"""The memory of recent ephemeral keys."""

from __future__ import annotations

from crust.proto.noise.replay import EphemeralCache


def test_forgets_after_its_lifetime() -> None:
    cache = EphemeralCache(lifetime=10.0)
    cache.add(b"a", 100.0)
    cache.add(b"b", 105.0)
    assert b"a" in cache
    cache.expire(109.9)
    assert b"a" in cache
    cache.expire(110.0)
    assert b"a" not in cache
    assert b"b" in cache
    cache.expire(1000.0)
    assert len(cache) == 0


def test_is_bounded() -> None:
    cache = EphemeralCache(capacity=3)
    for number in range(100):
        cache.add(bytes([number]), 0.0)
        assert len(cache) <= 3
    assert [n for n in range(100) if bytes([n]) in cache] == [97, 98, 99]


def test_unknown() -> None:
    assert b"a" not in EphemeralCache()
