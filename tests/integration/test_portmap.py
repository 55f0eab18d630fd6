"""The port mapper against routers on loopback that speak PCP and NAT-PMP on a UDP port."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crust.net import portmap as portmap_module
from crust.net.clock import monotonic
from crust.net.interfaces import Gateway, LocalAddress
from crust.net.portmap import PortMapping
from tests.integration.portmap_support import mapper, outcomes, unstarted
from tests.portmap_router import OUTSIDE
from tests.portmap_udp import LOOPBACK, udp_router
from tests.waiting import eventually


async def test_pcp_maps_and_gives_back() -> None:
    told: list[list[PortMapping]] = []
    async with udp_router() as router:
        async with mapper(router.port, on_change=told.append) as made:
            mappings = await made.settled()
            assert [(m.method, m.protocol, m.internal, m.external) for m in mappings] == [
                ("pcp", "tcp", ("127.0.0.1", 4000), (OUTSIDE, 4000)),
                ("pcp", "udp", ("127.0.0.1", 4000), (OUTSIDE, 4000)),
            ]
            assert outcomes(made)[2:] == [("nat-pmp", "tcp", "not needed"), ("nat-pmp", "udp", "not needed")]
            report = made.report()
            assert report.gateways == ["127.0.0.1"]
            assert report.advice == []
            assert report.to_dict()["attempts"][0]["outcome"] == "mapped"
            attempt = report.attempts[0]
            assert attempt.ended_ms is not None
            assert attempt.started_ms is not None
            assert 0 <= attempt.started_ms <= attempt.ended_ms < 1000
            assert len(router.router.mappings) == 2
        assert router.router.mappings == {}
        assert made.mappings == []
        assert [len(mappings) for mappings in told] == [1, 2]


async def test_nat_pmp_where_pcp_is_not_spoken() -> None:
    async with udp_router(speaks=frozenset({"natpmp"})) as router:
        async with mapper(router.port) as made:
            mappings = await made.settled()
            assert {m.method for m in mappings} == {"nat-pmp"}
            assert {m.external for m in mappings} == {(OUTSIDE, 4000)}
            assert [a.detail for a in made.report().attempts if a.method == "pcp"] == ["NAT-PMP only"] * 2
        assert router.router.mappings == {}


async def test_a_refusal_is_explained() -> None:
    async with udp_router(result=2) as router, mapper(router.port) as made:
        assert await made.settled() == []
        assert {outcome for _, _, outcome in outcomes(made)} == {"refused"}
        advice = made.report().advice
        assert advice[0] == "the router 127.0.0.1 answers PCP, but it is switched off for this host: allow it there"
        assert "nat-pmp" in advice[1]


async def test_nobody_listens() -> None:
    async with udp_router() as router:
        port = router.port
    async with mapper(port) as made:
        assert await made.settled() == []
        assert {outcome for _, _, outcome in outcomes(made)} == {"no answer"}
        assert made.report().advice[0].startswith("no router answered")
        assert "nothing listens" in made.report().attempts[0].detail


async def test_nonsense_is_counted_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crust.proto.nat.leases.FIRST_WAIT", 0.02)
    async with udp_router() as router:
        router.mangle = lambda data: b"\xff" + data[1:]
        async with mapper(router.port) as made:
            assert await made.settled() == []
            assert {outcome for _, _, outcome in outcomes(made)} == {"nonsense"}
            assert made.report().ignored["malformed"] > 2
            router.mangle = lambda data: data
            # the engines go on asking, in their own time
            assert made.mappings == []


async def test_a_grant_without_an_outside_address_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portmap_module, "_RACE_SECONDS", 0.1)
    speaks = frozenset({"natpmp"})
    async with (
        udp_router(speaks=speaks, outside="0.0.0.0") as router,
        mapper(router.port, methods=("nat-pmp",)) as made,
    ):
        assert await made.settled() == []
        assert outcomes(made) == [("nat-pmp", "tcp", "no answer"), ("nat-pmp", "udp", "no answer")]


async def test_a_restarted_router_is_found_by_polling() -> None:
    told: list[list[PortMapping]] = []
    async with udp_router() as router, mapper(router.port, on_change=told.append, poll_interval=0.05) as made:
        await made.settled()
        router.router.restart(monotonic())
        router.router.outside = "203.0.113.10"
        await eventually(lambda: {m.external[0] for m in made.mappings} == {"203.0.113.10"} and len(made.mappings) == 2)
        assert len(router.router.mappings) == 2


async def test_a_restarted_router_is_found_by_its_announcement() -> None:
    async with udp_router() as router, mapper(router.port) as made:
        await made.settled()
        router.router.restart(monotonic())
        announcement = bytes.fromhex("02800000" + "00" * 20)
        made.announced(announcement, ("127.0.0.2", router.port))  # a stranger
        assert router.router.mappings == {}
        made.announced(announcement, ("127.0.0.1", router.port))
        await eventually(lambda: len(router.router.mappings) == 2)


async def test_announcements_are_heard() -> None:
    async with udp_router() as router, mapper(router.port, announcement_port=0) as made:
        await made.settled()
        [listener, *_] = made._announcements
        router.router.restart(monotonic())
        port = listener.get_extra_info("sockname")[1]
        router.transport.sendto(bytes.fromhex("02800000" + "00" * 20), ("127.0.0.1", port))
        await eventually(lambda: len(router.router.mappings) == 2)


async def test_a_router_that_goes_away_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that cannot be renewed is lost, and the race begins again."""
    monkeypatch.setattr("crust.proto.nat.leases.FIRST_WAIT", 0.005)
    monkeypatch.setattr("crust.proto.nat.leases.RENEWAL_FLOOR", 0.01)
    told: list[list[PortMapping]] = []
    options = {"on_change": told.append, "retry_interval": 0.05}
    async with udp_router(lifetime=1) as router, mapper(router.port, **options) as made:
        await made.settled()
        router.silent = True
        await eventually(lambda: told[-1] == [])
        router.silent = False
        await eventually(lambda: len(made.mappings) == 2)


