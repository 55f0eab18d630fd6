"""Base32 as Crust writes it: RFC 4648 in lower case, no padding, with errors that say which character is wrong."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from crust.errors import ParseError

__all__ = ["decode", "encode"]

_ALPHABET: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
# The alphabet leaves these out because they are mistaken for letters; people type them all the same.
_MISTAKEN: Final = {"0": "o", "1": "l", "8": "b"}


def encode(data: bytes) -> str:
    """`data` in lower-case base32 without padding."""
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def check_characters(text: str, *, offset: int = 0) -> None:
    """Refuse a character outside the alphabet.

    Args:
        text: lower-case base32.
        offset: what stands before `text` in what the user typed, for the position in the error.

    Raises:
        ParseError: naming the character and its position, counted from 1.
    """
    if _ALPHABET.issuperset(text):
        return
    for index, character in enumerate(text):
        if character not in _ALPHABET:
            hint = f"; perhaps {_MISTAKEN[character]!r}" if character in _MISTAKEN else ""
            raise ParseError(f"character {character!r} at position {offset + index + 1} cannot occur{hint}")


def decode(text: str, *, offset: int = 0) -> bytes:
    """The bytes of lower-case base32 without padding.

    Args:
        text: what `encode` wrote.
        offset: as for `check_characters`.

    Raises:
        ParseError: a character outside the alphabet, an impossible length, or bits left over that are not zero.
    """
    check_characters(text, offset=offset)
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as error:
        raise ParseError(f"cut off, or a character too many: no such text has {len(text)} characters") from error
    if encode(data) != text:  # 2 to 4 unused bits at the end: one text for one value
        raise ParseError("mistyped or cut off: the last character is wrong")
    return data
