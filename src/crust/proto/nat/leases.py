"""Port mappings leased from a router: what PCP (RFC 6887) and NAT-PMP (RFC 6886) have in common.

A mapping is asked for, renewed at half its life, asked for again when the router has lost its state, and deleted at the
end. The two protocols differ in their messages and in how they tell that a router restarted: see `pcp` and `natpmp`.

Waits are ours: 0.25 s doubled, as in NAT-PMP, for both. PCP's first wait of 3 s (RFC 6887 §8.1.1) is made for whole
access networks that restart at once; a dial cannot wait for it, and on a local link an answer takes milliseconds.
"""

from __future__ import annotations

import enum
import ipaddress
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.nat.draw import uniform
from crust.proto.timers import TimerTable
from crust.wire.stun import Address

__all__ = [
    "IpProtocol",
    "Lease",
    "LeaseClient",
    "LeaseEvent",
    "LeaseGranted",
    "LeaseLost",
    "LeaseRefused",
    "LeaseRemoved",
    "RouterRestarted",
    "RouterSilent",
    "RouterUnsupported",
]

IpProtocol = Literal["tcp", "udp"]

FIRST_WAIT = 0.25  # RFC 6886 §3.1
TRANSMISSIONS = 4  # 0.25 + 0.5 + 1 + 2 s: then the router is called silent
PROBE_TRANSMISSIONS = 3
JITTER = 0.1  # RFC 6887 §8.1.1
LIFETIME = 7200  # RFC 6886 §3.3
MAX_LIFETIME = 86400  # RFC 6887 §15 lets a server grant a day; what says more is renewed daily
RENEWAL_FLOOR = 4.0  # RFC 6887 §11.2.1
RETRY_SILENT = 120.0
RETRY_FLOOR, RETRY_CEILING = 30.0, 1800.0  # RFC 6887 §7.4: short and long life of an error
RECOVERY_INTERVAL = 5.0  # ours: forged restarts make us ask no more often than this
MAX_MAPPINGS = 64


class MappingState(enum.Enum):
    """Where one mapping stands."""

    REQUESTING = "asked for, none held"
    MAPPED = "held"
    RENEWING = "held, renewal asked for"
    WAITING = "refused or unanswered, to be asked for later"
    DELETING = "deletion asked for"
    GONE = "over"


class MappingInput(enum.Enum):
    """What happens to a mapping."""

    GRANTED = "the router granted it"
    REFUSED = "the router refused it"
    SILENT = "no answer to any transmission"
    DUE = "time to renew or to try again"
    LOST = "expired, or the router restarted"
    UNMAP = "the owner wants it no more"


_S, _I = MappingState, MappingInput

TRANSITIONS: dict[tuple[MappingState, MappingInput], MappingState] = {
    (_S.REQUESTING, _I.GRANTED): _S.MAPPED,
    (_S.REQUESTING, _I.REFUSED): _S.WAITING,
    (_S.REQUESTING, _I.SILENT): _S.WAITING,
    (_S.REQUESTING, _I.LOST): _S.REQUESTING,
    (_S.REQUESTING, _I.UNMAP): _S.DELETING,  # a grant may be on its way
    (_S.MAPPED, _I.GRANTED): _S.MAPPED,  # a duplicate, or an update that nobody asked for (RFC 6887 §14.2)
    (_S.MAPPED, _I.REFUSED): _S.MAPPED,  # a late duplicate
    (_S.MAPPED, _I.DUE): _S.RENEWING,
    (_S.MAPPED, _I.LOST): _S.REQUESTING,
    (_S.MAPPED, _I.UNMAP): _S.DELETING,
    (_S.RENEWING, _I.GRANTED): _S.MAPPED,
    (_S.RENEWING, _I.REFUSED): _S.MAPPED,  # until it expires
    (_S.RENEWING, _I.SILENT): _S.MAPPED,
    (_S.RENEWING, _I.LOST): _S.REQUESTING,
    (_S.RENEWING, _I.UNMAP): _S.DELETING,
    (_S.WAITING, _I.GRANTED): _S.MAPPED,  # a late answer
    (_S.WAITING, _I.REFUSED): _S.WAITING,
    (_S.WAITING, _I.DUE): _S.REQUESTING,
    (_S.WAITING, _I.LOST): _S.REQUESTING,
    (_S.WAITING, _I.UNMAP): _S.GONE,
    (_S.DELETING, _I.GRANTED): _S.GONE,
    (_S.DELETING, _I.REFUSED): _S.GONE,
    (_S.DELETING, _I.SILENT): _S.GONE,
    (_S.DELETING, _I.LOST): _S.GONE,  # the router forgot it by itself
    (_S.DELETING, _I.UNMAP): _S.DELETING,
}


