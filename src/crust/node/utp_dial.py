"""A dial over UDP under way, and who is told of what happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from crust.node.utp_link import UtpLink
from crust.proto.tunnel.endpoint import Dial
from crust.types import PathKind

__all__ = ["PunchWatcher", "UtpDial"]

T = TypeVar("T")


class PunchWatcher(Protocol):
    """Told what comes in while holes are punched for a peer."""

    def heard(self, number: int, source: tuple[str, int]) -> None:
        """An authentic request of the peer came to a socket."""

    def unreachable(self, number: int, target: tuple[str, int]) -> None:
        """ICMP says that nobody is there."""

    def kind_of(self, source: tuple[str, int]) -> PathKind:
        """How a path to where the peer comes from came up."""


class UtpDial(Generic[T]):
    """A dial under way.

    Args:
        dial: the engine's.
        future: see below.
        made: makes of the link what is waited for.

    Attributes:
        future: what is waited for. Cancel the dial with `UdpFront.cancel`.
    """

    __slots__ = ("dial", "future", "made")

    def __init__(self, dial: Dial, future: asyncio.Future[T], made: Callable[[UtpLink], T]) -> None:
        self.dial = dial
        self.future = future
        self.made = made
