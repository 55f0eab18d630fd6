"""Connections to the nodes named in `Config.bootstrap`: made at the start, kept, made again when lost."""

from __future__ import annotations

import asyncio
import contextlib
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
_WIDE_SECONDS: Final = 0.5
_WIDEN_AGAIN: Final = 60.0


class Bootstrap:
    """Keeps connections to known nodes.

    Args:
        core: the node's centre.
        contacts: whom to stay connected to.
        connect: dials one of them, within some seconds.
        connected: called with each connection that comes up.
        widen: gives a connection paths over the other IP version, where there is one.
    """

    def __init__(
        self,
        core: Core,
        contacts: Sequence[Contact],
        connect: Callable[[Contact, float], Awaitable[Connection]],
        connected: Callable[[Connection], None],
        widen: Callable[[Connection], Awaitable[None]],
    ) -> None:
        self._core = core
        self._contacts = list(contacts)
        self._connect = connect
        self._connected = connected
        self._widen = widen
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
                pause = _PAUSE_FIRST
                await self._hold(contact, connection)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads reconnections
            pause = min(2 * pause, _PAUSE_MOST)

    async def _hold(self, contact: Contact, connection: Connection) -> None:
        """Until a connection ends, see that it has paths over both IP versions."""
        ended = self._core.loop.create_task(connection.wait_ended())
        try:
            while not ended.done():
                widening = self._core.loop.create_task(self._hold_wide(connection))
                try:
                    # Whoever waits for us wants both outside addresses, if the second one is not far behind.
                    await asyncio.wait((widening,), timeout=None if self._tried[contact].is_set() else _WIDE_SECONDS)
                    self._tried[contact].set()
                    await asyncio.wait((widening,))
                    await asyncio.wait((ended,), timeout=_WIDEN_AGAIN)
                finally:
                    widening.cancel()
        finally:
            ended.cancel()

    async def _hold_wide(self, connection: Connection) -> None:
        with contextlib.suppress(CrustError, OSError):
            await self._widen(connection)

    def close(self) -> None:
        """Stop keeping them."""
        for task in self._tasks:
            task.cancel()