class Timer(enum.Enum):
    """Timers of a mapping, and of the router as a whole."""

    RETRANSMIT = "the request was not answered in time"
    RENEW = "half of the lease is over"
    EXPIRE = "the lease is over"
    RETRY = "a refused or unanswered mapping is asked for again"
    PROBE = "the question about the router itself was not answered in time"
    RECOVER = "mappings are asked for again after a restart"


@dataclass(frozen=True, slots=True)
class Lease:
    """A mapping that the router has granted.

    Attributes:
        protocol: "tcp" or "udp".
        internal_port: ours.
        external_host: the router's outside address; None where it did not tell.
        external_port: the port there.
        lifetime: seconds granted.
        expires_at: when it ends unless renewed.
    """

    protocol: IpProtocol
    internal_port: int
    external_host: str | None
    external_port: int
    lifetime: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """A mapping stands. `changed`: it is new, or its outside address is another than before."""

    lease: Lease
    changed: bool


@dataclass(frozen=True, slots=True)
class LeaseRefused:
    """The router said no; asked again at `retry_at`. A lease that is held stays until it expires."""

    protocol: IpProtocol
    internal_port: int
    code: int
    detail: str
    retry_at: float


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """A mapping stands no more; it is being asked for again."""

    lease: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseRemoved:
    """A mapping was given back; `confirmed`: the router said so."""

    protocol: IpProtocol
    internal_port: int
    confirmed: bool


@dataclass(frozen=True, slots=True)
class RouterSilent:
    """The router did not answer; asked again at `retry_at`."""

    protocol: IpProtocol
    internal_port: int
    retry_at: float


@dataclass(frozen=True, slots=True)
class RouterUnsupported:
    """The router does not speak this protocol, and said so."""

    detail: str


@dataclass(frozen=True, slots=True)
class RouterRestarted:
    """The router has lost its mappings; they are being asked for again."""

    detail: str


LeaseEvent = LeaseGranted | LeaseRefused | LeaseLost | LeaseRemoved | RouterSilent | RouterUnsupported | RouterRestarted


@dataclass(slots=True)
class Mapping:
    """One mapping inside an engine."""

    protocol: IpProtocol
    internal_port: int
    suggested_host: str | None
    suggested_port: int
    nonce: bytes = b""
    state: MappingState = MappingState.REQUESTING
    lease: Lease | None = None
    granted_at: float = float("-inf")
    transmissions: int = 0
    silences: int = 0
    timers: TimerTable[Timer] = field(default_factory=TimerTable)


