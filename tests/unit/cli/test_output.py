"""What reaches the terminal."""

from __future__ import annotations

import json

import pytest

from crust.cli.output import Output, printable, printable_lines

# Move the cursor, set the title, answer as if typed, clear the screen; 8-bit forms; overprinting; direction.
HOSTILE = "a\x1b[2J\x1b]0;title\x07\x9b31m\x9d\r\b\x7fb\u202ec\u2066"


def test_printable() -> None:
    assert (
        printable(HOSTILE + "\n")
        == "a" + "\ufffd[2J\ufffd]0;title\ufffd\ufffd31m" + "\ufffd" * 4 + "b\ufffdc\ufffd\ufffd"
    )
    assert printable_lines("one\n\ttwo ✓ ünïcode █▀\n") == "one\n\ttwo ✓ ünïcode █▀\n"
    assert printable_lines("\udc80x") == "\ufffdx"


def test_talk_and_data_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.say(f"crust: {HOSTILE}")
    out.data(HOSTILE)
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert "".join(c for c in text if not c.isprintable()) == "\n"


def test_json_is_one_line_of_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(json=True)
    out.record({"name": HOSTILE + "\n{}"})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert shown.count("\n") == 1
    assert "\x1b" not in shown
    assert "\x7f" not in shown
    assert json.loads(shown) == {"name": HOSTILE + "\n{}"}
