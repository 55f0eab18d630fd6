"""UPnP Internet Gateway Devices: port mappings for IPv4 (IGD v1 and v2), pinholes for IPv6.

The search is our own, since it can stop at the first answer; descriptions and actions go through `async-upnp-client`
(extra `upnp`), which is imported, in a thread, only when a router has answered the search: it takes half a second.

What a router sends is a stranger's word. The description must lie on the router that answered or on-link; every HTTP
request goes to that one host, is not redirected, and is bounded in time, size and number. Whatever comes back, what is
raised is `RemoteProtocolError` (with `IgdRefusedError` for a refusal), `OSError` or `TimeoutError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from crust.errors import RemoteProtocolError
from crust.net.interfaces import Gateway, IpNetwork
from crust.proto.nat.leases import IpProtocol, is_outside

__all__ = ["Igd", "IgdRefusedError", "SsdpAnswer", "UpnpMissingError", "parse_ssdp_untrusted", "search_igd"]

T = TypeVar("T")

SSDP_PORT = 1900
_SSDP_GROUPS = {4: "239.255.255.250", 6: "ff02::c"}
_SSDP_TTL = 2  # UPnP Device Architecture 1.1 §1.3.2
_SSDP_REPEAT = 0.2  # ours: the second datagram, in case the first is lost
_SSDP_TARGETS = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",  # v2 devices answer too
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",  # some answer only to their own version
)
_MAX_SSDP_BYTES = 2048
_MAX_ANSWERS = 16

_HTTP_SECONDS = 5.0
_MAX_HTTP_BYTES = 256 * 1024
_MAX_HTTP_REQUESTS = 32  # for one description; miniupnpd takes 6
DESCRIPTION = "crust"

_WAN_SERVICES = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
_FIREWALL_SERVICE = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"

# UPnP WANIPConnection:2 §2.5.18 and Device Architecture §3.2.2
_CONFLICT = 718
_SAME_PORTS_ONLY = 724
_PERMANENT_ONLY = 725
_PROTOCOL_NUMBERS: dict[IpProtocol, int] = {"tcp": 6, "udp": 17}


class UpnpMissingError(Exception):
    """`async-upnp-client` is not installed."""


class IgdRefusedError(RemoteProtocolError):
    """The router refused an action.

    Attributes:
        code: the UPnP error code, or 0.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class SsdpAnswer:
    """A router that answered the search.

    Attributes:
        location: URL of its description; the host is numeric.
        source: the host that answered.
        server: what it calls itself.
    """

    location: str
    source: str
    server: str = ""


def parse_ssdp_untrusted(data: bytes, source: str, on_link: Iterable[IpNetwork] = ()) -> SsdpAnswer:
    """Read an answer to M-SEARCH (UPnP Device Architecture 1.1 §1.3.3).

    Args:
        data: one datagram.
        source: the host that it came from, with its zone if link-local.
        on_link: prefixes that the description may lie in, besides `source` itself.

    Raises:
        RemoteProtocolError: not an answer of a gateway device, or its description lies elsewhere.
    """
    if len(data) > _MAX_SSDP_BYTES:
        raise RemoteProtocolError(f"SSDP answer of {len(data)} bytes")
    lines = data.decode("latin-1").split("\r\n")
    status = lines[0].split(None, 2)
    if len(status) < 2 or not status[0].upper().startswith("HTTP/1.") or status[1] != "200":
        raise RemoteProtocolError("not an SSDP answer")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    if ":InternetGatewayDevice:" not in headers.get("st", ""):
        raise RemoteProtocolError("not a gateway device")
    return SsdpAnswer(_check_location(headers.get("location", ""), source, on_link), source, headers.get("server", ""))


def _check_location(location: str, source: str, on_link: Iterable[IpNetwork]) -> str:
    """The description's URL, on the router or on-link: else we would fetch whatever a stranger names."""
    try:
        if not location.isascii() or not location.isprintable() or " " in location:
            raise ValueError("odd characters")
        parts = urlsplit(location)
        host = ipaddress.ip_address((parts.hostname or "").partition("%")[0])
        port = parts.port or 80
    except ValueError as error:
        raise RemoteProtocolError(f"description at {location!r}") from error
    plain, _, zone = source.partition("%")
    if parts.scheme != "http" or parts.username is not None or parts.password is not None:
        raise RemoteProtocolError(f"description at {location!r}")
    if str(host) != plain and not any(host in network for network in on_link):
        raise RemoteProtocolError(f"description at {host}, which is not {source}")
    if host.is_multicast or host.is_unspecified or host.is_loopback != ipaddress.ip_address(plain).is_loopback:
        raise RemoteProtocolError(f"description at {host}")
    text = f"[{host}{'%' + zone if zone and host.is_link_local else ''}]" if host.version == 6 else str(host)
    query = f"?{parts.query}" if parts.query else ""
    return f"http://{text}:{port}{parts.path or '/'}{query}"


