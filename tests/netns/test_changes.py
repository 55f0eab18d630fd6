"""A node changes networks: its rendezvous sees it at the new address, and peers reach it there."""

from __future__ import annotations

from pathlib import Path

import pytest

from crust.testing.natlab import Lab, LabUnavailable

from .commands import record, start

pytestmark = [pytest.mark.netns, pytest.mark.slow]


@pytest.mark.parametrize("transport", ["tcp", "utp"])
async def test_a_node_behind_a_nat_moves_behind_another(lab: Lab, tmp_path: Path, transport: str) -> None:
    server = await lab.public("rendezvous")
    rendezvous = (await record(await start(server, tmp_path, "node", "--no-port-mapping")))["contact"]
    options = ("--bootstrap", rendezvous, "--transport", transport)
    try:
        here, there = await lab.place("port-restricted"), await lab.site("there", "port-restricted", lan="10.7.0.0/24")
        caller = await lab.place("port-restricted")
    except LabUnavailable as error:
        pytest.skip(str(error))
    moving = await start(here, tmp_path, "node", *options)
    peer = (await record(moving))["id"]
    await here.move(there)
    found = await record(
        await start(caller, tmp_path, "ping", peer, "-c", "1", "--wait", "40", "--timeout", "4", *options)
    )
    assert found["path"]["remote"].partition(":")[0] == there.address
    assert found["connect_ms"] < 4000
