"""PCP messages: the layouts of RFC 6887, and what must be refused."""

from __future__ import annotations

import pytest

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.wire.pcp import (
    PcpMapping,
    PcpOpcode,
    PcpProtocol,
    PcpRequest,
    PcpResponse,
    PcpResult,
    parse_pcp_request,
    parse_pcp_response,
    pcp_version_mismatch,
    serialize_pcp,
)

NONCE = bytes(range(12))
MAP_BODY = "000102030405060708090a0b1100000003e807d000000000000000000000ffffc0000201"
MAPPING = PcpMapping(NONCE, PcpProtocol.UDP, 1000, 2000, "192.0.2.1")

REQUESTS = [
    (PcpRequest("192.168.1.2", 7200, MAPPING), "0201000000001c2000000000000000000000ffffc0a80102" + MAP_BODY),
    (PcpRequest("2001:db8::2", 0), "020000000000000020010db8000000000000000000000002"),
]
RESPONSES = [
    (PcpResponse(1, 0, 3600, 77, MAPPING), "0281000000000e100000004d" + "00" * 12 + MAP_BODY),
    (PcpResponse(0, 0, 0, 77), "02800000000000000000004d" + "00" * 12),
    (PcpResponse(1, PcpResult.NO_RESOURCES, 30, 77, MAPPING), "028100080000001e0000004d" + "00" * 12 + MAP_BODY),
    (PcpResponse(1, PcpResult.MALFORMED_REQUEST, 30, 77), "028100030000001e0000004d" + "00" * 12),
    (PcpResponse(2, PcpResult.UNSUPP_OPCODE, 30, 77), "028200040000001e0000004d" + "00" * 12),
]


@pytest.mark.parametrize(("message", "data"), REQUESTS)
def test_requests(message: PcpRequest, data: str) -> None:
    assert serialize_pcp(message).hex() == data
    assert parse_pcp_request(bytes.fromhex(data)) == message
    assert message.opcode is (PcpOpcode.MAP if message.mapping else PcpOpcode.ANNOUNCE)


@pytest.mark.parametrize(("message", "data"), RESPONSES)
def test_responses(message: PcpResponse, data: str) -> None:
    assert serialize_pcp(message).hex() == data
    assert parse_pcp_response(bytes.fromhex(data)) == message


def test_options_are_skipped() -> None:
    data = bytes.fromhex(RESPONSES[0][1])
    assert parse_pcp_response(data + bytes.fromhex("03000005010203040500000002000000")).mapping == MAPPING
    with pytest.raises(RemoteProtocolError):
        parse_pcp_response(data + bytes.fromhex("0300000501020304"))


def test_version_mismatch() -> None:
    assert pcp_version_mismatch(bytes.fromhex("00800001"))  # a NAT-PMP router
    assert pcp_version_mismatch(bytes.fromhex("01810001" + "00" * 20))
    assert not pcp_version_mismatch(bytes.fromhex("02810001" + "00" * 20))
    assert not pcp_version_mismatch(bytes.fromhex("00800000"))
    assert not pcp_version_mismatch(bytes.fromhex("00000001"))
    assert not pcp_version_mismatch(b"\x00")


@pytest.mark.parametrize(
    "data",
    [
        "",
        "02800000",
        "00800000" + "00" * 20,
        "02000000" + "00" * 20,  # a request
        "02810000" + "00" * 20,  # a success without its mapping
        "02810003" + "00" * 24,
        "02820000" + "00" * 20,  # PEER was not asked for
        "02800000" + "00" * 21,
        "02800000" + "00" * 20 + "01000001",
        "02800000" + "00" * 1100,
    ],
)
def test_malformed_responses(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_pcp_response(bytes.fromhex(data))


@pytest.mark.parametrize(
    "data",
    ["", "02810000" + "00" * 20, "02010000" + "00" * 20, "02020000" + "00" * 20, "02000000" + "00" * 20 + "00000004"],
)
def test_malformed_requests(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_pcp_request(bytes.fromhex(data))


@pytest.mark.parametrize(
    "message",
    [
        PcpRequest("nowhere", 0),
        PcpRequest("192.0.2.1", -1),
        PcpRequest("192.0.2.1", 1, PcpMapping(b"short", 6, 1, 1, "::")),
        PcpRequest("192.0.2.1", 1, PcpMapping(NONCE, 6, 70000, 1, "::")),
    ],
)
def test_what_the_format_cannot_hold_is_our_mistake(message: PcpRequest) -> None:
    with pytest.raises(LocalProtocolError):
        serialize_pcp(message)
