"""What the tests of the tunnel share: two hosts on a link, and data between them."""

from __future__ import annotations

from collections.abc import Callable

from crust.proto.tunnel.association import Association
from crust.proto.utp.config import UtpConfig
from crust.testing.simnet import LinkConfig
from crust.testing.tunnel_sim import TunnelHost, TunnelNet

Address = tuple[str, int]

A: Address = ("10.0.0.1", 4001)
B: Address = ("10.0.0.2", 4002)
ELSEWHERE: Address = ("10.9.9.9", 4999)
DELAY = 0.02


class World(TunnelNet):
    """Alice dials Bob."""

    def __init__(
        self,
        link: LinkConfig | None = None,
        *,
        seed: int = 1,
        config: UtpConfig | None = None,
        larger_dials: bool | None = None,
    ) -> None:
        super().__init__(link or LinkConfig(delay=DELAY), seed)
        self.alice = TunnelHost(self, A, config=config)
        self.bob = TunnelHost(self, B, config=config)
        while larger_dials is not None and (self.alice.endpoint.id > self.bob.endpoint.id) != larger_dials:
            self.alice = TunnelHost(self, A, config=config)
        self.started = self.net.now

    @property
    def now(self) -> float:
        return self.net.now

    def after(self, seconds: float, until: Callable[[], object] | None = None) -> bool:
        """Let time pass, at most so much."""
        return self.net.run(self.net.now + seconds, None if until is None else lambda: bool(until()))

    def connect(self, seconds: float = 10.0) -> tuple[Association, Association]:
        """Alice's and Bob's association, proved."""
        self.alice.dial(self.bob)
        assert self.after(seconds, lambda: self.alice.associations)
        ours = self.alice.associations[-1]
        self.alice.send(ours, b"!")
        assert self.after(seconds, lambda: self.bob.associations and self.bob.associations[-1].proved)
        theirs = self.bob.associations[-1]
        assert self.after(seconds, lambda: self.bob.received[theirs] == b"!")
        self.bob.received[theirs].clear()
        return ours, theirs

    def feed(self, host: TunnelHost, association: Association, data: bytes) -> None:
        """Send data as fast as there is room for it."""
        left = memoryview(data)

        def more() -> None:
            nonlocal left
            while left and association.utp.send_space:
                left = left[association.utp.send_data(left, self.net.now) :]

        host.on_space[association] = more
        host.endpoint.touch(association)
        host.pump()

    def transfer(
        self, host: TunnelHost, ours: Association, other: TunnelHost, theirs: Association, data: bytes, seconds: float
    ) -> bool:
        """Send data over an association and wait until it has arrived; whether it has, and is the same."""
        got = other.received[theirs]
        got.clear()
        self.feed(host, ours, data)
        return self.after(seconds, lambda: len(got) >= len(data)) and bytes(got) == data


def some_data(size: int) -> bytes:
    """Bytes without a period that could hide a mix-up of packets."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]
