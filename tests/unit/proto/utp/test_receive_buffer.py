"""Reordering, flow control and packets that come in parts."""

from __future__ import annotations

import random

import pytest

from crust.proto.utp.receive_buffer import Outcome, ReceiveBuffer
from tests.unit.proto.utp.pair import some_bytes

FIRST = 65_533


def buffer(capacity: int = 1 << 20) -> ReceiveBuffer:
    return ReceiveBuffer(FIRST, capacity)


def read(one: ReceiveBuffer) -> bytes:
    return b"".join(one.take())


def test_in_order() -> None:
    one = buffer()
    assert one.insert(FIRST, b"a" * 600) is Outcome.IN_ORDER
    assert one.insert(FIRST + 1, b"b") is Outcome.IN_ORDER
    assert one.readable
    assert read(one) == b"a" * 600 + b"b"
    assert not one.readable
    assert one.window == (1 << 20) - 601
    assert one.consumed(601)
    assert not one.consumed(1)
    assert one.window == 1 << 20


def test_gap() -> None:
    one = buffer()
    assert one.insert(FIRST + 2, b"c") is Outcome.HELD
    assert one.insert(FIRST + 1, b"b") is Outcome.HELD
    assert one.insert(FIRST + 4, b"e") is Outcome.HELD
    assert one.insert(FIRST + 1, b"b") is Outcome.DUPLICATE
    assert one.held == 0b1011
    assert not one.append_run([b"x"], 1, 1)
    assert one.insert(FIRST, b"a") is Outcome.IN_ORDER
    assert read(one) == b"abc"
    assert (one.next_seq, one.held) == (FIRST + 3, 0b1)
    assert one.insert(FIRST, b"a") is Outcome.DUPLICATE
    assert one.insert(FIRST + 3, b"d") is Outcome.IN_ORDER
    assert read(one) == b"de"
    assert one.used_bytes == 5


def test_window() -> None:
    one = buffer(1000)
    assert one.insert(FIRST + 1, bytes(900)) is Outcome.HELD
    assert one.window == 100
    assert one.insert(FIRST + 2, bytes(101)) is Outcome.REFUSED
    assert one.insert(FIRST, bytes(900)) is Outcome.IN_ORDER  # or what is held could never leave
    assert one.window == 0
    assert one.insert(FIRST + 2, b"x") is Outcome.REFUSED
    assert not one.append_run([b"x"], 1, 1)


def test_reach() -> None:
    one = buffer()
    assert one.insert(FIRST + (1 << 14), b"x") is Outcome.HELD
    assert one.insert(FIRST + (1 << 14) + 1, b"x") is Outcome.REFUSED


def test_runs() -> None:
    one = buffer()
    assert one.append_run([bytes(600), bytes(600)], 1200, 2)
    assert one.append_run([b"s"] * 5, 5, 5)
    assert one.append_run([memoryview(bytes(4000))], 4000, 3)
    assert one.next_seq == FIRST + 10
    assert list(map(len, one.take())) == [600, 600, 5, 4000]


def test_small_payloads_are_joined_up_to_a_size() -> None:
    one = buffer()
    for at in range(70_000):
        one.insert(FIRST + at, b"x")
    assert list(map(len, one.take())) == [65_536, 4464]


def test_empty_payload_takes_a_number_only() -> None:
    one = buffer()
    assert one.insert(FIRST, b"") is Outcome.IN_ORDER
    assert one.take() == []
    assert one.next_seq == FIRST + 1


def test_what_is_given_out_does_not_change() -> None:
    one = buffer()
    one.insert(FIRST, b"a")
    (given,) = one.take()
    one.insert(FIRST + 1, b"b")
    assert given == b"a"
    mine = bytearray(b"m" * 600)
    one.insert(FIRST + 2, mine)
    one.insert(FIRST + 3, b"z")
    assert mine == b"m" * 600


def test_end_in_order() -> None:
    one = buffer()
    one.insert(FIRST, b"a")
    assert one.finish(FIRST + 1) is Outcome.IN_ORDER
    assert one.finished
    assert one.next_seq == FIRST + 2
    assert one.finish(FIRST + 1) is Outcome.DUPLICATE
    assert one.finish(FIRST + 2) is Outcome.AFTER_END
    assert one.insert(FIRST + 1, b"x") is Outcome.AFTER_END
    assert not one.append_run([b"x"], 1, 1)


