"""The lab itself: an internet, hosts and sites, each a few network namespaces, in a dozen lines of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .channel import Channel
from .declare import NATS, Kind, Link, Nat, Router
from .errors import LabError, LabUnavailable
from .kernel import miniupnpd_configuration, netfilter_rules, router_sysctls, timeout_sysctls
from .process import Process, Stdio

__all__ = ["Host", "Lab", "Site"]

_START_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_KEEPER, _FABRIC = "crust.testing.natlab.keeper", "crust.testing.natlab.fabric.pump"
# The processes of a lab import single modules of this package, and not the library around them.
_LAUNCHER = """\
import importlib, sys, types
root, module = sys.argv.pop(1), sys.argv.pop(1)
parts = module.split(".")[:3]
for depth in range(3):
    package = types.ModuleType(".".join(parts[: depth + 1]))
    package.__path__ = ["/".join([root, *parts[1 : depth + 1]])]
    sys.modules[package.__name__] = package
importlib.import_module(module).main()
"""
_NO_IPV6 = {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1}
_WITH_IPV6 = {"ipv6/conf/all/disable_ipv6": 0, "ipv6/conf/default/disable_ipv6": 0}


def _command(module: str, *arguments: object) -> list[str]:
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, root, module, *map(str, arguments)]


def _link(link: Link) -> dict[str, Any]:
    return asdict(link)


def find_program(name: str, package: str) -> str:
    """The path of a program.

    Raises:
        LabUnavailable: it is not installed.
    """
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        raise LabUnavailable(f"{name} is missing (Debian package {package})")
    return path


class Host:
    """A machine of the lab: one network namespace with one interface, `eth0`.

    Attributes:
        name: as given.
        address: its IPv4 address, or its IPv6 address where it has no other.
        addresses: all its addresses.
        gateway: the address of its router, as its routing table has it; None without IPv4.
        site: where it stands; None on the internet.
    """

    def __init__(self, lab: Lab, name: str, namespace: int) -> None:
        """For `Lab.public` and `Site.host` only."""
        self.name = name
        self.addresses: list[str] = []
        self.gateway: str | None = None
        self.site: Site | None = None
        self._lab = lab
        self._namespace = namespace
        self._port = 0
        self._far = ""

    def __repr__(self) -> str:
        return f"<Host {self.name} {' '.join(self.addresses)}>"

    @property
    def address(self) -> str:
        """The first address."""
        return self.addresses[0]

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Stdio = subprocess.PIPE,
        stdout: Stdio = subprocess.PIPE,
        stderr: Stdio = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Start a program on this host; it is killed with the lab at the latest.

        Args:
            argv: program and arguments.
            stdin: as in `subprocess`: PIPE, DEVNULL, None to share ours, or a file.
            stdout: the same.
            stderr: the same, and STDOUT.
            env: its environment, ours by default.
            cwd: its working directory.

        Raises:
            OSError: it cannot be started.
            LabError: the lab is closed.
        """
        return await self._lab.start(self._namespace, argv, (stdin, stdout, stderr), env, cwd)

    async def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, protocol: int = 0
    ) -> socket.socket:
        """A non-blocking socket on this host, to use in this process: it stays in the host's namespace for good."""
        return await self._lab.keeper.call_for_socket(
            "socket", namespace=self._namespace, family=int(family), kind=int(kind), protocol=protocol
        )

    async def set_link(self, **changes: Any) -> None:
        """Change the cable to this host: `delay`, `loss`, `rate`, `queue`, `mtu` (see `Link`), `up` (bool)."""
        await self._lab.fabric.call("link", member=self._port, up=changes, down=changes)

    async def capture(self, path: str | os.PathLike[str]) -> None:
        """Write what passes this host's cable to a file in pcap form, until the host moves or the lab ends."""
        with open(path, "wb", buffering=0) as file:  # noqa: ASYNC230 - it does not block
            await self._lab.fabric.call("capture", member=self._port, descriptors=[file.fileno()])

    async def move(self, place: Site | None, *, link: Link | None = None) -> None:
        """Unplug this host and plug it in elsewhere, with another address, as when a laptop changes networks.

        Args:
            place: the site; None for the internet.
            link: the new cable.
        """
        await self._lab.unplug(self)
        await self._lab.plug(self, place, link)


