"""Own addresses and gateways: the formats of the systems, and the rules of choice."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ifaddr
import pytest

from crust.net import interfaces
from crust.net.interfaces import (
    AddressScope,
    Gateway,
    InterfaceChange,
    InterfaceWatcher,
    LocalAddress,
    candidate_hosts,
    default_gateways,
    guess_gateways,
    local_addresses,
    on_link_networks,
    parse_netstat,
    parse_proc_ipv6_route,
    parse_proc_route,
    source_host,
)

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the sample is of a little-endian machine")

PROC_ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t014DA8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t004DA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
tun0\t00000000\t0101010A\t0003\t0\t0\t0\t00000080\t0\t0\t0
short line
"""

ZERO = "0" * 32
PROC_IPV6_ROUTE = f"""\
20010db8007700000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     lan0
{ZERO} 00 {ZERO} 00 20010db8007700000000000000000001 00000400 00000001 00000000 00000003     lan0
{ZERO} 00 {ZERO} 00 fe800000000000000000000000000001 00000064 00000001 00000000 00450003     eth0
{ZERO} 00 {ZERO} 00 fe800000000000000000000000000002 00000064 00000001 00000000 00450002     eth1
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
"""

MACOS = """\
Routing tables

Internet:
Destination        Gateway            Flags           Netif Expire
default            192.168.1.1        UGScg             en0
default            link#20            UCSIg         bridge0      !
127                127.0.0.1          UCS               lo0
192.168.1          link#6             UCS               en0      !

Internet6:
Destination                             Gateway                         Flags         Netif Expire
default                                 fe80::1%en0                     UGcg            en0
::1                                     ::1                             UHL             lo0
"""

WINDOWS = """\
IPv4 Route Table
===========================================================================
Active Routes:
Network Destination        Netmask          Gateway       Interface  Metric
          0.0.0.0          0.0.0.0      192.168.1.1    192.168.1.34     25
        127.0.0.0        255.0.0.0         On-link         127.0.0.1    331
===========================================================================
IPv6 Route Table
Active Routes:
 If Metric Network Destination      Gateway
 12    281 ::/0                     fe80::1
"""


@little_endian
def test_linux_ipv4_gateways_by_metric() -> None:
    assert parse_proc_route(PROC_ROUTE) == [Gateway("192.168.77.1", "eth0"), Gateway("192.168.0.1", "wlan0")]
    assert parse_proc_route("") == []


def test_linux_ipv6_gateways_by_metric() -> None:
    assert parse_proc_ipv6_route(PROC_IPV6_ROUTE) == [
        Gateway("fe80::1%eth0", "eth0"),
        Gateway("2001:db8:77::1", "lan0"),
    ]


def test_netstat() -> None:
    assert parse_netstat(MACOS) == [Gateway("192.168.1.1", "en0"), Gateway("fe80::1%en0", "en0")]
    assert parse_netstat(WINDOWS) == [Gateway("192.168.1.1"), Gateway("fe80::1")]
    assert parse_netstat("") == []
    assert [g.version for g in parse_netstat(WINDOWS)] == [4, 6]


def test_guesses() -> None:
    addresses = [
        LocalAddress("192.168.1.34", 24, "en0"),
        LocalAddress("192.168.1.35", 24, "en1"),
        LocalAddress("10.0.0.1", 24, "br0"),  # we are the router ourselves
        LocalAddress("169.254.3.4", 16, "en0"),
        LocalAddress("10.8.0.2", 32, "tun0"),
        LocalAddress("2001:db8::2", 64, "en0"),
    ]
    assert guess_gateways(addresses) == [Gateway("192.168.1.1", "en0", guessed=True)]


def test_other_systems_run_netstat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces.sys, "platform", "darwin")
    monkeypatch.setattr(interfaces.shutil, "which", lambda _: "/usr/sbin/netstat")
    monkeypatch.setattr(interfaces.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=MACOS.encode()))
    assert default_gateways()[0] == Gateway("192.168.1.1", "en0")
    monkeypatch.setattr(interfaces, "local_addresses", lambda: [LocalAddress("192.168.9.4", 24, "en0")])

    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("netstat", 2)

    monkeypatch.setattr(interfaces.subprocess, "run", hangs)
    assert default_gateways() == [Gateway("192.168.9.1", "en0", guessed=True)]
    monkeypatch.setattr(interfaces.shutil, "which", lambda _: None)
    assert default_gateways() == [Gateway("192.168.9.1", "en0", guessed=True)]


