"""Transport keys after the handshake: nonces that never repeat, length masks, renewal by a fresh DH (PROTOCOL 6, 7)."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import Final

from crust.crypto.aead import Aead, Suite, aead, hkdf, mac, nonce
from crust.errors import RemoteProtocolError

__all__ = ["MAX_RECORDS", "CipherKeys", "KeyPair", "first_keys", "rekey"]

MAX_RECORDS: Final = 1 << 22  # under one key (PROTOCOL 6); AES-GCM's own bound lies far above
_MASKS: Final = struct.Struct(">64H")
_BLOCK: Final = bytes(_MASKS.size)
# ck and root are HMAC keys of HKDF too, whose inputs have 0 or 32 bytes: labels have other lengths.
_ROOT_LABEL: Final = b"crust-v1 root"
_INITIATOR_MASKS: Final = b"crust-v1 masks initiator"
_RESPONDER_MASKS: Final = b"crust-v1 masks responder"


class CipherKeys:
    """The keys of one direction of a connection.

    Both sides take one nonce and one mask for each record, in order, and so stay in step.

    Args:
        suite: the cipher.
        key: of the AEAD.
        mask_key: of the length masks.
    """

    __slots__ = ("_aead", "_counter", "_key", "_little_endian", "_mask_blocks", "_mask_key", "_masks", "suite")

    def __init__(self, suite: Suite, key: bytes, mask_key: bytes) -> None:
        self.suite: Final = suite
        self._key = key
        self._mask_key = mask_key
        self._aead: Aead | None = None
        self._counter = 0
        self._little_endian = suite is Suite.CHACHAPOLY
        self._mask_blocks = 0
        self._masks: array[int] = array("H")

    def __repr__(self) -> str:
        return f"<CipherKeys {self.suite.name} {self._counter} records>"

    @property
    def aead(self) -> Aead:
        """The AEAD object of the key."""
        if self._aead is None:
            self._aead = aead(self.suite, self._key)
        return self._aead

    @property
    def records(self) -> int:
        """How many nonces were taken."""
        return self._counter

    def next_nonce(self) -> bytes:
        """The nonce of the next record.

        Raises:
            RemoteProtocolError: `MAX_RECORDS` are used up, because the peer did not take part in renewing the keys.
        """
        n = self._counter
        if n >= MAX_RECORDS:
            raise RemoteProtocolError(f"{MAX_RECORDS} records under one key, which the peer did not renew")
        self._counter = n + 1
        if self._little_endian:
            return b"\0\0\0\0" + n.to_bytes(8, "little")
        return n.to_bytes(12, "big")

    def next_mask(self) -> int:
        """The 16-bit mask of the next record's length field."""
        if not self._masks:
            self._make_masks()
        return self._masks.pop()

    def _make_masks(self) -> None:
        """Draw the next 64 masks: keystream of the suite's cipher, a nonce for each block.

        The cipher object is not kept (it would outweigh the masks twenty times over); making it costs 2 µs, 0.03 µs a
        mask. Blocks of one size, whatever the traffic, need no agreement about when they grow.
        """
        keystream = aead(self.suite, self._mask_key).encrypt(nonce(self.suite, self._mask_blocks), _BLOCK, None)
        self._mask_blocks += 1
        self._masks = array("H", reversed(_MASKS.unpack_from(keystream)))  # `pop` takes from the end

    def release(self) -> None:
        """Give up what can be made again: on an idle connection this frees about 3 KiB, for 2 µs at the next record."""
        self._aead = None


@dataclass(slots=True)
class KeyPair:
    """The keys of both directions, seen from one side.

    Attributes:
        root: the secret from which the next keys will come.
        send: what we seal with.
        receive: what we open with.
    """

    root: bytes
    send: CipherKeys
    receive: CipherKeys


def first_keys(
    suite: Suite, chaining_key: bytes, initiator_key: bytes, responder_key: bytes, *, initiator: bool
) -> KeyPair:
    """The keys after a handshake.

    Args:
        suite: the cipher.
        chaining_key: Noise's, after message 2.
        initiator_key: the first key of Noise's `Split()`.
        responder_key: the second.
        initiator: whether we dialled.
    """
    return _key_pair(suite, mac(chaining_key, _ROOT_LABEL), initiator_key, responder_key, initiator=initiator)


def rekey(suite: Suite, root: bytes, shared: bytes, *, initiator: bool) -> KeyPair:
    """New keys from the old root and a fresh DH: whoever learns the old ones cannot follow, nor the other way round.

    Args:
        suite: the cipher, which stays.
        root: of the keys that are replaced.
        shared: the X25519 result of two new ephemeral keys.
        initiator: whether we dialled, in the handshake; the roles stay.
    """
    new_root, initiator_key, responder_key = hkdf(root, shared, 3)
    return _key_pair(suite, new_root, initiator_key, responder_key, initiator=initiator)


def _key_pair(suite: Suite, root: bytes, initiator_key: bytes, responder_key: bytes, *, initiator: bool) -> KeyPair:
    """Keys for both directions; masks come from the root, so that no AEAD key serves a second purpose."""
    ours = CipherKeys(suite, initiator_key, mac(root, _INITIATOR_MASKS))
    theirs = CipherKeys(suite, responder_key, mac(root, _RESPONDER_MASKS))
    return KeyPair(root, ours, theirs) if initiator else KeyPair(root, theirs, ours)
