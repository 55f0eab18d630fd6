"""Nodes over µTP: everything that works over TCP, and what only UDP has."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from typing import Any

import pytest

import crust
from crust.errors import NetworkMismatchError, NoPathError, NotAuthenticError, RefusedError
from crust.net.udp import Features
from crust.node.udp import UdpFront
from tests.integration.node_support import (
    Proxy,
    answering,
    elapsed_below,
    eventually,
    joined,
    node,
    nothing_left,
    port_of,
    soon,
    target,
    unused_port,
)
from tests.integration.udp_proxy import UdpProxy

EVERY_LOOP = True

UTP: dict[str, Any] = {"transports": ["utp"]}
BOTH: dict[str, Any] = {"transports": ["tcp", "utp"]}


async def exchange(ours: crust.Connection, theirs: crust.Connection, size: int = 300_000) -> None:
    """Messages of all sizes both ways."""
    for sender, receiver in ((ours, theirs), (theirs, ours)):
        for data in (b"", b"x", bytes(range(256)) * 20, b"y" * size):
            await soon(sender.send(data))
            assert (await soon(receiver.receive())).data == data


class TestOneTransport:
    async def test_everything(self) -> None:
        async with nothing_left(), joined(UTP, UTP) as (alice, bob, ours, theirs):
            assert ours.path is not None
            assert ours.path.transport == "utp"
            assert ours.path.kind == "direct"
            assert ours.path.remote == bob.addresses[0]
            assert theirs.path is not None
            assert theirs.path.remote == ours.path.local
            await exchange(ours, theirs)
            stream = await ours.open_stream("name")
            stream.write(b"z" * 500_000)
            await stream.drain()
            await stream.close()
            async for found in theirs.streams():
                assert await soon(found.read(-1)) == b"z" * 500_000
                break
            ours.send_datagram(b"unreliable")
            assert await soon(theirs.receive_datagram()) == b"unreliable"
            assert await soon(ours.ping()) < 1
            await soon(ours.flush())
            message_sent = ours.send(b"signed")
            await message_sent
            receipt = await soon((await soon(theirs.receive())).receipt())
            assert receipt.verify(b"signed") == alice.id

    async def test_contact_and_report(self) -> None:
        async with node(**UTP) as alice, node(**UTP) as bob:
            contact = await bob.contact()
            assert [candidate.transport for candidate in contact.candidates] == ["utp"]
            ours = await soon(alice.connect(str(contact)))
            assert ours.report is not None
            assert [(a.transport, a.outcome) for a in ours.report.attempts] == [("utp", "won")]
            assert ours.report.winner == ours.path

    async def test_every_interface(self) -> None:
        async with node(listen=None, **UTP) as alice, node(listen=None, **UTP) as bob:
            assert len({address.rpartition(":")[2] for address in bob.addresses}) == 1
            ours = await soon(alice.connect(await bob.contact()))
            await exchange(ours, await soon(anext(bob)))

    async def test_ipv6(self) -> None:
        try:
            bob = node(listen=["[::1]:0"], **UTP)
            await bob.start()
        except crust.ConfigError:
            pytest.skip("no IPv6 on this machine")
        async with node(listen=[], **UTP) as alice:
            ours = await soon(alice.connect(await bob.contact()))
            assert ours.path is not None
            assert ours.path.remote.startswith("[::1]:")
            await exchange(ours, await soon(anext(bob)))
        await bob.close()

    @pytest.mark.parametrize("signing", ["off", "strict"])
    async def test_signing_modes(self, signing: str) -> None:
        settings = {**UTP, "signing": signing}
        async with joined(settings, settings) as (_, _, ours, theirs):
            await exchange(ours, theirs)

    async def test_bulk_both_ways_at_once(self) -> None:
        async with joined(UTP, UTP) as (_, _, ours, theirs):

            async def send(connection: crust.Connection, byte: bytes) -> None:
                for _ in range(60):
                    await connection.send(byte * 200_000)

            async def receive(connection: crust.Connection, byte: bytes) -> None:
                for _ in range(60):
                    assert (await connection.receive()).data == byte * 200_000

            jobs = (send(ours, b"a"), send(theirs, b"b"), receive(ours, b"b"), receive(theirs, b"a"))
            await soon(asyncio.gather(*jobs), 60)

    async def test_many_peers_behind_one_socket(self) -> None:
        async with node(**UTP) as bob:
            contact = await bob.contact()
            clients = [node(listen=[], **UTP) for _ in range(30)]
            for client in clients:
                await client.start()
            found = await soon(asyncio.gather(*(client.connect(contact) for client in clients)), 40)
            for number, connection in enumerate(found):
                await connection.send(str(number).encode())
            got = []
            for _ in clients:
                got.append((await soon((await soon(anext(bob))).receive())).data)  # noqa: PERF401
            assert sorted(got, key=int) == [str(number).encode() for number in range(30)]
            await asyncio.gather(*(client.close() for client in clients))
            await eventually(lambda: bob.stats["connections.open"] == 0)

    async def test_close_delivers_first(self) -> None:
        async with joined(UTP, UTP) as (_, _, ours, theirs):
            for number in range(50):
                await ours.send(bytes([number]) * 50_000)
            closing = asyncio.create_task(ours.close())
            got = [message.data[0] async for message in theirs]
            assert got == list(range(50))
            await soon(closing)

    async def test_close_and_connect_again(self) -> None:
        async with node(**UTP) as alice, node(**UTP) as bob:
            for _ in range(8):
                ours = await soon(alice.connect(await bob.contact()))
                theirs = await soon(anext(bob))
                await ours.send(b"again")
                assert (await soon(theirs.receive())).data == b"again"
                await soon(ours.close())

    async def test_the_node_closes_quickly(self) -> None:
        async with node(**UTP) as alice:
            async with node(**UTP) as bob:
                ours = await soon(alice.connect(await bob.contact()))
                await soon(anext(bob))
                with elapsed_below(2):
                    await bob.close()
            with pytest.raises(crust.ConnectionClosed):
                await soon(ours.receive())

    @pytest.mark.parametrize(
        "features", [Features(segment=False, gro=False), Features(reader=False), Features(segment=False)]
    )
    async def test_without_the_kernels_help(self, features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crust.node.node.UdpFront", functools.partial(UdpFront, features=features))
        async with joined(UTP, UTP) as (_, _, ours, theirs):
            await exchange(ours, theirs, 3_000_000)

    async def test_datagrams_capped(self) -> None:
        settings = {**UTP, "max_datagram_bytes": 1280}
        async with UdpProxy() as proxy, node(**settings) as alice, node(**settings) as bob:
            proxy.upstream = port_of(bob)
            longest = 0

            def measure(data: bytes) -> bool:
                nonlocal longest
                longest = max(longest, len(data))
                return True

            proxy.keep = measure
            ours = await soon(alice.connect(target(bob.id, proxy.port)))
            await exchange(ours, await soon(anext(bob)), 1_000_000)
            assert 1200 <= longest <= 1280 - 28


class TestFailures:
    async def test_nobody_there(self) -> None:
        """ICMP says so at once, on Linux."""
        async with nothing_left(), node(listen=[], **UTP) as alice:
            bob = crust.Identity.generate()
            with pytest.raises(NoPathError) as caught, elapsed_below(2):
                await alice.connect(target(bob.id, unused_port()), timeout=5)
            assert caught.value.report is not None
            assert [a.outcome for a in caught.value.report.attempts] == ["refused"]

    async def test_another_key(self) -> None:
        async with node(listen=[], **UTP) as alice, node(**UTP) as bob:
            somebody = crust.Identity.generate()
            with pytest.raises(NoPathError):
                await alice.connect(target(somebody.id, port_of(bob)), timeout=0.6)
            await eventually(lambda: bob.stats["datagram.stranger"] >= 2)
            assert bob.connections == []

    async def test_another_key_over_both(self) -> None:
        """TCP tells; µTP's silence does not hold the answer up for long."""
        async with node(listen=[], **BOTH) as alice, node(**BOTH, handshake_timeout=0.5) as bob:
            somebody = crust.Identity.generate()
            with pytest.raises(NotAuthenticError), elapsed_below(6):
                await alice.connect(target(somebody.id, port_of(bob)), timeout=20)

    async def test_another_network(self) -> None:
        async with node(**UTP, network_name="here") as alice, node(**UTP, network_name="there") as bob:
            with pytest.raises(NetworkMismatchError), elapsed_below(5):
                await alice.connect(await bob.contact())

    async def test_signing_on_one_side_only(self) -> None:
        async with node(**UTP, signing="off") as alice, node(**UTP) as bob:
            with pytest.raises(RefusedError), elapsed_below(5):
                await alice.connect(await bob.contact())

    async def test_cancelled(self) -> None:
        async with nothing_left(), node(listen=[], **UTP) as alice, UdpProxy(9) as proxy:
            arrived = asyncio.Event()
            proxy.keep = lambda data: arrived.set() is not None
            bob = crust.Identity.generate()
            dial = asyncio.create_task(alice.connect(target(bob.id, proxy.port)))
            await soon(arrived.wait())
            dial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dial


