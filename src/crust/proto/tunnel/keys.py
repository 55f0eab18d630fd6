"""The keys of one handshake, one object for each direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from crust.crypto.aead import Aead, Suite, aead
from crust.errors import LocalProtocolError
from crust.proto.tunnel.constants import MAX_DATAGRAMS
from crust.proto.tunnel.header import HeaderMask
from crust.proto.tunnel.replay import ReplayWindow

if TYPE_CHECKING:
    from crust.proto.tunnel.association import Association

__all__ = ["KeyExhaustedError", "ReceiveKey", "SendKey"]


class KeyExhaustedError(LocalProtocolError):
    """2^27 datagrams went out under one key, and the peer did not take part in renewing it."""


class SendKey:
    """What we seal with. The nonce is index ‖ counter, so that it is a slice of the header.

    Args:
        suite: the cipher.
        key: 32 bytes.
        index: the receiver's, in front of every datagram.
        mask: of the receiver's headers.

    Attributes:
        counter: of the next datagram.
        index_bytes: the index as it stands in the header.
    """

    __slots__ = ("_aead", "_key", "_suite", "counter", "index_bytes", "mask")

    def __init__(self, suite: Suite, key: bytes, index: int, mask: HeaderMask) -> None:
        self._suite = suite
        self._key = key
        self._aead: Aead | None = None
        self.index_bytes: Final = index.to_bytes(4, "big")
        self.mask: Final = mask
        self.counter = 0

    @property
    def aead(self) -> Aead:
        """The AEAD object of the key."""
        if self._aead is None:
            self._aead = aead(self._suite, self._key)
        return self._aead

    def take(self, count: int) -> int:
        """The first of `count` consecutive counters.

        Raises:
            KeyExhaustedError: there are not so many left.
        """
        first = self.counter
        if first + count > MAX_DATAGRAMS:
            raise KeyExhaustedError(f"{MAX_DATAGRAMS} datagrams under one key")
        self.counter = first + count
        return first

    def release(self) -> None:
        """Give up what can be made again: about 3 KiB, for 2 µs at the next datagram."""
        self._aead = None
        self.mask.release()


class ReceiveKey:
    """What we open with.

    Args:
        suite: the cipher.
        key: 32 bytes.
        index: ours.
        association: whose key it is.

    Attributes:
        window: counters seen.
        expires: when it is forgotten, because it has been replaced; None while it is not.
    """

    __slots__ = ("_aead", "_key", "_suite", "association", "expires", "index", "window")

    def __init__(self, suite: Suite, key: bytes, index: int, association: Association) -> None:
        self._suite = suite
        self._key = key
        self._aead: Aead | None = None
        self.index: Final = index
        self.association: Final = association
        self.window: Final = ReplayWindow()
        self.expires: float | None = None

    @property
    def aead(self) -> Aead:
        """The AEAD object of the key."""
        if self._aead is None:
            self._aead = aead(self._suite, self._key)
        return self._aead

    def release(self) -> None:
        """Give up what can be made again."""
        self._aead = None
