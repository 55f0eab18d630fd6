"""Session frames: what stands inside a control record, as checked records.

A control record is a sequence of frames; the bytes of a large fragment or stream chunk travel in payload records of
their own, which follow the control record in the order in which its frames name them. All integers are big-endian.

Numbered frames carry the connection's frame number and are sent again until acknowledged; the others belong to one path
and are either repeated or worthless after it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from crust.errors import RemoteProtocolError

__all__ = [
    "INLINE_LIMIT",
    "RECORD_LIMIT",
    "Abort",
    "Ack",
    "Close",
    "Credit",
    "Datagram",
    "Fragment",
    "Frame",
    "Gone",
    "Hello",
    "MaxStreams",
    "Messages",
    "NumberedFrame",
    "PathClose",
    "PathService",
    "Ping",
    "Pong",
    "Seed",
    "Service",
    "Signature",
    "StreamCredit",
    "StreamData",
    "StreamFin",
    "StreamOpen",
    "StreamReset",
    "StreamStop",
    "parse_frames",
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
    "serialize_stream_credit",
    "serialize_stream_data",
    "serialize_stream_fin",
    "serialize_stream_open",
    "serialize_stream_reset",
    "serialize_stream_stop",
]

RECORD_LIMIT: Final = 65536
"""Most bytes in one record, so in one fragment or chunk (a masked 16-bit field holds the length - 1)."""

INLINE_LIMIT: Final = 16384
"""Fragments and chunks up to this size travel inside the control record: copying them is cheaper than a record."""

_PADDING, _HELLO, _ACK, _CREDIT, _STREAM_CREDIT, _PING, _PONG, _GONE, _PATH_CLOSE = range(9)
_DATAGRAM, _PATH_SERVICE, _MAX_STREAMS = range(9, 12)
_MESSAGES, _FRAGMENT, _ABORT, _STREAM_OPEN, _STREAM_DATA = range(0x10, 0x15)
_STREAM_FIN, _STREAM_RESET, _STREAM_STOP, _CLOSE, _SEED, _SIGNATURE, _SERVICE = range(0x15, 0x1C)

_HELLO_BODY = struct.Struct(">B16s16sQIII")
_ACK_BODY = struct.Struct(">BQ")
_CREDIT_BODY = struct.Struct(">BBQ")
_STREAM_CREDIT_BODY = struct.Struct(">BQQ")
_GONE_BODY = struct.Struct(">B16sB")
_SIZED_BODY = struct.Struct(">BH")
_MESSAGES_BODY = struct.Struct(">BQBH")
_FRAGMENT_BODY = struct.Struct(">BQBQIB")
_ABORT_BODY = struct.Struct(">BQB")
_STREAM_OPEN_BODY = struct.Struct(">BQQBB")
_STREAM_DATA_BODY = struct.Struct(">BQQIB")
_STREAM_BODY = struct.Struct(">BQQ")
_STREAM_CODE_BODY = struct.Struct(">BQQI")
_CLOSE_BODY = struct.Struct(">BQI")
_SEED_BODY = struct.Struct(">BQ32s")
_SIGNATURE_BODY = struct.Struct(">BQH")

_PRIORITIES: Final = 8


class Hello(msgspec.Struct, frozen=True, gc=False):
    """First frame each way on a path: which session it belongs to, and from where to go on (PROTOCOL 10).

    Attributes:
        nonce: 16 bytes, the sender's nonce for the receiver.
        your_nonce: 16 bytes, the receiver's nonce as the sender knows it; zeros when it knows none.
        next_expected: number of the first numbered frame that the sender of this has not received.
        window: credit in bytes for each priority, counted from the start of the session.
        stream_window: the same for each stream.
        max_message: the largest message that the sender of this takes, in bytes.
    """

    nonce: bytes
    your_nonce: bytes
    next_expected: int
    window: int
    stream_window: int
    max_message: int


class Ack(msgspec.Struct, frozen=True, gc=False):
    """All numbered frames below `next_expected` are held by the sender of this."""

    next_expected: int


class Credit(msgspec.Struct, frozen=True, gc=False):
    """Messages of a priority may cost up to `limit`, counted from the start of the session."""

    priority: int
    limit: int


class StreamCredit(msgspec.Struct, frozen=True, gc=False):
    """A stream may carry up to `limit` bytes, counted from its start."""

    stream: int
    limit: int


class MaxStreams(msgspec.Struct, frozen=True, gc=False):
    """The receiver of this may open `limit` streams, counted from the start of the session."""

    limit: int


class Ping(msgspec.Struct, frozen=True, gc=False):
    """Asks for a PONG with the same token, and for an ACK."""

    token: int


class Pong(msgspec.Struct, frozen=True, gc=False):
    """Answers a PING."""

    token: int


class Gone(msgspec.Struct, frozen=True, gc=False):
    """The session that a HELLO named does not exist here. Code 0: unknown; 1: it was closed; 2: refused."""

    nonce: bytes
    code: int


class PathClose(msgspec.Struct, frozen=True, gc=False):
    """This path is surplus; the session goes on over another."""


class Datagram(msgspec.Struct, frozen=True, gc=False):
    """Unreliable, unordered bytes of the application."""

    data: bytes


class Messages(msgspec.Struct, frozen=True, gc=False):
    """Whole small messages of one priority, in order."""

    number: int
    priority: int
    data: list[bytes]


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """The next bytes of the one large message under way in a priority."""

    number: int
    priority: int
    total: int
    data: bytes


class Abort(msgspec.Struct, frozen=True, gc=False):
    """The rest of the large message under way in a priority will not come."""

    number: int
    priority: int


class StreamOpen(msgspec.Struct, frozen=True, gc=False):
    """A new stream of the sender's."""

    number: int
    stream: int
    priority: int
    name: str


