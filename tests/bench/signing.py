"""What signing costs: python tests/bench/signing.py [cost|delay|many|fan_in]…

cost    CPU seconds of each side, with signing and without, for bulk and for small messages
delay   from the arrival of a message to its receipt, while 100-byte messages come as fast as they can
many    one node with 1,000 connections, 10 messages a second out of it on each (PROTOCOL 19: signatures stretched)
fan_in  the same into it, from 1,000 nodes: nobody signs much, but one verifies it all

CPU seconds, as other programs on the machine disturb them less than they do the clock. Least of the rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import crust

ROUNDS = 3
CONNECTIONS = 1000
RATE = 10
SECONDS = 10.0
SETTLE = 3.0


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def new_node(signing: str = "on", *, listens: bool = True) -> crust.Node:
    listen = ["127.0.0.1:0"] if listens else []
    return crust.Node(
        config=crust.Config(
            listen=listen, transports=["tcp"], lan=False, port_mapping=False, signing=signing, max_connections=2000
        )
    )


def run(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    except ImportError:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def say(record: Any) -> None:
    print(json.dumps(record), flush=True)


class Other:
    """This program in another process, playing a part; it prints its contacts first and its figures last."""

    def __init__(self, part: str, *arguments: str) -> None:
        command = [sys.executable, __file__, "--part", part, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> Any:
        record = self.hear()
        self._process.wait()
        return record


# --- cost ----------------------------------------------------------------------------------------------------


async def take(signing: str) -> None:
    async with new_node(signing) as node:
        say(str(await node.contact()))
        connection = await anext(node)
        before = cpu_s()
        async for message in connection:
            assert message.data
        say(cpu_s() - before)


async def push(contact: str, signing: str, size: int, count: int) -> float:
    async with new_node(signing, listens=False) as node:
        connection = await node.connect(contact)
        data = os.urandom(size)
        before = cpu_s()
        for _ in range(count):
            await connection.send(data)
        await connection.close()
        return cpu_s() - before


def cost() -> None:
    for size, count, unit, per in (
        (100, 1_000_000, "µs a message", 1e-6 * 1_000_000),
        (65536, 16384, "s/GiB", 1.0),
        (1 << 20, 1024, "s/GiB", 1.0),
    ):
        used: dict[str, list[tuple[float, float]]] = {"on": [], "off": []}
        for _ in range(ROUNDS):
            for signing, figures in used.items():
                other = Other("take", signing)
                ours = run(push(other.hear(), signing, size, count))
                figures.append((ours, other.end()))
        for side, name in enumerate(("sender", "receiver")):
            on, off = (min(figure[side] for figure in used[signing]) / per for signing in ("on", "off"))
            print(f"{size:>8} B, {name:8}: signed {on:.2f}, unsigned {off:.2f}, signing costs {on - off:.2f} {unit}")


# --- delay ----------------------------------------------------------------------------------------------------


async def sample(every: str) -> None:
    delays: list[float] = []
    waiting: set[asyncio.Task[None]] = set()

    async def wait(message: crust.Message, since: float) -> None:
        await message.receipt()
        delays.append(time.monotonic() - since)

    async with new_node() as node:
        say(str(await node.contact()))
        connection = await anext(node)
        count = 0
        async for message in connection:
            count += 1
            if count % int(every) == 0:
                waiting.add(asyncio.create_task(wait(message, time.monotonic())))
        await asyncio.gather(*waiting)
        say([count, sorted(delay * 1000 for delay in delays)])


async def flood(contact: str, seconds: float) -> None:
    async with new_node(listens=False) as node:
        connection = await node.connect(contact)
        data = bytes(100)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(100):
                await connection.send(data)
        await connection.close()


def delay() -> None:
    other = Other("sample", "500")
    run(flood(other.hear(), 5.0))
    count, delays = other.end()
    at = len(delays) // 100
    print(
        f"receipt() while {count / 5:,.0f} messages of 100 B a second come: median {statistics.median(delays):.1f} ms, "
        f"99 % within {delays[-at - 1]:.1f} ms"
    )


# --- many ----------------------------------------------------------------------------------------------------


async def stdin_line() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def beat(connections: list[crust.Connection], seconds: float) -> None:
    """Send 100 bytes on each connection RATE times a second, spread evenly."""
    data = bytes(100)
    start = time.monotonic()
    sent = 0
    while (now := time.monotonic()) < start + seconds:
        due = int((now - start) * RATE * len(connections))
        while sent < due:
            await connections[sent % len(connections)].send(data)
            sent += 1
        await asyncio.sleep(0.001)


async def listen_all(connections: list[crust.Connection], delays: list[float]) -> None:
    waiting: set[asyncio.Task[None]] = set()

    async def wait(message: crust.Message, since: float) -> None:
        with contextlib.suppress(crust.CrustError):
            await message.receipt()
            delays.append((time.monotonic() - since) * 1000)

    async def listen(connection: crust.Connection, number: int) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            async for message in connection:
                number += 1
                if number % 10 == 0:
                    task = asyncio.create_task(wait(message, time.monotonic()))
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)

    await asyncio.gather(*(listen(connection, number) for number, connection in enumerate(connections)))


async def measured(work: Awaitable[None], connections: list[crust.Connection]) -> dict[str, Any]:
    """CPU and signatures of some seconds, after it has settled."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(SETTLE)
    signed = sum(connection.session.outbox.signatures for connection in connections)
    verified = sum(connection.session.delivery.signatures for connection in connections)
    messages = sum(connection.stats["messages_sent"] for connection in connections)
    before, since = cpu_s(), time.monotonic()
    await asyncio.sleep(SECONDS)
    elapsed = time.monotonic() - since
    figures = {
        "cores": (cpu_s() - before) / elapsed,
        "messages_s": (sum(c.stats["messages_sent"] for c in connections) - messages) / elapsed,
        "signed_s": (sum(c.session.outbox.signatures for c in connections) - signed) / elapsed,
        "verified_s": (sum(c.session.delivery.signatures for c in connections) - verified) / elapsed,
    }
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return figures


