"""PCP client (RFC 6887): MAP and ANNOUNCE, for IPv4 mappings and IPv6 pinholes alike.

The nonce of a mapping is kept as long as the mapping: renewal and deletion need it (RFC 6887 §11.2). For IPv6 a
mapping opens the router's firewall, and the outside address is our own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from crust.errors import RemoteProtocolError
from crust.proto.nat.leases import LIFETIME, LeaseClient, Mapping
from crust.wire.pcp import (
    PCP_NONCE_BYTES,
    PCP_PORT,
    PcpMapping,
    PcpOpcode,
    PcpProtocol,
    PcpRequest,
    PcpResponse,
    PcpResult,
    parse_pcp_response,
    pcp_version_mismatch,
    serialize_pcp,
)

__all__ = ["PcpClient"]

_PROTOCOLS = {"tcp": PcpProtocol.TCP, "udp": PcpProtocol.UDP}

_TEXTS: dict[int, str] = {
    PcpResult.NOT_AUTHORIZED: "the router forbids it (PCP is switched off, or limited to other hosts or ports)",
    PcpResult.NETWORK_FAILURE: "the router has no outside address at present",
    PcpResult.NO_RESOURCES: "the router has no room for another mapping",
    PcpResult.USER_EX_QUOTA: "our quota of mappings is used up",
    PcpResult.CANNOT_PROVIDE_EXTERNAL: "the router cannot give that outside port",
    PcpResult.ADDRESS_MISMATCH: "there is another NAT between us and the router that answered",
}


class PcpClient(LeaseClient):
    """Mappings by PCP from one router.

    Args:
        gateway: the router's host.
        local_host: our address towards it; the router checks that requests come from there.
        random: returns that many random bytes.
        lifetime: seconds to ask for.
        port: of the router.
    """

    def __init__(
        self,
        gateway: str,
        local_host: str,
        random: Callable[[int], bytes],
        *,
        lifetime: int = LIFETIME,
        port: int = PCP_PORT,
    ) -> None:
        super().__init__((gateway, port), random, lifetime=lifetime)
        self._local_host = local_host
        any_host = "::" if ipaddress.ip_address(local_host.partition("%")[0]).version == 6 else "0.0.0.0"  # noqa: S104
        self._any_host = any_host
        self._epoch: tuple[int, float] | None = None

    def _prepare(self, mapping: Mapping, now: float) -> None:
        mapping.nonce = self._random(PCP_NONCE_BYTES)

    def _map_message(self, mapping: Mapping, *, delete: bool) -> bytes:
        # RFC 6887 §15.1: the suggestions are zero in a deletion.
        port = 0 if delete else mapping.suggested_port
        host = self._any_host if delete else mapping.suggested_host or self._any_host
        body = PcpMapping(mapping.nonce, _PROTOCOLS[mapping.protocol], mapping.internal_port, port, host)
        return serialize_pcp(PcpRequest(self._local_host, 0 if delete else self._lifetime, body))

    def _probe_message(self) -> bytes:
        return serialize_pcp(PcpRequest(self._local_host, 0))

    def _receive(self, data: bytes, now: float) -> None:
        if pcp_version_mismatch(data):
            self._not_spoken("NAT-PMP only" if data[0] == 0 else f"PCP version {data[0]} only", now)
            return
        response = parse_pcp_response(data)
        if response.result == PcpResult.UNSUPP_VERSION:
            self._not_spoken("the router does not take PCP version 2", now)
        elif response.opcode == PcpOpcode.ANNOUNCE:
            asked = self._probe_answered()
            if response.result == PcpResult.SUCCESS:
                self.answered = True
                self._note_epoch(response.epoch, now)
                if not asked:
                    self._announced(now)
        elif response.opcode == PcpOpcode.MAP and response.result == PcpResult.UNSUPP_OPCODE:
            self._not_spoken("the router makes no mappings by PCP", now)
        elif response.mapping is None:
            raise RemoteProtocolError("an answer to no request of ours")
        else:
            self._map_response(response, response.mapping, now)

    def _map_response(self, response: PcpResponse, body: PcpMapping, now: float) -> None:
        mapping = self._match(body)
        if mapping is None:
            self.ignored["not awaited"] += 1
            return
        if response.result == PcpResult.SUCCESS:
            self._granted(mapping, body.external_host, body.external_port, response.lifetime, now)
        else:
            self._refused(mapping, response.result, _explain(response.result), response.lifetime, now)
        self._note_epoch(response.epoch, now)

    def _match(self, body: PcpMapping) -> Mapping | None:
        """RFC 6887 §11.4: protocol, internal port and nonce."""
        for mapping in self._mappings.values():
            if mapping.nonce == body.nonce:
                fits = (_PROTOCOLS[mapping.protocol], mapping.internal_port) == (body.protocol, body.internal_port)
                return mapping if fits else None
        return None

    def _note_epoch(self, epoch: int, now: float) -> None:
        """RFC 6887 §8.5: a router that counts otherwise than time passes has lost its state."""
        before, self._epoch = self._epoch, (epoch, now)
        if before is None:
            return
        client_delta, server_delta = now - before[1], epoch - before[0]
        if (
            server_delta < -1
            or client_delta + 2 < server_delta - server_delta / 16
            or server_delta + 2 < client_delta - client_delta / 16
        ):
            self._restarted(f"its clock went from {before[0]} to {epoch} within {client_delta:.0f} s", now)
        elif self._outlives_router(epoch, now):
            self._restarted(f"it has been up for {epoch} s only", now)


def _explain(result: int) -> str:
    """A result code in words."""
    try:
        code = PcpResult(result)
    except ValueError:
        return f"PCP error {result}"
    return _TEXTS.get(code, f"PCP error {result} ({code.name})")
