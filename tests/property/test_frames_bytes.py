"""Any bytes as frames: one way to fail, nothing lost there and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crust.errors import RemoteProtocolError
from crust.wire import frames

numbers = st.integers(0, (1 << 64) - 1)
codes = st.integers(0, (1 << 32) - 1)
priorities = st.integers(0, 7)
small = st.binary(max_size=200)
chunks = st.binary(min_size=1, max_size=300)
names = (
    st.text(max_size=60)
    .filter(lambda text: len(text.encode(errors="ignore")) <= 255)
    .filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
)


def fragment(number: int, priority: int, total: int, data: bytes) -> tuple[bytes, frames.Frame]:
    head = frames.serialize_fragment(number, priority, total, len(data), False)
    return head + data, frames.Fragment(number, priority, total, data)


def hello(*values: int) -> tuple[bytes, frames.Frame]:
    frame = frames.Hello(bytes([values[0] % 256]) * 16, bytes([values[1] % 256]) * 16, *values)
    return frames.serialize_hello(frame), frame


examples = st.one_of(
    st.builds(lambda a, b, c, d: hello(a, b, c, d), numbers, codes, codes, codes),
    st.builds(lambda n: (frames.serialize_ack(n), frames.Ack(n)), numbers),
    st.builds(lambda p, n: (frames.serialize_credit(p, n), frames.Credit(p, n)), priorities, numbers),
    st.builds(lambda s, n: (frames.serialize_stream_credit(s, n), frames.StreamCredit(s, n)), numbers, numbers),
    st.builds(lambda n: (frames.serialize_max_streams(n), frames.MaxStreams(n)), numbers),
    st.builds(lambda n: (frames.serialize_ping(n), frames.Ping(n)), numbers),
    st.builds(lambda n: (frames.serialize_pong(n), frames.Pong(n)), numbers),
    st.builds(lambda d: (frames.serialize_datagram(d), frames.Datagram(d)), small),
    st.builds(lambda d: (frames.serialize_path_service(d), frames.PathService(d)), small),
    st.builds(
        lambda n, p, m: (frames.serialize_messages(n, p, m), frames.Messages(n, p, m)),
        numbers,
        priorities,
        st.lists(small, min_size=1, max_size=20),
    ),
    st.builds(fragment, numbers, priorities, codes, chunks),
    st.builds(lambda n, p: (frames.serialize_abort(n, p), frames.Abort(n, p)), numbers, priorities),
    st.builds(
        lambda n, s, p, t: (frames.serialize_stream_open(n, s, p, t.encode()), frames.StreamOpen(n, s, p, t)),
        numbers,
        numbers,
        priorities,
        names,
    ),
    st.builds(
        lambda n, s, d: (frames.serialize_stream_data(n, s, len(d), False) + d, frames.StreamData(n, s, d)),
        numbers,
        numbers,
        chunks,
    ),
    st.builds(lambda n, s: (frames.serialize_stream_fin(n, s), frames.StreamFin(n, s)), numbers, numbers),
    st.builds(
        lambda n, s, c: (frames.serialize_stream_reset(n, s, c), frames.StreamReset(n, s, c)), numbers, numbers, codes
    ),
    st.builds(
        lambda n, s, c: (frames.serialize_stream_stop(n, s, c), frames.StreamStop(n, s, c)), numbers, numbers, codes
    ),
    st.builds(lambda n, c: (frames.serialize_close(n, c), frames.Close(n, c)), numbers, codes),
    st.builds(lambda n, d: (frames.serialize_signature(n, d), frames.Signature(n, d)), numbers, small),
    st.builds(lambda n, d: (frames.serialize_service(n, d), frames.Service(n, d)), numbers, small),
)


@given(st.lists(examples, max_size=20), st.integers(0, 40))
def test_there_and_back(given_frames: list[tuple[bytes, frames.Frame]], padding: int) -> None:
    data = b"".join(piece for piece, _ in given_frames) + bytes(padding)
    assert frames.parse_frames(data) == [frame for _, frame in given_frames]


def parse(data: bytes, payloads: list[bytes]) -> None:
    try:
        found = frames.parse_frames(data, payloads)
    except RemoteProtocolError:
        return
    assert len(found) <= len(data)


@given(st.binary(max_size=400), st.lists(st.binary(max_size=50), max_size=4))
def test_any_bytes(data: bytes, payloads: list[bytes]) -> None:
    parse(data, payloads)


@given(
    st.lists(examples, min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
def test_altered_and_cut(
    given_frames: list[tuple[bytes, frames.Frame]], changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(b"".join(piece for piece, _ in given_frames))
    for at, value in changes:
        data[at % len(data)] = value
    parse(bytes(data[: cut % (len(data) + 1)] if cut % 3 == 0 else data), [])
