"""Asking STUN servers over loopback: answers, silence, refusals, and servers that would send us elsewhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crust.net.stun import StunConnection, StunSocket, resolve_server
from crust.net.stun_probe import _other, probe_tcp, probe_udp
from crust.proto.nat.behaviour import Allocation, Filtering, Mapping, NatBehaviour
from crust.proto.nat.stun import StunFailed, StunFailure, StunServer, StunServerStream, StunSucceeded
from crust.wire.stun import Address, MessageClass, StunMessage

HOSTS = ("127.0.0.1", "127.0.0.2")


class Service:
    """A server with two hosts and two ports; `mute` leaves out what would come from other addresses than were asked."""

    def __init__(self) -> None:
        self.transports: dict[tuple[int, int], Any] = {}
        self.mute: set[tuple[int, int]] = set()
        self.server = StunServer()
        self.address: Address = ("", 0)
        self.listening: list[asyncio.Server] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        ports = []
        with socket.socket() as one, socket.socket() as two:
            for probe in (one, two):
                probe.bind((HOSTS[0], 0))
                ports.append(probe.getsockname()[1])
        endpoints = {(i, j): (HOSTS[i], ports[j]) for i in (0, 1) for j in (0, 1)}
        self.server, self.address = StunServer(endpoints), endpoints[0, 0]
        for endpoint, address in endpoints.items():
            await loop.create_datagram_endpoint(lambda e=endpoint: _Udp(self, e), local_addr=address)
            self.listening.append(await loop.create_server(lambda e=endpoint: _Tcp(self, e), *address))

    def close(self) -> None:
        for transport in self.transports.values():
            transport.close()
        for server in self.listening:
            server.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, service: Service, endpoint: tuple[int, int]) -> None:
        self.service, self.endpoint = service, endpoint

    def connection_made(self, transport: Any) -> None:
        self.service.transports[self.endpoint] = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self.service.server.respond(data, addr, endpoint=self.endpoint)
        moved = reply is not None and reply.endpoint != self.endpoint
        if reply is not None and not (moved and reply.endpoint in self.service.mute):
            self.service.transports[reply.endpoint].sendto(reply.data, reply.destination)


class _Tcp(asyncio.Protocol):
    def __init__(self, service: Service, endpoint: tuple[int, int]) -> None:
        self.service, self.endpoint = service, endpoint

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.stream = StunServerStream(
            self.service.server, transport.get_extra_info("peername"), endpoint=self.endpoint
        )

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.stream.receive_data(data))


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    try:
        await made.start()
    except OSError as error:
        pytest.skip(f"no second loopback address here: {error}")
    yield made
    made.close()
    await asyncio.sleep(0)


@pytest.fixture
def closed_port() -> Address:
    with socket.socket() as probe:
        probe.bind((HOSTS[0], 0))
        found: Address = probe.getsockname()
    return found


async def test_udp_without_a_nat(service: Service) -> None:
    behaviour = NatBehaviour("udp")
    found = await probe_udp(HOSTS[0], [service.address], behaviour)
    assert [each.outcome for each in found] == ["answered"] * 4
    assert {each.observed for each in found} == {found[0].local}
    assert len({each.observer for each in found}) == 4
    verdict = behaviour.verdict
    assert (verdict.translated, verdict.mapping) == (False, Mapping.ENDPOINT_INDEPENDENT)
    assert (verdict.filtering, verdict.allocation) == (Filtering.ENDPOINT_INDEPENDENT, Allocation.PRESERVING)
    assert verdict.hairpinning is None


@pytest.mark.parametrize(
    ("mute", "filtering"),
    [
        ({(1, 1)}, Filtering.ADDRESS_DEPENDENT),
        ({(1, 1), (0, 1)}, Filtering.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
async def test_filtering_as_answers_stay_out(
    service: Service, mute: set[tuple[int, int]], filtering: Filtering
) -> None:
    service.mute = mute
    behaviour = NatBehaviour("udp")
    await probe_udp(HOSTS[0], [service.address], behaviour)
    assert behaviour.verdict.filtering is filtering


async def test_tcp_without_a_nat(service: Service, closed_port: Address) -> None:
    behaviour = NatBehaviour("tcp")
    found = await probe_tcp(HOSTS[0], [closed_port, service.address], behaviour, timeout=5)
    assert [each.outcome for each in found] == ["refused"] + ["answered"] * 4
    assert len({each.local for each in found}) == 1  # all from one port
    assert behaviour.verdict.mapping is Mapping.ENDPOINT_INDEPENDENT
    assert behaviour.verdict.filtering is Filtering.UNKNOWN


async def test_silence(closed_port: Address) -> None:
    sock = await StunSocket.open(HOSTS[0], initial_rto=0.01, transmissions=2)
    try:
        answer = await sock.ask(closed_port)
        assert isinstance(answer, StunFailed)
        assert (answer.reason, answer.transmissions) == (StunFailure.TIMEOUT, 2)
    finally:
        sock.close()
    with socket.socket() as mute:
        mute.bind((HOSTS[0], 0))
        mute.listen()
        made = await StunConnection.ask(mute.getsockname(), (HOSTS[0], 0), timeout=0.05)
        assert isinstance(made.answer, StunFailed)
        assert (made.answer.reason, made.silent) == (StunFailure.TIMEOUT, False)
        made.close()


async def test_a_server_that_hangs_up() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, HOSTS[0], 0)
    made = await StunConnection.ask(server.sockets[0].getsockname(), (HOSTS[0], 0), timeout=5)
    assert isinstance(made.answer, StunFailed)
    assert made.answer.reason is StunFailure.UNREACHABLE
    made.close()
    server.close()
    await server.wait_closed()


async def test_other_datagrams_are_kept_apart(service: Service) -> None:
    sock = await StunSocket.open(HOSTS[0])
    other = await StunSocket.open(HOSTS[0])
    try:
        other.send(b"hello", sock.local)
        assert await sock.foreign.get() == (b"hello", other.local)
        for _ in range(100):
            other.send(b"flood", sock.local)
        assert isinstance(await sock.ask(service.address), StunSucceeded)
        assert sock.foreign.qsize() <= 64
    finally:
        sock.close()
        other.close()


@pytest.mark.parametrize(
    ("other", "taken"),
    [
        (("198.51.100.9", 3479), True),
        (("198.51.100.1", 3479), False),  # the same host
        (("198.51.100.9", 3478), False),  # the same port
        (("224.0.0.1", 3479), False),
        (("255.255.255.255", 3479), False),
        (("0.0.0.0", 3479), False),
        (("127.0.0.1", 3479), False),
        (("2001:db8::1", 3479), False),
        (None, False),
    ],
)
def test_a_server_cannot_send_us_anywhere(other: Address | None, taken: bool) -> None:
    message = StunMessage(MessageClass.SUCCESS, bytes(12), other_address=other)
    server = ("198.51.100.1", 3478)
    answer = StunSucceeded(bytes(12), server, server, ("203.0.113.5", 1), message, 0.0, 0.01)
    assert (_other(answer) is not None) is taken


async def test_names_and_addresses() -> None:
    assert await resolve_server("127.0.0.1", 3478) == [("127.0.0.1", 3478)]
    assert ("127.0.0.1", 5) in await resolve_server("localhost", 5)
