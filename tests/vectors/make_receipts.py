"""Writes receipts.json, the test vectors for whoever verifies receipts in another language.

    python tests/vectors/make_receipts.py

The file is made by the library; tests/unit/wire/test_receipt.py checks it with code that shares nothing with the
library, and that this script still writes the same.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from crust.crypto.blake3_portable import Blake3
from crust.crypto.hashing import HashId, hasher, salts
from crust.proto.session.merkle import root_of
from crust.wire.receipt import Kind, Receipt, file_claim
from crust.wire.statement import parse_body
from tests.signing_pair import ALICE, BOB, MALLORY, SEED, SESSION, WALL_TIME, SigningPair, pattern

TARGET = Path(__file__).with_name("receipts.json")
HASH_NAMES = {HashId.SHA256: "sha256", HashId.BLAKE3: "blake3"}


def content_of(unit: dict[str, Any]) -> bytes:
    """The content of a unit: given in hex, or as a length of the repeating pattern 0, 1, … 250."""
    return bytes.fromhex(unit["content"]) if "content" in unit else pattern(unit["pattern"])


UNITS: list[dict[str, Any]] = [
    {"kind": "message", "priority": 4, "content": b"hello".hex()},
    {"kind": "message", "priority": 0, "content": ""},
    {"kind": "stream chunk", "priority": 7, "content": b"a piece of a stream".hex()},
    {"kind": "message", "priority": 4, "pattern": 2048},
    {"kind": "message", "priority": 4, "pattern": 2049},
    {"kind": "aborted", "priority": 6, "content": ""},
    {"kind": "message", "priority": 6, "pattern": 70000},
]
KINDS = {"message": Kind.MESSAGE, "stream chunk": Kind.STREAM_CHUNK, "aborted": Kind.ABORTED}


def claims_of(receipt: Receipt) -> dict[str, Any]:
    claims = receipt.claims
    return {
        "signer": str(claims.signer),
        "receiver": str(claims.receiver),
        "session": claims.session.hex(),
        "batch": claims.batch,
        "number": claims.number,
        "kind": claims.kind.name.lower().replace("_", " "),
        "priority": claims.priority,
        "length": claims.length,
        "time": claims.time,
    }


def batches(hash_id: HashId) -> list[dict[str, Any]]:
    """Three batches of one direction: all units, one unit, a claim for a file."""
    pair = SigningPair(hash_id)
    claim = file_claim(hash_id, 100_000, hasher(hash_id)(pattern(100_000)).digest())
    single = [{"kind": "message", "priority": 4, "content": b"alone".hex()}]
    claims = [{"kind": "message", "priority": 4, "content": claim.hex(), "file_pattern": 100_000}]
    made = []
    for units in (UNITS, single, claims):
        first = len(pair.contents)
        for unit in units:
            pair.add([content_of(unit)], kind=KINDS[unit["kind"]], priority=unit["priority"])
        body = pair.signer.sign(WALL_TIME)
        pair.verifier.receive_signature(body, 0.0)
        statement = parse_body(body, pair.signer.direction)
        entries = []
        for number, unit in enumerate(units, first):
            entry = {**unit, "number": number, "salt": salts(SEED, number, 1).hex()}
            if unit["kind"] != "aborted":
                receipt = pair.receipt(number)
                entry |= {"claims": claims_of(receipt), "receipt": bytes(receipt).hex(), "text": str(receipt)}
            entries.append(entry)
        made.append(
            {
                "hash": HASH_NAMES[hash_id],
                "signed": statement.signed_data().hex(),
                "frame_body": body.hex(),
                "root": statement.root.hex(),
                "units": entries,
            }
        )
    return made


def trees() -> list[dict[str, Any]]:
    """Roots over leaves that are SHA-256 of one byte each: 0, 1, 2, …"""
    leaves = [hashlib.sha256(bytes((value,))).digest() for value in range(255)]
    return [{"leaves": n, "root": root_of(leaves[:n]).hex()} for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 100, 255)]


def contradiction() -> dict[str, str]:
    """Two statements of Alice about her first batch."""
    made = []
    for content in (b"one thing", b"another"):
        pair = SigningPair()
        pair.add([content])
        made.append(bytes(parse_body(pair.signer.sign(WALL_TIME), pair.signer.direction)).hex())
    return {"signer": str(ALICE.id), "one": made[0], "other": made[1]}


def refused() -> list[dict[str, str]]:
    """What looks like a receipt and must be refused."""
    pair = SigningPair()
    pair.add([b"hello", b"other", b"third"])
    pair.sign()
    raw = bytes(pair.receipt(0))
    forged = SigningPair(sender=MALLORY)
    forged.add([b"hello", b"other", b"third"])
    forged.sign()
    mallory = bytes(forged.receipt(0))

    def changed(at: int, value: bytes) -> bytes:
        return raw[:at] + value + raw[at + len(value) :]

    cases = {
        "another message": (raw, b"hullo"),
        "a shorter message": (raw, b"hell"),
        "a byte of the path changed": (changed(len(raw) - 1, bytes((raw[-1] ^ 1,))), b"hello"),
        "another number": (changed(238, b"\x01"), b"hello"),
        "another priority": (changed(209, b"\x00"), b"hello"),
        "another receiver": (changed(47, MALLORY.id.bytes()), b"hello"),
        "Alice's name, Mallory's signature": (mallory[:15] + ALICE.id.bytes() + mallory[47:], b"hello"),
        "a byte too many": (raw + b"\x00", b"hello"),
        "a step too many": (raw + bytes(32), b"hello"),
        "cut short": (raw[:-32], b"hello"),
        "a later version": (changed(13, b"\x02"), b"hello"),
        "an unknown hash": (changed(14, b"\x03"), b"hello"),
        "a unit outside the batch": (changed(231, (3).to_bytes(8, "big")), b"hello"),
        "an aborted message": (changed(208, b"\x02"), b"hello"),
        "a signer that is no point of the curve": (changed(15, b"\x02" + bytes(31)), b"hello"),
        "a signer of small order": (changed(15, b"\x01" + bytes(31)), b"hello"),
        "nothing": (b"", b""),
    }
    return [{"why": why, "receipt": receipt.hex(), "data": data.hex()} for why, (receipt, data) in cases.items()]


def build() -> str:
    """The text of the file."""
    table = {
        "about": "Test vectors for docs/explanation/receipts.md, made by tests/vectors/make_receipts.py",
        "sender": {"id": str(ALICE.id), "key": ALICE.id.bytes().hex()},
        "receiver": {"id": str(BOB.id), "key": BOB.id.bytes().hex()},
        "session": SESSION.hex(),
        "salt_seed": SEED.hex(),
        "trees": trees(),
        "blake3": [{"pattern": n, "hash": Blake3(pattern(n)).digest().hex()} for n in (0, 1, 1024, 1025, 2049, 70000)],
        "batches": [*batches(HashId.SHA256), *batches(HashId.BLAKE3)],
        "contradiction": contradiction(),
        "refused": refused(),
    }
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(build(), encoding="utf-8")
