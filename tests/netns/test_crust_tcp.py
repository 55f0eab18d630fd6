"""Crust itself in the lab, over TCP: what endpoint-independent mapping makes possible comes about, every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from crust.testing.natlab import NATS, CrustProgram, Lab, LabUnavailable, expect, run_matrix, summarize

pytestmark = [pytest.mark.netns, pytest.mark.slow]

RING = ["port-restricted", "address-restricted", "cgnat", "full-cone", "port-restricted-random", "udp-blocked"]
"""Each dials the next, so that each kind is on either side once."""

OTHERS = [
    ("public", "port-restricted"),
    ("port-restricted", "tcp-reset"),
    ("same-nat-hairpin", "same-nat-hairpin"),
    ("same-nat", "same-nat"),
]


async def dial(lab: Lab, place: Path, pairs: list[tuple[str, str]]) -> None:
    config = place / "config.toml"
    config.touch()
    program = CrustProgram(place, options=("--config", str(config)))
    try:
        dials = run_matrix(lab, program, pairs=pairs, transports=["tcp"], check_kinds=False)
        found = [each async for each in dials]
    except LabUnavailable as error:
        pytest.skip(str(error))
    assert [each for each in summarize(found) if not each.connected] == [], [each.result for each in found]
    for each in found:
        assert expect(NATS[each.first], NATS[each.second], "tcp").direct
        assert each.path in ("direct", "punched")


@pytest.mark.parametrize("half", [0, 1])
async def test_ring_of_endpoint_independent_mappings(lab: Lab, tmp_path: Path, half: int) -> None:
    pairs = list(zip(RING, [*RING[1:], RING[0]], strict=True))
    await dial(lab, tmp_path, pairs[half::2])


async def test_public_peers_resets_and_neighbours(lab: Lab, tmp_path: Path) -> None:
    await dial(lab, tmp_path, OTHERS)
