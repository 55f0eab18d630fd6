"""The other process of `crust demo`: a node that takes connections and does as it is told over pipes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crust
from crust.bench.process import run as run_worker
from crust.bench.process import serve
from crust.cli.demo_folder import tree_hash
from crust.cli.demo_proof import export
from crust.node.transfer import STREAM_NAME, receive_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crust.types import Transport

__all__ = ["config"]


def config(rendezvous: str | None, transport: Transport | None = None) -> crust.Config:
    """How the nodes of the demo are set up: by way of a rendezvous, or for the loopback interface alone.

    Nothing that would look for other machines is on.
    """
    options: dict[str, Any] = {} if transport is None else {"transports": [transport]}
    if rendezvous is None:
        return crust.Config(listen=["127.0.0.1:0"], lan=False, port_mapping=False, punch=False, relay=False, **options)
    return crust.Config(bootstrap=[rendezvous], lan=False, port_mapping=False, **options)


class _Ben:
    """The other process: a node that takes one connection and does as it is told."""

    def __init__(self) -> None:
        self._node: crust.Node | None = None
        self._connection: crust.Connection | None = None

    async def do(self, what: str, arguments: dict[str, Any]) -> Any:
        """Run one command."""
        commands: dict[str, Callable[..., Awaitable[Any]]] = {
            "open": self._open,
            "accept": self._accept,
            "drain": self._drain,
            "receive": self._receive,
            "hash": self._hash,
            "take": self._take,
            "export": self._export,
        }
        return await commands[what](**arguments)

    async def _open(self, rendezvous: str | None) -> dict[str, str]:
        self._node = crust.Node(config=config(rendezvous))
        await self._node.start()
        await self._node.bootstrapped()
        return {"id": str(self._node.id), "contact": str(await self._node.contact())}

    async def _accepted(self) -> crust.Connection:
        if self._connection is None:
            assert self._node is not None
            self._connection = await anext(self._node)
        return self._connection

    async def _accept(self) -> None:
        """Take the connection that everything but `drain` uses."""
        await self._accepted()

    async def _drain(self, size: int) -> None:
        """Take another connection, and from it messages of so many bytes in all; answer the last."""
        assert self._node is not None
        connection = await anext(self._node)
        while size > 0:
            size -= len((await connection.receive()).data)
        await connection.send(b"done")

    async def _receive(self, into: str) -> None:
        connection = await self._accepted()
        stream = await anext(connection.streams())
        assert stream.name == STREAM_NAME
        os.mkdir(into)
        await receive_files(connection, stream, into)

    async def _hash(self, folder: str) -> str:
        return await asyncio.to_thread(lambda: tree_hash(Path(folder), os.listdir(folder)))

    async def _take(self, count: int) -> None:
        """Receive bulk messages; answer an urgent one with the number of bytes that have arrived before it."""
        connection = await self._accepted()
        arrived = 0
        while count:
            message = await connection.receive()
            if message.priority is crust.Priority.BULK:
                arrived += len(message.data)
                count -= 1
            else:
                await connection.send(b"%d" % arrived, priority=message.priority)

    async def _export(self, ada: str, folder: str) -> None:
        """Receive a message, and write down what proves that Ada sent it."""
        connection = await self._accepted()
        await export(await connection.receive(), crust.PeerId.parse(ada), Path(folder))


if __name__ == "__main__":
    run_worker(serve(_Ben().do))
