"""Tunnel endpoints over a simulated network: what the tests run, and what counts round trips."""

from __future__ import annotations

import random as randomness
from collections.abc import Callable
from typing import Any

from crust.crypto.keys import Identity
from crust.proto.noise.outcome import Network
from crust.proto.noise.replay import EphemeralCache
from crust.proto.tunnel.association import Association
from crust.proto.tunnel.endpoint import Dial, TunnelEndpoint
from crust.proto.tunnel.events import DialSucceeded, Knocked, Outgoing, Route, TunnelEvent
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.events import UtpEvent
from crust.testing.simnet import Link, LinkConfig, SimNet
from crust.wire.handshake import Hello
from crust.wire.tunnel import OVERHEAD_BYTES

__all__ = ["TunnelHost", "TunnelNet", "tunnel_config"]


def tunnel_config(**changes: Any) -> UtpConfig:
    """A µTP configuration for the inside of a tunnel."""
    return UtpConfig(tunnel=True, datagram_overhead=OVERHEAD_BYTES, **changes)


class TunnelNet:
    """Hosts with addresses, and a link from each to every other.

    Attributes:
        net: clock and chance.
        hosts: by address.
        config: of the links.
        wire: every datagram that was sent: (from, to, bytes); only while `recording`.
        tamper: sees each datagram before it goes on its way, and returns what goes instead.
    """

    def __init__(self, config: LinkConfig, seed: int = 1) -> None:
        self.net = SimNet(seed)
        self.config = config
        self.hosts: dict[tuple[str, int], TunnelHost] = {}
        self.wire: list[tuple[tuple[str, int], tuple[str, int], bytes]] = []
        self.recording = False
        self.tamper: Callable[[tuple[str, int], tuple[str, int], bytes], list[bytes]] | None = None
        self._links: dict[tuple[tuple[str, int], tuple[str, int]], Link] = {}

    def link(self, source: tuple[str, int], target: tuple[str, int]) -> Link:
        """The link between two addresses."""
        found = self._links.get((source, target))
        if found is None:
            found = self._links[source, target] = Link(self.net, self.config)
        return found

    def send(self, source: tuple[str, int], target: tuple[str, int], datagram: bytes) -> None:
        """Carry a datagram; it vanishes when nobody has the address on its arrival."""
        if self.recording:
            self.wire.append((source, target, datagram))
        for piece in (datagram,) if self.tamper is None else self.tamper(source, target, datagram):
            self.link(source, target).send(piece, lambda data: self._deliver(source, target, data))

    def _deliver(self, source: tuple[str, int], target: tuple[str, int], datagram: bytes) -> None:
        host = self.hosts.get(target)
        if host is not None:
            host.receive(datagram, (0, source))


