"""Contacts and targets: what people paste, and what comes inside messages."""

from __future__ import annotations

from crust.crypto.keys import Identity
from crust.errors import ParseError
from crust.types import Candidate
from crust.wire.contact import Contact, parse_target
from fuzz.target import Target

ALICE = Identity.from_seed(b"a" * 32).id
BOB = Identity.from_seed(b"b" * 32).id


def run_target(data: bytes) -> None:
    """A text is a target that is written and read as the same one, or a ParseError."""
    contact = parse_target(data.decode("utf-8", errors="surrogateescape"))
    assert parse_target(str(contact)) == contact


def run_bytes(data: bytes) -> None:
    """The binary form, without the checksum that would keep mutations out."""
    contact = Contact.from_bytes(data)
    assert Contact.from_bytes(bytes(contact)) == contact
    assert Contact.parse(str(contact)) == contact


def _contacts() -> list[Contact]:
    candidates = (
        Candidate("tcp", "203.0.113.7", 4000),
        Candidate("utp", "203.0.113.7", 4000),
        Candidate("tcp", "2001:db8::1", 65535, "mapped"),
        Candidate("utp", "198.51.100.1", 1, "server-reflexive"),
    )
    return [Contact(ALICE), Contact(ALICE, candidates), Contact(ALICE, candidates[:2], (Contact(BOB, candidates),))]


def _texts() -> list[bytes]:
    typed = [str(ALICE), f"{ALICE}@203.0.113.7:4000", f"{ALICE}@[2001:db8::1]:4000", f"{ALICE}@example.org:4000"]
    return [text.encode() for text in (*typed, *map(str, _contacts()))]


TARGETS = (
    Target("target-text", run_target, (ParseError,), _texts),
    Target("contact-bytes", run_bytes, (ParseError,), lambda: [bytes(contact) for contact in _contacts()]),
)
