from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from crust.crypto.hashing import HashId
from crust.errors import ReceiptError, RemoteProtocolError
from crust.wire.statement import BODY_BYTES, MAX_TIME, Direction, Statement, conflict, parse_body, parse_direction
from tests.signing_pair import ALICE, BOB, MALLORY, SESSION, WALL_TIME, SigningPair

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "receipts.json").read_text())
DIRECTION = Direction(HashId.SHA256, ALICE.id, BOB.id, SESSION)


def statement(*contents: bytes, skip: int = 0, **options: object) -> Statement:
    """What Alice signs over these messages, after `skip` others in a batch of their own."""
    pair = SigningPair(**options)  # type: ignore[arg-type]
    if skip:
        pair.signer.add_batch(0, 4, [b""] * skip, 0.0)  # type: ignore[arg-type]
        pair.signer.sign(WALL_TIME)
    pair.signer.add_batch(0, 4, contents, 0.0)  # type: ignore[arg-type]
    return parse_body(pair.signer.sign(WALL_TIME), pair.signer.direction)


def test_round_trips() -> None:
    made = statement(b"one", b"two")
    assert len(made.body()) == BODY_BYTES == 128
    assert parse_body(made.body(), DIRECTION) == made
    assert Statement.from_bytes(bytes(made)) == made
    assert parse_direction(bytes(DIRECTION), 0) == DIRECTION


def test_fields() -> None:
    made = statement(b"one", b"two", skip=3)
    assert (made.batch, made.first, made.last) == (1, 3, 4)
    assert made.time_us == 1_800_000_000_250_000
    assert made.is_genuine()


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 1}, {"last": 2}, {"root": bytes(32)}, {"time_us": 0}, {"signature": bytes(64)}, {"signature": b""},
        {"direction": msgspec.structs.replace(DIRECTION, hash_id=HashId.BLAKE3)},
        {"direction": msgspec.structs.replace(DIRECTION, sender=MALLORY.id)},
        {"direction": msgspec.structs.replace(DIRECTION, receiver=MALLORY.id)},
        {"direction": msgspec.structs.replace(DIRECTION, session=bytes(32))},
    ],
)  # fmt: skip
def test_each_field_is_under_the_signature(change: dict[str, object]) -> None:
    assert not msgspec.structs.replace(statement(b"one", b"two"), **change).is_genuine()


def body_with(first: int = 0, last: int = 0, time_us: int = 0) -> bytes:
    return Statement(DIRECTION, 0, first, last, bytes(32), time_us, bytes(64)).body()


@pytest.mark.parametrize(
    "body",
    [b"", bytes(127), bytes(129), body_with(first=1), body_with(last=1 << 40), body_with(time_us=MAX_TIME + 1)],
)
def test_impossible_bodies(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_body(body, DIRECTION)


def test_the_largest_numbers() -> None:
    assert parse_body(body_with(last=(1 << 40) - 1, time_us=MAX_TIME), DIRECTION).last == (1 << 40) - 1
    assert parse_body(body_with(first=2**64 - 1, last=2**64 - 1), DIRECTION).first == 2**64 - 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(statement(b"")) + b"\0",
        b"X" + bytes(statement(b""))[1:],
        bytes(statement(b""))[:-128] + body_with(first=1),
        bytes(statement(b"")).replace(ALICE.id.bytes(), bytes(32)),
        bytes(statement(b"")).replace(ALICE.id.bytes(), b"\xff" * 32),
    ],
)
def test_what_is_no_statement(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        Statement.from_bytes(data)


def test_an_unknown_hash() -> None:
    with pytest.raises(ReceiptError, match="hash function 3"):
        parse_direction(b"\x03" + bytes(DIRECTION)[1:], 0)


class TestConflict:
    def test_of_one_batch_signed_twice(self) -> None:
        assert conflict(statement(b"one"), statement(b"another")) == ALICE.id

    def test_of_overlapping_batches_with_other_numbers(self) -> None:
        assert conflict(statement(b"one", b"two", b"three"), statement(b"two", skip=1)) == ALICE.id

    def test_of_one_batch_number_for_two_ranges(self) -> None:
        one = statement(b"one", skip=1)
        other = statement(b"other", skip=5)
        assert one.batch == other.batch
        assert conflict(one, other) == ALICE.id

    def test_none_between_a_statement_and_itself(self) -> None:
        with pytest.raises(ReceiptError, match="do not contradict"):
            conflict(statement(b"one"), statement(b"one"))

    def test_none_between_batches_that_follow_each_other(self) -> None:
        with pytest.raises(ReceiptError, match="do not contradict"):
            conflict(statement(b"one"), statement(b"two", skip=1))

    def test_none_between_sessions(self) -> None:
        with pytest.raises(ReceiptError, match="different"):
            conflict(statement(b"one"), statement(b"another", session=bytes(32)))

    def test_a_forged_one_proves_nothing(self) -> None:
        forged = msgspec.structs.replace(statement(b"another", sender=MALLORY), direction=DIRECTION)
        for pair in ((statement(b"one"), forged), (forged, statement(b"one"))):
            with pytest.raises(ReceiptError, match="not signed by"):
                conflict(*pair)

    def test_vector(self) -> None:
        vector = VECTORS["contradiction"]
        one, other = (Statement.from_bytes(bytes.fromhex(vector[name])) for name in ("one", "other"))
        assert str(conflict(one, other)) == vector["signer"]
