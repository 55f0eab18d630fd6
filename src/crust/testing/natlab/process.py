"""A program inside a lab, handled like `asyncio.subprocess.Process`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from typing import IO, Any

__all__ = ["Process", "Stdio"]

Stdio = int | IO[Any] | None
_READ_LIMIT_BYTES = 1 << 20


class Process:
    """A running program; made by `Host.run`.

    Attributes:
        stdin: a writer where stdin is a pipe.
        stdout: a reader where stdout is a pipe.
        stderr: a reader where stderr is a pipe.
        pid: its number inside the lab's PID namespace; 0 until it runs.
    """

    stdin: asyncio.StreamWriter | None = None
    stdout: asyncio.StreamReader | None = None
    stderr: asyncio.StreamReader | None = None
    pid: int = 0

    def __init__(self) -> None:
        """Prepare a program; `Host.run` starts it."""
        self._exit: asyncio.Future[int] | None = None
        self._signal: Callable[[int, int], Awaitable[None]] | None = None
        self._transports: list[asyncio.BaseTransport] = []
        self._signalling: set[asyncio.Task[None]] = set()

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal number after a signal, None while the program runs."""
        return self._exit.result() if self._exit is not None and self._exit.done() else None

    async def wait(self) -> int:
        """Wait for the end; a cancel loses nothing.

        Returns:
            The exit code.
        """
        assert self._exit is not None
        code = await asyncio.shield(self._exit)
        if self.stdin is not None:
            self.stdin.close()
        return code

    async def communicate(self, data: bytes | None = None) -> tuple[bytes, bytes]:
        """Write to stdin, close it, read everything, wait for the end.

        Returns:
            stdout and stderr, empty where they are no pipes.
        """
        if self.stdin is not None:
            if data:
                self.stdin.write(data)
            self.stdin.close()
        out, err = await asyncio.gather(_read(self.stdout), _read(self.stderr))
        await self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        """Signal the program; nothing happens when it has ended."""
        if self.returncode is None and self._signal is not None:
            task = asyncio.ensure_future(_as_coroutine(self._signal(self.pid, number)))
            self._signalling.add(task)
            task.add_done_callback(self._signalling.discard)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close our ends of the pipes; for the lab, at its end."""
        for transport in self._transports:
            transport.close()
        if self._exit is not None and not self._exit.done():
            self._exit.set_result(-signal.SIGKILL)

    async def start(
        self,
        stdio: tuple[Stdio, Stdio, Stdio],
        start: Callable[[list[int]], Awaitable[int]],
        exited: Callable[[int], asyncio.Future[int]],
        signaller: Callable[[int, int], Awaitable[None]],
    ) -> None:
        """Make the pipes, start the program, and join the two; for `Host.run` only."""
        theirs: list[int] = []
        ours: list[int | None] = []
        close: list[int] = []
        try:
            for target, choice in enumerate(stdio):
                mine, other, owned = _open_stdio(target, choice, theirs)
                ours.append(mine)
                theirs.append(other)
                close += [other] if owned else []
            self.pid = await start(theirs)
        except BaseException:
            for descriptor in ours:
                if descriptor is not None:
                    os.close(descriptor)
            raise
        finally:
            for descriptor in close:
                os.close(descriptor)
        self._exit = exited(self.pid)
        self._signal = signaller
        if ours[0] is not None:
            self.stdin = await self._writer(ours[0])
        if ours[1] is not None:
            self.stdout = await self._reader(ours[1])
        if ours[2] is not None:
            self.stderr = await self._reader(ours[2])

    async def _reader(self, descriptor: int) -> asyncio.StreamReader:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_READ_LIMIT_BYTES)
        pipe = os.fdopen(descriptor, "rb", 0)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._transports.append(transport)
        return reader

    async def _writer(self, descriptor: int) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(descriptor, "wb", 0)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), pipe
        )
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, loop)


def _open_stdio(target: int, choice: Stdio, earlier: list[int]) -> tuple[int | None, int, bool]:
    """Our end, the program's end, and whether we have to close the latter."""
    if choice == subprocess.PIPE:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        return (writing, reading, True) if target == 0 else (reading, writing, True)
    if choice == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), True
    if choice == subprocess.STDOUT:
        return None, earlier[1], False
    if choice is None:
        return None, target, False
    return None, choice if isinstance(choice, int) else choice.fileno(), False


async def _read(reader: asyncio.StreamReader | None) -> bytes:
    return b"" if reader is None else await reader.read()


async def _as_coroutine(waited: Awaitable[None]) -> None:
    await waited