async def test_no_gateway() -> None:
    async with mapper(1, gateways=list) as made:
        assert await made.settled() == []
        assert made.report().advice == [
            "this machine has no default gateway: there is no router to ask for a port mapping"
        ]


async def test_the_network_changes() -> None:
    gateways: list[Gateway] = []
    told: list[list[PortMapping]] = []
    async with udp_router() as router, mapper(router.port, gateways=lambda: gateways, on_change=told.append) as made:
        assert await made.settled() == []
        gateways.append(LOOPBACK)
        await made.network_changed()
        assert len(await made.settled()) == 2
        gateways.clear()
        await made.network_changed()
        assert router.router.mappings == {}
        assert told[-1] == []
    await made.network_changed()
    assert made.mappings == []


async def test_a_gateway_without_a_route_to_it() -> None:
    addresses = [LocalAddress("2001:db8::5", 64, "eth9"), LocalAddress("fd00::5", 64, "lo")]
    async with mapper(1, gateways=lambda: [Gateway("fe80::1%lo", "lo")], addresses=lambda: addresses) as made:
        assert await made.settled() == []
        assert made.report().attempts == []
    async with mapper(1, gateways=lambda: [Gateway("2001:db8::1", "eth9")], addresses=lambda: addresses) as made:
        assert await made.settled() == []
        assert outcomes(made) == [("pcp", "tcp", "no answer"), ("pcp", "udp", "no answer")]
        assert "cannot send" in made.report().attempts[0].detail


async def test_private_outside_addresses_are_explained() -> None:
    async with udp_router(outside="100.64.1.2") as router, mapper(router.port) as made:
        await made.settled()
        assert "behind another NAT" in made.report().advice[0]


async def test_close_while_it_begins_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_router() as router:
        made = unstarted(router.port)
        loop = asyncio.get_running_loop()
        create = loop.create_datagram_endpoint
        opened: list[asyncio.BaseTransport] = []

        async def create_while_closing(*arguments: Any, **options: Any) -> tuple[Any, Any]:
            transport, protocol = await create(*arguments, **options)
            opened.append(transport)
            await made.close()
            return transport, protocol

        monkeypatch.setattr(loop, "create_datagram_endpoint", create_while_closing)
        await made.start()
        assert opened
        assert all(transport.is_closing() for transport in opened)
        assert made.report().attempts == []


async def test_close_is_bounded_and_survives_a_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crust.net.mapping_methods.RELEASE_SECONDS", 0.05)
    async with udp_router() as router, mapper(router.port) as made:
        await made.settled()
        router.silent = True
        closing = asyncio.create_task(made.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await eventually(lambda: not made._announcements and made.mappings == [])
