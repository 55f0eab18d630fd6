"""First messages that come again: copies are known without opening them, and get a bounded number of answers."""

from __future__ import annotations

from collections import OrderedDict

from crust.crypto.aead import TAG_BYTES
from crust.proto.tunnel.constants import ANSWER_BURST, ANSWER_RATE, REQUESTS_REMEMBERED
from crust.proto.tunnel.cookie import TokenBucket
from crust.proto.tunnel.handshake import OpenedRequest

__all__ = ["NO_COPY", "RequestMemory"]

NO_COPY = b""
"""The salt is that of an earlier request, and the rest is not."""


class RequestMemory:
    """Requests that have opened of late.

    Args:
        now: the present time.
    """

    __slots__ = ("_answers", "_by_salt")

    def __init__(self, now: float) -> None:
        self._by_salt: OrderedDict[bytes, tuple[bytes, int, bytes]] = OrderedDict()
        self._answers = TokenBucket(ANSWER_RATE, ANSWER_BURST, now)

    def __len__(self) -> int:
        return len(self._by_salt)

    def add(self, opened: OpenedRequest) -> None:
        """Remember one; the oldest makes room."""
        self._by_salt[opened.salt] = (opened.ephemeral, opened.size, opened.tag)
        if len(self._by_salt) > REQUESTS_REMEMBERED:
            self._by_salt.popitem(last=False)

    def find(self, salt: bytes, datagram: memoryview) -> bytes | None:
        """The ephemeral key of the request of which this is a copy, or `NO_COPY`; None when its salt is new."""
        known = self._by_salt.get(salt)
        if known is None:
            return None
        ephemeral, size, tag = known
        # Else a shortened copy would be a question that is smaller than its answer.
        return ephemeral if len(datagram) == size and datagram[-TAG_BYTES:] == tag else NO_COPY

    def may_answer(self, now: float) -> bool:
        """Whether another answer may go out that costs its receiver nothing to ask for; then it is counted."""
        return self._answers.take(now)
