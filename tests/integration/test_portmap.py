"""The port mapper against routers on loopback: PCP and NAT-PMP on a UDP port, a UPnP device in a few lines of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from crust.net import igd as igd_module
from crust.net import portmap as portmap_module
from crust.net.clock import monotonic
from crust.net.interfaces import Gateway, LocalAddress
from crust.net.portmap import PortMapper, PortMapping, PortMapSettings
from tests.portmap_router import OUTSIDE
from tests.portmap_udp import LOOPBACK, udp_router

PORTS = [("tcp", 4000), ("udp", 4000)]


@contextlib.asynccontextmanager
async def mapper(router_port: int, **options: Any) -> AsyncIterator[PortMapper]:
    made = PortMapper(
        PORTS,
        on_change=options.pop("on_change", None),
        gateways=options.pop("gateways", lambda: [LOOPBACK]),
        addresses=options.pop("addresses", list),
        settings=PortMapSettings(
            **{"methods": ("pcp", "nat-pmp"), "router_port": router_port, "announcement_port": 0, **options}
        ),
    )
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def outcomes(made: PortMapper) -> list[tuple[str, str, str]]:
    return [(a.method, a.protocol, a.outcome) for a in made.report().attempts]


async def test_pcp_maps_and_gives_back() -> None:
    told: list[list[PortMapping]] = []
    async with udp_router() as router:
        async with mapper(router.port, on_change=told.append) as made:
            mappings = await made.settled()
            assert [(m.method, m.protocol, m.internal, m.external) for m in mappings] == [
                ("pcp", "tcp", ("127.0.0.1", 4000), (OUTSIDE, 4000)),
                ("pcp", "udp", ("127.0.0.1", 4000), (OUTSIDE, 4000)),
            ]
            assert outcomes(made)[2:] == [("nat-pmp", "tcp", "not needed"), ("nat-pmp", "udp", "not needed")]
            report = made.report()
            assert report.gateways == ["127.0.0.1"]
            assert report.advice == []
            assert report.to_dict()["attempts"][0]["outcome"] == "mapped"
            attempt = report.attempts[0]
            assert attempt.ended_ms is not None
            assert attempt.started_ms is not None
            assert 0 <= attempt.started_ms <= attempt.ended_ms < 1000
            assert len(router.router.mappings) == 2
        assert router.router.mappings == {}
        assert made.mappings == []
        assert [len(mappings) for mappings in told] == [1, 2]


async def test_nat_pmp_where_pcp_is_not_spoken() -> None:
    async with udp_router(speaks=frozenset({"natpmp"})) as router:
        async with mapper(router.port) as made:
            mappings = await made.settled()
            assert {m.method for m in mappings} == {"nat-pmp"}
            assert {m.external for m in mappings} == {(OUTSIDE, 4000)}
            assert [a.detail for a in made.report().attempts if a.method == "pcp"] == ["NAT-PMP only"] * 2
        assert router.router.mappings == {}


async def test_a_refusal_is_explained() -> None:
    async with udp_router(result=2) as router, mapper(router.port) as made:
        assert await made.settled() == []
        assert {outcome for _, _, outcome in outcomes(made)} == {"refused"}
        advice = made.report().advice
        assert advice[0] == "the router 127.0.0.1 answers PCP, but it is switched off for this host: allow it there"
        assert "nat-pmp" in advice[1]


async def test_nobody_listens() -> None:
    async with udp_router() as router:
        port = router.port
    async with mapper(port) as made:
        assert await made.settled() == []
        assert {outcome for _, _, outcome in outcomes(made)} == {"no answer"}
        assert made.report().advice[0].startswith("no router answered")
        assert "nothing listens" in made.report().attempts[0].detail


async def test_nonsense_is_counted_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crust.proto.nat.leases.FIRST_WAIT", 0.02)
    async with udp_router() as router:
        router.mangle = lambda data: b"\xff" + data[1:]
        async with mapper(router.port) as made:
            assert await made.settled() == []
            assert {outcome for _, _, outcome in outcomes(made)} == {"nonsense"}
            assert made.report().ignored["malformed"] > 2
            router.mangle = lambda data: data
            # the engines go on asking, in their own time
            assert made.mappings == []


async def test_a_grant_without_an_outside_address_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portmap_module, "_RACE_SECONDS", 0.1)
    speaks = frozenset({"natpmp"})
    async with (
        udp_router(speaks=speaks, outside="0.0.0.0") as router,
        mapper(router.port, methods=("nat-pmp",)) as made,
    ):
        assert await made.settled() == []
        assert outcomes(made) == [("nat-pmp", "tcp", "no answer"), ("nat-pmp", "udp", "no answer")]


async def test_a_restarted_router_is_found_by_polling() -> None:
    told: list[list[PortMapping]] = []
    async with udp_router() as router, mapper(router.port, on_change=told.append, poll_interval=0.05) as made:
        await made.settled()
        router.router.restart(monotonic())
        router.router.outside = "203.0.113.10"
        await until(lambda: {m.external[0] for m in made.mappings} == {"203.0.113.10"} and len(made.mappings) == 2)
        assert len(router.router.mappings) == 2


async def test_a_restarted_router_is_found_by_its_announcement() -> None:
    async with udp_router() as router, mapper(router.port) as made:
        await made.settled()
        router.router.restart(monotonic())
        announcement = bytes.fromhex("02800000" + "00" * 20)
        made.announced(announcement, ("127.0.0.2", router.port))  # a stranger
        assert router.router.mappings == {}
        made.announced(announcement, ("127.0.0.1", router.port))
        await until(lambda: len(router.router.mappings) == 2)


async def test_announcements_are_heard() -> None:
    async with udp_router() as router, mapper(router.port, announcement_port=0) as made:
        await made.settled()
        [listener, *_] = made._announcements
        router.router.restart(monotonic())
        port = listener.get_extra_info("sockname")[1]
        router.transport.sendto(bytes.fromhex("02800000" + "00" * 20), ("127.0.0.1", port))
        await until(lambda: len(router.router.mappings) == 2)


async def test_a_router_that_goes_away_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that cannot be renewed is lost, and the race begins again."""
    monkeypatch.setattr("crust.proto.nat.leases.FIRST_WAIT", 0.005)
    monkeypatch.setattr("crust.proto.nat.leases.RENEWAL_FLOOR", 0.01)
    told: list[list[PortMapping]] = []
    options = {"on_change": told.append, "retry_interval": 0.05}
    async with udp_router(lifetime=1) as router, mapper(router.port, **options) as made:
        await made.settled()
        router.silent = True
        await until(lambda: told[-1] == [])
        router.silent = False
        await until(lambda: len(made.mappings) == 2)


