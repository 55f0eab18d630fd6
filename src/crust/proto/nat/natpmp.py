"""NAT-PMP client (RFC 6886): IPv4 mappings by the routers that came before PCP.

A mapping's answer tells the port but not the outside address: that is asked for beside the first mapping, with every
probe, and announced by the router when it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from crust.proto.nat.leases import LIFETIME, LeaseClient, LeaseGranted, Mapping, is_outside
from crust.wire.natpmp import (
    NATPMP_PORT,
    NatPmpAddressRequest,
    NatPmpAddressResponse,
    NatPmpErrorResponse,
    NatPmpMapRequest,
    NatPmpOpcode,
    NatPmpResult,
    parse_natpmp_response,
    serialize_natpmp,
)

__all__ = ["NatPmpClient"]

_OPCODES = {"tcp": NatPmpOpcode.MAP_TCP, "udp": NatPmpOpcode.MAP_UDP}
_RETRY_SECONDS = 300.0  # the protocol has no life of an error

_TEXTS: dict[int, str] = {
    NatPmpResult.NOT_AUTHORIZED: "the router forbids it (NAT-PMP is switched off)",
    NatPmpResult.NETWORK_FAILURE: "the router has no outside address at present",
    NatPmpResult.OUT_OF_RESOURCES: "the router has no room for another mapping",
}


class NatPmpClient(LeaseClient):
    """Mappings by NAT-PMP from one router.

    Args:
        gateway: the router's host.
        random: returns that many random bytes.
        lifetime: seconds to ask for.
        port: of the router.
    """

    def __init__(
        self, gateway: str, random: Callable[[int], bytes], *, lifetime: int = LIFETIME, port: int = NATPMP_PORT
    ) -> None:
        super().__init__((gateway, port), random, lifetime=lifetime)
        self._epoch: tuple[int, float] | None = None
        self.outside_host: str | None = None
        """The router's outside address, once it told."""

    def _prepare(self, mapping: Mapping, now: float) -> None:
        if self.outside_host is None:
            self.probe(now)

    def _map_message(self, mapping: Mapping, *, delete: bool) -> bytes:
        port, lifetime = (0, 0) if delete else (mapping.suggested_port, self._lifetime)  # RFC 6886 §3.4
        return serialize_natpmp(NatPmpMapRequest(_OPCODES[mapping.protocol], mapping.internal_port, port, lifetime))

    def _probe_message(self) -> bytes:
        return serialize_natpmp(NatPmpAddressRequest())

    def _receive(self, data: bytes, now: float) -> None:
        response = parse_natpmp_response(data)
        if isinstance(response, NatPmpErrorResponse):
            self._error(response, now)
            return
        if isinstance(response, NatPmpAddressResponse):
            asked = self._probe_answered()
            self._address(response.host)
            self._note_epoch(response.epoch, now)
            if not asked:
                self._announced(now)
            return
        mapping = self._match(response.opcode, response.internal_port)
        if mapping is None:
            self.ignored["not awaited"] += 1
            return
        self._granted(mapping, self.outside_host, response.external_port, response.lifetime, now)
        self._note_epoch(response.epoch, now)

    def _address(self, host: str) -> None:
        """The outside address: leases that were granted before it was known, or under another one, are told anew."""
        self.answered = True
        if not is_outside(host):
            self.ignored["nonsense"] += 1
            return
        self.outside_host = host
        for mapping in self._mappings.values():
            if mapping.lease is not None and mapping.lease.external_host != host:
                mapping.lease = replace(mapping.lease, external_host=host)
                self._events.append(LeaseGranted(mapping.lease, changed=True))

    def _error(self, response: NatPmpErrorResponse, now: float) -> None:
        if response.result in (NatPmpResult.UNSUPPORTED_VERSION, NatPmpResult.UNSUPPORTED_OPCODE):
            self._not_spoken("the router does not take NAT-PMP", now)
            return
        detail = _TEXTS.get(response.result, f"NAT-PMP error {response.result}")
        if response.opcode == NatPmpOpcode.ADDRESS:
            self.answered = True
            self._probe_answered()
            return
        waiting = [
            mapping
            for mapping in self._mappings.values()
            if _OPCODES[mapping.protocol] == response.opcode and response.internal_port in (None, mapping.internal_port)
        ]
        if not waiting:
            self.ignored["not awaited"] += 1
        for mapping in waiting:
            self._refused(mapping, response.result, detail, _RETRY_SECONDS, now)

    def _match(self, opcode: NatPmpOpcode, internal_port: int) -> Mapping | None:
        return self._mappings.get(("tcp" if opcode == NatPmpOpcode.MAP_TCP else "udp", internal_port))

    def _note_epoch(self, epoch: int, now: float) -> None:
        """RFC 6886 §3.6: a clock that is more than 2 s behind 7/8 of the time passed has been reset."""
        before, self._epoch = self._epoch, (epoch, now)
        if before is not None and epoch + 2 < before[0] + (now - before[1]) * 7 / 8:
            self._restarted(f"its clock went from {before[0]} to {epoch} within {now - before[1]:.0f} s", now)
        elif self._outlives_router(epoch, now):
            self._restarted(f"it has been up for {epoch} s only", now)
