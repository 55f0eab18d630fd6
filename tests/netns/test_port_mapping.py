"""The router with miniupnpd: NAT-PMP, PCP and IGD are the real thing, and mappings do open it."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import socket
import struct

import pytest

from crust.testing.natlab import Host, Lab, LabUnavailable, Nat, Router, Site

from .sockets import Datagrams, OpenDatagrams

pytestmark = pytest.mark.netns

_SEARCH = (
    'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
    "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
)


async def router_of(lab: Lab) -> tuple[Site, Host]:
    try:
        site = await lab.site("home", "igd-symmetric")
    except LabUnavailable as error:
        pytest.skip(str(error))
    return site, await site.host()


async def ask(asker: Datagrams, request: bytes, server: tuple[str, int]) -> bytes:
    asker.send(request, server)
    return (await asker.receive())[0]


async def map_by_nat_pmp(asker: Datagrams, gateway: str, inside: int) -> int:
    """Ask for an outside UDP port (RFC 6886 §3.3)."""
    answer = await ask(asker, struct.pack(">BBHHHI", 0, 1, 0, inside, inside, 600), (gateway, 5351))
    _, operation, result, _, port, outside, _ = struct.unpack(">BBHIHHI", answer)
    assert (operation, result, port) == (129, 0, inside)
    return int(outside)


async def test_nat_pmp_opens_a_symmetric_nat_until_it_reboots(near: Lab, datagrams: OpenDatagrams) -> None:
    site, host = await router_of(near)
    assert host.gateway is not None
    asker, listener = await datagrams(host), await datagrams(host)
    stranger = await datagrams(await near.public("stranger"))
    address = await ask(asker, b"\0\0", (host.gateway, 5351))
    assert str(ipaddress.ip_address(address[8:12])) == site.address
    outside = await map_by_nat_pmp(asker, host.gateway, listener.endpoint[1])
    stranger.send(b"let me in", (site.address, outside))
    assert (await listener.receive())[0] == b"let me in"
    await site.reboot()
    stranger.send(b"let me in again", (site.address, outside))
    mapped = await map_by_nat_pmp(asker, host.gateway, listener.endpoint[1])
    stranger.send(b"once more", (site.address, mapped))
    assert (await listener.receive())[0] == b"once more"


async def test_pcp_maps(near: Lab, datagrams: OpenDatagrams) -> None:
    site, host = await router_of(near)
    assert host.gateway is not None
    asker, listener = await datagrams(host), await datagrams(host)
    stranger = await datagrams(await near.public("stranger"))
    # RFC 6887 §7.1, §11.1: version, MAP, lifetime, our address; nonce, UDP, ports, any address.
    own = ipaddress.IPv6Address(f"::ffff:{host.address}").packed
    request = struct.pack(">BBHI", 2, 1, 0, 600) + own + secrets.token_bytes(12)
    request += struct.pack(">B3xHH", 17, listener.endpoint[1], 0) + ipaddress.IPv6Address("::ffff:0:0").packed
    answer = await ask(asker, request, (host.gateway, 5351))
    assert answer[:4] == bytes([2, 0x81, 0, 0])
    outside = int.from_bytes(answer[42:44], "big")
    stranger.send(b"mapped", (site.address, outside))
    assert (await listener.receive())[0] == b"mapped"


async def test_igd_is_found_by_multicast(near: Lab, datagrams: OpenDatagrams) -> None:
    site, host = await router_of(near)
    asker = await datagrams(host)
    answer = (await ask(asker, _SEARCH.encode(), ("239.255.255.250", 1900))).decode()
    location = re.search(r"LOCATION: http://([\d.]+):(\d+)(\S+)", answer, re.IGNORECASE)
    assert location is not None
    address, port, path = location.groups()
    assert address == site.gateway
    loop = asyncio.get_running_loop()
    with await host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        await loop.sock_connect(client, (address, int(port)))
        await loop.sock_sendall(client, f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
        page = b""
        while data := await loop.sock_recv(client, 65536):
            page += data
    assert b"WANIPConnection" in page


async def test_pcp_opens_an_ipv6_pinhole(near: Lab, datagrams: OpenDatagrams) -> None:
    router = Router(kernel=True, nat=Nat(), ipv6=True, port_mapping=True)
    try:
        site = await near.site("home", router)
    except LabUnavailable as error:
        pytest.skip(str(error))
    host, stranger = await site.host(), await near.public("stranger")
    six = [next(each for each in place.addresses if ":" in each) for place in (host, stranger)]
    loop = asyncio.get_running_loop()
    opened = [await place.socket(socket.AF_INET6) for place in (host, host, stranger)]
    listener, asker, caller = opened
    try:
        for each, address in zip(opened, (six[0], six[0], six[1]), strict=True):
            each.bind((address, 0))
        port = listener.getsockname()[1]
        caller.sendto(b"too early", (six[0], port))
        request = struct.pack(">BBHI", 2, 1, 0, 600) + ipaddress.ip_address(six[0]).packed + secrets.token_bytes(12)
        request += struct.pack(">B3xHH", 17, port, port) + bytes(16)
        asker.sendto(request, (f"{site.prefix6}1", 5351))
        async with asyncio.timeout(5):
            answer = await loop.sock_recv(asker, 1100)
            assert answer[:4] == bytes([2, 0x81, 0, 0])
            caller.sendto(b"now", (six[0], port))
            assert await loop.sock_recv(listener, 100) == b"now"
    finally:
        for each in opened:
            each.close()
