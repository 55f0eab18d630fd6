"""Processes that do what they are told over pipes: the workers of the benchmark, the second node of `crust demo`.

Standard input of a worker brings one JSON object per line, `{"do": NAME, ...}`; its standard output takes one answer to
each, `{"ok": RESULT}`, `{"unsupported": TEXT}` or `{"error": TEXT}`. The end of standard input ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["UnsupportedError", "Worker", "WorkerError", "ask", "loop_name", "run", "serve"]

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class UnsupportedError(Exception):
    """Something cannot be done here; the text says why."""


class WorkerError(Exception):
    """A worker failed at what it was told, or is gone."""


class Worker:
    """A worker process; ends at the latest when this process ends."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @classmethod
    async def start(cls, module: str, *, writes_bytecode: bool = True) -> Self:
        """Start one with the interpreter of this process.

        Args:
            module: calls `serve` when run as a program.
            writes_bytecode: whether its imports may add files to `__pycache__` folders.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(() if writes_bytecode else ("-B",)),
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,  # a thousand addresses in one line
            start_new_session=True,  # Ctrl-C is for this process, which then ends the worker
        )
        return cls(process)

    async def call(self, do: str, *, seconds: float = 60.0, **arguments: Any) -> Any:
        """Have something done and wait for its result.

        Raises:
            UnsupportedError: it cannot be done here.
            WorkerError: it failed, or took longer than `seconds`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return await ask(self._process.stdout, self._process.stdin, do, seconds, arguments)

    async def stop(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, do: str, seconds: float, arguments: dict[str, Any]
) -> Any:
    """Have a worker at the other end of pipes do something; see `Worker.call`."""
    try:
        async with asyncio.timeout(seconds):
            writer.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            await writer.drain()
            line = await reader.readline()
    except TimeoutError:
        raise WorkerError(f"{do}: not done within {seconds:.0f} s") from None
    except ConnectionError as error:
        raise WorkerError(f"{do}: {error}") from error
    if not line:
        raise WorkerError(f"{do}: the process ended")
    answer = json.loads(line)
    if "unsupported" in answer:
        raise UnsupportedError(answer["unsupported"])
    if "error" in answer:
        raise WorkerError(f"{do}: {answer['error']}")
    return answer["ok"]


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def loop_name() -> str:
    """ "uvloop" or "asyncio"."""
    return "uvloop" if _loop_factory() else "asyncio"


async def serve(do: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
    """Be a worker: call `do` with the name and the arguments of each command, until standard input ends."""
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(commands.put_nowait, line)
        os._exit(0)  # the parent is gone: nothing here is worth an orderly end

    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)  # whatever prints must not mix with the answers
        threading.Thread(target=read, daemon=True).start()
        while True:
            command = json.loads(await commands.get())
            try:
                answer = {"ok": await do(command.pop("do"), command)}
            except UnsupportedError as error:
                answer = {"unsupported": str(error)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            output.write(json.dumps(answer) + "\n")
            output.flush()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a worker's coroutine; its parent decides when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # have the kernel end this process with its parent, however busy it is
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)
