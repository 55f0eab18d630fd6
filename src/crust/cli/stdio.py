"""Standard input and output without blocking the loop, and without waiting for them at the end."""

from __future__ import annotations

import os
from collections.abc import Generator

from crust.node.transfer.worker import DiskThread, ThreadSource

__all__ = ["StdoutWriter", "read_line", "stdin_chunks"]

_CHUNK_BYTES = 64 << 10
_MAX_LINE_BYTES = 64 << 10


def _read_stdin() -> Generator[bytes, None, None]:
    # The descriptor itself: a thread that hangs in `sys.stdin` would hold its lock when the interpreter ends.
    while True:
        try:
            chunk = os.read(0, _CHUNK_BYTES)
        except OSError:  # closed before we started
            return
        if not chunk:
            return
        yield chunk


def stdin_chunks() -> ThreadSource[bytes]:
    """What comes in on standard input, as an asynchronous iterator; at most 64 KiB a piece."""
    return ThreadSource(_read_stdin())


async def read_line() -> str:
    """One line of standard input; "" at its end. What comes in behind the line is lost: ask once."""
    data = bytearray()
    source = stdin_chunks()
    try:
        async for chunk in source:
            data += chunk
            if b"\n" in chunk or len(data) > _MAX_LINE_BYTES:
                break
    finally:
        source.stop()
    return bytes(data).partition(b"\n")[0].decode(errors="replace")


class StdoutWriter:
    """Writes bytes to standard output in a thread."""

    def __init__(self) -> None:
        self._thread = DiskThread(most_bytes=1 << 20)

    async def write(self, data: bytes) -> None:
        """Hand over bytes, waiting while too many are under way.

        Raises:
            OSError: standard output cannot be written, for one because its reader is gone.
        """
        await self._thread.feed(_write_stdout, data)

    async def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: as `write`.
        """
        await self._thread.call(lambda: None)

    def stop(self) -> None:
        """Let the thread end."""
        self._thread.end()


def _write_stdout(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
