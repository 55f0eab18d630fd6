"""Packets of the lab: checksums stay right through rewriting, and trains are split as the kernel does it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crust.testing.natlab.fabric import packet as p

from .packets import A, B, C, ping, tcp, udp


def valid(packet: p.Packet) -> bool:
    """Whether every checksum of a packet is right."""
    data = packet.to_bytes()
    if len(packet.source) == 4 and p.checksum(data[: packet.start]) != 0xFFFF:
        return False
    body = data[packet.start :]
    if packet.protocol == p.ICMP:
        return p.checksum(body) == 0xFFFF
    return p.checksum(body, p.pseudo_sum(data[12:16], data[16:20], packet.protocol, len(body))) == 0xFFFF


addresses = st.binary(min_size=4, max_size=4)
ports = st.integers(1, 65535)


@given(addresses, ports, addresses, ports, st.binary(max_size=100), st.sampled_from(["udp", "tcp"]), addresses, ports)
def test_rewriting_keeps_checksums(
    source: bytes, sport: int, target: bytes, dport: int, data: bytes, kind: str, new: bytes, port: int
) -> None:
    raw = udp(source, sport, target, dport, data) if kind == "udp" else tcp(source, sport, target, dport, p.ACK, data)
    packet = p.Packet(raw)
    assert valid(packet)
    packet.set_source(new, port)
    assert valid(packet)
    packet.set_target(source, sport)
    assert valid(packet)
    assert packet.hop()
    assert valid(packet)
    again = p.Packet(packet.to_bytes())
    assert (again.source, again.source_port, again.target, again.target_port) == (new, port, source, sport)


def test_a_udp_packet_without_checksum_keeps_none() -> None:
    raw = bytearray(udp(A, 1, B, 2))
    raw[26:28] = b"\0\0"
    packet = p.Packet(bytes(raw))
    packet.set_source(C, 9)
    assert packet.head[26:28] == b"\0\0"


@given(st.binary(max_size=120))
def test_any_bytes_parse_or_raise_value_error(data: bytes) -> None:
    try:
        packet = p.Packet(data)
    except ValueError:
        return
    assert packet.to_bytes() == data


def train(raw: bytes, size: int, kind: int) -> p.Packet:
    """A train as the kernel hands it over: its checksum field holds the sum of the pseudo-header."""
    packet = p.Packet(raw)
    offset = p.CHECKSUM_AT[packet.protocol] + packet.start
    pseudo = p.checksum(b"", p.pseudo_sum(packet.source, packet.target, packet.protocol, packet.size - packet.start))
    data = bytearray(raw)
    data[offset : offset + 2] = pseudo.to_bytes(2, "big")
    return p.Packet(bytes(data), 0, struct.pack("=BBHHHH", 1, kind, 0, size, 0, 0))


def completed(packet: p.Packet) -> p.Packet:
    """What the network card would send: the checksum filled in."""
    data = bytearray(packet.to_bytes())
    at = p.CHECKSUM_AT[packet.protocol] + packet.start
    data[at : at + 2] = (p.checksum(data[packet.start :]) ^ 0xFFFF).to_bytes(2, "big")
    return p.Packet(bytes(data))


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_tcp_train_is_split_like_the_kernel_does(pieces: int) -> None:
    payload = bytes(range(256)) * 4
    whole = train(tcp(A, 5, B, 6, p.ACK | p.PSH | p.FIN, payload), 300, 1)
    assert (whole.segments, whole.largest, whole.wire_bytes) == (4, 340, 1024 + 4 * 40)
    parts = list(whole.split(pieces))
    assert b"".join(bytes(part.to_bytes()[40:]) for part in parts) == payload
    assert all(part.segments <= pieces for part in parts)
    position = 1000
    for part in parts:
        assert valid(completed(part))
        assert int.from_bytes(part.head[24:28], "big") == position
        assert bool(part.tcp_flags & p.FIN) == (part is parts[-1])
        position += part.size - 40
    identifiers = [int.from_bytes(part.head[4:6], "big") for part in parts]
    assert identifiers == [index * pieces for index in range(len(parts))]


def test_a_udp_train_is_split_into_datagrams() -> None:
    whole = train(udp(A, 5, B, 6, bytes(2500)), 1000, 5)
    parts = list(whole.split(1))
    assert [part.size for part in parts] == [1028, 1028, 528]
    assert all(valid(completed(part)) for part in parts)
    assert [part.gso_size for part in parts] == [0, 0, 0]


def test_rewriting_a_train_keeps_its_partial_checksum() -> None:
    whole = train(tcp(A, 5, B, 6, p.ACK, bytes(900)), 300, 1)
    whole.set_source(C, 9)
    for part in whole.split(1):
        assert valid(completed(part))
    assert valid(completed(whole))


def test_an_icmp_error_quotes_the_packet() -> None:
    error = p.icmp_error(p.Packet(udp(A, 5, B, 6)), C, 11, 0)
    assert error is not None
    assert valid(error)
    assert (error.source, error.target, error.head[20]) == (C, A, 11)
    assert error.to_bytes()[28:48] == udp(A, 5, B, 6)[:20]


def test_no_icmp_error_about_an_icmp_error() -> None:
    error = p.icmp_error(p.Packet(udp(A, 5, B, 6)), C, 11, 0)
    assert error is not None
    assert p.icmp_error(error, B, 3, 1) is None


@pytest.mark.parametrize(
    ("flags", "acknowledged", "expected"),
    [
        (p.SYN, 0, (0, 1001, p.RST | p.ACK)),
        (p.ACK, 77, (77, 0, p.RST)),
        (p.SYN | p.ACK, 99, (99, 0, p.RST)),
    ],
)
def test_a_closed_port_answers_as_rfc_9293_says(flags: int, acknowledged: int, expected: tuple[int, int, int]) -> None:
    reset = p.reset_for(p.Packet(tcp(A, 5, B, 6, flags, acknowledged=acknowledged)))
    assert reset is not None
    assert valid(reset)
    assert (*struct.unpack(">II", reset.head[24:32]), reset.tcp_flags) == expected
    assert (reset.source_port, reset.target_port) == (6, 5)
    assert p.reset_for(reset) is None


def test_an_echo_reply_carries_the_same_data() -> None:
    request = ping(A, 5, B)
    reply = p.echo_reply(p.Packet(request))
    assert valid(reply)
    assert reply.to_bytes()[24:] == request[24:]
    assert (reply.source, reply.target) == (B, A)


def test_time_to_live_runs_out() -> None:
    packet = p.Packet(udp(A, 5, B, 6))
    assert packet.hop(63)
    assert not packet.hop()
