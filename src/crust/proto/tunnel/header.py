"""Headers of datagrams and their masks: one AES call for a whole batch (PROTOCOL 8).

The mask of a header is AES-ECB of a sample, the 16 bytes behind the header (ciphertext or tag), and of the same sample
with every bit of a constant flipped. Samples differ as ciphertexts do, so the mask is used once; as in QUIC (RFC 9001
§5.4) it hides, it does not authenticate: the unmasked header is associated data of the AEAD.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from crust.wire.tunnel import HEADER_BYTES, SAMPLE_BYTES

__all__ = ["MAX_SEGMENTS", "HeaderMask"]

MAX_SEGMENTS: Final = 128
"""Datagrams in one batch; Linux sends and gives at most 64 (from 6.9 on 128)."""

_FLIP: Final = 0xA5
_FLIP_BYTES: Final = bytes(value ^ _FLIP for value in range(256))
_SECOND: Final = bytes(SAMPLE_BYTES) + bytes((_FLIP,)) * SAMPLE_BYTES
# For each number of datagrams the constant that turns the second copy of each sample into another block.
_FLIPS: Final = tuple(int.from_bytes(_SECOND * count, "little") for count in range(MAX_SEGMENTS + 1))


class HeaderMask:
    """Masks and unmasks headers.

    Args:
        key: 16 bytes, drawn by whom the datagrams go to.
    """

    __slots__ = ("_cipher", "_key")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher: CipherContext | None = None

    def apply(self, headers: bytes | bytearray | memoryview, samples: bytes) -> bytes:
        """Mask headers, or unmask them.

        Args:
            headers: 32 bytes each.
            samples: the sample of each, twice in a row.
        """
        size = len(samples)
        blocks = (int.from_bytes(samples, "little") ^ _FLIPS[size // HEADER_BYTES]).to_bytes(size, "little")
        masks = (self._cipher or self._begin()).update(blocks)
        return (int.from_bytes(headers, "little") ^ int.from_bytes(masks, "little")).to_bytes(size, "little")

    def apply_one(self, header: bytes, sample: bytes) -> bytes:
        """The same for a single header, in a third of the time."""
        mask = (self._cipher or self._begin()).update(sample + sample.translate(_FLIP_BYTES))
        return (int.from_bytes(header, "little") ^ int.from_bytes(mask, "little")).to_bytes(HEADER_BYTES, "little")

    def masks(self, samples: bytes) -> bytes:
        """The first half of the mask of each sample; what lies between them is encrypted with them."""
        return (self._cipher or self._begin()).update(samples)

    def _begin(self) -> CipherContext:
        # An ECB context has no state between whole blocks, so one serves for ever.
        self._cipher = Cipher(AES(self._key), ECB()).encryptor()  # noqa: S305 - single random blocks
        return self._cipher

    def release(self) -> None:
        """Give up what can be made again."""
        self._cipher = None
