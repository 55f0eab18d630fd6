"""Any bytes as records, and records in any pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crust.crypto.aead import Suite
from crust.errors import RemoteProtocolError
from tests.unit.proto.test_record import Ends

suites = st.sampled_from(list(Suite))
plain = st.lists(
    st.builds(
        lambda control, payloads: (bytes((len(payloads),)) + control, payloads),
        st.binary(max_size=300),
        st.lists(st.binary(min_size=1, max_size=300), max_size=4),
    ),
    min_size=1,
    max_size=6,
)


@given(suites, st.booleans(), plain, st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_in_any_pieces(
    suite: Suite, initiator: bool, groups: list[tuple[bytes, list[bytes]]], pieces: list[int]
) -> None:
    ends = Ends(suite)
    data = ends.seal(*groups, initiator=initiator)
    got = []
    at = turn = 0
    while at < len(data):
        size = pieces[turn % len(pieces)]
        got += ends.open(data[at : at + size], initiator=not initiator)
        at, turn = at + size, turn + 1
    assert got == groups


@given(suites, st.booleans(), st.binary(max_size=3000), st.integers(0, 2))
def test_any_bytes(suite: Suite, initiator: bool, data: bytes, before: int) -> None:
    ends = Ends(suite)
    for _ in range(before):
        ends.open(ends.seal((b"\0x", []), initiator=not initiator), initiator=initiator)
    if before == 2:
        ends.now += 4000
        ends.open(ends.seal((b"\0x", []), initiator=not initiator), initiator=initiator)
    try:
        groups = ends.open(data, initiator=initiator)
    except RemoteProtocolError:
        return
    assert groups == []


@given(suites, plain, st.integers(0, 100_000), st.integers(1, 255), st.booleans())
def test_altered(suite: Suite, groups: list[tuple[bytes, list[bytes]]], at: int, change: int, offered: bool) -> None:
    ends = Ends(suite)
    if offered:
        ends.now += 4000  # the offer of a new key is among the records
    data = bytearray(ends.seal(*groups))
    data[at % len(data)] ^= change
    try:
        got = ends.open(bytes(data))
    except RemoteProtocolError:
        return
    # A length that was made longer waits for what never comes: nothing altered was let through.
    assert got == groups[: len(got)]
    assert len(got) < len(groups) or offered


@given(suites, st.binary(min_size=1, max_size=200))
def test_any_management_record(suite: Suite, plaintext: bytes) -> None:
    ends = Ends(suite)
    data = ends.seal((b"\xff" + plaintext, []))
    try:
        assert ends.open(data) == []
    except RemoteProtocolError:
        return
    assert plaintext[0] == 1
    assert len(plaintext) == 33
