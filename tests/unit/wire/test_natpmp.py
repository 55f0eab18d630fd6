"""NAT-PMP messages: the layouts of RFC 6886, and what must be refused."""

from __future__ import annotations

import pytest

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.wire.natpmp import (
    NatPmpAddressRequest,
    NatPmpAddressResponse,
    NatPmpErrorResponse,
    NatPmpMapRequest,
    NatPmpMapResponse,
    NatPmpOpcode,
    NatPmpRequest,
    NatPmpResponse,
    NatPmpResult,
    parse_natpmp_request,
    parse_natpmp_response,
    serialize_natpmp,
)

REQUESTS = [
    (NatPmpAddressRequest(), "0000"),
    (NatPmpMapRequest(NatPmpOpcode.MAP_UDP, 1000, 2000, 7200), "0001000003e807d000001c20"),
    (NatPmpMapRequest(NatPmpOpcode.MAP_TCP, 65535, 0, 0), "00020000ffff000000000000"),
]
RESPONSES = [
    (NatPmpAddressResponse(5, "192.0.2.1"), "0080000000000005c0000201"),
    (NatPmpMapResponse(NatPmpOpcode.MAP_TCP, 5, 1000, 2000, 3600), "008200000000000503e807d000000e10"),
    (NatPmpErrorResponse(0, NatPmpResult.NETWORK_FAILURE, 7), "0080000300000007"),
    (NatPmpErrorResponse(1, NatPmpResult.OUT_OF_RESOURCES, 7, 1000), "008100040000000703e8000000000000"),
]


@pytest.mark.parametrize(("message", "data"), REQUESTS)
def test_requests(message: NatPmpRequest, data: str) -> None:
    assert serialize_natpmp(message).hex() == data
    assert parse_natpmp_request(bytes.fromhex(data)) == message


@pytest.mark.parametrize(("message", "data"), RESPONSES)
def test_responses(message: NatPmpResponse, data: str) -> None:
    assert serialize_natpmp(message).hex() == data
    assert parse_natpmp_response(bytes.fromhex(data)) == message


def test_a_refusal_may_be_four_bytes() -> None:
    assert parse_natpmp_response(bytes.fromhex("00810001")) == NatPmpErrorResponse(1, 1, 0)


@pytest.mark.parametrize(
    "data", ["", "008000", "0280000000000005c0000201", "0000", "0083000000000005", "0080000000000005c00002", "00820000"]
)
def test_malformed_responses(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_natpmp_response(bytes.fromhex(data))


@pytest.mark.parametrize("data", ["", "00", "0200", "000000", "0003", "0001000003e807d000001c", "0080"])
def test_malformed_requests(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_natpmp_request(bytes.fromhex(data))


@pytest.mark.parametrize(
    "message",
    [
        NatPmpMapRequest(NatPmpOpcode.MAP_UDP, 70000, 0, 0),
        NatPmpAddressResponse(0, "2001:db8::1"),
        NatPmpErrorResponse(0, -1, 0),
    ],
)
def test_what_the_format_cannot_hold_is_our_mistake(message: NatPmpRequest | NatPmpResponse) -> None:
    with pytest.raises(LocalProtocolError):
        serialize_natpmp(message)
