"""What nodes learn of the network before them from a rendezvous, and what lying peers can make them send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

import crust
from crust.errors import NoPathError
from crust.node.surroundings import Surroundings
from crust.node.udp import UdpFront
from crust.proto.nat.behaviour import Allocation, Filtering, Mapping, NatVerdict
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.prediction import Prediction
from crust.proto.nat.terms import Standing
from crust.types import Candidate, Transport
from crust.wire.probe import PROBE_BYTES, serialize_probe
from crust.wire.service import Observer
from tests.integration.node_support import eventually, node, port_of, soon, target

BOTH: dict[str, Any] = {"transports": ["tcp", "utp"], "listen": ["0.0.0.0:0"]}


def surroundings(of: crust.Node) -> Surroundings:
    assert of._neighbourhood is not None
    return of._neighbourhood.surroundings


def front(of: crust.Node) -> UdpFront:
    assert of._front is not None
    return of._front


@contextlib.asynccontextmanager
async def known(transports: list[Transport], **changes: Any) -> AsyncIterator[tuple[crust.Node, crust.Node]]:
    """A rendezvous, and a node that knows it."""
    async with node(**BOTH) as rose:
        bootstrap = [target(rose.id, port_of(rose))]
        settings = {**BOTH, "transports": transports, "bootstrap": bootstrap, **changes}
        async with node(**settings) as alice:
            await soon(alice.bootstrapped())
            yield rose, alice


class TestLearning:
    @pytest.mark.parametrize("transport", ["tcp", "utp"])
    async def test_where_there_is_no_nat(self, transport: Transport) -> None:
        async with known([transport]) as (_, alice):
            await eventually(lambda: surroundings(alice).verdict(transport).filtering)
            await eventually(lambda: surroundings(alice).verdict(transport).mapping)
            verdict = surroundings(alice).verdict(transport)
            assert verdict.mapping is Mapping.ENDPOINT_INDEPENDENT
            assert verdict.filtering is Filtering.ADDRESS_DEPENDENT  # or none at all: one host cannot tell
            assert verdict.allocation is Allocation.PRESERVING
            assert not verdict.translated
            assert surroundings(alice).standings() == {transport: Standing(verdict)}

    async def test_both_transports(self) -> None:
        async with known(["tcp", "utp"]) as (_, alice):
            await eventually(lambda: len(surroundings(alice).standings()) == 2)
            await eventually(lambda: all(surroundings(alice).verdict(t).mapping for t in ("tcp", "utp")))

    async def test_a_rendezvous_that_observes_nothing_holds_nobody_up(self) -> None:
        """One that only dials has no second port; an older one does not know the question."""
        async with known(["tcp"]) as (rose, alice), asyncio.timeout(10):
            assert alice._neighbourhood is not None
            assert rose._neighbourhood is not None
            server = alice._neighbourhood.signalling.servers[0]
            rose._neighbourhood.observers.serve = lambda *_: True  # type: ignore[method-assign]
            path_id = server.session.path_ids[0]
            before = asyncio.get_running_loop().time()
            surroundings(alice).path_up(server, path_id)
            await surroundings(alice).prepare()
            assert asyncio.get_running_loop().time() - before < 1

    async def test_sockets_of_the_rendezvous_end_with_it(self) -> None:
        async with known(["tcp", "utp"]) as (rose, alice):
            await eventually(lambda: surroundings(alice).verdict("utp").mapping)
            assert rose._neighbourhood is not None
            (task,) = rose._neighbourhood.observers._posts.values()
            post = task.result()
        assert post.server is not None
        assert not post.server.is_serving()
        assert all(transport.is_closing() for transport in post.transports)


class Noted:
    """What a rendezvous has told a node of its observers."""

    def __init__(self, of: crust.Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[Observer] = []
        receive = Surroundings.receive

        def spy(self_: Surroundings, connection: Any, message: Any, path_id: int | None) -> bool:
            if isinstance(message, Observer):
                self.messages.append(message)
            return receive(self_, connection, message, path_id)

        monkeypatch.setattr(Surroundings, "receive", spy)


@contextlib.asynccontextmanager
async def observed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[crust.Node, Noted]]:
    """A rendezvous, and what it has told a node that came to it where to probe."""
    async with node(**BOTH) as rose:
        alice = node(**BOTH, bootstrap=[target(rose.id, port_of(rose))])
        noted = Noted(alice, monkeypatch)
        async with alice:
            await soon(alice.bootstrapped())
            await eventually(lambda: noted.messages)
            yield rose, noted


class TestObserver:
    async def test_strangers_probes_are_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing comes back to where a probe came from, whatever it is."""
        async with observed(monkeypatch) as (rose, noted):
            told = noted.messages[0]
            probe = serialize_probe(told.key, "utp", told.token, b"a number")
            forged = serialize_probe(bytes(16), "utp", told.token, b"a number")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.bind(("127.0.0.1", 0))
                for data in (b"", b"noise", bytes(PROBE_BYTES), forged, probe, probe):
                    sock.sendto(data, ("127.0.0.1", told.utp))
                await eventually(lambda: rose.stats["observer.repeated"])
                assert rose.stats["observer.forged"] == 1
                assert rose.stats["observer.stranger"] == 3
                for _ in range(200):
                    sock.sendto(forged, ("127.0.0.1", told.utp))
                await eventually(lambda: rose.stats["observer.too_many"])
                with pytest.raises(BlockingIOError):
                    sock.recv(100)

    async def test_tcp_connections_are_few_and_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crust.node.observer._STREAMS_MOST", 4)
        async with observed(monkeypatch) as (_, noted):
            address = ("127.0.0.1", noted.messages[0].tcp)
            first = await asyncio.open_connection(*address)
            others = [await asyncio.open_connection(*address) for _ in range(4)]
            with contextlib.suppress(ConnectionError):
                assert await soon(first[0].read()) == b""  # the oldest had to go
            others[-1][1].write(bytes(PROBE_BYTES + 1))
            with contextlib.suppress(ConnectionError):
                assert await soon(others[-1][0].read()) == b""
            for _, writer in (first, *others):
                writer.close()


