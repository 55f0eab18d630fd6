"""The port mapper against a UPnP router on loopback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crust.net import igd as igd_module
from crust.net.clock import monotonic
from crust.net.interfaces import Gateway, LocalAddress
from tests.integration.portmap_support import mapper, outcomes
from tests.portmap_router import OUTSIDE
from tests.portmap_udp import udp_router
from tests.portmap_upnp import UpnpRouter
from tests.waiting import eventually


@pytest.fixture
async def upnp() -> AsyncIterator[UpnpRouter]:
    pytest.importorskip("async_upnp_client")
    router = UpnpRouter()
    await router.start()
    yield router
    await router.stop()


def igd_options(router: UpnpRouter, **options: Any) -> dict[str, Any]:
    settings = {"methods": ("igd",), "ssdp": (router.ssdp_port, router.host), "search_timeout": 0.5}
    return {**settings, **options}


async def test_igd_maps_and_gives_back(upnp: UpnpRouter) -> None:
    async with mapper(1, **igd_options(upnp)) as made:
        mappings = await made.settled()
        await eventually(lambda: len(made.mappings) == 2)
        assert [(m.method, m.external) for m in mappings][:1] == [("igd", (OUTSIDE, 4000))]
        assert upnp.mappings == {
            ("TCP", 4000): ("127.0.0.1", 4000, 7200),
            ("UDP", 4000): ("127.0.0.1", 4000, 7200),
        }
    assert upnp.mappings == {}


async def test_igd_is_the_last_choice_but_is_looked_for_at_once(upnp: UpnpRouter) -> None:
    async with udp_router() as router:
        async with mapper(router.port, **igd_options(upnp, methods=("pcp", "nat-pmp", "igd"))) as made:
            assert {m.method for m in await made.settled()} == {"pcp"}
            assert upnp.mappings == {}
        router.silent = True
        async with mapper(router.port, **igd_options(upnp, methods=("pcp", "nat-pmp", "igd"))) as made:
            began = monotonic()
            assert {m.method for m in await made.settled()} == {"igd"}
            assert monotonic() - began < 3


async def test_igd_quirks(upnp: UpnpRouter) -> None:
    """Another's port, a router that knows only permanent mappings, one that wants equal ports."""
    upnp.errors = {"AddPortMapping": [718, 725]}
    async with mapper(1, **igd_options(upnp)) as made:
        await made.settled()
        await eventually(lambda: len(made.mappings) == 2)
        ports = {m.protocol: m.external[1] for m in made.mappings}
        assert ports["tcp"] != 4000
        assert ports["udp"] == 4000
        assert upnp.mappings["TCP", ports["tcp"]] == ("127.0.0.1", 4000, 0)
    assert upnp.mappings == {}
    device = await igd_module.Igd.open(upnp.location, "127.0.0.1")
    upnp.errors = {"AddPortMapping": [724]}
    assert await device.map("tcp", "127.0.0.1", 4000, 5000, 60) == (4000, 60)
    upnp.errors = {"AddPortMapping": [718, 718]}
    with pytest.raises(igd_module.IgdRefusedError) as raised:
        await device.map("tcp", "127.0.0.1", 4000, 5000, 60, other_ports=[5001])
    assert raised.value.code == 718
    upnp.errors = {"AddPortMapping": [725, 501]}
    with pytest.raises(igd_module.IgdRefusedError):
        await device.map("tcp", "127.0.0.1", 4000, 5000, 60, other_ports=[5001])
    upnp.outside = "nonsense"
    assert await device.external_host() is None
    await device.close()


async def test_igd_pinholes(upnp: UpnpRouter) -> None:
    device = await igd_module.Igd.open(upnp.location, "127.0.0.1")
    assert device.makes_pinholes
    assert device.version == 1
    assert await device.pinholes_allowed()
    pinhole = await device.add_pinhole("udp", "2001:db8::5", 4000, 3600)
    assert upnp.pinholes == {pinhole: "17 2001:db8::5 4000"}
    await device.update_pinhole(pinhole, 3600)
    await device.delete_pinhole(pinhole)
    assert upnp.pinholes == {}
    upnp.errors = {"UpdatePinhole": [704]}
    with pytest.raises(igd_module.IgdRefusedError):
        await device.update_pinhole(pinhole, 3600)
    await device.close()


@contextlib.asynccontextmanager
async def ipv6_router() -> AsyncIterator[UpnpRouter]:
    pytest.importorskip("async_upnp_client")
    router = UpnpRouter("::1")
    try:
        await router.start()
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback: {error}")
    try:
        yield router
    finally:
        await router.stop()


IPV6 = {
    "gateways": lambda: [Gateway("::1", "lo")],
    "addresses": lambda: [LocalAddress("::1", 128, "lo")],
}


