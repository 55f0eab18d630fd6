"""Builds what a lab is made of: talks to the keeper, which holds the namespaces, and to the fabric between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crust.testing.natlab.channel import Channel
from crust.testing.natlab.declare import Link, Nat
from crust.testing.natlab.errors import LabError, LabUnavailable
from crust.testing.natlab.kernel import (
    miniupnpd_configuration,
    netfilter_rules,
    router_sysctls,
    timeout_sysctls,
)
from crust.testing.natlab.process import Process, Stdio

if TYPE_CHECKING:
    from crust.testing.natlab.places import Host, Site

__all__ = ["Workshop"]

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
# What a lab's hosts run most often: all of the command line, and what it would import on the way.
_PRELOADED = ("crust.cli:main", "crust.cli.node", "crust.cli.ping", "crust.cli.stdio", "rich.console", "uvloop")
_SYSTEM_DIRECTORIES = ":/usr/local/sbin:/usr/sbin:/sbin"
_NO_IPV6 = {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1}
_WITH_IPV6 = {"ipv6/conf/all/disable_ipv6": 0, "ipv6/conf/default/disable_ipv6": 0}
# Packet sockets show trains of UDP segments (UDP_SEGMENT) since this version; earlier ones lose them.
_KERNEL_WITH_UDP_TRAINS = (6, 2)


def _command(module: str, *arguments: object) -> list[str]:
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, root, module, *map(str, arguments)]


def _find_program(name: str, package: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + _SYSTEM_DIRECTORIES)
    if path is None:
        raise LabUnavailable(f"{name} is missing (Debian package {package})")
    return path


def _kernel_shows_udp_trains() -> bool:
    with contextlib.suppress(ValueError):
        major, minor = platform.release().split(".")[:2]
        return (int(major), int(minor)) >= _KERNEL_WITH_UDP_TRAINS
    return False


def _kernel_has_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6").exists()


def _bare(address: str) -> str:
    return address.partition("/")[0]


async def _discard(reader: asyncio.StreamReader) -> None:
    """Keep a program from blocking on what it has to say."""
    while await reader.read(65536):
        pass


class Workshop:
    """The processes behind one lab.

    Attributes:
        core: the fabric's number for the internet.
        has_ipv6: whether this kernel knows IPv6.
    """

    def __init__(self, *, seed: int, hops: int, offload: bool | None) -> None:
        """Prepare; `start` makes the processes."""
        self.core = 0
        self.has_ipv6 = _kernel_has_ipv6()
        self._seed = seed
        self._hops = hops
        self._segments = None if (_kernel_shows_udp_trains() if offload is None else offload) else 1
        self._numbers = itertools.count(1)
        self._places = itertools.count(1)
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._processes: list[Process] = []
        self._background: set[asyncio.Task[None]] = set()
        self._runner: asyncio.subprocess.Process | None = None
        self._ready: asyncio.Future[None] | None = None
        self._keeper: Channel | None = None
        self._fabric: Channel | None = None
        self._preloading: asyncio.Task[None] | None = None

    @property
    def keeper(self) -> Channel:
        """The process that holds the namespaces."""
        if self._keeper is None:
            raise LabError("the lab has not been entered")
        return self._keeper

    @property
    def fabric(self) -> Channel:
        """The process that moves the packets."""
        if self._fabric is None:
            raise LabError("the lab has not been entered")
        return self._fabric

    # Life

    async def start(self) -> None:
        """Start the keeper and the fabric."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._keeper = Channel("keeper", ours, self._on_event)
            descriptor = theirs.fileno()
            self._runner = await asyncio.create_subprocess_exec(
                *_command(_KEEPER, descriptor, os.getpid()),
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        gone = loop.create_task(self._runner.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {self._ready, gone}
            await asyncio.wait(waiting, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not self._ready.done():
            raise LabUnavailable("the lab's first process ended or hung; what it said is on stderr")
        self._ready.result()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._fabric = Channel("fabric", ours, self._on_event)
            await self.keeper.call(
                "execute",
                namespace=0,
                argv=_command(_FABRIC, 3, self._seed),
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

    async def aclose(self) -> None:
        """End the processes, and with them everything in the lab."""
        for task in (*self._background, *filter(None, [self._preloading])):
            task.cancel()
        for process in self._processes:
            process.close()
        for channel in (self._fabric, self._keeper):
            if channel is not None:
                channel.close()
        if self._runner is not None:
            try:
                await asyncio.wait_for(self._runner.wait(), _CLOSE_SECONDS)
            except TimeoutError:
                self._runner.kill()
                await self._runner.wait()
            self._runner = None

    # Programs

    async def run(
        self,
        namespace: int,
        argv: Sequence[str],
        stdio: tuple[Stdio, Stdio, Stdio],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Start a program in a namespace."""

        return await self._start("execute", namespace, argv, stdio, env, cwd)

    async def run_crust(
        self,
        namespace: int,
        arguments: Sequence[str],
        stdio: tuple[Stdio, Stdio, Stdio],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Start a `crust` command in a namespace, as a fork of a process that has Crust loaded."""
        if self._preloading is None:
            self._preloading = asyncio.get_running_loop().create_task(self._preload())
        await asyncio.shield(self._preloading)
        return await self._start("fork", namespace, ["crust", *arguments], stdio, env, cwd)

    async def _preload(self) -> None:
        await self.keeper.call(
            "preload",
            argv=[sys.executable, "-m", "crust.testing.natlab.forkserver", *_PRELOADED],
            environment=dict(os.environ),
            descriptors=[0, 2, 2],
        )

    async def _start(
        self,
        verb: str,
        namespace: int,
        argv: Sequence[str],
        stdio: tuple[Stdio, Stdio, Stdio],
        env: Mapping[str, str] | None,
        cwd: str | None,
    ) -> Process:
        async def start(descriptors: list[int]) -> int:
            pid: int = await self.keeper.call(
                verb,
                namespace=namespace,
                argv=[str(word) for word in argv],
                environment=dict(os.environ if env is None else env),
                directory=cwd or str(Path.cwd()),
                descriptors=descriptors,
            )
            return pid

        process = Process()
        await process.start(stdio, start, self._exit_of, self._send_signal)
        self._processes.append(process)
        return process

    async def _send_signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(LabError, ProcessLookupError):
            await self.keeper.call("signal", pid=pid, number=int(number))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Namespaces and cables

    async def _namespace(self, sysctls: Mapping[str, str | int]) -> int:
        number = next(self._numbers)
        await self.keeper.call("namespace", number=number, sysctls=dict(sysctls))
        return number

    async def host_namespace(self, *, ipv6: bool) -> int:
        """A namespace for a host, without a cable."""
        return await self._namespace(_WITH_IPV6 if ipv6 else _NO_IPV6)

    async def drop(self, namespace: int) -> None:
        """Kill what runs in a namespace, and let go of it."""
        await self.keeper.call("drop", namespace=namespace)

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
            segments=self._segments,
        )
        figures = asdict(link)
        member: int = await self.fabric.call(
            "port",
            network=network,
            interface=far,
            mac=mac,
            addresses=[*map(_bare, addresses), *routed],
            up=figures,
            down=figures,
            gateway=gateway,
        )
        return member, far

    def _outside(self, *, ipv4: int, ipv6: bool) -> tuple[int, list[str], list[str]]:
        """The number of a place on the internet, addresses for it, and its gateways."""
        number = next(self._places)
        # Addresses of somebody, chosen because software treats them as public ones; no packet ever leaves.
        block = f"11.{number >> 8}.{number & 255}"
        addresses = [f"{block}.{each + 1}/24" for each in range(ipv4)]
        gateways = [f"{block}.254"] if ipv4 else []
        if ipv6:
            addresses.append(f"2001:db8:0:{number:x}::1/64")
            gateways.append(f"2001:db8:0:{number:x}::ffff")
        return number, addresses, gateways

    async def plug(self, host: Host, place: Site | None, link: Link, *, ipv4: int = 1, ipv6: bool = False) -> None:
        """Connect a host to a site's LAN, which decides on the addresses, or to the internet."""
        if place is None:
            _, addresses, gateways = self._outside(ipv4=ipv4, ipv6=ipv6)
            network = self.core
        else:
            addresses, gateways = place.lan_addresses()
            network = place.network
            place.hosts.append(host)
        host.member, host.far = await self._cable(host.namespace, "eth0", network, addresses, gateways, link)
        host.addresses = [_bare(address) for address in addresses]
        host.gateway = next((gateway for gateway in gateways if ":" not in gateway), None)
        host.site = place

    async def unplug(self, host: Host) -> None:
        """Take a host's cable away."""
        await self.fabric.call("detach", member=host.member)
        await self.keeper.call("uncable", far=host.far)
        if host.site is not None:
            host.site.hosts.remove(host)
        host.addresses, host.gateway, host.site = [], None, None

    # Routers

    async def build(self, site: Site, link: Link, *, isolated: bool) -> None:
        """Make the router and the LAN of a site."""
        if site.router.ipv6 and not self.has_ipv6:
            raise LabUnavailable("this kernel has no IPv6")
        site.network = await self.fabric.call("network", prefix=site.lan, isolated=isolated)
        if site.router.kernel:
            await self._build_kernel_router(site, link)
        else:
            await self._build_own_router(site, link)

    def _uplink(self, site: Site) -> tuple[int, list[str], list[str]]:
        """The network above a router, its addresses there, and its gateways."""
        router, parent = site.router, site.parent
        if parent is not None:
            if router.ipv6:
                raise LabError("a nested site has no IPv6")
            addresses, gateways = parent.lan_addresses()
            return parent.network, addresses, gateways
        number, addresses, gateways = self._outside(ipv4=int(router.nat is not None), ipv6=router.ipv6)
        if router.ipv6:
            site.prefix6 = f"2001:db8:1:{number:x}::"
        return self.core, addresses, gateways

    async def _build_own_router(self, site: Site, link: Link) -> None:
        network, [address], _ = self._uplink(site)
        site.address = _bare(address)
        firewall, figures = site.router.firewall, asdict(link)
        ports = None if firewall.tcp_ports is None else sorted(firewall.tcp_ports)
        site.member = await self.fabric.call(
            "router",
            network=network,
            address=site.address,
            lan=site.network,
            lan_address=site.gateway,
            nat=asdict(site.router.nat or Nat()),
            up=figures,
            down=figures,
            policy={"blocked": sorted(firewall.blocked), "tcp_ports": ports},
        )

    async def _build_kernel_router(self, site: Site, link: Link) -> None:
        _find_program("nft", "nftables")
        router = site.router
        network, addresses, gateways = self._uplink(site)
        sysctls = {**(_WITH_IPV6 if router.ipv6 else _NO_IPV6), **router_sysctls(router)}
        site.namespace = await self._namespace(sysctls)
        routed = [f"{site.prefix6}/64"] if site.prefix6 else []
        site.member, wan = await self._cable(site.namespace, "wan", network, addresses, gateways, link, routed=routed)
        inside = [f"{site.gateway}/{IPv4Network(site.lan).prefixlen}"] if router.nat is not None else []
        inside += [f"{site.gateway6}/64"] if site.prefix6 else []
        site.lan_member, lan = await self._cable(site.namespace, "lan", site.network, inside, [], Link(), gateway=True)
        site.cables = [wan, lan]
        site.address = _bare(addresses[0]) if router.nat is not None else None
        await self._load_rules(site, site.namespace)
        if router.port_mapping:
            await self._start_mapper(site, site.namespace)

    async def _load_rules(self, site: Site, namespace: int) -> None:
        """Give a kernel router its rules, in place of those it had."""
        stdio = (subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE)
        nft = await self.run(namespace, [_find_program("nft", "nftables"), "-f", "-"], stdio)
        _, said = await nft.communicate(netfilter_rules(site.router).encode())
        if nft.returncode:
            raise LabUnavailable(f"nft refuses the rules of {site.name}: {said.decode().strip()}")
        await self.keeper.call("sysctl", namespace=namespace, sysctls=timeout_sysctls(site.router))

    async def _start_mapper(self, site: Site, namespace: int) -> None:
        """Start miniupnpd and wait until it serves."""
        argv = [_find_program("miniupnpd", "miniupnpd-nftables"), "-d", "-f", "/dev/stdin", "-P", "/dev/null"]
        site.mapper = await self.run(namespace, argv, (subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE))
        configuration, output = site.mapper.stdin, site.mapper.stderr
        if configuration is None or output is None:
            raise LabError("miniupnpd has no pipes")
        configuration.write(miniupnpd_configuration(site.router, site.gateway).encode())
        configuration.close()
        said = b""
        async with asyncio.timeout(_START_SECONDS):
            while b"Listening for NAT-PMP" not in said:
                line = await output.readline()
                if not line:
                    raise LabUnavailable(f"miniupnpd does not run here: {said.decode(errors='replace').strip()}")
                said += line
        self._in_background(_discard(output))

    async def flush(self, site: Site) -> None:
        """Let a router forget its mappings and connections."""
        if site.namespace is None:
            await self.fabric.call("flush", router=site.member)
        else:
            await self.keeper.call("flush_conntrack", namespace=site.namespace)

    async def reboot(self, site: Site) -> None:
        """Let a router forget everything."""
        if site.mapper is not None:
            site.mapper.kill()
            await site.mapper.wait()
        if site.namespace is not None:
            await self._load_rules(site, site.namespace)
        await self.flush(site)
        if site.mapper is not None and site.namespace is not None:
            await self._start_mapper(site, site.namespace)

    async def take_down(self, site: Site) -> None:
        """Remove a router and its LAN, which has to be empty."""
        if site.parent is not None:
            site.parent.sites.remove(site)
        await self.fabric.call("detach", member=site.member)
        if site.namespace is not None:
            await self.fabric.call("detach", member=site.lan_member)
            for far in site.cables:
                await self.keeper.call("uncable", far=far)
            await self.drop(site.namespace)
