"""Nodes that ask for port mappings, of a router on loopback: what becomes a candidate, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

import crust
from crust.config import Config
from crust.net.clock import monotonic
from crust.net.portmap import PortMapSettings
from crust.node import premises as premises_module
from crust.node.dial import CandidateFeed
from crust.node.mapping import PortMappings
from crust.types import Candidate
from tests.portmap_router import OUTSIDE
from tests.portmap_udp import LOOPBACK, UdpRouter, udp_router

from .node_support import eventually, soon

EVERY_LOOP = True


def settings(router: UdpRouter, **changes: Any) -> PortMapSettings:
    fields = {"methods": ("pcp", "nat-pmp"), "router_port": router.port, "announcement_port": 0, **changes}
    return PortMapSettings(**fields)


def use(monkeypatch: pytest.MonkeyPatch, router: UdpRouter, **changes: Any) -> None:
    """Nodes have this router."""
    made = functools.partial(PortMappings, settings=settings(router, **changes), gateways=lambda: [LOOPBACK])
    monkeypatch.setattr(premises_module, "PortMappings", made)


def node(**changes: Any) -> crust.Node:
    return crust.Node(config=Config(**{"listen": ["0.0.0.0:0"], "lan": False, **changes}))


def mapped(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    return [each for each in candidates if each.kind == "mapped"]


@contextlib.asynccontextmanager
async def mappings(
    router: UdpRouter, listening: tuple[tuple[str, int], ...], outside: set[str] | None = None, **changes: Any
) -> AsyncIterator[PortMappings]:
    made = PortMappings(
        Config(**changes),
        changed=lambda: None,
        outside=lambda: outside or set(),
        settings=settings(router),
        gateways=lambda: [LOOPBACK],
    )
    made.start(listening)
    try:
        yield made
    finally:
        await made.close()


async def test_the_contact_has_the_mapped_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_router() as router:
        use(monkeypatch, router)
        async with node() as made:
            port = int(made.addresses[0].rpartition(":")[2])
            found = (await soon(made.contact())).candidates
            assert mapped(found) == [
                Candidate("tcp", OUTSIDE, port, "mapped"),
                Candidate("utp", OUTSIDE, port, "mapped"),
            ]
            assert mapped(crust.Contact.parse(str(await made.contact())).candidates) == mapped(found)
            assert len(router.router.mappings) == 2
        assert router.router.mappings == {}


async def test_only_for_the_transports_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_router() as router:
        use(monkeypatch, router)
        async with node(transports=["utp"]) as made:
            assert [each.transport for each in mapped((await soon(made.contact())).candidates)] == ["utp"]
            assert [protocol for protocol, _ in router.router.mappings] == [17]


@pytest.mark.parametrize("changes", [{"port_mapping": False}, {"listen": []}, {"listen": ["127.0.0.1:0"]}])
async def test_not_asked(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    async with udp_router() as router:
        use(monkeypatch, router)
        async with node(**changes) as made:
            assert mapped((await soon(made.contact())).candidates) == []
        assert router.router.requests == []


async def test_a_silent_router_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_router() as router:
        router.silent = True
        use(monkeypatch, router)
        started = time.monotonic()
        async with node() as alice, node() as bob:
            port = bob.addresses[0].rpartition(":")[2]
            connection = await soon(alice.connect(f"{bob.id}@127.0.0.1:{port}"))
            await connection.close()
        assert time.monotonic() - started < 1.0


async def test_a_router_that_falls_silent_delays_the_end_by_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_router() as router:
        use(monkeypatch, router)
        async with node() as made:
            await soon(made.contact())
            router.silent = True
            started = time.monotonic()
        assert time.monotonic() - started < 1.9


async def test_a_router_that_reboots_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_router() as router:
        use(monkeypatch, router, poll_interval=0.05)
        async with node() as made:
            await soon(made.contact())
            router.router.restart(monotonic())
            router.router.outside = "203.0.113.10"
            contact = made._neighbourhood.contact
            await eventually(lambda: {each.host for each in mapped(contact().candidates)} == {"203.0.113.10"})
            assert made.stats["addresses.changed"] >= 2


async def test_a_mapping_of_a_router_behind_another_nat_is_no_candidate() -> None:
    listening = (("0.0.0.0", 4000),)
    async with udp_router(outside="100.64.0.7") as router:
        async with mappings(router, listening, {"198.51.100.1", "2001:db8::1"}) as made:
            await made.settled(5)
            assert made.candidates == []
            report = made.report()
            assert report is not None
            assert "behind another NAT" in report.advice[0]
        # An address range alone says nothing: carriers have internets of private addresses, and laboratories.
        for seen in ({"100.64.0.7"}, {"2001:db8::1"}, set()):
            async with mappings(router, listening, seen) as made:
                await made.settled(5)
                assert {each.host for each in made.candidates} == {"100.64.0.7"}


async def test_what_would_not_arrive_is_not_asked_for() -> None:
    async with udp_router() as router:
        # The router forwards to 127.0.0.1, where nobody listens; and over IPv4 only.
        for listening in ((("192.0.2.77", 4000),), (("::", 4000),)):
            async with mappings(router, listening) as made:
                await made.settled(5)
                assert made.candidates == []
        assert router.router.requests == []


async def test_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_router() as router:
        gateways = [LOOPBACK]
        made = PortMappings(
            Config(transports=["tcp"]),
            changed=lambda: None,
            outside=set,
            settings=settings(router),
            gateways=lambda: gateways,
        )
        made.start([("0.0.0.0", 4000)])
        await made.settled(5)
        assert len(made.candidates) == 1
        gateways.clear()
        made.network_changed()
        await eventually(lambda: not made.candidates)
        assert router.router.mappings == {}
        gateways.append(LOOPBACK)
        made.network_changed()
        await eventually(lambda: made.candidates)
        await made.close()
        assert router.router.mappings == {}


@pytest.mark.parametrize("late", ["caller", "callee"])
async def test_a_mapping_that_comes_late_trickles_into_the_dial(monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    monkeypatch.setattr("crust.proto.nat.leases.TRANSMISSIONS", 10)
    monkeypatch.setattr("crust.proto.nat.leases.FIRST_WAIT", 0.02)
    async with udp_router() as router, udp_router() as hole, node(listen=["127.0.0.1:0"]) as rendezvous:
        router.silent = hole.silent = True
        common = {"bootstrap": [str(await rendezvous.contact())], "direct": False, "punch": False}
        quiet = {**common, "port_mapping": False}
        use(monkeypatch, router)
        async with (
            node(**(common if late == "caller" else quiet)) as alice,
            node(**(common if late == "callee" else quiet)) as bob,
        ):
            await soon(alice.bootstrapped())
            await soon(bob.bootstrapped())
            added: list[Candidate] = []
            add = CandidateFeed.add
            monkeypatch.setattr(CandidateFeed, "add", lambda feed, found: (added.extend(found), add(feed, found)))
            # An address that never answers keeps the dial going.
            contact = crust.Contact(bob.id, (Candidate("utp", "127.0.0.1", hole.port, "mapped"),))
            dial = asyncio.create_task(alice.connect(contact, timeout=15))
            await eventually(lambda: bob.stats["offer.answered"])
            router.silent = False
            if late == "caller":
                await eventually(lambda: bob.stats["offer.more"])
                dial.cancel()
            else:
                await eventually(lambda: OUTSIDE in {each.host for each in added})
                dial.cancel()


async def test_what_comes_through_the_router_is_told_from_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_router() as router:
        use(monkeypatch, router)
        async with node(transports=["tcp"]) as made:
            await soon(made.contact())
            port = int(made.addresses[0].rpartition(":")[2])
            kind_of = made._acceptor.kind_of
            assert kind_of(made.id, "tcp", port, "198.51.100.200", "direct") == "mapped"
            assert kind_of(made.id, "tcp", port, "198.51.100.200", "relayed") == "relayed"
            assert kind_of(made.id, "tcp", port + 1, "198.51.100.200", "direct") == "direct"
            assert kind_of(made.id, "utp", port, "198.51.100.200", "punched") == "punched"
            assert kind_of(made.id, "tcp", port, "127.0.0.1", "direct") == "direct"