class TestIncoming:
    async def test_accept(self) -> None:
        async with node(**UTP) as alice, node(**UTP) as bob:
            knocks = bob.incoming()
            dial = asyncio.create_task(alice.connect(await bob.contact()))
            incoming = await soon(anext(knocks))
            assert incoming.peer == alice.id
            assert incoming.address[0] == "127.0.0.1"
            assert not dial.done()
            theirs = await soon(incoming.accept())
            await exchange(await soon(dial), theirs)

    async def test_decided_late(self) -> None:
        async with node(**UTP) as alice, node(**UTP) as bob:
            knocks = bob.incoming()
            dial = asyncio.create_task(alice.connect(await bob.contact()))
            incoming = await soon(anext(knocks))
            await eventually(lambda: alice.stats["udp.datagrams_sent"] >= 4)  # it has asked again and again
            theirs = await soon(incoming.accept())
            await exchange(await soon(dial), theirs)

    async def test_refuse_and_ignore(self) -> None:
        async with node(**UTP) as alice, node(**UTP) as bob:
            knocks = bob.incoming()
            dial = asyncio.create_task(alice.connect(await bob.contact(), timeout=1.5))
            (await soon(anext(knocks))).refuse()
            with pytest.raises(RefusedError):
                await soon(dial)
        async with node(**UTP) as alice, node(**UTP) as bob:
            knocks = bob.incoming()
            dial = asyncio.create_task(alice.connect(await bob.contact(), timeout=0.6))
            (await soon(anext(knocks))).ignore()
            with pytest.raises(NoPathError):
                await soon(dial)

    async def test_one_question_for_both_transports(self) -> None:
        async with node(**BOTH) as alice, node(**BOTH) as bob:
            knocks = bob.incoming()
            dial = asyncio.create_task(alice.connect(await bob.contact()))
            incoming = await soon(anext(knocks))
            await eventually(lambda: len(incoming._inbounds) == 2)
            theirs = await soon(incoming.accept())
            ours = await soon(dial)
            await exchange(ours, theirs)
            await eventually(lambda: ours.stats["paths"] == theirs.stats["paths"] == 2)
            another = asyncio.ensure_future(anext(knocks))
            queued = asyncio.ensure_future(anext(bob))
            await exchange(ours, theirs)
            assert not another.done()
            assert not queued.done()
            another.cancel()
            queued.cancel()


