"""Twelve thousand forgeries, and not one receipt among them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from crust.crypto.hashing import HashId
from crust.crypto.keys import Identity
from crust.errors import ReceiptError
from crust.wire.receipt import Receipt, leaf_hash, path_length, root_above
from tests.signing_pair import ALICE, BOB, MALLORY, SESSION, SigningPair

COUNT = 1000  # of each of the twelve kinds

# Where the fields are (docs/explanation/receipts.md).
HASH, SENDER, RECEIVER, SESSION_AT, NUMBERS, SIGNATURE, HEAD, PATH = 14, 15, 47, 79, 111, 143, 207, 239


@dataclass
class Material:
    """Genuine receipts to forge from, each with its message, and the seeded dice."""

    genuine: list[tuple[bytes, bytes]]
    dice: random.Random

    def pick(self) -> tuple[bytes, bytes]:
        return self.dice.choice(self.genuine)

    def flip(self, data: bytes, start: int, end: int) -> bytes:
        """One to three bits of data[start:end] turned over."""
        changed = bytearray(data)
        for at in self.dice.sample(range(start, end), min(self.dice.randint(1, 3), end - start)):
            changed[at] ^= 1 << self.dice.randrange(8)
        return bytes(changed)

    def put(self, data: bytes, at: int, value: bytes) -> bytes:
        return data[:at] + value + data[at + len(value) :]


def batch(
    identity: Identity, receiver: Identity, session: bytes, hash_id: HashId, sizes: list[int], seed: int
) -> list[tuple[bytes, bytes]]:
    dice = random.Random(seed)
    pair = SigningPair(hash_id, sender=identity, receiver=receiver, session=session)
    made = []
    for size in sizes:
        first = len(pair.contents)
        pair.add([dice.randbytes(dice.choice([1, 20, 100, 3000])) for _ in range(size)], priority=dice.randrange(8))
        pair.sign(1_800_000_000 + dice.random())
        made += [(bytes(pair.receipt(number)), pair.contents[number]) for number in range(first, first + size)]
    return made


@pytest.fixture(scope="module")
def genuine() -> list[tuple[bytes, bytes]]:
    made = [
        *batch(ALICE, BOB, SESSION, HashId.SHA256, [1, 2, 3, 8, 13, 70], 1),
        *batch(ALICE, BOB, bytes(31) + b"\1", HashId.BLAKE3, [1, 5, 40], 2),
        *batch(ALICE, MALLORY, SESSION, HashId.SHA256, [7], 3),
        *batch(BOB, ALICE, SESSION, HashId.SHA256, [7], 4),
    ]
    for raw, data in made:
        assert Receipt.from_bytes(raw).verify(data) in {ALICE.id, BOB.id}
    return made


def altered_data(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    return raw, m.dice.choice([m.flip(data, 0, len(data)), data[:-1], data + b"\0", b"", data[::-1] + b"\1"])


def altered_number(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    first, last = struct.unpack_from(">QQ", raw, NUMBERS + 8)
    number = m.dice.choice([m.dice.randint(first, last), m.dice.getrandbits(64), first, last, last + 1])
    return m.put(raw, HEAD + 24, number.to_bytes(8, "big")), data


def altered_priority(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    return m.put(raw, HEAD + 2, bytes((m.dice.choice([*range(8), 8, 255]),))), data


def other_sender(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    return m.put(raw, SENDER, m.dice.choice([BOB.id, ALICE.id, MALLORY.id]).bytes()), data


def other_receiver(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    return m.put(raw, RECEIVER, m.dice.choice([BOB.id, ALICE.id, MALLORY.id]).bytes()), data


def other_session(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    return m.dice.choice([m.flip(raw, SESSION_AT, NUMBERS), m.put(raw, SESSION_AT, m.dice.randbytes(32))]), data


def altered_path(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    while len(raw) == PATH:
        raw, data = m.pick()
    steps = [raw[at : at + 32] for at in range(PATH, len(raw), 32)]
    m.dice.shuffle(steps)
    shuffled = raw[:PATH] + b"".join(steps)
    longer = raw + m.dice.randbytes(32)
    return m.dice.choice(
        [m.flip(raw, PATH, len(raw)), shuffled, longer, raw[:-32], raw[:PATH] + raw[PATH + 32 :]]
    ), data


def truncated(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    return raw[: m.dice.randrange(len(raw))], data


def name_over_another_signature(m: Material) -> tuple[bytes, bytes]:
    """A receipt that Mallory made and signed, in the name of its pretended sender."""
    raw, _ = m.pick()
    data = m.dice.randbytes(50)
    head = m.put(raw[HEAD:PATH], 3, len(data).to_bytes(5, "big"))
    return resigned(m.put(raw, HEAD, head), data, MALLORY, "receipt"), data


def spliced(m: Material) -> tuple[bytes, bytes]:
    one, data = m.pick()
    other, other_data = m.pick()
    cut = m.dice.choice(
        [HASH, SENDER, RECEIVER, SESSION_AT, NUMBERS, SIGNATURE, HEAD, PATH, m.dice.randrange(len(one))]
    )
    return one[:cut] + other[cut:], m.dice.choice([data, other_data])


def other_purpose(m: Material) -> tuple[bytes, bytes]:
    """Signed by the right key over the right bytes, but as something else than a receipt."""
    raw, data = m.pick()
    signer = next(i for i in (ALICE, BOB) if i.id.bytes() == raw[SENDER:RECEIVER])
    return resigned(raw, data, signer, m.dice.choice(["address", "presence", "beacon", "receipt ", "receipts"])), data


def any_bits(m: Material) -> tuple[bytes, bytes]:
    raw, data = m.pick()
    return m.flip(raw, 0, len(raw)), data


def resigned(raw: bytes, data: bytes, signer: Identity, purpose: str) -> bytes:
    """The receipt with another signature over the same statement."""
    batch_, first, last, time_us = struct.unpack_from(">QQQQ", raw, NUMBERS)
    number = int.from_bytes(raw[HEAD + 24 : PATH], "big")
    leaf = leaf_hash(raw[HEAD:PATH], data, HashId(raw[HASH]))
    root = root_above(leaf, number - first, last - first + 1, raw[PATH:])
    signed = raw[HASH:NUMBERS] + struct.pack(">QQQ32sQ", batch_, first, last, root, time_us)
    return raw[:SIGNATURE] + signer.sign(purpose, signed) + raw[HEAD:]


KINDS: list[Callable[[Material], tuple[bytes, bytes]]] = [
    altered_data,
    altered_number,
    altered_priority,
    other_sender,
    other_receiver,
    other_session,
    altered_path,
    truncated,
    name_over_another_signature,
    spliced,
    other_purpose,
    any_bits,
]


def test_twelve_kinds_make_twelve_thousand() -> None:
    assert len(KINDS) * COUNT == 12_000


@pytest.mark.parametrize("forge", KINDS, ids=lambda kind: kind.__name__)
def test_forgeries_are_refused(
    forge: Callable[[Material], tuple[bytes, bytes]], genuine: list[tuple[bytes, bytes]]
) -> None:
    material = Material(genuine, random.Random(forge.__name__))
    known = set(genuine)
    tried = 0
    while tried < COUNT:
        forged = forge(material)
        if forged in known:  # the dice gave the very receipt that it came from
            continue
        tried += 1
        raw, data = forged
        with pytest.raises(ReceiptError):
            Receipt.from_bytes(raw).verify(data)


def test_resigning_is_what_makes_the_difference(genuine: list[tuple[bytes, bytes]]) -> None:
    # The two kinds that sign anew do it right: with the signer's key and the right purpose the receipt is genuine.
    for raw, data in genuine[:20]:
        assert resigned(raw, data, ALICE, "receipt") == raw
    assert path_length(0, 1) == 0
