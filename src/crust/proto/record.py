"""Records over a byte stream: masked lengths, AEAD, renewal of keys (PROTOCOL 6 and 7).

A record is a 16-bit field, the plaintext's length - 1 under a mask, and the sealed plaintext; the masked field is
associated data. Records come in groups: a control record, whose first byte says how many payload records follow, and
these. A payload record is the bare bytes of a fragment, so that they are encrypted straight from the application's
memory.

A control record that begins with 0xFF manages the keys. The side that dialled offers a new ephemeral key; the answer
is the other's last record under its old key, KEY_UPDATE is the last of the offering side.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag

from crust.crypto.dh import DhKey, public_key
from crust.errors import RemoteProtocolError
from crust.proto.noise.transport import MAX_RECORDS, CipherKeys, KeyPair, rekey

__all__ = ["Group", "RecordCodec"]

Group = tuple[bytes, Sequence[memoryview]]
"""A control record and its payload records, as plaintexts."""

_FIELD: Final = 2
_TAG: Final = 16
_MOST_PAYLOADS: Final = 15
_MANAGEMENT: Final = 0xFF
_MANAGEMENT_BYTES: Final = 34 + _FIELD + _TAG

RENEW_RECORDS: Final = MAX_RECORDS // 2
RENEW_SECONDS: Final = 3300.0
"""A little under the hour that PROTOCOL 6 allows."""


class _Kind(enum.IntEnum):
    """Second byte of a record that manages keys."""

    OFFER = 1
    ANSWER = 2
    KEY_UPDATE = 3


class _Renewal(enum.Enum):
    """Where a renewal of the keys stands."""

    IDLE = "idle"
    OFFERED = "our offer is out"
    ANSWERED = "our answer is out, the peer still writes under its old key"


_TRANSITIONS: Final[dict[tuple[_Renewal, _Kind, bool], _Renewal]] = {
    # (state, what came, whether we dialled)
    (_Renewal.IDLE, _Kind.OFFER, False): _Renewal.ANSWERED,
    (_Renewal.OFFERED, _Kind.ANSWER, True): _Renewal.IDLE,
    (_Renewal.ANSWERED, _Kind.KEY_UPDATE, False): _Renewal.IDLE,
}


class RecordCodec:
    """Both directions of one connection.

    Args:
        keys: from the handshake.
        initiator: whether we dialled.
        random: gives random bytes for ephemeral keys.
        now: monotonic seconds.
    """

    __slots__ = (
        "_control",
        "_ephemeral",
        "_initiator",
        "_length",
        "_next_receive",
        "_outgoing",
        "_payloads",
        "_payloads_due",
        "_random",
        "_receive",
        "_renewal",
        "_renewed_at",
        "_root",
        "_send",
        "renewals",
    )

    def __init__(self, keys: KeyPair, *, initiator: bool, random: Callable[[int], bytes], now: float) -> None:
        self._root = keys.root
        self._send = keys.send
        self._receive = keys.receive
        self._initiator = initiator
        self._random = random
        self._renewed_at = now
        self._renewal = _Renewal.IDLE
        self._ephemeral: DhKey | None = None
        self._next_receive: CipherKeys | None = None
        self._outgoing = b""
        self._length = 0  # of the record under way; 0: not known yet
        self._control = b""
        self._payloads: list[bytes] = []
        self._payloads_due = 0
        self.renewals = 0

    # --- bytes out -----------------------------------------------------------------------------------------------

    @property
    def has_outgoing(self) -> bool:
        """Whether `seal` has something to say even without groups."""
        return bool(self._outgoing)

    def seal(self, groups: Sequence[Group], now: float) -> bytearray:
        """The bytes of some groups in a new buffer; for what is not worth `seal_into`."""
        out = bytearray(self.sealed_bytes(groups))
        return out[: self.seal_into(groups, memoryview(out), now)]

    def sealed_bytes(self, groups: Sequence[Group]) -> int:
        """The most bytes that `seal_into` can need for some groups."""
        size = len(self._outgoing) + _MANAGEMENT_BYTES
        for control, payloads in groups:
            size += len(control) + sum(map(len, payloads)) + (_FIELD + _TAG) * (1 + len(payloads))
        return size

    def seal_into(self, groups: Sequence[Group], out: memoryview, now: float) -> int:
        """Seal some groups, and what renews the keys where it is due, into a buffer that the caller uses again.

        Args:
            groups: control records, each with its payload records.
            out: at least `sealed_bytes` long.
            now: monotonic seconds.

        Returns:
            How many bytes of `out` are to be sent.
        """
        plaintexts: list[bytes | memoryview] = []
        for control, payloads in groups:
            plaintexts.append(control)
            plaintexts += payloads
        if self._initiator and self._renewal is _Renewal.IDLE and self._renewal_due(now):
            plaintexts.append(self._offer())
        before, self._outgoing = self._outgoing, b""
        out[: len(before)] = before
        return self._seal(plaintexts, out, len(before))

    def _seal(self, plaintexts: Sequence[bytes | memoryview], out: memoryview, at: int) -> int:
        keys = self._send
        encrypt_into = keys.aead.encrypt_into
        next_mask, next_nonce = keys.next_mask, keys.next_nonce
        for plaintext in plaintexts:
            length = len(plaintext)
            start = at + _FIELD
            field = out[at:start]
            field[:] = ((length - 1) ^ next_mask()).to_bytes(_FIELD, "big")
            at = start + length + _TAG
            encrypt_into(next_nonce(), plaintext, field, out[start:at])
        return at

    def release(self) -> None:
        """Give up what an idle connection can make again."""
        self._send.release()
        self._receive.release()

    # --- bytes in ------------------------------------------------------------------------------------------------

    def receive_data(self, data: memoryview, now: float) -> tuple[list[tuple[bytes, list[bytes]]], int]:
        """Open what is whole.

        Args:
            data: bytes in the order of the stream, beginning with those that were not used last time.
            now: monotonic seconds.

        Returns:
            The groups that are whole, and how many bytes were used.

        Raises:
            RemoteProtocolError: a record is not authentic, or not what should come here.
        """
        groups: list[tuple[bytes, list[bytes]]] = []
        at, end = 0, len(data)
        keys = self._receive
        decrypt = keys.aead.decrypt
        try:
            while end - at > _FIELD:
                start = at + _FIELD
                if not self._length:
                    self._length = (int.from_bytes(data[at:start], "big") ^ keys.next_mask()) + 1
                stop = start + self._length + _TAG
                if stop > end:
                    break
                plaintext = decrypt(keys.next_nonce(), data[start:stop], data[at:start])
                self._length = 0
                at = stop
                if self._payloads_due:
                    self._payloads.append(plaintext)
                    self._payloads_due -= 1
                elif plaintext[0] == _MANAGEMENT:
                    self._manage(plaintext, now)
                    keys = self._receive
                    decrypt = keys.aead.decrypt
                    continue
                else:
                    self._control = plaintext
                    self._payloads_due = plaintext[0]
                    if self._payloads_due > _MOST_PAYLOADS:
                        raise RemoteProtocolError("a control record announces too many payload records")
                if not self._payloads_due:
                    groups.append((self._control, self._payloads))
                    self._control = b""
                    self._payloads = []
        except InvalidTag as error:
            raise RemoteProtocolError("a record is not authentic") from error
        return groups, at

    # --- renewal of keys -----------------------------------------------------------------------------------------

    def _renewal_due(self, now: float) -> bool:
        return (
            self._send.records >= RENEW_RECORDS
            or self._receive.records >= RENEW_RECORDS
            or now - self._renewed_at >= RENEW_SECONDS
        )

    def _offer(self) -> bytes:
        self._ephemeral = DhKey(self._random(32))
        self._renewal = _Renewal.OFFERED
        return bytes((_MANAGEMENT, _Kind.OFFER)) + self._ephemeral.public

    def _manage(self, plaintext: bytes, now: float) -> None:
        try:
            kind = _Kind(plaintext[1])
            after = _TRANSITIONS[self._renewal, kind, self._initiator]
        except (IndexError, KeyError, ValueError):
            raise RemoteProtocolError("the peer renews keys out of turn") from None
        if len(plaintext) != (2 if kind is _Kind.KEY_UPDATE else 34):
            raise RemoteProtocolError("a record that renews keys has a wrong length")
        self._renewal = after
        if kind is _Kind.KEY_UPDATE:
            assert self._next_receive is not None
            self._receive, self._next_receive = self._next_receive, None
            return
        ephemeral = DhKey(self._random(32)) if kind is _Kind.OFFER else self._ephemeral
        assert ephemeral is not None
        keys = rekey(
            self._send.suite, self._root, ephemeral.exchange(public_key(plaintext[2:])), initiator=self._initiator
        )
        if kind is _Kind.OFFER:
            self._last_record(bytes((_MANAGEMENT, _Kind.ANSWER)) + ephemeral.public)
            self._next_receive = keys.receive
        else:
            self._last_record(bytes((_MANAGEMENT, _Kind.KEY_UPDATE)))
            self._receive = keys.receive
            self._ephemeral = None
        self._send = keys.send
        self._root = keys.root
        self._renewed_at = now
        self.renewals += 1

    def _last_record(self, plaintext: bytes) -> None:
        """Seal the last record under the present key; it goes out before anything else."""
        sealed = bytearray(len(plaintext) + _FIELD + _TAG)
        self._seal([plaintext], memoryview(sealed), 0)
        self._outgoing += sealed
