"""Signing what goes out in a direction, and verifying what comes in (PROTOCOL 17-19).

Both sides of a direction count its *units* from 0 in wire order: a message when its last byte is written or read, a
piece of a stream, a large message that was given up. Each unit is hashed into a salted leaf; now and then the sender
signs the root of a tree over the leaves since its last signature, as a numbered frame, and the receiver compares.

A `Signer` and a `Verifier` are told of the same units by the same calls:

    add_batch(kind, priority, buffers, now)     whole units of one kind
    begin(priority, total), update(priority, buffer, now), finish(priority, now)      a message in fragments
    add_tombstone(priority, now)                a large message that was given up

The layout of leaves and receipts stands in `wire.receipt`, that of signatures in `wire.statement`.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from crust.crypto.hashing import Buffer, Hasher, HashId, hasher, salts
from crust.errors import BadSignatureError, LocalProtocolError
from crust.proto.session.merkle import Tree, root_of
from crust.wire.receipt import INLINE_CONTENT, MAX_LENGTH, SALT_BYTES, Kind, Receipt
from crust.wire.statement import MAX_TIME, PURPOSE, Direction, Statement, parse_body

if TYPE_CHECKING:
    from crust.crypto.keys import Identity, PeerId

__all__ = [
    "LIMIT_BYTES",
    "LIMIT_SECONDS",
    "LIMIT_UNITS",
    "MAX_SIGNATURE_DELAY",
    "SIGNATURE_DELAY",
    "TARGET_BYTES",
    "TARGET_UNITS",
    "Segment",
    "Signer",
    "SigningPace",
    "Verifier",
]

SIGNATURE_DELAY: Final = 0.020
"""Seconds after the first unsigned unit when its signature is due (PROTOCOL 19)."""
MAX_SIGNATURE_DELAY: Final = 1.0
"""The same on a node that would make too many signatures."""
MAX_SIGNATURES_PER_SECOND: Final = 2000
"""Above this the delay is stretched: a signature takes 40 µs to make and 110 µs to check."""
TARGET_BYTES: Final = 8 << 20
"""Unsigned bytes at which a signature is due at once."""
TARGET_UNITS: Final = 4096
"""Unsigned units at which a signature is due at once: 15 ms of a receiver's work, and well before its limit."""

LIMIT_BYTES: Final = 16 << 20
LIMIT_UNITS: Final = 65536
LIMIT_SECONDS: Final = 5.0
"""A receiver cuts the peer off beyond these (PROTOCOL 19)."""

RESUME_SECONDS: Final = 120.0
"""How much longer a sender has for its next signature when it goes on over another path."""

_LONGEST_GAP: Final = 1.0  # a silence between two frames counts as no more than this towards LIMIT_SECONDS
_ENOUGH: Final = 64  # units to hash together; the set-up takes as long as hashing ten small messages
_SIGNATURES_KEPT: Final = 16  # to prove that another contradicts one of them
_PACE_WINDOW: Final = 0.25

_sha256: Final = hashlib.sha256
_HEAD: Final = struct.Struct(f">Q{SALT_BYTES}sQ")
_HEADS: Final = struct.Struct(f"{_HEAD.size}s").iter_unpack
_SWAP: Final = sys.byteorder == "little"


class _Pace:
    """How long to let units wait so that a limited number of signatures is made, or checked."""

    __slots__ = ("_count", "_since", "delay")

    def __init__(self) -> None:
        self.delay = SIGNATURE_DELAY
        self._count = 0
        self._since = 0.0

    def counted(self, now: float) -> float:
        """Count a signature; the delay from now on."""
        self._count += 1
        elapsed = now - self._since
        if elapsed >= _PACE_WINDOW:
            # Signatures come in inverse proportion to the delay. Idle time before the window ends it as well.
            load = self._count / elapsed / MAX_SIGNATURES_PER_SECOND
            self.delay = min(max(self.delay * load, SIGNATURE_DELAY), MAX_SIGNATURE_DELAY)
            self._count = 0
            self._since = now
        return self.delay


