"""Networks, links and routers of the lab on a fake clock."""

from __future__ import annotations

from random import Random

import pytest

from crust.testing.natlab.fabric.nat import NatBox, NatParameters
from crust.testing.natlab.fabric.network import Clockwork, Filter, Link, Network, Port, Router
from crust.testing.natlab.fabric.packet import ACK, SYN, Packet

from .packets import A, B, C, ping, tcp, udp

LAN, GATEWAY, OUTSIDE = "192.168.1.0/24", bytes([192, 168, 1, 1]), bytes([11, 0, 9, 1])
A2 = bytes([192, 168, 1, 3])


class World:
    """An internet of ports, each with an inbox of (time, packet)."""

    def __init__(self, hops: int = 5) -> None:
        self.now = 0.0
        self.clockwork = Clockwork(Random(2))
        self.core = Network(self.clockwork, hops=hops)
        self.inboxes: dict[bytes, list[tuple[float, Packet]]] = {}

    def port(self, address: bytes, network: Network | None = None, link: Link | None = None) -> Port:
        inbox = self.inboxes.setdefault(address, [])
        port = Port(lambda packet: inbox.append((round(self.now, 6), packet)))
        figures = link or Link()
        port.member = (network or self.core).attach(
            port,
            [address],
            up=figures,
            down=Link(figures.delay, figures.loss, figures.rate, figures.queue, figures.mtu),
        )
        return port

    def router(self, policy: Filter | None = None, delay: float = 0.0, **parameters: object) -> Network:
        lan = Network(self.clockwork, prefix=LAN)
        box = NatBox(NatParameters.from_dict(parameters), OUTSIDE, Random(3))
        router = Router(self.clockwork, box, policy or Filter(), GATEWAY)
        router.wan = self.core.attach(router, [OUTSIDE], up=Link(delay), down=Link(delay))
        router.lan = lan.attach(router, [GATEWAY], gateway=True)
        return lan

    def run(self) -> None:
        while (when := self.clockwork.next_timeout()) is not None:
            self.now = when
            self.clockwork.handle_timeout(when)

    def got(self, address: bytes) -> list[Packet]:
        self.run()
        return [packet for _, packet in self.inboxes[address]]


def test_both_delays_add_up_and_hops_are_counted() -> None:
    world = World()
    one = world.port(B, link=Link(0.010))
    world.port(C, link=Link(0.007))
    one.inject(Packet(udp(B, 1, C, 2)), 0.0)
    world.run()
    [(when, packet)] = world.inboxes[C]
    assert when == 0.017
    assert packet.head[8] == 64 - 5


def test_packets_keep_their_order() -> None:
    world = World()
    one = world.port(B, link=Link(0.010))
    world.port(C)
    for number in range(50):
        one.inject(Packet(udp(B, 1, C, number + 1)), number * 1e-6)
    assert [packet.target_port for packet in world.got(C)] == list(range(1, 51))


def test_a_low_time_to_live_passes_the_own_router_and_dies_on_the_internet() -> None:
    world = World()
    lan = world.router()
    inside = world.port(A, lan)
    world.port(C)
    packet = Packet(udp(A, 5000, C, 2))
    packet.head[8] = 3
    inside.inject(packet, 0.0)
    [error] = world.got(A)
    assert (error.protocol, error.head[20]) == (1, 11)
    assert world.got(C) == []
    # Yet it has opened the NAT.
    outsider = world.port(B)
    inside.inject(Packet(udp(A, 5000, B, 9)), 0.0)
    [seen] = world.got(B)
    outsider.inject(Packet(udp(B, 9, OUTSIDE, seen.source_port)), 0.0)
    assert len(world.got(A)) == 2


def test_the_router_answers_pings_and_closes_its_ports() -> None:
    world = World()
    inside = world.port(A, world.router())
    for raw in (ping(A, 5, GATEWAY), udp(A, 1, GATEWAY, 5351), tcp(A, 1, GATEWAY, 80, SYN)):
        inside.inject(Packet(raw), 0.0)
    echo, unreachable, reset = world.got(A)
    assert (echo.head[20], unreachable.head[20:22], reset.tcp_flags & 4) == (0, b"\x03\x03", 4)


def test_neighbours_reach_each_other_unless_isolated() -> None:
    world = World()
    for isolated, count in ((False, 1), (True, 0)):
        lan = Network(world.clockwork, prefix=LAN, isolated=isolated)
        one = world.port(A, lan)
        world.inboxes[A2] = []
        world.port(A2, lan)
        one.inject(Packet(udp(A, 1, A2, 2)), 0.0)
        assert len(world.got(A2)) == count


@pytest.mark.parametrize("target", [bytes([239, 255, 255, 250]), bytes([255] * 4), bytes([192, 168, 1, 255])])
def test_multicast_floods_a_lan_but_not_the_internet(target: bytes) -> None:
    world = World()
    lan = Network(world.clockwork, prefix=LAN)
    one = world.port(A, lan)
    world.port(A2, lan)
    one.inject(Packet(udp(A, 1, target, 1900)), 0.0)
    assert len(world.got(A2)) == 1
    assert world.got(A) == []
    public = world.port(B)
    world.port(C)
    public.inject(Packet(udp(B, 1, target, 1900)), 0.0)
    assert world.got(C) == []


