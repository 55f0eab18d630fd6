"""Nodes behind a router with miniupnpd: whatever the other side's NAT is like, they are reached directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crust import Contact
from crust.testing.natlab import Host, Lab, LabUnavailable, Nat, Process, Router, Site

from .commands import record, start

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HOME = "igd-symmetric"


class World:
    """A rendezvous on the internet, and commands on hosts."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.lab = lab
        self._place = place
        self.rendezvous = ""

    async def open(self) -> World:
        host = await self.lab.public("rendezvous")
        self.rendezvous = (await self.node(host, "--no-port-mapping"))["contact"]
        return self

    async def start(self, host: Host, command: str, *options: str) -> Process:
        known = ["--bootstrap", self.rendezvous] if self.rendezvous else []
        return await start(host, self._place, command, *known, *options)

    async def node(self, host: Host, *options: str) -> dict[str, Any]:
        return await record(await self.start(host, "node", *options))

    async def ping(self, host: Host, target: str, *options: str) -> dict[str, Any]:
        return await record(await self.start(host, "ping", target, "-c", "1", *options))

    async def place(self, kind: str) -> Host:
        try:
            return await self.lab.place(kind)
        except LabUnavailable as error:
            pytest.skip(str(error))

    async def site(self, name: str, router: Router | str) -> Site:
        try:
            return await self.lab.site(name, router)
        except LabUnavailable as error:
            pytest.skip(str(error))


def mapped(contact: str) -> dict[str, tuple[str, int]]:
    """Mapped addresses by transport."""
    found = Contact.parse(contact).candidates
    return {each.transport: (each.host, each.port) for each in found if each.kind == "mapped"}


@pytest.fixture
async def world(lab: Lab, tmp_path: Path) -> World:
    return await World(lab, tmp_path).open()


@pytest.mark.parametrize("kind", ["symmetric-random", "symmetric-sequential", "cgnat", "udp-blocked"])
async def test_any_peer_reaches_it_and_is_reached(world: World, kind: str) -> None:
    home, other = await world.place(HOME), await world.place(kind)
    at_home = await world.node(home)
    assert {host for host, _ in mapped(at_home["contact"]).values()} == {home.site.address if home.site else ""}
    for transport in ("tcp", "utp"):
        if (kind, transport) == ("udp-blocked", "utp"):
            continue
        found = await world.ping(other, at_home["id"], "--transport", transport)
        assert found["path"]["kind"] == "mapped"
        assert found["path"]["transport"] == transport
    elsewhere = await world.node(other)
    second = await home.site.host() if home.site else home
    found = await world.ping(second, elsewhere["id"], "--timeout", "10")
    assert "error" not in found
    assert found["path"]["kind"] != "relayed"


async def test_switched_off(world: World) -> None:
    home = await world.place(HOME)
    assert set(mapped((await world.node(home))["contact"])) == {"tcp", "utp"}
    second = await home.site.host() if home.site else home
    assert mapped((await world.node(second, "--no-port-mapping"))["contact"]) == {}


async def test_nobody_but_the_router_is_needed(world: World) -> None:
    """A contact with nothing but mapped ports, and no rendezvous: for those who swap contacts by hand."""
    home, other = await world.place(HOME), await world.place("symmetric-random")
    world.rendezvous = ""
    at_home = await world.node(home)
    found = await world.ping(other, at_home["contact"])
    assert found["path"]["kind"] == "mapped"


async def test_a_router_that_reboots(world: World) -> None:
    """The router says so, and the node asks again."""
    home, other = await world.place(HOME), await world.place("symmetric-random")
    at_home = await world.node(home)
    assert home.site is not None
    await home.site.reboot()
    found = await world.ping(other, at_home["contact"], "--wait", "30", "--timeout", "2")
    assert found["path"]["kind"] == "mapped"


async def test_a_pinhole_in_an_ipv6_firewall(world: World) -> None:
    site = await world.site("home", Router(kernel=True, nat=Nat(), ipv6=True, port_mapping=True))
    home, other = await site.host(), await world.lab.public("other")
    world.rendezvous = ""
    six = next(each for each in home.addresses if ":" in each)
    at_home = await world.node(home, "--listen", f"[{six}]:4433")
    for transport in ("tcp", "utp"):
        found = await world.ping(other, at_home["contact"], "--transport", transport)
        assert found["path"]["remote"] == f"[{six}]:4433"
    second = await site.host()
    six = next(each for each in second.addresses if ":" in each)
    closed = await world.node(second, "--listen", f"[{six}]:4434", "--no-port-mapping")
    found = await world.ping(other, closed["contact"], "--timeout", "1")
    assert "error" in found