class SigningPace:
    """How long a node lets units wait for their signature, so that all its connections together make at most 2,000/s.

    It checks no more either, as far as its peers do what they are asked: each may be a node of its own, that signs
    little. Call `signed` for each signature, and give the delay that it returns to the signer; call `verified` for each
    that was checked, and ask the peer for the delay that it returns.
    """

    __slots__ = ("_signed", "_verified")

    def __init__(self) -> None:
        self._signed = _Pace()
        self._verified = _Pace()

    @property
    def delay(self) -> float:
        """How long ours wait at present."""
        return self._signed.delay

    def signed(self, now: float) -> float:
        """Count a signature; the delay for the next one of the same signer."""
        return self._signed.counted(now)

    def verified(self, now: float) -> float:
        """Count a signature that was checked; the delay that its maker should keep."""
        return self._verified.counted(now)


class _Content:
    """A message of which fragments have come: hashed on the way, or kept if it is short."""

    __slots__ = ("hash", "kept", "missing", "total")

    def __init__(self, total: int, new_hash: Callable[..., Hasher]) -> None:
        self.total = self.missing = total
        self.kept = bytearray()
        self.hash = new_hash() if total > INLINE_CONTENT else None


class _Ledger:
    """The units of one direction since its last signature, as leaves.

    Args:
        sender: who signs.
        receiver: to whom it sends.
        hash_id: the hash of the session.
        seed: 32 bytes known to the two sides only, from which the salts come.
        session_id: 32 bytes, the same on both sides; or None, to be set before the first signature.
    """

    def __init__(
        self, sender: PeerId, receiver: PeerId, hash_id: HashId, seed: bytes, session_id: bytes | None = None
    ) -> None:
        if len(seed) != 32:
            raise LocalProtocolError(f"a seed has 32 bytes, not {len(seed)}")
        self._parties = (sender, receiver)
        self._hash_id = hash_id
        self._new_hash = hasher(hash_id)
        self._seed = seed
        self._direction: Direction | None = None
        self._batch = 0  # number of the next batch
        self._first = 0  # number of its first unit
        self._next = 0  # number of the next unit
        self._bytes = 0  # in the units since the last signature
        self._late_bytes = 0  # that came when a signature was due already
        self._since = 0.0  # when the first unit since the last signature was added
        self._tags = array("Q")  # kind, priority and length of each of these, as in the head of its leaf
        self._leaves: list[bytes] = []  # of these, as far as they have been made
        self._waiting: list[Buffer] = []  # for the others: contents, or hashes of long ones
        self._open: dict[int, _Content] = {}
        if session_id is not None:
            self.set_session_id(session_id)

    def set_session_id(self, session_id: bytes) -> None:
        """Say which session this is, once, before the first signature.

        Raises:
            LocalProtocolError: it has not 32 bytes, or another was set.
        """
        if len(session_id) != 32:
            raise LocalProtocolError(f"a session id has 32 bytes, not {len(session_id)}")
        if self._direction is not None and self._direction.session != session_id:
            raise LocalProtocolError("the session id is set already")
        self._direction = Direction(self._hash_id, *self._parties, bytes(session_id))

    @property
    def direction(self) -> Direction:
        """What is the same in everything that is signed here.

        Raises:
            LocalProtocolError: the session id is not set.
        """
        if self._direction is None:
            raise LocalProtocolError("the session id is not set yet")
        return self._direction

    @property
    def hash_id(self) -> HashId:
        """The hash of long contents."""
        return self._hash_id

    @property
    def next_number(self) -> int:
        """The number that the next unit will have."""
        return self._next

    @property
    def unsigned_units(self) -> int:
        """Units since the last signature."""
        return len(self._tags)

    @property
    def unsigned_bytes(self) -> int:
        """Bytes in the units since the last signature."""
        return self._bytes

    # --- units -----------------------------------------------------------------------------------------------------

    def add_batch(self, kind: Kind, priority: int, buffers: Sequence[Buffer], now: float) -> int:
        """Take whole units of one kind and priority, in wire order.

        Args:
            kind: what they are.
            priority: 0 to 7.
            buffers: their contents, with items of one byte; what is not `bytes` may change when this has returned.
            now: the time.

        Returns:
            The number of the first.
        """
        first = self._next
        if not buffers:
            return first
        tag = kind << 48 | priority << 40
        waiting = self._waiting
        if not self._tags:
            self._since = now
        if len(buffers) == 1:
            content = buffers[0]
            size = len(content)
            self._tags.append(tag | size)
            waiting.append(self._new_hash(content).digest() if size > INLINE_CONTENT else bytes(content))
        else:
            lengths = list(map(len, buffers))
            size = sum(lengths)
            self._tags.extend(map(tag.__or__, lengths))
            if max(lengths) > INLINE_CONTENT:
                new_hash = self._new_hash
                buffers = [b if len(b) <= INLINE_CONTENT else new_hash(b).digest() for b in buffers]
            # What is hashed later is kept as bytes, which cannot change until then.
            waiting += buffers if len(buffers) >= _ENOUGH else map(bytes, buffers)
        if self._bytes >= TARGET_BYTES:
            self._late_bytes += size
        self._bytes += size
        self._next = first + len(buffers)
        if len(waiting) >= _ENOUGH:
            self._hash_waiting()
        return first

    def is_under_way(self, priority: int) -> bool:
        """Whether a message in fragments was begun in a priority, and not ended."""
        return priority in self._open

    def begin(self, priority: int, total: int) -> None:
        """Begin a message of `total` bytes that comes in fragments; one at a time in each priority."""
        if priority in self._open:
            raise LocalProtocolError(f"a message of priority {priority} is under way already")
        self._open[priority] = _Content(total, self._new_hash)

    def update(self, priority: int, buffer: Buffer, now: float) -> None:
        """Take the next fragment of the message under way in a priority; one that is all of it goes by `add_batch`."""
        content = self._under_way(priority)
        if self._bytes >= TARGET_BYTES:
            self._late_bytes += len(buffer)
        content.missing -= len(buffer)
        if content.hash is None:
            content.kept += buffer
        else:
            content.hash.update(buffer)

    def finish(self, priority: int, now: float) -> int:
        """End the message under way in a priority: it becomes a unit.

        Returns:
            Its number.

        Raises:
            LocalProtocolError: the fragments do not add up to its total.
        """
        content = self._under_way(priority)
        if content.missing:
            raise LocalProtocolError(f"fragments do not add up: {content.missing} bytes of the message are missing")
        del self._open[priority]
        if not self._tags:
            self._since = now
        self._bytes += content.total
        number = self._next
        self._next = number + 1
        self._tags.append(Kind.MESSAGE << 48 | priority << 40 | content.total)
        self._waiting.append(bytes(content.kept) if content.hash is None else content.hash.digest())
        return number

    def add_tombstone(self, priority: int, now: float) -> int:
        """Drop the message under way in a priority: an empty unit takes its place.

        Returns:
            Its number.
        """
        self._open.pop(priority, None)
        return self.add_batch(Kind.ABORTED, priority, (b"",), now)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _under_way(self, priority: int) -> _Content:
        try:
            return self._open[priority]
        except KeyError:
            raise LocalProtocolError(f"no message of priority {priority} is under way") from None

    def _hash_waiting(self) -> None:
        """Make leaves of the contents that wait for it: together, as one by one would take three times as long."""
        done = len(self._leaves)
        heads = _HEADS(self._heads(self._first + done, self._tags[done:]))
        sha256 = _sha256
        self._leaves += [sha256(head + content).digest() for (head,), content in zip(heads, self._waiting, strict=True)]
        self._waiting = []

    def _heads(self, first: int, tags: array[int]) -> bytearray:
        """The heads of leaves from number `first` on, joined: each field is written into all of them at once."""
        count = len(tags)
        heads = bytearray(_HEAD.size * count)
        words = memoryview(heads).cast("Q")
        salt_words = memoryview(salts(self._seed, first, count)).cast("Q")
        numbers = array("Q", range(first, first + count))
        if _SWAP:  # pragma: no branch - the other way is that of big-endian machines
            tags.byteswap()
            numbers.byteswap()
        words[0::4] = memoryview(tags)
        words[1::4] = salt_words[0::2]
        words[2::4] = salt_words[1::2]
        words[3::4] = memoryview(numbers)
        return heads

    def _take_leaves(self) -> list[bytes]:
        """The leaves of all units since the last signature."""
        if self._waiting:
            self._hash_waiting()
        return self._leaves

    def _start_batch(self, units: int, size: int) -> None:
        """The first `units` leaves, of `size` bytes, are signed: go on behind them."""
        self._leaves = self._leaves[units:]
        self._tags = self._tags[units:]
        self._bytes -= size
        self._first += units
        self._batch += 1


