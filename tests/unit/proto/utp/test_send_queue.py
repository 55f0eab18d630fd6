"""Buffers into payloads."""

from __future__ import annotations

import random

import pytest

from crust.proto.utp.send_queue import SendQueue
from tests.unit.proto.utp.pair import some_bytes


def test_whole_payloads_are_slices() -> None:
    data = some_bytes(3000)
    queue = SendQueue()
    queue.append(memoryview(data))
    payloads = queue.take(1000, 2)
    assert [bytes(payload) for payload in payloads] == [data[:1000], data[1000:2000]]
    assert all(isinstance(payload, memoryview) and payload.obj is data for payload in payloads)
    assert queue.size == 1000


def test_payload_over_buffers_is_joined() -> None:
    queue = SendQueue()
    for word in (b"one", b"two", b"three"):
        queue.append(memoryview(word))
    assert queue.take(7, 5) == [b"onetwot", b"hree"]
    assert queue.size == 0
    assert queue.take(7, 1) == []


def test_release() -> None:
    queue = SendQueue()
    queue.append(memoryview(b"abc"))
    queue.release()
    assert queue.take(5, 1) == [b"abc"]
    queue.release()
    queue.append(memoryview(b"def"))
    assert queue.take(5, 1) == [b"def"]


def test_clear() -> None:
    queue = SendQueue()
    queue.append(memoryview(b"abc"))
    queue.take(1, 1)
    queue.clear()
    queue.append(memoryview(b"xyz"))
    assert queue.take(5, 1) == [b"xyz"]


@pytest.mark.parametrize("seed", range(10))
def test_any_sizes(seed: int) -> None:
    chance = random.Random(seed)
    queue = SendQueue()
    put, got = b"", b""
    for _ in range(200):
        piece = some_bytes(chance.choice([1, 5, 100, 5000]), chance.randrange(1000))
        queue.append(memoryview(piece))
        put += piece
        size, count = chance.randrange(1, 1500), chance.randrange(4)
        payloads = queue.take(size, count)
        assert all(len(payload) == size for payload in payloads[:-1])
        assert all(0 < len(payload) <= size for payload in payloads)
        got += b"".join(payloads)
        assert queue.size == len(put) - len(got)
    assert put.startswith(got)
