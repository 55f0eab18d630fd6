"""Connections to the nodes named in `Config.bootstrap`: made at the start, kept, made again when lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from crust.errors import CrustError
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.events import BootstrapFailed
from crust.wire.contact import Contact

__all__ = ["Bootstrap"]

_PAUSE_FIRST: Final = 1.0
_PAUSE_MOST: Final = 60.0
_DIAL_TIMEOUT: Final = 10.0


class Bootstrap:
    """Keeps connections to known nodes.

    Args:
        core: the node's centre.
        contacts: whom to stay connected to.
        connect: dials one of them, within some seconds.
        connected: called with each connection that comes up.
    """

    def __init__(
        self,
        core: Core,
        contacts: Sequence[Contact],
        connect: Callable[[Contact, float], Awaitable[Connection]],
        connected: Callable[[Connection], None],
    ) -> None:
        self._core = core
        self._contacts = list(contacts)
        self._connect = connect
        self._connected = connected
        self._tasks: list[asyncio.Task[None]] = []
        self._tried: dict[Contact, asyncio.Event] = {contact: asyncio.Event() for contact in self._contacts}

    def start(self) -> None:
        """Dial all of them side by side, in random order."""
        # Not a secret: it only spreads the load over the nodes.
        random.shuffle(self._contacts)
        self._tasks = [self._core.loop.create_task(self._keep(contact)) for contact in self._contacts]

    async def tried(self) -> None:
        """Wait until each of them is connected or has failed once."""
        for event in self._tried.values():
            await event.wait()

    async def _keep(self, contact: Contact) -> None:
        pause = _PAUSE_FIRST
        while True:
            try:
                connection = await self._connect(contact, _DIAL_TIMEOUT)
            except (CrustError, OSError) as error:
                self._core.stats.count("bootstrap.failed")
                self._core.emit(BootstrapFailed(str(contact.id), str(error)))
                self._tried[contact].set()
            else:
                self._connected(connection)
                self._tried[contact].set()
                pause = _PAUSE_FIRST
                await connection.wait_ended()
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads reconnections
            pause = min(2 * pause, _PAUSE_MOST)

    def close(self) -> None:
        """Stop keeping them."""
        for task in self._tasks:
            task.cancel()
