"""STUN, PCP and NAT-PMP parsers: any bytes fail in one way only, and what is written is read back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crust.errors import RemoteProtocolError
from crust.wire.natpmp import (
    NatPmpAddressResponse,
    NatPmpErrorResponse,
    NatPmpMapRequest,
    NatPmpMapResponse,
    NatPmpOpcode,
    parse_natpmp_request,
    parse_natpmp_response,
    serialize_natpmp,
)
from crust.wire.pcp import (
    PcpMapping,
    PcpRequest,
    PcpResponse,
    parse_pcp_request,
    parse_pcp_response,
    pcp_version_mismatch,
    serialize_pcp,
)
from crust.wire.stun import (
    ChangeRequest,
    MessageClass,
    StunError,
    StunMessage,
    looks_like_stun,
    parse_stun,
    serialize_stun,
    stun_frame_bytes,
)

ports = st.integers(0, 65535)
u32 = st.integers(0, 2**32 - 1)
ipv4 = st.ip_addresses(v=4).map(str)
hosts = st.ip_addresses().map(lambda ip: str(getattr(ip, "ipv4_mapped", None) or ip))
addresses = st.tuples(hosts, ports)
optional = st.none() | addresses

stun_messages = st.builds(
    StunMessage,
    st.sampled_from(MessageClass),
    st.binary(min_size=12, max_size=12),
    xor_mapped_address=optional,
    mapped_address=optional,
    software=st.none() | st.text(max_size=100),
    error=st.builds(StunError, st.integers(300, 699), st.text(max_size=50)),
    unknown_attributes=st.lists(ports, max_size=64).map(tuple),
    change_request=st.none() | st.builds(ChangeRequest, st.booleans(), st.booleans()),
    response_port=st.none() | ports,
    response_origin=optional,
    other_address=optional,
    fingerprint=st.booleans(),
)
mappings = st.builds(PcpMapping, st.binary(min_size=12, max_size=12), st.integers(0, 255), ports, ports, hosts)
pcp_messages = st.builds(PcpRequest, hosts, u32, st.none() | mappings) | st.builds(
    PcpResponse, st.just(1), st.integers(0, 255), u32, u32, mappings
)
natpmp_messages = (
    st.builds(NatPmpMapRequest, st.sampled_from([NatPmpOpcode.MAP_TCP, NatPmpOpcode.MAP_UDP]), ports, ports, u32)
    | st.builds(NatPmpAddressResponse, u32, ipv4)
    | st.builds(
        NatPmpMapResponse, st.sampled_from([NatPmpOpcode.MAP_TCP, NatPmpOpcode.MAP_UDP]), u32, ports, ports, u32
    )
    | st.builds(NatPmpErrorResponse, st.integers(1, 127), st.integers(1, 65535), u32, ports)
)

PARSERS: list[Callable[[bytes], object]] = [
    parse_stun,
    stun_frame_bytes,
    parse_pcp_request,
    parse_pcp_response,
    parse_natpmp_request,
    parse_natpmp_response,
]


def refuses_politely(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        parse(data)


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=200))
def test_any_bytes(parse: Callable[[bytes], object], data: bytes) -> None:
    refuses_politely(parse, data)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_looked_at_safely(data: bytes) -> None:
    assert looks_like_stun(data) in (True, False)
    assert pcp_version_mismatch(data) in (True, False)


@given(body=st.binary(max_size=200), message_class=st.sampled_from([0x0001, 0x0101, 0x0111, 0x0011]))
def test_any_stun_body(body: bytes, message_class: int) -> None:
    body = body[: len(body) & ~3]
    data = message_class.to_bytes(2, "big") + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + bytes(12) + body
    refuses_politely(parse_stun, data)
    assert stun_frame_bytes(data) == len(data)


@given(message=stun_messages, position=st.integers(0, 4000), value=st.integers(0, 255))
def test_stun_round_trip_and_mutation(message: StunMessage, position: int, value: int) -> None:
    data = serialize_stun(message)
    assert parse_stun(data) == message
    mutated = bytearray(data)
    mutated[position % len(data)] = value
    refuses_politely(parse_stun, bytes(mutated))
    refuses_politely(parse_stun, data[: position % len(data)])


@given(message=pcp_messages, position=st.integers(0, 4000), value=st.integers(0, 255))
def test_pcp_round_trip_and_mutation(message: PcpRequest | PcpResponse, position: int, value: int) -> None:
    data = serialize_pcp(message)
    parse = parse_pcp_request if isinstance(message, PcpRequest) else parse_pcp_response
    assert parse(data) == message
    mutated = bytearray(data)
    mutated[position % len(data)] = value
    for parse_any in (parse_pcp_request, parse_pcp_response):
        refuses_politely(parse_any, bytes(mutated))
        refuses_politely(parse_any, data[: position % len(data)])


@given(message=natpmp_messages)
def test_natpmp_round_trip(
    message: NatPmpMapRequest | NatPmpAddressResponse | NatPmpMapResponse | NatPmpErrorResponse,
) -> None:
    data = serialize_natpmp(message)
    parse = parse_natpmp_request if isinstance(message, NatPmpMapRequest) else parse_natpmp_response
    assert parse(data) == message
