"""The dialling side: a race over all candidates, written down in a report."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from crust.node.acceptor import Acceptor
from crust.node.attempt import SILENCE, DialledPath, Punch, close_result
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.dial_tcp import TcpAttempts
from crust.node.dial_utp import UtpAttempts
from crust.node.punch_tcp import TcpPunch
from crust.node.punch_utp import UtpPunch
from crust.node.udp import UdpFront
from crust.proto.nat.behaviour import Filtering
from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import LocalView, RemoteCandidate, Trust, screen
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.strategy import Plan
from crust.proto.nat.terms import Terms
from crust.proto.noise.handshake import FailureReason, HandshakeFailed
from crust.types import Attempt, Candidate, Report, Transport, format_address

__all__ = ["CandidateFeed", "Dialler", "explain_timeout"]

_RESOLVE_LIMIT: Final = 8

# After the race the other transport may come up for so long, to stand by.
_STANDBY_GRACE: Final = 3.0
# Three requests go out in this time.
_SILENT_UTP: Final = 2.0
_REQUESTS: Final = 3
# So many attempts begin at the same moment: twenty dead addresses over both transports are through within 50 ms.
_AT_ONCE: Final = 4
# Where no rendezvous knows the peer, this is known within 5 s, whatever other addresses do.
_UNKNOWN_PEER: Final = 4.0
# Where two NATs let nothing through, this is said within 2 s.
_HOPELESS: Final = 1.5

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


@dataclass(frozen=True, slots=True, eq=False)
class _Hole:
    """Addresses behind the peer's NAT, of one transport, which we try to reach while the peer tries to reach us."""

    remotes: list[RemoteCandidate]

    @property
    def candidate(self) -> Candidate:
        """The first."""
        return self.remotes[0].candidate


_Item = Candidate | _Hole


class CandidateFeed:
    """Candidates of one dial, as they become known.

    Args:
        claimed: where the peer says that it is.
        known: where it has answered before, or is according to the user; these come first.

    Attributes:
        claimed: of the above, those that nobody but the peer vouches for.
        closed: no more candidates will come.
        in_hand: some were taken, and are being looked up.
        own_port: dial from the listening port, so that who answers sees its outside address.
        punch: how to dial through NATs, once the peer is known to dial us, too (`terms`).
        failure: why there are none, if that is more precise than what the attempts say.
        terms: what both sides have told of their NATs, where a rendezvous passed it on.
    """

    def __init__(self, claimed: Sequence[Candidate] = (), known: Sequence[Candidate] = ()) -> None:
        self._waiting: list[Candidate] = list(dict.fromkeys((*known, *claimed)))
        self.claimed = frozenset(claimed).difference(known)
        self.closed = False
        self.in_hand = False
        self._news: asyncio.Future[None] | None = None
        self.own_port = False
        self.punch = Punch()
        self.failure: ConnectError | None = None
        self.terms: Terms | None = None

    def add(self, candidates: Sequence[Candidate]) -> None:
        """More candidates."""
        self._waiting += candidates
        self._tell()

    def close(self) -> None:
        """No more candidates will come."""
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    @property
    def has_more(self) -> bool:
        """Whether candidates wait to be taken."""
        return bool(self._waiting)

    @property
    def needs_lookup(self) -> bool:
        """Whether there are names among those that wait."""
        return not all(_is_numeric(candidate.host) for candidate in self._waiting)

    @property
    def exhausted(self) -> bool:
        """Whether no candidates will come, and those that have come were looked up."""
        return self.closed and not self._waiting and not self.in_hand

    def take(self) -> list[Candidate]:
        """All that are new."""
        found, self._waiting = self._waiting, []
        self.in_hand = True
        return found

    def news(self) -> asyncio.Future[None]:
        """Done when more candidates have come, or when none will."""
        if self._news is None or self._news.done():
            self._news = asyncio.get_running_loop().create_future()
        return self._news


