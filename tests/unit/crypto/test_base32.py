"""Base32 with errors for people."""

from __future__ import annotations

import pytest

from crust.crypto import base32
from crust.errors import ParseError


def test_rfc_4648_vectors() -> None:
    # RFC 4648 §10, in lower case and without padding.
    for data, text in [
        (b"", ""),
        (b"f", "my"),
        (b"fo", "mzxq"),
        (b"foo", "mzxw6"),
        (b"foob", "mzxw6yq"),
        (b"fooba", "mzxw6ytb"),
        (b"foobar", "mzxw6ytboi"),
    ]:
        assert base32.encode(data) == text
        assert base32.decode(text) == data


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("my1q", 0, "character '1' at position 3 cannot occur; perhaps 'l'"),
        ("0y", 5, "character '0' at position 6 cannot occur; perhaps 'o'"),
        ("m8", 0, "perhaps 'b'"),
        ("my==", 0, "character '=' at position 3 cannot occur$"),
        ("mý", 0, "character 'ý' at position 2"),
        ("MY", 0, "character 'M' at position 1"),
        ("mzx", 0, "no such text has 3 characters"),
        ("m", 0, "no such text has 1 characters"),
        ("mz", 0, "the last character is wrong"),
        ("mzxr", 0, "the last character is wrong"),
    ],
)
def test_errors(text: str, offset: int, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        base32.decode(text, offset=offset)
