"""The router of `portmap_router` behind a UDP socket on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from crust.net.clock import monotonic
from crust.net.interfaces import Gateway
from tests.portmap_router import Router

LOOPBACK = Gateway("127.0.0.1", "lo")


class UdpRouter(asyncio.DatagramProtocol):
    """A `Router` behind a socket."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.silent = False
        self.mangle: Callable[[bytes], bytes] = lambda data: data
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    @property
    def port(self) -> int:
        return int(self.transport.get_extra_info("sockname")[1])

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = None if self.silent else self.router.answer(data, monotonic())
        if reply is not None:
            self.transport.sendto(self.mangle(reply), addr)


@contextlib.asynccontextmanager
async def udp_router(**options: Any) -> AsyncIterator[UdpRouter]:
    router = Router(started_at=monotonic() - 1000, **options)
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_datagram_endpoint(lambda: UdpRouter(router), local_addr=("127.0.0.1", 0))
    try:
        yield protocol
    finally:
        protocol.transport.close()