async def search_igd(
    gateway: Gateway,
    local_host: str,
    *,
    on_link: Sequence[IpNetwork] = (),
    timeout: float = 2.0,
    port: int = SSDP_PORT,
    group: str | None = None,
) -> list[SsdpAnswer]:
    """Look for gateway devices; over once the default gateway answered.

    Args:
        gateway: asked by unicast as well, and preferred.
        local_host: our address towards it.
        on_link: see `parse_ssdp_untrusted`.
        timeout: seconds to wait for the gateway; other devices count only when it stays silent.
        port: of SSDP; another one in tests.
        group: the multicast group; another host in tests.

    Returns:
        Devices, the gateway first; none where nobody answered. A cancel loses nothing.
    """
    search = _Search(gateway.host.partition("%")[0], tuple(on_link))
    loop = asyncio.get_running_loop()
    try:
        sock = _search_socket(gateway, local_host)
    except OSError:
        return []
    transport, _ = await loop.create_datagram_endpoint(lambda: search, sock=sock)
    try:
        group = group or _SSDP_GROUPS[gateway.version]
        zone = _zone(gateway)
        for attempt in range(2):
            for host in dict.fromkeys((group, gateway.host.partition("%")[0])):
                for target in _SSDP_TARGETS:
                    address = (host, port) if gateway.version == 4 else (host, port, 0, zone)
                    transport.sendto(_search_request(host, port, target), address)
            wait = _SSDP_REPEAT if attempt == 0 else max(timeout - _SSDP_REPEAT, 0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await search.from_gateway.wait()
                    break
    finally:
        transport.close()
    return sorted(search.answers.values(), key=lambda answer: not search.is_gateway(answer))


class _Search(asyncio.DatagramProtocol):
    def __init__(self, gateway: str, on_link: tuple[IpNetwork, ...]) -> None:
        self._gateway = gateway
        self._on_link = on_link
        self.answers: dict[str, SsdpAnswer] = {}
        self.from_gateway = asyncio.Event()
        self.malformed = 0

    def is_gateway(self, answer: SsdpAnswer) -> bool:
        """Whether it is the default gateway that answered, under whichever of its addresses."""
        return self._gateway in (answer.source.partition("%")[0], urlsplit(answer.location).hostname)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        source = str(addr[0]).partition("%")[0]
        if len(addr) == 4 and addr[3]:
            source = f"{source}%{addr[3]}"
        try:
            answer = parse_ssdp_untrusted(data, source, self._on_link)
        except RemoteProtocolError:
            self.malformed += 1
            return
        if len(self.answers) < _MAX_ANSWERS:
            self.answers.setdefault(answer.location, answer)
            if self.is_gateway(answer):
                self.from_gateway.set()


def _search_socket(gateway: Gateway, local_host: str) -> socket.socket:
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET:
            sock.bind((local_host, 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _SSDP_TTL)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(local_host))
        else:
            sock.bind(("::", 0))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _SSDP_TTL)
    except OSError:
        sock.close()
        raise
    return sock


def _zone(gateway: Gateway) -> int:
    try:
        return socket.if_nametoindex(gateway.interface) if gateway.version == 6 and gateway.interface else 0
    except OSError:
        return 0


def _search_request(host: str, port: int, target: str) -> bytes:
    name = f"[{host}]" if ":" in host else host
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {name}:{port}", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {target}", "", "")
    return "\r\n".join(lines).encode()


