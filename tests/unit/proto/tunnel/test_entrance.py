"""First messages under load: what is decided before anything costly, and that newcomers come in all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from crust.crypto.keys import Identity
from crust.proto.noise.envelope import outer_secret
from crust.proto.noise.outcome import Network
from crust.proto.tunnel import entrance
from crust.proto.tunnel.constants import COOKIE_REPLY_BURST, HANDSHAKE_BURST, PROVED_BURST
from crust.proto.tunnel.cookie import address_bytes
from crust.proto.tunnel.handshake import TunnelInitiator
from crust.testing.tunnel_sim import TunnelHost
from crust.wire.handshake import Hello
from crust.wire.tunnel import Introduction
from tests.unit.proto.tunnel.world import B, World


class Costs:
    """Counts envelopes that are opened, and Diffie-Hellman operations of responders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
        self.calls: Counter[str] = Counter()
        monkeypatch.setattr(entrance, "open_request", self._counted("opened", entrance.open_request))
        found = world.bob.endpoint._entrance
        monkeypatch.setattr(found, "_responder", self._counted("begun", found._responder))

    def _counted(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            self.calls[name] += 1
            return call(*arguments)

        return counted


class Mallory:
    """Knows Bob's PeerId, makes authentic requests, sees no answer to them."""

    def __init__(self, world: World) -> None:
        self.world = world
        identity = Identity.from_seed(bytes(32))
        self._made = TunnelInitiator(
            identity,
            world.bob.identity.id,
            Network.of("sim"),
            Introduction(1, bytes(16), Hello(identity.id)),
            outer_secret(world.bob.identity.id),
            random=world.net.random.randbytes,
        )
        self.sources = 0

    def request(self) -> bytes:
        return self._made.request()

    def claim(self) -> bytes:
        """A request that says that it shows a cookie."""
        self._made._cookie = self.world.net.random.randbytes(16)
        request = self._made.request()
        self._made._cookie = None
        return request

    def send(self, datagram: bytes, host: str | None = None) -> None:
        self.sources += host is None
        source = (host or f"10.{self.sources >> 16 & 255}.{self.sources >> 8 & 255}.{self.sources & 255}", 9)
        self.world.bob.endpoint.receive_datagrams(memoryview(datagram), len(datagram), (0, source), self.world.now)


def loaded(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Mallory, Costs]:
    world = World()
    world.bob.accepting = False
    while world.bob.endpoint._entrance._admission.admits(world.now):
        pass
    return world, Mallory(world), Costs(monkeypatch, world)


class TestUnderLoad:
    def test_nothing_begins_without_a_cookie(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world, mallory, costs = loaded(monkeypatch)
        for _ in range(40):
            for _ in range(100):
                mallory.send(mallory.request())
            world.after(0.01)
        assert costs.calls["begun"] == 0
        assert world.bob.endpoint.pending == 0
        assert not len(world.bob.endpoint._entrance._seen)

    def test_what_gets_no_cookie_is_not_opened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world, mallory, costs = loaded(monkeypatch)
        for _ in range(int(COOKIE_REPLY_BURST) + 1000):
            mallory.send(mallory.request())
        stats = world.bob.endpoint.stats
        assert costs.calls["opened"] == stats["handshake.cookie_sent"] <= COOKIE_REPLY_BURST
        assert stats["handshake.cookie_sent"] + stats["handshake.over_rate"] == COOKIE_REPLY_BURST + 1000

    def test_a_proof_that_is_none_gains_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, mallory, costs = loaded(monkeypatch)
        for _ in range(int(COOKIE_REPLY_BURST) + 1000):
            mallory.send(mallory.claim())
        assert costs.calls["begun"] == 0
        assert costs.calls["opened"] <= COOKIE_REPLY_BURST

    def test_nobody_gets_a_cookie_for_what_is_not_authentic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Else who has recorded a request could find out that something of ours listens here."""
        world, mallory, _ = loaded(monkeypatch)
        for at in (20, 40, -1):
            broken = bytearray(mallory.request())
            broken[at] ^= 1
            mallory.send(bytes(broken))
        assert world.bob.endpoint.stats == {"datagram.stranger": 3}
        assert world.bob.endpoint.next_outgoing() is None

    def test_a_proof_goes_before_all_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world, mallory, costs = loaded(monkeypatch)
        world.bob.accepting = True
        alice = TunnelInitiator(
            world.alice.identity,
            world.bob.identity.id,
            Network.of("sim"),
            Introduction(1, bytes(16), Hello(world.alice.identity.id)),
            outer_secret(world.bob.identity.id),
            random=world.net.random.randbytes,
        )
        alice._cookie = world.bob.endpoint._entrance._admission.cookie(address_bytes("10.0.0.1"), world.now)
        for _ in range(int(COOKIE_REPLY_BURST) + 100):
            mallory.send(mallory.request())
        before = costs.calls["opened"]
        mallory.send(alice.request(), "10.0.0.1")
        world.bob.pump()
        assert len(world.bob.associations) == 1
        assert costs.calls == {"opened": before + 1, "begun": 1}

    def test_who_has_a_cookie_is_limited_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Mallory has many addresses, and reads what comes there."""
        world, mallory, costs = loaded(monkeypatch)
        admission = world.bob.endpoint._entrance._admission
        for number in range(60):
            host = f"10.5.0.{number}"
            for _ in range(30):
                another = Mallory(world)
                another._made._cookie = admission.cookie(address_bytes(host), world.now)
                mallory.send(another.request(), host)
        assert costs.calls["begun"] == costs.calls["opened"] <= PROVED_BURST

    def test_a_lost_answer_is_sent_again_without_a_cookie(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who was let in before the load began holds a place already."""
        world = World()
        world.tamper = lambda source, target, data: [data] if target == B else []
        world.alice.dial(world.bob)
        world.after(0.1)
        while world.bob.endpoint._entrance._admission.admits(world.now):
            pass
        world.tamper = None
        assert world.after(2, lambda: world.alice.associations)
        assert world.bob.endpoint.stats["handshake.cookie_sent"] == 0


def test_newcomers_connect_beside_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the flood only a tenth is simulated, with a tenth of the cookies."""
    monkeypatch.setattr("crust.proto.tunnel.cookie.COOKIE_REPLY_RATE", 500.0)
    monkeypatch.setattr("crust.proto.tunnel.cookie.COOKIE_REPLY_BURST", 500.0)
    world = World()
    mallory = Mallory(world)
    pool = [mallory.request() for _ in range(2000)]
    hosts = [f"10.7.{at >> 8}.{at & 255}" for at in range(400)]
    sent = 0

    def flood() -> None:
        nonlocal sent
        for _ in range(50):
            # Each is new: what makes the responder's work, not the attacker's, is what counts here.
            mallory.send(mallory.request() if sent < 20_000 else pool[sent % 2000], hosts[sent % 400])
            sent += 1
        world.net.call_at(world.now + 0.01, flood)

    flood()
    world.after(1.0)
    for number in range(4):
        newcomer = TunnelHost(world, (f"10.8.0.{number}", 1))
        began = world.now
        newcomer.dial(world.bob)
        assert world.after(2.0, lambda newcomer=newcomer: newcomer.associations)  # type: ignore[misc]
        assert world.now - began < 1.0
    assert len(world.bob.associations) <= HANDSHAKE_BURST + 4


def test_a_proof_is_good_for_its_responder_only() -> None:
    """Who shows what another one gave is asked for the right cookie, and comes in with that."""
    world = World()
    while world.bob.endpoint._entrance._admission.admits(world.now):
        pass
    dial = world.alice.dial(world.bob)
    dial.handshake._cookie = bytes(16)
    assert world.after(2, lambda: world.alice.associations)
    assert world.alice.endpoint.stats["handshake.cookie_received"] == 1
