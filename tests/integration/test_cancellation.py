"""Every public coroutine, cancelled at any moment: nothing stays behind, and what was not cancelled goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import crust
from tests.integration.node_support import (
    config,
    elapsed_below,
    eventually,
    node,
    nothing_left,
    open_descriptors,
    port_of,
    soon,
    target,
)

SEEDS = range(4)
ROUNDS = 14
BOTH = {"transports": ["tcp", "utp"], "listen": ["127.0.0.1:0"]}


async def cancel_somewhere(work: Coroutine[Any, Any, Any], chance: random.Random) -> Any:
    """Run a coroutine, and cancel it after a random number of turns of the loop, or a moment; its result, or None."""
    task = asyncio.ensure_future(work)
    if chance.random() < 0.7:
        for _ in range(chance.choice([0, 1, 2, 3, 5, 8, 13, 30])):
            await asyncio.sleep(0)
    else:
        await asyncio.wait({task}, timeout=chance.random() * 0.02)
    if not task.done():
        task.cancel()
    try:
        async with asyncio.timeout(15):
            return await task
    except asyncio.CancelledError:
        return None
    except (crust.CrustError, asyncio.IncompleteReadError):
        return None


def scheduled() -> int:
    """Timers of the event loop that are not cancelled."""
    loop = asyncio.get_running_loop()
    return sum(not handle.cancelled() for handle in getattr(loop, "_scheduled", ()))


@contextlib.asynccontextmanager
async def nothing_new() -> AsyncIterator[None]:
    """No thread, and of failures that nobody heard of none."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    async with nothing_left():
        threads = threading.active_count()
        yield
        assert threading.active_count() <= threads + 1  # the loop's executor may add one for names
    assert failures == []


async def first(of: Any) -> Any:
    async for found in of:
        return found
    return None


class Couple:
    """Two nodes with a connection and a stream, and things to do with them."""

    def __init__(self, alice: crust.Node, bob: crust.Node, ours: crust.Connection, theirs: crust.Connection) -> None:
        self.alice, self.bob, self.ours, self.theirs = alice, bob, ours, theirs
        self.stream: crust.Stream | None = None
        self.sent = 0

    def verbs(self, chance: random.Random) -> list[Callable[[], Coroutine[Any, Any, Any]]]:
        ours, theirs = self.ours, self.theirs
        sides = [ours, theirs]
        return [
            lambda: chance.choice(sides).send(
                bytes(chance.choice([0, 10, 5000, 300_000])), priority=crust.Priority.LOW
            ),
            lambda: chance.choice(sides).receive(),
            lambda: chance.choice(sides).flush(),
            lambda: chance.choice(sides).ping(),
            lambda: chance.choice(sides).receive_datagram(),
            lambda: chance.choice(sides).open_stream("s"),
            lambda: first(chance.choice(sides).streams()),
            lambda: self.use_stream(chance),
            lambda: self.receipt(chance.choice(sides)),
            lambda: chance.choice(sides).wait_ended(),
            lambda: self.alice.connect(self.bob.id),
            lambda: self.alice.connect(target(self.bob.id, port_of(self.bob))),
            lambda: self.alice.connect(target(crust.Identity.generate().id, port_of(self.bob)), timeout=0.5),
            lambda: self.alice.contact(),
            lambda: self.bob.accept(),
            lambda: first(self.alice.events()),
            lambda: self.alice.bootstrapped(0.05),
        ]

    async def use_stream(self, chance: random.Random) -> None:
        stream = await self.ours.open_stream("used")
        try:
            stream.write(bytes(chance.choice([10, 100_000])))
            await stream.drain()
            verb = chance.choice([lambda: stream.read(10), lambda: stream.readexactly(5), lambda: stream.readline()])
            await verb()
            await stream.close()
        finally:
            stream.reset()

    async def receipt(self, side: crust.Connection) -> None:
        message = await side.receive()
        await message.receipt()

    async def drain(self) -> None:
        """Read what has been sent, and end every stream."""
        for side in (self.ours, self.theirs):
            streams = side.streams()
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.02):
                        stream = await anext(streams)
                    stream.reset()
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.02):
                        await side.receive()

    async def check(self) -> None:
        """Both directions work, in order, streams too."""
        await self.drain()
        for ours, theirs in ((self.ours, self.theirs), (self.theirs, self.ours)):
            await soon(ours.send(b"one"))
            await soon(ours.send(b"two"))
            assert [(await soon(theirs.receive())).data for _ in range(2)] == [b"one", b"two"]
            stream = await soon(ours.open_stream("check"))
            stream.write(b"line\n")
            await soon(stream.drain())
            while (other := await soon(anext(theirs.streams()))).name != "check":
                other.reset()
            assert await soon(other.readline()) == b"line\n"
            other.reset()
            stream.reset()
            await soon(ours.flush())


@contextlib.asynccontextmanager
async def couple(**settings: Any) -> AsyncIterator[Couple]:
    async with node(**{**BOTH, **settings}) as alice, node(**{**BOTH, **settings}) as bob:
        ours = await soon(alice.connect(target(bob.id, port_of(bob))))
        theirs = await soon(anext(bob))
        yield Couple(alice, bob, ours, theirs)