async def test_no_gateway() -> None:
    async with mapper(1, gateways=list) as made:
        assert await made.settled() == []
        assert made.report().advice == [
            "this machine has no default gateway: there is no router to ask for a port mapping"
        ]


async def test_the_network_changes() -> None:
    gateways: list[Gateway] = []
    told: list[list[PortMapping]] = []
    async with udp_router() as router, mapper(router.port, gateways=lambda: gateways, on_change=told.append) as made:
        assert await made.settled() == []
        gateways.append(LOOPBACK)
        await made.network_changed()
        assert len(await made.settled()) == 2
        gateways.clear()
        await made.network_changed()
        assert router.router.mappings == {}
        assert told[-1] == []
    await made.network_changed()
    assert made.mappings == []


async def test_a_gateway_without_a_route_to_it() -> None:
    addresses = [LocalAddress("2001:db8::5", 64, "eth9"), LocalAddress("fd00::5", 64, "lo")]
    async with mapper(1, gateways=lambda: [Gateway("fe80::1%lo", "lo")], addresses=lambda: addresses) as made:
        assert await made.settled() == []
        assert made.report().attempts == []
    async with mapper(1, gateways=lambda: [Gateway("2001:db8::1", "eth9")], addresses=lambda: addresses) as made:
        assert await made.settled() == []
        assert outcomes(made) == [("pcp", "tcp", "no answer"), ("pcp", "udp", "no answer")]
        assert "cannot send" in made.report().attempts[0].detail


async def test_private_outside_addresses_are_explained() -> None:
    async with udp_router(outside="100.64.1.2") as router, mapper(router.port) as made:
        await made.settled()
        assert "behind another NAT" in made.report().advice[0]


