"""`crust` on the hosts of a lab."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from crust.testing.natlab import Host, Process
from tests.commands import CRUST


async def start(host: Host, place: Path, command: str, *options: str) -> Process:
    """Start a command with an identity of the host's own, and none of this machine's configuration."""
    place.joinpath("config.toml").touch()
    own = ["--identity", str(place / host.name), "--config", str(place / "config.toml")]
    return await host.run([*CRUST, command, "--json", *own, *options], stderr=None)


async def record(process: Process) -> dict[str, Any]:
    """The next object that a command prints."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        found: dict[str, Any] = json.loads(await process.stdout.readline())
    return found
