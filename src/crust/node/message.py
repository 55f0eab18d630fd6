"""Messages as the application sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from crust.types import Priority

if TYPE_CHECKING:
    from crust.node.connection import Connection
    from crust.wire.receipt import Receipt

__all__ = ["Message"]


class Message(msgspec.Struct, frozen=True, gc=False, eq=False):
    """A message that a peer sent.

    Attributes:
        data: its bytes.
        priority: the priority that the sender gave it.
    """

    data: bytes
    priority: Priority
    _connection: Connection
    _mark: Any = None

    async def receipt(self) -> Receipt:
        """Proof that the peer signed this message, which convinces third parties; comes within a second at most.

        Returns:
            The receipt, for `receipt.verify(message.data)`.

        Raises:
            ReceiptUnavailable: signing is off, or the connection was lost before the signature came.
            CancelledError: nothing is lost.
        """
        return await self._connection.receipt(self._mark)

    def __repr__(self) -> str:
        return f"<Message {len(self.data)} bytes {self.priority.name}>"
