"""Nodes on loopback, a proxy that misbehaves on request, and waiting without sleeping."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import crust
from tests.waiting import eventually, soon


def config(**changes: Any) -> crust.Config:
    """A node of its own on loopback; over TCP, unless a test asks for more."""
    settings: dict[str, Any] = {
        "listen": ["127.0.0.1:0"],
        "transports": ["tcp"],
        "port_mapping": False,
        "lan": False,
        "close_timeout": 2,
    }
    return crust.Config(**{**settings, **changes})


def node(identity: crust.Identity | None = None, **changes: Any) -> crust.Node:
    return crust.Node(identity, config(**changes))


def target(peer: crust.PeerId, port: int, host: str = "127.0.0.1") -> str:
    return f"{peer}@[{host}]:{port}" if ":" in host else f"{peer}@{host}:{port}"


def port_of(of: crust.Node) -> int:
    return int(of.addresses[0].rpartition(":")[2])


@contextlib.asynccontextmanager
async def joined(
    client: dict[str, Any] | None = None, server: dict[str, Any] | None = None
) -> AsyncIterator[tuple[crust.Node, crust.Node, crust.Connection, crust.Connection]]:
    """Two nodes with a connection: Alice dials Bob."""
    async with node(**client or {}) as alice, node(**server or {}) as bob:
        ours = await soon(alice.connect(await bob.contact()))
        theirs = await soon(anext(bob))
        yield alice, bob, ours, theirs


class Proxy:
    """A TCP proxy in front of a port: it can reset, hold, lose, and be switched off.

    Attributes:
        port: where it listens.
        accepted: connections so far.
    """

    def __init__(self, upstream: int = 0, host: str = "127.0.0.1") -> None:
        self.upstream = upstream
        self._host = host
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.port = 0
        self.accepted = 0
        self.lossy = False
        self.kill_after: int | None = None  # bytes towards the upstream
        self.on_accept: Callable[[], None] | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Refuse connections from now on, and reset those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    async def restart(self) -> None:
        """Listen again on the same port."""
        self._server = await asyncio.start_server(self._serve, self._host, self.port)

    def reset(self) -> None:
        """End every connection with RST; what was under way is lost."""
        for writer in list(self._writers):
            sock = writer.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def hold(self, *, held: bool = True) -> None:
        """Forward nothing for the time being."""
        (self._open.clear if held else self._open.set)()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.accepted += 1
        if self.on_accept is not None:
            self.on_accept()
        try:
            their_reader, their_writer = await asyncio.open_connection(self._host, self.upstream)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)
            return
        self._writers.add(their_writer)
        try:
            await asyncio.gather(
                self._forward(reader, their_writer, counted=True), self._forward(their_reader, writer, counted=False)
            )
        except asyncio.CancelledError:
            pass
        finally:
            for end in (writer, their_writer):
                end.transport.abort()
                self._writers.discard(end)
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                if self.lossy:
                    continue
                passed += len(data)
                if counted and self.kill_after is not None and passed > self.kill_after:
                    self.reset()
                    return
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            if writer.can_write_eof():
                writer.write_eof()


@contextlib.asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that is no node; yields its port."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await answer(reader, writer)
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def unused_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def elapsed_below(seconds: float) -> Iterator[None]:
    """What happens inside does not take longer."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Tasks and descriptors are as before."""
    loop = asyncio.get_running_loop()
    # What the loop itself opens once and keeps: threads, and a spare descriptor (libuv).
    await loop.run_in_executor(None, int)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()
    tasks, descriptors = asyncio.all_tasks(), open_descriptors()
    yield
    await eventually(lambda: asyncio.all_tasks() <= tasks and open_descriptors() <= descriptors)
