"""What a node learns of real and simulated NATs from one rendezvous with one address and one port."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from crust.testing.natlab import NATS, CrustProgram, Lab, LabUnavailable
from tests.commands import CRUST

pytestmark = [pytest.mark.netns, pytest.mark.slow]

LEARNER = """
import asyncio, json, sys, crust
async def main():
    config = crust.Config(bootstrap=[sys.argv[1]], lan=False, port_mapping=False)
    async with crust.Node(config=config) as node:
        await node.bootstrapped()
        known = node._neighbourhood.surroundings
        while not all(known.verdict(t).mapping and known.verdict(t).filtering for t in ("tcp", "utp")):
            await asyncio.sleep(0.01)
        told = {}
        for transport, standing in (await known.prepare()).items():
            verdict, prediction = standing.verdict, standing.prediction
            told[transport] = {
                "mapping": verdict.mapping.name, "filtering": verdict.filtering.name, "translated": verdict.translated,
                "allocation": verdict.allocation.name, "step": verdict.step,
                "predicted": prediction is not None, "meeting": len(standing.meeting),
            }
        print(json.dumps(told), flush=True)
asyncio.run(main())
"""

EASY = {"mapping": "ENDPOINT_INDEPENDENT", "translated": True, "step": 0, "predicted": False, "meeting": 0}
STRICT, HOST = "ADDRESS_AND_PORT_DEPENDENT", "ADDRESS_DEPENDENT"
KINDS: dict[str, dict[str, Any]] = {
    "public": {**EASY, "translated": False, "filtering": HOST, "allocation": "PRESERVING"},
    "address-restricted": {**EASY, "filtering": HOST, "allocation": "PRESERVING"},
    "port-restricted": {**EASY, "filtering": STRICT, "allocation": "PRESERVING"},
    "cgnat": {**EASY, "filtering": STRICT, "allocation": "RANDOM"},
    "linux-open": {**EASY, "filtering": STRICT, "allocation": "PRESERVING"},
    "symmetric-sequential": {
        "mapping": STRICT,
        "filtering": STRICT,
        "translated": True,
        "allocation": "SEQUENTIAL",
        "step": 1,
        "predicted": True,
        "meeting": 4,
    },
    "symmetric-random": {
        "mapping": STRICT,
        "filtering": STRICT,
        "translated": True,
        "allocation": "RANDOM",
        "step": 0,
        "predicted": False,
        "meeting": 0,
    },
}


async def test_one_rendezvous_is_enough(lab: Lab, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.touch()
    program = CrustProgram(tmp_path, options=("--config", str(config)))
    try:
        middle = await lab.public("rendezvous")
        places = {kind: await lab.place(NATS[kind], f"{kind}-site") for kind in KINDS}
    except LabUnavailable as error:
        pytest.skip(str(error))
    command = program.rendezvous(middle)
    node = await middle.run([*CRUST, *command[command.index("node") :]])
    assert node.stdout is not None
    async with asyncio.timeout(20):
        contact = json.loads(await node.stdout.readline())["contact"]
    for kind, expected in KINDS.items():
        learner = await places[kind].run([sys.executable, "-c", LEARNER, contact])
        async with asyncio.timeout(20):
            output, errors = await learner.communicate()
        assert output, (kind, errors.decode())
        told = json.loads(output)
        assert told == {"tcp": expected, "utp": expected}, kind