class Signer(_Ledger):
    """The sending side of a direction: it says when a signature is due, and makes it.

    Args:
        identity: the key that signs.
        receiver: to whom it sends.
        hash_id: the hash of the session.
        seed: 32 random bytes, which the receiver is sent encrypted.
        session_id: 32 bytes; None if it is not known yet (see `set_session_id`): nothing is due until then.

    Attributes:
        delay: seconds after the first unsigned unit when its signature is due; the node stretches it (`SigningPace`).
    """

    def __init__(
        self, identity: Identity, receiver: PeerId, hash_id: HashId, seed: bytes, session_id: bytes | None = None
    ) -> None:
        super().__init__(identity.id, receiver, hash_id, seed, session_id)
        self._identity = identity
        self.delay = SIGNATURE_DELAY

    def due(self, now: float) -> bool:
        """Whether to sign now (PROTOCOL 19)."""
        units = len(self._tags)
        if not units or self._direction is None:
            return False
        return now >= self._since + self.delay or self._bytes >= TARGET_BYTES or units >= TARGET_UNITS

    def next_timeout(self) -> float | None:
        """When `due` becomes true if nothing is added, in the past if it is; None: not before something is."""
        if not self._tags or self._direction is None:
            return None
        if self._bytes >= TARGET_BYTES or len(self._tags) >= TARGET_UNITS:
            return self._since
        return self._since + self.delay

    def sign(self, wall_time: float) -> bytes:
        """Sign all units since the last signature.

        Args:
            wall_time: seconds since 1970, which go into the signature.

        Returns:
            The body of a SIGNATURE frame. The frame goes out behind the last of these units and before the next; if
            it is lost, the same bytes are sent again.

        Raises:
            LocalProtocolError: there is nothing to sign, or the session id is not set.
        """
        direction = self.direction
        if not self._tags:
            raise LocalProtocolError("there is nothing to sign")
        time_us = min(max(int(wall_time * 1e6), 0), MAX_TIME)
        root = root_of(self._take_leaves())
        unsigned = Statement(direction, self._batch, self._first, self._next - 1, root, time_us)
        signature = self._identity.sign(PURPOSE, unsigned.signed_data())
        signed = msgspec.structs.replace(unsigned, signature=signature)
        self._start_batch(len(self._tags), self._bytes)
        return signed.body()


