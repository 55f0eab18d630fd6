"""Receipts and signed statements: whatever the bytes, a ReceiptError or a value that is written the same again."""

from __future__ import annotations

from crust.crypto.hashing import HashId
from crust.crypto.keys import Identity
from crust.errors import ReceiptError
from crust.wire.receipt import Kind, Receipt, leaf_hash, leaf_head
from crust.wire.statement import PURPOSE, Direction, Statement
from fuzz.target import Reader, Target, block

ALICE = Identity.from_seed(b"a" * 32)
BOB = Identity.from_seed(b"b" * 32)
DIRECTION = Direction(HashId.SHA256, ALICE.id, BOB.id, bytes(32))


def run_receipt(data: bytes) -> None:
    """A receipt that verifies is the genuine one over the genuine message; all else is a ReceiptError."""
    reader = Reader(data)
    message = reader.block()
    receipt = Receipt.from_bytes(reader.rest())
    assert Receipt.from_bytes(bytes(receipt)) == receipt
    assert Receipt.from_text(str(receipt)) == receipt
    assert receipt.verify(message) == ALICE.id
    assert message == b"a message"


def run_text(data: bytes) -> None:
    """The text form has one spelling, blanks aside."""
    text = data.decode("utf-8", errors="surrogateescape")
    assert str(Receipt.from_text(text)) == "".join(text.split())


def run_statement(data: bytes) -> None:
    """Statements that stand for themselves."""
    statement = Statement.from_bytes(data)
    assert bytes(statement) == data
    statement.is_genuine()


def _statement(root: bytes) -> Statement:
    unsigned = Statement(DIRECTION, 0, 0, 0, root, 1_700_000_000_000_000)
    return Statement(DIRECTION, 0, 0, 0, root, unsigned.time_us, ALICE.sign(PURPOSE, unsigned.signed_data()))


def _receipt() -> Receipt:
    head = leaf_head(Kind.MESSAGE, 4, 9, bytes(16), 0)
    return Receipt(_statement(leaf_hash(head, b"a message", HashId.SHA256)), head, b"")


TARGETS = (
    Target("receipt", run_receipt, (ReceiptError,), lambda: [block(b"a message") + bytes(_receipt())]),
    Target("receipt-text", run_text, (ReceiptError,), lambda: [str(_receipt()).encode()]),
    Target("statement", run_statement, (ReceiptError,), lambda: [bytes(_statement(bytes(32)))]),
)
