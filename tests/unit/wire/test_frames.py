"""Every frame there and back, and every way to get one wrong."""

from __future__ import annotations

import struct

import pytest

from crust.errors import RemoteProtocolError
from crust.wire import frames

NONCE, OTHER = b"n" * 16, b"o" * 16
BIG = (1 << 64) - 1

EXAMPLES: list[tuple[bytes, frames.Frame]] = [
    (
        frames.serialize_hello(frames.Hello(NONCE, OTHER, BIG, 1, 2, 3)),
        frames.Hello(NONCE, OTHER, BIG, 1, 2, 3),
    ),
    (frames.serialize_ack(7), frames.Ack(7)),
    (frames.serialize_credit(7, BIG), frames.Credit(7, BIG)),
    (frames.serialize_stream_credit(9, 10), frames.StreamCredit(9, 10)),
    (frames.serialize_max_streams(BIG), frames.MaxStreams(BIG)),
    (frames.serialize_signature_delay(500), frames.SignatureDelay(500)),
    (frames.serialize_ping(1), frames.Ping(1)),
    (frames.serialize_pong(2), frames.Pong(2)),
    (frames.serialize_gone(NONCE, 255), frames.Gone(NONCE, 255)),
    (frames.serialize_path_close(), frames.PathClose()),
    (frames.serialize_datagram(b""), frames.Datagram(b"")),
    (frames.serialize_datagram(b"data"), frames.Datagram(b"data")),
    (frames.serialize_path_service(b"body"), frames.PathService(b"body")),
    (frames.serialize_messages(1, 0, [b"", b"a", b"bc" * 100]), frames.Messages(1, 0, [b"", b"a", b"bc" * 100])),
    (frames.serialize_fragment(2, 1, 100, 3, False) + b"abc", frames.Fragment(2, 1, 100, b"abc")),
    (frames.serialize_abort(3, 2), frames.Abort(3, 2)),
    (frames.serialize_stream_open(4, 5, 6, "näme".encode()), frames.StreamOpen(4, 5, 6, "näme")),
    (frames.serialize_stream_open(4, 5, 6, b""), frames.StreamOpen(4, 5, 6, "")),
    (frames.serialize_stream_data(5, 6, 2, False) + b"xy", frames.StreamData(5, 6, b"xy")),
    (frames.serialize_stream_fin(6, 7), frames.StreamFin(6, 7)),
    (frames.serialize_stream_reset(7, 8, 9), frames.StreamReset(7, 8, 9)),
    (frames.serialize_stream_stop(8, 9, 10), frames.StreamStop(8, 9, 10)),
    (frames.serialize_close(9, 10), frames.Close(9, 10)),
    (frames.serialize_seed(10, b"s" * 32), frames.Seed(10, b"s" * 32)),
    (frames.serialize_signature(11, b"sig"), frames.Signature(11, b"sig")),
    (frames.serialize_service(12, b"svc"), frames.Service(12, b"svc")),
]
NAMES = [type(frame).__name__ for _, frame in EXAMPLES]
each = pytest.mark.parametrize(("data", "frame"), EXAMPLES, ids=NAMES)


def test_the_examples_cover_every_frame() -> None:
    assert {type(frame) for _, frame in EXAMPLES} == set(frames.Frame.__args__)  # type: ignore[attr-defined]


@each
def test_round_trip(data: bytes, frame: frames.Frame) -> None:
    assert frames.parse_frames(data) == [frame]
    assert frames.parse_frames(b"\0\0\0" + data, start=3) == [frame]


@each
def test_behind_and_before_others(data: bytes, frame: frames.Frame) -> None:
    ping = frames.serialize_ping(99)
    assert frames.parse_frames(ping + data + ping) == [frames.Ping(99), frame, frames.Ping(99)]


@each
def test_padding_behind_it(data: bytes, frame: frames.Frame) -> None:
    for size in (1, 2, 300):
        assert frames.parse_frames(data + frames.serialize_padding(size)) == [frame]