async def test_close_is_bounded_and_survives_a_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crust.net.mapping_methods.RELEASE_SECONDS", 0.05)
    async with udp_router() as router, mapper(router.port) as made:
        await made.settled()
        router.silent = True
        closing = asyncio.create_task(made.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await until(lambda: not made._announcements and made.mappings == [])


# -- UPnP -----------------------------------------------------------------------------------------------------------

SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
FIREWALL = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"


def scpd(**actions: str) -> str:
    """A service description; actions as "in1 in2 > out1"."""
    names: set[str] = set()
    parts = []
    for action, text in actions.items():
        inputs, _, outputs = text.partition(">")
        arguments = ""
        for direction, words in (("in", inputs), ("out", outputs)):
            for name in words.split():
                names.add(name)
                arguments += (
                    f"<argument><name>{name}</name><direction>{direction}</direction>"
                    f"<relatedStateVariable>{name}</relatedStateVariable></argument>"
                )
        parts.append(f"<action><name>{action}</name><argumentList>{arguments}</argumentList></action>")
    types = {
        "NewExternalPort": "ui2",
        "NewInternalPort": "ui2",
        "NewEnabled": "boolean",
        "NewLeaseDuration": "ui4",
        "RemotePort": "ui2",
        "InternalPort": "ui2",
        "Protocol": "ui2",
        "LeaseTime": "ui4",
        "NewLeaseTime": "ui4",
        "UniqueID": "ui2",
        "FirewallEnabled": "boolean",
        "InboundPinholeAllowed": "boolean",
    }
    variables = "".join(
        f'<stateVariable sendEvents="no"><name>{n}</name><dataType>{types.get(n, "string")}</dataType></stateVariable>'
        for n in sorted(names)
    )
    return (
        '<?xml version="1.0"?><scpd xmlns="urn:schemas-upnp-org:service-1-0"><specVersion><major>1</major>'
        f"<minor>0</minor></specVersion><actionList>{''.join(parts)}</actionList>"
        f"<serviceStateTable>{variables}</serviceStateTable></scpd>"
    )


WAN_SCPD = scpd(
    GetExternalIPAddress="> NewExternalIPAddress",
    AddPortMapping="NewRemoteHost NewExternalPort NewProtocol NewInternalPort NewInternalClient NewEnabled "
    "NewPortMappingDescription NewLeaseDuration",
    DeletePortMapping="NewRemoteHost NewExternalPort NewProtocol",
)
FIREWALL_SCPD = scpd(
    GetFirewallStatus="> FirewallEnabled InboundPinholeAllowed",
    AddPinhole="RemoteHost RemotePort InternalClient InternalPort Protocol LeaseTime > UniqueID",
    UpdatePinhole="UniqueID NewLeaseTime",
    DeletePinhole="UniqueID",
)


class UpnpRouter(asyncio.DatagramProtocol):
    """A UPnP gateway: SSDP on one port, HTTP on another, behaviour by attributes."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.mappings: dict[tuple[str, int], tuple[str, int, int]] = {}
        self.pinholes: dict[int, str] = {}
        self.outside = "203.0.113.9"
        self.errors: dict[str, list[int]] = {}
        self.description = ""
        self.body: bytes | None = None
        self.status = 200
        self.pinholes_allowed = True
        self.location = ""
        self.requests: list[str] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.ssdp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self.host, 0))
        self.http = await asyncio.start_server(self._serve, self.host, 0)
        self.http_port = self.http.sockets[0].getsockname()[1]
        self.ssdp_port = self.ssdp.get_extra_info("sockname")[1]
        name = f"[{self.host}]" if ":" in self.host else self.host
        self.location = f"http://{name}:{self.http_port}/root.xml"
        services = "".join(
            f"<service><serviceType>{kind}</serviceType><serviceId>urn:x:{number}</serviceId>"
            f"<SCPDURL>/{number}.xml</SCPDURL><controlURL>/control/{number}</controlURL>"
            f"<eventSubURL>/event</eventSubURL></service>"
            for number, kind in ((1, SERVICE), (2, FIREWALL))
        )
        self.description = (
            '<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major>'
            "<minor>0</minor></specVersion><device>"
            "<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>"
            "<friendlyName>Test router</friendlyName><manufacturer>x</manufacturer><modelName>x</modelName>"
            f"<UDN>uuid:1</UDN><serviceList>{services}</serviceList></device></root>"
        )

    async def stop(self) -> None:
        self.ssdp.close()
        self.http.close()
        await self.http.wait_closed()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.location and b"InternetGatewayDevice:1" in data:
            self.transport.sendto(b"junk", addr)
            self.transport.sendto(
                b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
                + f"LOCATION: {self.location}\r\n\r\n".encode(),
                addr,
            )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)content-length: (\d+)", head)
        body = (await reader.readexactly(int(length[1]))).decode() if length else ""
        path = head.split()[1]
        self.requests.append(path)
        status, reply = self._reply(path, body)
        writer.write(
            f"HTTP/1.1 {status} x\r\nContent-Length: {len(reply)}\r\nLocation: http://192.0.2.1/\r\n"
            "Connection: close\r\n\r\n".encode()
            + reply
        )
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    def _reply(self, path: str, body: str) -> tuple[int, bytes]:
        if self.body is not None:
            return self.status, self.body
        if path == "/root.xml":
            return 200, self.description.encode()
        if path.endswith(".xml"):
            return 200, (WAN_SCPD if path == "/1.xml" else FIREWALL_SCPD).encode()
        action = re.search(r"<u:(\w+)", body)
        assert action is not None
        errors = self.errors.get(action[1])
        if errors:
            code = errors.pop(0)
            return 500, (
                '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>'
                "<faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
                '<UPnPError xmlns="urn:schemas-upnp-org:control-1-0">'
                f"<errorCode>{code}</errorCode><errorDescription>no</errorDescription></UPnPError></detail></s:Fault>"
                "</s:Body></s:Envelope>"
            ).encode()
        arguments = dict(re.findall(r"<(\w+)>([^<]*)</\1>", body))
        results = getattr(self, "do_" + action[1])(arguments)
        service = SERVICE if path.endswith("1") else FIREWALL
        values = "".join(f"<{name}>{value}</{name}>" for name, value in results.items())
        return 200, (
            '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
            f'<u:{action[1]}Response xmlns:u="{service}">{values}</u:{action[1]}Response></s:Body></s:Envelope>'
        ).encode()

    def do_GetExternalIPAddress(self, _: dict[str, str]) -> dict[str, Any]:
        return {"NewExternalIPAddress": self.outside}

    def do_AddPortMapping(self, a: dict[str, str]) -> dict[str, Any]:
        key = (a["NewProtocol"], int(a["NewExternalPort"]))
        self.mappings[key] = (a["NewInternalClient"], int(a["NewInternalPort"]), int(a["NewLeaseDuration"]))
        return {}

    def do_DeletePortMapping(self, a: dict[str, str]) -> dict[str, Any]:
        self.mappings.pop((a["NewProtocol"], int(a["NewExternalPort"])), None)
        return {}

    def do_GetFirewallStatus(self, _: dict[str, str]) -> dict[str, Any]:
        return {"FirewallEnabled": 1, "InboundPinholeAllowed": int(self.pinholes_allowed)}

    def do_AddPinhole(self, a: dict[str, str]) -> dict[str, Any]:
        assert a["RemoteHost"] == ""
        self.pinholes[len(self.pinholes) + 7] = f"{a['Protocol']} {a['InternalClient']} {a['InternalPort']}"
        return {"UniqueID": len(self.pinholes) + 6}

    def do_UpdatePinhole(self, _: dict[str, str]) -> dict[str, Any]:
        return {}

    def do_DeletePinhole(self, a: dict[str, str]) -> dict[str, Any]:
        self.pinholes.pop(int(a["UniqueID"]), None)
        return {}


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
        await until(lambda: len(made.mappings) == 2)
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
        await until(lambda: len(made.mappings) == 2)
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
            await until(lambda: len(made.mappings) == 2)
            assert {m.external for m in made.mappings} == {("::1", 4000)}
            assert sorted(router.pinholes.values()) == ["17 ::1 4000", "6 ::1 4000"]
            router.errors = {"UpdatePinhole": [704]}  # it restarted
            before = len(router.pinholes)
            await until(lambda: len(router.pinholes) > before)
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
        await until(lambda: len(upnp.mappings) == 2)
        upnp.mappings.clear()
        await until(lambda: len(upnp.mappings) == 2)
        upnp.body = b"nonsense"
        await until(lambda: made.mappings == [])
        upnp.body = None
        await until(lambda: len(made.mappings) == 2)
        upnp.http.close()
        await until(lambda: made.mappings == [])


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