class StreamData(msgspec.Struct, frozen=True, gc=False):
    """The next bytes of a stream."""

    number: int
    stream: int
    data: bytes


class StreamFin(msgspec.Struct, frozen=True, gc=False):
    """The sender has written all of a stream."""

    number: int
    stream: int


class StreamReset(msgspec.Struct, frozen=True, gc=False):
    """The sender gives its half of a stream up."""

    number: int
    stream: int
    code: int


class StreamStop(msgspec.Struct, frozen=True, gc=False):
    """The sender will not read the rest of a stream."""

    number: int
    stream: int
    code: int


class Close(msgspec.Struct, frozen=True, gc=False):
    """The sender's last frame: all before it was sent, nothing will follow."""

    number: int
    code: int


class Seed(msgspec.Struct, frozen=True, gc=False):
    """The secret from which the sender derives its salts (PROTOCOL 18)."""

    number: int
    seed: bytes


class Signature(msgspec.Struct, frozen=True, gc=False):
    """A signed batch root (PROTOCOL 18)."""

    number: int
    body: bytes


class Service(msgspec.Struct, frozen=True, gc=False):
    """A message between the two nodes themselves (see `wire.service`): signalling, not the application's."""

    number: int
    body: bytes


class PathService(msgspec.Struct, frozen=True, gc=False):
    """The same about the path that it comes over: may be lost with it."""

    body: bytes


NumberedFrame = (
    Messages
    | Fragment
    | Abort
    | StreamOpen
    | StreamData
    | StreamFin
    | StreamReset
    | StreamStop
    | Close
    | Seed
    | Signature
    | Service
)
Frame = (
    Hello
    | Ack
    | Credit
    | StreamCredit
    | MaxStreams
    | Ping
    | Pong
    | Gone
    | PathClose
    | Datagram
    | PathService
    | NumberedFrame
)


# --- bytes out ---------------------------------------------------------------------------------------------------


def serialize_padding(size: int) -> bytes:
    """`size` bytes (at least 1) that fill a record; nothing may follow them."""
    return bytes(size)


def serialize_hello(frame: Hello) -> bytes:
    """A HELLO frame."""
    return _HELLO_BODY.pack(
        _HELLO, frame.nonce, frame.your_nonce, frame.next_expected, frame.window, frame.stream_window, frame.max_message
    )


def serialize_ack(next_expected: int) -> bytes:
    """An ACK frame."""
    return _ACK_BODY.pack(_ACK, next_expected)