class Igd:
    """One gateway device. Made by `open`, ended by `close`.

    Attributes:
        version: 1 or 2, of the device.
        name: what the device calls itself.
    """

    def __init__(self, requester: Any, device: Any, upnp: SimpleNamespace) -> None:
        self._requester = requester
        self._upnp = upnp
        services = {service.service_type: service for service in device.all_services}
        self._wan = next((services[name] for name in _WAN_SERVICES if name in services), None)
        self._firewall = services.get(_FIREWALL_SERVICE)
        self.version = 2 if str(device.device_type).endswith(":2") else 1
        self.name = str(device.friendly_name)[:100]

    @classmethod
    async def open(cls, location: str, local_host: str) -> Igd:
        """Fetch and read the description.

        Args:
            location: from an `SsdpAnswer`.
            local_host: our address, which the router will take for the client's.

        Raises:
            UpnpMissingError: the extra `upnp` is not installed.
            RemoteProtocolError: the description is malformed, or not of a gateway device.
            OSError: the router cannot be reached.
            TimeoutError: it does not answer in time.
        """
        upnp = await _load_upnp()
        requester = upnp.Requester(location, local_host)
        try:
            factory = upnp.UpnpFactory(requester, non_strict=True)  # many routers get their descriptions wrong
            device = await _guard(factory.async_create_device(location), upnp)
            return cls(requester, device, upnp)
        except BaseException:
            await requester.close()
            raise

    @property
    def maps_ports(self) -> bool:
        """Whether it can make IPv4 port mappings."""
        return self._wan is not None

    @property
    def makes_pinholes(self) -> bool:
        """Whether it can open its IPv6 firewall."""
        return self._firewall is not None

    async def close(self) -> None:
        """End the HTTP session; mappings stay."""
        await self._requester.close()

    async def external_host(self) -> str | None:
        """The outside IPv4 address; None where the router has none or does not tell.

        Raises:
            RemoteProtocolError: refused, or nonsense.
        """
        result = await self._call(self._wan, "GetExternalIPAddress")
        host = str(result.get("NewExternalIPAddress") or "")
        try:
            return host if ipaddress.ip_address(host).version == 4 and is_outside(host) else None
        except ValueError:
            return None

    async def map(
        self,
        protocol: IpProtocol,
        internal_host: str,
        internal_port: int,
        external_port: int,
        lifetime: int,
        *,
        other_ports: Sequence[int] = (),
    ) -> tuple[int, int]:
        """Map a port, or renew a mapping of ours.

        Args:
            protocol: "tcp" or "udp".
            internal_host: our address.
            internal_port: our port.
            external_port: the outside port that we would like, or have.
            lifetime: seconds; a router that knows only permanent mappings is given one.
            other_ports: outside ports to try when that one belongs to somebody else.

        Returns:
            The outside port and the lifetime (0: until deleted).

        Raises:
            IgdRefusedError: no.
            RemoteProtocolError: nonsense.
        """
        last: IgdRefusedError | None = None
        for port in (external_port, *other_ports):
            arguments = {
                "NewRemoteHost": "",
                "NewExternalPort": port,
                "NewProtocol": protocol.upper(),
                "NewInternalPort": internal_port,
                "NewInternalClient": internal_host,
                "NewEnabled": True,
                "NewPortMappingDescription": DESCRIPTION,
                "NewLeaseDuration": lifetime,
            }
            try:
                return port, await self._add(arguments, lifetime)
            except IgdRefusedError as error:
                last = error
                if error.code == _SAME_PORTS_ONLY and port != internal_port:
                    arguments["NewExternalPort"] = internal_port
                    return internal_port, await self._add(arguments, lifetime)
                if error.code != _CONFLICT:
                    raise
        raise last or IgdRefusedError(_CONFLICT, "no port was tried")

    async def _add(self, arguments: dict[str, Any], lifetime: int) -> int:
        try:
            await self._call(self._wan, "AddPortMapping", **arguments)
        except IgdRefusedError as error:
            if error.code != _PERMANENT_ONLY:
                raise
            await self._call(self._wan, "AddPortMapping", **{**arguments, "NewLeaseDuration": 0})
            return 0
        return lifetime

    async def unmap(self, protocol: IpProtocol, external_port: int) -> None:
        """Delete a mapping.

        Raises:
            RemoteProtocolError: refused, or nonsense.
        """
        await self._call(
            self._wan,
            "DeletePortMapping",
            NewRemoteHost="",
            NewExternalPort=external_port,
            NewProtocol=protocol.upper(),
        )

    async def pinholes_allowed(self) -> bool:
        """Whether the router lets hosts open its IPv6 firewall; True also where it has none.

        Raises:
            RemoteProtocolError: refused, or nonsense.
        """
        status = await self._call(self._firewall, "GetFirewallStatus")
        return bool(status.get("InboundPinholeAllowed")) or not status.get("FirewallEnabled")

    async def add_pinhole(self, protocol: IpProtocol, host: str, port: int, lifetime: int) -> int:
        """Let the whole internet reach an IPv6 address and port of ours.

        The remote host is left empty: the library's own `async_add_pinhole` cannot, and "::" makes a pinhole for
        nobody. Routers want this asked over IPv6, from `host` itself.

        Returns:
            The pinhole's number.

        Raises:
            RemoteProtocolError: refused, or nonsense.
        """
        result = await self._call(
            self._firewall,
            "AddPinhole",
            RemoteHost="",
            RemotePort=0,
            InternalClient=host,
            InternalPort=port,
            Protocol=_PROTOCOL_NUMBERS[protocol],
            LeaseTime=lifetime,
        )
        try:
            return int(result["UniqueID"])
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError("AddPinhole without a UniqueID") from error

    async def update_pinhole(self, pinhole: int, lifetime: int) -> None:
        """Renew a pinhole.

        Raises:
            RemoteProtocolError: refused (it is gone), or nonsense.
        """
        await self._call(self._firewall, "UpdatePinhole", UniqueID=pinhole, NewLeaseTime=lifetime)

    async def delete_pinhole(self, pinhole: int) -> None:
        """Close a pinhole.

        Raises:
            RemoteProtocolError: refused, or nonsense.
        """
        await self._call(self._firewall, "DeletePinhole", UniqueID=pinhole)

    async def _call(self, service: Any, name: str, **arguments: Any) -> dict[str, Any]:
        if service is None or not service.has_action(name):
            raise IgdRefusedError(401, f"the router has no {name}")
        self._requester.requests = 0
        return dict(await _guard(service.action(name).async_call(**arguments), self._upnp))


