"""Many datagrams in one system call: the same datagrams, sizes and addresses as one by one."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from crust.net.many import MANY, ManyReader
from crust.net.udp import Features, UdpSocket, bind_udp
from crust.proto.tunnel.cookie import address_bytes
from tests.unit.net.test_udp import Reader, opened

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="recvmmsg")


def bound(host: str) -> socket.socket:
    try:
        return bind_udp(host, 0)
    except OSError:
        pytest.skip("no IPv6 on this machine")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_and_addresses(host: str) -> None:
    with bound(host) as ours:
        reader = ManyReader(ours)
        others = [bound(host) for _ in range(3)]
        sent = [bytes([number]) * (1 + 20 * number) for number in range(MANY + 5)] + [b""]
        for number, datagram in enumerate(sent):
            others[number % 3].sendto(datagram, ours.getsockname()[:2])
        found = []
        for count in (MANY, 6):
            assert reader.read() == count
            found += [(bytes(reader.datagram(at)), reader.address(at)) for at in range(count)]
            assert [reader.segment(at) for at in range(count)] == reader.sizes
        assert address_bytes(ours.getsockname()[0]) == reader.host(0)
        assert found == [(datagram, others[number % 3].getsockname()) for number, datagram in enumerate(sent)]
        with pytest.raises(BlockingIOError):
            reader.read()
        for other in others:
            other.close()


def test_addresses_are_those_of_the_socket_module() -> None:
    with bound("::1") as ours, bound("::1") as other:
        other.sendto(b"one", ours.getsockname()[:2])
        other.sendto(b"two", ours.getsockname()[:2])
        _, address = ours.recvfrom(10)
        reader = ManyReader(ours)
        assert reader.read() == 1
        assert reader.address(0) == address


def test_what_the_kernel_has_joined() -> None:
    with bound("127.0.0.1") as ours, bound("127.0.0.1") as other:
        try:
            ours.setsockopt(17, 104, 1)  # UDP_GRO
            other.setsockopt(17, 103, 500)  # UDP_SEGMENT
        except OSError:
            pytest.skip("a kernel without batches")
        reader = ManyReader(ours)
        other.sendto(b"x" * 1800, ours.getsockname())
        assert reader.read() == 1
        if not reader.joined[0]:
            pytest.skip("the kernel did not join them")
        assert (reader.sizes, reader.segment(0)) == ([1800], 500)


@pytest.mark.parametrize("features", [Features(), Features(gro=False), Features(many=False)])
async def test_a_crowd_is_read_in_order(features: Features) -> None:
    """Single datagrams of many sources, and what one of them sends in batches between them."""
    async with opened() as (batching, _), opened() as (other, _), opened(features) as (two, reader):
        expected = []
        for number in range(150):
            datagram = number.to_bytes(2, "big") * 20
            (other if number % 2 else batching).send(datagram, 40, two.local)
            expected.append(datagram)
            if number % 40 == 30:
                batch = [number.to_bytes(2, "big") * 250] * 3
                batching.send(b"".join(batch), 500, two.local)
                expected += batch
        await reader.until(lambda: len(reader.datagrams) == len(expected))
        assert reader.datagrams == expected
        assert {address for _, _, address in reader.batches} == {batching.local, other.local}
        assert bool(reader.crowds) is features.many


async def test_closed_while_it_is_read() -> None:
    async with opened() as (one, _):
        reader = Reader()
        two = UdpSocket(asyncio.get_running_loop(), bind_udp("127.0.0.1", 0), 3, reader)
        await two.start()
        received = reader.udp_received

        def close_then(number: int, data: memoryview, size: int, address: tuple[str, int]) -> None:
            received(number, data, size, address)
            if len(reader.batches) == 20:
                two.close()

        reader.udp_received = close_then  # type: ignore[method-assign, assignment]
        for number in range(60):
            one.send(bytes([number]), 1, two.local)
        await reader.until(lambda: len(reader.batches) >= 20)
        assert reader.drained <= 1  # the first one alone


async def test_a_system_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crust.net.many", None)
    async with opened() as (one, _), opened() as (two, reader):
        for number in range(60):
            one.send(bytes([number]), 1, two.local)
        await reader.until(lambda: len(reader.datagrams) == 60)
        assert not reader.crowds
        assert not two.features.many
