"""What every row of the benchmark has in common: links, roles, and the measuring loops on the dialling side."""

from __future__ import annotations

import asyncio
import statistics
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from crust.bench import BULK_MESSAGE_BYTES, PING_BYTES, SMALL_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DONE", "Link", "Role", "Row"]

# What a listener does with what arrives: count bytes or messages and answer `DONE` after the last one; send each
# message back; or keep the connection and do nothing.
Role = Literal["bulk", "messages", "echo", "hold"]

DONE: Final = b"done"

_HOLD_AT_ONCE: Final = 8  # handshakes under way at once while idle connections are opened; more would only raise peaks


class Link(Protocol):
    """One connection, as its dialling side uses it."""

    async def send(self, data: bytes) -> None:
        """Send one message; wait while the way is congested."""

    async def receive(self) -> object:
        """Wait for the next message or, on raw rows, for the next bytes."""

    async def close(self) -> None:
        """End the connection."""


class Row(ABC):
    """One way to carry bytes between two processes. The same class serves in both workers.

    Attributes:
        held: what `hold` opened.
        packets: datagrams that the last `bulk` sent; None on rows that are no datagrams.
    """

    def __init__(self) -> None:
        self.held: list[object] = []
        self.packets: int | None = None

    @abstractmethod
    async def serve(self, role: Role, *, count: int, listeners: int) -> list[Any]:
        """Open listeners.

        Args:
            role: what each does with its connections.
            count: messages to take before answering `DONE` (roles "bulk" and "messages").
            listeners: how many.

        Returns:
            One address for each, in a form that JSON and `dial` take.
        """

    @abstractmethod
    async def dial(self, address: Any, *, framed: bool = False) -> Link:
        """Open a new connection.

        Args:
            address: from `serve`.
            framed: whether single messages must be told apart; it matters to raw rows only.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close all that `serve` and `hold` opened."""

    async def bulk(self, address: Any, count: int) -> float | None:
        """Send `count` messages of 64 KiB; return the seconds until the far side had them all."""
        return await self._push(address, count, BULK_MESSAGE_BYTES, framed=False)

    async def messages(self, address: Any, count: int) -> float | None:
        """Send `count` messages of 100 B, one awaited send each; return the seconds until they all had arrived."""
        return await self._push(address, count, SMALL_MESSAGE_BYTES, framed=True)

    async def rtt(self, address: Any, count: int) -> float | None:
        """Send 64 B and await their echo, `count` times; return the median in seconds."""
        link = await self.dial(address)
        data = bytes(PING_BYTES)
        for _ in range(count // 10):  # warm-up
            await link.send(data)
            await link.receive()
        times = []
        for _ in range(count):
            start = time.perf_counter()
            await link.send(data)
            await link.receive()
            times.append(time.perf_counter() - start)
        await link.close()
        return statistics.median(times)

    async def connect(self, address: Any, count: int) -> float | None:
        """Open `count` connections, one after the other; return the median of the seconds to the first echo."""
        times = []
        for i in range(count + 3):
            start = time.perf_counter()
            link = await self.dial(address)
            await link.send(b"x")
            await link.receive()
            if i >= 3:  # the first ones pay for imports and cold caches
                times.append(time.perf_counter() - start)
            await link.close()
        return statistics.median(times)

    async def hold(self, addresses: Sequence[Any], count: int, *, one_identity: bool) -> None:
        """Open connections that stay idle until `close`.

        Args:
            addresses: where to, in turn.
            count: how many.
            one_identity: all from one endpoint, or each from its own; it matters to the rows of Crust only.
        """
        for first in range(0, count, _HOLD_AT_ONCE):
            some = range(first, min(first + _HOLD_AT_ONCE, count))
            dials = (self.dial_to_hold(addresses[i % len(addresses)], one_identity=one_identity) for i in some)
            self.held += await asyncio.gather(*dials)

    async def dial_to_hold(self, address: Any, *, one_identity: bool) -> object:
        """Open one connection that stays idle; return what keeps it alive."""
        return await self.dial(address)

    async def _push(self, address: Any, count: int, size: int, *, framed: bool) -> float:
        link = await self.dial(address, framed=framed)
        data = bytes(size)
        start = time.perf_counter()
        for _ in range(count):
            await link.send(data)
        await link.receive()
        elapsed = time.perf_counter() - start
        await link.close()
        return elapsed
