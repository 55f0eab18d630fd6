"""Crust itself through every kind of place: the part of `make lab` that the suite has time for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from crust.testing.natlab import (
    CrustProgram,
    Host,
    Lab,
    LabUnavailable,
    Nat,
    PairSummary,
    Ports,
    Process,
    Verdict,
    run_matrix,
    summarize,
)
from crust.wire.contact import Contact

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

# Every kind once at least, on either side, and each thing that can be expected of a pair.
PAIRS = [
    ("public", "full-cone"),
    ("full-cone", "address-restricted"),
    ("address-restricted", "port-restricted"),
    ("port-restricted", "port-restricted-random"),
    ("port-restricted-random", "cgnat"),
    ("cgnat", "public"),
    ("same-nat", "same-nat"),
    ("same-nat-hairpin", "same-nat-hairpin"),
    ("udp-blocked", "tcp-reset"),
    ("tcp-reset", "linux-reset"),
    ("linux-reset", "port-restricted"),
    ("port-restricted", "linux-open"),
    ("linux-open", "linux-open"),
    ("ipv6-firewall", "ipv6-firewall"),
    ("tcp-443-only", "public"),
    ("igd-symmetric", "symmetric-random"),
    ("address-dependent", "full-cone"),
    ("symmetric-random", "address-restricted"),
    ("symmetric-sequential", "port-restricted"),
    ("symmetric-sequential", "symmetric-sequential"),
    ("symmetric-random", "symmetric-random"),
]


async def dials(
    lab: Lab, place: Path, pairs: list[tuple[str, str]], transport: str, **options: Any
) -> list[PairSummary]:
    """What came of the pairs; nothing is said about milliseconds, as tests run on busy machines."""
    config = place / "config.toml"
    config.touch()
    wait = 10.0 if options.get("late") else 0.0
    program = CrustProgram(place, options=("--config", str(config)), wait=wait, dead=options.pop("dead", 0))
    matrix = run_matrix(lab, program, pairs=pairs, transports=[transport], check_kinds=False, jobs=3, **options)
    try:
        found = [each async for each in matrix]
    except LabUnavailable as error:
        pytest.skip(str(error))
    summaries = summarize(found)
    lost = [(each.first, each.second) for each in summaries if each.verdict is Verdict.SHOULD_CONNECT]
    reports = [each.result for each in found if (each.first, each.second) in lost and not each.direct]
    assert lost == [], json.dumps(reports)
    return summaries


@pytest.mark.parametrize("transport", ["tcp", "utp"])
async def test_every_kind(lab: Lab, tmp_path: Path, transport: str) -> None:
    found = await dials(lab, tmp_path, PAIRS, transport)
    assert len(found) == len(PAIRS)
    assert all(each.ok == 0 for each in found if not each.expected.direct), found


async def test_random_ports_are_guessed(lab: Lab, tmp_path: Path) -> None:
    await dials(lab, tmp_path, [("symmetric-random", "port-restricted")], "utp")


async def test_races_and_late_peers_and_dead_addresses(lab: Lab, tmp_path: Path) -> None:
    await dials(lab, tmp_path, [("udp-blocked", "cgnat"), ("port-restricted", "symmetric-random")], "any")
    await dials(lab, tmp_path, [("port-restricted", "cgnat"), ("port-restricted", "linux-open")], "any", late=1.5)
    await dials(lab, tmp_path, [("port-restricted", "cgnat")], "any", dead=20, same_ranges=False)


async def _started(host: Host, place: Path, *arguments: str) -> tuple[Process, dict[str, Any]]:
    """A `crust` command with its first line."""
    config = ["--config", str(place / "config.toml"), "--identity", str(place / f"{host.name}.key")]
    process = await host.run_crust(*arguments, "--json", *config, stdin=subprocess.DEVNULL, stderr=None)
    assert process.stdout is not None
    return process, json.loads(await process.stdout.readline())


def _mapping(mappings: list[dict[str, Any]], transport: str, inside: str) -> tuple[int, set[str]]:
    """The outside port of an inside endpoint, and the addresses that it has been used for."""
    protocol = "udp" if transport == "utp" else "tcp"
    [found] = [each for each in mappings if (each["protocol"], each["inside"]) == (protocol, inside)]
    return found["port"], {remote.rpartition(":")[0] for remote in found["remotes"]}


@pytest.mark.parametrize("transport", ["tcp", "utp"])
async def test_the_port_that_was_measured_is_the_port_that_is_used(lab: Lab, tmp_path: Path, transport: str) -> None:
    """Seen by the NATs: one mapping of each side, used towards the rendezvous and towards the peer."""
    (tmp_path / "config.toml").touch()
    middle = await lab.public("rendezvous", ipv6=False)
    homes = [await lab.site(name, Nat(ports=Ports.RANDOM)) for name in ("one", "two")]
    one, two = [await home.host() for home in homes]
    _, rendezvous = await _started(middle, tmp_path, "node")
    only = ["--transport", transport, "--bootstrap", rendezvous["contact"], "--no-port-mapping"]
    node, listening = await _started(two, tmp_path, "node", *only)
    ping, result = await _started(one, tmp_path, "ping", listening["id"], "-c", "1", *only)
    assert "error" not in result, result
    await ping.wait()
    assert result["path"]["transport"] == transport

    [listener] = {each.port for each in Contact.parse(listening["contact"]).candidates if each.host == two.address}
    port, remotes = _mapping(await homes[1].mappings(), transport, f"{two.address}:{listener}")
    assert result["path"]["remote"] == f"{homes[1].address}:{port}"
    assert remotes >= {middle.address, homes[0].address}
    _, remotes = _mapping(await homes[0].mappings(), transport, result["path"]["local"])
    assert remotes >= {middle.address, homes[1].address}
    node.terminate()
    await node.wait()