@pytest.mark.parametrize("seed", SEEDS)
async def test_verbs_of_a_connection(seed: int) -> None:
    chance = random.Random(seed)
    settings = [{}, {"signing": "off"}, {"transports": ["utp"]}, {"transports": ["tcp"], "signing": "strict"}]
    async with nothing_new(), couple(**settings[seed % 4], send_queue_bytes=64 * 1024) as pair:
        await pair.check()
        await eventually(lambda: len(asyncio.all_tasks()) <= 10)
        tasks, descriptors = len(asyncio.all_tasks()), open_descriptors()
        for _ in range(ROUNDS):
            verbs = [verb() for verb in chance.choices(pair.verbs(chance), k=chance.randint(1, 4))]
            await asyncio.gather(*(cancel_somewhere(verb, chance) for verb in verbs))
        await pair.check()
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
        await eventually(lambda: open_descriptors() <= descriptors + 1)  # the standby path may have come since


async def test_timers_do_not_pile_up() -> None:
    chance = random.Random(100)
    async with nothing_new(), couple(signing="off") as pair:
        await pair.check()
        before = scheduled()
        for verb in pair.verbs(chance):
            for _ in range(8):
                await cancel_somewhere(verb(), chance)
        await pair.check()
        await eventually(lambda: scheduled() <= before + 10)


@pytest.mark.parametrize("seed", SEEDS)
async def test_dials(seed: int) -> None:
    """Given up at any moment, both sides forget them."""
    chance = random.Random(200 + seed)
    transports = [["tcp"], ["utp"], ["tcp", "utp"]][seed % 3]
    async with nothing_new(), node(**{**BOTH, "handshake_timeout": 0.5, "resume_timeout": 0.1}) as bob:
        where = target(bob.id, port_of(bob))
        async with node(**{**BOTH, "transports": transports, "listen": []}) as alice:
            for _ in range(ROUNDS):
                await cancel_somewhere(alice.connect(where), chance)
                for connection in alice.connections:
                    if chance.random() < 0.5:
                        connection.abort()
                    else:
                        await cancel_somewhere(connection.close(), chance)
            ours = await soon(alice.connect(where))
            await soon(ours.ping())
        await eventually(lambda: not bob.stats["handshake.half_open"])
        await eventually(lambda: not bob.connections)


@pytest.mark.parametrize("seed", SEEDS)
async def test_closing_connections(seed: int) -> None:
    chance = random.Random(300 + seed)
    async with (
        nothing_new(),
        node(**{**BOTH, "close_timeout": 0.5}) as alice,
        node(**{**BOTH, "close_timeout": 0.5}) as bob,
    ):
        for _ in range(ROUNDS // 2):
            ours = await soon(alice.connect(target(bob.id, port_of(bob))))
            theirs = await soon(anext(bob))
            await soon(ours.send(bytes(chance.choice([0, 100_000]))))
            sides = chance.choice([[ours], [theirs], [ours, theirs]])
            await asyncio.gather(*(cancel_somewhere(side.close(), chance) for side in sides))
            # A close that was cancelled is carried on, or is asked for again.
            await soon(asyncio.gather(ours.close(), theirs.close()))
            assert ours.closed
            assert theirs.closed


@pytest.mark.parametrize("seed", SEEDS)
async def test_starting_and_closing_nodes(seed: int) -> None:
    chance = random.Random(400 + seed)
    async with nothing_new(), node(**BOTH, resume_timeout=0.1, handshake_timeout=0.5) as bob:
        for _ in range(ROUNDS // 2):
            alice = crust.Node(config=config(**{**BOTH, "close_timeout": 0.3}))
            await cancel_somewhere(alice.start(), chance)
            if alice.addresses and chance.random() < 0.7:
                with contextlib.suppress(crust.CrustError):
                    ours = await soon(alice.connect(target(bob.id, port_of(bob))))
                    await soon(ours.send(bytes(10_000)))
            for _ in range(chance.randint(0, 2)):
                await cancel_somewhere(alice.close(), chance)
            await soon(alice.close())
        await eventually(lambda: not bob.connections)


async def test_a_close_that_is_cancelled_still_tells_peers_over_utp() -> None:
    """Over TCP the kernel does; here the last words must leave before the socket is closed."""
    async with nothing_new(), node(transports=["utp"], resume_timeout=0.1) as bob:
        alice = crust.Node(config=config(transports=["utp"]))
        await alice.start()
        ours = await soon(alice.connect(target(bob.id, port_of(bob))))
        await soon(ours.ping())
        closing = asyncio.create_task(alice.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with elapsed_below(5):  # the path would be asked for a sign of life for ten seconds
            await eventually(lambda: not bob.connections)


@pytest.mark.parametrize("seed", SEEDS)
async def test_decisions(seed: int) -> None:
    chance = random.Random(500 + seed)
    async with nothing_new(), node(**{**BOTH, "handshake_timeout": 0.5, "incoming_timeout": 0.5}) as bob:
        for _ in range(ROUNDS // 2):
            async with node(listen=[], transports=["tcp", "utp"]) as alice:
                dialling = asyncio.create_task(
                    cancel_somewhere(alice.connect(target(bob.id, port_of(bob)), timeout=2), chance)
                )
                knock = await cancel_somewhere(anext(bob.incoming()), chance)
                if knock is not None:
                    verb = chance.choice(["accept", "refuse", "ignore"])
                    if verb == "accept":
                        await cancel_somewhere(knock.accept(), chance)
                    else:
                        getattr(knock, verb)()
                await dialling
        await eventually(lambda: not bob.stats["handshake.half_open"])
        for connection in bob.connections:
            connection.abort()
