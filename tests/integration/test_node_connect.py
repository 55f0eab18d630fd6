"""Dialling over real sockets: every form of target, and each failure with its own error."""

from __future__ import annotations

import asyncio
import time

import pytest

import crust
from crust.errors import (
    LocalProtocolError,
    NetworkMismatchError,
    NoPathError,
    NotAuthenticError,
    RefusedError,
    SelfDialError,
)
from tests.integration.node_support import (
    Proxy,
    answering,
    config,
    elapsed_below,
    eventually,
    has_ipv6,
    joined,
    node,
    nothing_left,
    port_of,
    soon,
    target,
    unused_port,
)

EVERY_LOOP = True


async def assert_works(ours: crust.Connection, theirs: crust.Connection) -> None:
    await ours.send(b"there")
    await theirs.send(b"back")
    assert (await soon(theirs.receive())).data == b"there"
    assert (await soon(ours.receive())).data == b"back"


class TestTargets:
    async def test_contact(self) -> None:
        async with nothing_left(), joined() as (alice, bob, ours, theirs):
            assert ours.peer == bob.id
            assert theirs.peer == alice.id
            await assert_works(ours, theirs)

    @pytest.mark.parametrize("form", ["contact", "text", "upper", "at"])
    async def test_forms(self, form: str) -> None:
        async with node() as alice, node() as bob:
            contact = await bob.contact()
            forms = {
                "contact": contact,
                "text": str(contact),
                "upper": f"  {str(contact).upper()} \n",
                "at": target(bob.id, port_of(bob)),
            }
            ours = await soon(alice.connect(forms[form]))
            await assert_works(ours, await soon(anext(bob)))

    async def test_name(self) -> None:
        async with node() as alice, node() as bob:
            ours = await soon(alice.connect(target(bob.id, port_of(bob), "localhost")))
            await assert_works(ours, await soon(anext(bob)))

    @pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
    async def test_ipv6(self) -> None:
        async with node() as alice, node(listen=["[::1]:0"]) as bob:
            ours = await soon(alice.connect(target(bob.id, port_of(bob), "::1")))
            assert ours.path is not None
            assert ours.path.remote.startswith("[::1]:")
            await assert_works(ours, await soon(anext(bob)))

    async def test_every_interface_on_a_random_port(self) -> None:
        async with node(listen=None) as alice, node(listen=None) as bob:
            assert len({address.rpartition(":")[2] for address in bob.addresses}) == 1
            ours = await soon(alice.connect(await bob.contact()))
            await assert_works(ours, await soon(anext(bob)))

    async def test_peer_id_alone_after_it_was_reached_once(self) -> None:
        async with node() as alice, node() as bob:
            first = await soon(alice.connect(await bob.contact()))
            await soon(first.close())
            await soon(anext(bob))
            ours = await soon(alice.connect(bob.id))
            await assert_works(ours, await soon(anext(bob)))

    async def test_a_node_that_listens_nowhere_can_dial(self) -> None:
        async with node(listen=[]) as alice, node() as bob:
            assert alice.addresses == []
            ours = await soon(alice.connect(await bob.contact()))
            await assert_works(ours, await soon(anext(bob)))

    async def test_the_first_candidates_are_dead(self) -> None:
        async with node() as alice, node() as bob, answering(lambda r, w: r.read()) as silent:
            candidates = (
                crust.Candidate("tcp", "127.0.0.1", unused_port()),
                crust.Candidate("tcp", "127.0.0.1", silent),
                *(await bob.contact()).candidates,
            )
            with elapsed_below(5):
                ours = await soon(alice.connect(crust.Contact(bob.id, candidates)))
            assert ours.report is not None
            assert [attempt.outcome for attempt in ours.report.attempts] == ["refused", "cancelled", "won"]
            assert ours.report.winner == ours.path
            assert ours.report.elapsed_ms > 0

    @pytest.mark.parametrize("text", ["", "crust", "crust:zzz", "nonsense@127.0.0.1:1", "x" * 10_000])
    async def test_text_that_is_no_target(self, text: str) -> None:
        async with node() as alice:
            with pytest.raises(crust.ParseError):
                await alice.connect(text)


