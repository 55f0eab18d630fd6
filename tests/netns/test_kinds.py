"""Every kind of place proves itself: what is measured from inside is what was declared."""

from __future__ import annotations

import asyncio

import pytest

from crust.testing.natlab import (
    NATS,
    Behaviour,
    Findings,
    Kind,
    Lab,
    LabUnavailable,
    Nat,
    NotAsDeclared,
    Ports,
    Router,
    measure,
    prove,
)

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("name", NATS)
async def test_a_kind_is_as_declared(near: Lab, name: str) -> None:
    try:
        found = await prove(near, NATS[name])
    except LabUnavailable as error:
        pytest.skip(str(error))
    assert found.tcp.passes
    assert found.udp.passes == (name not in ("udp-blocked", "tcp-443-only"))


async def test_every_mapping_and_filtering_of_the_own_nat(near: Lab) -> None:
    """All at once, which is also a crowd for one lab."""
    kinds = [
        Kind(
            name=f"{mapping}, {filtering}",
            text="",
            routers=(Router(nat=Nat(mapping=mapping, filtering=filtering, ports=Ports.RANDOM)),),
        )
        for mapping in Behaviour
        for filtering in Behaviour
    ]
    await asyncio.gather(*(prove(near, kind) for kind in kinds))


async def test_a_lie_is_found_out(near: Lab) -> None:
    """The probe is no use if it believes whatever was declared."""
    truth = Kind(name="truth", text="", routers=(Router(nat=Nat(filtering=Behaviour.ADDRESS_DEPENDENT)),))
    lie = Kind(
        name="lie", text="", routers=(Router(nat=Nat(mapping="address-dependent", ports="random", refuse=True)),)
    )
    host = await near.place(truth)
    differences = (await measure(near, host)).differences(Findings.expected(lie))
    assert differences == [
        "udp mapping: endpoint-independent, not address-dependent",
        "udp filtering: address-dependent, not address-and-port-dependent",
        "udp ports: preserving, not random",
        "tcp mapping: endpoint-independent, not address-dependent",
        "tcp filtering: address-dependent, not address-and-port-dependent",
        "tcp ports: preserving, not random",
        "tcp refuse: False, not True",
    ]


async def test_a_place_that_is_not_as_declared_is_refused(near: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Kind(name="pretended", text="", routers=(Router(nat=Nat(hairpinning=True)),))
    real = Kind(name="real", text="", routers=(Router(nat=Nat()),))
    place = near.place
    monkeypatch.setattr(near, "place", lambda _kind, **options: place(real, **options))
    with pytest.raises(NotAsDeclared, match="pretended: udp hairpinning: False, not True; tcp hairpinning"):
        await prove(near, pretended)
