"""Work that is not given up half-way."""

from __future__ import annotations

import asyncio

import pytest

from crust.node.carry import carry_through


async def test_result_and_failure() -> None:
    async def fail() -> None:
        raise ValueError("so")

    assert await carry_through(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="so"):
        await carry_through(fail())


@pytest.mark.parametrize("fails", [False, True])
async def test_cancelled_as_often_as_one_likes(fails: bool) -> None:
    gate = asyncio.Event()
    done = False

    async def work() -> None:
        nonlocal done
        await gate.wait()
        done = True
        if fails:
            raise ValueError

    task = asyncio.create_task(carry_through(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done