class Site:
    """A router and the LAN behind it.

    Attributes:
        name: as given.
        router: its declaration.
        address: its outside IPv4 address; None without IPv4.
        lan: the inside IPv4 prefix.
        gateway: the inside address of the router.
        hosts: those that stand here.
        parent: the site in whose LAN the router stands; None on the internet.
        sites: those whose routers stand in this LAN.
    """

    def __init__(self, lab: Lab, name: str, router: Router, lan: str, parent: Site | None) -> None:
        """For `Lab.site` and `Site.site` only."""
        self.name = name
        self.parent = parent
        self.sites: list[Site] = []
        self.router = router
        self.lan = lan
        self.address: str | None = None
        self.hosts: list[Host] = []
        self._lab = lab
        self._free = IPv4Network(lan).hosts()
        self.gateway = str(next(self._free))
        self.prefix6: str | None = None
        self._next6 = itertools.count(2)
        self.network = 0
        self.member = 0
        self.lan_member = 0
        self.namespace: int | None = None
        self.cables: list[str] = []
        self._mapper: Process | None = None

    def __repr__(self) -> str:
        return f"<Site {self.name} {self.address}>"

    async def host(self, name: str | None = None, *, link: Link | None = None) -> Host:
        """Add a host to the LAN."""
        host = await self._lab.bare_host(name or f"{self.name}{len(self.hosts) + 1}", ipv6=self.router.ipv6)
        await self._lab.plug(host, self, link)
        return host

    async def site(
        self, name: str, nat: Router | Nat | str | None = None, *, lan: str = "192.168.1.0/24", link: Link | None = None
    ) -> Site:
        """Add a site whose router stands in this one's LAN (CGNAT)."""
        return await self._lab.build_site(name, nat, lan, self, link or Link(), isolated=False)

    def next_address(self) -> str:
        """An unused address of the LAN, with its prefix length."""
        return f"{next(self._free)}/{IPv4Network(self.lan).prefixlen}"

    def next_address6(self) -> str:
        """An unused IPv6 address of the LAN, with its prefix length."""
        return f"{self.prefix6}{next(self._next6):x}/64"

    async def flush(self) -> None:
        """Let the router forget every mapping and connection."""
        if self.namespace is None:
            await self._lab.fabric.call("flush", router=self.member)
        else:
            await self._lab.keeper.call("flush_conntrack", namespace=self.namespace)

    async def reboot(self) -> None:
        """Let the router forget everything: connections, and the port mappings that were asked of it."""
        if self.namespace is not None:
            if self._mapper is not None:
                self._mapper.kill()
                await self._mapper.wait()
            await self._lab.load_rules(self)
        await self.flush()
        if self.router.port_mapping:
            await self.start_mapper()

    async def mappings(self) -> list[dict[str, Any]]:
        """The mappings of the lab's own NAT: `protocol`, `inside`, `port`, `remotes`.

        Raises:
            LabError: this is a kernel router, whose tables are its own.
        """
        if self.namespace is not None:
            raise LabError(f"{self.name} is a kernel router")
        found: list[dict[str, Any]] = await self._lab.fabric.call("mappings", router=self.member)
        return found

    async def set_link(self, **changes: Any) -> None:
        """Change the access link of this site: `delay`, `loss`, `rate`, `queue`, `mtu` (see `Link`), `up` (bool)."""
        await self._lab.fabric.call("link", member=self.member, up=changes, down=changes)

    async def start_mapper(self) -> None:
        """Start miniupnpd and wait until it serves."""
        program = find_program("miniupnpd", "miniupnpd-nftables")
        if self.namespace is None:
            raise LabError(f"{self.name} is no kernel router")
        argv = [program, "-d", "-f", "/dev/stdin", "-P", "/dev/null"]
        stdio = (subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE)
        self._mapper = await self._lab.start(self.namespace, argv, stdio, None, None)
        configuration = miniupnpd_configuration(self.router, self.gateway)
        if self._mapper.stdin is None or self._mapper.stderr is None:
            raise LabError("miniupnpd has no pipes")
        self._mapper.stdin.write(configuration.encode())
        self._mapper.stdin.close()
        said = b""
        async with asyncio.timeout(_START_SECONDS):
            while b"Listening for NAT-PMP" not in said:
                line = await self._mapper.stderr.readline()
                if not line:
                    raise LabUnavailable(f"miniupnpd does not run here: {said.decode(errors='replace').strip()}")
                said += line
        self._lab.in_background(_discard(self._mapper.stderr))


