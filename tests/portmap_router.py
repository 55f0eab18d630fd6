"""A router that speaks PCP and NAT-PMP, without I/O: for tests of engines and, behind a socket, of the mapper."""

from __future__ import annotations

from dataclasses import dataclass, field

from crust.wire.natpmp import (
    NatPmpAddressRequest,
    NatPmpAddressResponse,
    NatPmpErrorResponse,
    NatPmpMapResponse,
    NatPmpOpcode,
    parse_natpmp_request,
    serialize_natpmp,
)
from crust.wire.pcp import PcpMapping, PcpResponse, PcpResult, parse_pcp_request, serialize_pcp

OUTSIDE = "203.0.113.9"


@dataclass
class Router:
    """Answers both protocols; keeps mappings until it restarts."""

    speaks: frozenset[str] = frozenset({"pcp", "natpmp"})
    lifetime: int = 3600
    started_at: float = -1000.0
    result: int = 0
    outside: str = OUTSIDE
    mappings: dict[tuple[int, int], tuple[bytes, int]] = field(default_factory=dict)
    requests: list[object] = field(default_factory=list)

    def restart(self, now: float) -> None:
        self.mappings.clear()
        self.started_at = now

    def answer(self, data: bytes, now: float) -> bytes | None:
        epoch = int(now - self.started_at)
        if data[0] == 0:
            return self._natpmp(data, epoch) if "natpmp" in self.speaks else None
        if "pcp" in self.speaks:
            return self._pcp(data, epoch)
        return bytes.fromhex("00810001") + bytes(4) if "natpmp" in self.speaks else None

    def _pcp(self, data: bytes, epoch: int) -> bytes:
        request = parse_pcp_request(data)
        self.requests.append(request)
        body = request.mapping
        if body is None:
            return serialize_pcp(PcpResponse(0, 0, 0, epoch))
        if self.result:
            return serialize_pcp(PcpResponse(1, self.result, 60, epoch, body))
        nonce, port = self.mappings.get((body.protocol, body.internal_port), (body.nonce, body.external_port))
        if nonce != body.nonce:
            return serialize_pcp(PcpResponse(1, PcpResult.NOT_AUTHORIZED, 60, epoch, body))
        if request.lifetime == 0:
            self.mappings.pop((body.protocol, body.internal_port), None)
            return serialize_pcp(PcpResponse(1, 0, 0, epoch, body))
        self.mappings[body.protocol, body.internal_port] = (nonce, port)
        granted = PcpMapping(nonce, body.protocol, body.internal_port, port, self.outside)
        return serialize_pcp(PcpResponse(1, 0, min(request.lifetime, self.lifetime), epoch, granted))

    def _natpmp(self, data: bytes, epoch: int) -> bytes:
        request = parse_natpmp_request(data)
        self.requests.append(request)
        if isinstance(request, NatPmpAddressRequest):
            return serialize_natpmp(NatPmpAddressResponse(epoch, self.outside))
        if self.result:
            return serialize_natpmp(NatPmpErrorResponse(request.opcode, self.result, epoch, request.internal_port))
        key = (17 if request.opcode == NatPmpOpcode.MAP_UDP else 6, request.internal_port)
        if request.lifetime == 0:
            self.mappings.pop(key, None)
            return serialize_natpmp(NatPmpMapResponse(request.opcode, epoch, request.internal_port, 0, 0))
        _, port = self.mappings.setdefault(key, (b"", request.external_port))
        lifetime = min(request.lifetime, self.lifetime)
        return serialize_natpmp(NatPmpMapResponse(request.opcode, epoch, request.internal_port, port, lifetime))
