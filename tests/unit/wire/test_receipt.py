from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import runpy
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from crust.crypto.hashing import HashId, hasher
from crust.errors import ReceiptError
from crust.node.transfer import digest
from crust.wire.receipt import (
    INLINE_CONTENT,
    Claims,
    Kind,
    Receipt,
    file_claim,
    leaf_hash,
    leaf_head,
    path_length,
    root_above,
)
from crust.wire.statement import PURPOSE, Direction, Statement
from tests.signing_pair import ALICE, BOB, SESSION, WALL_TIME, SigningPair, pattern, receipts_for

VECTOR_FILE = Path(__file__).parents[2] / "vectors" / "receipts.json"
VECTORS = json.loads(VECTOR_FILE.read_text())
BATCHES = VECTORS["batches"]
UNITS = [(batch["hash"], unit) for batch in BATCHES for unit in batch["units"] if "receipt" in unit]
UNIT_NAMES = [f"{name}-{unit['number']}" for name, unit in UNITS]


def content_of(unit: dict[str, Any]) -> bytes:
    return bytes.fromhex(unit["content"]) if "content" in unit else pattern(unit["pattern"])


# --- an implementation that shares nothing with the library: docs/explanation/receipts.md, read as it stands ---------


def foreign_verify(receipt: bytes, data: bytes) -> bytes:
    """The signer's key."""
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        assert at <= len(receipt)
        return receipt[at - size : at]

    assert take(13) == b"crust-receipt"
    assert take(1) == b"\x01"
    direction = take(97)
    hash_id, signer = direction[0], direction[1:33]
    batch_first_last = take(24)
    _, first, last = struct.unpack(">QQQ", batch_first_last)
    time_ = take(8)
    signature = take(64)
    head = take(32)
    assert head[0] == 0
    assert int.from_bytes(head[3:8], "big") == len(data)
    number = int.from_bytes(head[24:32], "big")
    assert first <= number <= last
    if len(data) > 2048:
        long_hash = hashlib.sha256 if hash_id == 1 else pytest.importorskip("blake3").blake3
        data = long_hash(data).digest()

    def root(index: int, width: int, leaf: bytes) -> bytes:  # RFC 9162's recursive shape
        if width == 1:
            return leaf
        split = 1 << (width - 1).bit_length() - 1
        if index < split:
            left = root(index, split, leaf)
            return hashlib.sha256(b"\x01" + left + take(32)).digest()
        right = root(index - split, width - split, leaf)
        return hashlib.sha256(b"\x01" + take(32) + right).digest()

    top = root(number - first, last - first + 1, hashlib.sha256(head + data).digest())
    assert at == len(receipt)
    signed = b"crust-v1 receipt\x00" + direction + batch_first_last + top + time_
    Ed25519PublicKey.from_public_bytes(signer).verify(signature, signed)
    return signer


class TestVectors:
    def test_the_script_still_writes_them(self) -> None:
        script = runpy.run_path(str(VECTOR_FILE.with_name("make_receipts.py")))
        assert script["build"]() == VECTOR_FILE.read_text()

    @pytest.mark.parametrize(("name", "unit"), UNITS, ids=UNIT_NAMES)
    def test_foreign_code_verifies_them(self, name: str, unit: dict[str, Any]) -> None:
        signer = foreign_verify(bytes.fromhex(unit["receipt"]), content_of(unit))
        assert signer.hex() == VECTORS["sender"]["key"]

    @pytest.mark.parametrize(("name", "unit"), UNITS, ids=UNIT_NAMES)
    def test_the_library_verifies_them(self, name: str, unit: dict[str, Any]) -> None:
        receipt = Receipt.from_bytes(bytes.fromhex(unit["receipt"]))
        assert str(receipt.verify(content_of(unit))) == VECTORS["sender"]["id"]
        assert Receipt.from_text(unit["text"]) == receipt
        claims = receipt.claims
        expected = unit["claims"]
        assert (str(claims.signer), str(claims.receiver)) == (expected["signer"], expected["receiver"])
        assert (claims.batch, claims.number, claims.priority) == (
            expected["batch"],
            expected["number"],
            expected["priority"],
        )
        assert (claims.length, claims.time, claims.session.hex()) == (
            expected["length"],
            expected["time"],
            expected["session"],
        )

    @pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["why"])
    def test_what_must_be_refused(self, case: dict[str, str]) -> None:
        with pytest.raises(ReceiptError):
            Receipt.from_bytes(bytes.fromhex(case["receipt"])).verify(bytes.fromhex(case["data"]))

    def test_a_base_install_verifies_all_of_them(self) -> None:
        script = """
import json, sys
sys.modules["blake3"] = None
from crust.wire.receipt import Receipt
pattern = lambda n: (bytes(range(251)) * (n // 251 + 1))[:n]
checked = 0
for batch in json.load(open(sys.argv[1]))["batches"]:
    for unit in batch["units"]:
        if "receipt" in unit:
            data = bytes.fromhex(unit["content"]) if "content" in unit else pattern(unit["pattern"])
            Receipt.from_bytes(bytes.fromhex(unit["receipt"])).verify(data)
            checked += 1
print(checked)
"""
        done = subprocess.run([sys.executable, "-c", script, str(VECTOR_FILE)], check=True, capture_output=True)
        assert int(done.stdout) == len(UNITS)