async def test_pinholes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crust.net.mapping_methods._IGD_REFRESH", 0.02)
    async with ipv6_router() as router:
        async with mapper(1, **IPV6, **igd_options(router)) as made:
            await made.settled()
            await eventually(lambda: len(made.mappings) == 2)
            assert {m.external for m in made.mappings} == {("::1", 4000)}
            assert sorted(router.pinholes.values()) == ["17 ::1 4000", "6 ::1 4000"]
            router.errors = {"UpdatePinhole": [704]}  # it restarted
            before = len(router.pinholes)
            await eventually(lambda: len(router.pinholes) > before)
        assert len(router.pinholes) == 1  # the one that the router itself forgot


async def test_pinholes_that_the_router_does_not_allow() -> None:
    async with ipv6_router() as router:
        router.pinholes_allowed = False
        async with mapper(1, **IPV6, **igd_options(router)) as made:
            assert await made.settled() == []
            assert "does not let hosts open" in made.report().attempts[0].detail


@pytest.mark.parametrize(
    ("code", "outside", "outcome"), [(606, OUTSIDE, "refused"), (718, OUTSIDE, "refused"), (0, "0.0.0.0", "refused")]
)
async def test_igd_refuses(upnp: UpnpRouter, code: int, outside: str, outcome: str) -> None:
    upnp.errors = {"AddPortMapping": [code] * 10}
    upnp.outside = outside
    async with mapper(1, **igd_options(upnp)) as made:
        assert await made.settled() == []
        assert {o for _, _, o in outcomes(made)} == {outcome}
        assert "igd" in made.report().advice[0]


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b"<html>", "nonsense"),
        (404, b"", "nonsense"),
        (302, b"", "nonsense"),
        (200, b"", "nonsense"),
        (200, b"<?xml version='1.0'?><root xmlns='urn:schemas-upnp-org:device-1-0'/>", "nonsense"),
        (200, b"<a>" * 20_000, "nonsense"),
        (200, b"x" * 300_000, "nonsense"),
        (200, b'<!DOCTYPE r [<!ENTITY a "b">]><r>&a;</r>', "nonsense"),
        (
            200,
            b"<root xmlns='urn:schemas-upnp-org:device-1-0'><device><serviceList><service><serviceType>x</serviceType>"
            b"<SCPDURL>http://192.0.2.1/</SCPDURL></service></serviceList></device></root>",
            "not spoken",
        ),
        (
            200,
            b"<root xmlns='urn:schemas-upnp-org:device-1-0'><device><deviceType>d</deviceType></device></root>",
            "not spoken",
        ),
    ],
)
async def test_igd_nonsense(upnp: UpnpRouter, status: int, body: bytes, outcome: str) -> None:
    upnp.status, upnp.body = status, body
    async with mapper(1, **igd_options(upnp)) as made:
        assert await made.settled() == []
        assert {o for _, _, o in outcomes(made)} == {outcome}
        assert len(upnp.requests) < 3


async def test_igd_restarts_or_goes_away(upnp: UpnpRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crust.net.mapping_methods._IGD_REFRESH", 0.02)
    async with mapper(1, **igd_options(upnp, retry_interval=0.05)) as made:
        await made.settled()
        await eventually(lambda: len(upnp.mappings) == 2)
        upnp.mappings.clear()
        await eventually(lambda: len(upnp.mappings) == 2)
        upnp.body = b"nonsense"
        await eventually(lambda: made.mappings == [])
        upnp.body = None
        await eventually(lambda: len(made.mappings) == 2)
        upnp.http.close()
        await eventually(lambda: made.mappings == [])


async def test_igd_that_nobody_serves(upnp: UpnpRouter) -> None:
    upnp.http.close()
    async with mapper(1, **igd_options(upnp)) as made:
        assert await made.settled() == []
        assert "cannot be fetched" in made.report().attempts[0].detail
    upnp.location = ""
    async with mapper(1, **igd_options(upnp)) as made:
        assert await made.settled() == []
        assert "no UPnP router answered" in made.report().attempts[0].detail


async def test_without_the_extra(upnp: UpnpRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(igd_module, "_loaded", [])
    monkeypatch.setitem(sys.modules, "async_upnp_client", None)
    monkeypatch.setitem(sys.modules, "async_upnp_client.client", None)
    async with mapper(1, **igd_options(upnp)) as made:
        assert await made.settled() == []
        assert {o for _, _, o in outcomes(made)} == {"skipped"}
        assert "pip install" in made.report().advice[0]


async def test_too_many_documents(upnp: UpnpRouter) -> None:
    service = "<service><serviceType>x</serviceType><SCPDURL>/1.xml</SCPDURL></service>"
    upnp.description = upnp.description.replace("<serviceList>", "<serviceList>" + service * 100)
    async with mapper(1, **igd_options(upnp)) as made:
        assert await made.settled() == []
        assert "more than 32 documents" in made.report().attempts[0].detail
        assert len(upnp.requests) == 32
