"""What a sender signs over a batch of what it sent, and the proof that it signed two things that cannot both be true.

The signature is made for the purpose "receipt" (PROTOCOL 17, 18) over 185 bytes, integers big-endian:

    hash id 1 | sender 32 | receiver 32 | session id 32 | batch 8 | first 8 | last 8 | root 32 | time 8

and travels in a SIGNATURE frame, without what both sides know of their session:

    batch 8 | first 8 | last 8 | root 32 | time 8 | signature 64

`docs/explanation/receipts.md` explains the fields.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from crust.crypto.hashing import HashId
from crust.crypto.keys import PeerId, verify
from crust.errors import ParseError, ReceiptError, RemoteProtocolError

__all__ = [
    "BODY_BYTES",
    "MAX_BATCH",
    "MAX_TIME",
    "PURPOSE",
    "Direction",
    "Statement",
    "conflict",
    "parse_body",
    "parse_direction",
]

PURPOSE: Final = "receipt"
"""The purpose of these signatures; an address record or a beacon has another, and none serves for two."""

MAX_BATCH: Final = 1 << 40
"""Most units in a batch, so that no proof has more than 40 steps; receivers allow far less."""

MAX_TIME: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999: later ones fit no calendar."""

_BODY: Final = struct.Struct(">QQQ32sQ64s")
_SIGNED: Final = struct.Struct(">QQQ32sQ")
_DIRECTION: Final = struct.Struct(">B32s32s32s")
_MAGIC: Final = b"crust-statement\x01"

BODY_BYTES: Final = _BODY.size


class Direction(msgspec.Struct, frozen=True):
    """One direction of a session: what is the same in everything that is signed there.

    Attributes:
        hash_id: how long contents are hashed.
        sender: who signs.
        receiver: for whom.
        session: 32 bytes, different for each session of the two.
    """

    hash_id: HashId
    sender: PeerId
    receiver: PeerId
    session: bytes

    def __bytes__(self) -> bytes:
        return _DIRECTION.pack(self.hash_id, self.sender.bytes(), self.receiver.bytes(), self.session)


class Statement(msgspec.Struct, frozen=True):
    """A signed batch: "these units, numbered so, I sent in this session".

    Attributes:
        direction: whose, for whom, in which session.
        batch: number of the batch, from 0.
        first: number of its first unit; units are counted from 0 in each direction.
        last: number of its last unit.
        root: root of the tree over the units.
        time_us: when the sender says that it signed, in microseconds since 1970.
        signature: 64 bytes.
    """

    direction: Direction
    batch: int
    first: int
    last: int
    root: bytes
    time_us: int
    signature: bytes = b""

    def signed_data(self) -> bytes:
        """The bytes under the signature, after its purpose."""
        return bytes(self.direction) + _SIGNED.pack(self.batch, self.first, self.last, self.root, self.time_us)

    def is_genuine(self) -> bool:
        """Whether the sender signed this."""
        return verify(self.direction.sender, PURPOSE, self.signature, self.signed_data())

    def body(self) -> bytes:
        """The body of a SIGNATURE frame."""
        return _BODY.pack(self.batch, self.first, self.last, self.root, self.time_us, self.signature)

    def __bytes__(self) -> bytes:
        """A form that stands for itself, for `conflict`."""
        return _MAGIC + bytes(self.direction) + self.body()

    @classmethod
    def from_bytes(cls, data: bytes) -> Statement:
        """Read what `bytes()` gave.

        Raises:
            ReceiptError: it is none. Whether it is genuine has not been looked at.
        """
        if len(data) != len(_MAGIC) + _DIRECTION.size + _BODY.size or data[: len(_MAGIC)] != _MAGIC:
            raise ReceiptError("not a signed statement")
        direction = parse_direction(data, len(_MAGIC))
        try:
            return parse_body(data[-_BODY.size :], direction)
        except RemoteProtocolError as error:
            raise ReceiptError(str(error)) from error


def parse_direction(data: bytes, offset: int) -> Direction:
    """Read the 97 bytes of a direction.

    Raises:
        ReceiptError: an unknown hash, or what should be a PeerId is no canonical point of the curve (PROTOCOL 1).
    """
    hash_id, sender, receiver, session = _DIRECTION.unpack_from(data, offset)
    try:
        return Direction(HashId(hash_id), PeerId(sender), PeerId(receiver), session)
    except ParseError as error:
        raise ReceiptError(f"a key in it is none: {error}") from error
    except ValueError as error:
        raise ReceiptError(f"hash function {hash_id} is not known") from error


def parse_body(body: bytes, direction: Direction) -> Statement:
    """Read the body of a SIGNATURE frame. Whether it is genuine has not been looked at.

    Raises:
        RemoteProtocolError: it has another length, or numbers that no batch has.
    """
    if len(body) != _BODY.size:
        raise RemoteProtocolError(f"a signature frame has {len(body)} bytes instead of {_BODY.size}")
    batch, first, last, root, time_us, signature = _BODY.unpack(body)
    if not first <= last < first + MAX_BATCH or time_us > MAX_TIME:
        raise RemoteProtocolError("a signature frame has impossible numbers")
    return Statement(direction, batch, first, last, root, time_us, signature)


def conflict(one: Statement, other: Statement) -> PeerId:
    """Check the proof that a peer signed twice differently.

    Returns:
        The peer.

    Raises:
        ReceiptError: the two are of different directions, do not contradict each other, or one is not genuine.
    """
    if one.direction != other.direction:
        raise ReceiptError("the two statements are of different senders, receivers or sessions")
    overlap = one.first <= other.last and other.first <= one.last
    if one.signed_data() == other.signed_data() or not (overlap or one.batch == other.batch):
        raise ReceiptError("the two statements do not contradict each other")
    if not (one.is_genuine() and other.is_genuine()):
        raise ReceiptError("one of the statements was not signed by its sender")
    return one.direction.sender
