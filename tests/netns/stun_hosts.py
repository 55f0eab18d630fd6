"""STUN servers on hosts of a lab, run in the process of the test."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from crust.proto.nat.stun import StunServer, StunServerStream
from crust.testing.natlab import Host
from crust.wire.stun import Address

PORTS = (3478, 3479)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, service: StunService, endpoint: tuple[int, int]) -> None:
        self._service, self._endpoint = service, endpoint

    def connection_made(self, transport: Any) -> None:
        self._service.transports[self._endpoint] = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self._service.server.respond(data, addr[:2], endpoint=self._endpoint)
        if reply is not None:
            self._service.transports[reply.endpoint].sendto(reply.data, reply.destination)


class _Stream(asyncio.Protocol):
    def __init__(self, service: StunService, endpoint: tuple[int, int]) -> None:
        self._service, self._endpoint = service, endpoint

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        source = transport.get_extra_info("peername")[:2]
        self._stream = StunServerStream(self._service.server, source, endpoint=self._endpoint)

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._stream.receive_data(data))


class StunService:
    """One server on a host: on two addresses and two ports where it has them (RFC 5780), else on one."""

    def __init__(self, server: StunServer, address: Address) -> None:
        self.server = server
        self.address = address
        self.transports: dict[tuple[int, int], Any] = {}
        self._servers: list[Any] = []

    @classmethod
    async def open(cls, host: Host, *, ipv6: bool = False, port: int = PORTS[0]) -> StunService:
        hosts = [each for each in host.addresses if (":" in each) == ipv6]
        endpoints: dict[tuple[int, int], Address] = {(0, 0): (hosts[0], port)}
        if len(hosts) > 1:
            endpoints = {(i, j): (hosts[i], PORTS[j]) for i in (0, 1) for j in (0, 1)}
        made = cls(StunServer(endpoints if len(hosts) > 1 else None), endpoints[0, 0])
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        for endpoint, address in endpoints.items():
            udp = await host.socket(family, socket.SOCK_DGRAM)
            udp.bind(address)
            await loop.create_datagram_endpoint(lambda e=endpoint: _Datagrams(made, e), sock=udp)  # type: ignore[misc]
            tcp = await host.socket(family, socket.SOCK_STREAM)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind(address)
            listening = await loop.create_server(lambda e=endpoint: _Stream(made, e), sock=tcp)  # type: ignore[misc]
            made._servers.append(listening)
        return made

    def close(self) -> None:
        for transport in self.transports.values():
            transport.close()
        for server in self._servers:
            server.close()
