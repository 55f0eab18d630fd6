"""What this machine has: its addresses, what is on-link, its default gateways, and when that changes.

Loopback is left out: nobody else can use it. So are interfaces that are down (an idle container bridge), and IPv6
addresses that are not ready (tentative) or on their way out (deprecated).
"""

from __future__ import annotations

import enum
import ipaddress
import math
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ifaddr

from crust.net.clock import monotonic

__all__ = [
    "AddressScope",
    "Gateway",
    "InterfaceChange",
    "InterfaceWatcher",
    "LocalAddress",
    "candidate_hosts",
    "default_gateways",
    "local_addresses",
    "on_link_networks",
    "source_host",
]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_PROC = Path("/proc/net")
_SYS = Path("/sys/class/net")

# Flags of /proc/net/if_inet6 (linux/if_addr.h) and of the routing tables (linux/route.h).
_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40
_RTF_UP, _RTF_GATEWAY = 0x1, 0x2

_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")
_DEFAULT_ROUTES = ("default", "0.0.0.0", "0.0.0.0/0", "::/0")  # noqa: S104 - as routing tables print them
_NETSTAT_SECONDS = 2.0


_answer: tuple[float, list[LocalAddress]] = (-math.inf, [])


class AddressScope(enum.IntEnum):
    """How far an address reaches; a lower value reaches further."""

    GLOBAL = 0  # IPv4 private ranges too: what is private is relative to where one stands
    UNIQUE_LOCAL = 1
    LINK_LOCAL = 2


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """One address of one interface.

    Attributes:
        host: numeric, without a zone.
        prefix_length: of its on-link prefix.
        interface: name of the interface.
        index: its number, which is the zone of link-local addresses; 0 where unknown.
        temporary: an IPv6 privacy address (RFC 8981).
    """

    host: str
    prefix_length: int
    interface: str
    index: int = 0
    temporary: bool = False

    @property
    def network(self) -> IpNetwork:
        """The prefix that is on-link."""
        return ipaddress.ip_network(f"{self.host}/{self.prefix_length}", strict=False)

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4

    @property
    def scope(self) -> AddressScope:
        """How far it reaches."""
        address = ipaddress.ip_address(self.host)
        if address.is_link_local:
            return AddressScope.LINK_LOCAL
        return AddressScope.UNIQUE_LOCAL if address in _UNIQUE_LOCAL else AddressScope.GLOBAL

    @property
    def traceable(self) -> bool:
        """An IPv6 address that holds the interface's hardware address (RFC 4291, appendix A)."""
        return self.version == 6 and ipaddress.ip_address(self.host).packed[11:13] == b"\xff\xfe"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A default gateway.

    Attributes:
        host: numeric; a link-local one with its zone (`fe80::1%eth0`).
        interface: name of the interface, or "".
        guessed: no routing table said so: it is the first address of an on-link prefix.
    """

    host: str
    interface: str = ""
    guessed: bool = False

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4


@dataclass(frozen=True, slots=True)
class InterfaceChange:
    """What differs from the poll before."""

    added: tuple[LocalAddress, ...]
    removed: tuple[LocalAddress, ...]
    gateways_changed: bool


def local_addresses(*, recent: float = 0.0) -> list[LocalAddress]:
    """The usable addresses of this machine, loopback excluded.

    Args:
        recent: seconds for which an earlier answer will do: to ask costs a millisecond, and a dial asks several times.
    """
    global _answer
    now = monotonic()
    if recent and now - _answer[0] < recent:
        return list(_answer[1])
    _answer = now, _ask_addresses()
    return list(_answer[1])


def _ask_addresses() -> list[LocalAddress]:
    flags = _ipv6_flags()
    found = []
    for adapter in ifaddr.get_adapters():
        name = adapter.nice_name if sys.platform == "win32" else str(adapter.name)
        if _is_down(str(adapter.name)):
            continue
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(host)
            flag = flags.get(str(address), 0)
            if address.is_loopback or address.is_unspecified or flag & (_DADFAILED | _DEPRECATED | _TENTATIVE):
                continue
            temporary = bool(flag & _TEMPORARY)
            found.append(LocalAddress(str(address), ip.network_prefix, name, adapter.index or 0, temporary))
    return found


def candidate_hosts(addresses: Iterable[LocalAddress]) -> list[str]:
    """The hosts worth telling a peer, best first.

    IPv6 link-local addresses are left out: their zone means nothing to others. Where an interface has an address of
    the same scope that does not give its hardware away, the traceable ones are left out (RFC 8445 §5.1.1.1).
    """
    usable = [a for a in addresses if a.version == 4 or a.scope is not AddressScope.LINK_LOCAL]
    discreet = {(a.interface, a.scope) for a in usable if a.version == 6 and not a.traceable}
    kept = [a for a in usable if not a.traceable or (a.interface, a.scope) not in discreet]
    kept.sort(key=lambda a: (a.scope, a.version != 6, not a.temporary))
    return list(dict.fromkeys(a.host for a in kept))


def on_link_networks(addresses: Iterable[LocalAddress]) -> tuple[IpNetwork, ...]:
    """The prefixes that are reached without a router."""
    return tuple(dict.fromkeys(a.network for a in addresses))


def source_host(destination: str) -> str | None:
    """Our address on the way to `destination`, by asking the routing table; no packet is sent.

    Returns:
        None where there is no route.
    """
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(socket.getaddrinfo(destination, 9, family, flags=socket.AI_NUMERICHOST)[0][4])
        except OSError:
            return None
        return str(probe.getsockname()[0]).partition("%")[0]


def default_gateways() -> list[Gateway]:
    """Default gateways of both families, the preferred ones first.

    Linux is read from /proc. Elsewhere `netstat -rn` is run, which takes some milliseconds: call it in a thread. Where
    neither tells, the first address of each on-link IPv4 prefix is guessed (what most home routers have).
    """
    if sys.platform == "linux":
        found = _linux_gateways()
    else:
        found = parse_netstat(_netstat())
    return found or guess_gateways(local_addresses())


def guess_gateways(addresses: Iterable[LocalAddress]) -> list[Gateway]:
    """The first address of each on-link IPv4 prefix that has room for a router."""
    guesses: dict[str, Gateway] = {}
    for address in addresses:
        network = address.network
        if network.version == 4 and 8 <= network.prefixlen <= 30 and address.scope is not AddressScope.LINK_LOCAL:
            host = str(network.network_address + 1)
            if host != address.host:
                guesses.setdefault(host, Gateway(host, address.interface, guessed=True))
    return list(guesses.values())


def parse_proc_route(text: str) -> list[Gateway]:
    """Default gateways in the format of /proc/net/route, by metric."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        interface, destination, gateway, flags, metric, mask = *fields[:4], fields[6], fields[7]
        if destination == mask == "00000000" and int(flags, 16) & _RTF_GATEWAY and int(flags, 16) & _RTF_UP:
            host = str(ipaddress.IPv4Address(struct.pack("=I", int(gateway, 16))))  # in the machine's byte order
            found.append((int(metric), Gateway(host, interface)))
    found.sort(key=lambda entry: entry[0])
    return [gateway for _, gateway in found]


