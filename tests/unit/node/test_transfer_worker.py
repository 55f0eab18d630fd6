"""Threads beside a loop: order, backpressure, errors and ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator

import pytest

from crust.node.transfer.worker import DiskThread, ThreadSource, run_in_thread


async def test_run_in_thread() -> None:
    assert await run_in_thread(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(lambda: 1 / 0)
    ident = await run_in_thread(threading.get_ident)
    assert ident != threading.get_ident()


async def test_run_in_thread_cancelled() -> None:
    release, done = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(10)
        done.set()

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert await run_in_thread(done.wait, 10)


async def test_source_yields_everything_in_order() -> None:
    assert [n async for n in ThreadSource(n for n in range(1000))] == list(range(1000))


async def test_source_is_only_some_items_ahead() -> None:
    made: list[int] = []
    reached = threading.Event()

    def items() -> Generator[int, None, None]:
        for n in range(100):
            made.append(n)
            if n == 3:
                reached.set()
            yield n

    source = ThreadSource(items(), ahead=3)
    assert await run_in_thread(reached.wait, 10)
    assert len(made) == 4  # three are waiting, and one is in the generator's hand
    assert [n async for n in source] == list(range(100))


async def test_source_hands_errors_on_after_the_items() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise ZeroDivisionError

    source = ThreadSource(items())
    assert await anext(source) == 1
    with pytest.raises(ZeroDivisionError):
        await anext(source)


async def test_source_stops() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            n = 0
            while True:
                n += 1
                yield n
        finally:
            closed.set()

    source = ThreadSource(items(), ahead=2)
    assert await anext(source) == 1
    source.stop()
    assert await run_in_thread(closed.wait, 10)


async def test_disk_thread_keeps_the_order() -> None:
    disk = DiskThread()
    seen: list[bytes] = []
    for n in range(100):
        await disk.feed(seen.append, b"%d" % n)
    assert await disk.call(len, seen) == 100
    assert seen == [b"%d" % n for n in range(100)]
    ended = threading.Event()
    disk.end(ended.set)
    assert await run_in_thread(ended.wait, 10)


async def test_disk_thread_makes_who_feeds_wait() -> None:
    disk = DiskThread(most_bytes=10)
    release = threading.Event()
    done: list[bytes] = []

    def slow(chunk: bytes) -> None:
        release.wait(10)
        done.append(chunk)

    await disk.feed(slow, b"12345")
    await disk.feed(slow, b"12345")
    third = asyncio.create_task(disk.feed(slow, b"1"))
    await asyncio.wait((third,), timeout=0.05)
    assert not third.done()
    release.set()
    await third
    await disk.call(int)
    assert len(done) == 3
    disk.end()


async def test_disk_thread_error_ends_the_feeding() -> None:
    disk = DiskThread(most_bytes=1)
    done: list[bytes] = []

    def fail(chunk: bytes) -> None:
        if chunk == b"bad":
            raise OSError("disk")
        done.append(chunk)

    await disk.feed(fail, b"a")
    with contextlib.suppress(OSError):  # it waits, and may learn of the error at once
        await disk.feed(fail, b"bad")
    with pytest.raises(OSError, match="disk"):
        await disk.feed(fail, b"bad")
    with pytest.raises(OSError, match="disk"):
        await disk.feed(fail, b"b")
    with pytest.raises(OSError, match="disk"):
        await disk.call(int)
    assert done == [b"a"]
    with pytest.raises(OSError, match="disk"):
        await disk.failed
    ended = threading.Event()
    disk.end(ended.set)
    assert await run_in_thread(ended.wait, 10)


async def test_disk_thread_call_raises() -> None:
    disk = DiskThread()
    with pytest.raises(ZeroDivisionError):
        await disk.call(lambda: 1 / 0)
    assert await disk.call(int) == 0
    disk.end(lambda: 1 / 0)  # nobody waits for the last call
