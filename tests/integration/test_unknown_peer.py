"""Dialling a peer whom nobody knows: said within five seconds, whatever else is dead."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import crust
from crust.types import Candidate

from .node_support import answering, node, soon, target, unused_port

STRANGER = crust.Identity.generate().id


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take everything, say nothing."""
    while await reader.read(65536):
        pass


async def fails(dialler: crust.Node, wanted: Any) -> crust.ConnectError:
    started = time.monotonic()
    with pytest.raises(crust.ConnectError) as failure:
        await soon(dialler.connect(wanted, timeout=30))
    assert time.monotonic() - started < 5
    assert failure.value.report is not None
    return failure.value


async def test_a_rendezvous_that_does_not_know_the_peer() -> None:
    async with node() as rendezvous, node(bootstrap=[str(await rendezvous.contact())]) as alice:
        error = await fails(alice, STRANGER)
        assert "no rendezvous that we are connected to knows this peer" in str(error)
        assert error.report is not None
        assert "the same bootstrap nodes" in error.report.advice[0]


async def test_one_that_is_down() -> None:
    dead = target(crust.Identity.generate().id, unused_port())
    async with node(bootstrap=[dead]) as alice:
        assert "no rendezvous is connected" in str(await fails(alice, STRANGER))


async def test_one_that_is_silent() -> None:
    """It may have hung, or be something else: it is not waited for in each dial."""
    async with answering(silent) as port, node(bootstrap=[target(crust.Identity.generate().id, port)]) as alice:
        assert "no rendezvous is connected" in str(await fails(alice, STRANGER))


async def test_one_that_is_silent_beside_one_that_does_not_know_the_peer() -> None:
    async with answering(silent) as port, node() as rendezvous:
        known = [target(crust.Identity.generate().id, port), str(await rendezvous.contact())]
        async with node(bootstrap=known) as alice:
            await fails(alice, STRANGER)


async def test_with_dead_addresses_too() -> None:
    async with answering(silent) as port, node(transports=["tcp", "utp"]) as rendezvous:
        dead = (
            Candidate("tcp", "127.0.0.1", port),
            Candidate("tcp", "127.0.0.1", unused_port()),
            Candidate("utp", "127.0.0.1", unused_port()),
        )
        async with node(transports=["tcp", "utp"], bootstrap=[str(await rendezvous.contact())]) as alice:
            error = await fails(alice, crust.Contact(STRANGER, dead))
            assert error.report is not None
            assert len(error.report.attempts) == 3


async def test_a_contact_whose_rendezvous_is_silent() -> None:
    async with answering(silent) as port, node() as alice:
        server = crust.Contact(crust.Identity.generate().id, (Candidate("tcp", "127.0.0.1", port),))
        await fails(alice, crust.Contact(STRANGER, (), (server,)))
