"""Bars for transfers, on a terminal only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from crust.cli.output import Output, format_bytes, format_duration

if TYPE_CHECKING:
    from crust.node.transfer import TransferProgress, TransferResult

__all__ = ["Bars", "summary"]

_REFRESH_SECONDS = 0.1
_BAR_WIDTH = 16  # the least bar, the percentage, and the blanks between
_PHASES = {
    "waiting": "Waiting",
    "checking": "Comparing what is there",
    "finishing": "Finishing",
    "done": "Done",
}


class Bars:
    """As many bars as there are transfers at present; nothing at all if standard error is no terminal.

    Args:
        out: where to draw.
        verb: "Sending" or "Receiving".
    """

    def __init__(self, out: Output, verb: str) -> None:
        self._out = out
        self._verb = verb
        self._display: Any = None
        self._users = 0

    @asynccontextmanager
    async def show(self, progress: TransferProgress) -> AsyncIterator[None]:
        """Draw one transfer while the context lasts."""
        if not self._out.is_terminal():
            yield
            return
        try:
            display = self._start()
        except ModuleNotFoundError:  # no extra `cli`: no bar
            yield
            return
        drawing = asyncio.create_task(self._draw(display, progress))
        try:
            yield
        finally:
            drawing.cancel()
            self._users -= 1
            if not self._users:
                display.stop()
                self._display = None

    def _start(self) -> Any:
        if self._display is None:
            import sys

            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._display = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[details]}"),
                console=Console(file=sys.stderr),
                transient=True,
                auto_refresh=False,
            )
            self._display.start()
        self._users += 1
        return self._display

    async def _draw(self, display: Any, progress: TransferProgress) -> None:
        from rich.markup import escape

        task = display.add_task("", total=None, details="")
        speed = _Speed()
        try:
            while True:
                checking = progress.phase == "checking"
                done = progress.check_done if checking else progress.bytes_done
                total = progress.check_bytes if checking else progress.bytes
                speed.note(progress.phase, done - (0 if checking else progress.bytes_kept))
                phase = _PHASES.get(progress.phase, self._verb)
                room = display.console.width - len(phase) - _BAR_WIDTH
                display.update(
                    task,
                    description=phase,
                    completed=done,
                    total=total or None,
                    details=escape(_details(progress, done, total, speed.bytes_s, room)),
                    refresh=True,
                )
                await asyncio.sleep(_REFRESH_SECONDS)
        finally:
            display.remove_task(task)


def _details(progress: TransferProgress, done: int, total: int, speed: float, room: int) -> str:
    """What the bar does not show, as much of it as fits: the percentage matters more."""
    parts = [f"{format_bytes(done)} of {format_bytes(total)}"]
    if speed > 0:
        parts.append(f"{format_bytes(speed)}/s")
        if done < total:
            parts.append(f"{format_duration((total - done) / speed)} left")
    if progress.files > 1:
        parts.append(f"{progress.files_done:,} of {progress.files:,} files")
    while parts and len(", ".join(parts)) > room:
        parts.pop()
    return ", ".join(parts)


class _Speed:
    """Bytes per second over the last seconds, so that a stall shows soon and a burst does not jump."""

    _SPAN = 50  # samples, 5 s

    def __init__(self) -> None:
        self._phase = ""
        self._samples: list[tuple[float, int]] = []

    def note(self, phase: str, done: int) -> None:
        now = asyncio.get_running_loop().time()
        if phase != self._phase:
            self._phase = phase
            self._samples.clear()
        self._samples.append((now, done))
        del self._samples[: -self._SPAN]

    @property
    def bytes_s(self) -> float:
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end - start >= _REFRESH_SECONDS / 2 else 0.0


def summary(verb: str, result: TransferResult) -> str:
    """A completed transfer in one sentence."""
    files = "1 file" if result.files == 1 else f"{result.files:,} files"
    parts = [f"{verb} {files}, {format_bytes(result.bytes)}, in {format_duration(result.seconds)}"]
    if result.transferred_bytes:
        parts.append(f"{result.mb_s:.1f} MB/s")
    if result.kept_files:
        parts.append(f"{result.kept_files:,} were there already")
    if result.resumed_files:
        parts.append(f"{result.resumed_files:,} continued")
    parts.append(f"every {result.hash_name} hash is the same" if result.hashes_equal else "HASHES DIFFER")
    return "; ".join(parts)
