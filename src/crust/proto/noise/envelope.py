"""The envelope around handshake messages: to whoever does not know the responder's PeerId, they are random bytes.

All keys come from HMAC-SHA-256 under H("crust-v1 outer" ‖ responder PeerId), with inputs of different lengths
(PROTOCOL 3). Knowing a PeerId opens the envelope, so nothing is secret by it alone; its tag does what WireGuard's mac1
does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from crust.crypto.aead import TAG_BYTES, Suite, aead, mac, nonce, sha256
from crust.errors import RemoteProtocolError

if TYPE_CHECKING:
    from crust.crypto.keys import PeerId

__all__ = ["FIELD_BYTES", "SALT_BYTES", "Envelope", "SealedFrame", "outer_secret", "response_frame"]

SALT_BYTES: Final = 16
FIELD_BYTES: Final = 2  # the masked length
_NONCE: Final = nonce(Suite.AESGCM, 0)  # every key here seals one message


def outer_secret(responder: PeerId) -> bytes:
    """What all envelopes to one responder are keyed by."""
    return sha256(b"crust-v1 outer" + responder.bytes())


class SealedFrame:
    """One sealed message in a byte stream: masked length (2 bytes) ‖ AEAD(body); the masked field is authenticated.

    Args:
        suite: the cipher.
        key: used for this message only.
        mask: 2 bytes that hide the length.
        header: what stands before the frame and is authenticated with it.
    """

    __slots__ = ("_header", "_key", "_mask", "_suite")

    def __init__(self, suite: Suite, key: bytes, mask: bytes, header: bytes = b"") -> None:
        self._suite = suite
        self._key = key
        self._mask = int.from_bytes(mask[:FIELD_BYTES], "big")
        self._header = header

    def seal(self, body: bytes) -> bytes:
        """The whole frame, with the header before it."""
        sealed_bytes = len(body) + TAG_BYTES
        start = self._header + (sealed_bytes ^ self._mask).to_bytes(FIELD_BYTES, "big")
        return start + aead(self._suite, self._key).encrypt(_NONCE, body, start)

    def sealed_bytes(self, field: bytes | bytearray) -> int:
        """How many bytes follow, unmasked from the first 2 bytes of a frame; not authentic before `open`."""
        return int.from_bytes(field[:FIELD_BYTES], "big") ^ self._mask

    def open(self, frame: bytes) -> bytes:
        """The body of a whole frame (without the header).

        Raises:
            RemoteProtocolError: not authentic.
        """
        try:
            return aead(self._suite, self._key).decrypt(_NONCE, frame[FIELD_BYTES:], self._header + frame[:FIELD_BYTES])
        except InvalidTag as error:
            raise RemoteProtocolError("a sealed message that is not authentic") from error


class Envelope:
    """The keys of one message 1 and of the hint that may answer it.

    Args:
        secret: `outer_secret` of the responder.
        salt: 16 random bytes, new for each transmission.
    """

    __slots__ = ("_salt", "_secret")

    def __init__(self, secret: bytes, salt: bytes) -> None:
        self._secret = secret
        self._salt = salt

    def request(self) -> SealedFrame:
        """The frame of message 1; the salt goes before it."""
        key = mac(self._secret, self._salt)
        return SealedFrame(Suite.AESGCM, key, mac(self._secret, self._salt + b"length"), self._salt)

    def hint(self, tag: bytes) -> SealedFrame:
        """The frame of a hint.

        Args:
            tag: the AEAD tag of the message 1 that it answers: a hint fits no other request.
        """
        key = mac(self._secret, self._salt + tag + b"hint")
        return SealedFrame(Suite.AESGCM, key, mac(self._secret, self._salt + tag + b"hint length"))


def response_frame(suite: Suite, chaining_key: bytes) -> SealedFrame:
    """The frame of message 2: sealed as a whole, so that its ephemeral key does not show as a curve point.

    Args:
        suite: of the handshake.
        chaining_key: Noise's after message 1. It goes on into HKDF with 32-byte DH results, so these labels of other
            lengths give independent keys.
    """
    return SealedFrame(suite, mac(chaining_key, b"crust-v1 message 2"), mac(chaining_key, b"crust-v1 message 2 length"))
