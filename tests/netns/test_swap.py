"""`crust ping --swap`: two peers behind NATs, no rendezvous, contacts carried by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crust import Contact
from crust.testing.natlab import Lab, LabUnavailable, Process

from .commands import record, start

pytestmark = [pytest.mark.netns, pytest.mark.slow]

LATE = 2.0


async def give(process: Process, contact: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{contact}\n".encode())
    await process.stdin.drain()


async def swap(lab: Lab, place: Path, kinds: tuple[str, str], *options: str, late: float) -> list[dict[str, Any]]:
    """Both sides' last words; the second one is given the first one's contact later."""
    server = await lab.public("stun")
    service = f"{server.address}:3478"
    await record(await start(server, place, "node", "--no-port-mapping", "--stun-service", service))
    try:
        hosts = await lab.pair(*kinds)
    except LabUnavailable as error:
        pytest.skip(str(error))
    sides = [await start(host, place, "ping", "--swap", "-c", "1", "--stun", service, *options) for host in hosts]
    contacts = [(await record(side))["contact"] for side in sides]
    assert not any(Contact.parse(contact).rendezvous for contact in contacts)
    await give(sides[0], contacts[1])
    await asyncio.sleep(late)  # what is tested: people are not that quick
    await give(sides[1], contacts[0])
    found = [await record(side) for side in sides]
    assert [await side.wait() for side in sides] == [0, 0]
    return found


@pytest.mark.parametrize("transport", ["tcp", "utp"])
@pytest.mark.parametrize(
    "kinds",
    [("port-restricted", "cgnat"), ("ipv6-firewall", "ipv6-firewall"), ("tcp-reset", "port-restricted-random")],
    ids=" and ".join,
)
async def test_through_nats(lab: Lab, tmp_path: Path, kinds: tuple[str, str], transport: str) -> None:
    first, second = await swap(lab, tmp_path, kinds, "--transport", transport, late=LATE)
    assert first["connect_ms"] > 1000 * LATE
    assert second["connect_ms"] < 1500
    for found in (first, second):
        assert found["path"]["transport"] == transport


async def test_a_router_that_maps_ports(lab: Lab, tmp_path: Path) -> None:
    """No STUN server is asked about a symmetric NAT in vain: the mapped port is in the contact."""
    first, second = await swap(lab, tmp_path, ("igd-symmetric", "symmetric-random"), late=0)
    assert second["path"]["kind"] == "mapped"
    assert "error" not in first


@pytest.mark.parametrize("transport", ["tcp", "utp"])
async def test_a_linux_router_without_a_firewall(lab: Lab, tmp_path: Path, transport: str) -> None:
    """The early side's packets spoil the late side's mapping for UDP, but for those of the quiet port."""
    options = ("--transport", transport)
    for found in await swap(lab, tmp_path, ("linux-open", "linux-open"), *options, late=LATE):
        assert found["path"]["kind"] == "punched" if transport == "utp" else "error" not in found