def test_loss_is_per_wire_packet() -> None:
    world = World()
    one = world.port(B, link=Link(loss=0.25))
    world.port(C)
    for number in range(4000):
        one.inject(Packet(udp(B, 1, C, number + 1)), 0.0)
    assert 0.70 < len(world.got(C)) / 4000 < 0.80


def test_a_rate_limit_spaces_packets_and_drops_the_tail() -> None:
    world = World()
    one = world.port(B, link=Link(rate=100_000, queue=0.1))
    world.port(C)
    for number in range(30):
        one.inject(Packet(udp(B, 1, C, number + 1, bytes(972))), 0.0)
    world.run()
    times = [when for when, _ in world.inboxes[C]]
    # Both links of the path have the rate; the far one adds one serialisation.
    assert times == pytest.approx([0.01 * (number + 1) for number in range(len(times))], abs=1e-6)
    assert len(times) == 11


def test_a_packet_that_is_too_big_is_answered() -> None:
    world = World()
    one = world.port(B, link=Link(mtu=1280))
    world.port(C)
    one.inject(Packet(udp(B, 1, C, 2, bytes(1253))), 0.0)
    one.inject(Packet(udp(B, 1, C, 2, bytes(1252))), 0.0)
    assert len(world.got(C)) == 1
    [error] = world.got(B)
    assert error.head[20:22] == b"\x03\x04"
    assert int.from_bytes(error.head[26:28], "big") == 1280


def test_a_link_that_is_down_carries_nothing() -> None:
    world = World()
    one = world.port(B)
    world.port(C)
    assert one.member is not None
    one.member.up.up = False
    one.inject(Packet(udp(B, 1, C, 2)), 0.0)
    assert world.got(C) == []


def test_a_member_that_left_gets_nothing_that_was_under_way() -> None:
    world = World()
    one, two = world.port(B, link=Link(0.01)), world.port(C)
    one.inject(Packet(udp(B, 1, C, 2)), 0.0)
    assert two.member is not None
    world.core.detach(two.member)
    assert world.got(C) == []


@pytest.mark.parametrize(
    ("policy", "passing"),
    [
        (Filter(), ["udp", "80", "443"]),
        (Filter(blocked=frozenset({17})), ["80", "443"]),
        (Filter(blocked=frozenset({17}), tcp_ports=frozenset({443})), ["443"]),
    ],
)
def test_firewalls(policy: Filter, passing: list[str]) -> None:
    world = World()
    inside = world.port(A, world.router(policy))
    world.port(B)
    for raw in (udp(A, 1, B, 53), tcp(A, 1, B, 80, SYN), tcp(A, 2, B, 443, SYN)):
        inside.inject(Packet(raw), 0.0)
    assert ["udp" if each.protocol == 17 else str(each.target_port) for each in world.got(B)] == passing


def test_a_refusing_router_resets_strangers() -> None:
    world = World()
    world.port(A, world.router(refuse=True))
    outsider = world.port(B)
    outsider.inject(Packet(tcp(B, 1, OUTSIDE, 80, SYN)), 0.0)
    [reset] = world.got(B)
    assert (reset.source, reset.tcp_flags & 4) == (OUTSIDE, 4)


def test_simultaneous_open_through_two_routers() -> None:
    """Both SYNs cross on the internet; each meets an open door (RFC 5382 REQ-2)."""
    world = World()
    lan = world.router(delay=0.01)
    one = world.port(A, lan)
    two = world.port(B, link=Link(0.01))
    two.inject(Packet(tcp(B, 9, OUTSIDE, 5000, SYN)), 0.0)
    one.inject(Packet(tcp(A, 5000, B, 9, SYN)), 0.001)
    assert [each.tcp_flags for each in world.got(A)] == [SYN]
    one.inject(Packet(tcp(A, 5000, B, 9, SYN | ACK)), world.now)
    assert [each.tcp_flags for each in world.got(B)] == [SYN, SYN | ACK]


def test_hairpin_goes_back_into_the_lan() -> None:
    world = World()
    lan = world.router(hairpinning=True, filtering="endpoint-independent")
    one, two = world.port(A, lan), world.port(A2, lan)
    world.port(B)
    two.inject(Packet(udp(A2, 7000, B, 1)), 0.0)
    [seen] = world.got(B)
    one.inject(Packet(udp(A, 5000, OUTSIDE, seen.source_port)), 0.0)
    [arrived] = world.got(A2)
    assert (arrived.source, arrived.target_port) == (OUTSIDE, 7000)


def test_lateness_is_counted() -> None:
    world = World()
    one = world.port(B, link=Link(0.01))
    world.port(C)
    one.inject(Packet(udp(B, 1, C, 2)), 0.0)
    world.clockwork.handle_timeout(0.015)
    assert (world.clockwork.late, round(world.clockwork.latest, 3)) == (1, 0.005)


def test_an_ipv6_prefix_is_routed_to_its_router() -> None:
    world = World()
    prefix = bytes.fromhex("20010db800010007")
    inbox: list[Packet] = []
    port = Port(inbox.append)
    port.member = world.core.attach(port, [prefix])
    source, target = bytes.fromhex("20010db8") + bytes(12), prefix + bytes(7) + b"\2"
    sender = world.port(source)
    raw = bytes.fromhex("60000000000811ff") + source + target + bytes.fromhex("0001000200080000")
    sender.inject(Packet(raw), 0.0)
    world.run()
    assert [packet.target for packet in inbox] == [target]
    assert inbox[0].head[7] == 250
