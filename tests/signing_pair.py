"""Two ends of a direction, for the tests of signing and receipts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from crust.crypto.hashing import HashId
from crust.crypto.keys import Identity
from crust.proto.session.signing import Segment, Signer, Verifier
from crust.wire.receipt import Kind, Receipt

ALICE = Identity.from_seed(hashlib.sha256(b"alice").digest())
BOB = Identity.from_seed(hashlib.sha256(b"bob").digest())
MALLORY = Identity.from_seed(hashlib.sha256(b"mallory").digest())
SEED = hashlib.sha256(b"salts").digest()
SESSION = hashlib.sha256(b"session").digest()
WALL_TIME = 1_800_000_000.25


def pattern(length: int) -> bytes:
    """Bytes 0 to 250, repeated: what BLAKE3's own vectors are made of."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


class SigningPair:
    """Alice sends, Bob receives; whatever one is told, the other is told as well."""

    def __init__(
        self,
        hash_id: HashId = HashId.SHA256,
        *,
        sender: Identity = ALICE,
        receiver: Identity = BOB,
        session: bytes | None = SESSION,
    ) -> None:
        self.signer = Signer(sender, receiver.id, hash_id, SEED, session)
        self.verifier = Verifier(sender.id, receiver.id, hash_id, SEED, session)
        self.tokens: list[tuple[Segment, int]] = []
        self.contents: list[bytes] = []

    def add(self, contents: Sequence[bytes], *, kind: Kind = Kind.MESSAGE, priority: int = 4, now: float = 0.0) -> None:
        self.signer.add_batch(kind, priority, contents, now)
        first = self.verifier.add_batch(kind, priority, contents, now)
        segment = self.verifier.segment
        self.tokens += [(segment, first + index) for index in range(len(contents))]
        self.contents += contents

    def add_in_fragments(self, content: bytes, size: int, *, priority: int = 4, now: float = 0.0) -> None:
        for ledger in (self.signer, self.verifier):
            ledger.begin(priority, len(content))
            for at in range(0, len(content), size):
                ledger.update(priority, memoryview(content)[at : at + size], now)
            number = ledger.finish(priority, now)
        self.tokens.append((self.verifier.segment, number))
        self.contents.append(content)

    def sign(self, wall_time: float = WALL_TIME, now: float = 0.0) -> range:
        return self.verifier.receive_signature(self.signer.sign(wall_time), now)

    def receipt(self, number: int) -> Receipt:
        segment, unit = self.tokens[number]
        receipt = segment.receipt(unit)
        assert receipt is not None
        return receipt


def receipts_for(contents: Sequence[bytes], hash_id: HashId = HashId.SHA256) -> list[Receipt]:
    """Receipts for messages of one batch, from Alice to Bob."""
    pair = SigningPair(hash_id)
    pair.add(contents)
    pair.sign()
    return [pair.receipt(number) for number in range(len(contents))]
