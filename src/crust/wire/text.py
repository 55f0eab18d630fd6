"""Binary records as one line of text: "<kind>:" and base32 with a checksum, for people to paste, type and scan.

Reading ignores case, as QR codes are smallest in upper case, and surrounding blanks.
"""

from __future__ import annotations

from typing import Final

from crust.crypto import base32
from crust.crypto.aead import sha256
from crust.errors import ParseError

__all__ = ["parse_text", "serialize_text"]

_CHECKSUM_BYTES: Final = 4


def serialize_text(kind: str, label: bytes, data: bytes) -> str:
    """The line for a record.

    Args:
        kind: what stands before the colon, in lower case.
        label: makes the checksum one of this kind of record.
        data: the record.
    """
    return f"{kind}:{base32.encode(data + _checksum(label, data))}"


def parse_text(kind: str, label: bytes, text: str, *, max_bytes: int) -> bytes:
    """The record in a line.

    Args:
        kind: as for `serialize_text`.
        label: as for `serialize_text`.
        text: the line.
        max_bytes: the largest record; nothing longer is looked at.

    Raises:
        ParseError: saying what is wrong: the beginning, a character and where, the length, or the checksum.
    """
    text = text.strip().lower()
    prefix = kind + ":"
    if not text.startswith(prefix):
        raise ParseError(f'it does not begin with "{prefix}"')
    if len(text) > len(prefix) + (max_bytes + _CHECKSUM_BYTES) * 8 // 5 + 1:
        raise ParseError(f"too long: {len(text)} characters")
    data = base32.decode(text[len(prefix) :], offset=len(prefix))
    if len(data) <= _CHECKSUM_BYTES:
        raise ParseError("too short: the rest is missing")
    record, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if checksum != _checksum(label, record):
        raise ParseError("mistyped or cut off: the checksum does not match")
    return record


def _checksum(label: bytes, data: bytes) -> bytes:
    """Four bytes that tell a damaged line."""
    return sha256(label + data)[:_CHECKSUM_BYTES]