class TestRace:
    async def test_the_other_stands_by_and_tcp_carries_the_data(self) -> None:
        async with nothing_left(), node(**BOTH) as alice, node(**BOTH) as bob:
            contact = await bob.contact()
            assert [candidate.transport for candidate in contact.candidates] == ["tcp", "utp"]
            events = alice.events()
            ours = await soon(alice.connect(contact))
            theirs = await soon(anext(bob))
            await eventually(lambda: ours.stats["paths"] == theirs.stats["paths"] == 2)
            await exchange(ours, theirs)
            await eventually(lambda: ours.path.transport == theirs.path.transport == "tcp")  # type: ignore[union-attr]
            assert sorted(path.transport for path in ours.paths) == ["tcp", "utp"]
            assert ours.report is not None
            assert sorted(a.outcome for a in ours.report.attempts) == ["standby", "won"]
            kinds = []
            while True:
                try:
                    async with asyncio.timeout(0.1):
                        kinds.append(type(await anext(events)).__name__)
                except TimeoutError:
                    break
            assert kinds == ["PeerConnected"]  # which of them came first is nobody's concern

    async def test_tcp_dies_and_the_standby_takes_over(self) -> None:
        async with node(**BOTH) as alice, node(**BOTH) as bob, Proxy() as proxy:
            proxy.upstream = port_of(bob)
            candidates = (
                crust.Candidate("tcp", "127.0.0.1", proxy.port),
                crust.Candidate("utp", "127.0.0.1", port_of(bob)),
            )
            ours = await soon(alice.connect(crust.Contact(bob.id, candidates)))
            theirs = await soon(anext(bob))
            await eventually(lambda: ours.stats["paths"] == theirs.stats["paths"] == 2)
            await eventually(lambda: ours.path.transport == "tcp")  # type: ignore[union-attr]
            count = 100
            digest, expected = hashlib.sha256(), hashlib.sha256()

            async def send() -> None:
                for number in range(count):
                    data = number.to_bytes(2, "big") * 40_000
                    expected.update(data)
                    await ours.send(data)

            async def receive() -> None:
                for number in range(count):
                    digest.update((await theirs.receive()).data)
                    if number == 20:
                        await proxy.stop()

            await soon(asyncio.gather(send(), receive()), 40)
            assert digest.digest() == expected.digest()
            assert ours.path is not None
            assert ours.path.transport == "utp"

    async def test_tcp_refused(self) -> None:
        async with node(**BOTH) as alice, node(**UTP) as bob:
            with elapsed_below(1):
                ours = await alice.connect(target(bob.id, port_of(bob)))
            assert ours.path is not None
            assert ours.path.transport == "utp"
            await exchange(ours, await soon(anext(bob)))

    async def test_tcp_silent(self) -> None:
        async with node(**BOTH) as alice, node(**UTP) as bob, answering(lambda r, w: r.read()) as silent:
            candidates = (
                crust.Candidate("tcp", "127.0.0.1", silent),
                crust.Candidate("utp", "127.0.0.1", port_of(bob)),
            )
            with elapsed_below(1):
                ours = await alice.connect(crust.Contact(bob.id, candidates))
            assert ours.path is not None
            assert ours.path.transport == "utp"

    async def test_udp_silent(self) -> None:
        async with node(**BOTH) as alice, node(**BOTH) as bob, UdpProxy(9) as hole:
            hole.closed = True
            candidates = (
                crust.Candidate("utp", "127.0.0.1", hole.port),
                crust.Candidate("tcp", "127.0.0.1", port_of(bob)),
            )
            with elapsed_below(1):
                ours = await alice.connect(crust.Contact(bob.id, candidates))
            assert ours.path is not None
            assert ours.path.transport == "tcp"
            assert ours.report is not None
            await eventually(lambda: [a.outcome for a in ours.report.attempts] == ["cancelled", "won"])  # type: ignore[union-attr]

    async def test_udp_refused(self) -> None:
        async with node(**BOTH) as alice, node(transports=["tcp"]) as bob:
            with elapsed_below(1):
                ours = await alice.connect(target(bob.id, port_of(bob)))
            assert ours.path is not None
            assert ours.path.transport == "tcp"

    async def test_restricted(self) -> None:
        async with node(transports=["tcp"]) as alice, node(**BOTH) as bob:
            ours = await soon(alice.connect(await bob.contact()))
            await soon(ours.ping())
            assert ours.stats["paths"] == 1
            assert ours.report is not None
            assert {attempt.transport for attempt in ours.report.attempts} == {"tcp"}

    async def test_both_dial_each_other(self) -> None:
        """One connection, one path of each transport, whoever closes the rest."""
        for _ in range(4):
            async with node(**BOTH) as alice, node(**BOTH) as bob:
                theirs_contact, our_contact = await bob.contact(), await alice.contact()
                ours, theirs = await soon(asyncio.gather(alice.connect(theirs_contact), bob.connect(our_contact)))
                await exchange(ours, theirs, 1000)
                await eventually(lambda: ours.stats["paths"] == theirs.stats["paths"] == 2)  # noqa: B023
                assert alice.connections == [ours]
                assert bob.connections == [theirs]
                await exchange(ours, theirs, 1000)

    async def test_one_identity_twice(self) -> None:
        """Both of its connections have both transports."""
        twin = crust.Identity.generate()
        async with node(**BOTH) as bob, node(twin, **BOTH) as one, node(twin, **BOTH) as two:
            first = await soon(one.connect(await bob.contact()))
            await soon(anext(bob))
            await eventually(lambda: first.stats["paths"] == 2)
            second = await soon(two.connect(await bob.contact()))
            await second.send(b"me too")
            other = await soon(anext(bob))
            assert (await soon(other.receive())).data == b"me too"
            await eventually(lambda: second.stats["paths"] == 2)
            assert len(bob.connections) == 2
            assert bob.stats["connections.duplicate_identity"] == 1
            assert await soon(first.ping()) < 5