class Dialler:
    """Dials peers.

    Args:
        core: the node's centre.
        acceptor: of the node, whose ports are dialled from.
        view: tells where we stand, which makes an address of a peer sensible or not.
        front: the UDP sockets; None without µTP.

    Attributes:
        tcp: attempts over TCP.
        utp: attempts over µTP.
        budget: what may be sent to whom.
    """

    def __init__(
        self, core: Core, acceptor: Acceptor, view: Callable[[], LocalView], front: UdpFront | None = None
    ) -> None:
        self.core = core
        self.acceptor = acceptor
        self.view = view
        self.budget = DestinationBudget()
        self.tcp = TcpAttempts(core)
        self.utp = None if front is None else UtpAttempts(front)
        self._followers: dict[Connection, asyncio.Task[None]] = {}

    async def race(
        self,
        peer: PeerId,
        feed: CandidateFeed,
        report: Report,
        started: float,
        arrival: asyncio.Future[Connection] | None = None,
    ) -> DialledPath | Connection:
        """Try all candidates, a little apart; the first that proves the peer's key wins, the others are closed.

        Args:
            peer: whom to reach.
            feed: gives candidates, in the order of preference; more may come while the race is on.
            report: gets an entry for each attempt.
            started: when the dial began, on the monotonic clock.
            arrival: the connection that comes in from the peer meanwhile, which wins, too.

        Raises:
            ConnectError: every candidate failed; the most precise reason. Cancellation closes every socket.
        """
        return await _Race(self, peer, feed, report, started).run(arrival)

    def follow(self, won: DialledPath, connection: Connection, started: float) -> None:
        """Give a connection that was won the standby that comes up shortly after, if one does."""
        if won.others:
            task = self._followers[connection] = self.core.loop.create_task(self._follow(won, connection, started))
            task.add_done_callback(lambda task: self._forget_follower(connection, task))

    def _forget_follower(self, connection: Connection, task: asyncio.Task[None]) -> None:
        if self._followers.get(connection) is task:
            del self._followers[connection]

    async def followed(self, connection: Connection) -> None:
        """Wait until nothing is left of the dial that a connection comes from: it may hold the port that is needed."""
        task = self._followers.get(connection)
        if task is not None:
            await asyncio.wait((task,))

    async def _follow(self, won: DialledPath, connection: Connection, started: float) -> None:
        others, won.others = won.others, {}
        try:
            async with asyncio.timeout(_STANDBY_GRACE):
                while others:
                    await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
                    found = _judge(others, [], started, "standby")
                    if found is None:
                        continue
                    if connection.closed or connection.has_transport(found.candidate.transport):
                        found.abort()
                    else:
                        found.attach(self.core, connection, (monotonic() - started) * 1000)
                    return
        except TimeoutError:
            pass
        finally:
            for task, attempt in others.items():
                _cancel(task, attempt, started)

    def close(self) -> None:
        """Give up what is under way."""
        for task in self._followers.values():
            task.cancel()