async def _guard(call: Awaitable[T], upnp: SimpleNamespace) -> T:
    """Await a call of the library, and turn what strangers' XML makes it raise into our errors."""
    try:
        return await call
    except upnp.UpnpActionError as error:
        code = int(getattr(error, "error_code", 0) or 0)
        raise IgdRefusedError(code, f"UPnP error {code}: {getattr(error, 'error_desc', '')}") from error
    except (RemoteProtocolError, TimeoutError):
        raise
    except upnp.ConnectionError as error:
        raise OSError(str(error)) from error
    except OSError:
        raise
    except Exception as error:
        # Untyped XML goes through the library's coercions: TypeError, KeyError, RecursionError and what else there is.
        raise RemoteProtocolError(f"UPnP: {type(error).__name__}: {error}"[:200]) from error


_loaded: list[SimpleNamespace] = []


async def _load_upnp() -> SimpleNamespace:
    """The library, imported in a thread the first time."""
    if not _loaded:
        try:
            _loaded.append(await asyncio.to_thread(_import_upnp))
        except ImportError as error:
            raise UpnpMissingError("async-upnp-client is not installed: pip install 'crust-p2p[upnp]'") from error
    return _loaded[0]


def _import_upnp() -> SimpleNamespace:
    import aiohttp
    from async_upnp_client.client import UpnpRequester
    from async_upnp_client.client_factory import UpnpFactory
    from async_upnp_client.const import HttpResponse
    from async_upnp_client.exceptions import UpnpActionError

    class Requester(UpnpRequester):
        """HTTP to one host only: no redirects, no proxies, bounded in time, size and number."""

        def __init__(self, location: str, local_host: str) -> None:
            self._host = urlsplit(location).netloc.rpartition(":")[0]
            self._local_host = local_host
            self._session: aiohttp.ClientSession | None = None
            self.requests = 0

        async def close(self) -> None:
            if self._session is not None:
                await self._session.close()

        async def async_http_request(self, http_request: Any) -> Any:
            self.requests += 1
            if self.requests > _MAX_HTTP_REQUESTS:
                raise RemoteProtocolError(f"a description of more than {_MAX_HTTP_REQUESTS} documents")
            parts = urlsplit(http_request.url)
            if parts.scheme != "http" or parts.netloc.rpartition(":")[0] != self._host:
                raise RemoteProtocolError(f"the router sends us to {http_request.url[:100]!r}")
            if self._session is None:
                connector = aiohttp.TCPConnector(local_addr=(self._local_host, 0), force_close=True)
                timeout = aiohttp.ClientTimeout(total=_HTTP_SECONDS)
                self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
            async with self._session.request(
                http_request.method,
                http_request.url,
                headers=dict(http_request.headers or {}),
                data=http_request.body.encode() if http_request.body else None,
                allow_redirects=False,
            ) as response:
                body = await _read_bounded(response.content.readany)
                return HttpResponse(response.status, dict(response.headers), body.decode(errors="replace"))

    return SimpleNamespace(
        Requester=Requester,
        UpnpFactory=UpnpFactory,
        UpnpActionError=UpnpActionError,
        ConnectionError=aiohttp.ClientConnectionError,
    )


async def _read_bounded(read: Callable[[], Awaitable[bytes]]) -> bytes:
    body = bytearray()
    while chunk := await read():
        body += chunk
        if len(body) > _MAX_HTTP_BYTES:
            raise RemoteProtocolError(f"more than {_MAX_HTTP_BYTES} bytes from the router")
    return bytes(body)
