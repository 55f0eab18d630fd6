"""Sockets on hosts of a lab, for tests: the fixture `datagrams` opens them, and closes them in the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from crust.testing.natlab import Host

Endpoint = tuple[str, int]


class Datagrams(asyncio.DatagramProtocol):
    """A UDP socket with an inbox."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[tuple[bytes, Endpoint]] = asyncio.Queue()

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        self.inbox.put_nowait((data, address[:2]))

    @classmethod
    async def open(cls, host: Host, port: int = 0) -> Datagrams:
        made = await host.socket(socket.AF_INET6 if ":" in host.address else socket.AF_INET)
        made.bind((host.address, port))
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(cls, sock=made)
        protocol.transport = transport
        return protocol

    @property
    def endpoint(self) -> Endpoint:
        host, port = self.transport.get_extra_info("sockname")[:2]
        return host, port

    def send(self, data: bytes, target: Endpoint) -> None:
        self.transport.sendto(data, target)

    async def receive(self) -> tuple[bytes, Endpoint]:
        async with asyncio.timeout(5):
            return await self.inbox.get()

    async def seen_by(self, other: Datagrams) -> Endpoint:
        """Our outside endpoint, as another socket sees it."""
        self.send(b"who am I", other.endpoint)
        data, sender = await other.receive()
        assert data == b"who am I"
        return sender


OpenDatagrams = Callable[..., Awaitable[Datagrams]]
