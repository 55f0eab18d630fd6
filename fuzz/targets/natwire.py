"""Answers of routers and STUN servers, and requests of strangers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crust.errors import RemoteProtocolError
from crust.wire import natpmp, pcp, stun
from fuzz.target import Target


def _round_trip(parse: Callable[[bytes], Any], serialize: Callable[[Any], bytes]) -> Callable[[bytes], None]:
    """What is taken is written again in a form that reads the same."""

    def run(data: bytes) -> None:
        message = parse(data)
        assert parse(serialize(message)) == message

    return run


def run_stun(data: bytes) -> None:
    """Any bytes are a STUN message or a RemoteProtocolError; so with the length in a stream."""
    stun.looks_like_stun(data)
    frame = stun.stun_frame_bytes(data)
    assert frame is None or frame >= 20
    stun.parse_stun(data)


def _stun_seeds() -> list[bytes]:
    transaction = bytes(range(12))
    return [
        stun.serialize_stun(stun.StunMessage(stun.MessageClass.REQUEST, transaction)),
        stun.serialize_stun(
            stun.StunMessage(
                stun.MessageClass.SUCCESS,
                transaction,
                xor_mapped_address=("203.0.113.7", 4000),
                mapped_address=("2001:db8::1", 4000),
                software="x",
            )
        ),
        stun.serialize_stun(
            stun.StunMessage(stun.MessageClass.ERROR, transaction, error=stun.StunError(420, "Unknown Attribute"))
        ),
    ]


def _pcp_seeds() -> list[bytes]:
    # RFC 6887 §7.1, §7.2, §11.1: a MAP response, and a request.
    mapping = bytes(12) + b"\x06\0\0\0" + b"\x0f\xa0\x0f\xa0" + bytes(10) + b"\xff\xff\xcb\0\x71\x07"
    return [
        b"\2\x81\0\0" + (120).to_bytes(4, "big") + bytes(16) + mapping,
        b"\2\1\0\0" + (120).to_bytes(4, "big") + bytes(10) + b"\xff\xff\xc0\0\2\1" + mapping,
    ]


def _natpmp_seeds() -> list[bytes]:
    # RFC 6886 §3.2, §3.3, §3.5.
    return [
        b"\0\x80\0\0" + bytes(4) + b"\xcb\0\x71\x07",
        b"\0\x82\0\0" + bytes(4) + b"\x0f\xa0\x0f\xa0\0\0\x1c\x20",
        b"\0\x80\0\3" + bytes(8),
        b"\0\0",
        b"\0\2\0\0\x0f\xa0\x0f\xa0\0\0\x1c\x20",
    ]


TARGETS = (
    Target("stun", run_stun, (RemoteProtocolError,), _stun_seeds),
    Target("pcp-response", _round_trip(pcp.parse_pcp_response, pcp.serialize_pcp), (RemoteProtocolError,), _pcp_seeds),
    Target("pcp-request", _round_trip(pcp.parse_pcp_request, pcp.serialize_pcp), (RemoteProtocolError,), _pcp_seeds),
    Target(
        "natpmp-response",
        _round_trip(natpmp.parse_natpmp_response, natpmp.serialize_natpmp),
        (RemoteProtocolError,),
        _natpmp_seeds,
    ),
    Target(
        "natpmp-request",
        _round_trip(natpmp.parse_natpmp_request, natpmp.serialize_natpmp),
        (RemoteProtocolError,),
        _natpmp_seeds,
    ),
)
