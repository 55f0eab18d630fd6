"""`crust doctor` behind each kind of NAT: its verdict is what the kind is declared to be, and what that means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from crust.testing.natlab import NATS, Behaviour, Findings, Host, Lab, LabUnavailable, Ports
from tests.commands import CRUST

from .stun_hosts import StunService

pytestmark = pytest.mark.netns

PORTS = {Ports.PRESERVING: "preserving", Ports.SEQUENTIAL: "sequential", Ports.RANDOM: "random"}

# To: public, open NAT, easy NAT, sequential NAT, hard NAT, UDP blocked, IPv6 only.
D, M, P, G, S, R = "direct", "mapped", "punched", "port prediction", "port search", "relay"
BEST = {
    "public": [D, D, D, D, D, P, P],  # who can call us over TCP is not measured
    "full-cone": [D, P, P, P, P, P, R],
    "address-restricted": [D, P, P, P, P, P, R],
    "port-restricted": [D, P, P, G, S, P, R],
    "port-restricted-random": [D, P, P, G, S, P, R],
    "cgnat": [D, P, P, G, S, P, R],
    "same-nat-hairpin": [D, P, P, G, S, P, R],
    "symmetric-sequential": [D, P, G, G, R, G, R],
    "symmetric-random": [D, P, S, R, R, R, R],
    "address-dependent": [D, P, S, S, S, R, R],
    "udp-blocked": [D, P, P, G, R, P, R],
    "tcp-reset": [D, P, P, G, S, P, R],
}


@pytest.fixture
async def observers(lab: Lab) -> AsyncIterator[list[str]]:
    """Two STUN servers, the first with two addresses."""
    async with AsyncExitStack() as stack:
        found = []
        for name, addresses in (("first", 2), ("second", 1)):
            service = await StunService.open(await lab.public(name, addresses=addresses))
            stack.callback(service.close)
            found.append("{}:{}".format(*service.address))
        yield found


async def place(lab: Lab, kind: str) -> Host:
    try:
        return await lab.place(kind)
    except LabUnavailable as error:
        pytest.skip(str(error))


async def doctor(host: Host, home: Path, *options: str, stun: Sequence[str] = ()) -> dict[str, Any]:
    config = home / "config.toml"
    config.touch()
    asked = [f"--stun={each}" for each in stun]
    process = await host.run([*CRUST, "doctor", "--json", "--config", str(config), *asked, *options])
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


def best(found: dict[str, Any]) -> list[str]:
    return [each["best"] for each in found["dials"]]


def check(kind: str, found: dict[str, Any]) -> None:
    """Compare with the declaration."""
    expected = Findings.expected(NATS[kind])
    for protocol in ("udp", "tcp"):
        declared, told = getattr(expected, protocol), found[protocol]
        assert told["passes"] is declared.passes, (kind, told)
        if not declared.passes:
            assert told["mapping"] is None
            continue
        assert told["translated"] is expected.translated
        assert told["mapping"] == declared.mapping, (kind, told)
        assert told["mapping_sureness"] == "sure"
        assert told["allocation"] == PORTS[declared.ports], (kind, told)
        assert told["observers"] == 3
        if protocol == "udp":
            assert told["filtering"] == declared.filtering, (kind, told)
            # It is not measured where no port stands for us.
            measured = expected.translated and declared.mapping is Behaviour.ENDPOINT_INDEPENDENT
            assert told["hairpinning"] is (declared.hairpinning if measured else None), (kind, told)
    assert best(found) == BEST[kind], (kind, found["dials"])


@pytest.mark.parametrize("third", [0, 1, 2])
async def test_each_kind_gets_its_verdict(lab: Lab, observers: list[str], tmp_path: Path, third: int) -> None:
    kinds = list(BEST)[third::3]
    hosts = [await place(lab, kind) for kind in kinds]
    looked = (doctor(host, tmp_path, "--no-port-mapping", stun=observers) for host in hosts)
    for kind, found in zip(kinds, await asyncio.gather(*looked), strict=True):
        check(kind, found)
        assert found["port_mapping"] is None


async def test_a_router_that_maps_ports_makes_every_dial_direct(lab: Lab, observers: list[str], tmp_path: Path) -> None:
    host = await place(lab, "igd-symmetric")
    found = await doctor(host, tmp_path, stun=observers)
    assert found["udp"]["mapping"] == found["tcp"]["mapping"] == "address-and-port-dependent"
    assert found["udp"]["mapped"]
    assert found["tcp"]["mapped"]
    assert best(found) == [D, M, M, M, M, M, R]
    assert "mapped" in {each["outcome"] for each in found["port_mapping"]["attempts"]}
    assert found["outside"] == [host.site.address if host.site else None]
    assert found["advice"] == []


async def test_only_port_443(lab: Lab, observers: list[str], tmp_path: Path) -> None:
    web = await StunService.open(await lab.public("web"), port=443)
    try:
        host = await place(lab, "tcp-443-only")
        found = await doctor(host, tmp_path, "--no-port-mapping", stun=[*observers, f"{web.address[0]}:443"])
    finally:
        web.close()
    assert found["udp"]["passes"] is False
    assert found["tcp"]["only_ports"] == [443]
    assert best(found) == [D, R, R, R, R, R, R]
    assert any("port 443 only" in each for each in found["advice"])


async def test_ipv6_behind_a_firewall(lab: Lab, tmp_path: Path) -> None:
    host = await place(lab, "ipv6-firewall")
    server = await StunService.open(await lab.public("server"), ipv6=True)
    try:
        found = await doctor(host, tmp_path, "--no-port-mapping", stun=["[{}]:{}".format(*server.address)])
    finally:
        server.close()
    assert found["ipv6"] == {"addresses": host.addresses, "gateway": True, "passes": True}
    assert best(found)[-1] == P
    assert found["outside"] == host.addresses


async def test_bootstrap_nodes_are_observers_too(lab: Lab, tmp_path: Path) -> None:
    contacts, nodes = [], []
    for name in ("one", "two"):
        server = await lab.public(name)
        command = [*CRUST, "node", "--json", f"--listen={server.address}:443", "--identity", str(tmp_path / name)]
        nodes.append(await server.run(command))
    for node in nodes:
        assert node.stdout is not None
        contacts.append(json.loads(await node.stdout.readline())["contact"])
    for kind, mapping in (("port-restricted", "endpoint-independent"), ("symmetric-random", None)):
        host = await place(lab, kind)
        options = [f"--bootstrap={contact}" for contact in contacts]
        found = await doctor(host, tmp_path, "--no-port-mapping", "--transport", "tcp", *options)
        assert [each["via"] for each in found["observers"]] == ["bootstrap", "bootstrap"]
        assert [each["outcome"] for each in found["observers"]] == ["answered", "answered"]
        assert found["tcp"]["mapping"] == (mapping or "address-and-port-dependent")
        assert found["tcp"]["mapping_sureness"] == "likely"
        assert found["udp"]["passes"] is None
        assert not list(tmp_path.glob("identity"))
