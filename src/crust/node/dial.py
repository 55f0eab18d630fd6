"""The dialling side: a race over all candidates, written down in a report."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
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
from crust.net.tcp import TcpStream, dial_tcp
from crust.node.acceptor import Acceptor
from crust.node.connection import Connection
from crust.node.core import Core, Proven
from crust.node.udp import UdpFront, UtpLink
from crust.proto.noise.handshake import FailureReason, HandshakeFailed, HandshakeResult, InitiatorHandshake
from crust.types import Attempt, Candidate, PathKind, Report, format_address

__all__ = ["CandidateFeed", "DialledPath", "Dialler", "Punch", "explain_timeout", "path_kind"]

_RESOLVE_LIMIT: Final = 8

# PROTOCOL 22: more than 2 TCP attempts only to an address from which the rendezvous sees the peer.
_PUNCH_TRIES: Final = 40
_UNATTESTED_TRIES: Final = 2
_PUNCH_PAUSE: Final = 0.1
_CALLER_BEGINS: Final = 0.4

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

_SILENCE: Final = "accepted the connection but stays silent: wrong key, not Crust, or the peer has not decided yet"


@dataclass(frozen=True, slots=True)
class Punch:
    """How a dial through NATs goes about it: from the listening port, which the peer knows, and again when refused.

    Attributes:
        acceptor: whose port it is.
        caller: whether we called; the caller begins handshakes over TCP, whoever's connection it is.
    """

    acceptor: Acceptor
    caller: bool


@dataclass(frozen=True, slots=True, eq=False)
class Adopted:
    """A connection that the called peer has made to our listener, over which we begin the handshake."""

    stream: TcpStream
    candidate: Candidate


_Found = list[Candidate | Adopted] | None
"""What a feed has given; None: no more will come."""


class CandidateFeed:
    """Candidates of one dial, as they become known.

    Attributes:
        closed: no more candidates will come.
        in_hand: some were taken, and are being looked up.
        punch: set where both sides dial at the same time.
        failure: why there are none, if that is more precise than what the attempts say.
    """

    def __init__(self, candidates: Sequence[Candidate] = ()) -> None:
        self._waiting: list[Candidate | Adopted] = list(candidates)
        self.closed = False
        self._told = False
        self.in_hand = False
        self._news = asyncio.Event()
        self.punch: Punch | None = None
        self.failure: ConnectError | None = None

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
        self.others: dict[asyncio.Task[DialledPath], Attempt] = {}

    def attach(self, core: Core, connection: Connection, at_ms: float) -> None:
        """Make it a path of a connection."""
        self.taken = True
        self._attach(core, connection, at_ms)

    def abort(self) -> None:
        """Close it, and what follows it."""
        for task in self.others:
            task.add_done_callback(_close_result)
            task.cancel()
        self._abort()

    @abstractmethod
    def _attach(self, core: Core, connection: Connection, at_ms: float) -> None: ...

    @abstractmethod
    def _abort(self) -> None: ...


class _TcpDialled(DialledPath):
    """A TCP connection after its handshake."""

    def __init__(self, stream: TcpStream, result: HandshakeResult, candidate: Candidate, rtt: float) -> None:
        super().__init__(result, candidate, rtt)
        self._stream = stream
        self._keys = result

    def _attach(self, core: Core, connection: Connection, at_ms: float) -> None:
        kind = path_kind(self.candidate)
        core.add_path(connection, self._stream, core.codec(self._keys), kind=kind, rtt=self.rtt, at_ms=at_ms)
        connection.pump()
        self._stream.replay()

    def _abort(self) -> None:
        self._stream.abort()


class _UtpDialled(DialledPath):
    """A tunnel association after its handshake."""

    def __init__(self, link: UtpLink, candidate: Candidate, rtt: float) -> None:
        super().__init__(link.association, candidate, rtt)
        self._link = link

    def _attach(self, core: Core, connection: Connection, at_ms: float) -> None:
        core.add_utp_path(connection, self._link, kind=path_kind(self.candidate), rtt=self.rtt, at_ms=at_ms)
        connection.pump()
        self._link.read()

    def _abort(self) -> None:
        self._link.abort()


class _Outbound:
    """A dialled TCP stream during its handshake."""

    __slots__ = ("_handshake", "future", "opened_at", "stream")

    def __init__(self, core: Core, handshake: InitiatorHandshake, stream: TcpStream | None = None) -> None:
        self._handshake = handshake
        self.future: asyncio.Future[HandshakeResult] = core.loop.create_future()
        self.opened_at = 0.0
        self.stream = stream or TcpStream(core.buffer)
        self.stream.consumer = self

    def stream_opened(self) -> None:
        """Message 1 goes out with the first segment that can carry data."""
        self.opened_at = monotonic()
        self.stream.write(self._handshake.data_to_send())

    def stream_received(self, data: memoryview) -> int:
        """Message 2, or something else."""
        if self.future.done():
            return 0  # kept for the path
        try:
            result = self._handshake.receive_data(bytes(data))
        except HandshakeFailed as failure:
            self._fail(failure)
            return len(data)
        if result is None:
            return len(data)
        self.future.set_result(result)
        return len(data) - len(result.rest)

    def stream_ended(self) -> None:
        """The peer hung up."""
        self._fail(self._handshake.receive_eof())

    def stream_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._fail(error or self._handshake.receive_eof())

    def stream_writable(self) -> None:
        """Nothing waits for this."""

    def _fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen, even if the attempt was given up meanwhile


class Dialler:
    """Dials peers.

    Args:
        core: the node's centre.
        front: the UDP sockets; None without µTP.
    """

    def __init__(self, core: Core, front: UdpFront | None = None) -> None:
        self._core = core
        self._front = front
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
            return attempt, self._core.loop.create_task(self._adopt(peer, item))
        return attempt, self._core.loop.create_task(self._attempt(peer, candidate, attempt, punch))

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
        task.add_done_callback(_close_result)
        task.cancel()
        attempt.ended_ms = (monotonic() - started) * 1000
        attempt.outcome = "cancelled"
        attempt.detail = attempt.detail or "no answer in time"

    async def _attempt(self, peer: PeerId, candidate: Candidate, attempt: Attempt, punch: Punch | None) -> DialledPath:
        """Dial one candidate; where a hole is to be punched, again and again, from the port that the peer knows."""
        if candidate.transport == "utp":
            return await self._connect_utp(peer, candidate)
        if punch is None:
            return await self._connect(peer, candidate, attempt, None)
        local = punch.acceptor.local_for(candidate.host)
        tries = _PUNCH_TRIES if candidate.kind == "server-reflexive" else _UNATTESTED_TRIES
        for left in reversed(range(tries)):
            try:
                if punch.caller:
                    return await self._connect(peer, candidate, attempt, local)
                return await self._answer(peer, candidate, attempt, local, punch)
            except OSError:
                # Refused or reset by a NAT that has not seen the other side's packet yet.
                if not left:
                    raise
                await asyncio.sleep(_PUNCH_PAUSE)
        raise AssertionError("unreachable")

    async def _connect_utp(self, peer: PeerId, candidate: Candidate) -> DialledPath:
        """Shake hands over UDP."""
        assert self._front is not None
        began = monotonic()
        dial = await self._front.dial(peer, candidate.host, candidate.port)
        try:
            link = await dial.future
        except BaseException:
            self._front.cancel(dial)
            raise
        return _UtpDialled(link, candidate, monotonic() - began)

    async def _connect(
        self, peer: PeerId, candidate: Candidate, attempt: Attempt, local: tuple[str, int] | None
    ) -> DialledPath:
        """Connect, and shake hands as the initiator."""
        outbound = self._outbound(peer)
        try:
            await dial_tcp(outbound.stream, candidate.host, candidate.port, local)
            attempt.detail = _SILENCE
            return await self._finish(outbound, candidate)
        except OSError as error:
            if local is None or error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
        # An older connection still holds this pair of addresses: better from another port than not at all.
        return await self._connect(peer, candidate, attempt, None)

    async def _answer(
        self, peer: PeerId, candidate: Candidate, attempt: Attempt, local: tuple[str, int] | None, punch: Punch
    ) -> DialledPath:
        """Connect, and let the caller begin the handshake; begin it ourselves when it does not."""
        inbound = punch.acceptor.make_inbound(path_kind(candidate))
        await dial_tcp(inbound.stream, candidate.host, candidate.port, local)
        attempt.detail = _SILENCE
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CALLER_BEGINS):
                await inbound.heard
            # It becomes a path by itself, and that ends this dial.
            await self._core.loop.create_future()
        outbound = self._outbound(peer, inbound.give_up_stream())
        outbound.stream_opened()
        return await self._finish(outbound, candidate)

    async def _adopt(self, peer: PeerId, adopted: Adopted) -> DialledPath:
        """Shake hands as the initiator over a connection that the called peer has made to our listener."""
        outbound = self._outbound(peer, adopted.stream)
        outbound.stream_opened()
        return await self._finish(outbound, adopted.candidate)

    def _outbound(self, peer: PeerId, stream: TcpStream | None = None) -> _Outbound:
        core = self._core
        handshake = InitiatorHandshake(core.identity, peer, core.network, core.hello, random=core.random)
        return _Outbound(core, handshake, stream)

    async def _finish(self, outbound: _Outbound, candidate: Candidate) -> DialledPath:
        try:
            result = await outbound.future
        except BaseException:
            outbound.stream.abort()
            outbound.future.cancel()
            raise
        return _TcpDialled(outbound.stream, result, candidate, monotonic() - outbound.opened_at)

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


def path_kind(candidate: Candidate) -> PathKind:
    """How a path over a candidate came up."""
    if candidate.kind == "mapped":
        return "mapped"
    return "direct" if candidate.kind == "host" else "punched"


def explain_timeout(report: Report) -> ConnectError:
    """The error of a dial whose time was up, from what its attempts had seen."""
    silent = [a for a in report.attempts if a.outcome == "cancelled" and a.detail == _SILENCE]
    if silent:
        return NotAuthenticError(f"{silent[0].candidate}: {_SILENCE}")
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


def _close_result(task: asyncio.Task[DialledPath]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


def _is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