# --- forms -----------------------------------------------------------------------------------------------------------


def test_claims() -> None:
    pair = SigningPair()
    pair.add([b"first"])
    pair.sign()
    pair.add([b"hello", b"piece"], kind=Kind.STREAM_CHUNK, priority=2)
    pair.sign()
    assert pair.receipt(2).claims == Claims(
        signer=ALICE.id,
        receiver=BOB.id,
        session=SESSION,
        number=2,
        kind=Kind.STREAM_CHUNK,
        priority=2,
        length=5,
        batch=1,
        time=WALL_TIME,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_round_trips(count: int) -> None:
    for receipt in receipts_for([bytes((value,)) for value in range(count)]):
        raw = bytes(receipt)
        assert Receipt.from_bytes(raw) == receipt
        assert bytes(Receipt.from_bytes(raw)) == raw
        assert Receipt.from_bytes(bytearray(raw)) == Receipt.from_bytes(memoryview(raw)) == receipt
        assert Receipt.from_text(str(receipt)) == receipt
        assert hash(Receipt.from_bytes(raw)) == hash(receipt)
        assert pickle.loads(pickle.dumps(receipt)) == receipt
        assert Receipt.from_bytes(raw).claims == receipt.claims


def test_text_form() -> None:
    (receipt,) = receipts_for([b"hello"])
    text = str(receipt)
    assert text.startswith("crust-receipt:")
    body = text.removeprefix("crust-receipt:")
    assert base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)) == bytes(receipt)[13:]
    wrapped = "\n ".join(text[at : at + 60] for at in range(0, len(text), 60))
    assert Receipt.from_text(f"  {wrapped}\r\n") == receipt


# The last character of this text holds two or four bits that mean nothing: only one of its spellings counts.
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
RESPELT = {character: ALPHABET[index ^ 1] for index, character in enumerate(ALPHABET)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.removeprefix("crust-receipt:"),
        lambda text: text.upper(),
        lambda text: text + "=",
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text.replace("crust-receipt:", "crust-receipt:+"),
        lambda text: text + "\u00e9",
        lambda text: text + "\ud800",
        lambda text: "crust:" + text,
        lambda text: text + " " * 10_000,
        lambda text: text[:-1] + RESPELT[text[-1]],
    ],
)  # fmt: skip
def test_damaged_text(damage: Any) -> None:
    (receipt,) = receipts_for([b"hello"])
    with pytest.raises(ReceiptError):
        Receipt.from_text(damage(str(receipt)))


def test_repr_and_immutability() -> None:
    (receipt,) = receipts_for([b"hello"])
    assert repr(receipt) == f"<Receipt: MESSAGE 0 of 5 bytes, said to be by {ALICE.id}>"
    with pytest.raises(AttributeError):
        receipt.claims = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        del receipt.claims
    assert receipt != bytes(receipt)