def serialize_credit(priority: int, limit: int) -> bytes:
    """A CREDIT frame."""
    return _CREDIT_BODY.pack(_CREDIT, priority, limit)


def serialize_stream_credit(stream: int, limit: int) -> bytes:
    """A STREAM_CREDIT frame."""
    return _STREAM_CREDIT_BODY.pack(_STREAM_CREDIT, stream, limit)


def serialize_max_streams(limit: int) -> bytes:
    """A MAX_STREAMS frame."""
    return _ACK_BODY.pack(_MAX_STREAMS, limit)


def serialize_ping(token: int) -> bytes:
    """A PING frame."""
    return _ACK_BODY.pack(_PING, token)


def serialize_pong(token: int) -> bytes:
    """A PONG frame."""
    return _ACK_BODY.pack(_PONG, token)


def serialize_gone(nonce: bytes, code: int) -> bytes:
    """A GONE frame."""
    return _GONE_BODY.pack(_GONE, nonce, code)


def serialize_path_close() -> bytes:
    """A PATH_CLOSE frame."""
    return bytes((_PATH_CLOSE,))


def serialize_datagram(data: bytes) -> bytes:
    """A DATAGRAM frame of at most 65,000 bytes."""
    return _SIZED_BODY.pack(_DATAGRAM, len(data)) + data


def serialize_messages(number: int, priority: int, messages: Sequence[bytes]) -> bytes:
    """A MESSAGES frame; the caller keeps it within a record and within 65,535 messages."""
    count = len(messages)
    head = _MESSAGES_BODY.pack(_MESSAGES, number, priority, count)
    return b"".join((head, struct.pack(f">{count}H", *map(len, messages)), *messages))


def serialize_fragment(number: int, priority: int, total: int, length: int, external: bool) -> bytes:
    """The head of a FRAGMENT; its bytes follow at once, or (`external`) as a payload record."""
    return _FRAGMENT_BODY.pack(_FRAGMENT, number, priority, total, length, external)


def serialize_abort(number: int, priority: int) -> bytes:
    """An ABORT frame."""
    return _ABORT_BODY.pack(_ABORT, number, priority)


def serialize_stream_open(number: int, stream: int, priority: int, name: bytes) -> bytes:
    """A STREAM_OPEN frame; the name has at most 255 bytes."""
    return _STREAM_OPEN_BODY.pack(_STREAM_OPEN, number, stream, priority, len(name)) + name


def serialize_stream_data(number: int, stream: int, length: int, external: bool) -> bytes:
    """The head of a STREAM_DATA; its bytes follow at once, or (`external`) as a payload record."""
    return _STREAM_DATA_BODY.pack(_STREAM_DATA, number, stream, length, external)


def serialize_stream_fin(number: int, stream: int) -> bytes:
    """A STREAM_FIN frame."""
    return _STREAM_BODY.pack(_STREAM_FIN, number, stream)


def serialize_stream_reset(number: int, stream: int, code: int) -> bytes:
    """A STREAM_RESET frame."""
    return _STREAM_CODE_BODY.pack(_STREAM_RESET, number, stream, code)


def serialize_stream_stop(number: int, stream: int, code: int) -> bytes:
    """A STREAM_STOP frame."""
    return _STREAM_CODE_BODY.pack(_STREAM_STOP, number, stream, code)


def serialize_close(number: int, code: int) -> bytes:
    """A CLOSE frame."""
    return _CLOSE_BODY.pack(_CLOSE, number, code)


def serialize_seed(number: int, seed: bytes) -> bytes:
    """A SEED frame with 32 bytes."""
    return _SEED_BODY.pack(_SEED, number, seed)


def serialize_signature(number: int, body: bytes) -> bytes:
    """A SIGNATURE frame; the body has at most 65,000 bytes."""
    return _SIGNATURE_BODY.pack(_SIGNATURE, number, len(body)) + body


def serialize_service(number: int, body: bytes) -> bytes:
    """A SERVICE frame; the body has at most 16,384 bytes."""
    return _SIGNATURE_BODY.pack(_SERVICE, number, len(body)) + body


def serialize_path_service(body: bytes) -> bytes:
    """A PATH_SERVICE frame; the body has at most 1,024 bytes."""
    return _SIZED_BODY.pack(_PATH_SERVICE, len(body)) + body