def test_end_ahead() -> None:
    one = buffer()
    assert one.finish(FIRST + 2) is Outcome.HELD
    assert one.insert(FIRST + 1, b"b") is Outcome.HELD
    assert one.insert(FIRST + 3, b"x") is Outcome.AFTER_END
    assert one.insert(FIRST, b"a") is Outcome.IN_ORDER
    assert one.finished
    assert read(one) == b"ab"


@pytest.mark.parametrize("seq", [FIRST - 1, FIRST, FIRST + 2, FIRST + (1 << 14) + 1])
def test_end_at_an_impossible_place(seq: int) -> None:
    one = buffer()
    one.insert(FIRST + 3, b"x")
    assert one.finish(seq) is Outcome.AFTER_END
    assert one.fin_seq is None


def test_parts() -> None:
    one = buffer()
    assert one.insert_part(FIRST, 4, 6, b"ef") is Outcome.HELD
    assert one.insert_part(FIRST, 4, 6, b"ef") is Outcome.HELD
    assert one.used_bytes == 6
    assert not one.append_run([b"x"], 1, 1)
    assert one.insert_part(FIRST, 0, 6, b"abcd") is Outcome.IN_ORDER
    assert read(one) == b"abcdef"
    assert one.insert_part(FIRST, 0, 6, b"abcd") is Outcome.DUPLICATE
    assert one.used_bytes == 6


def test_parts_ahead_of_a_gap() -> None:
    one = buffer()
    assert one.insert_part(FIRST + 1, 0, 2, b"c") is Outcome.HELD
    assert one.insert_part(FIRST + 1, 1, 2, b"d") is Outcome.HELD
    assert one.insert_part(FIRST + 1, 1, 2, b"d") is Outcome.DUPLICATE
    one.insert(FIRST, b"ab")
    assert read(one) == b"abcd"


def test_parts_cut_differently_begin_anew() -> None:
    one = buffer()
    one.insert_part(FIRST, 0, 9, b"abcdef")
    assert one.insert_part(FIRST, 3, 9, b"def") is Outcome.HELD
    assert one.insert_part(FIRST, 6, 9, b"ghi") is Outcome.HELD
    assert one.insert_part(FIRST, 0, 9, b"abc") is Outcome.IN_ORDER
    assert read(one) == b"abcdefghi"


@pytest.mark.parametrize(("offset", "total", "payload"), [(0, 7, b"x"), (5, 6, b"xy"), (0, 6, b"")])
def test_parts_that_do_not_fit(offset: int, total: int, payload: bytes) -> None:
    one = buffer()
    one.insert_part(FIRST, 0, 6, b"a")
    assert one.insert_part(FIRST, offset, total, payload) is Outcome.BAD_PART


def test_parts_and_the_window() -> None:
    one = buffer(1000)
    assert one.insert_part(FIRST + 1, 0, 1001, b"x") is Outcome.REFUSED
    assert one.insert_part(FIRST + (1 << 14) + 1, 0, 10, b"x") is Outcome.REFUSED
    assert one.insert_part(FIRST + 1, 0, 1000, b"x") is Outcome.HELD
    assert one.window == 0


def test_whole_packet_replaces_its_parts() -> None:
    one = buffer()
    one.insert_part(FIRST, 0, 600, b"x")
    one.insert_part(FIRST + 1, 0, 600, b"x")
    one.insert(FIRST + 1, b"b" * 600)
    one.insert(FIRST, b"a" * 600)
    assert read(one) == b"a" * 600 + b"b" * 600
    assert one.used_bytes == 1200


def test_gaps_forgotten() -> None:
    one = buffer()
    one.insert(FIRST, b"a")
    one.insert(FIRST + 2, b"c")
    one.insert_part(FIRST + 3, 0, 5, b"x")
    one.forget_gaps()
    assert (one.held, one.used_bytes) == (0, 1)
    assert read(one) == b"a"


@pytest.mark.parametrize("seed", range(10))
def test_any_order_with_copies(seed: int) -> None:
    chance = random.Random(seed)
    payloads = [some_bytes(chance.choice([1, 100, 1400]), at) for at in range(300)]
    order = [at for at in range(300) for _ in range(chance.choice([1, 1, 2]))]
    order.sort(key=lambda at: at + chance.random() * 40)
    one, got = buffer(), b""
    for at in order:
        one.insert(FIRST + at, payloads[at])
        got += read(one)
    assert got == b"".join(payloads)
    assert one.held == 0
    assert one.used_bytes == len(got)