def parse_proc_ipv6_route(text: str) -> list[Gateway]:
    """Default gateways in the format of /proc/net/ipv6_route, by metric."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 10 or fields[0].strip("0") or fields[1] != "00" or not fields[4].strip("0"):
            continue
        flags = int(fields[8], 16)
        if flags & _RTF_GATEWAY and flags & _RTF_UP:
            host = ipaddress.IPv6Address(bytes.fromhex(fields[4]))
            zone = f"%{fields[9]}" if host.is_link_local else ""
            found.append((int(fields[5], 16), Gateway(f"{host}{zone}", fields[9])))
    found.sort(key=lambda entry: entry[0])
    return [gateway for _, gateway in found]


def parse_netstat(text: str) -> list[Gateway]:
    """Default gateways in what `netstat -rn` prints on macOS, the BSDs and Windows."""
    found: dict[str, Gateway] = {}
    for line in text.splitlines():
        words = line.split()
        default = next((i for i, word in enumerate(words) if word in _DEFAULT_ROUTES), None)
        if default is None or default > 2:
            continue
        for word in words[default + 1 :]:
            try:
                host = ipaddress.ip_address(word.partition("%")[0])
            except ValueError:
                continue
            if not host.is_unspecified:
                interface = words[-1] if re.fullmatch(r"[a-z]+\d+", words[-1]) else ""
                found.setdefault(word, Gateway(word, interface))
                break
    return list(found.values())


class InterfaceWatcher:
    """Tells changes of addresses and gateways between two polls.

    Args:
        addresses: reads the addresses.
        gateways: reads the gateways; by default on Linux only, where it is cheap.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[LocalAddress]] = local_addresses,
        gateways: Callable[[], Sequence[Gateway]] | None = None,
    ) -> None:
        self._read_addresses = addresses
        self._read_gateways = gateways or (_linux_gateways if sys.platform == "linux" else list)
        self.addresses: tuple[LocalAddress, ...] = tuple(self._read_addresses())
        """As of the last poll."""
        self.gateways: tuple[Gateway, ...] = tuple(self._read_gateways())
        """As of the last poll."""

    def poll(self) -> InterfaceChange | None:
        """Read again; None where nothing changed. The order of addresses does not matter."""
        addresses, gateways = tuple(self._read_addresses()), tuple(self._read_gateways())
        before, self.addresses = self.addresses, addresses
        gateways_changed, self.gateways = set(gateways) != set(self.gateways), gateways
        added = tuple(a for a in addresses if a not in before)
        removed = tuple(a for a in before if a not in addresses)
        if not (added or removed or gateways_changed):
            return None
        return InterfaceChange(added, removed, gateways_changed)


def _linux_gateways() -> list[Gateway]:
    return parse_proc_route(_read(_PROC / "route")) + parse_proc_ipv6_route(_read(_PROC / "ipv6_route"))


def _netstat() -> str:
    command = shutil.which("netstat")
    if command is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command, no input
            [command, "-rn"], capture_output=True, timeout=_NETSTAT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def _ipv6_flags() -> dict[str, int]:
    """Flags by address, from Linux; elsewhere none are known."""
    flags = {}
    for line in _read(_PROC / "if_inet6").splitlines():
        fields = line.split()
        if len(fields) == 6:
            flags[str(ipaddress.IPv6Address(bytes.fromhex(fields[0])))] = int(fields[4], 16)
    return flags


def _is_down(interface: str) -> bool:
    """Whether Linux says that the interface has no carrier; "unknown" (tunnels) is up."""
    return _read(_SYS / interface.partition(":")[0] / "operstate").strip() in ("down", "lowerlayerdown", "notpresent")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