async def _discard(reader: asyncio.StreamReader) -> None:
    """Keep a program from blocking on what it has to say."""
    while await reader.read(65536):
        pass


class Lab:
    """An asynchronous context manager that holds an internet; leaving it ends every program and namespace.

    Nothing in a lab reaches the real network: its namespaces have no cable that leads out. Several labs can live side
    by side. A lab whose owner is killed goes with it.
    """

    def __init__(self, *, delay: float = 0.010, hops: int = 5, seed: int | None = None) -> None:
        """Prepare a lab; entering it makes it.

        Args:
            delay: one-way delay of the access link of a site or a public peer: 10 ms make 40 ms of round trip between
                two sites, and 20 ms to a public host that stands at the core.
            hops: routers that a packet passes on the internet; a lower TTL dies there.
            seed: of ports, losses and the like; random by default.
        """
        self.delay = delay
        self.seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
        self._hops = hops
        self._numbers = itertools.count(1)
        self._places = itertools.count(1)
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._processes: list[Process] = []
        self._background: set[asyncio.Task[None]] = set()
        self._runner: asyncio.subprocess.Process | None = None
        self._ready: asyncio.Future[None] | None = None
        self.core = 0

    # Life

    async def __aenter__(self) -> Self:
        """Make the lab.

        Raises:
            LabUnavailable: this machine cannot.
        """
        if sys.platform != "linux":
            raise LabUnavailable("labs need Linux")
        try:
            await self._start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _start(self) -> None:
        self._ready = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.keeper = Channel("keeper", ours, self._on_event)
            descriptor = theirs.fileno()
            self._runner = await asyncio.create_subprocess_exec(
                *_command(_KEEPER, descriptor, os.getpid()),
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        gone = asyncio.ensure_future(self._runner.wait())
        try:
            await asyncio.wait({self._ready, gone}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not self._ready.done():
            raise LabUnavailable("the lab's first process ended or hung; what it said is on stderr")
        self._ready.result()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.fabric = Channel("fabric", ours, self._on_event)
            argv = _command(_FABRIC, 3, self.seed)
            await self.keeper.call(
                "execute",
                namespace=0,
                argv=argv,
                environment=dict(os.environ),
                directory=None,
                descriptors=[0, 2, 2, theirs.fileno()],
            )
        self.core = await self.fabric.call("network", hops=self._hops)

    def _on_event(self, event: dict[str, Any]) -> None:
        if "exited" in event:
            exit_code = self._exit_of(event["exited"])
            if not exit_code.done():
                exit_code.set_result(event["status"])
        elif self._ready is not None and not self._ready.done():
            if "unavailable" in event:
                self._ready.set_exception(LabUnavailable(event["unavailable"]))
            else:
                self._ready.set_result(None)

    def _exit_of(self, pid: int) -> asyncio.Future[int]:
        return self._exits.setdefault(pid, asyncio.get_running_loop().create_future())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the lab."""
        await self.aclose()

    async def aclose(self) -> None:
        """Kill every program of the lab and let go of its namespaces."""
        for task in self._background:
            task.cancel()
        for process in self._processes:
            process.close()
        for name in ("fabric", "keeper"):
            channel = self.__dict__.get(name)
            if channel is not None:
                channel.close()
        if self._runner is not None:
            try:
                await asyncio.wait_for(self._runner.wait(), _CLOSE_SECONDS)
            except TimeoutError:
                self._runner.kill()
                await self._runner.wait()
            self._runner = None

    # Places

    async def public(
        self,
        name: str,
        *,
        addresses: int = 1,
        delay: float = 0.0,
        link: Link | None = None,
        ipv6: bool = True,
        ipv4: bool = True,
    ) -> Host:
        """Add a host on the internet.

        Args:
            name: for people.
            addresses: how many IPv4 addresses it has.
            delay: of its access link, unless `link` is given; 0 puts it at the core, as a rendezvous.
            link: its access link.
            ipv6: whether it has an IPv6 address, too.
            ipv4: whether it has IPv4.
        """
        host = await self.bare_host(name, ipv6=ipv6)
        await self.plug(host, None, link or Link(delay=delay), addresses=addresses if ipv4 else 0, ipv6=ipv6)
        return host

    async def site(
        self,
        name: str,
        nat: Router | Nat | str | None = None,
        *,
        lan: str = "192.168.1.0/24",
        link: Link | None = None,
        isolated: bool = False,
    ) -> Site:
        """Add a site on the internet.

        Args:
            name: for people.
            nat: a router, or the NAT of the lab's own router, or the name of a kind that has one router.
            lan: the inside IPv4 prefix; the router takes its first address.
            link: the access link; by default with the lab's delay.
            isolated: whether the hosts of the LAN reach nothing but the router.

        Raises:
            LabUnavailable: a kernel router needs a program that is missing.
        """
        return await self.build_site(name, nat, lan, None, link or Link(delay=self.delay), isolated=isolated)

    async def place(
        self, kind: Kind | str, name: str | None = None, *, lan: str = "192.168.1.0/24", delay: float | None = None
    ) -> Host:
        """Add a peer of some kind, with the routers that it lives behind.

        Args:
            kind: a kind, or its name in `NATS`.
            name: for people.
            lan: the inside prefix of the innermost router.
            delay: one way, of the access link; by default the lab's.

        Raises:
            LabUnavailable: a router needs a program that is missing.
        """
        delay = self.delay if delay is None else delay
        kind = NATS[kind] if isinstance(kind, str) else kind
        name = name or f"{kind.name}-{next(self._places)}"
        if not kind.routers:
            return await self.public(name, delay=delay, ipv6=kind.ipv6, ipv4=kind.ipv4)
        site: Site | None = None
        for depth, router in enumerate(kind.routers):
            prefix = lan if depth == len(kind.routers) - 1 else "100.64.0.0/10"
            link = Link(delay=delay) if site is None else Link()
            site = await self.build_site(name, router, prefix, site, link, isolated=False)
        if site is None:
            raise LabError(f"{kind.name} has no site")
        return await site.host(name)

    async def pair(self, first: Kind | str, second: Kind | str) -> tuple[Host, Host]:
        """Add two peers; two of a shared kind sit in one site."""
        first = NATS[first] if isinstance(first, str) else first
        second = NATS[second] if isinstance(second, str) else second
        one = await self.place(first)
        if first == second and first.shared and one.site is not None:
            return one, await one.site.host()
        return one, await self.place(second)

    async def remove(self, place: Host | Site) -> None:
        """Take down a host, or a site with everything in it, and kill the programs there."""
        if isinstance(place, Host):
            await self.unplug(place)
            await self.keeper.call("drop", namespace=place._namespace)
            return
        for inner in (*place.hosts, *place.sites):
            await self.remove(inner)
        if place.parent is not None:
            place.parent.sites.remove(place)
        await self.fabric.call("detach", member=place.member)
        if place.namespace is not None:
            await self.fabric.call("detach", member=place.lan_member)
            for far in place.cables:
                await self.keeper.call("uncable", far=far)
            await self.keeper.call("drop", namespace=place.namespace)

    async def counters(self) -> dict[str, int]:
        """How many packets the lab dropped, by reason.

        Three tell whether this machine was fast enough: `overrun` packets found a buffer full, the lab came `late` by
        more than 2 ms so many times, by at most `latest_us`.
        """
        found: dict[str, int] = await self.fabric.call("counters")
        return found

    # For hosts and sites

    async def start(
        self,
        namespace: int,
        argv: Sequence[str],
        stdio: tuple[Stdio, Stdio, Stdio],
        env: Mapping[str, str] | None,
        cwd: str | None,
    ) -> Process:
        """Start a program in a namespace."""

        async def execute(descriptors: list[int]) -> int:
            pid: int = await self.keeper.call(
                "execute",
                namespace=namespace,
                argv=[str(word) for word in argv],
                environment=dict(os.environ if env is None else env),
                directory=cwd or os.getcwd(),
                descriptors=descriptors,
            )
            return pid

        process = Process()
        await process._open(stdio, execute, self._exit_of, self._send_signal)
        self._processes.append(process)
        return process

    async def _send_signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(LabError, ProcessLookupError):
            await self.keeper.call("signal", pid=pid, number=int(number))

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something until the lab ends."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _namespace(self, sysctls: Mapping[str, str | int]) -> int:
        number = next(self._numbers)
        await self.keeper.call("namespace", number=number, sysctls=dict(sysctls))
        return number

    async def bare_host(self, name: str, *, ipv6: bool) -> Host:
        """A host without a cable."""
        return Host(self, name, await self._namespace(_WITH_IPV6 if ipv6 else _NO_IPV6))

    async def _cable(
        self,
        namespace: int,
        name: str,
        network: int,
        addresses: list[str],
        gateways: list[str],
        link: Link,
        *,
        routed: Sequence[str] = (),
        gateway: bool = False,
    ) -> tuple[int, str]:
        """Join a namespace to a network; returns the attachment and the name of the cable's far end."""
        number = next(self._numbers)
        far, mac = f"p{number}", (0x02_00_00_01_00_00 + number).to_bytes(6, "big").hex()
        await self.keeper.call(
            "cable",
            namespace=namespace,
            name=name,
            far=far,
            mac=mac,
            addresses=addresses,
            gateways=gateways,
            mtu=1500,
            segments=None,
        )
        plain = [address.partition("/")[0] for address in addresses]
        figures = _link(link)
        member: int = await self.fabric.call(
            "port",
            network=network,
            interface=far,
            mac=mac,
            addresses=[*plain, *routed],
            up=figures,
            down=figures,
            gateway=gateway,
        )
        return member, far

    async def plug(
        self, host: Host, place: Site | None, link: Link | None, *, addresses: int = 1, ipv6: bool | None = None
    ) -> None:
        """Connect a host to a site's LAN or to the internet."""
        if place is None:
            number = next(self._places)
            found = [f"11.{number >> 8}.{number & 255}.{each + 1}/24" for each in range(addresses)]
            gateways = [f"11.{number >> 8}.{number & 255}.254"] if addresses else []
            if ipv6:
                found.append(f"2001:db8:0:{number:x}::1/64")
                gateways.append(f"2001:db8:0:{number:x}::ffff")
            network, link = self.core, link or Link(delay=self.delay)
        else:
            found, gateways, network, link = [], [], place.network, link or Link()
            if place.router.nat is not None:
                found.append(place.next_address())
                gateways.append(place.gateway)
            if place.router.ipv6:
                found.append(place.next_address6())
                gateways.append(f"{place.prefix6}1")
            place.hosts.append(host)
        host._port, host._far = await self._cable(host._namespace, "eth0", network, found, gateways, link)
        host.addresses = [address.partition("/")[0] for address in found]
        host.gateway = next((gateway for gateway in gateways if ":" not in gateway), None)
        host.site = place

    async def unplug(self, host: Host) -> None:
        """Take a host's cable away."""
        await self.fabric.call("detach", member=host._port)
        await self.keeper.call("uncable", far=host._far)
        if host.site is not None:
            host.site.hosts.remove(host)
        host.addresses, host.site = [], None

    async def build_site(
        self, name: str, nat: Router | Nat | str | None, lan: str, parent: Site | None, link: Link, *, isolated: bool
    ) -> Site:
        """Make a site on the internet or inside another one."""
        if isinstance(nat, str):
            if len(NATS[nat].routers) != 1:
                raise LabError(f"{nat} is not a single router: use Lab.place")
            nat = NATS[nat].routers[0]
        router = nat if isinstance(nat, Router) else Router(nat=nat or Nat())
        site = Site(self, name, router, lan, parent)
        site.network = await self.fabric.call("network", prefix=lan, isolated=isolated)
        if router.kernel:
            await self._kernel_router(site, parent, link)
        else:
            await self._own_router(site, parent, link)
        if parent is not None:
            parent.sites.append(site)
        return site

    def _outside(self, site: Site, parent: Site | None) -> tuple[list[str], list[str]]:
        """Addresses of a router's outside, and its gateways."""
        if parent is not None:
            if site.router.ipv6:
                raise LabError("a nested site has no IPv6")
            return [parent.next_address()], [parent.gateway]
        number = next(self._places)
        addresses, gateways = [], []
        if site.router.nat is not None:
            addresses.append(f"11.{number >> 8}.{number & 255}.1/24")
            gateways.append(f"11.{number >> 8}.{number & 255}.254")
        if site.router.ipv6:
            site.prefix6 = f"2001:db8:1:{number:x}::"
            addresses.append(f"2001:db8:0:{number:x}::1/64")
            gateways.append(f"2001:db8:0:{number:x}::ffff")
        return addresses, gateways

    async def _own_router(self, site: Site, parent: Site | None, link: Link) -> None:
        [address], _ = self._outside(site, parent)
        site.address = address.partition("/")[0]
        firewall, figures = site.router.firewall, _link(link)
        site.member = await self.fabric.call(
            "router",
            network=parent.network if parent else self.core,
            address=site.address,
            lan=site.network,
            lan_address=site.gateway,
            nat=asdict(site.router.nat or Nat()),
            up=figures,
            down=figures,
            blocked=sorted(firewall.blocked),
            tcp_ports=None if firewall.tcp_ports is None else sorted(firewall.tcp_ports),
        )

    async def _kernel_router(self, site: Site, parent: Site | None, link: Link) -> None:
        find_program("nft", "nftables")
        router = site.router
        sysctls = {**(_WITH_IPV6 if router.ipv6 else _NO_IPV6), **router_sysctls(router)}
        site.namespace = await self._namespace(sysctls)
        addresses, gateways = self._outside(site, parent)
        routed = [f"{site.prefix6}/64"] if site.prefix6 else []
        site.member, far = await self._cable(
            site.namespace, "wan", parent.network if parent else self.core, addresses, gateways, link, routed=routed
        )
        site.cables.append(far)
        inside = [f"{site.gateway}/{IPv4Network(site.lan).prefixlen}"] if router.nat is not None else []
        inside += [f"{site.prefix6}1/64"] if site.prefix6 else []
        site.lan_member, far = await self._cable(site.namespace, "lan", site.network, inside, [], Link(), gateway=True)
        site.cables.append(far)
        site.address = addresses[0].partition("/")[0] if router.nat is not None else None
        await self.load_rules(site)
        if router.port_mapping:
            await site.start_mapper()

    async def load_rules(self, site: Site) -> None:
        """Give a kernel router its rules, in place of those it had."""
        if site.namespace is None:
            raise LabError(f"{site.name} is no kernel router")
        stdio = (subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE)
        nft = await self.start(site.namespace, [find_program("nft", "nftables"), "-f", "-"], stdio, None, None)
        _, said = await nft.communicate(netfilter_rules(site.router).encode())
        if nft.returncode:
            raise LabUnavailable(f"nft refuses the rules of {site.name}: {said.decode().strip()}")
        await self.keeper.call("sysctl", namespace=site.namespace, sysctls=timeout_sysctls(site.router))
