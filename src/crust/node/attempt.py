"""What the attempts of a race have in common, whatever their transport."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from crust.node.connection import Connection
from crust.node.core import Core, Proven
from crust.types import Attempt, Candidate, PathKind

__all__ = ["SILENCE", "DialledPath", "Punch", "close_result", "path_kind"]

SILENCE: Final = "accepted the connection but stays silent: wrong key, not Crust, or the peer has not decided yet"


@dataclass(frozen=True, slots=True)
class Punch:
    """How a dial through NATs goes about it, while the peer dials us.

    Attributes:
        hold: of the side that is called: seconds that its answer travels, so that both begin together.
        rtt: an estimate of the round trip time to the peer.
        patience: seconds after which it ends.
        coordinated: a rendezvous has told both sides to begin; else people do, a minute apart perhaps.
    """

    hold: float = 0.0
    rtt: float = 0.05
    patience: float = 30.0
    coordinated: bool = True


class DialledPath(ABC):
    """What a race brings back; whoever takes it says so.

    Attributes:
        result: who answered.
        candidate: over which it came up.
        rtt: round trip of the handshake.
        taken: it has become a path.
        others: attempts of other transports, which may still give a standby.
    """

    def __init__(self, result: Proven, candidate: Candidate, rtt: float) -> None:
        self.result = result
        self.candidate = candidate
        self.rtt = rtt
        self.taken = False
        self.others: dict[asyncio.Future[DialledPath], Attempt] = {}

    def attach(self, core: Core, connection: Connection, at_ms: float) -> None:
        """Make it a path of a connection."""
        self.taken = True
        self._attach(core, connection, at_ms)

    def abort(self) -> None:
        """Close it, and what follows it."""
        for task in self.others:
            task.add_done_callback(close_result)
            task.cancel()
        self._abort()

    @abstractmethod
    def _attach(self, core: Core, connection: Connection, at_ms: float) -> None: ...

    @abstractmethod
    def _abort(self) -> None: ...


def path_kind(candidate: Candidate) -> PathKind:
    """How a path over a candidate came up."""
    if candidate.kind == "mapped":
        return "mapped"
    return "direct" if candidate.kind == "host" else "punched"


def close_result(task: asyncio.Future[DialledPath]) -> None:
    """An attempt that was given up has ended: if it has just succeeded, close what it brought."""
    if not task.cancelled() and task.exception() is None:
        task.result().abort()
