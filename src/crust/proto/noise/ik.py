"""Noise IK (Noise revision 34): message 1 is `e, es, s, ss`, message 2 `e, ee, se`; the initiator knows who answers.

Pure: key pairs come in, messages go out. Each object makes one handshake and is thrown away on any error.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from crust.crypto.aead import TAG_BYTES, Hash, Suite, aead, hkdf, nonce
from crust.crypto.dh import DH_BYTES, DhKey, public_key
from crust.errors import RemoteProtocolError

__all__ = ["IkInitiator", "IkResponder", "NoiseAuthenticationError"]

# Crust uses SHA-256 only; the public vectors have BLAKE2s too, and check the state machine with both.
HashName: TypeAlias = Literal["sha256", "blake2s"]
_CIPHER_NAMES: Final = {Suite.AESGCM: "AESGCM", Suite.CHACHAPOLY: "ChaChaPoly"}
_HASH_NAMES: Final = {"sha256": "SHA256", "blake2s": "BLAKE2s"}
_HASHES: Final[dict[HashName, Hash]] = {"sha256": hashlib.sha256, "blake2s": hashlib.blake2s}
_SEALED_STATIC_BYTES: Final = DH_BYTES + TAG_BYTES


class NoiseAuthenticationError(RemoteProtocolError):
    """A field of a Noise message that does not open under the key and transcript of this side."""


class _SymmetricState:
    """Noise §5.2 with the CipherState folded in: IK mixes a new key before each encryption, so that n is always 0."""

    __slots__ = ("_hash", "_key", "_nonce", "_suite", "chaining_key", "handshake_hash")

    def __init__(self, suite: Suite, prologue: bytes, responder_static: bytes, hash_name: HashName) -> None:
        name = f"Noise_IK_25519_{_CIPHER_NAMES[suite]}_{_HASH_NAMES[hash_name]}".encode("ascii")
        self._suite = suite
        self._hash = _HASHES[hash_name]
        self._nonce = nonce(suite, 0)
        self._key = b""
        # §5.2: a name longer than the hash is hashed, a shorter one padded. The shortest of ours has 28 characters.
        self.handshake_hash = name.ljust(32, b"\0") if len(name) <= 32 else self._hash(name).digest()
        self.chaining_key = self.handshake_hash
        self.mix_hash(prologue)
        self.mix_hash(responder_static)  # IK's pre-message: <- s

    def mix_hash(self, data: bytes) -> None:
        self.handshake_hash = self._hash(self.handshake_hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self.chaining_key, self._key = hkdf(self.chaining_key, secret, 2, self._hash)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = aead(self._suite, self._key).encrypt(self._nonce, plaintext, self.handshake_hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        try:
            plaintext = aead(self._suite, self._key).decrypt(self._nonce, ciphertext, self.handshake_hash)
        except InvalidTag as error:
            raise NoiseAuthenticationError("a Noise message that is not authentic") from error
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        first, second = hkdf(self.chaining_key, b"", 2, self._hash)
        return first, second


class _Ik:
    """What both roles share."""

    __slots__ = ("_state", "_static")

    _state: _SymmetricState
    _static: DhKey

    @property
    def handshake_hash(self) -> bytes:
        """The hash of the transcript so far; after message 2 it names this handshake."""
        return self._state.handshake_hash

    @property
    def chaining_key(self) -> bytes:
        """The secret that all keys so far went into; further keys may be derived from it, with labels of their own."""
        return self._state.chaining_key

    def split(self) -> tuple[bytes, bytes]:
        """After message 2: the transport keys of the initiator and of the responder (Noise §5.2)."""
        return self._state.split()


class IkInitiator(_Ik):
    """The side that dials.

    Args:
        suite: the cipher.
        prologue: what both sides must agree on.
        static: our static key pair.
        ephemeral: a key pair used for nothing else.
        responder_static: the responder's static public key.
        hash_name: "sha256", or "blake2s" for test vectors.
    """

    __slots__ = ("_ephemeral", "_responder_raw", "_responder_static")

    def __init__(
        self,
        suite: Suite,
        prologue: bytes,
        static: DhKey,
        ephemeral: DhKey,
        responder_static: bytes,
        hash_name: HashName = "sha256",
    ) -> None:
        self._static = static
        self._ephemeral = ephemeral
        self._responder_raw = responder_static
        self._responder_static = public_key(responder_static)
        self._state = _SymmetricState(suite, prologue, responder_static, hash_name)

    def write_message_1(self, payload: bytes) -> bytes:
        """`e, es, s, ss`, then the payload.

        Raises:
            RemoteProtocolError: the responder's key is of low order.
        """
        state = self._state
        state.mix_hash(self._ephemeral.public)
        state.mix_key(self._ephemeral.exchange(self._responder_static))
        sealed_static = state.encrypt_and_hash(self._static.public)
        state.mix_key(self._static.exchange_again(self._responder_raw, self._responder_static))
        return self._ephemeral.public + sealed_static + state.encrypt_and_hash(payload)

    def read_message_2(self, message: bytes) -> bytes:
        """The payload that the responder sent.

        Raises:
            RemoteProtocolError: not authentic, too short, or an ephemeral key of low order.
        """
        if len(message) < DH_BYTES + TAG_BYTES:
            raise RemoteProtocolError("Noise message 2 too short")
        state = self._state
        state.mix_hash(message[:DH_BYTES])
        ephemeral = public_key(message[:DH_BYTES])
        state.mix_key(self._ephemeral.exchange(ephemeral))
        state.mix_key(self._static.exchange(ephemeral))
        return state.decrypt_and_hash(message[DH_BYTES:])


class IkResponder(_Ik):
    """The side that is dialled.

    Args:
        suite: the cipher that message 1 asks for.
        prologue: what both sides must agree on.
        static: our static key pair.
        hash_name: "sha256", or "blake2s" for test vectors.
    """

    __slots__ = ("_remote_ephemeral", "_remote_key", "_sealed_payload")

    _remote_ephemeral: X25519PublicKey
    _remote_key: X25519PublicKey
    _sealed_payload: bytes

    def __init__(self, suite: Suite, prologue: bytes, static: DhKey, hash_name: HashName = "sha256") -> None:
        self._static = static
        self._state = _SymmetricState(suite, prologue, static.public, hash_name)

    def read_static(self, message: bytes) -> bytes:
        """The first half of message 1, `e, es, s`: the static key that the initiator claims.

        Fails with `NoiseAuthenticationError` when the prologues differ.

        Raises:
            RemoteProtocolError: not authentic, too short, or an ephemeral key of low order.
        """
        if len(message) < DH_BYTES + _SEALED_STATIC_BYTES + TAG_BYTES:
            raise RemoteProtocolError("Noise message 1 too short")
        state = self._state
        ephemeral, sealed_static = message[:DH_BYTES], message[DH_BYTES : DH_BYTES + _SEALED_STATIC_BYTES]
        self._sealed_payload = message[DH_BYTES + _SEALED_STATIC_BYTES :]
        self._remote_ephemeral = public_key(ephemeral)
        state.mix_hash(ephemeral)
        state.mix_key(self._static.exchange(self._remote_ephemeral))
        static = state.decrypt_and_hash(sealed_static)
        self._remote_key = public_key(static)
        return static

    def read_payload(self) -> bytes:
        """The second half of message 1, `ss` and the payload.

        Fails with `NoiseAuthenticationError` when the initiator does not hold the static key that it claims.

        Raises:
            RemoteProtocolError: not authentic, or a static key of low order.
        """
        self._state.mix_key(self._static.exchange(self._remote_key))
        return self._state.decrypt_and_hash(self._sealed_payload)

    def read_message_1(self, message: bytes) -> bytes:
        """The payload that the initiator sent: `read_static`, then `read_payload`."""
        self.read_static(message)
        return self.read_payload()

    def write_message_2(self, ephemeral: DhKey, payload: bytes) -> bytes:
        """`e, ee, se`, then the payload.

        Args:
            ephemeral: a key pair used for nothing else.
            payload: what to send.
        """
        state = self._state
        state.mix_hash(ephemeral.public)
        state.mix_key(ephemeral.exchange(self._remote_ephemeral))
        state.mix_key(ephemeral.exchange(self._remote_key))
        return ephemeral.public + state.encrypt_and_hash(payload)
