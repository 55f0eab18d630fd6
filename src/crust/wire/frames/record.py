"""The frames as checked records."""

from __future__ import annotations

import msgspec

__all__ = [
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
    "SignatureDelay",
    "StreamCredit",
    "StreamData",
    "StreamFin",
    "StreamOpen",
    "StreamReset",
    "StreamStop",
]


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


class SignatureDelay(msgspec.Struct, frozen=True, gc=False):
    """The sender of this has many signatures to check, and asks for one in so many milliseconds, or less often."""

    milliseconds: int


class Ping(msgspec.Struct, frozen=True, gc=False):
    """Asks for a PONG with the same token, and for an ACK."""

    token: int


class Pong(msgspec.Struct, frozen=True, gc=False):
    """Answers a PING."""

    token: int


class Gone(msgspec.Struct, frozen=True, gc=False):
    """The session does not exist here: unknown or given up (code 0), closed (1), refused (2), or cut off because the
    receiver of this broke the protocol (3)."""

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
    | SignatureDelay
    | Ping
    | Pong
    | Gone
    | PathClose
    | Datagram
    | PathService
    | NumberedFrame
)
