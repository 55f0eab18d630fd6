"""A rendezvous that lies, peers that lie to one, and what a peer can make another do through it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator

import pytest

import crust
from crust.node.rendezvous import PRESENCE_PURPOSE, Rendezvous, presence_statement, sign_presence
from crust.types import Candidate
from crust.wire import frames
from crust.wire.contact import Contact
from crust.wire.service import (
    Address,
    AskChallenge,
    Challenge,
    Forward,
    Forwarded,
    Presence,
    Undelivered,
    parse_service,
    serialize_service_message,
)
from tests.integration.node_support import eventually, node, nothing_left, port_of, soon
from tests.integration.raw_peer import RawPeer

BOTH = {"transports": ["tcp", "utp"]}
NOBODYS = ["224.0.0.1", "255.255.255.255", "0.0.0.0", "::", "ff02::1", "garbage", "\x1b[2J", "fe80::1%eth0", "x" * 45]


@contextlib.asynccontextmanager
async def three(**settings: object) -> AsyncIterator[tuple[crust.Node, crust.Node, crust.Node]]:
    """Mallory serves Alice and Bob as their rendezvous."""
    async with nothing_left(), node(**BOTH) as mallory:
        way = {"bootstrap": [str(await mallory.contact())], **BOTH, **settings}
        async with node(**way) as alice, node(**way) as bob:
            await alice.bootstrapped()
            await bob.bootstrapped()
            await eventually(lambda: mallory._neighbourhood.rendezvous.present == 2)
            yield mallory, alice, bob


class Victim:
    """Counts what comes to a port of no part in any of this."""

    def __init__(self) -> None:
        self.datagrams = self.connections = 0
        while True:
            self.tcp = socket.create_server(("127.0.0.1", 0))
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.port = self.tcp.getsockname()[1]
            try:
                self.udp.bind(("127.0.0.1", self.port))
                break
            except OSError:  # another test has it
                self.__exit__()
        self.udp.setblocking(False)
        self.tcp.setblocking(False)

    def count(self) -> tuple[int, int]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.udp.recv(65_536)
                self.datagrams += 1
        with contextlib.suppress(BlockingIOError):
            while True:
                self.tcp.accept()[0].close()
                self.connections += 1
        return self.datagrams, self.connections

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *exc: object) -> None:
        self.udp.close()
        self.tcp.close()


@pytest.mark.parametrize("host", NOBODYS)
async def test_an_outside_address_that_nobody_can_have(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not believed, and does not spoil our contact."""
    monkeypatch.setattr(
        Rendezvous, "_tell_address", lambda self, connection, path: connection.send_service(Address(host, 4), path)
    )
    async with three() as (_, alice, _):
        assert all(candidate.port != 4 for candidate in (await alice.contact()).candidates)
        assert alice.stats["service.impossible_address"]


async def test_seen_addresses_that_nobody_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among true ones: the rendezvous says eight at most."""
    original = crust.Connection.sources
    lies = [Candidate("utp", host, 9, "server-reflexive") for host in NOBODYS[:6]]
    monkeypatch.setattr(crust.Connection, "sources", lambda self: lies + original(self))
    async with three() as (_, alice, bob):
        ours = await soon(alice.connect(bob.id))
        await soon(ours.ping())


async def test_a_third_party_gets_a_handful_however_often_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rendezvous and a peer in league: each call names the victim as the address from which the peer comes."""
    with Victim() as victim:
        lies = [Candidate("utp", "127.0.0.1", victim.port), Candidate("tcp", "127.0.0.1", victim.port)]
        async with three() as (mallory, alice, bob):
            original = Rendezvous._forward

            def forge(self: Rendezvous, connection: crust.Connection, message: Forward) -> None:
                with monkeypatch.context() as patch:
                    patch.setattr(type(connection), "sources", lambda self: lies)
                    original(self, connection, message)

            monkeypatch.setattr(Rendezvous, "_forward", forge)
            for _ in range(6):
                ours = await soon(alice.connect(bob.id))
                await soon(ours.ping())
                victim.count()
                ours.abort()
                await eventually(lambda: not bob.connections or all(c.peer != alice.id for c in bob.connections), 30)
            datagrams, connections = victim.count()
            assert datagrams <= 60
            assert connections <= 30
            assert mallory.stats["rendezvous.forwarded"]


