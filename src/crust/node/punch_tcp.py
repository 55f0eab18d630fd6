"""TCP hole punching of one dial: `TcpPuncher` over sockets."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crust.crypto.keys import PeerId
from crust.net.clock import monotonic
from crust.node.acceptor import Acceptor
from crust.node.attempt import SILENCE, DialledPath, Punch
from crust.node.core import Core
from crust.node.dial_tcp import TcpAttempts, is_taken
from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import RemoteCandidate
from crust.proto.nat.punch import Connect, PunchOptions
from crust.proto.nat.strategy import Plan
from crust.proto.nat.tcp_punch import TcpPuncher
from crust.proto.noise.handshake import FailureReason, HandshakeFailed
from crust.types import Attempt, Candidate

__all__ = ["TcpPunch"]

Address = tuple[str, int]

_TAKEN_MOST: Final = 12
"""So often the pair of addresses may be in use (the peer's connection to us may just be coming up over it) before
another port of ours is taken."""

_HOLD_MOST: Final = 0.3


@dataclass(slots=True, eq=False)
class _Wanted:
    """Candidates of one entry of the report, and who waits for a path over one of them."""

    found: asyncio.Future[DialledPath]
    attempt: Attempt
    kind: dict[Address, Candidate]
    error: Exception | None = None


class TcpPunch:
    """Connects of one dial, while the peer connects to us.

    Args:
        core: the node's centre.
        attempts: makes them.
        acceptor: from whose port, and who takes connections over which the peer has begun.
        peer: whom to reach.
        plan: for the two NATs.
        punch: how.
        budget: of the node.
    """

    def __init__(
        self,
        core: Core,
        attempts: TcpAttempts,
        acceptor: Acceptor,
        peer: PeerId,
        plan: Plan,
        punch: Punch,
        budget: DestinationBudget,
    ) -> None:
        self._core = core
        self._attempts = attempts
        self._acceptor = acceptor
        self._peer = peer
        options = PunchOptions(
            hold=min(punch.hold, _HOLD_MOST), coordinated=punch.coordinated, rtt=punch.rtt, patience=punch.patience
        )
        self._engine = TcpPuncher(plan, core.random, budget, monotonic(), options)
        self._wanted: dict[Address, _Wanted] = {}
        self._waiting = 0
        self._flights: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._taken: Counter[Address] = Counter()
        self.closed = False

    async def reach(self, remotes: Sequence[RemoteCandidate], attempt: Attempt) -> DialledPath:
        """Try until a path has come up over one of some candidates.

        Args:
            remotes: which; those of one call are one entry in the report.
            attempt: that entry.

        Raises:
            OSError: none came up.
            HandshakeFailed: what answers is not the peer. Cancellation gives these candidates up.
        """
        wanted = _Wanted(self._core.loop.create_future(), attempt, {r.address: r.candidate for r in remotes})
        self._waiting += 1
        try:
            for remote in remotes:
                self._wanted.setdefault(remote.address, wanted)
            self._engine.add(remotes, monotonic())
            self._pump()
            return await wanted.found
        finally:
            self._waiting -= 1
            for address in wanted.kind:
                if self._wanted.get(address) is wanted:
                    del self._wanted[address]
            if not self._waiting:
                self.close()

    def close(self) -> None:
        """Give everything up."""
        self.closed = True
        self._engine.stop(monotonic())
        if self._timer is not None:
            self._timer.cancel()
        for flight in self._flights:
            flight.cancel()

    def _pump(self) -> None:
        """Start what is due, tell who waits in vain, arm one timer."""
        engine, now = self._engine, monotonic()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connect in engine.connects_to_start(now):
            flight = self._core.loop.create_task(self._fly(connect))
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)
        while engine.next_event() is not None:
            pass  # further sockets are bound as they are used; the rest is known from how attempts end
        for wanted in dict.fromkeys(self._wanted.values()):
            if not wanted.found.done() and all(engine.is_over(address) for address in wanted.kind):
                wanted.found.set_exception(wanted.error or TimeoutError("no answer"))
        due = engine.next_timeout()
        if due is not None and not self.closed:
            self._timer = self._core.loop.call_later(max(due - monotonic(), 0), self._pump)

    async def _fly(self, connect: Connect) -> None:
        """One attempt, and what the engine is to know of it."""
        engine, number, target = self._engine, connect.socket, connect.target
        wanted = self._wanted.get(target)
        if wanted is None:
            engine.given_up(number, target, monotonic(), "nobody waits for it")
            return
        path: DialledPath | None = None
        try:
            path = await self._connect(connect, wanted)
        except (OSError, HandshakeFailed) as error:
            wanted.attempt.detail = ""  # the next attempt may see something else
            self._ended(connect, wanted, error)
        if path is not None and (wanted.found.done() or self.closed):
            path.abort()
        elif path is not None:
            engine.established(number, target, monotonic())
            wanted.found.set_result(path)
        if not self.closed:
            self._pump()

    async def _connect(self, connect: Connect, wanted: _Wanted) -> DialledPath:
        acceptor = self._acceptor
        local = acceptor.local_for(connect.target[0])
        if local is not None and connect.socket:
            local = local[0], 0
        elif self._taken[connect.target] > _TAKEN_MOST:
            local = None

        def connected() -> None:
            wanted.attempt.detail = SILENCE

        try:
            return await self._attempts.punch(
                self._peer, wanted.kind[connect.target], local, connect.timeout, connected, acceptor.take_over
            )
        except OSError as error:
            self._taken[connect.target] += is_taken(error)
            raise

    def _ended(self, connect: Connect, wanted: _Wanted, error: OSError | HandshakeFailed) -> None:
        """An attempt has come to nothing."""
        engine, number, target, now = self._engine, connect.socket, connect.target, monotonic()
        if isinstance(error, TimeoutError):
            wanted.error = wanted.error or error
            engine.timed_out(number, target, now)
            return
        wanted.error = error
        if isinstance(error, HandshakeFailed):
            # Closed before a word was said: reset on its way through the NATs, or one that the peer gave up.
            refused = error.reason is FailureReason.SILENT
        else:
            refused = error.errno in (errno.ECONNREFUSED, errno.ECONNRESET) or is_taken(error)
        if refused:
            engine.refused(number, target, now)
        elif isinstance(error, HandshakeFailed):
            engine.given_up(number, target, now, str(error))
        else:
            engine.unreachable(number, target, now, error.strerror or str(error))
