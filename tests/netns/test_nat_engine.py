"""The lab's own NAT as an engine: each parameter of RFC 4787 and RFC 5382 does what it says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crust.testing.natlab.fabric.nat import AD, APD, EI, NatBox, NatParameters, Verdict
from crust.testing.natlab.fabric.packet import ACK, FIN, RST, SYN, UDP, Packet, checksum, icmp_error, pseudo_sum

from .packets import A, B, C, fragments, ping, tcp, udp

OUTSIDE = bytes([11, 0, 9, 1])
A2 = bytes([192, 168, 1, 3])


class Bench:
    """A NAT on a fake clock."""

    def __init__(self, **parameters: object) -> None:
        self.box = NatBox(replace(NatParameters(), **parameters), OUTSIDE, Random(4))  # type: ignore[arg-type]
        self.now = 0.0

    def out(self, raw: bytes, verdict: Verdict = Verdict.FORWARD) -> Packet:
        packet = Packet(raw)
        assert self.box.outbound(packet, self.now) is verdict
        return packet

    def port(self, sport: int, target: bytes = B, dport: int = 1, source: bytes = A) -> int:
        """The outside port of a UDP datagram."""
        packet = self.out(udp(source, sport, target, dport))
        assert packet.source == OUTSIDE
        return packet.source_port

    def into(self, raw: bytes) -> tuple[Verdict, Packet]:
        packet = Packet(raw)
        return self.box.inbound(packet, self.now), packet

    def lets_in(self, source: bytes, sport: int, port: int) -> bool:
        return self.into(udp(source, sport, OUTSIDE, port))[0] is Verdict.FORWARD


@pytest.mark.parametrize(
    ("mapping", "same_port", "same_address"), [(EI, True, True), (AD, False, True), (APD, False, False)]
)
def test_mapping(mapping: str, same_port: bool, same_address: bool) -> None:
    nat = Bench(mapping=mapping, ports="random")
    first = nat.port(5000, B, 1)
    assert nat.port(5000, B, 1) == first
    assert (nat.port(5000, C, 1) == first) is same_port
    assert (nat.port(5000, B, 2) == first) is same_address


@pytest.mark.parametrize(
    ("filtering", "stranger", "same_address"), [(EI, True, True), (AD, False, True), (APD, False, False)]
)
def test_filtering(filtering: str, stranger: bool, same_address: bool) -> None:
    nat = Bench(filtering=filtering)
    port = nat.port(5000, B, 1)
    assert nat.lets_in(B, 1, port)
    assert nat.lets_in(C, 1, port) is stranger
    assert nat.lets_in(B, 2, port) is same_address
    assert not nat.lets_in(B, 1, port + 1)


def test_an_inbound_packet_opens_no_filter() -> None:
    nat = Bench(filtering=APD)
    port = nat.port(5000, B, 1)
    assert not nat.lets_in(C, 1, port)
    assert not nat.lets_in(C, 1, port)


def test_inbound_packets_reach_the_inside_endpoint() -> None:
    nat = Bench(ports="random")
    port = nat.port(5000, B, 1)
    verdict, packet = nat.into(udp(B, 1, OUTSIDE, port))
    assert verdict is Verdict.FORWARD
    assert (packet.target, packet.target_port) == (A, 5000)


def test_an_answer_leaves_by_the_port_that_the_question_came_to() -> None:
    nat = Bench(mapping=APD, filtering=EI, ports="random")
    port = nat.port(5000, B, 1)
    assert nat.lets_in(C, 7, port)
    assert nat.port(5000, C, 7) == port
    assert nat.port(5000, C, 8) != port


def test_preserved_ports_and_what_happens_when_one_is_taken() -> None:
    nat = Bench()
    assert nat.port(5000, source=A) == 5000
    other = nat.port(5000, source=A2)
    assert other != 5000
    assert nat.port(5000, source=A2) == other


def test_sequential_ports_wrap_and_skip_what_is_taken() -> None:
    nat = Bench(mapping=APD, ports="sequential", port_range=(2000, 2004))
    seen = [nat.port(5000, B, number) for number in range(1, 6)]
    assert sorted(seen) == [2000, 2001, 2002, 2003, 2004]
    assert [(after - before) % 5 for before, after in pairwise(seen)] == [1] * 4
    nat.out(udp(A, 5000, B, 99), Verdict.DROP)


def test_sequential_ports_with_a_step() -> None:
    nat = Bench(mapping=APD, ports="sequential", port_step=2)
    seen = [nat.port(5000, B, number) for number in range(1, 4)]
    assert seen == [seen[0], seen[0] + 2, seen[0] + 4]


@given(st.integers(1, 200))
def test_random_ports_stay_in_range_and_apart(count: int) -> None:
    nat = Bench(mapping=APD, ports="random", port_range=(3000, 3255))
    seen = [nat.port(5000, B, number) for number in range(1, count + 1)]
    assert len(set(seen)) == count
    assert all(3000 <= port <= 3255 for port in seen)


def test_an_idle_mapping_is_forgotten() -> None:
    nat = Bench(ports="random", udp_timeout=30, inbound_refresh=False)
    port = nat.port(5000)
    nat.now = 29
    assert nat.lets_in(B, 1, port)
    nat.now = 30
    assert not nat.lets_in(B, 1, port)
    assert nat.port(5000) != port


def test_outbound_and_inbound_packets_keep_a_mapping() -> None:
    nat = Bench(udp_timeout=30)
    port = nat.port(5000)
    for nat.now in (20.0, 40.0, 60.0):
        assert nat.lets_in(B, 1, port)
    nat.now = 89
    assert nat.port(5000) == port


def test_a_filter_entry_ages_on_its_own() -> None:
    nat = Bench(udp_timeout=30, inbound_refresh=False)
    port = nat.port(5000, B, 1)
    nat.now = 20
    nat.port(5000, C, 1)
    nat.now = 31
    assert nat.lets_in(C, 1, port)
    assert not nat.lets_in(B, 1, port)


def test_flush_forgets_everything() -> None:
    nat = Bench(ports="random")
    port = nat.port(5000)
    nat.box.flush()
    assert not nat.lets_in(B, 1, port)
    assert list(nat.box.mappings(0)) == []


@pytest.mark.parametrize("hairpinning", [True, False])
def test_hairpinning(hairpinning: bool) -> None:
    nat = Bench(hairpinning=hairpinning, ports="random", filtering=EI)
    one, two = nat.port(5000, source=A), nat.port(6000, source=A2)
    packet = nat.out(udp(A, 5000, OUTSIDE, two), Verdict.HAIRPIN if hairpinning else Verdict.DROP)
    if hairpinning:
        assert nat.box.inbound(packet, 0) is Verdict.FORWARD
        # RFC 4787 REQ-9a: the source is the outside endpoint of the sender.
        assert (packet.source, packet.source_port, packet.target, packet.target_port) == (OUTSIDE, one, A2, 6000)


# TCP


def segment(nat: Bench, flags: int, *, inward: bool = False, remote: bytes = B, rport: int = 1) -> Verdict:
    if inward:
        return nat.into(tcp(remote, rport, OUTSIDE, 5000, flags))[0]
    return nat.box.outbound(Packet(tcp(A, 5000, remote, rport, flags)), nat.now)


@pytest.mark.parametrize(("refuse", "verdict"), [(False, Verdict.DROP), (True, Verdict.REFUSE)])
def test_an_unexpected_syn(refuse: bool, verdict: Verdict) -> None:
    nat = Bench(refuse=refuse)
    assert segment(nat, SYN, inward=True) is verdict
    segment(nat, SYN)
    assert segment(nat, SYN | ACK, inward=True) is Verdict.FORWARD
    assert segment(nat, SYN, inward=True, remote=C) is verdict


def test_an_unexpected_datagram_is_never_refused() -> None:
    assert Bench(refuse=True).into(udp(B, 1, OUTSIDE, 5000))[0] is Verdict.DROP


@pytest.mark.parametrize(("allowed", "verdict"), [(True, Verdict.FORWARD), (False, Verdict.DROP)])
def test_simultaneous_open(allowed: bool, verdict: Verdict) -> None:
    nat = Bench(simultaneous_open=allowed)
    segment(nat, SYN)
    assert segment(nat, SYN, inward=True) is verdict
    if allowed:
        assert segment(nat, SYN | ACK) is Verdict.FORWARD
        assert segment(nat, SYN | ACK, inward=True) is Verdict.FORWARD


def test_a_full_cone_lets_strangers_open_connections_but_not_continue_them() -> None:
    nat = Bench(filtering=EI)
    segment(nat, SYN)
    assert segment(nat, ACK, inward=True, remote=C) is Verdict.DROP
    assert segment(nat, SYN, inward=True, remote=C) is Verdict.FORWARD
    assert segment(nat, ACK, inward=True, remote=C) is Verdict.FORWARD


def test_tcp_timeouts_follow_the_state() -> None:
    nat = Bench(tcp_transitory_timeout=10, tcp_timeout=100, tcp_reset_timeout=3)
    segment(nat, SYN)
    nat.now = 9
    assert segment(nat, SYN | ACK, inward=True) is Verdict.FORWARD
    segment(nat, ACK)
    nat.now = 9 + 99
    assert segment(nat, ACK, inward=True) is Verdict.FORWARD
    segment(nat, FIN | ACK)
    assert segment(nat, FIN | ACK, inward=True) is Verdict.FORWARD
    nat.now += 9
    assert segment(nat, ACK) is Verdict.FORWARD
    nat.now += 10
    assert segment(nat, ACK, inward=True) is Verdict.DROP


def test_a_reset_connection_keeps_its_port_for_a_moment_and_can_be_opened_again() -> None:
    nat = Bench(ports="random", tcp_reset_timeout=3)
    packet = nat.out(tcp(A, 5000, B, 1, SYN))
    port = packet.source_port
    assert nat.into(tcp(B, 1, OUTSIDE, port, RST | ACK))[0] is Verdict.FORWARD
    nat.now = 2
    assert nat.out(tcp(A, 5000, B, 1, SYN)).source_port == port
    nat.now = 6
    assert nat.into(tcp(B, 1, OUTSIDE, port, SYN))[0] is Verdict.FORWARD


def test_a_reset_makes_no_mapping() -> None:
    nat = Bench()
    nat.out(tcp(A, 5000, B, 1, RST), Verdict.DROP)
    assert list(nat.box.mappings(0)) == []


def test_udp_and_tcp_mappings_are_apart() -> None:
    nat = Bench()
    nat.port(5000)
    assert segment(nat, SYN, inward=True) is Verdict.DROP
    segment(nat, SYN)
    assert sorted((protocol, port) for protocol, _, port, _ in nat.box.mappings(0)) == [("tcp", 5000), ("udp", 5000)]


# ICMP and fragments


def test_an_icmp_error_finds_its_way_in() -> None:
    nat = Bench(ports="random")
    sent = nat.out(udp(A, 5000, B, 1))
    error = icmp_error(sent, B, 3, 3)
    assert error is not None
    verdict, packet = nat.into(error.to_bytes())
    assert verdict is Verdict.FORWARD
    assert packet.target == A
    body = packet.to_bytes()[20:]
    assert checksum(body) == 0xFFFF
    about = Packet(body[8:] + bytes(20))
    assert (about.source, about.source_port, about.target, about.target_port) == (A, 5000, B, 1)
    assert checksum(body[8:28]) == 0xFFFF


def test_an_icmp_error_about_what_was_never_sent_is_dropped() -> None:
    nat = Bench()
    nat.port(5000, B, 1)
    error = icmp_error(Packet(udp(OUTSIDE, 5000, C, 1)), C, 3, 3)
    assert error is not None
    assert nat.into(error.to_bytes())[0] is Verdict.DROP


def test_icmp_errors_can_be_switched_off() -> None:
    nat = Bench(icmp_errors=False)
    error = icmp_error(nat.out(udp(A, 5000, B, 1)), B, 3, 3)
    assert error is not None
    assert nat.into(error.to_bytes())[0] is Verdict.DROP


def test_an_icmp_error_from_inside_shows_no_inside_address() -> None:
    nat = Bench(ports="random")
    port = nat.port(5000, B, 1)
    verdict, arrived = nat.into(udp(B, 1, OUTSIDE, port))
    assert verdict is Verdict.FORWARD
    error = icmp_error(arrived, A, 3, 3)
    assert error is not None
    packet = nat.out(error.to_bytes())
    assert A not in packet.to_bytes()
    assert packet.source == OUTSIDE
    about = Packet(packet.to_bytes()[28:] + bytes(20))
    assert (about.target, about.target_port) == (OUTSIDE, port)
    assert checksum(packet.to_bytes()[20:]) == 0xFFFF


def test_echo_passes_and_strangers_cannot_ping() -> None:
    nat = Bench(ports="random")
    request = nat.out(ping(A, 77, B))
    verdict, reply = nat.into(ping(B, request.source_port, OUTSIDE, kind=0))
    assert verdict is Verdict.FORWARD
    assert (reply.target, reply.source_port) == (A, request.source_port)
    assert reply.to_bytes()[24:26] == (77).to_bytes(2, "big")
    assert checksum(reply.to_bytes()[20:]) == 0xFFFF
    assert nat.into(ping(B, request.source_port, OUTSIDE))[0] is Verdict.DROP


def test_fragments_follow_the_first_one() -> None:
    nat = Bench(ports="random")
    parts = [nat.out(part) for part in fragments(udp(A, 5000, B, 1, bytes(range(250)) * 10), 1000)]
    assert {part.source for part in parts} == {OUTSIDE}
    body = b"".join(part.to_bytes()[20:] for part in parts)
    assert checksum(body, pseudo_sum(OUTSIDE, B, UDP, len(body))) == 0xFFFF
    port = parts[0].source_port
    back = [nat.into(part)[1] for part in fragments(udp(B, 1, OUTSIDE, port, bytes(2500)), 1000)]
    assert {part.target for part in back} == {A}


def test_a_later_fragment_of_nothing_is_dropped() -> None:
    nat = Bench()
    nat.out(fragments(udp(A, 5000, B, 1, bytes(2500)), 1000)[1], Verdict.DROP)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([A, A2]), st.integers(1, 4), st.integers(1, 4)), max_size=60)
)
def test_an_outside_port_leads_back_to_where_it_was_used(steps: list[tuple[int, bytes, int, int]]) -> None:
    nat = Bench(mapping=APD, filtering=APD, ports="random", port_range=(3000, 3020), udp_timeout=5)
    for wait, source, sport, dport in steps:
        nat.now += wait
        packet = Packet(udp(source, sport, B, dport))
        verdict = nat.box.outbound(packet, nat.now)
        live = {port: inside for _, inside, port, _ in nat.box.mappings(nat.now)}
        if verdict is Verdict.DROP:
            assert len(live) == 21
            continue
        assert live[packet.source_port] == (source, sport)
        verdict, back = nat.into(udp(B, dport, OUTSIDE, packet.source_port))
        assert (verdict, back.target, back.target_port) == (Verdict.FORWARD, source, sport)
