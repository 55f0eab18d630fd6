"""Session frames, as an authenticated and hostile peer could send them."""

from __future__ import annotations

from crust.errors import RemoteProtocolError
from crust.wire import frames
from fuzz.target import Reader, Target, block


def run_frames(data: bytes) -> None:
    """Any control record with any payload records is frames, or a RemoteProtocolError."""
    reader = Reader(data)
    payloads = [reader.block() for _ in range(reader.byte() % 16)]
    control = reader.rest()
    parsed = frames.parse_frames(control, payloads)
    held = sum(len(frame.data) for frame in parsed if isinstance(frame, (frames.Fragment, frames.StreamData)))
    assert held <= len(control) + sum(map(len, payloads))


def frame_seeds() -> list[bytes]:
    """One control record for each kind of frame, without payload records."""
    return [
        frames.serialize_ack(7),
        frames.serialize_credit(4, 1 << 20),
        frames.serialize_stream_credit(2, 1 << 20),
        frames.serialize_max_streams(20),
        frames.serialize_ping(1),
        frames.serialize_pong(1),
        frames.serialize_gone(bytes(16), 1),
        frames.serialize_path_close(),
        frames.serialize_datagram(b"datagram"),
        frames.serialize_messages(0, 4, [b"one", b"", b"three"]),
        frames.serialize_fragment(0, 4, 10, 5, external=False) + b"first",
        frames.serialize_abort(0, 4),
        frames.serialize_stream_open(0, 2, 4, b"name"),
        frames.serialize_stream_data(0, 2, 4, external=False) + b"data",
        frames.serialize_stream_fin(1, 2),
        frames.serialize_stream_reset(1, 2, 9),
        frames.serialize_stream_stop(1, 2, 9),
        frames.serialize_close(2, 0),
        frames.serialize_padding(8),
    ]


def _seeds() -> list[bytes]:
    external = frames.serialize_fragment(0, 4, 100, 50, external=True)
    return [*(b"\0" + seed for seed in frame_seeds()), b"\1" + block(b"p" * 50) + external]


TARGETS = (Target("frames", run_frames, (RemoteProtocolError,), _seeds),)
