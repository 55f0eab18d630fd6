"""TCP hole punching over sockets: who begins where both have connected, refusals, strangers, limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

import crust
from crust.errors import CrustError, NoPathError
from crust.node.acceptor import Acceptor
from crust.node.attempt import DialledPath, Punch
from crust.node.core import Core
from crust.node.dial import CandidateFeed, Dialler
from crust.node.dial_tcp import TcpAttempts
from crust.node.punch_tcp import TcpPunch
from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import LocalView, RemoteCandidate, Trust
from crust.proto.nat.strategy import Approach, Plan
from crust.proto.nat.terms import Terms
from crust.proto.noise.handshake import FailureReason, HandshakeFailed
from crust.types import Attempt, Candidate, Report

from .node_support import answering, config, eventually, node, soon, unused_port

EVERY_LOOP = True
HOST = "127.0.0.1"
PLAN = Plan(Approach.PUNCH, "for a test")


class End:
    """A node without its dialling part."""

    def __init__(self, identity: crust.Identity) -> None:
        self.core = Core(identity, config())
        self.acceptor = Acceptor(self.core)
        self.attempts = TcpAttempts(self.core)

    async def connect(self, peer: crust.PeerId, port: int) -> DialledPath:
        candidate = Candidate("tcp", HOST, port, "server-reflexive")
        return await self.attempts.punch(peer, candidate, None, 5.0, lambda: None, self.acceptor.take_over)

    def punch(self, peer: crust.PeerId, patience: float = 10.0) -> TcpPunch:
        budget = DestinationBudget()
        return TcpPunch(self.core, self.attempts, self.acceptor, peer, PLAN, Punch(patience=patience), budget)

    def close(self) -> None:
        for connection in self.core.registry.holders():
            connection.abort(CrustError("the test is over"))
        self.acceptor.close()


@contextlib.asynccontextmanager
async def ends() -> AsyncIterator[tuple[End, End]]:
    """The larger PeerId, and the smaller."""
    made = sorted((crust.Identity.generate() for _ in range(2)), key=lambda identity: identity.id, reverse=True)
    larger, smaller = End(made[0]), End(made[1])
    try:
        yield larger, smaller
    finally:
        larger.close()
        smaller.close()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def splice() -> AsyncIterator[int]:
    """A port that joins two who connect to it: both have connected and neither accepted, as in a simultaneous open."""
    waiting: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    over = asyncio.Event()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not waiting:
            waiting.append((reader, writer))
            await over.wait()
            return
        try:
            other_reader, other_writer = waiting.pop()
            ways = [asyncio.ensure_future(copy(*way)) for way in ((reader, other_writer), (other_reader, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            over.set()

    async with answering(joined) as port:
        yield port


def remote(port: int, trust: Trust = Trust.ATTESTED) -> RemoteCandidate:
    return RemoteCandidate(Candidate("tcp", HOST, port, "server-reflexive"), trust, near=False, priority=1)


def entry(port: int) -> Attempt:
    return Attempt(f"{HOST}:{port}", "tcp", "server-reflexive", 0.0)


async def test_both_have_connected() -> None:
    """One connection, two who begin: the larger PeerId stays the initiator, the smaller accepts."""
    async with ends() as (larger, smaller), splice() as port:
        first = asyncio.create_task(smaller.connect(larger.core.identity.id, port))
        won = await soon(larger.connect(smaller.core.identity.id, port))
        ours = larger.core.new_connection(won.result, None)
        won.attach(larger.core, ours, 0.0)
        theirs = await soon(smaller.acceptor.next_connection())
        assert theirs is not None
        await ours.send(b"hello")
        assert (await soon(theirs.receive())).data == b"hello"
        assert theirs.path is not None
        assert theirs.path.kind == "punched"
        with pytest.raises(ConnectionResetError):  # of its own attempt nothing comes: it is a path of the other side
            await soon(first)


async def test_the_other_goes_away_after_both_have_begun() -> None:
    async with ends() as (larger, smaller), splice() as port:
        first = asyncio.create_task(smaller.connect(larger.core.identity.id, port))
        won = await soon(larger.connect(smaller.core.identity.id, port))
        won.abort()
        with pytest.raises(ConnectionResetError):
            await soon(first)
        assert smaller.core.registry.count == 0


async def test_refused_until_the_peer_is_there() -> None:
    port, identity = unused_port(), crust.Identity.generate()
    async with ends() as (end, _):
        punch, attempt = end.punch(identity.id), entry(port)
        reaching = asyncio.create_task(punch.reach([remote(port)], attempt))
        await asyncio.wait((reaching,), timeout=0.05)
        assert not reaching.done()
        async with node(identity, listen=[f"{HOST}:{port}"]):
            won = await soon(reaching)
            assert won.result.peer == identity.id
            assert punch.closed
            won.abort()


async def test_several_candidates_of_one_entry() -> None:
    identity = crust.Identity.generate()
    async with ends() as (end, _), node(identity) as bob:
        port = int(bob.addresses[0].rpartition(":")[2])
        ports = [unused_port(), unused_port(), port]
        won = await soon(end.punch(identity.id).reach([remote(each) for each in ports], entry(ports[0])))
        assert won.candidate.port == port
        won.abort()


async def test_a_stranger_is_tried_twice() -> None:
    """Nobody but the peer itself says that it is there (PROTOCOL 22)."""
    seen = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1

    async with answering(count) as port, ends() as (end, other):
        with pytest.raises((OSError, HandshakeFailed)):
            await soon(end.punch(other.core.identity.id).reach([remote(port, Trust.CLAIMED)], entry(port)))
        await eventually(lambda: seen == 2)


async def test_something_else_answers() -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9\r\n")
        await reader.read()
        writer.close()

    async with answering(banner) as port, ends() as (end, other):
        with pytest.raises(HandshakeFailed) as failure:
            await soon(end.punch(other.core.identity.id).reach([remote(port)], entry(port)))
        assert failure.value.reason is FailureReason.SSH


async def test_nothing_is_tried_after_the_time_is_up() -> None:
    port = unused_port()
    async with ends() as (end, other):
        punch = end.punch(other.core.identity.id, patience=0.1)
        with pytest.raises(OSError):  # noqa: PT011 - refused, again and again
            await soon(punch.reach([remote(port)], entry(port)))
        assert punch.closed


async def test_called_off() -> None:
    port = unused_port()
    async with ends() as (end, other):
        punch = end.punch(other.core.identity.id)
        reaching = asyncio.create_task(punch.reach([remote(port)], entry(port)))
        await asyncio.wait((reaching,), timeout=0.02)
        reaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reaching
        assert punch.closed


async def test_what_only_the_peer_says_is_not_tried_for_ever() -> None:
    """Eight connections within an hour to a host for which nobody else vouches, over all dials (PROTOCOL 22)."""
    here, claimed = Candidate("tcp", HOST, unused_port()), Candidate("tcp", HOST, unused_port())
    outcomes = []
    async with ends() as (end, other):
        dialler = Dialler(end.core, end.acceptor, LocalView)
        for _ in range(10):
            feed, report = CandidateFeed(claimed=[claimed, here], known=[here]), Report("")
            feed.close()
            with pytest.raises(NoPathError):
                await soon(dialler.race(other.core.identity.id, feed, report, 0.0))
            outcomes.append([(each.candidate, each.outcome) for each in report.attempts])
    where = f"{HOST}:{claimed.port}"
    for index, found in enumerate(outcomes):
        assert dict(found) == {f"{HOST}:{here.port}": "refused", where: "refused" if index < 8 else "skipped"}


async def test_somebody_else_at_an_inside_address_of_the_peer() -> None:
    """The peer has answered the call, so that it is not the one who cannot prove its key."""

    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9\r\n")
        await reader.read()

    async with answering(banner) as port, ends() as (end, other):
        view = LocalView(outside_hosts=frozenset({HOST}))
        feed, report = CandidateFeed([Candidate("tcp", HOST, port)]), Report("")
        feed.terms = Terms(attested=frozenset({HOST}))
        feed.close()
        with pytest.raises(NoPathError, match="told of this dial"):
            await soon(Dialler(end.core, end.acceptor, lambda: view).race(other.core.identity.id, feed, report, 0.0))
        assert [each.outcome for each in report.attempts] == ["not crust"]


async def test_addresses_that_make_no_sense_are_told_and_left_alone() -> None:
    async with ends() as (end, other):
        lies = [
            Candidate("tcp", "224.0.0.1", 5000),
            Candidate("tcp", "192.168.7.7", 5000),
            Candidate("tcp", HOST, 5000),
        ]
        feed, report = CandidateFeed(lies), Report("")
        feed.terms = Terms(attested=frozenset({"203.0.113.1"}))
        feed.close()
        with pytest.raises(NoPathError):
            await soon(Dialler(end.core, end.acceptor, LocalView).race(other.core.identity.id, feed, report, 0.0))
        assert {(each.candidate, each.outcome) for each in report.attempts} == {
            (f"{each.host}:5000", "skipped") for each in lies
        }
