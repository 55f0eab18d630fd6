"""Buffers into payloads."""

from __future__ import annotations

import random

import pytest

from crust.proto.utp.send_queue import SendQueue
from tests.unit.proto.utp.pair import some_bytes


def put(queue: SendQueue, *buffers: bytes | memoryview) -> None:
    queue.extend(list(map(memoryview, buffers)), sum(map(len, buffers)))


def test_whole_payloads_are_slices() -> None:
    data = some_bytes(3000)
    queue = SendQueue()
    put(queue, data)
    payloads = queue.take(1000, 2)
    assert [bytes(payload) for payload in payloads] == [data[:1000], data[1000:2000]]
    assert all(isinstance(payload, memoryview) and payload.obj is data for payload in payloads)
    assert queue.size == 1000


def test_payload_over_buffers_is_joined() -> None:
    queue = SendQueue()
    for word in (b"one", b"two", b"three"):
        put(queue, word)
    assert queue.take(7, 5) == [b"onetwot", b"hree"]
    assert queue.size == 0
    assert queue.take(7, 1) == []


@pytest.mark.parametrize("size", range(1, 12))
def test_first_bytes_of_buffers(size: int) -> None:
    queue = SendQueue()
    put(queue, b"before")
    queue.extend(list(map(memoryview, (b"one", b"two", b"three"))), size)
    assert queue.size == 6 + size
    put(queue, b"behind")
    assert queue.take(100, 1) == [b"before" + b"onetwothree"[:size] + b"behind"]


def test_what_was_taken_can_be_read_until_it_is_dropped() -> None:
    queue = SendQueue()
    data = some_bytes(3000)
    for at in range(0, 3000, 100):
        put(queue, memoryview(data)[at : at + 100])
    queue.take(250, 8)
    assert queue.read(0, 10) == data[:10]
    queue.drop(990)
    assert queue.read(990, 1500) == data[990:1500]
    assert queue.read(1100, 1200) == data[1100:1200]
    assert queue.read(1200, 1200) == b""
    assert queue.take(1000, 1) == [data[2000:]]
    queue.drop(3000)
    put(queue, b"more")
    assert queue.take(10, 1) == [b"more"]
    assert queue.read(3000, 3004) == b"more"


def test_what_passes_by_can_be_read() -> None:
    queue = SendQueue()
    put(queue, b"one")
    queue.take(3, 1)
    queue.pass_by(memoryview(b"two"))
    assert queue.size == 0
    put(queue, b"three")
    assert queue.take(9, 1) == [b"three"]
    assert queue.read(0, 11) == b"onetwothree"
    queue.drop(6)
    assert queue.read(6, 11) == b"three"


def test_clear() -> None:
    queue = SendQueue()
    put(queue, b"abc")
    queue.take(1, 1)
    queue.clear()
    put(queue, b"xyz")
    assert queue.take(5, 1) == [b"xyz"]


@pytest.mark.parametrize("seed", range(10))
def test_any_sizes(seed: int) -> None:
    chance = random.Random(seed)
    queue = SendQueue()
    whole, got, dropped = b"", b"", 0
    for _ in range(200):
        piece = some_bytes(chance.choice([1, 5, 100, 5000]), chance.randrange(1000))
        put(queue, piece)
        whole += piece
        size, count = chance.randrange(1, 1500), chance.randrange(4)
        payloads = queue.take(size, count)
        assert all(len(payload) == size for payload in payloads[:-1])
        assert all(0 < len(payload) <= size for payload in payloads)
        got += b"".join(payloads)
        start = chance.randint(dropped, len(got))
        assert queue.read(start, len(got)) == whole[start : len(got)]
        dropped = chance.randint(dropped, len(got))
        queue.drop(dropped)
        assert queue.size == len(whole) - len(got)
    assert whole.startswith(got)