async def test_replayed_and_misdirected_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (mallory, alice, bob):
        sent: list[tuple[crust.PeerId, Forwarded]] = []
        original = crust.Connection.send_service

        def record(self: crust.Connection, message: object, path_id: int | None = None) -> None:
            if isinstance(message, Forwarded):
                sent.append((self.peer, message))
            original(self, message, path_id)

        monkeypatch.setattr(crust.Connection, "send_service", record)
        ours = await soon(alice.connect(bob.id))
        await soon(ours.ping())
        offer = next(message for peer, message in sent if peer == bob.id)
        answer = next(message for peer, message in sent if peer == alice.id)
        to = {connection.peer: connection for connection in mallory.connections}
        answered = bob.stats["offer.answered"]
        for _ in range(20):
            to[bob.id].send_service(offer)
            to[alice.id].send_service(offer)
            to[bob.id].send_service(answer)
            to[alice.id].send_service(answer)
            to[alice.id].send_service(Forwarded(bytes(16), secrets.token_bytes(300), []))
        await eventually(lambda: alice.stats["offer.not_authentic"] >= 40)
        await eventually(lambda: bob.stats["offer.repeated"] + bob.stats["offer.more"] >= 20)
        assert bob.stats["offer.answered"] == answered
        assert bob.stats["offer.more"] <= 8
        assert not ours.closed
        await soon(ours.ping())


async def test_offers_from_somebody_who_is_no_rendezvous_of_ours() -> None:
    async with nothing_left(), node(**BOTH, signing="off") as bob:
        peer = await RawPeer(bob.id, port_of(bob)).open()
        await soon(peer.join())
        theirs = await soon(anext(bob))
        message = Forwarded(bytes(16), secrets.token_bytes(300), [])
        peer.say(*(frames.serialize_service(n, serialize_service_message(message)) for n in range(50)))
        await eventually(lambda: bob.stats["offer.not_from_a_server"] == 50)
        theirs.abort()
        peer.close()


class TestPresence:
    async def entered(self, bob: crust.Node, peer: RawPeer) -> bytes:
        """The challenge."""
        peer.say(frames.serialize_service(0, serialize_service_message(AskChallenge())))
        while True:
            for frame in await soon(peer.listen()):
                if isinstance(frame, frames.Service):
                    message = parse_service(frame.body)
                    if isinstance(message, Challenge):
                        return message.nonce

    async def test_it_cannot_be_stolen_nor_replayed(self) -> None:
        """What counts is who holds the key of the connection, the challenge of this connection, and our PeerId."""
        alice = crust.Identity.generate()
        async with nothing_left(), node(**BOTH, signing="off") as bob, node(**BOTH) as other:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            nonce = await self.entered(bob, peer)
            forgeries = [
                sign_presence(alice, nonce, bob.id, 300),  # another's key
                sign_presence(peer.identity, bytes(16), bob.id, 300),  # another challenge
                sign_presence(peer.identity, nonce, other.id, 300),  # for another rendezvous
                sign_presence(peer.identity, nonce, bob.id, 299),  # another lifetime
                peer.identity.sign("receipt", presence_statement(nonce, bob.id, 300)),  # another purpose
                bytes(64),
            ]
            number = 1
            for n, signature in enumerate(forgeries):
                body = serialize_service_message(Presence(300, signature))
                peer.say(frames.serialize_service(number, body), frames.serialize_service(number + 1, body))
                await eventually(lambda: bob.stats["rendezvous.forged_presence"] == n + 1)  # noqa: B023
                peer.say(frames.serialize_service(number + 2, serialize_service_message(AskChallenge())))
                number += 3
            # Each challenge serves once, and what comes without one is nothing.
            await eventually(lambda: bob.stats["rendezvous.unasked_presence"] == len(forgeries))
            assert bob._neighbourhood.rendezvous.present == 0
            assert PRESENCE_PURPOSE != "receipt"
            theirs.abort()
            peer.close()

    async def test_a_rendezvous_sends_no_more_than_it_got(self) -> None:
        """Nobody present, too many at once: a small word back, to who asked."""
        async with nothing_left(), node(**BOTH, signing="off") as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            question = serialize_service_message(Forward(bytes(16), crust.Identity.generate().id.bytes(), bytes(200)))
            peer.say(*(frames.serialize_service(n, question) for n in range(200)))
            answers: list[bytes] = []
            while len(answers) < 200:
                answers += [f.body for f in await soon(peer.listen()) if isinstance(f, frames.Service)]
            assert all(isinstance(parse_service(body), Undelivered) for body in answers)
            assert max(map(len, answers)) < len(question)
            assert bob.stats["rendezvous.not_here"] + bob.stats["rendezvous.too_many"] == 200
            assert bob.stats["rendezvous.too_many"] >= 100
            theirs.abort()
            peer.close()


async def test_candidates_of_a_peer_that_name_a_third_party() -> None:
    """A contact that somebody gives away may name anybody's address: a dial sends a handful there."""
    with Victim() as victim:
        async with nothing_left(), node(listen=[], **BOTH) as alice:
            places = tuple(Candidate(t, "127.0.0.1", victim.port) for t in ("tcp", "utp"))  # type: ignore[arg-type]
            contact = Contact(crust.Identity.generate().id, places)
            dialling = asyncio.create_task(alice.connect(contact, timeout=3))
            with pytest.raises(crust.ConnectError):
                await soon(dialling)
            datagrams, connections = victim.count()
            assert 1 <= datagrams <= 5
            assert 1 <= connections <= 2
