"""Hosts and sites: what the owner of a lab holds in hand."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from crust.testing.natlab.declare import Link, Nat, Router
from crust.testing.natlab.errors import LabError
from crust.testing.natlab.process import Process, Stdio

if TYPE_CHECKING:
    from crust.testing.natlab.workshop import Workshop

__all__ = ["Host", "LinkChanges", "Site"]


class LinkChanges(TypedDict, total=False):
    """Figures of a link that can be changed while it is in use; see `Link`. `up=False` cuts it."""

    delay: float
    loss: float
    rate: float | None
    queue: float
    mtu: int
    up: bool


class Host:
    """A machine of the lab: one network namespace with one interface, `eth0`. Made by a lab or a site.

    Attributes:
        name: as given.
        addresses: its addresses, IPv4 before IPv6.
        gateway: the IPv4 address of its router, as its routing table has it; None without IPv4.
        site: where it stands; None on the internet.
        namespace: the lab's number for its namespace.
        member: the lab's number for its attachment.
        far: name of the far end of its cable.
    """

    def __init__(self, workshop: Workshop, name: str, namespace: int, *, ipv6: bool) -> None:
        self.name = name
        self.addresses: list[str] = []
        self.gateway: str | None = None
        self.site: Site | None = None
        self.namespace = namespace
        self.member = 0
        self.far = ""
        self._workshop = workshop
        self._ipv6 = ipv6

    def __repr__(self) -> str:
        return f"<Host {self.name} {' '.join(self.addresses)}>"

    @property
    def address(self) -> str:
        """The first address: IPv4 where there is one."""
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
        return await self._workshop.run(self.namespace, argv, (stdin, stdout, stderr), env, cwd)

    async def run_crust(
        self,
        *arguments: str,
        stdin: Stdio = subprocess.PIPE,
        stdout: Stdio = subprocess.PIPE,
        stderr: Stdio = subprocess.PIPE,
        cwd: str | None = None,
    ) -> Process:
        """Start a `crust` command on this host, in a tenth of the time that `run` takes: Crust is loaded once in a lab.

        Args:
            *arguments: the command and what it is given.
            stdin: as for `run`.
            stdout: the same.
            stderr: the same.
            cwd: its working directory.

        Raises:
            OSError: it cannot be started.
            LabError: the lab is closed.
        """
        return await self._workshop.run_crust(self.namespace, arguments, (stdin, stdout, stderr), cwd=cwd)

    async def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, protocol: int = 0
    ) -> socket.socket:
        """A non-blocking socket on this host, to use in this process: it stays in the host's namespace for good.

        Raises:
            OSError: there is no such socket.
            LabError: the lab is closed.
        """
        return await self._workshop.keeper.call_for_socket(
            "socket", namespace=self.namespace, family=int(family), kind=int(kind), protocol=protocol
        )

    async def set_link(self, **changes: Unpack[LinkChanges]) -> None:
        """Change figures of the cable to this host, in both directions."""
        await self._workshop.fabric.call("link", member=self.member, changes=changes)

    async def capture(self, path: str | os.PathLike[str]) -> None:
        """Write what passes this host's cable to a file in pcap form, until the host moves or the lab ends."""
        with open(path, "wb", buffering=0) as file:  # noqa: ASYNC230 - it does not block
            await self._workshop.fabric.call("capture", member=self.member, descriptors=[file.fileno()])

    async def move(self, place: Site | None, *, link: Link | None = None) -> None:
        """Unplug this host and plug it in elsewhere, with another address, as when a laptop changes networks.

        Programs keep running, sockets stay open, and what they have under way is lost.

        Args:
            place: the site; None for the internet.
            link: the new cable; without delay by default.
        """
        await self._workshop.unplug(self)
        await self._workshop.plug(self, place, link or Link(), ipv6=self._ipv6)