class TunnelHost:
    """One endpoint: feeds it, drains it, keeps its timer; accepts who knocks unless told otherwise.

    Attributes:
        endpoint: the engine.
        events: all events of the endpoint so far.
        associations: as they came up.
        received: bytes read, by association.
        utp_events: by association.
        accepting: whether who knocks is accepted at once.
        on_read: called when an association has brought data.
        on_space: called when an association may take more.
    """

    def __init__(
        self, world: TunnelNet, address: tuple[str, int], *, network: str = "sim", config: UtpConfig | None = None
    ) -> None:
        self.world = world
        self.address = address
        self.config = config or tunnel_config()
        self.chance = randomness.Random(repr((world.net.random.random(), address)))  # noqa: S311 - a simulation
        self.identity = Identity.from_seed(self.chance.randbytes(32))
        self.endpoint = TunnelEndpoint(
            self.identity,
            Network.of(network),
            Hello(self.identity.id),
            random=self.chance.randbytes,
            seen=EphemeralCache(),
            now=world.net.now,
        )
        self.events: list[TunnelEvent] = []
        self.associations: list[Association] = []
        self.received: dict[Association, bytearray] = {}
        self.utp_events: dict[Association, list[UtpEvent]] = {}
        self.accepting = True
        self.on_space: dict[Association, Callable[[], None]] = {}
        self.on_read: Callable[[Association], None] = lambda association: None
        self._inbox: list[tuple[bytes, Route]] = []
        self._armed: float | None = None
        world.hosts[address] = self

    def move(self, address: tuple[str, int]) -> None:
        """Have another address from now on, as after a change of network."""
        del self.world.hosts[self.address]
        self.address = address
        self.world.hosts[address] = self

    def dial(self, other: TunnelHost) -> Dial:
        """Begin a handshake."""
        now = self.world.net.now
        dial = self.endpoint.dial(other.identity.id, (0, other.address), self.config, now)
        self.pump()
        return dial

    def send(self, association: Association, data: bytes) -> None:
        """Send bytes over an association."""
        association.utp.send_data(data, self.world.net.now)
        self.endpoint.touch(association)
        self.pump()

    def receive(self, datagram: bytes, route: Route) -> None:
        """Take a datagram; those of one instant come in batches, as with UDP_GRO."""
        if not self._inbox:
            self.world.net.call_at(self.world.net.now, self._read)
        self._inbox.append((datagram, route))

    def _read(self) -> None:
        inbox, self._inbox = self._inbox, []
        at = 0
        while at < len(inbox):
            first, route = inbox[at]
            end = at + 1
            size = len(first)
            while end < len(inbox) and inbox[end][1] == route and len(inbox[end][0]) <= size and end - at < 44:
                end += 1
                if len(inbox[end - 1][0]) < size:
                    break
            data = b"".join(datagram for datagram, _ in inbox[at:end])
            buffer = self.endpoint.receive_buffer
            if len(data) <= len(buffer):
                buffer[: len(data)] = data
                view = buffer[: len(data)]
            else:
                view = memoryview(data)
            self.endpoint.receive_datagrams(view, size, route, self.world.net.now)
            at = end
        self.pump()

    def pump(self) -> None:
        """Drain the engine, then arm one timer."""
        endpoint, now = self.endpoint, self.world.net.now
        while (event := endpoint.next_event()) is not None:
            self._on_event(event)
        while endpoint.touched:
            association, _ = endpoint.touched.popitem()
            self._drain(association)
            while True:
                out = endpoint.association_outgoing(association, now)
                if out is not None:
                    self._transmit(out)
                if not association.has_more:
                    break
        while (out := endpoint.next_outgoing()) is not None:
            self._transmit(out)
        self._arm()

    def _on_event(self, event: TunnelEvent) -> None:
        self.events.append(event)
        if isinstance(event, Knocked) and self.accepting:
            self._add(self.endpoint.accept(event.knock, self.config, self.world.net.now))
        elif isinstance(event, DialSucceeded):
            self._add(event.association)

    def _add(self, association: Association) -> None:
        self.associations.append(association)
        self.received[association] = bytearray()
        self.utp_events[association] = []

    def _drain(self, association: Association) -> None:
        utp = association.utp
        while (event := utp.next_event()) is not None:
            self.utp_events[association].append(event)
        size = 0
        for chunk in utp.data_to_read():
            self.received[association] += chunk
            size += len(chunk)
        if size:
            utp.consumed(size)
            self.on_read(association)
        if association in self.on_space and utp.send_space:
            self.on_space[association]()

    def _transmit(self, out: Outgoing) -> None:
        data = bytes(out.data)
        for at in range(0, len(data), out.size):
            self.world.send(self.address, out.route[1], data[at : at + out.size])

    def _arm(self) -> None:
        deadline = self.endpoint.next_timeout()
        if deadline is None or (self._armed is not None and self._armed <= deadline):
            return
        self._armed = deadline
        self.world.net.call_at(deadline, lambda: self._fire(deadline))

    def _fire(self, deadline: float) -> None:
        if self._armed != deadline:
            return
        self._armed = None
        self.endpoint.handle_timeout(self.world.net.now)
        self.pump()
