"""The lab itself: an internet, hosts and sites, each a few network namespaces, in a dozen lines of asyncio."""

from __future__ import annotations

import itertools
import random
import sys
from types import TracebackType
from typing import Self

from crust.testing.natlab.declare import NATS, Kind, Link, Nat, Router
from crust.testing.natlab.errors import LabError, LabUnavailable
from crust.testing.natlab.places import Host, Site
from crust.testing.natlab.workshop import Workshop

__all__ = ["Lab"]

_CARRIER_LAN = "100.64.0.0/10"


class Lab:
    """An asynchronous context manager that holds an internet; leaving it ends every program and namespace.

    Nothing in a lab reaches the real network: its namespaces have no cable that leads out. Several labs can live side
    by side. A lab whose owner is killed goes with it, and so does one whose thread ends.
    """

    def __init__(
        self, *, delay: float = 0.010, hops: int = 5, seed: int | None = None, offload: bool | None = None
    ) -> None:
        """Prepare a lab; entering it makes it.

        Args:
            delay: one-way delay of the access link of a site or a public peer: 10 ms make 40 ms of round trip between
                two sites, and 20 ms to a public host that stands at the core.
            hops: routers that a packet passes on the internet; a lower TTL dies there.
            seed: of ports, losses and the like; random by default.
            offload: whether hosts may send trains of segments (GSO); by default where the kernel shows them right.
        """
        self.delay = delay
        self.seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
        self._workshop = Workshop(seed=self.seed, hops=hops, offload=offload)
        self._names = itertools.count(1)

    async def __aenter__(self) -> Self:
        """Make the lab.

        Raises:
            LabUnavailable: this machine cannot.
        """
        if sys.platform != "linux":
            raise LabUnavailable("labs need Linux")
        try:
            await self._workshop.start()
        except BaseException:
            await self._workshop.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the lab."""
        await self.aclose()

    async def aclose(self) -> None:
        """Kill every program of the lab and let go of its namespaces; closing it again does nothing."""
        await self._workshop.aclose()

    async def public(
        self,
        name: str,
        *,
        addresses: int = 1,
        ipv6: bool = True,
        delay: float = 0.0,
        link: Link | None = None,
    ) -> Host:
        """Add a host on the internet.

        Args:
            name: for people.
            addresses: how many IPv4 addresses it has.
            ipv6: whether it has an IPv6 address, too, where the kernel has IPv6.
            delay: of its access link, unless `link` is given; 0 puts it at the core, as a rendezvous.
            link: its access link.
        """
        ipv6 = ipv6 and self._workshop.has_ipv6
        host = Host(self._workshop, name, await self._workshop.host_namespace(ipv6=ipv6), ipv6=ipv6)
        await self._workshop.plug(host, None, link or Link(delay=delay), ipv4=addresses, ipv6=ipv6)
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
        if isinstance(nat, str):
            if len(NATS[nat].routers) != 1:
                raise LabError(f"{nat} is not a single router: use Lab.place")
            nat = NATS[nat].routers[0]
        router = nat if isinstance(nat, Router) else Router(nat=nat or Nat())
        site = Site(self._workshop, name, router, lan, None)
        await self._workshop.build(site, link or Link(delay=self.delay), isolated=isolated)
        return site

    async def place(
        self,
        kind: Kind | str,
        name: str | None = None,
        *,
        lan: str = "192.168.1.0/24",
        delay: float | None = None,
        link: Link | None = None,
    ) -> Host:
        """Add a peer of some kind, with the routers that it lives behind.

        Args:
            kind: a kind, or its name in `NATS`.
            name: for people.
            lan: the inside prefix of the innermost router.
            delay: one way, of the access link, unless `link` is given; by default the lab's.
            link: the access link.

        Raises:
            LabUnavailable: a router needs a program that is missing.
        """
        link = link or Link(delay=self.delay if delay is None else delay)
        kind = NATS[kind] if isinstance(kind, str) else kind
        name = name or f"{kind.name}-{next(self._names)}"
        if not kind.routers:
            return await self.public(name, link=link, ipv6=kind.ipv6, addresses=int(kind.ipv4))
        prefixes = [_CARRIER_LAN] * (len(kind.routers) - 1) + [lan]
        site = await self.site(name, kind.routers[0], lan=prefixes[0], link=link)
        for router, prefix in zip(kind.routers[1:], prefixes[1:], strict=True):
            site = await site.site(name, router, lan=prefix)
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
            await self._workshop.unplug(place)
            await self._workshop.drop(place.namespace)
            return
        for host in list(place.hosts):
            await self.remove(host)
        for site in list(place.sites):
            await self.remove(site)
        await self._workshop.take_down(place)

    async def counters(self) -> dict[str, int]:
        """How many packets the lab dropped, by reason.

        Three tell whether this machine was fast enough: `overrun` packets found a buffer full, the lab came `late` by
        more than 2 ms so many times, by at most `latest_us`.
        """
        found: dict[str, int] = await self._workshop.fabric.call("counters")
        return found