@contextlib.asynccontextmanager
async def acquainted(**changes: Any) -> AsyncIterator[tuple[crust.Node, crust.Node]]:
    """Two nodes that know one rendezvous and not each other."""
    async with node(**BOTH) as rose:
        settings = {**BOTH, **changes, "bootstrap": [target(rose.id, port_of(rose))]}
        async with node(**settings) as alice, node(**settings) as bob:
            await soon(alice.bootstrapped())
            await soon(bob.bootstrapped())
            yield alice, bob


HARD = NatVerdict("udp", Mapping.ADDRESS_AND_PORT_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT, Allocation.RANDOM,
                  mapping_confidence=0.7)  # fmt: skip


class TestOffers:
    async def test_both_sides_hear_of_the_others_nat(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with acquainted() as (alice, bob):
            heard = []
            assert bob._dials is not None
            called = bob._dials.called

            def note(*them: Any) -> bool:
                heard.append(them[2])
                return called(*them)

            monkeypatch.setattr(bob._dials, "called", note)
            told = {"utp": Standing(HARD)}
            monkeypatch.setattr(surroundings(alice), "standings", lambda: told)
            connection = await soon(alice.connect(bob.id))
            assert heard[0].standing("utp").verdict == HARD
            assert not heard[0].caller
            assert heard[0].attested
            assert heard[0].controlling == (bob.id > alice.id)
            await connection.close()

    async def test_hopeless_pairs_are_told_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Within two seconds, with a reason and advice."""
        async with acquainted() as (alice, bob):
            assert bob._dials is not None
            monkeypatch.setattr(bob._dials, "called", lambda *_: True)  # it answers, and does not dial
            hard = {"tcp": Standing(HARD), "utp": Standing(HARD)}
            for each in (alice, bob):
                assert each._neighbourhood is not None
                monkeypatch.setattr(surroundings(each), "standings", lambda: hard)
                monkeypatch.setattr(each._neighbourhood, "candidates", list)
                monkeypatch.setattr(each._neighbourhood.signalling, "_own_candidates", list)
            monkeypatch.setattr("crust.node.signalling._with_seen", lambda *_: [Candidate("utp", "192.0.2.200", 9)])
            began = asyncio.get_running_loop().time()
            with pytest.raises(NoPathError, match="random") as caught:
                await alice.connect(bob.id, timeout=20)
            assert asyncio.get_running_loop().time() - began < 5  # two on a quiet machine
            assert caught.value.report is not None
            assert caught.value.report.advice


VICTIM = "192.0.2.77"


class TestLies:
    """A peer names others as its addresses (PROTOCOL 22)."""

    @pytest.fixture(autouse=True)
    def sent(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """Requests by destination; none leaves."""
        found: Counter[str] = Counter()

        def probe(self_: UdpFront, dial: object, number: int, target: tuple[str, int], **_: object) -> None:
            found[target[0]] += 1

        monkeypatch.setattr(UdpFront, "probe", probe)
        return found

    async def dial(
        self, alice: crust.Node, bob: crust.Node, lies: list[Candidate], monkeypatch: Any, seconds: float = 3
    ) -> None:
        assert bob._dials is not None
        assert bob._neighbourhood is not None
        monkeypatch.setattr(bob._dials, "called", lambda *_: True)
        monkeypatch.setattr(bob._neighbourhood.signalling, "_own_candidates", lambda: lies)
        with pytest.raises(crust.ConnectError):
            await alice.connect(bob.id, timeout=seconds)

    async def test_a_flood_target_gets_a_handful(self, sent: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
        async with acquainted(transports=["utp"]) as (alice, bob):
            lies = [Candidate("utp", VICTIM, 1000 + n, "server-reflexive") for n in range(32)]
            await self.dial(alice, bob, lies, monkeypatch)
            assert 0 < sent[VICTIM] <= TraversalLimits().unverified_datagrams

    async def test_nor_do_many_dials_add_up(self, sent: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
        async with acquainted(transports=["utp"]) as (alice, bob):
            lies = [Candidate("utp", VICTIM, 1000 + n) for n in range(32)]
            monkeypatch.setattr("crust.proto.nat.udp_punch.UNVERIFIED_PROBES", (0.0,) * 5)
            for _ in range(8):
                await self.dial(alice, bob, lies, monkeypatch, seconds=0.5)
            assert sent[VICTIM] <= TraversalLimits().unverified_host_datagrams_per_hour

    async def test_a_forecast_of_a_strangers_ports_brings_no_more(
        self, sent: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lying verdict asks for the ports of somebody else's host to be tried."""
        async with acquainted(transports=["utp"]) as (alice, bob):
            verdict = NatVerdict("udp", Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.SEQUENTIAL, step=1)
            lie = {"utp": Standing(verdict, Prediction(VICTIM, 5000, 0.0, 1), (5001, 5002))}
            monkeypatch.setattr(surroundings(bob), "standings", lambda: lie)
            await self.dial(alice, bob, [], monkeypatch)
            assert sent[VICTIM] <= TraversalLimits().unverified_datagrams

    async def test_groups_and_nobodies_get_nothing(self, sent: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
        async with acquainted(transports=["utp"]) as (alice, bob):
            hosts = ["224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0", "ff02::1", "::", "::ffff:192.0.2.9"]
            await self.dial(alice, bob, [Candidate("utp", host, 53) for host in hosts], monkeypatch)
            assert not any(sent[host] for host in hosts)


class TestManySockets:
    """Random ports here, one known port there: 256 sockets towards it."""

    @contextlib.asynccontextmanager
    async def pair(
        self, monkeypatch: pytest.MonkeyPatch, **changes: Any
    ) -> AsyncIterator[tuple[crust.Node, crust.Node]]:
        easy = NatVerdict("udp", Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT)
        async with acquainted(transports=["utp"], **changes) as (alice, bob):
            monkeypatch.setattr(surroundings(alice), "standings", lambda: {"utp": Standing(HARD)})
            monkeypatch.setattr(surroundings(bob), "standings", lambda: {"utp": Standing(easy)})
            yield alice, bob

    async def test_all_are_closed_when_the_main_one_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with self.pair(monkeypatch) as (alice, bob):
            before = dict(front(alice)._sockets)
            opened: list[int] = []
            open_extra = UdpFront.open_extra
            monkeypatch.setattr(UdpFront, "open_extra", lambda *a: opened.extend(found := open_extra(*a)) or found)
            connection = await soon(alice.connect(bob.id))
            await soon(connection.ping())
            await eventually(lambda: front(alice)._sockets == before)
            assert len(opened) <= TraversalLimits().dial_sockets - 1
            await connection.close()

    async def test_the_one_that_wins_stays_as_long_as_it_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with self.pair(monkeypatch) as (alice, bob):
            assert bob._dials is not None
            monkeypatch.setattr(bob._dials, "called", lambda *_: True)
            before = dict(front(alice)._sockets)
            probe = UdpFront.probe

            def only_extra(self_: UdpFront, dial: Any, number: int, to: tuple[str, int], **options: Any) -> None:
                if number in self_._extra:
                    probe(self_, dial, number, to, **options)

            monkeypatch.setattr(UdpFront, "probe", only_extra)
            connection = await soon(alice.connect(bob.id))
            assert connection.path is not None
            assert int(connection.path.local.rpartition(":")[2]) != port_of(alice)
            await connection.send(b"over another socket")
            accepted = await soon(anext(bob))
            assert (await soon(accepted.receive())).data == b"over another socket"
            assert len(front(alice)._sockets) == len(before) + 1
            await soon(connection.close())
            await eventually(lambda: front(alice)._sockets == before)

    async def test_there_are_no_more_than_the_settings_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: Counter[int] = Counter()

        def count(self_: UdpFront, dial: object, number: int, to: tuple[str, int], **_: object) -> None:
            sent[number] += 1

        monkeypatch.setattr(UdpFront, "probe", count)
        limits = {"max_punch_sockets": 10, "max_punch_datagrams": 25}
        async with self.pair(monkeypatch, **limits) as (alice, bob):
            with pytest.raises(crust.ConnectError):
                await alice.connect(bob.id, timeout=4)
            mine = set(front(alice)._sockets)
            assert len(set(sent) - mine) <= 9
            assert sum(sent[number] for number in sent) <= 2 * 25  # of both sides
