"""Connecting from a port that a listener shares, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Iterator

import pytest

from crust.net.tcp import ReadBuffer, TcpStream, connect_tcp, share_port

EVERY_LOOP = True
HOST = "127.0.0.1"


@contextlib.contextmanager
def listening(backlog: int = 8) -> Iterator[tuple[str, int]]:
    with socket.socket() as sock:
        share_port(sock)
        sock.bind((HOST, 0))
        sock.listen(backlog)
        yield sock.getsockname()


async def test_source_port_is_that_of_the_listener() -> None:
    with listening() as own, listening() as there, contextlib.closing(await connect_tcp(*there, own)) as made:
        assert made.getsockname() == own
        assert made.getpeername() == there


async def test_any_port() -> None:
    with listening() as there, contextlib.closing(await connect_tcp(*there, None)) as made:
        assert made.getpeername() == there


async def test_refused() -> None:
    with listening() as own:
        with listening() as there:
            pass
        with pytest.raises(ConnectionRefusedError):
            await connect_tcp(*there, own, 5.0)


async def test_silence_is_given_up() -> None:
    # Connections that nobody accepts fill the queue; from then on the kernel drops what asks for one.
    with listening(backlog=0) as there, contextlib.ExitStack() as full:
        with contextlib.suppress(TimeoutError):
            for _ in range(8):
                full.enter_context(contextlib.closing(await connect_tcp(*there, None, 0.1)))
        with pytest.raises(TimeoutError):
            await connect_tcp(*there, None, 0.1)


async def test_cancelled() -> None:
    with listening(backlog=0) as there, contextlib.ExitStack() as full:
        with contextlib.suppress(TimeoutError):
            for _ in range(8):
                full.enter_context(contextlib.closing(await connect_tcp(*there, None, 0.1)))
        connecting = asyncio.create_task(connect_tcp(*there, None))
        await asyncio.wait((connecting,), timeout=0.05)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting


async def test_called_off_at_whatever_moment() -> None:
    """Nothing is left over for the event loop to complain about."""
    with listening() as there:
        pass
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    for turns in range(12):
        connecting = asyncio.create_task(connect_tcp(*there, None))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises((asyncio.CancelledError, ConnectionRefusedError)):
            await connecting
        del connecting
        gc.collect()
    assert complaints == []


class Opened:
    """Knows when a stream is gone."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def stream_opened(self) -> None:
        pass

    def stream_received(self, data: memoryview) -> int:
        return len(data)

    def stream_ended(self) -> None:
        pass

    def stream_writable(self) -> None:
        pass

    def stream_lost(self, error: Exception | None) -> None:
        self.lost.set_result(None)


async def test_reset_leaves_the_pair_of_addresses_free() -> None:
    loop = asyncio.get_running_loop()
    with listening() as own, listening() as there:
        for _ in range(3):  # each from the same port to the same address
            consumer = Opened()
            stream = TcpStream(ReadBuffer(loop), consumer)
            sock = await connect_tcp(*there, own)
            await loop.create_connection(lambda stream=stream: stream, sock=sock)
            stream.reset()
            await consumer.lost
            assert stream.closed
            stream.reset()  # once more does nothing
