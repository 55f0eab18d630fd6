"""Batches into datagrams and back."""

from __future__ import annotations

import random
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st

from crust.crypto.aead import Suite
from crust.proto.tunnel.constants import MAX_DATAGRAMS
from crust.proto.tunnel.header import HeaderMask
from crust.proto.tunnel.keys import KeyExhaustedError, ReceiveKey, SendKey
from crust.proto.tunnel.sealing import BUFFER_BYTES, Opener, Sealer
from crust.wire.utp import Header, PacketType, serialize_header, serialize_header_run

CHANCE = random.Random(1)
MASK = HeaderMask(bytes(range(16)))
INDEX = 0x01020304


def keys(suite: Suite = Suite.AESGCM) -> tuple[SendKey, ReceiveKey]:
    nobody: Any = None
    return SendKey(suite, bytes(32), INDEX, MASK), ReceiveKey(suite, bytes(32), INDEX, nobody)


def header(seq_nr: int) -> Header:
    return Header(PacketType.DATA, 0, 1, 2, 3, 4, seq_nr, 6)


def run_of(count: int, seq_nr: int = 5) -> bytearray:
    return serialize_header_run(header(seq_nr), seq_nr, count)


def bodies_of(count: int, size: int, last: int | None = None) -> list[bytes]:
    return [CHANCE.randbytes(size) for _ in range(count - 1)] + [CHANCE.randbytes(size if last is None else last)]


def through(
    send: SendKey, receive: ReceiveKey, headers: bytes | bytearray, bodies: list[bytes], *, in_buffer: bool = True
) -> tuple[tuple[int, ...], bytes, bytes]:
    """(index, counter, …), µTP headers and bodies as they come out at the other end."""
    data, size = Sealer().seal(send, headers, bodies)
    assert size == 48 + len(bodies[0])
    assert len(data) == size * (len(bodies) - 1) + 48 + len(bodies[-1])
    opener = Opener()
    if in_buffer:
        opener.buffer[: len(data)] = data
        data = opener.buffer[: len(data)]
    fields = opener.unmask(MASK, data, size, len(bodies))
    return fields, opener.utp_headers(len(bodies)), opener.open_run(receive, data, size, len(bodies))


@settings(deadline=None)
@given(
    count=st.integers(1, 60),
    size=st.integers(0, 1000),
    last=st.integers(0, 1000),
    first=st.sampled_from([0, 200, 250, 255, 65_500, 65_535, 2**24 - 3]),
    suite=st.sampled_from(list(Suite)),
    in_buffer=st.booleans(),
)
def test_there_and_back(count: int, size: int, last: int, first: int, suite: Suite, in_buffer: bool) -> None:
    send, receive = keys(suite)
    send.counter = first
    headers, bodies = run_of(count), bodies_of(count, size, min(last, size))
    fields, out_headers, out = through(send, receive, headers, bodies, in_buffer=in_buffer)
    assert fields[0::2] == (INDEX,) * count
    assert fields[1::2] == tuple(range(first, first + count))
    assert out_headers == headers
    assert out == b"".join(bodies)
    assert send.counter == first + count


def test_headers_that_are_no_run() -> None:
    send, receive = keys()
    numbers = [5, 9, 7, 100, 65_535, 0, 3, 4]
    headers = b"".join(serialize_header(header(number)) for number in numbers)
    bodies = bodies_of(len(numbers), 100)
    _, out_headers, out = through(send, receive, headers, bodies)
    assert out_headers == headers
    assert out == b"".join(bodies)


def test_the_largest_datagram_and_the_largest_batch() -> None:
    send, receive = keys()
    for count, size in ((1, 65_507 - 48), (BUFFER_BYTES // 1472, 1472 - 48), (128, 200)):
        bodies = bodies_of(count, size)
        assert through(send, receive, run_of(count), bodies)[2] == b"".join(bodies)


def test_many_sizes_one_after_the_other() -> None:
    """More than there are plans for."""
    send, receive = keys()
    sealer, opener = Sealer(), Opener()
    for size in (*range(100, 120), *range(100, 120)):
        bodies = bodies_of(10, size)
        data, each = sealer.seal(send, run_of(10), bodies)
        opener.buffer[: len(data)] = data
        view = opener.buffer[: len(data)]
        opener.unmask(MASK, view, each, 10)
        assert opener.open_run(receive, view, each, 10) == b"".join(bodies)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_every_byte_is_authenticated(count: int) -> None:
    send, receive = keys()
    data, size = Sealer().seal(send, run_of(count), bodies_of(count, 20))
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 1
        opener = Opener()
        view = memoryview(broken)
        fields = opener.unmask(MASK, view, size, count)
        assert len(fields) == 2 * count
        with pytest.raises(InvalidTag):
            opener.open_run(receive, view, size, count)
        hit = at // size
        for number in range(count):
            datagram = view[number * size : (number + 1) * size]
            if number == hit:
                with pytest.raises(InvalidTag):
                    opener.open_one(receive, datagram, number)
            else:
                opener.open_one(receive, datagram, number)


def test_what_was_given_out_does_not_change_with_the_next_batch() -> None:
    send, receive = keys()
    sealer, opener = Sealer(), Opener()
    results = []
    for byte in (b"a", b"b"):
        data, size = sealer.seal(send, run_of(8), [byte * 50] * 8)
        opener.buffer[: len(data)] = data
        view = opener.buffer[: len(data)]
        opener.unmask(MASK, view, size, 8)
        results.append(opener.open_run(receive, view, size, 8))
    assert results == [b"a" * 400, b"b" * 400]


def test_a_key_ends() -> None:
    send, _ = keys()
    send.counter = MAX_DATAGRAMS - 3
    sealer = Sealer()
    sealer.seal(send, run_of(3), [b""] * 3)
    with pytest.raises(KeyExhaustedError):
        sealer.seal(send, run_of(1), [b""])


def test_released_keys_work_again() -> None:
    send, receive = keys()
    through(send, receive, run_of(1), [b"x"])
    send.release()
    receive.release()
    assert through(send, receive, run_of(1), [b"x"])[2] == b"x"
