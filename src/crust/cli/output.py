"""What a command prints: data to standard output, talk to standard error, one JSON object per line with `--json`."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import sys
from collections.abc import Mapping
from typing import IO, Any

__all__ = [
    "CommandError",
    "Output",
    "OutputClosed",
    "format_bytes",
    "format_duration",
    "printable",
    "printable_lines",
    "table",
    "to_json",
]


class CommandError(Exception):
    """Ends a command with a sentence for people and an exit code.

    Attributes:
        code: the exit code.
        record: what `--json` prints instead of `{"error": …}`.
    """

    def __init__(self, message: str, *, code: int = 1, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.record = record


class OutputClosed(Exception):
    """Nobody reads our standard output any more."""


class Output:
    """Standard output and standard error of one command."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        # A stream is None when its descriptor was closed before we started.
        self._out: IO[str] | None = sys.stdout
        self._err: IO[str] | None = sys.stderr

    def data(self, text: str, record: Mapping[str, Any] | None = None) -> None:
        """Print the text for people, or with `--json` the record (nothing when it is None) on one line.

        Raises:
            OutputClosed: the reader of our output is gone.
        """
        if not self.json:
            self._write(printable_lines(text))
        elif record is not None:
            self.record(record)

    def record(self, record: Mapping[str, Any]) -> None:
        """Print a JSON object on one line; nothing without `--json`.

        Raises:
            OutputClosed: the reader of our output is gone.
        """
        if self.json:
            self._write(json.dumps(to_json(record)))

    def say(self, text: str) -> None:
        """Print a line of talk on standard error."""
        if self._err is not None and not self.quiet:
            with contextlib.suppress(OSError, ValueError):
                print(printable_lines(text), file=self._err, flush=True)

    def is_terminal(self) -> bool:
        """True if talk goes to a terminal, so that it may be redrawn."""
        return self._err is not None and not self.quiet and self._err.isatty()

    def _write(self, line: str) -> None:
        if self._out is None:
            return
        try:
            print(line, file=self._out, flush=True)
        except BrokenPipeError:
            drop_stdout()
            raise OutputClosed from None


def drop_stdout() -> None:
    """Point standard output at nothing, so that what is still buffered fails no more (at exit, for one)."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)


def to_json(value: Any) -> Any:
    """Turn our records, enums, ids, bytes and errors into what `json` can write."""
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value)


def printable(text: str) -> str:
    """The text without anything that could steer a terminal: what peers say is shown through this."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def printable_lines(text: str) -> str:
    """The same, line by line: the last thing between any text and the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def format_bytes(count: float) -> str:
    """A number of bytes for people: "0 B", "12.3 kB", "4.0 GB"."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        count /= 1000
        if abs(count) < 999.95 or unit == "PB":
            break
    return f"{count:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """A time span for people: "0.4 s", "3 min 5 s", "2 h 4 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain columns, aligned to the left, without trailing blanks."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
