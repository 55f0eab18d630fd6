"""Accepting peers: everybody who has the contact, or only those that `--from` names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from crust.errors import CrustError
from crust.node.transfer.endpoint import end_tasks

if TYPE_CHECKING:
    from crust.crypto.keys import PeerId
    from crust.node.connection import Connection
    from crust.node.incoming import Incoming
    from crust.node.node import Node

__all__ = ["Peers"]


class Peers:
    """Hands each accepted connection to a function, in a task of its own.

    Args:
        node: started.
        accepted: whom to accept; the others are refused before anything is shown to them. None: everybody.
    """

    def __init__(self, node: Node, accepted: frozenset[PeerId] | None) -> None:
        self._node = node
        self._accepted = accepted
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, handle: Callable[[Connection], Awaitable[None]]) -> None:
        """Accept until the node closes or this is cancelled. An error of `handle` ends only that connection's task.

        Raises:
            Exception: what `handle` raised, if it is none of Crust's errors.
        """
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        acceptor = asyncio.ensure_future(self._accept(handle, failed))
        try:
            await asyncio.wait((acceptor, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            await acceptor
        finally:
            failed.cancel()
            # Each says goodbye to its peer, while the node is still there.
            await end_tasks(acceptor, *self._tasks)

    async def _accept(self, handle: Callable[[Connection], Awaitable[None]], failed: asyncio.Future[None]) -> None:
        if self._accepted is None:
            async for connection in self._node:
                self._start(self._run(handle(connection), failed))
        else:
            async for incoming in self._node.incoming():
                if incoming.peer in self._accepted:
                    self._start(self._run(self._admit(incoming, handle), failed))
                else:
                    incoming.refuse()

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _admit(self, incoming: Incoming, handle: Callable[[Connection], Awaitable[None]]) -> None:
        await handle(await incoming.accept())

    async def _run(self, work: Awaitable[None], failed: asyncio.Future[None]) -> None:
        try:
            with contextlib.suppress(CrustError):
                await work
        except Exception as error:  # a fault of ours: it must not pass unseen in a task
            if not failed.done():
                failed.set_exception(error)
