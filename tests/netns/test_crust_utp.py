"""Crust over µTP in the lab: round trips counted, firewalls, a laptop that changes networks."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crust.testing.natlab import Host, Lab, LabUnavailable, Process
from tests.commands import CRUST

pytestmark = [pytest.mark.netns, pytest.mark.slow]

ONE_WAY = 0.1
RTT = 2 * ONE_WAY
PORT = 4433

SENDER = """
import asyncio, sys, crust
async def main():
    config = crust.Config(listen=[], transports=["utp"], lan=False, port_mapping=False)
    async with crust.Node(config=config) as node:
        connection = await node.connect(sys.argv[1])
        for number in range(int(sys.argv[2])):
            await connection.send(number.to_bytes(4, "big") * 10_000)
        await connection.flush()
        print(len(connection.paths), flush=True)
        await connection.close()
asyncio.run(main())
"""

RECEIVER = """
import asyncio, sys, time, crust
async def main():
    listen = [f"{address}:4433" for address in sys.argv[1:]]
    config = crust.Config(listen=listen, transports=["utp"], lan=False, port_mapping=False)
    async with crust.Node(config=config) as node:
        print(await node.contact(), flush=True)
        async for connection in node:
            break
        expected, longest, last = 0, 0.0, time.monotonic()
        async for message in connection:
            assert message.data == expected.to_bytes(4, "big") * 10_000
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            expected += 1
            if expected % 50 == 0:
                print(expected, flush=True)
        print("end", expected, round(longest, 3), [path.remote for path in connection.paths], flush=True)
asyncio.run(main())
"""


async def public(lab: Lab, name: str, delay: float) -> Host:
    try:
        return await lab.public(name, delay=delay, ipv6=False)
    except LabUnavailable as error:
        pytest.skip(str(error))


async def line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(40):
        found = await process.stdout.readline()
    if not found:
        _, errors = await process.communicate()
        raise AssertionError(errors.decode())
    return found.decode().strip()


async def start_node(host: Host, place: Path, *options: str) -> str:
    """A node; returns its contact."""
    config = place / "config.toml"
    config.touch()
    listen = f"--listen={host.address}:{PORT}"
    identity = str(place / host.name)
    node = await host.run(
        [*CRUST, "node", "--json", listen, "--identity", identity, "--config", str(config), *options], stderr=None
    )
    found: str = json.loads(await line(node))["contact"]
    return found


async def ping(host: Host, place: Path, contact: str, *options: str) -> dict[str, Any]:
    config, identity = str(place / "config.toml"), str(place / host.name)
    pinging = await host.run(
        [*CRUST, "ping", contact, "--json", "-c", "1", "--identity", identity, "--config", config, *options]
    )
    async with asyncio.timeout(60):
        output, errors = await pinging.communicate()
    assert output, errors.decode()
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


async def firewall(host: Host, *rules: str) -> None:
    """Rules for what leaves and what comes in."""
    script = "table inet filter {\n" + "\n".join(rules) + "\n}\n"
    try:
        nft = await host.run(["nft", "-f", "-"])
    except OSError as error:
        pytest.skip(f"no nft: {error}")
    _, errors = await nft.communicate(script.encode())
    if nft.returncode:
        pytest.skip(f"nft does not work here: {errors.decode()}")


def chain(hook: str, rule: str) -> str:
    return f"chain {hook} {{\ntype filter hook {hook} priority 0; policy accept;\n{rule}\n}}"


class TestRoundTrips:
    """From the call of `connect` to the first echo."""

    async def connect_ms(self, near: Lab, place: Path, transport: str) -> float:
        alice, bob = await public(near, "alice", ONE_WAY / 2), await public(near, "bob", ONE_WAY / 2)
        contact = await start_node(bob, place)
        best = float("inf")
        for _ in range(3):
            found = await ping(alice, place, contact, "--transport", transport)
            assert found["path"]["transport"] == transport
            best = min(best, found["connect_ms"])
        return best / 1000

    async def test_two_over_utp(self, near: Lab, tmp_path: Path) -> None:
        assert 2 * RTT <= await self.connect_ms(near, tmp_path, "utp") < 2.5 * RTT

    async def test_three_over_tcp(self, near: Lab, tmp_path: Path) -> None:
        assert 3 * RTT <= await self.connect_ms(near, tmp_path, "tcp") < 3.5 * RTT

    async def test_the_race_is_as_fast_as_its_winner(self, near: Lab, tmp_path: Path) -> None:
        alice, bob = await public(near, "alice", ONE_WAY / 2), await public(near, "bob", ONE_WAY / 2)
        contact = await start_node(bob, tmp_path)
        found = [await ping(alice, tmp_path, contact) for _ in range(3)]
        assert min(each["connect_ms"] for each in found) / 1000 < 2.5 * RTT
        longer = await ping(alice, tmp_path, contact, "-c", "2")  # the other transport may come up after the first echo
        assert sorted(path["transport"] for path in longer["paths"]) == ["tcp", "utp"]


RULES: dict[str, tuple[str, Sequence[str]]] = {
    "UDP dropped on the way in": ("tcp", (chain("input", "meta l4proto udp drop"),)),
    "UDP dropped on the way out": ("tcp", (chain("output", "meta l4proto udp drop"),)),
    "TCP dropped on the way in": ("utp", (chain("input", "meta l4proto tcp drop"),)),
    "TCP dropped on the way out": ("utp", (chain("output", "meta l4proto tcp drop"),)),
    "TCP answered with RST": ("utp", (chain("input", "meta l4proto tcp reject with tcp reset"),)),
}


@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("side", ["dialler", "listener"])
async def test_firewalls(near: Lab, tmp_path: Path, rules: str, side: str) -> None:
    """The connection is up within a second, over what is left."""
    transport, script = RULES[rules]
    alice, bob = await public(near, "alice", 0.005), await public(near, "bob", 0.005)
    contact = await start_node(bob, tmp_path)
    await firewall(alice if side == "dialler" else bob, *script)
    found = await ping(alice, tmp_path, contact)
    assert found["path"]["transport"] == transport
    assert [path["transport"] for path in found["paths"]] == [transport]
    assert found["connect_ms"] < 1000
    tried = {attempt["transport"]: attempt for attempt in found["report"]["attempts"]}
    assert tried[transport]["outcome"] == "won"
    assert set(tried) == {"tcp", "utp"}


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_a_laptop_changes_networks(near: Lab, who: str) -> None:
    """In the midst of a transfer one side gets another address: the same path goes on, and nothing is lost.

    The receiver listens on every interface, or it could not follow.
    """
    alice, bob = await public(near, "alice", 0.01), await public(near, "bob", 0.01)
    receiver = await bob.run(
        [sys.executable, "-c", RECEIVER, "0.0.0.0" if who == "receiver" else bob.address], stderr=None
    )
    contact = await line(receiver)
    sender = await alice.run([sys.executable, "-c", SENDER, contact, "2000"], stderr=None)
    assert int(await line(receiver)) == 50
    moving = alice if who == "sender" else bob
    before = moving.address
    await moving.move(None)
    assert moving.address != before or not moving.addresses
    while not (found := await line(receiver)).startswith("end"):
        pass
    _, count, longest, *_ = found.split()
    assert int(count) == 2000
    assert float(longest) < 3
    assert await line(sender) in ("1", "2", "3")
