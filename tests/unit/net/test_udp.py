"""UDP sockets: with and without the kernel's batches, on either event loop, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from crust.net import udp
from crust.net.udp import Features, SendOutcome, Sources, UdpSocket, bind_udp, route_info, sockaddr

EVERY_LOOP = True

PLAIN = Features(segment=False, gro=False)
NO_READER = Features(reader=False)


class Reader:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.receive_buffer = memoryview(bytearray(65_536))
        self.batches: list[tuple[bytes, int, tuple[Any, ...]]] = []
        self.refused: list[tuple[tuple[Any, ...], OSError]] = []
        self.drained = self.writable = self.crowds = 0
        self.hosts: set[bytes] = set()
        self._news = asyncio.Event()

    def udp_received(self, number: int, data: memoryview, size: int, address: tuple[Any, ...]) -> None:
        self.batches.append((bytes(data), size, address))
        self._news.set()

    def udp_received_many(self, number: int, datagrams: Sequence[memoryview], sources: Sources) -> None:
        self.crowds += 1
        for at, datagram in enumerate(datagrams):
            self.udp_received(number, datagram, len(datagram), sources.address(at))
            self.hosts.add(sources.host(at))

    def udp_drained(self) -> None:
        self.drained += 1

    def udp_writable(self, number: int) -> None:
        self.writable += 1
        self._news.set()

    def udp_refused(self, number: int, address: tuple[Any, ...], error: OSError) -> None:
        self.refused.append((address, error))
        self._news.set()

    @property
    def datagrams(self) -> list[bytes]:
        return [data[at : at + size] for data, size, _ in self.batches for at in range(0, len(data), size)]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def opened(features: Features = Features(), host: str = "127.0.0.1") -> AsyncIterator[tuple[UdpSocket, Reader]]:  # noqa: B008
    reader = Reader()
    found = UdpSocket(asyncio.get_running_loop(), bind_udp(host, 0), 3, reader, features)
    await found.start()
    try:
        yield found, reader
    finally:
        found.close()
        found.close()


FEATURES = [Features(), PLAIN, Features(gro=False), Features(segment=False), NO_READER]


@pytest.mark.parametrize("features", FEATURES)
async def test_batches_arrive_whole(features: Features) -> None:
    async with opened(features) as (one, _), opened(features) as (two, reader):
        datagrams = [bytes([number]) * 1000 for number in range(20)] + [b"short"]
        assert one.send(memoryview(b"".join(datagrams)), 1000, two.local) is SendOutcome.SENT
        await reader.until(lambda: len(reader.datagrams) == 21)
        assert reader.datagrams == datagrams
        assert {address for _, _, address in reader.batches} == {one.local}
        assert reader.drained >= 1
        if features == Features() and one.features.segment and two.features.gro:
            assert len(reader.batches) == 1


@pytest.mark.parametrize("features", FEATURES)
async def test_sizes_one_after_the_other(features: Features) -> None:
    """What was set for one batch does not cut the next."""
    async with opened(features) as (one, _), opened(features) as (two, reader):
        sent = 0
        for size, count in ((100, 5), (60_000, 1), (50, 3), (1200, 1), (1200, 2), (99, 2), (98, 1)):
            assert one.send(bytes(size * count), size, two.local) is SendOutcome.SENT
            sent += count
            await reader.until(lambda sent=sent: len(reader.datagrams) == sent)  # type: ignore[misc]
            assert [len(found) for found in reader.datagrams[-count:]] == [size] * count


async def test_many_small_ones_in_one_turn() -> None:
    async with opened() as (one, _), opened() as (two, reader):
        for number in range(100):
            one.send(bytes([number]), 1, two.local)
        await reader.until(lambda: len(reader.datagrams) == 100)
        assert reader.datagrams == [bytes([number]) for number in range(100)]


async def test_ipv6() -> None:
    try:
        bind_udp("::1", 0).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    async with opened(host="::1") as (one, _), opened(host="::1") as (two, reader):
        one.send(b"hello", 5, sockaddr(*two.local))
        await reader.until(lambda: reader.batches)
        assert reader.batches[0][2] == sockaddr(*one.local)
        assert route_info(sockaddr(*two.local), socket.AF_INET6).local == "::1"


@pytest.mark.parametrize("features", [Features(), PLAIN])
async def test_too_big(features: Features) -> None:
    async with opened(features) as (one, _), opened(features) as (two, reader):
        assert one.send(bytes(65_508), 65_508, two.local) is SendOutcome.TOO_BIG
        assert one.features.segment == features.segment
        assert one.send(b"fits", 4, two.local) is SendOutcome.SENT
        await reader.until(lambda: reader.datagrams == [b"fits"])


class FakeSocket:
    """Fails as told."""

    def __init__(self, errors: list[int | None]) -> None:
        self.errors = errors
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, address: object) -> None:
        code = self.errors.pop(0) if self.errors else None
        if code is not None:
            raise OSError(code, "as told") if code != errno.EAGAIN else BlockingIOError(code, "as told")
        self.sent.append(bytes(data))

    def setsockopt(self, *args: object) -> None:
        pass

    def close(self) -> None:
        pass


async def test_a_kernel_without_segmentation() -> None:
    async with opened() as (one, _):
        if not one.features.segment:
            pytest.skip("no UDP_SEGMENT here")
        real, one._sock = one._sock, FakeSocket([errno.EIO])  # type: ignore[assignment]
        try:
            assert one.send(b"aabbc", 2, ("127.0.0.1", 1)) is SendOutcome.SENT
            assert one._sock.sent == [b"aa", b"bb", b"c"]
            assert not one.features.segment
        finally:
            one._sock = real


async def test_datagrams_of_a_batch_too_big_for_the_interface() -> None:
    """Some kernels call it an invalid argument, when it is the size: segmentation stays."""
    async with opened() as (one, _):
        if not one.features.segment:
            pytest.skip("no UDP_SEGMENT here")
        real, one._sock = one._sock, FakeSocket([errno.EINVAL, errno.EMSGSIZE])  # type: ignore[assignment]
        try:
            assert one.send(b"aabbc", 2, ("127.0.0.1", 1)) is SendOutcome.TOO_BIG
            assert one.features.segment
        finally:
            one._sock = real


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EPERM, errno.ECONNREFUSED, errno.ENOBUFS])
async def test_errors_are_losses(code: int) -> None:
    async with opened() as (one, _):
        real, one._sock = one._sock, FakeSocket([code])  # type: ignore[assignment]
        assert one.send(b"aa", 2, ("127.0.0.1", 1)) is SendOutcome.FAILED
        one._sock = real


async def test_blocked() -> None:
    async with opened() as (one, reader), opened() as (two, arrived):
        real = one._sock
        assert real is not None

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def sendto(self, data: bytes, address: object) -> None:
                raise BlockingIOError(errno.EAGAIN, "full")

        one._wait_writable(real)
        await reader.until(lambda: reader.writable == 1)
        one._sock = Full()  # type: ignore[assignment]
        loop = asyncio.get_running_loop()
        added: list[object] = []
        one._loop = type("Loop", (), {"add_writer": lambda self, *args: added.append(args)})()
        assert one.send(b"aa", 2, two.local) is SendOutcome.BLOCKED
        assert one.send(b"aa", 2, two.local) is SendOutcome.BLOCKED
        assert len(added) == 1
        one._sock, one._loop, one._writing = real, loop, False
        assert one.send(b"aa", 2, two.local) is SendOutcome.SENT
        await arrived.until(lambda: arrived.datagrams == [b"aa"])


async def test_nobody_is_there() -> None:
    """A refusal is told while somebody waits for an answer, and reading goes on after it."""
    async with opened() as (one, reader), opened() as (two, _):
        gone = bind_udp("127.0.0.1", 0)
        address = gone.getsockname()
        gone.close()
        one.watch_refusals(True)
        one.watch_refusals(True)
        for _ in range(3):
            refusals = len(reader.refused)
            one.send(b"anybody?", 8, address)
            await reader.until(lambda refusals=refusals: len(reader.refused) > refusals)  # type: ignore[misc]
            assert reader.refused[-1][0] == address
            assert reader.refused[-1][1].errno == errno.ECONNREFUSED
            heard = len(reader.datagrams)
            two.send(b"still here", 10, one.local)
            await reader.until(lambda heard=heard: len(reader.datagrams) > heard)  # type: ignore[misc]
        one.watch_refusals(False)
        refusals = len(reader.refused)
        one.send(b"anybody?", 8, address)
        two.send(b"and now", 7, one.local)
        await reader.until(lambda: reader.datagrams[-1] == b"and now")
        assert len(reader.refused) == refusals


async def test_an_error_that_nobody_asked_for_stops_nothing() -> None:
    async with opened() as (one, reader), opened() as (two, _):
        assert one._sock is not None
        one._sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        gone = bind_udp("127.0.0.1", 0)
        address = gone.getsockname()
        gone.close()
        one.send(b"x", 1, address)
        one._sock.setsockopt(socket.IPPROTO_IP, 11, 0)
        two.send(b"y", 1, one.local)
        await reader.until(lambda: reader.datagrams == [b"y"])


async def test_closed() -> None:
    async with opened() as (one, reader):
        one.close()
        assert one.send(b"x", 1, ("127.0.0.1", 1)) is SendOutcome.FAILED
        one.watch_refusals(True)
        one.received(b"late", ("127.0.0.1", 1))
        one._readable()
        one._on_writable()
        assert reader.batches == []


async def test_closed_while_reading() -> None:
    async with opened() as (one, reader), opened() as (two, _):
        done = asyncio.Event()

        def received(*args: object) -> None:
            one.close()
            done.set()

        reader.udp_received = received  # type: ignore[method-assign]
        two.send(b"ab", 1, one.local)
        async with asyncio.timeout(10):
            await done.wait()


def test_buffers_are_raised() -> None:
    sock = bind_udp("127.0.0.1", 0)
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    udp._tune(sock)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= before
    sock.close()


def test_addresses() -> None:
    assert sockaddr("127.0.0.1", 5) == ("127.0.0.1", 5)
    assert sockaddr("0:0:0::1", 5)[:2] == ("::1", 5)
    with pytest.raises(OSError):  # noqa: PT011 - what the system says
        sockaddr("localhost", 5)


def test_route() -> None:
    info = route_info(("127.0.0.1", 9), socket.AF_INET)
    assert info.local == "127.0.0.1"
    assert info.mtu >= 1500


def test_no_route() -> None:
    assert route_info(("255.255.255.255", 9), socket.AF_INET) == udp.RouteInfo("", 1500)


def test_an_address_in_use() -> None:
    one = bind_udp("127.0.0.1", 0)
    with pytest.raises(OSError):  # noqa: PT011 - what the system says
        bind_udp(*one.getsockname())
    one.close()


@pytest.mark.parametrize("low", [False, True])
async def test_the_news_of_an_earlier_datagram_does_not_eat_the_next(low: bool) -> None:
    """A refusal over loopback is there before the next datagram is sent, which goes out all the same."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells an unconnected socket of refusals")
    async with opened(PLAIN) as (one, _), opened(PLAIN) as (two, reader):
        closed = bind_udp("127.0.0.1", 0)
        nobody = closed.getsockname()
        closed.close()
        one.watch_refusals(True)
        for number in range(5):
            one.send(b"into the void", 20, nobody)
            word = b"word %d" % number
            if low:
                one.send_low(word, two.local, 1)
            else:
                assert one.send(word, 20, two.local) is SendOutcome.SENT
        await reader.until(lambda: len(reader.datagrams) == 5)


async def test_a_low_ttl_is_for_one_datagram() -> None:
    async with opened() as (one, _), opened() as (two, reader):
        raw = one._sock
        assert raw is not None
        usual = raw.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
        one.send_low(b"near", two.local, 1)
        assert raw.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == usual
        await reader.until(lambda: reader.datagrams == [b"near"])
    one.send_low(b"closed", two.local, 1)
