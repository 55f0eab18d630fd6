"""Records as lines of text."""

from __future__ import annotations

import pytest

from crust.errors import ParseError
from crust.wire.text import parse_text, serialize_text

LINE = serialize_text("crust", b"label", b"a record")


def parse(text: str, *, label: bytes = b"label", max_bytes: int = 100) -> bytes:
    return parse_text("crust", label, text, max_bytes=max_bytes)


def test_round_trip() -> None:
    assert LINE.startswith("crust:")
    for size in range(100):
        assert parse(serialize_text("crust", b"label", bytes(range(size)) + b"x")) == bytes(range(size)) + b"x"


@pytest.mark.parametrize("text", [LINE.upper(), f"\t{LINE}\r\n"])
def test_case_and_blanks(text: str) -> None:
    assert parse(text) == b"a record"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'does not begin with "crust:"'),
        (LINE[6:], 'does not begin with "crust:"'),
        ("crust:", "too short"),
        ("crust:me", "too short"),
        (LINE[:8] + "1" + LINE[9:], "character '1' at position 9"),
        (LINE[:8] + " " + LINE[8:], "character ' ' at position 9"),
        (LINE[:8] + ("a" if LINE[8] != "a" else "b") + LINE[9:], "the checksum does not match"),
        (LINE[:-1], "cut off"),
        (LINE[:-4], "cut off|does not match"),
        (LINE + "a", "cut off|a character too many"),
        ("crust:" + "a" * 200, "too long: 206 characters"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text)


def test_other_kind_of_record() -> None:
    with pytest.raises(ParseError, match="the checksum"):
        parse(LINE, label=b"other")


def test_the_cap_is_exact() -> None:
    longest = serialize_text("crust", b"label", bytes(100))
    assert parse(longest) == bytes(100)
    with pytest.raises(ParseError, match="too long"):
        parse(serialize_text("crust", b"label", bytes(102)))
