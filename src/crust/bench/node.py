"""The rows of Crust: nodes as any program would use them, by the public face only."""

from __future__ import annotations

import asyncio
from typing import Any

from crust import Config, ConnectError, Connection, Node
from crust.bench.process import UnsupportedError
from crust.bench.rows import DONE, Role, Row
from crust.types import Transport

__all__ = ["CrustRow"]

_CONNECT_SECONDS = 5.0
_SENT = "udp.datagrams_sent"


class CrustRow(Row):
    """One node with a listener for each address; one dialling node for all links, and one for each held link.

    Args:
        transport: "tcp" or "utp", the only one that the nodes may use.
        limits: further fields of `crust.Config`, the same on both sides.

    Raises:
        UnsupportedError: this version of Crust has no such field.
    """

    def __init__(self, transport: Transport, **limits: Any) -> None:
        super().__init__()
        missing = limits.keys() - set(Config.__struct_fields__)
        if missing:
            raise UnsupportedError(f"this version of Crust has no setting {', '.join(sorted(missing))}")
        self._transport = transport
        self._limits = limits
        self._nodes: list[Node] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._dialler: Node | None = None

    async def serve(self, role: Role, *, count: int, listeners: int) -> list[Any]:
        """Open nodes, each with an identity of its own, that listen on the loopback interface."""
        addresses = []
        for _ in range(listeners):
            node = await self._open(["127.0.0.1:0"])
            self._start(self._accept(node, role, count))
            addresses.append(str(await node.contact()))
        return addresses

    async def dial(self, address: Any, *, framed: bool = False) -> _Link:
        """Connect by contact.

        Raises:
            UnsupportedError: this version of Crust cannot connect by this transport.
        """
        if self._dialler is None:
            self._dialler = await self._open([])
        return _Link(await self._connect(self._dialler, address))

    async def bulk(self, address: Any, count: int) -> float | None:
        """Send `count` messages of 64 KiB; return the seconds until the far side had them all."""
        if self._dialler is None:
            self._dialler = await self._open([])
        before = self._dialler.stats[_SENT]
        seconds = await super().bulk(address, count)
        self.packets = (self._dialler.stats[_SENT] - before) or None
        return seconds

    async def dial_to_hold(self, address: Any, *, one_identity: bool) -> object:
        """Connect from the one dialling node, or from a new one (two nodes share one connection at most)."""
        if one_identity:
            return await self.dial(address)
        return await self._connect(await self._open([]), address)

    async def close(self) -> None:
        """Close all nodes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.held.clear()
        nodes = [*self._nodes, self._dialler] if self._dialler else self._nodes
        await asyncio.gather(*(node.close() for node in nodes))
        self._nodes, self._dialler = [], None

    async def _open(self, listen: list[str]) -> Node:
        config = Config(
            listen=listen,
            transports=[self._transport],
            network_name="crust bench",
            relay=False,
            punch=False,
            port_mapping=False,
            lan=False,
            **self._limits,
        )
        node = Node(config=config)
        await node.start()
        self._nodes.append(node)
        return node

    async def _connect(self, node: Node, address: str) -> Connection:
        try:
            connection = await node.connect(address, timeout=_CONNECT_SECONDS)
        except ConnectError as error:
            if self._transport == "tcp":
                raise
            raise UnsupportedError(f"no {self._transport} connection: {error}") from error
        path = connection.path
        if path is None or path.transport != self._transport:
            raise UnsupportedError(f"asked for {self._transport}, got the path {path}")
        return connection

    def _start(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, node: Node, role: Role, count: int) -> None:
        async for connection in node:
            if role == "hold":
                self.held.append(connection)
            elif role == "echo":
                self._start(_echo(connection))
            else:
                self._start(_count(connection, count))


class _Link:
    """The dialling side of a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.send = connection.send

    async def receive(self) -> bytes:
        return (await self._connection.receive()).data

    async def close(self) -> None:
        await self._connection.close()


async def _echo(connection: Connection) -> None:
    async for message in connection:
        await connection.send(message.data)


async def _count(connection: Connection, count: int) -> None:
    async for message in connection:
        assert message.data
        count -= 1
        if not count:
            await connection.send(DONE)