async def crowd(sends: str) -> None:
    """The thousand."""
    nodes = [new_node() for _ in range(CONNECTIONS)]
    for node in nodes:
        await node.start()
    say([str(await node.contact()) for node in nodes])
    connections = [await anext(node) for node in nodes]
    delays: list[float] = []
    await stdin_line()
    both = asyncio.gather(
        listen_all(connections, delays),
        *([beat(connections, SETTLE + SECONDS + 1)] if sends == "yes" else []),
    )
    figures = await measured(both, connections)
    say([figures, statistics.median(delays) if delays else None])
    os._exit(0)


async def one(contacts: list[str], other: Other, *, sends: bool) -> tuple[dict[str, Any], list[float]]:
    """The one node."""
    async with new_node(listens=False) as node:
        connections = []
        for first in range(0, len(contacts), 20):
            connections += await asyncio.gather(*(node.connect(text) for text in contacts[first : first + 20]))
        delays: list[float] = []
        other.tell()
        both = asyncio.gather(
            listen_all(connections, delays), *([beat(connections, SETTLE + SECONDS + 1)] if sends else [])
        )
        figures = await measured(both, connections)
        for connection in connections:
            connection.abort()
        return figures, delays


def many(*, sends: bool = True) -> None:
    other = Other("crowd", "no" if sends else "yes")
    figures, delays = run(one(other.hear(), other, sends=sends))
    theirs, median = other.end()
    if delays:
        median = statistics.median(delays)
    print(f"{CONNECTIONS} connections, {RATE} messages a second each, {'out of' if sends else 'into'} one node:")
    for name, side in (("the one", figures), (f"the {CONNECTIONS}", theirs)):
        print(
            f"  {name}: {side['cores']:.2f} cores, {side['messages_s']:,.0f} messages sent, "
            f"{side['signed_s']:,.0f} signatures and {side['verified_s']:,.0f} verifications a second"
        )
    print(f"  receipt() after {median:.0f} ms (median)")


PARTS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"take": take, "sample": sample, "crowd": crowd}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--part"]:
        run(PARTS[arguments[1]](*arguments[2:]))
        return
    measures = {"cost": cost, "delay": delay, "many": many, "fan_in": lambda: many(sends=False)}
    for name in arguments or measures:
        measures[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
