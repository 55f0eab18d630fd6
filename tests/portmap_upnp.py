"""A UPnP router on loopback, in a few lines of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

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
