"""SSDP answers, descriptions and action responses of routers: whatever they send, there is one kind of error."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crust.errors import RemoteProtocolError
from crust.net import igd as igd_module
from crust.net.igd import Igd, SsdpAnswer, parse_ssdp_untrusted

ROUTER = "192.168.1.1"
ON_LINK = (ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("2001:db8::/64"))
ANSWER = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"SERVER: Debian UPnP/1.1 MiniUPnPd/2.3.1\r\nLOCATION: %s\r\n\r\n"
)

DESCRIPTION = """<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major>
<minor>0</minor></specVersion><device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
<friendlyName>r</friendlyName><UDN>uuid:1</UDN><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><serviceId>i</serviceId>
<SCPDURL>/s.xml</SCPDURL><controlURL>/c</controlURL><eventSubURL>/e</eventSubURL></service></serviceList>
<deviceList><device><deviceType>x</deviceType><serviceList/></device></deviceList></device></root>"""

SCPD = """<?xml version="1.0"?><scpd xmlns="urn:schemas-upnp-org:service-1-0"><actionList><action>
<name>GetExternalIPAddress</name><argumentList><argument><name>NewExternalIPAddress</name><direction>out</direction>
<relatedStateVariable>ExternalIPAddress</relatedStateVariable></argument></argumentList></action></actionList>
<serviceStateTable><stateVariable sendEvents="yes"><name>ExternalIPAddress</name><dataType>string</dataType>
<defaultValue>0</defaultValue></stateVariable></serviceStateTable></scpd>"""

RESPONSE = """<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>
<u:GetExternalIPAddressResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">
<NewExternalIPAddress>203.0.113.9</NewExternalIPAddress></u:GetExternalIPAddressResponse></s:Body></s:Envelope>"""

FAULT = """<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>
<faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError
xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>501</errorCode><errorDescription>no</errorDescription></UPnPError>
</detail></s:Fault></s:Body></s:Envelope>"""


@given(data=st.binary(max_size=300))
def test_any_datagram(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        parse_ssdp_untrusted(data, ROUTER, ON_LINK)


@given(location=st.text(max_size=60) | st.from_regex(r"http://[0-9a-f.:\[\]%@/?#]{0,30}", fullmatch=True))
def test_any_location_leads_to_the_router_or_nowhere(location: str) -> None:
    try:
        answer = parse_ssdp_untrusted(ANSWER % location.encode(errors="replace"), ROUTER, ON_LINK)
    except RemoteProtocolError:
        return
    host = answer.location.removeprefix("http://").rpartition("/")[0].split("/")[0].rpartition(":")[0].strip("[]")
    assert any(ipaddress.ip_address(host) in network for network in ON_LINK)


@pytest.mark.parametrize(
    ("location", "source", "cleaned"),
    [
        ("http://192.168.1.1:5000/rootDesc.xml", ROUTER, "http://192.168.1.1:5000/rootDesc.xml"),
        ("HTTP://192.168.1.7/a?b=c#d", ROUTER, "http://192.168.1.7:80/a?b=c"),
        ("http://192.168.1.1", ROUTER, "http://192.168.1.1:80/"),
        ("http://[2001:db8::1]:5000/x", "fe80::1%3", "http://[2001:db8::1]:5000/x"),
        ("http://[fe80::1]:5000/x", "fe80::1%3", "http://[fe80::1%3]:5000/x"),
        ("http://127.0.0.1:5000/x", "127.0.0.1", "http://127.0.0.1:5000/x"),
    ],
)
def test_good_locations(location: str, source: str, cleaned: str) -> None:
    answer = parse_ssdp_untrusted(ANSWER % location.encode(), source, ON_LINK)
    assert answer == SsdpAnswer(cleaned, source, "Debian UPnP/1.1 MiniUPnPd/2.3.1")


@pytest.mark.parametrize(
    "location",
    [
        "",
        "https://192.168.1.1/",
        "file:///etc/passwd",
        "http://router.local/",
        "http://192.0.2.1/",
        "http://127.0.0.1:6379/",
        "http://169.254.169.254/latest/meta-data",
        "http://192.168.1.1@192.0.2.1/",
        "http://user:password@192.168.1.1/",
        "http://192.168.1.1:99999/",
        "http://192.168.1.1:x/",
        "http://[::1",
        "http://192.168.1.1/a b",
        "http://192.168.1.1/\x01",
        "http://224.0.0.1/",
    ],
)
def test_bad_locations(location: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_ssdp_untrusted(ANSWER % location.encode(), ROUTER, (*ON_LINK, ipaddress.ip_network("224.0.0.0/4")))


@pytest.mark.parametrize(
    "data",
    [
        b"NOTIFY * HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 404 no\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        ANSWER.replace(b"InternetGatewayDevice", b"MediaRenderer") % b"http://192.168.1.1/",
        ANSWER % b"http://192.168.1.1/" + bytes(2048),
    ],
)
def test_answers_of_others(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_ssdp_untrusted(data, ROUTER)


def open_with(documents: list[tuple[int, str]]) -> tuple[Any, str | None]:
    """Open a device whose answers are `documents`, the last one repeated, and ask for its outside address."""
    real = igd_module._import_upnp()
    queue = list(documents)

    class Requester:
        requests = 0

        def __init__(self, *_: object) -> None:
            pass

        async def async_http_request(self, _: object) -> Any:
            self.requests += 1
            if self.requests > 32:
                raise RemoteProtocolError("too many")
            status, body = queue.pop(0) if len(queue) > 1 else queue[0]
            return SimpleNamespace(status_code=status, headers={}, body=body)

        async def close(self) -> None:
            pass

    async def run() -> tuple[Any, str | None]:
        device = await Igd.open("http://192.168.1.1:5000/root.xml", "192.168.1.2")
        return device, await device.external_host()

    real.Requester = Requester
    before, igd_module._loaded[:] = list(igd_module._loaded), [real]
    try:
        return asyncio.run(run())
    finally:
        igd_module._loaded[:] = before


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """A document with a few of its pieces replaced, doubled or removed."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, max(len(text) - 1, 0)))
        end = draw(st.integers(start, min(start + 60, len(text))))
        piece = draw(
            st.sampled_from(["", "<", ">", "&", '"', "</device>", "<device>", "\0", "é", "9" * 30, text[start:end] * 2])
        )
        text = text[:start] + piece + text[end:]
    return text


