"""X25519 with the checks that Noise leaves to the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from crust.errors import RemoteProtocolError

__all__ = ["DH_BYTES", "DhKey", "Ephemerals", "LowOrderKeyError", "public_key"]

DH_BYTES: Final = 32
_SECRETS_KEPT: Final = 64
_READY_SECONDS: Final = 10.0


class LowOrderKeyError(RemoteProtocolError):
    """A peer's key that leads to a result of zero, which any third party knows (RFC 7748 §6.1)."""


class DhKey:
    """An X25519 key pair (Noise's `s` or `e`)."""

    __slots__ = ("_kept", "_key", "public")

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)
        self._kept: dict[bytes, bytes] = {}
        self.public: Final[bytes] = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"<DhKey {self.public.hex()[:8]}…>"

    def exchange(self, remote: X25519PublicKey) -> bytes:
        """The shared secret with a peer's public key.

        Raises:
            LowOrderKeyError: the result is zero.
        """
        try:
            return self._key.exchange(remote)  # OpenSSL reports an all-zero result as an error
        except ValueError as error:
            raise LowOrderKeyError("an X25519 key of low order") from error

    def exchange_again(self, raw: bytes, remote: X25519PublicKey) -> bytes:
        """The same for a key that is met again and again: the last such secrets are kept.

        Only for keys that we chose to dial: how long it takes must not tell a stranger whom we know.

        Args:
            raw: the public key's bytes.
            remote: the public key.
        """
        kept = self._kept
        secret = kept.pop(raw, None)
        if secret is None:
            secret = self.exchange(remote)
            if len(kept) >= _SECRETS_KEPT:
                del kept[next(iter(kept))]
        kept[raw] = secret
        return secret


class Ephemerals:
    """Key pairs for one handshake each; the next is made while a peer works on our message, as nobody waits then.

    One that has waited for long is not used: what it protects would hang on what memory held long before.

    Args:
        random: gives that many random bytes.
    """

    __slots__ = ("_made_at", "_random", "_ready")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._ready: DhKey | None = None
        self._made_at = 0.0

    def take(self, now: float) -> DhKey:
        """A new key pair."""
        ready, self._ready = self._ready, None
        if ready is None or now - self._made_at > _READY_SECONDS:
            return DhKey(self._random(DH_BYTES))
        return ready

    def prepare(self, now: float) -> None:
        """Make the next one now."""
        if self._ready is None:
            self._ready = DhKey(self._random(DH_BYTES))
            self._made_at = now


def public_key(raw: bytes) -> X25519PublicKey:
    """A peer's public key from its 32 bytes; loading it costs 5 µs, and every key of a handshake is used twice."""
    return X25519PublicKey.from_public_bytes(raw)
