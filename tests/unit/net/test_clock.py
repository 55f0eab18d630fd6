"""Deadlines are not met before their time; sleep of the machine is noticed."""

from __future__ import annotations

import asyncio

import pytest

from crust.net import clock
from crust.net.clock import TIMER_SLACK, monotonic, seconds_slept


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_timers_do_not_fire_before_their_deadline(name: str) -> None:
    """On uvloop, without the slack, half of them do."""
    loop = asyncio.new_event_loop() if name == "asyncio" else pytest.importorskip("uvloop").new_event_loop()
    early: list[float] = []

    async def wait() -> None:
        deadlines = [monotonic() + 0.002 + at * 0.00037 for at in range(40)]
        done = asyncio.Event()
        left = len(deadlines)

        def fired(deadline: float) -> None:
            nonlocal left
            left -= 1
            if monotonic() < deadline:
                early.append(deadline - monotonic())
            if not left:
                done.set()

        for deadline in deadlines:
            loop.call_at(deadline + TIMER_SLACK, fired, deadline)
        await done.wait()

    try:
        loop.run_until_complete(wait())
    finally:
        loop.close()
    assert early == []


def test_sleep_is_what_the_boot_clock_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    before = seconds_slept()
    assert seconds_slept() == pytest.approx(before, abs=0.5)
    monkeypatch.delattr(clock.time, "CLOCK_BOOTTIME", raising=False)
    assert seconds_slept() == 0.0