@each
def test_cut_short(data: bytes, frame: frames.Frame) -> None:
    for size in range(1, len(data)):
        with pytest.raises(RemoteProtocolError):
            frames.parse_frames(data[:size])


def test_all_of_them_in_one_record() -> None:
    assert frames.parse_frames(b"".join(data for data, _ in EXAMPLES)) == [frame for _, frame in EXAMPLES]


def test_nothing_is_no_frames() -> None:
    assert frames.parse_frames(b"") == []
    assert frames.parse_frames(b"\0", start=1) == []
    assert frames.parse_frames(frames.serialize_padding(10)) == []


@pytest.mark.parametrize("kind", [0x0D, 0x0F, 0x1C, 0x7F, 0xFF])
def test_unknown_kinds(kind: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"kind {kind}"):
        frames.parse_frames(bytes((kind,)) + bytes(40))


def test_padding_with_data() -> None:
    with pytest.raises(RemoteProtocolError, match="padding"):
        frames.parse_frames(b"\0\0\0\1")


@pytest.mark.parametrize(
    "data",
    [
        frames.serialize_credit(8, 1),
        frames.serialize_messages(1, 8, [b"x"]),
        frames.serialize_fragment(1, 200, 1, 1, False) + b"x",
        frames.serialize_abort(1, 8),
        frames.serialize_stream_open(1, 2, 8, b""),
    ],
)
def test_priorities_that_do_not_exist(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="priority"):
        frames.parse_frames(data)


def test_no_messages() -> None:
    with pytest.raises(RemoteProtocolError, match="empty"):
        frames.parse_frames(frames.serialize_messages(1, 1, []))


def test_the_most_messages() -> None:
    many = [b""] * 32_000
    assert frames.parse_frames(frames.serialize_messages(1, 1, many)) == [frames.Messages(1, 1, many)]


def test_names_that_are_no_utf_8() -> None:
    with pytest.raises(RemoteProtocolError, match="UTF-8"):
        frames.parse_frames(frames.serialize_stream_open(1, 2, 3, b"\xff\xfe"))


class TestPayloads:
    def test_are_taken_in_order(self) -> None:
        control = (
            frames.serialize_fragment(1, 4, 10, 3, True)
            + frames.serialize_ping(5)
            + frames.serialize_stream_data(2, 6, 2, True)
        )
        assert frames.parse_frames(control, [b"abc", b"de"]) == [
            frames.Fragment(1, 4, 10, b"abc"),
            frames.Ping(5),
            frames.StreamData(2, 6, b"de"),
        ]

    @pytest.mark.parametrize(
        ("control", "payloads", "text"),
        [
            (frames.serialize_fragment(1, 4, 10, 3, True), [], "did not come"),
            (frames.serialize_fragment(1, 4, 10, 3, True), [b"ab"], "another length"),
            (frames.serialize_fragment(1, 4, 10, 3, True), [b"abcd"], "another length"),
            (frames.serialize_fragment(1, 4, 10, 3, True), [b"abc", b"d"], "no frame"),
            (frames.serialize_ping(1), [b"abc"], "no frame"),
            (frames.serialize_stream_data(1, 2, 0, True), [b""], "impossible length"),
            (frames.serialize_fragment(1, 4, 10, 0, False), [], "impossible length"),
            (frames.serialize_fragment(1, 4, 1 << 20, 65_537, True), [bytes(65_537)], "impossible length"),
        ],
    )
    def test_that_do_not_fit(self, control: bytes, payloads: list[bytes], text: str) -> None:
        with pytest.raises(RemoteProtocolError, match=text):
            frames.parse_frames(control, payloads)

    def test_a_flag_of_two(self) -> None:
        data = bytearray(frames.serialize_fragment(1, 4, 10, 3, True))
        data[-1] = 2
        with pytest.raises(RemoteProtocolError, match="impossible"):
            frames.parse_frames(bytes(data), [b"abc"])


def test_integers_are_big_endian() -> None:
    assert frames.serialize_ack(1) == b"\x02" + struct.pack(">Q", 1)
