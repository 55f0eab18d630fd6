"""Frames into bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from crust.wire.frames.layout import (
    ABORT,
    ABORT_BODY,
    ACK,
    ACK_BODY,
    CLOSE,
    CLOSE_BODY,
    CREDIT,
    CREDIT_BODY,
    DATAGRAM,
    FRAGMENT,
    FRAGMENT_BODY,
    GONE,
    GONE_BODY,
    HELLO,
    HELLO_BODY,
    LENGTH,
    MAX_STREAMS,
    MESSAGES,
    MESSAGES_BODY,
    PATH_CLOSE,
    PATH_SERVICE,
    PING,
    PONG,
    SEED,
    SEED_BODY,
    SERVICE,
    SIGNATURE,
    SIGNATURE_BODY,
    SIGNATURE_DELAY,
    SIZED_BODY,
    STREAM_BODY,
    STREAM_CODE_BODY,
    STREAM_CREDIT,
    STREAM_CREDIT_BODY,
    STREAM_DATA,
    STREAM_DATA_BODY,
    STREAM_FIN,
    STREAM_OPEN,
    STREAM_OPEN_BODY,
    STREAM_RESET,
    STREAM_STOP,
)
from crust.wire.frames.record import Hello

__all__ = [
    "serialize_abort",
    "serialize_ack",
    "serialize_close",
    "serialize_credit",
    "serialize_datagram",
    "serialize_fragment",
    "serialize_gone",
    "serialize_hello",
    "serialize_max_streams",
    "serialize_messages",
    "serialize_padding",
    "serialize_path_close",
    "serialize_path_service",
    "serialize_ping",
    "serialize_pong",
    "serialize_seed",
    "serialize_service",
    "serialize_signature",
    "serialize_signature_delay",
    "serialize_stream_credit",
    "serialize_stream_data",
    "serialize_stream_fin",
    "serialize_stream_open",
    "serialize_stream_reset",
    "serialize_stream_stop",
]


def serialize_padding(size: int) -> bytes:
    """`size` bytes (at least 1) that fill a record; nothing may follow them."""
    return bytes(size)


def serialize_hello(frame: Hello) -> bytes:
    """A HELLO frame."""
    return HELLO_BODY.pack(
        HELLO, frame.nonce, frame.your_nonce, frame.next_expected, frame.window, frame.stream_window, frame.max_message
    )


def serialize_ack(next_expected: int) -> bytes:
    """An ACK frame."""
    return ACK_BODY.pack(ACK, next_expected)


def serialize_credit(priority: int, limit: int) -> bytes:
    """A CREDIT frame."""
    return CREDIT_BODY.pack(CREDIT, priority, limit)


def serialize_stream_credit(stream: int, limit: int) -> bytes:
    """A STREAM_CREDIT frame."""
    return STREAM_CREDIT_BODY.pack(STREAM_CREDIT, stream, limit)


def serialize_max_streams(limit: int) -> bytes:
    """A MAX_STREAMS frame."""
    return ACK_BODY.pack(MAX_STREAMS, limit)


def serialize_signature_delay(milliseconds: int) -> bytes:
    """A SIGNATURE_DELAY frame."""
    return SIZED_BODY.pack(SIGNATURE_DELAY, milliseconds)


def serialize_ping(token: int) -> bytes:
    """A PING frame."""
    return ACK_BODY.pack(PING, token)


def serialize_pong(token: int) -> bytes:
    """A PONG frame."""
    return ACK_BODY.pack(PONG, token)


def serialize_gone(nonce: bytes, code: int) -> bytes:
    """A GONE frame."""
    return GONE_BODY.pack(GONE, nonce, code)


def serialize_path_close() -> bytes:
    """A PATH_CLOSE frame."""
    return bytes((PATH_CLOSE,))


def serialize_datagram(data: bytes) -> bytes:
    """A DATAGRAM frame of at most 65,000 bytes."""
    return SIZED_BODY.pack(DATAGRAM, len(data)) + data


def serialize_messages(number: int, priority: int, messages: Sequence[bytes]) -> bytes:
    """A MESSAGES frame; the caller keeps it within a record and within 65,535 messages."""
    count = len(messages)
    if count == 1:  # as a request or its answer is
        return b"".join((MESSAGES_BODY.pack(MESSAGES, number, priority, 1), LENGTH.pack(len(messages[0])), messages[0]))
    head = MESSAGES_BODY.pack(MESSAGES, number, priority, count)
    return b"".join((head, struct.pack(f">{count}H", *map(len, messages)), *messages))


def serialize_fragment(number: int, priority: int, total: int, length: int, external: bool) -> bytes:
    """The head of a FRAGMENT; its bytes follow at once, or (`external`) as a payload record."""
    return FRAGMENT_BODY.pack(FRAGMENT, number, priority, total, length, external)


def serialize_abort(number: int, priority: int) -> bytes:
    """An ABORT frame."""
    return ABORT_BODY.pack(ABORT, number, priority)


def serialize_stream_open(number: int, stream: int, priority: int, name: bytes) -> bytes:
    """A STREAM_OPEN frame; the name has at most 255 bytes."""
    return STREAM_OPEN_BODY.pack(STREAM_OPEN, number, stream, priority, len(name)) + name


def serialize_stream_data(number: int, stream: int, length: int, external: bool) -> bytes:
    """The head of a STREAM_DATA; its bytes follow at once, or (`external`) as a payload record."""
    return STREAM_DATA_BODY.pack(STREAM_DATA, number, stream, length, external)


def serialize_stream_fin(number: int, stream: int) -> bytes:
    """A STREAM_FIN frame."""
    return STREAM_BODY.pack(STREAM_FIN, number, stream)


def serialize_stream_reset(number: int, stream: int, code: int) -> bytes:
    """A STREAM_RESET frame."""
    return STREAM_CODE_BODY.pack(STREAM_RESET, number, stream, code)


def serialize_stream_stop(number: int, stream: int, code: int) -> bytes:
    """A STREAM_STOP frame."""
    return STREAM_CODE_BODY.pack(STREAM_STOP, number, stream, code)


def serialize_close(number: int, code: int) -> bytes:
    """A CLOSE frame."""
    return CLOSE_BODY.pack(CLOSE, number, code)


def serialize_seed(number: int, seed: bytes) -> bytes:
    """A SEED frame with 32 bytes."""
    return SEED_BODY.pack(SEED, number, seed)


def serialize_signature(number: int, body: bytes) -> bytes:
    """A SIGNATURE frame; the body has at most 65,000 bytes."""
    return SIGNATURE_BODY.pack(SIGNATURE, number, len(body)) + body


def serialize_service(number: int, body: bytes) -> bytes:
    """A SERVICE frame; the body has at most 16,384 bytes."""
    return SIGNATURE_BODY.pack(SERVICE, number, len(body)) + body


def serialize_path_service(body: bytes) -> bytes:
    """A PATH_SERVICE frame; the body has at most 1,024 bytes."""
    return SIZED_BODY.pack(PATH_SERVICE, len(body)) + body
