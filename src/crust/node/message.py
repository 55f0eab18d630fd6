"""Messages as the application sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from crust.types import Priority

if TYPE_CHECKING:
    from crust.node.connection import Connection

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

    def __repr__(self) -> str:
        return f"<Message {len(self.data)} bytes {self.priority.name}>"
