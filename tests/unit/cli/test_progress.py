"""Bars for transfers on terminals of any width."""

from __future__ import annotations

import asyncio
import io
import re
from typing import Any

import pytest

from crust.cli.output import Output
from crust.cli.progress import Bars
from crust.node.transfer import TransferProgress

pytest.importorskip("rich")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (20, " 40 %"),
        (30, " 40 %"),
        (44, " 40 % 40.0 MB of 100.0 MB"),
        (100, " 40 % 40.0 MB of 100.0 MB, 1 of 3 files"),
    ],
)
async def test_the_percentage_has_room_on_every_terminal(
    columns: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal: Any = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = TransferProgress()
    progress.phase = "transferring"
    progress.bytes, progress.bytes_done, progress.files, progress.files_done = 100_000_000, 40_000_000, 3, 1
    async with Bars(Output(), "Sending").show(progress):
        while " %" not in terminal.getvalue():
            await asyncio.sleep(0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    frame = next(line for line in re.split(r"[\r\n]+", plain) if "Sending" in line)
    assert shown in frame
    assert "…" not in frame
    assert len(frame.rstrip()) <= columns