# --- what verifies, and what does not --------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_id", HashId)
@pytest.mark.parametrize("length", [0, 1, 31, 32, 55, INLINE_CONTENT - 1, INLINE_CONTENT, INLINE_CONTENT + 1, 100_000])
def test_messages_of_every_size(hash_id: HashId, length: int) -> None:
    data = pattern(length)
    receipt = receipts_for([b"before", data, b"after"], hash_id)[1]
    assert receipt.verify(data) == ALICE.id
    assert receipt.verify(bytearray(data)) == receipt.verify(memoryview(data)) == ALICE.id
    with pytest.raises(ReceiptError):
        receipt.verify(data + b"\0")
    if data:
        with pytest.raises(ReceiptError, match="not for these"):
            receipt.verify(data[:-1])
        with pytest.raises(ReceiptError, match="altered"):
            receipt.verify(data[:-1] + bytes((data[-1] ^ 1,)))


def test_the_hash_of_a_long_message_does_not_pass_for_it() -> None:
    data = pattern(5000)
    (receipt,) = receipts_for([data])
    with pytest.raises(ReceiptError):
        receipt.verify(hashlib.sha256(data).digest())


def test_a_receipt_for_one_message_is_none_for_another() -> None:
    contents = [b"a", b"b", b"a"]
    receipts = receipts_for(contents)
    for number, receipt in enumerate(receipts):
        for content in {"a", "b"}:
            if content.encode() != contents[number]:
                with pytest.raises(ReceiptError):
                    receipt.verify(content.encode())
    assert len({bytes(receipt) for receipt in receipts}) == 3


def test_a_receipt_says_nothing_about_the_other_messages() -> None:
    # The same message beside two different others: what the receipts have in common with those is a salted hash.
    one = bytes(receipts_for([b"mine", b"yes"])[0])
    other = bytes(receipts_for([b"mine", b"no"])[0])
    sibling = one[-32:]
    assert sibling != other[-32:]
    guess = leaf_head(Kind.MESSAGE, 4, 3, bytes(16), 1)
    assert leaf_hash(guess, b"yes", HashId.SHA256) != sibling


def test_a_text_is_no_data() -> None:
    (receipt,) = receipts_for([b"hello"])
    with pytest.raises(TypeError):
        receipt.verify("hello")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Receipt.from_bytes("hello")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 238, 240, 270, 239 + 41 * 32, 10_000_000])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(ReceiptError, match=f"{size} bytes"):
        Receipt.from_bytes(bytes(size))


def assembled(
    width: int, index: int, *, first: int = 0, time_us: int = 0, content: bytes = b"x", steps: int | None = None
) -> bytes:
    """A receipt that Alice really signed, over a tree of any width whose other leaves nobody knows."""
    direction = Direction(HashId.SHA256, ALICE.id, BOB.id, SESSION)
    head = leaf_head(Kind.MESSAGE, 0, len(content), bytes(16), first + index)
    steps = path_length(index, width) if steps is None else steps
    path = b"".join(hashlib.sha256(bytes((step,))).digest() for step in range(steps))
    root = root_above(leaf_hash(head, content, HashId.SHA256), index, width, path)
    statement = Statement(direction, 7, first, first + width - 1, root, time_us)
    signature = ALICE.sign(PURPOSE, statement.signed_data())
    numbers = struct.pack(">QQQQ", 7, first, first + width - 1, time_us)
    return b"crust-receipt\x01" + bytes(direction) + numbers + signature + head + path


@pytest.mark.parametrize(
    ("width", "index"), [(1, 0), (2, 1), (3, 2), (1 << 20, 0), (1_000_003, 1_000_002), (1 << 40, 12345)]
)
def test_trees_up_to_40_steps(width: int, index: int) -> None:
    receipt = Receipt.from_bytes(assembled(width, index))
    assert receipt.verify(b"x") == ALICE.id
    with pytest.raises(ReceiptError):
        receipt.verify(b"y")


@pytest.mark.parametrize(("width", "steps"), [((1 << 40) + 1, 40), (1 << 63, 40), (1 << 64, 40), (1 << 39, 40), (1, 1)])
def test_absurd_trees(width: int, steps: int) -> None:
    with pytest.raises(ReceiptError):
        Receipt.from_bytes(assembled(width, 0, steps=steps))


