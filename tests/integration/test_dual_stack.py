"""A rendezvous that is reached over IPv4 and IPv6 sees us over both; changes of interfaces are followed."""

from __future__ import annotations

import pytest

import crust
from crust.net.interfaces import LocalAddress
from crust.node import premises as premises_module

from .node_support import eventually, has_ipv6, node, port_of, soon

BOTH = ["127.0.0.1:0", "[::1]:0"]
EVERYWHERE = ["0.0.0.0:0", "[::]:0"]


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


def seen(of: crust.Node) -> set[tuple[str, str]]:
    return {(each.transport, each.host) for each in of._neighbourhood.signalling.reflexive}


@needs_ipv6
@pytest.mark.parametrize("transports", [["tcp"], ["utp"], ["tcp", "utp"]], ids="+".join)
async def test_both_outside_addresses_are_learnt(transports: list[str]) -> None:
    async with node(listen=BOTH, transports=transports) as rendezvous:
        known = [str(await rendezvous.contact())]
        async with node(listen=EVERYWHERE, transports=transports, bootstrap=known) as alice:
            await soon(alice.bootstrapped())
            expected = {(transport, host) for transport in transports for host in ("127.0.0.1", "::1")}
            await eventually(lambda: seen(alice) == expected)
            ours = {(each.transport, each.host, each.port) for each in alice._neighbourhood.signalling.reflexive}
            ports = {host: int(port) for host, _, port in (each.rpartition(":") for each in alice.addresses)}
            assert {port for _, host, port in ours if host == "::1"} == {ports["[::]"]}
            assert {port for _, host, port in ours if host == "127.0.0.1"} == {ports["0.0.0.0"]}
            # And they stay: nobody takes the paths over the other version for surplus.
            [connection] = alice.connections
            await soon(connection.ping())
            assert seen(alice) == expected


@needs_ipv6
async def test_one_family_is_enough() -> None:
    async with node(listen=BOTH) as rendezvous:
        known = [str(await rendezvous.contact())]
        async with node(listen=["127.0.0.1:0"], bootstrap=known) as alice:
            await soon(alice.bootstrapped())
            await eventually(lambda: ("tcp", "127.0.0.1") in seen(alice))


async def test_interfaces_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contact follows, rendezvous nodes are asked again, and paths are tried."""
    monkeypatch.setattr(premises_module, "_WATCH_SECONDS", 0.02)
    there = [LocalAddress("192.0.2.7", 24, "eth7")]
    monkeypatch.setattr(premises_module, "local_addresses", lambda **_: list(there))
    monkeypatch.setattr(
        premises_module, "InterfaceWatcher", lambda: _WATCHER(addresses=lambda: list(there), gateways=list)
    )
    async with node() as rendezvous:
        known = [str(await rendezvous.contact())]
        async with node(listen=["0.0.0.0:0"], bootstrap=known) as alice:
            assert "192.0.2.7" in {each.host for each in (await soon(alice.contact())).candidates}
            there[:] = [LocalAddress("198.51.100.3", 24, "eth8")]
            await eventually(lambda: alice.stats["interfaces.changed"])
            hosts = {each.host for each in (await soon(alice.contact())).candidates}
            assert "198.51.100.3" in hosts
            assert "192.0.2.7" not in hosts
            assert alice.stats["network.moved"] == 1
            [connection] = alice.connections
            await soon(connection.ping())
            assert connection.paths
            assert port_of(alice)


_WATCHER = premises_module.InterfaceWatcher