class LeaseClient(ABC):
    """The part of an engine that does not depend on the protocol.

    Args:
        gateway: host and port of the router.
        random: returns that many random bytes.
        lifetime: seconds to ask for.
    """

    def __init__(self, gateway: Address, random: Callable[[int], bytes], *, lifetime: int = LIFETIME) -> None:
        self._gateway = gateway
        self._random = random
        self._lifetime = lifetime
        self._mappings: dict[tuple[IpProtocol, int], Mapping] = {}
        self._out: list[bytes] = []
        self._events: deque[LeaseEvent] = deque()
        self._timers: TimerTable[Timer] = TimerTable()
        self._probe_transmissions = 0
        self._recovered_at = float("-inf")
        self._restarted_at = float("-inf")
        self._announced_at = float("-inf")
        self.answered = False
        """The router has sent something valid in this protocol."""
        self.unsupported = ""
        """Why the router does not speak this protocol, where it said so."""
        self.ignored: Counter[str] = Counter()
        """Datagrams that changed nothing, by reason."""

    # -- verbs ---------------------------------------------------------------------------------------------------

    def map(
        self,
        protocol: IpProtocol,
        internal_port: int,
        now: float,
        *,
        external_port: int | None = None,
        external_host: str | None = None,
    ) -> None:
        """Ask for a mapping and keep it; outcomes arrive as events.

        Args:
            protocol: "tcp" or "udp".
            internal_port: ours.
            now: the time.
            external_port: the port that we would like, by default the same as ours.
            external_host: the outside address that we would like.

        Raises:
            LocalProtocolError: it is mapped already, the port is out of range, or there are too many.
        """
        key = (protocol, internal_port)
        known = self._mappings.get(key)
        if known is not None and known.state is not MappingState.DELETING:
            raise LocalProtocolError(f"{protocol} port {internal_port} is mapped already")
        if not 0 < internal_port < 65536 or len(self._mappings) >= MAX_MAPPINGS:
            raise LocalProtocolError(f"cannot map {protocol} port {internal_port}")
        mapping = Mapping(protocol, internal_port, external_host, external_port or internal_port)
        self._mappings[key] = mapping
        self._prepare(mapping, now)
        self._transmit_first(mapping, now)

    def unmap(self, protocol: IpProtocol, internal_port: int, now: float) -> None:
        """Give a mapping back; one that does not exist is no error."""
        mapping = self._mappings.get((protocol, internal_port))
        if mapping is not None:
            self._step(mapping, MappingInput.UNMAP, now)

    def unmap_all(self, now: float) -> None:
        """Give everything back; done when `busy` is False."""
        for mapping in list(self._mappings.values()):
            self._step(mapping, MappingInput.UNMAP, now)

    def probe(self, now: float) -> None:
        """Ask the router for a sign of life: a restart shows in its answer."""
        self._probe_transmissions = 0
        self._transmit_probe(now)

    # -- the pump ------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether there are mappings, or deletions that the router has not confirmed."""
        return bool(self._mappings)

    @property
    def leases(self) -> list[Lease]:
        """What is held."""
        return [m.lease for m in self._mappings.values() if m.lease is not None]

    def receive_datagrams(self, batch: Iterable[tuple[bytes, Address]], now: float) -> None:
        """Take what came in on our socket or on the multicast port for announcements.

        What does not come from the router, is malformed or answers nothing is counted and ignored.
        """
        for data, source in batch:
            if not _same_host(source[0], self._gateway[0]) or source[1] != self._gateway[1]:
                self.ignored["not the router"] += 1
                continue
            try:
                self._receive(bytes(data), now)
            except RemoteProtocolError:
                self.ignored["malformed"] += 1

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """What is to be sent to the router now; each is returned once."""
        out, self._out = self._out, []
        return out

    def next_event(self) -> LeaseEvent | None:
        """The oldest event that was not taken yet."""
        return self._events.popleft() if self._events else None

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        tables = [self._timers, *(mapping.timers for mapping in self._mappings.values())]
        return min((due for table in tables if (due := table.next_timeout()) is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""
        for timer in self._timers.pop_due(now):
            if timer is Timer.RECOVER:
                self._recover(now)
            elif self._probe_transmissions < PROBE_TRANSMISSIONS:
                self._transmit_probe(now)
        for mapping in list(self._mappings.values()):
            due = mapping.timers.pop_due(now)
            if Timer.EXPIRE in due:
                self._step(mapping, MappingInput.LOST, now, "the lease ran out")
            elif Timer.RETRANSMIT not in due:
                if due:
                    self._step(mapping, MappingInput.DUE, now)
            elif mapping.transmissions < TRANSMISSIONS:
                self._transmit(mapping, now)
            else:
                self._step(mapping, MappingInput.SILENT, now)

    # -- what the protocols fill in ------------------------------------------------------------------------------

    @abstractmethod
    def _receive(self, data: bytes, now: float) -> None:
        """Take one datagram of the router."""

    @abstractmethod
    def _map_message(self, mapping: Mapping, *, delete: bool) -> bytes:
        """The request for a mapping or for its deletion."""

    @abstractmethod
    def _probe_message(self) -> bytes:
        """The question about the router itself."""

    @abstractmethod
    def _prepare(self, mapping: Mapping, now: float) -> None:
        """Before the first request for a mapping."""

    # -- inputs from the protocols -------------------------------------------------------------------------------

    def _granted(
        self, mapping: Mapping, external_host: str | None, external_port: int, lifetime: int, now: float
    ) -> None:
        """The router granted a mapping, or confirmed its deletion (lifetime 0)."""
        self.answered = True
        if mapping.state is MappingState.DELETING:
            if lifetime == 0:
                self._step(mapping, MappingInput.GRANTED, now)
            else:
                self.ignored["late"] += 1
            return
        if lifetime == 0 or external_port == 0 or (external_host is not None and not is_outside(external_host)):
            self.ignored["nonsense"] += 1
            return
        seconds = float(min(lifetime, MAX_LIFETIME))
        lease = Lease(mapping.protocol, mapping.internal_port, external_host, external_port, seconds, now + seconds)
        before, mapping.lease, mapping.granted_at = mapping.lease, lease, now
        if external_host is not None:
            mapping.suggested_host = external_host
        mapping.suggested_port, mapping.silences = external_port, 0
        self._step(mapping, MappingInput.GRANTED, now)
        share = 0.5 + uniform(self._random) / 8  # RFC 6887 §11.2.1
        mapping.timers.clear_all()
        mapping.timers.set(Timer.RENEW, now + max(seconds * share, RENEWAL_FLOOR))
        mapping.timers.set(Timer.EXPIRE, now + seconds)
        changed = before is None or (before.external_host, before.external_port) != (external_host, external_port)
        self._events.append(LeaseGranted(lease, changed))

    def _refused(self, mapping: Mapping, code: int, detail: str, retry_after: float, now: float) -> None:
        """The router refused a mapping, its renewal or its deletion."""
        self.answered = True
        retry_at = now + min(max(retry_after, RETRY_FLOOR), RETRY_CEILING)
        state = mapping.state
        self._step(mapping, MappingInput.REFUSED, now)
        if state is MappingState.REQUESTING:
            mapping.timers.set(Timer.RETRY, retry_at)
        if state in (MappingState.REQUESTING, MappingState.RENEWING):
            self._events.append(LeaseRefused(mapping.protocol, mapping.internal_port, code, detail, retry_at))

    def _not_spoken(self, detail: str, now: float) -> None:
        """The router said that it does not speak this protocol: asked again at the longest interval."""
        if not self.unsupported:
            self.unsupported = detail
            self._events.append(RouterUnsupported(detail))
        for mapping in list(self._mappings.values()):
            if mapping.state is MappingState.REQUESTING:
                self._step(mapping, MappingInput.REFUSED, now)
                mapping.timers.set(Timer.RETRY, now + RETRY_CEILING)

    def _restarted(self, detail: str, now: float) -> None:
        """The router has lost its state: ask for everything again, but not more often than `RECOVERY_INTERVAL`."""
        if Timer.RECOVER not in self._timers:
            self._restarted_at = now
            self._events.append(RouterRestarted(detail))
            if now < self._recovered_at + RECOVERY_INTERVAL:
                self._timers.set(Timer.RECOVER, self._recovered_at + RECOVERY_INTERVAL)
            else:
                self._recover(now)

    def _outlives_router(self, epoch: int, now: float) -> bool:
        """Whether we hold something for longer than the router says it has been up.

        A router that comes back within two seconds of a short life passes the tests of the RFCs, which compare two
        readings of its clock. The slack is theirs: a clock that is 1/16 slow (RFC 6887 §8.5), and whole seconds.
        """
        granted = min((m.granted_at for m in self._mappings.values() if m.lease is not None), default=now)
        return (now - granted) * 15 / 16 > epoch + 1

    def _probe_answered(self) -> bool:
        """Whether somebody had asked."""
        asked = Timer.PROBE in self._timers
        self._timers.clear(Timer.PROBE)
        return asked

    def _announced(self, now: float) -> None:
        """The router speaks without being asked, as one that has just come up does: renew what we hold.

        Its clock may not show that it restarted, if it had been up for a second or two only.
        """
        if now >= self._announced_at + RECOVERY_INTERVAL:
            self._announced_at = now
            for mapping in list(self._mappings.values()):
                if mapping.state is MappingState.MAPPED and mapping.granted_at < now:
                    self._step(mapping, MappingInput.DUE, now)

    # -- state ---------------------------------------------------------------------------------------------------

    def _recover(self, now: float) -> None:
        self._recovered_at = now
        for mapping in list(self._mappings.values()):
            if mapping.granted_at < self._restarted_at:  # else the restarted router has granted it
                self._step(mapping, MappingInput.LOST, now, "the router restarted")

    def _step(self, mapping: Mapping, happened: MappingInput, now: float, reason: str = "") -> None:
        """Follow the table, and do what entering the new state asks for."""
        before = mapping.state
        mapping.state = TRANSITIONS[before, happened]
        if before is not mapping.state or happened is MappingInput.LOST:
            mapping.timers.clear(Timer.RETRANSMIT)
        match mapping.state:
            case MappingState.REQUESTING:
                if mapping.lease is not None:
                    self._events.append(LeaseLost(mapping.lease, reason))
                    mapping.lease = None
                self._transmit_first(mapping, now)
            case MappingState.RENEWING:
                self._transmit_first(mapping, now)
            case MappingState.DELETING if before is not MappingState.DELETING:
                mapping.lease = None
                self._transmit_first(mapping, now)
            case MappingState.MAPPED if before is MappingState.RENEWING and happened is not MappingInput.GRANTED:
                remaining = mapping.lease.expires_at - now if mapping.lease is not None else 0.0
                mapping.timers.set(Timer.RENEW, now + max(remaining / 2, RENEWAL_FLOOR))
            case MappingState.WAITING if happened is MappingInput.SILENT:
                retry_at = now + min(RETRY_SILENT * 2**mapping.silences, RETRY_CEILING)
                mapping.silences = min(mapping.silences + 1, 8)
                mapping.timers.set(Timer.RETRY, retry_at)
                self._events.append(RouterSilent(mapping.protocol, mapping.internal_port, retry_at))
            case MappingState.GONE:
                del self._mappings[mapping.protocol, mapping.internal_port]
                confirmed = happened is MappingInput.GRANTED
                self._events.append(LeaseRemoved(mapping.protocol, mapping.internal_port, confirmed))
            case _:
                pass

    def _transmit_first(self, mapping: Mapping, now: float) -> None:
        mapping.timers.clear_all()
        if mapping.lease is not None:  # it may run out while it is being renewed
            mapping.timers.set(Timer.EXPIRE, mapping.lease.expires_at)
        mapping.transmissions = 0
        self._transmit(mapping, now)

    def _transmit(self, mapping: Mapping, now: float) -> None:
        delete = mapping.state is MappingState.DELETING
        self._out.append(self._map_message(mapping, delete=delete))
        mapping.transmissions += 1
        mapping.timers.set(Timer.RETRANSMIT, now + self._wait(mapping.transmissions))

    def _transmit_probe(self, now: float) -> None:
        self._out.append(self._probe_message())
        self._probe_transmissions += 1
        self._timers.set(Timer.PROBE, now + self._wait(self._probe_transmissions))

    def _wait(self, transmissions: int) -> float:
        jitter = 1 + JITTER * (2 * uniform(self._random) - 1)
        return float(jitter * FIRST_WAIT * 2 ** (transmissions - 1))


def _same_host(one: str, other: str) -> bool:
    """Equal but for the zone of a link-local address."""
    return one.partition("%")[0] == other.partition("%")[0]


def is_outside(host: str) -> bool:
    """Whether a router can have such an outside address; private ones are those of a router behind another."""
    address = ipaddress.ip_address(host)
    return not (address.is_unspecified or address.is_multicast or address.is_loopback or host == "255.255.255.255")
