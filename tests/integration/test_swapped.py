"""Contacts swapped by hand: both sides dial within a minute or so, and nobody tells them when to begin."""

from __future__ import annotations

import asyncio
import time

import pytest

import crust
from crust.net.stun_service import StunService
from crust.types import Candidate

from .node_support import eventually, node, port_of, soon, unused_port

EVERY_LOOP = True


@pytest.mark.parametrize("transport", ["tcp", "utp"])
async def test_the_peer_comes_later(transport: str) -> None:
    """A refusal now does not mean that nobody will be there."""
    identity = crust.Identity.generate()
    settings = {"listen": [f"127.0.0.1:{unused_port()}"], "transports": [transport]}
    async with node(identity, **settings) as bob:
        contact = await bob.contact()
    async with node(transports=[transport]) as alice:
        dial = asyncio.create_task(alice.connect(contact, swapped=True, timeout=30))
        await eventually(lambda: alice.stats["connections.dialled"] or alice._dials._feeds)
        async with node(identity, **settings) as bob:
            back = asyncio.create_task(bob.connect(await alice.contact(), swapped=True, timeout=30))
            connection = await soon(dial, 30)
            assert connection.peer == bob.id
            assert (await soon(back, 30)).peer == alice.id
            await soon(connection.ping())


async def test_without_the_word_a_refusal_ends_the_dial_at_once() -> None:
    async with node() as alice:
        port = unused_port()
        contact = crust.Contact(crust.Identity.generate().id, (Candidate("tcp", "127.0.0.1", port),))
        started = time.monotonic()
        with pytest.raises(crust.ConnectError):
            await alice.connect(contact, timeout=20)
        assert time.monotonic() - started < 5


async def test_stun_servers_tell_outside_addresses_of_the_listening_port() -> None:
    service = StunService(lambda _: None)
    await service.open(["127.0.0.1:0"])
    try:
        servers = ["{}:{}".format(*service.addresses[0]), "127.0.0.1:1"]  # one is down
        async with node(transports=["tcp", "utp"], stun_servers=servers) as alice:
            await soon(alice._premises._outside.settled(20))
            seen = {(c.transport, c.host, c.port) for c in alice._premises._outside.candidates}
            assert seen == {(t, "127.0.0.1", port_of(alice)) for t in ("tcp", "utp")}
            assert alice.stats["addresses.changed"] == 2
    finally:
        service.close()


async def test_a_stun_server_that_does_not_exist() -> None:
    async with node(stun_servers=["no-such-host.invalid:3478"]) as alice:
        assert (await soon(alice.contact(patience=20))).candidates


async def test_the_service_of_a_node() -> None:
    async with (
        node(stun_service=["127.0.0.1:0"]) as server,
        node(stun_servers=["{}:{}".format(*server._premises.stun_addresses[0])]) as client,
    ):
        await soon(client.contact(patience=20))
        assert [c.kind for c in client._premises._outside.candidates] == ["server-reflexive"]
        assert server.stats["stun.answered"] == 1


async def test_a_service_whose_port_is_taken() -> None:
    async with node(stun_service=["127.0.0.1:0"]) as server:
        host, port = server._premises.stun_addresses[0]
        with pytest.raises(crust.ConfigError, match="stun_service"):
            await node(stun_service=[f"{host}:{port}"]).start()
