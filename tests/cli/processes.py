"""Processes that are not ours: the children of commands, and when they have ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path


def _state_and_parent(pid: int) -> tuple[str, int]:
    state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        return _state_and_parent(pid)[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = _state_and_parent(int(entry.name))
            except OSError:
                continue
            if parent == pid and state != "Z":
                found.append(int(entry.name))
    return found


async def ended(pids: Iterable[int]) -> None:
    """Wait until all of these processes have ended, whoever started them (pidfd_open(2))."""
    with ExitStack() as stack:
        descriptors = []
        for pid in pids:
            try:
                descriptors.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
            stack.callback(os.close, descriptors[-1])
        for descriptor in descriptors:
            await readable(descriptor)


async def interrupt(process: asyncio.subprocess.Process, started: Iterable[int]) -> None:
    """SIGINT ends a command within two seconds, and what it has started soon after."""
    os.kill(process.pid, signal.SIGINT)
    async with asyncio.timeout(2.5):
        assert await process.wait() == 130
    async with asyncio.timeout(2):
        await ended(started)


async def readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
