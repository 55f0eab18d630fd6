"""The dialling side: a race over all candidates, written down in a report."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from crust.crypto.keys import PeerId
from crust.errors import (
    ConnectError,
    NetworkMismatchError,
    NoPathError,
    NotAuthenticError,
    RefusedError,
    SigningMismatchError,
)
from crust.net.clock import monotonic
from crust.net.tcp import TcpStream
from crust.node.attempt import SILENCE, Adopted, DialledPath, Punch, close_result
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.dial_tcp import TcpAttempts
from crust.node.dial_utp import UtpAttempts
from crust.node.udp import UdpFront
from crust.proto.nat.terms import Terms
from crust.proto.noise.handshake import FailureReason, HandshakeFailed
from crust.types import Attempt, Candidate, Report, format_address

__all__ = ["CandidateFeed", "Dialler", "explain_timeout"]

_RESOLVE_LIMIT: Final = 8

# After the race the other transport may come up for so long, to stand by.
_STANDBY_GRACE: Final = 3.0
# Three requests go out in this time.
_SILENT_UTP: Final = 2.0

_OUTCOMES: Final = {
    FailureReason.NETWORK_MISMATCH: ("network mismatch", NetworkMismatchError),
    FailureReason.REFUSED: ("rejected", RefusedError),
    FailureReason.SIGNING_MISMATCH: ("signing mismatch", SigningMismatchError),
    FailureReason.UNSUPPORTED_VERSION: ("rejected", RefusedError),
    FailureReason.BUSY: ("rejected", RefusedError),
    FailureReason.WRONG_KEY_OR_NOT_CRUST: ("wrong key", NotAuthenticError),
    FailureReason.SILENT: ("wrong key", NotAuthenticError),
    FailureReason.HTTP: ("not crust", NotAuthenticError),
    FailureReason.SSH: ("not crust", NotAuthenticError),
    FailureReason.TLS: ("not crust", NotAuthenticError),
    FailureReason.MAIL_OR_FTP: ("not crust", NotAuthenticError),
}

# The most precise answer wins when every candidate failed.
_PRECISION: Final = (NetworkMismatchError, RefusedError, NotAuthenticError, NoPathError)

_Found = list[Candidate | Adopted] | None
"""What a feed has given; None: no more will come."""


class CandidateFeed:
    """Candidates of one dial, as they become known.

    Attributes:
        closed: no more candidates will come.
        in_hand: some were taken, and are being looked up.
        punch: set where both sides dial at the same time.
        failure: why there are none, if that is more precise than what the attempts say.
        terms: what both sides have told of their NATs, where a rendezvous passed it on.
    """

    def __init__(self, candidates: Sequence[Candidate] = ()) -> None:
        self._waiting: list[Candidate | Adopted] = list(candidates)
        self.closed = False
        self._told = False
        self.in_hand = False
        self._news = asyncio.Event()
        self.punch: Punch | None = None
        self.failure: ConnectError | None = None
        self.terms: Terms | None = None

    def add(self, candidates: Sequence[Candidate | Adopted]) -> None:
        """More candidates."""
        self._waiting += candidates
        self._news.set()

    def close(self) -> None:
        """No more candidates will come; a connection to adopt still may, while attempts are under way."""
        self.closed = True
        self._news.set()

    @property
    def exhausted(self) -> bool:
        """Whether no candidates will come, and those that have come were looked up."""
        return self.closed and not self._waiting and not self.in_hand

    async def take(self) -> list[Candidate | Adopted] | None:
        """All that are new, waiting for the first; None, once, when no more candidates will come."""
        while not self._waiting:
            if self.closed and not self._told:
                self._told = True
                return None
            self._news.clear()
            await self._news.wait()
        found, self._waiting = self._waiting, []
        self.in_hand = True
        return found


class Dialler:
    """Dials peers.

    Args:
        core: the node's centre.
        front: the UDP sockets; None without µTP.
    """

    def __init__(self, core: Core, front: UdpFront | None = None) -> None:
        self._core = core
        self._tcp = TcpAttempts(core)
        self._utp = None if front is None else UtpAttempts(front)
        self._followers: set[asyncio.Task[None]] = set()
        self._expected: dict[tuple[str, int], CandidateFeed] = {}

    async def race(self, peer: PeerId, feed: CandidateFeed, report: Report, started: float) -> DialledPath:
        """Try all candidates, a little apart; the first that proves the peer's key wins, the others are closed.

        Args:
            peer: whom to reach.
            feed: gives candidates, in the order of preference; more may come while the race is on.
            report: gets an entry for each attempt.
            started: when the dial began, on the monotonic clock.

        Raises:
            ConnectError: every candidate failed; the most precise reason. Cancellation closes every socket.
        """
        loop = self._core.loop
        tasks: dict[asyncio.Task[DialledPath], Attempt] = {}
        failures: list[ConnectError] = []
        queue: deque[Candidate | Adopted] = deque()
        tried: set[tuple[str, str, int] | Adopted] = set()
        more: asyncio.Task[_Found] = loop.create_task(self._next(feed, report, started))
        try:
            while queue or tasks or not feed.exhausted:
                if queue:
                    attempt, task = self._begin(peer, queue.popleft(), report, started, feed.punch)
                    tasks[task] = attempt
                waiting: set[asyncio.Task[Any]] = {*tasks, more}
                pause = self._core.config.dial_stagger if queue else self._patience(tasks, feed, failures, started)
                if pause is not None and pause <= 0 and not queue:
                    break
                done, _ = await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if more in done:
                    done.discard(more)
                    for item in more.result() or ():
                        key = item if isinstance(item, Adopted) else (item.transport, item.host, item.port)
                        if key not in tried:
                            tried.add(key)
                            queue.append(item)
                            self._expect(feed, item)
                    feed.in_hand = False
                    more = loop.create_task(self._next(feed, report, started))
                winner = self._judge(done, tasks, failures, started)
                if winner is not None:
                    self._keep_others(winner, tasks, queue, peer, report, started, feed.punch)
                    return winner
        finally:
            self._expected = {key: value for key, value in self._expected.items() if value is not feed}
            more.cancel()
            for task, attempt in tasks.items():
                self._cancel(task, attempt, started)
        raise feed.failure or _most_precise(failures)

    def _patience(
        self,
        tasks: dict[asyncio.Task[DialledPath], Attempt],
        feed: CandidateFeed,
        failures: list[ConnectError],
        started: float,
    ) -> float | None:
        """How long to wait for what is left; None for as long as it takes.

        A UDP port where nobody is says nothing. If TCP has said what is there, and only µTP is left, it is given the
        time of a few requests.
        """
        if not failures or not feed.exhausted or any(attempt.transport == "tcp" for attempt in tasks.values()):
            return None
        last = max((attempt.started_ms for attempt in tasks.values()), default=0.0) / 1000
        return last + _SILENT_UTP - (monotonic() - started)

    def _keep_others(
        self,
        winner: DialledPath,
        tasks: dict[asyncio.Task[DialledPath], Attempt],
        queue: deque[Candidate | Adopted],
        peer: PeerId,
        report: Report,
        started: float,
        punch: Punch | None,
    ) -> None:
        """Leave attempts of the other transport under way, which give the standby; begin one, if there is none."""
        won = winner.candidate
        for attempt in tasks.values():
            attempt.detail = "another candidate was faster"
        winner.others = {task: attempt for task, attempt in tasks.items() if attempt.transport != won.transport}
        if not winner.others:
            for item in queue:
                if isinstance(item, Candidate) and item.transport != won.transport and item.host == won.host:
                    attempt, task = self._begin(peer, item, report, started, punch)
                    winner.others[task] = attempt
                    break
        for task in winner.others:
            tasks.pop(task, None)

    def follow(self, won: DialledPath, connection: Connection, started: float) -> None:
        """Give a connection that was won the standby that comes up shortly after, if one does."""
        if won.others:
            task = self._core.loop.create_task(self._follow(won, connection, started))
            self._followers.add(task)
            task.add_done_callback(self._followers.discard)

    async def _follow(self, won: DialledPath, connection: Connection, started: float) -> None:
        others, won.others = won.others, {}
        try:
            async with asyncio.timeout(_STANDBY_GRACE):
                while others:
                    done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
                    found = self._judge(done, others, [], started, "standby")
                    if found is None:
                        continue
                    if connection.closed or connection.has_transport(found.candidate.transport):
                        found.abort()
                    else:
                        found.attach(self._core, connection, (monotonic() - started) * 1000)
                    return
        except TimeoutError:
            pass
        finally:
            for task, attempt in others.items():
                self._cancel(task, attempt, started)

    def close(self) -> None:
        """Give up what is under way."""
        for task in self._followers:
            task.cancel()

    def _begin(
        self, peer: PeerId, item: Candidate | Adopted, report: Report, started: float, punch: Punch | None
    ) -> tuple[Attempt, asyncio.Task[DialledPath]]:
        """Start one attempt and write it into the report."""
        candidate = item.candidate if isinstance(item, Adopted) else item
        where = format_address(candidate.host, candidate.port)
        attempt = Attempt(where, candidate.transport, candidate.kind, (monotonic() - started) * 1000)
        report.attempts.append(attempt)
        if isinstance(item, Adopted):
            return attempt, self._core.loop.create_task(self._tcp.adopt(peer, item))
        if candidate.transport == "utp":
            assert self._utp is not None
            return attempt, self._core.loop.create_task(self._utp.dial(peer, candidate))
        return attempt, self._core.loop.create_task(self._tcp.dial(peer, candidate, attempt, punch))

    async def _next(self, feed: CandidateFeed, report: Report, started: float) -> _Found:
        """The next candidates that can be dialled, and connections to adopt; None when no more will come."""
        found = await feed.take()
        if found is None:
            return None
        adopted = [item for item in found if isinstance(item, Adopted)]
        candidates = [item for item in found if isinstance(item, Candidate)]
        return [*adopted, *await self._resolve(candidates, report, started)]

    def _expect(self, feed: CandidateFeed, item: Candidate | Adopted) -> None:
        """While we call a peer, a connection from one of its addresses is the other half of our own dial."""
        if feed.punch is not None and feed.punch.caller and isinstance(item, Candidate):
            self._expected[item.host, item.port] = feed

    def expected(self, stream: TcpStream) -> bool:
        """Whether a connection that was accepted belongs to a race, which then takes it."""
        host, port = stream.address("peername")
        feed = self._expected.get((host, port))
        if feed is None:
            return False
        feed.add([Adopted(stream, Candidate("tcp", host, port, "peer-reflexive"))])
        return True

    def _judge(
        self,
        done: set[asyncio.Task[DialledPath]],
        tasks: dict[asyncio.Task[DialledPath], Attempt],
        failures: list[ConnectError],
        started: float,
        outcome: str = "won",
    ) -> DialledPath | None:
        """Write down what ended; returns the first success, closing others of the same moment."""
        winner: DialledPath | None = None
        for task in done:
            if winner is not None and tasks[task].transport != winner.candidate.transport and not task.exception():
                continue  # left among those that may stand by
            attempt = tasks.pop(task)
            attempt.ended_ms = (monotonic() - started) * 1000
            error = task.exception()
            if error is None and winner is None:
                winner = task.result()
                attempt.outcome, attempt.detail = outcome, ""
            elif error is None:
                attempt.outcome, attempt.detail = "surplus", "another candidate was faster"
                task.result().abort()
            else:
                failures.append(self._explain(error, attempt))
        return winner

    def _cancel(self, task: asyncio.Task[DialledPath], attempt: Attempt, started: float) -> None:
        """Give an attempt up; if it has just succeeded, close what it brought."""
        task.add_done_callback(close_result)
        task.cancel()
        attempt.ended_ms = (monotonic() - started) * 1000
        attempt.outcome = "cancelled"
        attempt.detail = attempt.detail or "no answer in time"

    async def _resolve(self, candidates: Sequence[Candidate], report: Report, started: float) -> list[Candidate]:
        """Look up the names among the candidates and drop what cannot be dialled."""
        core = self._core
        found: list[Candidate] = []
        for candidate in candidates:
            if candidate.transport not in core.config.transports:
                continue
            if _is_numeric(candidate.host):
                found.append(candidate)
                continue
            try:
                answers = await core.loop.getaddrinfo(candidate.host, candidate.port, type=1)
            except OSError as error:
                now = (monotonic() - started) * 1000
                where = format_address(candidate.host, candidate.port)
                detail = f"the name cannot be resolved: {error.strerror or error}"
                report.attempts.append(
                    Attempt(where, candidate.transport, candidate.kind, now, now, "unreachable", detail)
                )
                continue
            found += [
                Candidate(candidate.transport, str(answer[4][0]), candidate.port, candidate.kind)
                for answer in answers[:_RESOLVE_LIMIT]
            ]
        return list(dict.fromkeys(found))

    def _explain(self, error: BaseException, attempt: Attempt) -> ConnectError:
        """Turn what an attempt ended with into the report's words and an error."""
        if isinstance(error, HandshakeFailed):
            attempt.outcome, kind = _OUTCOMES[error.reason]
            attempt.detail = str(error)
            return _chain(kind(f"{attempt.candidate}: {error}"), error)
        if isinstance(error, ConnectionRefusedError):
            attempt.outcome, attempt.detail = "refused", "nothing listens there"
        elif isinstance(error, ConnectionResetError):
            attempt.outcome, attempt.detail = "wrong key", "the connection was reset: wrong key, or not Crust"
            return _chain(NotAuthenticError(f"{attempt.candidate}: {attempt.detail}"), error)
        elif isinstance(error, TimeoutError) or getattr(error, "errno", None) == errno.ETIMEDOUT:
            attempt.outcome, attempt.detail = "timed out", "no answer"
        elif isinstance(error, OSError):
            attempt.outcome, attempt.detail = "unreachable", error.strerror or str(error)
        else:
            attempt.outcome, attempt.detail = "failed", repr(error)
        return _chain(NoPathError(f"{attempt.candidate}: {attempt.detail}"), error)


def explain_timeout(report: Report) -> ConnectError:
    """The error of a dial whose time was up, from what its attempts had seen."""
    silent = [a for a in report.attempts if a.outcome == "cancelled" and a.detail == SILENCE]
    if silent:
        return NotAuthenticError(f"{silent[0].candidate}: {SILENCE}")
    return NoPathError("no candidate answered in time")


def _chain(error: ConnectError, cause: BaseException) -> ConnectError:
    error.__cause__ = cause
    return error


def _most_precise(failures: list[ConnectError]) -> ConnectError:
    for kind in _PRECISION:
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    return NoPathError("no address of this peer is known that this node could dial")


def _is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
