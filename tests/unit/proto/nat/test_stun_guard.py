"""What a STUN server for strangers answers: within limits that make it of no use against others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crust.proto.nat import stun_guard
from crust.proto.nat.stun_guard import AMPLIFICATION, StunGuard
from crust.wire.stun import Address, ChangeRequest, MessageClass, StunMessage, parse_stun, serialize_stun

CLIENT = ("198.51.100.7", 4000)
CLIENT6 = ("2001:db8:1:2::7", 4000)
FOUR = {(i, j): (f"203.0.113.{i + 1}", 3478 + j) for i in (0, 1) for j in (0, 1)}
SIX = {(i, j): (f"2001:db8::{i + 1}", 3478 + j) for i in (0, 1) for j in (0, 1)}
ID = bytes(range(12))


def request(**fields: object) -> bytes:
    return serialize_stun(StunMessage(MessageClass.REQUEST, ID, **fields))  # type: ignore[arg-type]


def headers(source: Address) -> int:
    return 48 if ":" in source[0] else 28


def test_a_plain_answer() -> None:
    guard = StunGuard(None, 0.0)
    reply = guard.respond(request(), CLIENT, 0.0)
    assert reply is not None
    assert parse_stun(reply.data).observed == CLIENT
    assert len(reply.data) == 32
    assert reply.destination == CLIENT


def test_the_other_address_where_it_fits() -> None:
    guard = StunGuard(FOUR, 0.0)
    reply = guard.respond(request(), CLIENT, 0.0)
    assert reply is not None
    assert parse_stun(reply.data).other_address == FOUR[1, 1]
    guard = StunGuard(SIX, 0.0)
    short = guard.respond(request(), CLIENT6, 0.0)
    assert short is not None
    assert parse_stun(short.data).other_address is None
    assert parse_stun(short.data).observed == CLIENT6
    for fields in ({"change_request": ChangeRequest()}, {"software": "padding"}):
        longer = guard.respond(request(**fields), CLIENT6, 0.0)
        assert longer is not None
        assert parse_stun(longer.data).other_address == SIX[1, 1]


def test_over_tcp_size_is_no_matter() -> None:
    reply = StunGuard(SIX, 0.0).respond(request(), CLIENT6, 0.0, stream=True)
    assert reply is not None
    assert parse_stun(reply.data).other_address == SIX[1, 1]


def test_each_source_has_a_share() -> None:
    guard = StunGuard(None, 0.0)
    answered = [guard.respond(request(), ("198.51.100.7", port), 0.0) is not None for port in range(1, 101)]
    assert answered.count(True) == 40
    assert guard.refused == {"source": 60}
    assert guard.respond(request(), ("198.51.100.8", 1), 0.0) is not None
    assert guard.respond(request(), CLIENT, 0.2) is not None  # ten a second
    assert guard.respond(request(), CLIENT, 0.25) is not None
    assert guard.respond(request(), CLIENT, 0.25) is None


def test_an_ipv6_network_is_one_source() -> None:
    guard = StunGuard(None, 0.0)
    answered = [guard.respond(request(), (f"2001:db8:1:2::{n:x}", 1), 0.0) is not None for n in range(1, 101)]
    assert answered.count(True) == 40


def test_all_together_have_a_limit() -> None:
    guard = StunGuard(None, 0.0)
    sources = [(f"10.{n >> 8}.{n & 255}.1", 1) for n in range(5000)]
    assert sum(guard.respond(request(), source, 0.0) is not None for source in sources) == 4000
    assert guard.refused == {"total": 1000}


def test_the_table_of_sources_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun_guard, "_SOURCES", 10)
    guard = StunGuard(None, 0.0)
    for n in range(30):
        assert guard.respond(request(), (f"10.0.0.{n}", 1), 0.0) is not None
    assert len(guard._sources) == 10


def test_what_is_no_request_costs_no_share() -> None:
    guard = StunGuard(None, 0.0)
    for _ in range(100):
        assert guard.respond(b"no stun", CLIENT, 0.0) is None
        assert guard.respond(serialize_stun(StunMessage(MessageClass.SUCCESS, ID)), CLIENT, 0.0) is None
    assert guard.ignored == {"malformed": 100, "not a request": 100}
    assert guard.respond(request(), CLIENT, 0.0) is not None


@given(
    data=st.one_of(st.binary(max_size=100), st.binary(max_size=80).map(lambda tail: request() + tail)),
    source=st.sampled_from([CLIENT, CLIENT6]),
    endpoints=st.sampled_from([None, FOUR, SIX]),
    change=st.sampled_from([None, ChangeRequest(True, True), ChangeRequest()]),
    port=st.sampled_from([None, 9]),
    fingerprint=st.booleans(),
    whole=st.booleans(),
)
def test_never_more_than_twice_what_came(
    data: bytes,
    source: Address,
    endpoints: dict[tuple[int, int], Address] | None,
    change: ChangeRequest | None,
    port: int | None,
    fingerprint: bool,
    whole: bool,
) -> None:
    if whole:
        data = request(change_request=change, response_port=port, fingerprint=fingerprint)
    reply = StunGuard(endpoints, 0.0).respond(data, source, 0.0)
    if reply is not None:
        assert len(reply.data) + headers(source) <= AMPLIFICATION * (len(data) + headers(source))
        assert reply.destination[0] == source[0]
    if whole and endpoints is not None:
        assert reply is not None


def test_many_unknown_attributes() -> None:
    """A request that is all unknown attributes gets an error that is no longer than it."""
    attributes = b"".join((0x0100 + n).to_bytes(2, "big") + b"\0\0" for n in range(60))
    head = request()
    data = head[:2] + len(attributes).to_bytes(2, "big") + head[4:] + attributes
    reply = StunGuard(None, 0.0).respond(data, CLIENT, 0.0)
    assert reply is not None
    assert len(reply.data) <= len(data)