# --- bytes in ----------------------------------------------------------------------------------------------------


class _Cursor:
    """A control record being read, and the payload records that belong to it."""

    __slots__ = ("at", "data", "payloads", "taken")

    def __init__(self, data: bytes, at: int, payloads: Sequence[bytes]) -> None:
        self.data = data
        self.at = at
        self.payloads = payloads
        self.taken = 0

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        start = self.at
        self.at = start + layout.size
        return layout.unpack_from(self.data, start)

    def take(self, size: int) -> bytes:
        start = self.at
        self.at = start + size
        if self.at > len(self.data):
            raise RemoteProtocolError("a frame is cut short")
        return self.data[start : self.at]

    def body(self, length: int, external: int) -> bytes:
        """The bytes of a fragment or chunk, from the control record or the next payload record."""
        if not 1 <= length <= RECORD_LIMIT or external > 1:
            raise RemoteProtocolError("a fragment has an impossible length")
        if not external:
            return self.take(length)
        if self.taken == len(self.payloads):
            raise RemoteProtocolError("a frame names a payload record that did not come")
        payload = self.payloads[self.taken]
        self.taken += 1
        if len(payload) != length:
            raise RemoteProtocolError("a payload record has another length than its frame says")
        return payload


def _priority(value: int) -> int:
    if value >= _PRIORITIES:
        raise RemoteProtocolError(f"there is no priority {value}")
    return value


def _parse_padding(cursor: _Cursor) -> None:
    if cursor.data.count(0, cursor.at) != len(cursor.data) - cursor.at:
        raise RemoteProtocolError("padding holds data")
    cursor.at = len(cursor.data)


def _parse_hello(cursor: _Cursor) -> Hello:
    return Hello(*cursor.unpack(_HELLO_BODY)[1:])  # type: ignore[arg-type]


def _parse_ack(cursor: _Cursor) -> Ack:
    return Ack(cursor.unpack(_ACK_BODY)[1])


def _parse_credit(cursor: _Cursor) -> Credit:
    _, priority, limit = cursor.unpack(_CREDIT_BODY)
    return Credit(_priority(priority), limit)


def _parse_stream_credit(cursor: _Cursor) -> StreamCredit:
    return StreamCredit(*cursor.unpack(_STREAM_CREDIT_BODY)[1:])


def _parse_max_streams(cursor: _Cursor) -> MaxStreams:
    return MaxStreams(cursor.unpack(_ACK_BODY)[1])


def _parse_ping(cursor: _Cursor) -> Ping:
    return Ping(cursor.unpack(_ACK_BODY)[1])


def _parse_pong(cursor: _Cursor) -> Pong:
    return Pong(cursor.unpack(_ACK_BODY)[1])


def _parse_gone(cursor: _Cursor) -> Gone:
    return Gone(*cursor.unpack(_GONE_BODY)[1:])  # type: ignore[arg-type]


def _parse_path_close(cursor: _Cursor) -> PathClose:
    cursor.at += 1
    return PathClose()


def _parse_datagram(cursor: _Cursor) -> Datagram:
    _, size = cursor.unpack(_SIZED_BODY)
    return Datagram(cursor.take(size))


def _parse_messages(cursor: _Cursor) -> Messages:
    _, number, priority, count = cursor.unpack(_MESSAGES_BODY)
    if not count:
        raise RemoteProtocolError("a MESSAGES frame is empty")
    data, at = cursor.data, cursor.at
    sizes = struct.unpack_from(f">{count}H", data, at)
    at += 2 * count
    messages: list[bytes] = []
    append = messages.append
    for size in sizes:
        end = at + size
        append(data[at:end])
        at = end
    if at > len(data):
        raise RemoteProtocolError("a MESSAGES frame is cut short")
    cursor.at = at
    return Messages(number, _priority(priority), messages)


def _parse_fragment(cursor: _Cursor) -> Fragment:
    _, number, priority, total, length, external = cursor.unpack(_FRAGMENT_BODY)
    return Fragment(number, _priority(priority), total, cursor.body(length, external))