class TestTrouble:
    async def test_loss_and_disorder(self) -> None:
        trouble = UdpProxy(delay=0.005, jitter=0.01, loss=0.03)
        async with trouble as proxy, node(**UTP) as alice, node(**UTP) as bob:
            proxy.upstream = port_of(bob)
            ours = await soon(alice.connect(target(bob.id, proxy.port)), 30)
            theirs = await soon(anext(bob), 30)
            for sender, receiver in ((ours, theirs), (theirs, ours)):
                await soon(sender.send(b"q" * 400_000), 40)
                assert (await soon(receiver.receive(), 40)).data == b"q" * 400_000

    @pytest.mark.parametrize("upload", [True, False])
    async def test_the_nat_forgets_in_the_midst_of_a_transfer(self, upload: bool) -> None:
        async with UdpProxy(delay=0.01) as proxy, node(**UTP) as alice, node(**UTP) as bob:
            proxy.upstream = port_of(bob)
            ours = await soon(alice.connect(target(bob.id, proxy.port)))
            theirs = await soon(anext(bob))
            sender, receiver = (ours, theirs) if upload else (theirs, ours)
            before = theirs.path
            assert before is not None
            count, done = 60, 0

            async def send() -> None:
                for number in range(count):
                    await sender.send(bytes([number]) * 60_000)

            async def receive() -> None:
                nonlocal done
                for number in range(count):
                    assert (await receiver.receive()).data == bytes([number]) * 60_000
                    done = number
                    if number in (10, 30):
                        proxy.rebind()

            with elapsed_below(30):
                await soon(asyncio.gather(send(), receive()), 40)
            await eventually(lambda: theirs.path is not None and theirs.path.remote != before.remote)
            # Half a second without progress makes a node dial again; on a busy machine that may happen without need.
            redialled = alice.stats["path.redialled"] + bob.stats["path.redialled"]
            assert bob.stats["tunnel.new_address"] >= 2 or redialled
            assert theirs.stats["paths"] == 1 or redialled

    async def test_a_path_that_goes_silent_is_replaced(self) -> None:
        async with UdpProxy() as proxy, node(**UTP) as alice, node(**UTP) as bob:
            proxy.upstream = port_of(bob)
            candidates = (
                crust.Candidate("utp", "127.0.0.1", proxy.port),
                crust.Candidate("utp", "127.0.0.1", port_of(bob)),
            )
            ours = await soon(alice.connect(crust.Contact(bob.id, candidates[:1])))
            theirs = await soon(anext(bob))
            await alice.connect(crust.Contact(bob.id, candidates))
            await exchange(ours, theirs, 1000)
            proxy.closed = True
            with elapsed_below(15):
                await ours.send(b"over another way")
                assert (await soon(theirs.receive())).data == b"over another way"

    async def test_the_peer_restarts(self) -> None:
        identity = crust.Identity.generate()
        async with node(listen=[], **UTP) as alice:
            bob = node(identity, **UTP)
            await bob.start()
            port = port_of(bob)
            ours = await soon(alice.connect(await bob.contact()))
            await soon(anext(bob))
            for connection in bob.connections:
                connection.abort()
            await bob.close()
            async with node(identity, **{**UTP, "listen": [f"127.0.0.1:{port}"]}) as again:
                await ours.send(b"anybody?")
                with pytest.raises(crust.PeerLost):
                    await soon(ours.receive())
                fresh = await soon(alice.connect(await again.contact()))
                await exchange(fresh, await soon(anext(again)), 1000)
