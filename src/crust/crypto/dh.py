"""X25519 with the checks that Noise leaves to the caller."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from crust.errors import RemoteProtocolError

__all__ = ["DH_BYTES", "DhKey", "LowOrderKeyError", "public_key"]

DH_BYTES: Final = 32


class LowOrderKeyError(RemoteProtocolError):
    """A peer's key that leads to a result of zero, which any third party knows (RFC 7748 §6.1)."""


class DhKey:
    """An X25519 key pair (Noise's `s` or `e`)."""

    __slots__ = ("_key", "public")

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)
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


def public_key(raw: bytes) -> X25519PublicKey:
    """A peer's public key from its 32 bytes; loading it costs 5 µs, and every key of a handshake is used twice."""
    return X25519PublicKey.from_public_bytes(raw)