documents = st.text(max_size=100) | mutated(DESCRIPTION) | mutated(SCPD) | mutated(RESPONSE) | mutated(FAULT)


@settings(max_examples=150)
@given(
    description=mutated(DESCRIPTION) | documents,
    scpd=mutated(SCPD) | documents,
    response=mutated(RESPONSE) | mutated(FAULT) | documents,
    status=st.sampled_from([200, 200, 200, 500, 302]),
)
def test_any_documents(description: str, scpd: str, response: str, status: int) -> None:
    pytest.importorskip("async_upnp_client")
    with contextlib.suppress(RemoteProtocolError):
        _, host = open_with([(200, description), (200, scpd), (status, response)])
        assert host is None or ipaddress.ip_address(host).version == 4


def test_these_documents_are_good_when_whole() -> None:
    pytest.importorskip("async_upnp_client")
    device, host = open_with([(200, DESCRIPTION), (200, SCPD), (200, RESPONSE)])
    assert host == "203.0.113.9"
    assert (device.version, device.name, device.maps_ports, device.makes_pinholes) == (1, "r", True, False)
    with pytest.raises(igd_module.IgdRefusedError) as raised:
        open_with([(200, DESCRIPTION), (200, SCPD), (500, FAULT)])
    assert raised.value.code == 501


@pytest.mark.parametrize("depth", [100, 5000])
def test_deep_documents(depth: int) -> None:
    pytest.importorskip("async_upnp_client")
    inner = "<device><deviceList>" * depth + "</deviceList></device>" * depth
    text = f'<root xmlns="urn:schemas-upnp-org:device-1-0">{inner}</root>'
    with contextlib.suppress(RemoteProtocolError):
        open_with([(200, text)])
