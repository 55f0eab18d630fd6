"""Frames of a transfer: what the two sides say to each other, and what a hostile one could say."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crust.errors import RemoteProtocolError
from crust.node.transfer.digest import HashId, choose_hash, claim, supported
from crust.node.transfer.error import TransferError, TransferInterruptedError, TransferRefusedError
from crust.node.transfer.frame import (
    HEADER,
    MAX_DATA_BYTES,
    Frame,
    Offer,
    Plan,
    PlanItem,
    Result,
    failure,
    pack,
    parse_failure,
    parse_header,
)


def body(frame: bytes, kind: Frame) -> bytes:
    found, length = parse_header(frame[: HEADER.size])
    assert found is kind
    assert length == len(frame) - HEADER.size
    return frame[HEADER.size :]


def test_offer_round_trip() -> None:
    assert Offer.parse(body(Offer(3, b"list").serialize(), Frame.OFFER)) == Offer(3, b"list")


def test_another_version_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="version 9"):
        Offer.parse(b"\x09\x01\x00")


SIZES: list[int | None] = [10, None, 20, 0]


@pytest.mark.parametrize("items", [(), (PlanItem(0, 10), PlanItem(2, 5)), (PlanItem(3, 0),)])
def test_plan_round_trip(items: tuple[PlanItem, ...]) -> None:
    plan = Plan(HashId.SHA256, True, items)
    assert Plan.parse(body(plan.serialize(), Frame.PLAN), SIZES) == plan


@pytest.mark.parametrize(
    "items",
    [
        (PlanItem(0, 11),),
        (PlanItem(1, 0),),
        (PlanItem(4, 0),),
        (PlanItem(2, 1), PlanItem(0, 1)),
        (PlanItem(2, 1), PlanItem(2, 1)),
    ],
)
def test_plans_that_were_not_offered(items: tuple[PlanItem, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        Plan.parse(body(Plan(HashId.SHA256, False, items).serialize(), Frame.PLAN), SIZES)


@given(st.binary(max_size=64))
def test_plan_of_any_bytes(data: bytes) -> None:
    try:
        plan = Plan.parse(data, SIZES)
    except RemoteProtocolError:
        return
    assert body(plan.serialize(), Frame.PLAN)[:1] == data[:1]


@given(st.binary(max_size=64))
def test_offer_and_result_of_any_bytes(data: bytes) -> None:
    for parse in (Offer.parse, Result.parse):
        with contextlib.suppress(RemoteProtocolError):
            parse(data)


@given(st.binary(min_size=5, max_size=5))
def test_header_of_any_bytes(data: bytes) -> None:
    try:
        kind, length = parse_header(data)
    except RemoteProtocolError:
        return
    assert (kind, length) == (data[0], struct.unpack(">I", data[1:])[0])


@pytest.mark.parametrize(("kind", "length"), [(Frame.DATA, MAX_DATA_BYTES + 1), (Frame.DONE, 1), (0, 0), (99, 5)])
def test_lengths_are_limited_by_type(kind: int, length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_header(HEADER.pack(kind, length))


@pytest.mark.parametrize("error", [TransferError("x"), TransferRefusedError("y"), TransferInterruptedError("z")])
def test_failures_travel(error: TransferError) -> None:
    told = parse_failure(body(failure(error), Frame.FAIL), "receiver")
    assert type(told) is type(error)
    assert told.remote


def test_a_failure_names_only_what_is_public() -> None:
    error = TransferError("/home/me/secret cannot be written", public="the disk is full")
    told = parse_failure(body(failure(error), Frame.FAIL), "receiver")
    assert "secret" not in str(told)
    assert "the receiver gave up: the disk is full" in str(told)


@given(st.binary(max_size=40))
def test_failure_of_any_bytes(data: bytes) -> None:
    assert str(parse_failure(data, "sender")).isprintable()


def test_the_text_of_a_failure_is_cut() -> None:
    frame = failure(TransferError("x" * 100_000))
    parse_header(frame[: HEADER.size])


def test_pack() -> None:
    assert pack(Frame.DONE) == b"\x09\0\0\0\0"


def test_hash_choice() -> None:
    assert choose_hash(HashId.SHA256.bit) is HashId.SHA256
    assert choose_hash(0) is None
    assert choose_hash(0x80) is None
    assert choose_hash(supported()) is max(h for h in HashId if h.bit & supported())


def test_claim_layout() -> None:
    assert claim(0x0102, HashId.BLAKE3, b"h" * 32) == b"crust-file-v1\0" + bytes(6) + b"\x01\x02" + b"\x02" + b"h" * 32