class Site:
    """A router and the LAN behind it. Made by a lab or another site.

    Attributes:
        name: as given.
        router: its declaration.
        address: its outside IPv4 address; None without IPv4.
        lan: the inside IPv4 prefix.
        gateway: the inside IPv4 address of the router.
        prefix6: the inside IPv6 prefix without its length; None without IPv6.
        hosts: those that stand here.
        parent: the site in whose LAN the router stands; None on the internet.
        sites: those whose routers stand in this LAN.
        network: the lab's number for the LAN.
        member: the lab's number for the router's attachment outside.
        lan_member: the same inside, for a kernel router.
        namespace: the lab's number for a kernel router's namespace.
        cables: names of the far ends of a kernel router's cables.
        mapper: the process of miniupnpd.
    """

    def __init__(self, workshop: Workshop, name: str, router: Router, lan: str, parent: Site | None) -> None:
        self.name = name
        self.router = router
        self.lan = lan
        self.parent = parent
        self.address: str | None = None
        self.hosts: list[Host] = []
        self.sites: list[Site] = []
        self._free = IPv4Network(lan).hosts()
        self.gateway = str(next(self._free))
        self.prefix6: str | None = None
        self._free6 = itertools.count(2)
        self.network = self.member = self.lan_member = 0
        self.namespace: int | None = None
        self.cables: list[str] = []
        self.mapper: Process | None = None
        self._workshop = workshop

    def __repr__(self) -> str:
        return f"<Site {self.name} {self.address}>"

    @property
    def gateway6(self) -> str | None:
        """The inside IPv6 address of the router."""
        return f"{self.prefix6}1" if self.prefix6 else None

    def lan_addresses(self) -> tuple[list[str], list[str]]:
        """Unused addresses of the LAN with their prefix lengths, and the gateways that go with them."""
        addresses, gateways = [], []
        if self.router.nat is not None:
            addresses.append(f"{next(self._free)}/{IPv4Network(self.lan).prefixlen}")
            gateways.append(self.gateway)
        if self.gateway6 is not None:
            addresses.append(f"{self.prefix6}{next(self._free6):x}/64")
            gateways.append(self.gateway6)
        return addresses, gateways

    async def host(self, name: str | None = None, *, link: Link | None = None) -> Host:
        """Add a host to the LAN."""
        ipv6 = self.router.ipv6
        namespace = await self._workshop.host_namespace(ipv6=ipv6)
        host = Host(self._workshop, name or f"{self.name}-{len(self.hosts) + 1}", namespace, ipv6=ipv6)
        await self._workshop.plug(host, self, link or Link())
        return host

    async def site(
        self, name: str, nat: Router | Nat | None = None, *, lan: str = "192.168.1.0/24", link: Link | None = None
    ) -> Site:
        """Add a site whose router stands in this one's LAN, as behind a carrier's NAT.

        Args:
            name: for people.
            nat: a router, or the NAT of the lab's own router.
            lan: the inside IPv4 prefix of the new site.
            link: between the two routers.

        Raises:
            LabUnavailable: a kernel router needs a program that is missing.
        """
        router = nat if isinstance(nat, Router) else Router(nat=nat or Nat())
        site = Site(self._workshop, name, router, lan, self)
        await self._workshop.build(site, link or Link(), isolated=False)
        self.sites.append(site)
        return site

    async def flush(self) -> None:
        """Let the router forget every mapping and connection; port mappings that were asked of it stay."""
        await self._workshop.flush(self)

    async def reboot(self) -> None:
        """Let the router forget everything, port mappings too."""
        await self._workshop.reboot(self)

    async def mappings(self) -> list[dict[str, Any]]:
        """The mappings of the lab's own NAT: `protocol`, `inside`, `port`, `remotes`.

        Raises:
            LabError: this is a kernel router, whose tables are its own.
        """
        if self.namespace is not None:
            raise LabError(f"{self.name} is a kernel router")
        found: list[dict[str, Any]] = await self._workshop.fabric.call("mappings", router=self.member)
        return found

    async def set_link(self, **changes: Unpack[LinkChanges]) -> None:
        """Change figures of the access link of this site, in both directions."""
        await self._workshop.fabric.call("link", member=self.member, changes=changes)