class _Race:
    """One race over all candidates of a peer."""

    def __init__(self, dialler: Dialler, peer: PeerId, feed: CandidateFeed, report: Report, started: float) -> None:
        self._dialler = dialler
        self._core = dialler.core
        self._peer = peer
        self._feed = feed
        self._report = report
        self._started = started
        self._tasks: dict[asyncio.Future[DialledPath], Attempt] = {}
        self._failures: list[ConnectError] = []
        self._queue: deque[Candidate] = deque()
        self._tried: set[tuple[str, str, int, bool]] = set()
        self._punch: TcpPunch | None = None
        self._utp_punch: UtpPunch | None = None
        self._theirs: list[Candidate] = []
        self._looking: asyncio.Task[list[_Item]] | None = None  # names up

    async def run(self, arrival: asyncio.Future[Connection] | None) -> DialledPath | Connection:
        """See `Dialler.race`."""
        feed, tasks = self._feed, self._tasks
        try:
            await self._look()
            while self._queue or tasks or not feed.exhausted:
                for _ in range(min(_AT_ONCE, len(self._queue))):
                    self._begin(self._queue.popleft())
                pause = self._core.config.dial_stagger if self._queue else self._patience()
                if pause is not None and pause <= 0 and not self._queue:
                    break
                if not tasks and feed.exhausted:
                    continue  # what was begun had to be skipped
                waiting: set[asyncio.Future[Any]] = {*tasks, self._looking or feed.news()}
                if arrival is not None:
                    waiting.add(arrival)
                await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if arrival is not None and arrival.done():
                    return arrival.result()
                await self._look()
                winner = _judge(tasks, self._failures, self._started)
                if winner is not None:
                    self._keep_others(winner)
                    return winner
        finally:
            if self._looking is not None:
                self._looking.cancel()
            for task, attempt in tasks.items():
                _cancel(task, attempt, self._started)
        raise self._failure()

    def _failure(self) -> ConnectError:
        """The most precise reason."""
        found = _most_precise(self._failures, self._report)
        called = self._feed.terms is not None and self._feed.punch.coordinated
        if called and isinstance(found, NotAuthenticError):
            # The peer is there, and dials us; who has one of its inside addresses here is somebody else.
            found = _chain(NoPathError(f"no path to the peer came up, though it was told of this dial; {found}"), found)
        hopeless = self._hopeless()
        if hopeless is not None and type(found) is NoPathError:
            self._report.advice += [each for each in hopeless.advice if each not in self._report.advice]
            return NoPathError(hopeless.reason)
        return self._feed.failure or found if type(found) is NoPathError else found

    def _patience(self) -> float | None:
        """How long to wait for what is left; None for as long as it takes.

        A UDP port where nobody is says nothing. If TCP has said what is there, and only µTP is left, it is given the
        time of a few requests. Where no rendezvous knows the peer, addresses that were known before get some seconds.
        Where both NATs are such that no packet can get through, other ways are given a moment to turn up.
        """
        elapsed = monotonic() - self._started
        if self._hopeless() is not None:
            return _HOPELESS - elapsed
        if not self._feed.exhausted:
            return None
        if self._feed.failure is not None:
            return _UNKNOWN_PEER - elapsed
        if not self._failures or any(attempt.transport == "tcp" for attempt in self._tasks.values()):
            return None
        if self._utp_punch is not None:
            return None  # which ends by itself
        last = max((attempt.started_ms for attempt in self._tasks.values()), default=0.0) / 1000
        return last + _SILENT_UTP - elapsed

    def _hopeless(self) -> Plan | None:
        """Why no path over any transport can come about, as far as is known."""
        terms = self._feed.terms
        if terms is None:
            return None
        plans = [terms.hopeless(transport, self._theirs) for transport in self._core.config.transports]
        return None if None in plans else plans[-1]

    def _keep_others(self, winner: DialledPath) -> None:
        """Leave attempts of the other transport under way, which give the standby; begin one, if there is none."""
        won, tasks = winner.candidate, self._tasks
        for attempt in tasks.values():
            attempt.detail = "another candidate was faster"
        if not any(attempt.transport != won.transport for attempt in tasks.values()):
            for item in self._queue:
                if item.transport != won.transport and item.host == won.host:
                    self._begin(item)
                    break
        winner.others = {task: attempt for task, attempt in tasks.items() if attempt.transport != won.transport}
        for task in winner.others:
            tasks.pop(task, None)

    # --- attempts ------------------------------------------------------------------------------------------------

    def _take(self, found: list[_Item]) -> None:
        """Candidates that were not tried in this way yet: holes at once, others in their turn."""
        for item in found:
            if isinstance(item, _Hole):
                fresh = [remote for remote in item.remotes if self._is_new(remote.candidate, hole=True)]
                if fresh:
                    self._begin_punching(fresh)
            elif self._is_new(item, hole=False):
                self._queue.append(item)
        self._feed.in_hand = False

    def _is_new(self, candidate: Candidate, *, hole: bool) -> bool:
        key = (candidate.transport, candidate.host, candidate.port, hole)
        known = key in self._tried
        self._tried.add(key)
        return not known

    def _note(self, candidate: Candidate, more: int = 0) -> Attempt:
        """Write an attempt into the report."""
        where = format_address(candidate.host, candidate.port) + (f" and {more} more" if more else "")
        attempt = Attempt(where, candidate.transport, candidate.kind, (monotonic() - self._started) * 1000)
        self._report.attempts.append(attempt)
        return attempt

    def _begin(self, candidate: Candidate) -> None:
        """Start one attempt."""
        dialler, attempt = self._dialler, self._note(candidate)
        if candidate in self._feed.claimed and not self._may_try(candidate):
            attempt.ended_ms, attempt.outcome = attempt.started_ms, "skipped"
            attempt.detail = "tried in vain before, and nobody but the peer says that it is there"
            return
        if candidate.transport == "utp":
            assert dialler.utp is not None
            self._tasks[dialler.utp.dial(self._peer, candidate)] = attempt
        else:
            local = dialler.acceptor.local_for(candidate.host) if self._feed.own_port else None
            dialling = dialler.tcp.dial(self._peer, candidate, attempt, local)
            self._tasks[self._core.loop.create_task(dialling)] = attempt

    def _may_try(self, candidate: Candidate) -> bool:
        """Whether the budget for addresses that only peers name allows another attempt (PROTOCOL 22)."""
        take, now = self._dialler.budget.take, monotonic()
        if candidate.transport == "tcp":
            return take(candidate.host, "connect", Trust.CLAIMED, now) > 0
        return take(candidate.host, "datagram", Trust.CLAIMED, now, _REQUESTS) > 0

    def _begin_punching(self, remotes: list[RemoteCandidate]) -> None:
        """Start to try addresses while the peer tries ours."""
        utp = remotes[0].candidate.transport == "utp"
        punch = self._punch_utp() if utp else self._punch_tcp()
        attempt = self._note(remotes[0].candidate, len(remotes) - 1)
        self._tasks[self._core.loop.create_task(punch.reach(remotes, attempt))] = attempt

    def _punch_utp(self) -> UtpPunch:
        dialler, feed = self._dialler, self._feed
        assert feed.terms is not None
        assert dialler.utp is not None
        if self._utp_punch is None or self._utp_punch.closed:
            front = dialler.utp.front
            self._utp_punch = UtpPunch(self._core, front, self._peer, feed.terms, feed.punch, dialler.budget)
        return self._utp_punch

    def _punch_tcp(self) -> TcpPunch:
        dialler, feed = self._dialler, self._feed
        assert feed.terms is not None
        if self._punch is None or self._punch.closed:
            theirs = feed.terms.standing("tcp").verdict
            punch = feed.punch
            if not theirs.translated or theirs.filtering is Filtering.ENDPOINT_INDEPENDENT:
                punch = replace(punch, hold=0.0)  # nothing there refuses a SYN that comes before its time
            self._punch = TcpPunch(
                self._core, dialler.tcp, dialler.acceptor, self._peer, feed.terms.plan("tcp"), punch, dialler.budget
            )
        return self._punch

    # --- candidates ----------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Take what has come; without waiting, as names are looked up while the race goes on."""
        if self._looking is not None and self._looking.done():
            self._take(self._looking.result())
            self._looking = None
        if self._looking is None and self._feed.has_more:
            if self._feed.needs_lookup:
                self._looking = self._core.loop.create_task(self._next())
            else:
                self._take(await self._next())

    async def _next(self) -> list[_Item]:
        """The candidates that have come, as far as they can be dialled."""
        found, terms = self._feed.take(), self._feed.terms
        numeric = await self._resolve(found)
        if terms is None:
            return list(numeric)
        self._theirs += numeric
        # From here on they are a stranger's words (PROTOCOL 22).
        now, limits = monotonic(), TraversalLimits()
        predicted = [c for transport in self._core.config.transports for c in terms.predicted(transport, now, limits)]
        screening = screen(
            [*numeric, *predicted],
            self._dialler.view(),
            attested_hosts=terms.attested,
            by_hand=not self._feed.punch.coordinated,
        )
        for candidate, reason in screening.refused:
            if self._is_new(candidate, hole=True):
                attempt = self._note(candidate)
                attempt.ended_ms, attempt.outcome, attempt.detail = attempt.started_ms, "skipped", reason
        items: list[_Item] = []
        guesses: dict[Transport, list[RemoteCandidate]] = {}
        for remote in screening.kept:
            if remote.candidate.kind == "predicted":
                guesses.setdefault(remote.candidate.transport, []).append(remote)
            else:
                items.append(_Hole([remote]))
        return [*items, *map(_Hole, guesses.values())]

    async def _resolve(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Look up the names among the candidates and drop what cannot be dialled."""
        core = self._core
        found: list[Candidate] = []
        for candidate in candidates:
            if candidate.transport not in core.config.transports:
                continue
            # Rendezvous nodes, which are dialled from our own port, are not the peers that the settings mean.
            if not self._feed.own_port and not core.config.allows(candidate.kind):
                continue
            if _is_numeric(candidate.host):
                found.append(candidate)
                continue
            try:
                answers = await core.loop.getaddrinfo(candidate.host, candidate.port, type=1)
            except OSError as error:
                now = (monotonic() - self._started) * 1000
                where = format_address(candidate.host, candidate.port)
                detail = f"the name cannot be resolved: {error.strerror or error}"
                self._report.attempts.append(
                    Attempt(where, candidate.transport, candidate.kind, now, now, "unreachable", detail)
                )
                continue
            found += [
                Candidate(candidate.transport, str(answer[4][0]), candidate.port, candidate.kind)
                for answer in answers[:_RESOLVE_LIMIT]
            ]
        return list(dict.fromkeys(found))


def _judge(
    tasks: dict[asyncio.Future[DialledPath], Attempt],
    failures: list[ConnectError],
    started: float,
    outcome: str = "won",
) -> DialledPath | None:
    """Write down what ended; returns the first success, closing others of the same moment."""
    winner: DialledPath | None = None
    for task in [task for task in tasks if task.done()]:
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
            failures.append(_explain(error, attempt))
    return winner


def _cancel(task: asyncio.Future[DialledPath], attempt: Attempt, started: float) -> None:
    """Give an attempt up; if it has just succeeded, close what it brought."""
    task.add_done_callback(close_result)
    task.cancel()
    attempt.ended_ms = (monotonic() - started) * 1000
    attempt.outcome = "cancelled"
    attempt.detail = attempt.detail or "no answer in time"


def _explain(error: BaseException, attempt: Attempt) -> ConnectError:
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


def _most_precise(failures: list[ConnectError], report: Report) -> ConnectError:
    for kind in _PRECISION:
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    for attempt in report.attempts:
        if attempt.outcome == "unreachable":  # a name that cannot be resolved
            return NoPathError(f"{attempt.candidate}: {attempt.detail}")
    return NoPathError("no address of this peer is known that this node could dial")


def _is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
