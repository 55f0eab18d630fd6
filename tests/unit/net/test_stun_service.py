"""The STUN service on loopback: our own client, strangers, limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from crust.errors import ConfigError
from crust.net import stun_service
from crust.net.stun import StunConnection, StunSocket
from crust.net.stun_probe import probe_tcp, probe_udp
from crust.net.stun_service import StunService
from crust.proto.nat.behaviour import Filtering, NatBehaviour
from crust.proto.nat.stun import StunSucceeded
from crust.wire.stun import Address, MessageClass, StunMessage, serialize_stun

EVERY_LOOP = True

REQUEST = serialize_stun(StunMessage(MessageClass.REQUEST, bytes(12)))


@contextlib.asynccontextmanager
async def serving(*entries: str, counts: Counter[str] | None = None) -> AsyncIterator[StunService]:
    counted = Counter() if counts is None else counts
    service = StunService(lambda name: counted.update([name]))
    await service.open(entries)
    try:
        yield service
    finally:
        service.close()


async def ask_udp(server: Address, host: str = "127.0.0.1") -> StunSucceeded:
    sock = await StunSocket.open(host)
    try:
        answer = await sock.ask(server)
        assert isinstance(answer, StunSucceeded)
        assert answer.observed == sock.local
        return answer
    finally:
        sock.close()


async def ask_tcp(server: Address, host: str = "127.0.0.1") -> StunSucceeded:
    made = await StunConnection.ask(server, (host, 0), timeout=10)
    made.close()
    assert isinstance(made.answer, StunSucceeded)
    assert made.answer.observed == made.local
    return made.answer


@pytest.mark.parametrize(("entry", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")])
async def test_one_address(entry: str, host: str) -> None:
    counts: Counter[str] = Counter()
    async with serving(entry, counts=counts) as service:
        [server] = service.addresses
        assert server[0] == host
        answers = [await ask_udp(server, host), await ask_tcp(server, host)]
        assert [answer.message.other_address for answer in answers] == [None, None]
    assert counts == {"stun.answered": 2}


async def test_two_addresses_are_an_rfc_5780_server() -> None:
    async with serving("127.0.0.1:0", "127.0.0.2:0") as service:
        [server, other] = service.addresses
        assert other == ("127.0.0.2", server[1])
        assert (await ask_udp(server)).message.other_address == ("127.0.0.2", server[1] + 1)
        behaviour = NatBehaviour("udp")
        sightings = await probe_udp("127.0.0.1", [server], behaviour)
        assert {s.outcome for s in sightings} == {"answered"}
        assert len({s.observer for s in sightings}) == 4
        assert behaviour.verdict.filtering is Filtering.ENDPOINT_INDEPENDENT
        assert {s.outcome for s in await probe_tcp("127.0.0.1", [server], NatBehaviour("tcp"), timeout=5)} == {
            "answered"
        }


async def test_addresses_that_do_not_belong_together() -> None:
    async with serving("127.0.0.1:0", "[::1]:0", "127.0.0.1:0") as service:
        assert [host for host, _ in service.addresses] == ["127.0.0.1", "::1", "127.0.0.1"]
        assert (await ask_udp(service.addresses[0])).message.other_address is None


async def test_several_questions_over_one_connection() -> None:
    async with serving("127.0.0.1:0") as service:
        reader, writer = await asyncio.open_connection(*service.addresses[0])
        for chunk in (REQUEST * 2, REQUEST[:7], REQUEST[7:]):
            writer.write(chunk)
        async with asyncio.timeout(10):
            assert len(await reader.readexactly(96)) == 96
        writer.close()


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", REQUEST[:4] + b"\xff" * 16, REQUEST * 100])
async def test_who_does_not_speak_stun_or_asks_too_much_is_hung_up_on(sent: bytes) -> None:
    async with serving("127.0.0.1:0") as service:
        reader, writer = await asyncio.open_connection(*service.addresses[0])
        writer.write(sent)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert len(await reader.read()) <= 40 * 32
        writer.close()


async def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun_service, "_IDLE_SECONDS", 0.05)
    async with serving("127.0.0.1:0") as service:
        reader, writer = await asyncio.open_connection(*service.addresses[0])
        writer.write(REQUEST[:10])
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_connections_of_one_host_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun_service, "_CONNECTIONS_OF_HOST", 2)
    async with serving("127.0.0.1:0") as service:
        kept = [await asyncio.open_connection(*service.addresses[0]) for _ in range(2)]
        for _, writer in kept:
            writer.write(REQUEST)
        async with asyncio.timeout(10):
            for reader, _ in kept:
                await reader.readexactly(32)
            reader, writer = await asyncio.open_connection(*service.addresses[0])
            assert await reader.read() == b""
        for _, each in [*kept, (reader, writer)]:
            each.close()


async def test_the_oldest_connection_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun_service, "_CONNECTIONS", 1)
    async with serving("127.0.0.1:0") as service:
        old_reader, old_writer = await asyncio.open_connection(*service.addresses[0])
        reader, writer = await asyncio.open_connection(*service.addresses[0])
        writer.write(REQUEST)
        async with asyncio.timeout(10):
            assert len(await reader.readexactly(32)) == 32
            assert await old_reader.read() == b""
        for each in (writer, old_writer):
            each.close()


async def test_a_port_that_is_taken() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        service = StunService(lambda _: None)
        with pytest.raises(ConfigError, match=f"stun_service: cannot listen on 127.0.0.1 at port {port}"):
            await service.open([f"127.0.0.1:{port}"])
        assert service.addresses == []


async def test_strangers_are_counted() -> None:
    counts: Counter[str] = Counter()
    async with serving("127.0.0.1:0", counts=counts) as service:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"hello", service.addresses[0])
        await ask_udp(service.addresses[0])
    assert counts == {"stun.not_answered": 1, "stun.answered": 1}