def _parse_abort(cursor: _Cursor) -> Abort:
    _, number, priority = cursor.unpack(_ABORT_BODY)
    return Abort(number, _priority(priority))


def _parse_stream_open(cursor: _Cursor) -> StreamOpen:
    _, number, stream, priority, size = cursor.unpack(_STREAM_OPEN_BODY)
    try:
        name = cursor.take(size).decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("a stream's name is not UTF-8") from error
    return StreamOpen(number, stream, _priority(priority), name)


def _parse_stream_data(cursor: _Cursor) -> StreamData:
    _, number, stream, length, external = cursor.unpack(_STREAM_DATA_BODY)
    return StreamData(number, stream, cursor.body(length, external))


def _parse_stream_fin(cursor: _Cursor) -> StreamFin:
    return StreamFin(*cursor.unpack(_STREAM_BODY)[1:])


def _parse_stream_reset(cursor: _Cursor) -> StreamReset:
    return StreamReset(*cursor.unpack(_STREAM_CODE_BODY)[1:])


def _parse_stream_stop(cursor: _Cursor) -> StreamStop:
    return StreamStop(*cursor.unpack(_STREAM_CODE_BODY)[1:])


def _parse_close(cursor: _Cursor) -> Close:
    return Close(*cursor.unpack(_CLOSE_BODY)[1:])


def _parse_seed(cursor: _Cursor) -> Seed:
    return Seed(*cursor.unpack(_SEED_BODY)[1:])  # type: ignore[arg-type]


def _parse_signature(cursor: _Cursor) -> Signature:
    _, number, size = cursor.unpack(_SIGNATURE_BODY)
    return Signature(number, cursor.take(size))


def _parse_service(cursor: _Cursor) -> Service:
    _, number, size = cursor.unpack(_SIGNATURE_BODY)
    return Service(number, cursor.take(size))


def _parse_path_service(cursor: _Cursor) -> PathService:
    _, size = cursor.unpack(_SIZED_BODY)
    return PathService(cursor.take(size))


_PARSERS: Final[dict[int, Callable[[_Cursor], Frame | None]]] = {
    _PADDING: _parse_padding,
    _HELLO: _parse_hello,
    _ACK: _parse_ack,
    _CREDIT: _parse_credit,
    _STREAM_CREDIT: _parse_stream_credit,
    _MAX_STREAMS: _parse_max_streams,
    _PING: _parse_ping,
    _PONG: _parse_pong,
    _GONE: _parse_gone,
    _PATH_CLOSE: _parse_path_close,
    _DATAGRAM: _parse_datagram,
    _MESSAGES: _parse_messages,
    _FRAGMENT: _parse_fragment,
    _ABORT: _parse_abort,
    _STREAM_OPEN: _parse_stream_open,
    _STREAM_DATA: _parse_stream_data,
    _STREAM_FIN: _parse_stream_fin,
    _STREAM_RESET: _parse_stream_reset,
    _STREAM_STOP: _parse_stream_stop,
    _CLOSE: _parse_close,
    _SEED: _parse_seed,
    _SIGNATURE: _parse_signature,
    _SERVICE: _parse_service,
    _PATH_SERVICE: _parse_path_service,
}


def parse_frames(control: bytes, payloads: Sequence[bytes] = (), *, start: int = 0) -> list[Frame]:
    """Turn a control record and its payload records into frames.

    Args:
        control: the plaintext of a control record.
        payloads: the plaintexts of the payload records that followed it; each is used once, in order.
        start: where the frames begin in `control`.

    Raises:
        RemoteProtocolError: any other shape than frames that use up all of it.
    """
    cursor = _Cursor(control, start, payloads)
    frames: list[Frame] = []
    end = len(control)
    try:
        while cursor.at < end:
            frame = _PARSERS[control[cursor.at]](cursor)
            if frame is not None:
                frames.append(frame)
    except KeyError:
        raise RemoteProtocolError(f"there is no frame of kind {control[cursor.at]}") from None
    except struct.error:
        raise RemoteProtocolError("a frame is cut short") from None
    if cursor.taken != len(payloads):
        raise RemoteProtocolError("a payload record belongs to no frame")
    return frames
