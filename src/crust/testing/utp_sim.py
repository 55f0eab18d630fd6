"""µTP connections over a simulated network: what the tests and the table of throughputs run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.proto.utp.events import UtpEvent
from crust.testing.simnet import Link, LinkConfig, SimNet

__all__ = ["SimHost", "Transfer", "pair", "simulate"]


class SimHost:
    """One end of a connection: feeds it, drains it, keeps its timer, and reads and writes as an application would.

    Attributes:
        connection: the engine.
        received: bytes read.
        events: all events so far.
        digest: hash of what was read.
    """

    def __init__(self, net: SimNet, link: Link, connection: UtpConnection) -> None:
        self.net, self.link, self.connection = net, link, connection
        self.peer: SimHost | None = None
        self.received = 0
        self.events: list[UtpEvent] = []
        self.digest = hashlib.sha256()
        self.on_read: Callable[[], None] = lambda: None
        self.on_space: Callable[[], None] = lambda: None
        self.reading = True
        self._armed: float | None = None

    def receive(self, datagram: bytes) -> None:
        """A datagram has arrived."""
        self.connection.receive_datagrams((memoryview(datagram),), self.net.now)
        self.pump()

    def pump(self) -> None:
        """Drain the engine after an input, then arm one timer."""
        connection, now = self.connection, self.net.now
        while (event := connection.next_event()) is not None:
            self.events.append(event)
        self.read()
        if connection.send_space:
            self.on_space()
        while batches := connection.datagrams_to_send(now):
            peer = self.peer
            if peer is not None:
                for batch in batches:
                    for datagram in batch.datagrams():
                        self.link.send(datagram, peer.receive)
        self._arm()

    def read(self) -> None:
        """Take what has arrived, unless the application is not reading."""
        if not self.reading:
            return
        size = 0
        for buffer in self.connection.data_to_read():
            self.digest.update(buffer)
            size += len(buffer)
        if size:
            self.received += size
            self.connection.consumed(size)
            self.on_read()

    def _arm(self) -> None:
        deadline = self.connection.next_timeout()
        if deadline is None or (self._armed is not None and self._armed <= deadline):
            return
        self._armed = deadline
        self.net.call_at(deadline, lambda: self._fire(deadline))

    def _fire(self, deadline: float) -> None:
        if self._armed != deadline:
            return  # an earlier timer was armed after this one
        self._armed = None
        due = self.connection.next_timeout()
        if due is not None and due <= self.net.now:
            self.connection.handle_timeout(self.net.now)
            self.pump()
        else:
            self._arm()


def pair(
    net: SimNet, there: Link, back: Link, config: UtpConfig, peer_config: UtpConfig | None = None
) -> tuple[SimHost, SimHost]:
    """Two ends of a connection inside a tunnel: established from the start."""
    first = UtpConnection.established(config, net.now, receive_id=1, send_id=2, seq_nr=65_000, peer_seq_nr=7)
    second = UtpConnection.established(
        peer_config or config, net.now, receive_id=2, send_id=1, seq_nr=7, peer_seq_nr=65_000
    )
    a, b = SimHost(net, there, first), SimHost(net, back, second)
    a.peer, b.peer = b, a
    return a, b


@dataclass(slots=True)
class Transfer:
    """A stream of bytes from one host to the other.

    Attributes:
        sender: from where.
        receiver: to where.
        total: how many bytes; 0 for as many as time allows.
    """

    sender: SimHost
    receiver: SimHost
    total: int = 0
    sent: int = 0

    _BLOCK: ClassVar[bytes] = bytes(range(251)) * 1044  # 251 is prime: no two packets of a window carry the same bytes

    def start(self) -> None:
        """Begin."""
        self.sender.on_space = self._feed
        self.sender.pump()

    def _feed(self) -> None:
        connection, block = self.sender.connection, memoryview(self._BLOCK)
        while True:
            at = self.sent % len(block)
            wanted = len(block) - at
            if self.total:
                wanted = min(wanted, self.total - self.sent)
            if not wanted or not connection.send_space:
                return
            self.sent += connection.send_data(block[at : at + wanted], self.sender.net.now)

    @property
    def done(self) -> bool:
        """All has arrived."""
        return bool(self.total) and self.receiver.received >= self.total

    @property
    def intact(self) -> bool:
        """What was read is what was sent, each byte once."""
        digest = hashlib.sha256()
        left = self.receiver.received
        while left > 0:
            digest.update(memoryview(self._BLOCK)[:left])
            left -= len(self._BLOCK)
        return digest.digest() == self.receiver.digest.digest()


def simulate(
    there: LinkConfig,
    back: LinkConfig,
    *,
    total: int,
    seed: int = 1,
    config: UtpConfig | None = None,
    limit: float = 36_000.0,
) -> tuple[Transfer, float]:
    """Transfer `total` bytes over one link; returns the transfer and the simulated seconds that it took."""
    net = SimNet(seed)
    a, b = pair(net, Link(net, there), Link(net, back), config or UtpConfig(tunnel=True))
    transfer = Transfer(a, b, total)
    begun = net.now
    transfer.start()
    net.run(begun + limit, lambda: transfer.done)
    return transfer, net.now - begun
