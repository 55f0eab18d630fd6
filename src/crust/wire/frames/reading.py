"""Bytes into frames."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from crust.errors import RemoteProtocolError
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
    PADDING,
    PATH_CLOSE,
    PATH_SERVICE,
    PING,
    PONG,
    PRIORITIES,
    RECORD_LIMIT,
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
from crust.wire.frames.record import (
    Abort,
    Ack,
    Close,
    Credit,
    Datagram,
    Fragment,
    Frame,
    Gone,
    Hello,
    MaxStreams,
    Messages,
    PathClose,
    PathService,
    Ping,
    Pong,
    Seed,
    Service,
    Signature,
    SignatureDelay,
    StreamCredit,
    StreamData,
    StreamFin,
    StreamOpen,
    StreamReset,
    StreamStop,
)

__all__ = [
    "parse_frames",
]


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
    if value >= PRIORITIES:
        raise RemoteProtocolError(f"there is no priority {value}")
    return value


def _parse_padding(cursor: _Cursor) -> None:
    if cursor.data.count(0, cursor.at) != len(cursor.data) - cursor.at:
        raise RemoteProtocolError("padding holds data")
    cursor.at = len(cursor.data)


def _parse_hello(cursor: _Cursor) -> Hello:
    return Hello(*cursor.unpack(HELLO_BODY)[1:])  # type: ignore[arg-type]


def _parse_ack(cursor: _Cursor) -> Ack:
    return Ack(cursor.unpack(ACK_BODY)[1])


def _parse_credit(cursor: _Cursor) -> Credit:
    _, priority, limit = cursor.unpack(CREDIT_BODY)
    return Credit(_priority(priority), limit)


def _parse_stream_credit(cursor: _Cursor) -> StreamCredit:
    return StreamCredit(*cursor.unpack(STREAM_CREDIT_BODY)[1:])


def _parse_max_streams(cursor: _Cursor) -> MaxStreams:
    return MaxStreams(cursor.unpack(ACK_BODY)[1])


def _parse_signature_delay(cursor: _Cursor) -> SignatureDelay:
    return SignatureDelay(cursor.unpack(SIZED_BODY)[1])


def _parse_ping(cursor: _Cursor) -> Ping:
    return Ping(cursor.unpack(ACK_BODY)[1])


def _parse_pong(cursor: _Cursor) -> Pong:
    return Pong(cursor.unpack(ACK_BODY)[1])


def _parse_gone(cursor: _Cursor) -> Gone:
    return Gone(*cursor.unpack(GONE_BODY)[1:])  # type: ignore[arg-type]


def _parse_path_close(cursor: _Cursor) -> PathClose:
    cursor.at += 1
    return PathClose()


def _parse_datagram(cursor: _Cursor) -> Datagram:
    _, size = cursor.unpack(SIZED_BODY)
    return Datagram(cursor.take(size))


def _parse_messages(cursor: _Cursor) -> Messages:
    _, number, priority, count = cursor.unpack(MESSAGES_BODY)
    if not count:
        raise RemoteProtocolError("a MESSAGES frame is empty")
    data, at = cursor.data, cursor.at
    if count == 1:  # as a request or its answer is
        cursor.at += LENGTH.size
        return Messages(number, _priority(priority), [cursor.take(*LENGTH.unpack_from(data, at))])
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
    at = cursor.at
    _, number, priority, total, length, external = FRAGMENT_BODY.unpack_from(cursor.data, at)
    cursor.at = at + FRAGMENT_BODY.size
    if priority >= PRIORITIES:
        _priority(priority)
    return Fragment(number, priority, total, cursor.body(length, external))


def _parse_abort(cursor: _Cursor) -> Abort:
    _, number, priority = cursor.unpack(ABORT_BODY)
    return Abort(number, _priority(priority))


def _parse_stream_open(cursor: _Cursor) -> StreamOpen:
    _, number, stream, priority, size = cursor.unpack(STREAM_OPEN_BODY)
    try:
        name = cursor.take(size).decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("a stream's name is not UTF-8") from error
    return StreamOpen(number, stream, _priority(priority), name)


def _parse_stream_data(cursor: _Cursor) -> StreamData:
    _, number, stream, length, external = cursor.unpack(STREAM_DATA_BODY)
    return StreamData(number, stream, cursor.body(length, external))


def _parse_stream_fin(cursor: _Cursor) -> StreamFin:
    return StreamFin(*cursor.unpack(STREAM_BODY)[1:])


def _parse_stream_reset(cursor: _Cursor) -> StreamReset:
    return StreamReset(*cursor.unpack(STREAM_CODE_BODY)[1:])


def _parse_stream_stop(cursor: _Cursor) -> StreamStop:
    return StreamStop(*cursor.unpack(STREAM_CODE_BODY)[1:])


def _parse_close(cursor: _Cursor) -> Close:
    return Close(*cursor.unpack(CLOSE_BODY)[1:])


def _parse_seed(cursor: _Cursor) -> Seed:
    return Seed(*cursor.unpack(SEED_BODY)[1:])  # type: ignore[arg-type]


def _parse_signature(cursor: _Cursor) -> Signature:
    _, number, size = cursor.unpack(SIGNATURE_BODY)
    return Signature(number, cursor.take(size))


def _parse_service(cursor: _Cursor) -> Service:
    _, number, size = cursor.unpack(SIGNATURE_BODY)
    return Service(number, cursor.take(size))


def _parse_path_service(cursor: _Cursor) -> PathService:
    _, size = cursor.unpack(SIZED_BODY)
    return PathService(cursor.take(size))


_PARSERS: Final[dict[int, Callable[[_Cursor], Frame | None]]] = {
    PADDING: _parse_padding,
    HELLO: _parse_hello,
    ACK: _parse_ack,
    CREDIT: _parse_credit,
    STREAM_CREDIT: _parse_stream_credit,
    MAX_STREAMS: _parse_max_streams,
    SIGNATURE_DELAY: _parse_signature_delay,
    PING: _parse_ping,
    PONG: _parse_pong,
    GONE: _parse_gone,
    PATH_CLOSE: _parse_path_close,
    DATAGRAM: _parse_datagram,
    MESSAGES: _parse_messages,
    FRAGMENT: _parse_fragment,
    ABORT: _parse_abort,
    STREAM_OPEN: _parse_stream_open,
    STREAM_DATA: _parse_stream_data,
    STREAM_FIN: _parse_stream_fin,
    STREAM_RESET: _parse_stream_reset,
    STREAM_STOP: _parse_stream_stop,
    CLOSE: _parse_close,
    SEED: _parse_seed,
    SIGNATURE: _parse_signature,
    SERVICE: _parse_service,
    PATH_SERVICE: _parse_path_service,
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
