"""µTP packets: what is written can be read, and any bytes are read or refused in one way."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from crust.errors import RemoteProtocolError
from crust.wire.utp import (
    HEADER_BYTES,
    MAX_FAR_ACKS,
    MAX_SACK_PACKETS,
    Extension,
    Header,
    PacketType,
    is_header_run,
    parse_extensions,
    parse_header,
    serialize_far_acks,
    serialize_header,
    serialize_header_run,
    serialize_part,
    serialize_selective_ack,
)

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
headers = st.builds(Header, st.sampled_from(PacketType), st.integers(0, 255), u16, u32, u32, u32, u16, u16)
# Any set of packets, dense or sparse.
sacks = st.integers(0, (1 << 12_000) - 1) | st.lists(st.integers(0, 11_999)).map(
    lambda numbers: sum(1 << number for number in set(numbers))
)


@given(headers)
def test_header_round_trip(header: Header) -> None:
    assert parse_header(serialize_header(header)) == header


@given(st.binary(max_size=64))
def test_any_bytes_as_a_header(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert serialize_header(parse_header(data)) == data[:HEADER_BYTES]


@given(headers, st.integers(1, 200))
def test_header_run_round_trip(header: Header, count: int) -> None:
    run = serialize_header_run(header, header.seq_nr, count)
    assert is_header_run(run, count)
    for at in range(count):
        parsed = parse_header(run[at * HEADER_BYTES : (at + 1) * HEADER_BYTES])
        assert parsed == header._replace(seq_nr=(header.seq_nr + at) & 0xFFFF)


@given(headers, st.integers(2, 20), st.data())
def test_header_run_notices_a_change(header: Header, count: int, data: st.DataObject) -> None:
    run = serialize_header_run(header, header.seq_nr, count)
    at = data.draw(st.integers(HEADER_BYTES, len(run) - 1))
    run[at] ^= data.draw(st.integers(1, 255))
    assert not is_header_run(run, count)


@given(sacks, st.integers(1, MAX_FAR_ACKS))
def test_selective_ack_round_trip(sack: int, far: int) -> None:
    chain = serialize_selective_ack(sack)
    assert parse_extensions(Extension.SELECTIVE_ACK, chain).sack == sack & ((1 << MAX_SACK_PACKETS) - 1)
    if sack >> MAX_SACK_PACKETS:
        chain = serialize_selective_ack(sack, Extension.FAR_ACK) + serialize_far_acks(sack, far)
        found = parse_extensions(Extension.SELECTIVE_ACK, chain + b"payload")
        assert found.sack == sack & ((1 << MAX_SACK_PACKETS * (1 + far)) - 1)
        assert found.length == len(chain)


@given(st.integers(1, 0xFFFF), st.data())
def test_part_round_trip(total: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, total - 1))
    assert parse_extensions(Extension.PART, serialize_part(offset, total)).part == (offset, total)


@given(st.integers(0, 255) | st.sampled_from(Extension), st.binary(max_size=300))
def test_any_bytes_as_extensions(kind: int, body: bytes) -> None:
    try:
        found = parse_extensions(kind, body)
    except RemoteProtocolError:
        return
    assert 0 <= found.length <= len(body)
    assert found.sack.bit_length() <= 1 << 15
    if found.part is not None:
        assert 0 <= found.part[0] < found.part[1] <= 0xFFFF


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 0x43, 0x44, 99]), st.binary(max_size=12)), max_size=9))
def test_chains(extensions: list[tuple[int, bytes]]) -> None:
    kinds = [kind for kind, _ in extensions] + [0]
    body = b"".join(
        bytes((following, len(data))) + data for following, (_, data) in zip(kinds[1:], extensions, strict=True)
    )
    with contextlib.suppress(RemoteProtocolError):
        assert parse_extensions(kinds[0], body + b"payload").length == len(body)