class TestFailures:
    async def test_oneself(self) -> None:
        async with node() as alice:
            for form in (alice.id, await alice.contact(), target(alice.id, 1)):
                with pytest.raises(SelfDialError) as caught:
                    await alice.connect(form)
                assert caught.value.report is not None

    async def test_nothing_listens(self) -> None:
        async with nothing_left(), node() as alice:
            peer = crust.Identity.generate().id
            with elapsed_below(3), pytest.raises(NoPathError) as caught:
                await soon(alice.connect(target(peer, unused_port())))
            report = caught.value.report
            assert report is not None
            assert [attempt.outcome for attempt in report.attempts] == ["refused"]
            assert report.error == str(caught.value)

    async def test_wrong_key(self) -> None:
        async with nothing_left(), node() as alice, node(handshake_timeout=1) as bob:
            other = crust.Identity.generate().id
            with elapsed_below(4), pytest.raises(NotAuthenticError):
                await soon(alice.connect(target(other, port_of(bob))))
            assert bob.stats["handshake.outer_tag"] + bob.stats["handshake.implausible_length"] == 1

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            ({"network_name": "one"}, {"network_name": "two"}),
            ({"network_key": "secret"}, {}),
            ({"network_key": "secret"}, {"network_key": b"another"}),
        ],
    )
    async def test_another_network(self, ours: dict[str, str], theirs: dict[str, str]) -> None:
        async with nothing_left(), node(**ours) as alice, node(**theirs) as bob:
            with elapsed_below(3), pytest.raises(NetworkMismatchError):
                await soon(alice.connect(await bob.contact()))
            assert bob.stats["handshake.network_mismatch"] == 1
            assert not bob.connections

    async def test_the_same_key_in_two_spellings(self) -> None:
        async with node(network_key="secret") as alice, node(network_key=b"secret") as bob:
            await soon(alice.connect(await bob.contact()))

    @pytest.mark.parametrize(
        ("banner", "text"),
        [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
            (b"\x15\x03\x03\x00\x02\x02\x32", "TLS"),
            (b"220 mail.example ESMTP\r\n", "mail"),
            (b"\0" * 1000, "not Crust"),
            (bytes(range(256)) * 8, "not Crust"),
        ],
    )
    async def test_something_else_answers(self, banner: bytes, text: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(banner)
            await writer.drain()
            await reader.read()

        async with nothing_left(), node() as alice, answering(answer) as port:
            with elapsed_below(4), pytest.raises(NotAuthenticError, match=text):
                await soon(alice.connect(target(crust.Identity.generate().id, port), timeout=5))

    @pytest.mark.parametrize("how", ["at once", "after the first message", "with a reset"])
    async def test_something_hangs_up(self, how: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if how != "at once":
                await reader.read(1)
            if how == "with a reset":
                writer.transport.abort()
            else:
                writer.close()
                await reader.read()

        async with nothing_left(), node() as alice, answering(answer) as port:
            with elapsed_below(4), pytest.raises(NotAuthenticError):
                await soon(alice.connect(target(crust.Identity.generate().id, port), timeout=5))

    async def test_silence_ends_with_the_time_limit(self) -> None:
        async with nothing_left(), node() as alice, answering(lambda r, w: r.read()) as port:
            with elapsed_below(2), pytest.raises(NotAuthenticError, match="silent") as caught:
                await soon(alice.connect(target(crust.Identity.generate().id, port), timeout=0.3))
            assert caught.value.report is not None
            assert caught.value.report.elapsed_ms == pytest.approx(300, abs=1000)

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid", "exa mple", "-", "1.2.3.4.5"])
    async def test_names_that_lead_nowhere(self, host: str) -> None:
        async with node() as alice:
            with pytest.raises((NoPathError, crust.ParseError)):
                await soon(alice.connect(target(crust.Identity.generate().id, 4, host), timeout=5))

    async def test_a_name_that_does_not_exist_is_called_so(self) -> None:
        async with node() as alice:
            with pytest.raises(NoPathError, match="the name cannot be resolved"):
                await soon(alice.connect(target(crust.Identity.generate().id, 4, "no-such-host.invalid"), timeout=5))

    async def test_no_address_is_known(self) -> None:
        async with node() as alice:
            with elapsed_below(2), pytest.raises(NoPathError):
                await soon(alice.connect(crust.Identity.generate().id))

    async def test_signing_on_one_side_only(self) -> None:
        async with node(signing="off") as alice, node() as bob:
            with elapsed_below(3), pytest.raises(RefusedError, match="sign"):
                await soon(alice.connect(await bob.contact()))
            assert bob.stats["refused.signing_mismatch"] == 1

    async def test_before_the_start_and_after_the_end(self) -> None:
        alice = node()
        with pytest.raises(LocalProtocolError, match="not started"):
            await alice.connect(crust.Identity.generate().id)
        async with alice:
            pass
        with pytest.raises(LocalProtocolError, match="closed"):
            await alice.connect(crust.Identity.generate().id)
        with pytest.raises(LocalProtocolError, match="once"):
            await alice.start()

    async def test_an_address_that_cannot_be_listened_on(self) -> None:
        async with node() as alice:
            taken = alice.addresses[0]
            with pytest.raises(crust.ConfigError, match=taken):
                await node(listen=[taken]).start()
        with pytest.raises(crust.ConfigError):
            await node(listen=["203.0.113.77:0"]).start()


class TestTogether:
    async def test_connect_again_gives_the_same(self) -> None:
        async with joined() as (alice, bob, ours, theirs):
            assert await soon(alice.connect(await bob.contact())) is ours
            assert await soon(alice.connect(bob.id)) is ours
            assert await soon(bob.connect(alice.id)) is theirs

    async def test_many_at_once_give_the_same(self) -> None:
        async with node() as alice, node() as bob:
            contact = await bob.contact()
            found = await soon(asyncio.gather(*(alice.connect(contact) for _ in range(20))))
            assert len(set(map(id, found))) == 1
            assert bob.stats["connections.accepted"] == 1

    async def test_each_waiter_has_its_own_time_limit(self) -> None:
        async with node() as alice, answering(lambda r, w: r.read()) as port:
            where = target(crust.Identity.generate().id, port)
            patient = asyncio.create_task(alice.connect(where, timeout=20))
            await eventually(lambda: alice._dials)
            with elapsed_below(3), pytest.raises(crust.ConnectError):
                await soon(alice.connect(where, timeout=0.3))
            assert not patient.done()
            patient.cancel()
            await asyncio.wait([patient])

    async def test_cancelled_and_called_again_at_once(self) -> None:
        """Who calls while a cancelled dial is being cleared away must not be cancelled with it."""
        async with nothing_left(), node() as alice, node() as bob:
            contact = await bob.contact()
            for turns in range(12):
                first = asyncio.create_task(alice.connect(contact))
                for _ in range(turns):
                    await asyncio.sleep(0)
                first.cancel()
                await asyncio.wait([first])
                ours = await soon(alice.connect(contact))
                await soon(ours.close())
                await eventually(lambda: not bob.connections and not alice.connections)

    async def test_one_of_two_waiters_is_cancelled(self) -> None:
        limits = {"close_timeout": 0.3}
        async with node(**limits) as alice, node(**limits) as bob, Proxy(port_of(bob)) as proxy:
            proxy.hold()
            where = target(bob.id, proxy.port)
            first, second = (asyncio.create_task(alice.connect(where)) for _ in range(2))
            await eventually(lambda: proxy.accepted)
            first.cancel()
            await asyncio.wait([first])
            proxy.hold(held=False)
            assert (await soon(second)).peer == bob.id

    async def test_the_node_is_closed_meanwhile(self) -> None:
        async with nothing_left(), answering(lambda r, w: r.read()) as port:
            async with node() as alice:
                dial = asyncio.create_task(alice.connect(target(crust.Identity.generate().id, port)))
                await eventually(lambda: alice._dials)
            with pytest.raises(crust.CrustError, match="closed"):
                await soon(dial)

    async def test_simultaneous_dials_end_in_one_connection(self) -> None:
        for n in range(50):
            async with node() as alice, node() as bob:
                contacts = await alice.contact(), await bob.contact()
                ours, theirs = await soon(asyncio.gather(alice.connect(contacts[1]), bob.connect(contacts[0])))
                for m in range(20):
                    await ours.send(b"%d" % m)
                    await theirs.send(b"%d" % -m)
                got = [(await soon(theirs.receive())).data for _ in range(20)]
                back = [(await soon(ours.receive())).data for _ in range(20)]
                assert got == [b"%d" % m for m in range(20)], n
                assert back == [b"%d" % -m for m in range(20)], n
                assert alice.connections == [ours]
                assert bob.connections == [theirs]
                await eventually(lambda: ours.stats["paths"] == theirs.stats["paths"] == 1)  # noqa: B023

    async def test_connect_while_the_last_connection_is_closing(self) -> None:
        """The peer has closed, and our end is not through yet: the new connection has nothing to do with it."""
        async with joined() as (alice, bob, ours, theirs):
            closing = asyncio.create_task(theirs.close())
            with pytest.raises(crust.ConnectionClosed):
                await soon(ours.receive())
            again = await soon(alice.connect(await bob.contact()))
            assert again is not ours
            await soon(closing)
            await assert_works(again, await soon(anext(bob)))
            assert bob.stats["connections.duplicate_identity"] == 0

    async def test_close_and_connect_again_and_again(self) -> None:
        """Who has closed may connect at once, whether the end is through or not."""
        async with node() as alice, node() as bob:
            dialler, other = alice, bob
            for n in range(40):
                ours = await soon(dialler.connect(await other.contact()))
                theirs = await soon(anext(other))
                await assert_works(ours, theirs)
                if n % 3 == 0:
                    ours, theirs = theirs, ours
                    dialler, other = other, dialler
                closing = asyncio.create_task(ours.close())
                await asyncio.sleep(0)
                if n % 5:
                    await soon(closing)
            await asyncio.wait([closing])
            for who in (alice, bob):
                assert who.stats["connections.duplicate_identity"] == 0
                assert who.stats["connections.lost"] == 0


class TestLimits:
    async def test_connections(self) -> None:
        async with node(max_connections=2) as bob:
            contact = await bob.contact()
            async with node() as one, node() as two, node() as three:
                await soon(one.connect(contact))
                last = await soon(two.connect(contact))
                await eventually(lambda: len(bob.connections) == 2)
                with elapsed_below(3), pytest.raises(RefusedError, match="room"):
                    await soon(three.connect(contact))
                assert bob.stats["refused.busy"] == 1
                await soon(last.close())
                await eventually(lambda: len(bob.connections) == 1)
                await soon(three.connect(contact))

    async def test_connections_that_come_at_the_same_time(self) -> None:
        async with node(max_connections=3) as bob:
            contact = await bob.contact()
            nodes = [node(listen=[]) for _ in range(12)]
            for one in nodes:
                await one.start()
            try:
                await soon(asyncio.gather(*(n.connect(contact) for n in nodes), return_exceptions=True))
                await eventually(lambda: bob._acceptor is not None and not bob._acceptor.half_open)
                assert len(bob.connections) <= 3
            finally:
                await asyncio.gather(*(n.close() for n in nodes))

    async def test_accept_queue(self) -> None:
        async with node(accept_queue=2) as bob:
            contact = await bob.contact()
            async with node() as one, node() as two, node() as three:
                await soon(one.connect(contact))
                await soon(two.connect(contact))
                await eventually(lambda: bob.stats["connections.accepted"] == 2)
                with pytest.raises(RefusedError):
                    await soon(three.connect(contact))
                await soon(anext(bob))
                await soon(three.connect(contact))

    async def test_ended_connections_do_not_fill_the_accept_queue(self) -> None:
        async with node(accept_queue=2) as bob:
            contact = await bob.contact()
            for _ in range(4):
                async with node() as one:
                    await soon((await soon(one.connect(contact))).close())
                await eventually(lambda: not bob.connections)


async def test_timing_of_a_dial_is_written_down() -> None:
    async with joined() as (_, bob, ours, theirs):
        report = ours.report
        assert report is not None
        assert report.target == str(bob.id)
        assert report.attempts[-1].outcome == "won"
        assert 0 <= report.attempts[-1].started_ms <= (report.attempts[-1].ended_ms or 0) <= report.elapsed_ms
        assert theirs.report is None
        assert report.to_dict()["winner"]["transport"] == "tcp"


async def test_config_defaults_are_those_of_this_machine() -> None:
    start = time.monotonic()
    async with crust.Node(config=config()) as alice:
        assert alice.config.max_connections == 10_000
    assert time.monotonic() - start < 5