def test_times_are_within_the_calendar() -> None:
    latest = 253_402_300_799_999_999
    assert Receipt.from_bytes(assembled(1, 0, time_us=latest)).claims.time == pytest.approx(253_402_300_800)
    with pytest.raises(ReceiptError, match="numbers"):
        Receipt.from_bytes(assembled(1, 0, time_us=latest + 1))


def test_the_highest_numbers() -> None:
    receipt = Receipt.from_bytes(assembled(2, 1, first=2**64 - 2))
    assert receipt.claims.number == 2**64 - 1
    assert receipt.verify(b"x") == ALICE.id


def seconds(call: Any, repeat: int = 5) -> float:
    """Processor time of the fastest of a few calls."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def test_the_cost_is_under_a_microsecond_a_byte() -> None:
    def refuse(data: bytes) -> None:
        with pytest.raises(ReceiptError):
            Receipt.from_bytes(data)

    deep = assembled(1 << 40, 5)
    assert seconds(lambda: Receipt.from_bytes(deep).verify(b"x")) < len(deep) * 1e-6
    huge = deep + bytes(32 * 1_000_000)  # a proof for a million leaves, laid end to end
    assert seconds(lambda: refuse(huge)) < len(huge) * 1e-6 / 100
    long = assembled(1, 0, content=pattern(1 << 20))
    assert seconds(lambda: Receipt.from_bytes(long).verify(pattern(1 << 20))) < (1 << 20) * 1e-6


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_id", HashId)
@pytest.mark.parametrize("size", [0, 55, 3_000_000])
def test_a_claim_for_a_file(hash_id: HashId, size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pattern(size))
    claim = file_claim(hash_id, size, hasher(hash_id)(pattern(size)).digest())
    assert len(claim) == 55
    receipt = receipts_for([claim, b"other"], hash_id)[0]
    assert receipt.verify(claim) == ALICE.id
    assert receipt.verify_file(path) == receipt.verify_file(str(path)) == ALICE.id
    assert receipt.verify_file(io.BytesIO(pattern(size))) == ALICE.id
    for altered in (pattern(size) + b"\0", pattern(size)[:-1] + b"!", b"\1" * 55):
        with pytest.raises(ReceiptError):
            receipt.verify_file(io.BytesIO(altered))


def test_a_transfer_makes_this_claim() -> None:
    for ours in HashId:
        theirs = digest.HashId(ours)
        assert digest.claim(7, theirs, bytes(range(32))) == file_claim(ours, 7, bytes(range(32)))


@pytest.mark.parametrize("size", [0, 54, 55, INLINE_CONTENT, INLINE_CONTENT + 1, 2_500_000])
def test_a_file_that_holds_the_message(size: int) -> None:
    data = pattern(size)
    receipt = receipts_for([data], HashId.SHA256)[0]
    assert receipt.verify_file(io.BytesIO(data)) == ALICE.id
    with pytest.raises(ReceiptError):
        receipt.verify_file(io.BytesIO(data + b"\0"))


class Trickle(io.RawIOBase):
    """A file that gives a few bytes at a time, and cannot go back."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        block, self._data = self._data[:700], self._data[700:]
        return block


@pytest.mark.parametrize("size", [2000, 2048, 2049, 2800, 50_000])
def test_a_file_is_read_once_in_whatever_pieces_it_comes(size: int) -> None:
    data = pattern(size)
    receipt = receipts_for([data])[0]
    assert receipt.verify_file(Trickle(data)) == ALICE.id  # type: ignore[arg-type]
    claim = file_claim(HashId.SHA256, size, hashlib.sha256(data).digest())
    assert receipts_for([claim])[0].verify_file(Trickle(data)) == ALICE.id  # type: ignore[arg-type]


def test_a_file_of_another_length_is_refused_in_words() -> None:
    with pytest.raises(ReceiptError, match="for 5 bytes, not for a file of 6"):
        receipts_for([b"hello"])[0].verify_file(io.BytesIO(b"hello!"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        receipts_for([b"hello"])[0].verify_file(tmp_path / "missing")
