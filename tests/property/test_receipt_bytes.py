"""Receipts and statements from any bytes, and signing whatever is sent in whatever order."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crust.crypto.blake3_portable import Blake3
from crust.crypto.hashing import HashId, hasher
from crust.errors import ReceiptError, RemoteProtocolError
from crust.proto.session.signing import Signer, Verifier
from crust.wire.receipt import Kind, Receipt
from crust.wire.statement import Direction, Statement, parse_body
from tests.signing_pair import ALICE, BOB, SEED, SESSION, WALL_TIME, SigningPair, receipts_for

GENUINE = [
    bytes(receipt) for count in (1, 2, 5) for receipt in receipts_for([bytes((value,)) for value in range(count)])
]
DIRECTION = Direction(HashId.SHA256, ALICE.id, BOB.id, SESSION)


@st.composite
def nearly_receipts(draw: st.DrawFn) -> bytes:
    """Bytes with the beginning, the keys and the length of a receipt; what stands between is anything."""
    raw = bytearray(draw(st.sampled_from(GENUINE)))
    raw[111:] = draw(st.binary(min_size=128, max_size=128)) + draw(st.binary(max_size=96))
    for at in (111, 119, 127, 135, 231):  # numbers that may go together
        raw[at : at + 8] = draw(st.integers(0, 4) | st.integers(0, 2**64 - 1)).to_bytes(8, "big")
    return bytes(raw)


@given(data=st.binary(max_size=600) | nearly_receipts(), message=st.binary(max_size=100))
def test_any_bytes_are_a_receipt_or_a_receipt_error(data: bytes, message: bytes) -> None:
    with contextlib.suppress(ReceiptError):
        receipt = Receipt.from_bytes(data)
        assert bytes(receipt) == data
        assert Receipt.from_text(str(receipt)) == receipt
        receipt.verify(message)
        raise AssertionError("a receipt for anything")


@given(text=st.text() | st.text().map("crust-receipt:".__add__) | st.from_regex(r"crust-receipt:[A-Za-z0-9_-]{300,}"))
def test_any_text_is_a_receipt_or_a_receipt_error(text: str) -> None:
    with contextlib.suppress(ReceiptError):
        assert str(Receipt.from_text(text)) == text


@given(data=st.binary(max_size=300) | st.binary(min_size=128, max_size=128))
def test_any_bytes_are_a_signature_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        statement = parse_body(data, DIRECTION)
        assert statement.body() == data
        assert not statement.is_genuine()
    with contextlib.suppress(ReceiptError):
        Statement.from_bytes(data)
    verifier = Verifier(ALICE.id, BOB.id, HashId.SHA256, SEED, SESSION)
    verifier.add_batch(Kind.MESSAGE, 4, [b"data"], 0.0)
    with contextlib.suppress(RemoteProtocolError):
        verifier.receive_signature(data, 0.0)
        raise AssertionError("a signature from anything")


CONTENTS = st.lists(st.binary(max_size=60) | st.integers(2000, 2100).map(bytes), max_size=80)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("batch"), st.sampled_from([Kind.MESSAGE, Kind.STREAM_CHUNK]), st.integers(0, 7), CONTENTS),
        st.tuples(st.just("begin"), st.integers(0, 7), st.binary(max_size=3000)),
        st.tuples(st.just("fragment"), st.integers(0, 7), st.integers(1, 2000)),
        st.tuples(st.just("abort"), st.integers(0, 7)),
        st.tuples(st.just("sign")),
        st.tuples(st.just("deliver")),
    ),
    max_size=30,
)


class Run:
    """Both ends fed with the same units; signatures arrive later, but in order."""

    def __init__(self, hash_id: HashId) -> None:
        self.pair = SigningPair(hash_id)
        self.open: dict[int, tuple[bytes, int]] = {}
        self.bodies: list[bytes] = []

    def step(self, name: str, *arguments: Any) -> None:
        getattr(self, name)(*arguments)

    def batch(self, kind: Kind, priority: int, contents: list[bytes]) -> None:
        self.pair.add(contents, kind=kind, priority=priority)

    def begin(self, priority: int, content: bytes) -> None:
        if priority not in self.open:
            self.open[priority] = (content, 0)
            for ledger in (self.pair.signer, self.pair.verifier):
                ledger.begin(priority, len(content))

    def fragment(self, priority: int, size: int) -> None:
        if priority not in self.open:
            return
        content, at = self.open[priority]
        number = 0
        for ledger in (self.pair.signer, self.pair.verifier):
            ledger.update(priority, content[at : at + size], 0.0)
            if at + size >= len(content):
                number = ledger.finish(priority, 0.0)
        if at + size >= len(content):
            del self.open[priority]
            self.pair.tokens.append((self.pair.verifier.segment, number))
            self.pair.contents.append(content)
        else:
            self.open[priority] = (content, at + size)

    def abort(self, priority: int) -> None:
        self.open.pop(priority, None)
        for ledger in (self.pair.signer, self.pair.verifier):
            number = ledger.add_tombstone(priority, 0.0)
        self.pair.tokens.append((self.pair.verifier.segment, number))
        self.pair.contents.append(b"")

    def sign(self) -> None:
        if self.pair.signer.unsigned_units:
            self.bodies.append(self.pair.signer.sign(WALL_TIME))

    def deliver(self) -> None:
        if self.bodies:
            self.pair.verifier.receive_signature(self.bodies.pop(0), 0.0)


@settings(max_examples=60)
@given(hash_id=st.sampled_from(list(HashId)), steps=STEPS)
def test_whatever_is_sent_gets_its_receipt(hash_id: HashId, steps: list[tuple[Any, ...]]) -> None:
    run = Run(hash_id)
    for step in steps:
        run.step(*step)
    run.sign()
    while run.bodies:
        run.deliver()
    pair = run.pair
    assert pair.verifier.unsigned_units == pair.verifier.unsigned_bytes == 0
    assert pair.verifier.next_number == pair.signer.next_number == len(pair.contents)
    for number, (segment, unit) in enumerate(pair.tokens):
        assert unit == number
        receipt = segment.receipt(unit)
        assert receipt is not None
        if receipt.claims.kind is not Kind.ABORTED:
            assert Receipt.from_bytes(bytes(receipt)) == receipt
        if number % 10 == 0:
            assert receipt.verify(pair.contents[number]) == ALICE.id


@given(data=st.binary(max_size=4000), cuts=st.lists(st.integers(0, 4000), max_size=5))
def test_the_portable_hash_is_the_hash(data: bytes, cuts: list[int]) -> None:
    portable, reference = Blake3(), hasher(HashId.BLAKE3)(data)
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        portable.update(data[at:cut])
        at = max(at, min(cut, len(data)))
    assert portable.digest() == reference.digest()


@settings(max_examples=30)
@given(contents=st.lists(st.binary(max_size=50), min_size=1, max_size=200), cuts=st.sets(st.integers(1, 199)))
def test_batching_of_calls_does_not_show(contents: list[bytes], cuts: set[int]) -> None:
    bodies = set()
    for places in (set(), cuts, set(range(200))):
        signer = Signer(ALICE, BOB.id, HashId.SHA256, SEED, SESSION)
        edges = [0, *sorted(place for place in places if 0 < place < len(contents)), len(contents)]
        for start, end in itertools.pairwise(edges):
            signer.add_batch(Kind.MESSAGE, 4, contents[start:end], 0.0)
        bodies.add(signer.sign(WALL_TIME))
    assert len(bodies) == 1