class _Batch:
    """A verified batch: what it takes to give receipts for its units, 40 bytes for each."""

    __slots__ = ("seed", "statement", "tags", "tree")

    def __init__(self, statement: Statement, tree: Tree, tags: array[int], seed: bytes) -> None:
        self.statement = statement
        self.tree = tree
        self.tags = tags
        self.seed = seed

    def receipt(self, number: int) -> Receipt:
        index = number - self.statement.first
        head = _HEAD.pack(self.tags[index], salts(self.seed, number, 1), number)
        return Receipt(self.statement, head, self.tree.path(index))


class Segment:
    """Units that came between two signatures.

    Each message keeps its segment and its number, and so everything that its receipt takes: a batch lives as long as
    a message in it, and no longer. The verifier itself lets go of it when it is verified.
    """

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        self._batches: tuple[_Batch, ...] = ()  # those that cover units of this segment; one, as senders sign

    def receipt(self, number: int) -> Receipt | None:
        """The receipt for a unit of this segment.

        Returns:
            The receipt; None as long as the unit is not covered by a signature.
        """
        for batch in self._batches:
            if batch.statement.first <= number <= batch.statement.last:
                return batch.receipt(number)
        return None


class Verifier(_Ledger):
    """The receiving side of a direction: it checks signatures, gives receipts, and says when a peer withholds them.

    Args:
        sender: who signs.
        receiver: ourselves.
        hash_id: the hash of the session.
        seed: 32 bytes that the sender has sent.
        session_id: 32 bytes; None if it is not known yet (see `set_session_id`).

    Attributes:
        segment: the segment of the units that come now. A message keeps it, as it is after `add_batch` or `finish`,
            together with its number.
    """

    def __init__(
        self, sender: PeerId, receiver: PeerId, hash_id: HashId, seed: bytes, session_id: bytes | None = None
    ) -> None:
        super().__init__(sender, receiver, hash_id, seed, session_id)
        self.segment = Segment()
        self._segment_start = 0
        self._segments: list[tuple[int, int, Segment]] = []  # earlier ones with unsigned units, from start to end
        self._signatures: list[bytes] = []
        self._waited = 0.0  # time during which frames kept coming, but no signature
        self._heard = 0.0  # when the last frames came

    def overdue(self, now: float) -> str | None:
        """Whether the peer withholds its signature (PROTOCOL 19); to be asked whenever frames have come.

        Returns:
            How, in words; None if it does not.
        """
        if self._tags:
            self._waited += min(now - max(self._heard, self._since), _LONGEST_GAP)
        self._heard = now
        # A single message may be larger than the limit: bytes count from where a signature is due.
        if self._late_bytes > LIMIT_BYTES - TARGET_BYTES:
            return f"signature withheld: over {LIMIT_BYTES >> 20} MiB unsigned"
        if len(self._tags) > LIMIT_UNITS:
            return f"signature withheld: over {LIMIT_UNITS:,} messages unsigned"
        if self._waited > LIMIT_SECONDS:
            return f"signature withheld for {LIMIT_SECONDS:g} s"
        return None

    def resumed(self) -> None:
        """The peer goes on over another path, and sends again what it had sent without success.

        What it wrote within 20 ms over a fast path may take a minute over a slow one, and the signature stands behind
        it. `LIMIT_BYTES` and `LIMIT_UNITS` bound what it can make of this.
        """
        self._waited = -RESUME_SECONDS

    def unheard(self) -> None:
        """The peer may not have heard our HELLO yet, which it needs for its first signature: a path may be one-way.

        A peer that merely keeps silent about it gains the same time once, within the same bounds.
        """
        self._waited = -RESUME_SECONDS

    def heard(self) -> None:
        """The peer has acknowledged something of ours, so it knows the session."""
        self._waited = max(self._waited, 0.0)

    def receive_signature(self, body: bytes, now: float) -> range:
        """Check a signature.

        Args:
            body: the body of a SIGNATURE frame.
            now: the time.

        Returns:
            The numbers of the units that are verified by it; none if it is a repetition.

        Raises:
            BadSignatureError: it is not the peer's, not over what the peer sent, or contradicts an earlier one.
            RemoteProtocolError: it is no signature at all.
            LocalProtocolError: the session id is not set.
        """
        statement = parse_body(body, self.direction)
        if body in self._signatures:
            return range(0)
        genuine = statement.is_genuine()
        if not genuine:
            raise BadSignatureError("bad signature: not made by the peer's key")
        units = statement.last - statement.first + 1
        if statement.batch != self._batch or statement.first != self._first or units > len(self._tags):
            raise self._contradiction(statement)
        leaves = self._take_leaves()[:units]
        if root_of(leaves) != statement.root:
            raise BadSignatureError("bad signature: made over something else than what was sent", (statement,))
        self._signatures.append(bytes(body))
        del self._signatures[:-_SIGNATURES_KEPT]
        tags = self._tags[:units]
        self._share(_Batch(statement, Tree(leaves), tags, self._seed), statement.last)
        self._start_batch(units, self._bytes if len(tags) == len(self._tags) else sum(tag & MAX_LENGTH for tag in tags))
        self._late_bytes = 0
        self._waited = 0.0
        self._heard = now
        return range(statement.first, statement.last + 1)

    def _share(self, batch: _Batch, last: int) -> None:
        """Give a verified batch to the segments that have units in it."""
        if self._segment_start < self._next:
            self._segments.append((self._segment_start, self._next, self.segment))
            self._segment_start = self._next
            self.segment = Segment()
        for start, _, segment in self._segments:
            if start <= last:
                segment._batches += (batch,)
        self._segments = [entry for entry in self._segments if entry[1] > last + 1]

    def _contradiction(self, statement: Statement) -> BadSignatureError:
        """What to say of a genuine statement that is not the next one."""
        for body in reversed(self._signatures):
            earlier = parse_body(body, statement.direction)
            overlap = earlier.first <= statement.last and statement.first <= earlier.last
            if overlap or earlier.batch == statement.batch:
                return BadSignatureError("bad signature: the peer has signed twice differently", (earlier, statement))
        return BadSignatureError("bad signature: not over the units that follow the last one", (statement,))