def test_candidate_hosts() -> None:
    addresses = [
        LocalAddress("fe80::1", 64, "eth0", 2),
        LocalAddress("fd00::5", 64, "eth0", 2),
        LocalAddress("192.168.1.2", 24, "eth0", 2),
        LocalAddress("169.254.1.2", 16, "eth1", 3),
        LocalAddress("2001:db8::211:22ff:fe33:4455", 64, "eth0", 2),
        LocalAddress("2001:db8::7", 64, "eth0", 2),
        LocalAddress("2001:db8::8", 64, "eth0", 2, temporary=True),
        LocalAddress("2001:db8:1::211:22ff:fe33:4466", 64, "wlan0", 4),  # it has no other
        LocalAddress("192.168.1.2", 24, "eth0:1", 2),
    ]
    assert candidate_hosts(addresses) == [
        "2001:db8::8",
        "2001:db8::7",
        "2001:db8:1::211:22ff:fe33:4466",
        "192.168.1.2",
        "fd00::5",
        "169.254.1.2",
    ]
    assert [a.scope for a in addresses[:4]] == [
        AddressScope.LINK_LOCAL,
        AddressScope.UNIQUE_LOCAL,
        AddressScope.GLOBAL,
        AddressScope.LINK_LOCAL,
    ]
    assert on_link_networks(addresses[2:4]) == (
        ipaddress.ip_network("192.168.1.0/24"),
        ipaddress.ip_network("169.254.0.0/16"),
    )


def adapter(name: str, *ips: object, index: int = 1) -> ifaddr.Adapter:
    return ifaddr.Adapter(name, name, list(ips), index)  # type: ignore[arg-type]


def test_local_addresses_as_linux_tells_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "if_inet6").write_text(
        "20010db8000000000000000000000002 02 40 00 01 eth0\n"
        "20010db8000000000000000000000003 02 40 00 20 eth0\n"
        "20010db8000000000000000000000004 02 40 00 40 eth0\n"
        "odd\n"
    )
    for name, state in (("eth0", "up"), ("docker0", "down"), ("tun0", "unknown")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "operstate").write_text(state + "\n")
    monkeypatch.setattr(interfaces, "_PROC", tmp_path)
    monkeypatch.setattr(interfaces, "_SYS", tmp_path)
    monkeypatch.setattr(
        interfaces.ifaddr,
        "get_adapters",
        lambda: [
            adapter("lo", ifaddr.IP("127.0.0.1", 8, "lo"), ifaddr.IP(("::1", 0, 0), 128, "lo")),
            adapter(
                "eth0",
                ifaddr.IP("192.168.1.2", 24, "eth0"),
                ifaddr.IP(("2001:db8::2", 0, 0), 64, "eth0"),
                ifaddr.IP(("2001:db8::3", 0, 0), 64, "eth0"),
                ifaddr.IP(("2001:db8::4", 0, 0), 64, "eth0"),
                index=2,
            ),
            adapter("docker0", ifaddr.IP("172.17.0.1", 16, "docker0")),
            adapter("tun0", ifaddr.IP("10.8.0.2", 32, "tun0")),
        ],
    )
    assert local_addresses() == [
        LocalAddress("192.168.1.2", 24, "eth0", 2),
        LocalAddress("2001:db8::2", 64, "eth0", 2, temporary=True),
        LocalAddress("10.8.0.2", 32, "tun0", 1),
    ]


def test_this_machine() -> None:
    for address in local_addresses():
        assert not ipaddress.ip_address(address.host).is_loopback
        assert ipaddress.ip_address(address.host) in address.network
    assert all(isinstance(gateway, Gateway) for gateway in default_gateways())


def test_source_host() -> None:
    assert source_host("127.0.0.1") == "127.0.0.1"
    assert source_host("not an address") is None


def test_the_watcher_tells_changes_only() -> None:
    one, two = LocalAddress("192.168.1.2", 24, "eth0"), LocalAddress("10.0.0.2", 24, "wlan0")
    addresses = [one]
    gateways = [Gateway("192.168.1.1")]
    watcher = InterfaceWatcher(lambda: addresses, lambda: gateways)
    assert watcher.poll() is None
    addresses = [two, one]
    assert watcher.poll() == InterfaceChange((two,), (), gateways_changed=False)
    addresses = [one, two]
    assert watcher.poll() is None
    addresses, gateways = [two], []
    assert watcher.poll() == InterfaceChange((), (one,), gateways_changed=True)
    assert watcher.addresses == (two,)
    assert InterfaceWatcher().poll() is None


def test_an_answer_of_a_moment_ago_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(interfaces.ifaddr, "get_adapters", lambda: asked.append(None) or [])
    local_addresses()
    assert len(asked) == 1
    assert local_addresses(recent=60.0) == []
    assert len(asked) == 1
    local_addresses(recent=1e-9)
    local_addresses()
    assert len(asked) == 3
