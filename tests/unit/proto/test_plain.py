"""Records over a stream that needs no encryption."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crust.errors import RemoteProtocolError
from crust.proto.plain import PlainRecords

GROUPS = st.lists(
    st.tuples(st.binary(max_size=40), st.lists(st.binary(min_size=1, max_size=300), max_size=15)), max_size=6
)


def groups_of(drawn: list[tuple[bytes, list[bytes]]]) -> list[tuple[bytes, list[bytes]]]:
    return [(bytes((len(payloads),)) + control, payloads) for control, payloads in drawn]


def stream_of(groups: list[tuple[bytes, list[bytes]]]) -> bytes:
    views = [(control, [memoryview(payload) for payload in payloads]) for control, payloads in groups]
    return b"".join(PlainRecords.buffers(views))


@given(GROUPS, st.lists(st.integers(1, 400), max_size=40), st.booleans())
def test_cut_anywhere(drawn: list[tuple[bytes, list[bytes]]], cuts: list[int], views: bool) -> None:
    groups = groups_of(drawn)
    stream = stream_of(groups)
    records, found = PlainRecords(), []
    at = 0
    for cut in [*cuts, len(stream)]:
        piece = stream[at : at + cut]
        found += records.receive(
            [memoryview(piece)] if views else [piece[:3], piece[3:]] if len(piece) > 3 else [piece]
        )
        at += cut
    assert found == groups
    assert all(type(control) is bytes and all(type(p) is bytes for p in payloads) for control, payloads in found)


def test_all_at_once_in_many_chunks() -> None:
    groups = groups_of([(b"control", [b"x" * 65_536, b"y"]), (b"", []), (b"z" * 65_535, [])])
    stream = stream_of(groups)
    assert PlainRecords().receive([stream[at : at + 1000] for at in range(0, len(stream), 1000)]) == groups


def test_payloads_are_not_copied() -> None:
    payload = memoryview(bytes(100_000))[:65_536]
    assert PlainRecords.buffers([(b"\1", [payload])])[2] is payload


@pytest.mark.parametrize("first", [16, 255])
def test_too_many_payloads(first: int) -> None:
    with pytest.raises(RemoteProtocolError):
        PlainRecords().receive([b"\0\0" + bytes((first,))])


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        for _, payloads in PlainRecords().receive([data]):
            assert len(payloads) <= 15
    except RemoteProtocolError:
        pass
