"""Where a node stands: the addresses of its interfaces, what its routers map, how it looks from outside; and what it
serves there beside connections, the STUN service.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Collection, Sequence
from typing import Final

from crust.net.interfaces import InterfaceWatcher, candidate_hosts, local_addresses, on_link_networks
from crust.net.portmap import PortMapReport
from crust.net.stun_service import StunService
from crust.node.core import Core
from crust.node.mapping import PortMappings
from crust.node.outside import OutsideAddresses
from crust.node.udp import UdpFront
from crust.types import Candidate, Transport

__all__ = ["RECENT", "Premises"]

RECENT: Final = 0.5
"""Seconds for which an answer about the interfaces will do, where a dial asks again."""

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_WATCH_SECONDS: Final = 2.0
"""Between two looks at the interfaces: half a millisecond each time."""


class Premises:
    """The addresses of one node.

    Args:
        core: the node's centre.
        front: its UDP sockets; None without µTP.
        seen: our outside hosts, as rendezvous nodes that the user has named see them.
        changed: called when `candidates` may differ from before; True: as interfaces or routes have changed, so that
            what stood may not stand any more.
    """

    def __init__(
        self,
        core: Core,
        front: UdpFront | None,
        *,
        seen: Callable[[], Collection[str]],
        changed: Callable[[bool], None],
    ) -> None:
        config = core.config
        self._core = core
        self._seen = seen
        self._changed = changed
        self._listening: list[tuple[str, int]] = []
        self._mappings = PortMappings(config, changed=self._tell, outside=self._outside_hosts)
        self._outside = OutsideAddresses(config.stun_servers, config.transports, front, self._tell)
        self._stun = StunService(core.stats.count)
        self._watching: asyncio.Task[None] | None = None

    async def open(self, listening: Sequence[tuple[str, int]]) -> None:
        """Open the STUN service, and begin to look around, for which nothing waits.

        Args:
            listening: what the node listens on.

        Raises:
            ConfigError: an address of the STUN service cannot be listened on.
        """
        self._listening = list(listening)
        await self._stun.open(self._core.config.stun_service)
        self._mappings.start(listening)
        self._outside.start(listening)
        self._watching = self._core.loop.create_task(self._watch())

    async def settled(self, seconds: float) -> None:
        """Wait until routers and STUN servers have said something, or the time is up. A cancel loses nothing."""
        await asyncio.gather(self._mappings.settled(seconds), self._outside.settled(seconds))

    async def close(self) -> None:
        """Stop; mappings are given back, within little more than a second."""
        if self._watching is not None:
            self._watching.cancel()
        self._outside.close()
        self._stun.close()
        await self._mappings.close()

    # --- what is known -------------------------------------------------------------------------------------------

    @property
    def candidates(self) -> list[Candidate]:
        """Where this node can be reached, as far as it knows without rendezvous: the best first."""
        return [*self._of_interfaces(), *self._mappings.candidates, *self._outside.candidates]

    @property
    def stun_addresses(self) -> list[tuple[str, int]]:
        """Where the STUN service listens."""
        return list(self._stun.addresses)

    def is_forwarded(self, transport: Transport, port: int, host: str) -> bool:
        """Whether what comes to a port of ours from a host has come through a mapping of our router."""
        if not self._mappings.has(transport, port):
            return False
        address = ipaddress.ip_address(host.partition("%")[0])
        near = any(address in network for network in on_link_networks(local_addresses()))
        return not near and not address.is_loopback

    def port_mapping(self) -> PortMapReport | None:
        """What the routers were asked, and what they said; None where they were not asked."""
        return self._mappings.report()

    def _of_interfaces(self) -> list[Candidate]:
        """Each listening address, wildcards as the addresses of the interfaces."""
        hosts = candidate_hosts(local_addresses(recent=RECENT))
        addresses: list[tuple[str, int]] = []
        for host, port in self._listening:
            if host in _WILDCARDS:
                addresses += [(own, port) for own in hosts if (":" in own) == (":" in host)]
            else:
                addresses.append((host, port))
        if not addresses:  # nothing but loopback
            addresses = [(_WILDCARDS.get(host, host), port) for host, port in self._listening]
        transports = sorted(set(self._core.config.transports))
        return [Candidate(transport, host, port) for host, port in addresses for transport in transports]

    def _outside_hosts(self) -> set[str]:
        """Our hosts outside, as those see them who are outside; who sees us at an address of ours stands inside."""
        seen = {*self._seen(), *(candidate.host for candidate in self._outside.candidates)}
        own = {address.host for address in local_addresses()}
        return {host for host in seen - own if not ipaddress.ip_address(host).is_loopback}

    # --- changes -------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        self._core.stats.count("addresses.changed")
        self._changed(False)

    async def _watch(self) -> None:
        """Interfaces come and go: routers are asked anew, and whoever holds our addresses is told."""
        watcher = InterfaceWatcher()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            change = watcher.poll()
            if change is None:
                continue
            self._core.stats.count("interfaces.changed")
            self._mappings.network_changed()
            self._changed(True)
