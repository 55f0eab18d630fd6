"""The bare driver over loopback, without another implementation."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.events import EndReason
from crust.testing.bare_utp import BareEndpoint


async def test_both_ways_and_an_orderly_end() -> None:
    one, other = BareEndpoint(), BareEndpoint()
    there, back = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(1_000_000)

    async def serve() -> bytes:
        connection = await other.accepted.get()
        writing = asyncio.create_task(connection.write(back))
        got = await connection.read(len(there) + 1)
        await writing
        connection.close()
        assert (await connection.closed()).reason is EndReason.CLOSED
        return got

    async with asyncio.timeout(50):
        serving = asyncio.create_task(serve())
        connection = await one.connect(other.address)
        await connection.write(there)
        assert await connection.read(len(back)) == back
        connection.close()
        assert await serving == there
        assert await connection.read(1) == b""
        assert (await connection.closed()).reason is EndReason.CLOSED
    one.close()
    other.close()


async def test_nobody_answers() -> None:
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    endpoint = BareEndpoint()
    dial = asyncio.create_task(endpoint.connect(silent.getsockname()))
    await asyncio.sleep(0)
    endpoint.close()  # aborts it
    with pytest.raises(ConnectionError, match="does not answer"):
        await dial
    silent.close()


async def test_abort_is_an_error_to_the_peer() -> None:
    one, other = BareEndpoint(UtpConfig(stall_timeout=5.0)), BareEndpoint()
    async with asyncio.timeout(20):
        connection = await one.connect(other.address)
        accepted = await other.accepted.get()
        await connection.write(b"x")
        assert await accepted.read(1) == b"x"
        connection.engine.abort()
        connection.pump()
        with pytest.raises(ConnectionError):
            await accepted.read(1)
        with pytest.raises(ConnectionError):
            await accepted.write(bytes(1 << 25))
    one.close()
    other.close()


async def test_strangers_datagrams_are_dropped() -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    endpoint = BareEndpoint()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for datagram in (b"", b"short", bytes(20), b"\x42" + bytes(19), b"\x41\x01" + bytes(18), b"\x21" + bytes(30)):
        sender.sendto(datagram, endpoint.address)
    other = BareEndpoint()
    async with asyncio.timeout(20):
        await other.connect(endpoint.address)
        assert await endpoint.accepted.get()
    assert endpoint.accepted.empty()
    assert errors == []
    for one in (endpoint, other, sender):
        one.close()
