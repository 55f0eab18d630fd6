"""How the NAT before us treats UDP and TCP, measured with STUN servers; what is seen goes into a `NatBehaviour`.

Two servers at different hosts tell the mapping, a server with two hosts and two ports (RFC 5780) alone does and tells
the filtering of UDP too. Fresh sockets tell how ports are allocated, and two of ours whether the NAT hairpins. The
servers are believed: the user has named them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from crust.net.clock import monotonic
from crust.net.stun import StunConnection, StunSocket
from crust.net.tcp import share_port
from crust.proto.nat.behaviour import FilteringKind, FilteringTest, NatBehaviour, Observation
from crust.proto.nat.leases import IpProtocol
from crust.proto.nat.stun import StunFailed, StunFailure, StunSucceeded
from crust.wire.stun import Address, ChangeRequest

__all__ = ["Sighting", "probe_tcp", "probe_udp"]

_FRESH_SOCKETS = 4
_TESTS_SENT = 3
_TEST_PAUSE = 0.15
# A test of filtering is sent this often; the answer of the server itself tells how long to wait.
_FILTERING_TRANSMISSIONS = 3
_FILTERING_FLOOR = 0.08

Outcome = Literal["answered", "refused", "silent", "unasked"]


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one observer said about one socket of ours, or that it did not.

    Attributes:
        protocol: "udp" or "tcp".
        via: who the observer is to us.
        observer: whom we asked.
        local: our socket.
        observed: our outside address, as seen by the observer; None without an answer.
        outcome: "refused": something came back, but no answer; "unasked": nothing could be sent.
        sent_at: when it was asked.
        rtt_ms: until the answer.
        error: why there is none.
    """

    protocol: IpProtocol
    via: Literal["stun", "bootstrap"]
    observer: Address
    local: Address
    observed: Address | None
    outcome: Outcome
    sent_at: float
    rtt_ms: float | None = None
    error: str = ""

    @property
    def observation(self) -> Observation | None:
        """For a `NatBehaviour`."""
        if self.observed is None:
            return None
        return Observation(self.local, self.observer, self.observed, self.sent_at, trusted=True)


def _sighting(
    protocol: IpProtocol, local: Address, answer: StunSucceeded | StunFailed, *, silent: bool, sent_at: float
) -> Sighting:
    if isinstance(answer, StunSucceeded):
        rtt_ms = None if answer.rtt is None else answer.rtt * 1000
        return Sighting(
            protocol, "stun", answer.server, local, answer.observed, "answered", answer.sent_at, rtt_ms=rtt_ms
        )
    outcome: Outcome = "silent" if silent else "refused"
    return Sighting(protocol, "stun", answer.server, local, None, outcome, sent_at, error=answer.detail)


async def probe_udp(host: str, servers: Sequence[Address], behaviour: NatBehaviour) -> list[Sighting]:
    """Measure UDP from one of our addresses. It takes about ten round trips, and 2.5 s where a server is silent.

    Args:
        host: our address towards these servers.
        servers: numeric, of one family.
        behaviour: takes what is seen.

    Returns:
        One for each server and each further address of a server that has two.

    Raises:
        OSError: no socket can be opened there.
    """
    with ExitStack() as stack:
        main = await _open(host, stack)
        sightings, answers = await _ask_all(main, servers, behaviour)
        if not answers:
            return sightings
        helper = next((a for a in answers if _other(a) is not None), None)
        if helper is not None:
            more, _ = await _ask_all(main, _further(helper), behaviour)
            sightings += more
        first = helper or answers[0]
        fresh = await _allocate(host, first.server, behaviour, stack)
        tests = []
        if helper is not None and fresh:
            tests.append(_filtering(host, helper, behaviour, stack))
        if fresh and behaviour.verdict.translated and not behaviour.verdict.dependent:
            tests.append(_hairpin((main, first.observed), fresh[0], behaviour))
        await asyncio.gather(*tests)
        return sightings


async def _open(host: str, stack: ExitStack) -> StunSocket:
    made = await StunSocket.open(host)
    stack.callback(made.close)
    return made


async def _ask_all(
    sock: StunSocket, servers: Sequence[Address], behaviour: NatBehaviour
) -> tuple[list[Sighting], list[StunSucceeded]]:
    now = monotonic()
    answers = await asyncio.gather(*(sock.ask(server) for server in servers))
    sightings = []
    for answer in answers:
        # A datagram that was refused (ICMP) fails as one that was lost: an unconnected socket is not told.
        silent = isinstance(answer, StunFailed) and answer.reason is StunFailure.TIMEOUT
        sightings.append(_sighting("udp", sock.local, answer, silent=silent, sent_at=now))
        _note(behaviour, sightings[-1])
    return sightings, [answer for answer in answers if isinstance(answer, StunSucceeded)]


def _note(behaviour: NatBehaviour, sighting: Sighting) -> None:
    observation = sighting.observation
    if observation is not None:
        behaviour.observe(observation)


def _other(answer: StunSucceeded) -> Address | None:
    """The other address of a server that has two hosts and two ports (RFC 5780 §7.4), if it can be one."""
    other = answer.message.other_address
    if other is None or other[0] == answer.server[0] or other[1] == answer.server[1]:
        return None
    host, server = ipaddress.ip_address(other[0]), ipaddress.ip_address(answer.server[0])
    never = host.is_multicast or host.is_unspecified or other[0] == "255.255.255.255" or not other[1]
    # Nobody may send us to our own machine, unless that is where he is himself.
    never = never or (host.is_loopback and not server.is_loopback)
    return other if host.version == server.version and not never else None


def _further(answer: StunSucceeded) -> list[Address]:
    """The server's three other addresses."""
    other = _other(answer)
    if other is None:
        return []
    return [(other[0], answer.server[1]), other, (answer.server[0], other[1])]


async def _allocate(
    host: str, server: Address, behaviour: NatBehaviour, stack: ExitStack
) -> list[tuple[StunSocket, Address]]:
    """Ask from fresh sockets, one after the other: which ports do new mappings get? Returns them with what was seen."""
    found = []
    for _ in range(_FRESH_SOCKETS):
        sock = await _open(host, stack)
        [sighting], answers = await _ask_all(sock, [server], behaviour)
        if not answers or sighting.observed is None:
            break
        found.append((sock, sighting.observed))
    return found


async def _filtering(host: str, helper: StunSucceeded, behaviour: NatBehaviour, stack: ExitStack) -> None:
    """RFC 5780 §4.4, from a socket that has sent to the server's first address only."""
    rto = max(_FILTERING_FLOOR, 2 * (helper.rtt or 0.2))
    sock = await StunSocket.open(host, initial_rto=rto, transmissions=_FILTERING_TRANSMISSIONS)
    stack.callback(sock.close)
    if isinstance(await sock.ask(helper.server), StunFailed):
        return
    answers = await asyncio.gather(
        sock.ask(helper.server, change=ChangeRequest(change_ip=True, change_port=True)),
        sock.ask(helper.server, change=ChangeRequest(change_port=True)),
    )
    for kind, answer in zip((FilteringKind.OTHER_ADDRESS, FilteringKind.OTHER_PORT), answers, strict=True):
        if isinstance(answer, StunFailed) and answer.code:
            continue  # it cannot do what it said it could
        answered = isinstance(answer, StunSucceeded)
        behaviour.filtering_test(FilteringTest(kind, answered, helper.server, trusted=True))


async def _hairpin(one: tuple[StunSocket, Address], two: tuple[StunSocket, Address], behaviour: NatBehaviour) -> None:
    """Two sockets of ours call each other at their outside addresses; each opens its filter for the other by it."""
    tag = os.urandom(16)
    arrived = False
    for _ in range(_TESTS_SENT):
        one[0].send(tag, two[1])
        two[0].send(tag, one[1])
        await asyncio.sleep(_TEST_PAUSE)
        for sock, _ in (one, two):
            while not sock.foreign.empty():
                arrived = arrived or sock.foreign.get_nowait()[0] == tag
        if arrived:
            break
    behaviour.hairpin_test(arrived)


async def probe_tcp(
    host: str, servers: Sequence[Address], behaviour: NatBehaviour, *, timeout: float
) -> list[Sighting]:
    """Measure TCP from one of our addresses; filtering cannot be told without somebody who calls us.

    Args:
        host: our address towards these servers.
        servers: numeric, of one family.
        behaviour: takes what is seen.
        timeout: seconds for each connection.

    Raises:
        OSError: no socket can be opened there.
    """
    with ExitStack() as stack:
        local = _shared_port(host, stack)
        made = await asyncio.gather(*(_connect(each, local, behaviour, timeout, stack) for each in servers))
        sightings = [sighting for _, sighting in made]
        answers = [c.answer for c, _ in made if isinstance(c.answer, StunSucceeded)]
        if not answers:
            return sightings
        helper = next((a for a in answers if _other(a) is not None), None)
        if helper is not None:
            further = (_connect(each, local, behaviour, timeout, stack) for each in _further(helper))
            sightings += [sighting for _, sighting in await asyncio.gather(*further)]
        for _ in range(_FRESH_SOCKETS):
            _, sighting = await _connect((helper or answers[0]).server, (host, 0), behaviour, timeout, stack)
            if sighting.observed is None:
                break
        return sightings


def _shared_port(host: str, stack: ExitStack) -> Address:
    """A port from which several connections can be made."""
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    stack.callback(holder.close)
    share_port(holder)
    holder.bind((host, 0))
    found: Address = holder.getsockname()[:2]
    return found


async def _connect(
    server: Address, local: Address, behaviour: NatBehaviour, timeout: float, stack: ExitStack
) -> tuple[StunConnection, Sighting]:
    now = monotonic()
    made = await StunConnection.ask(server, local, timeout=timeout)
    stack.callback(made.close)
    sighting = _sighting("tcp", made.local, made.answer, silent=made.silent, sent_at=now)
    _note(behaviour, sighting)
    return made, sighting
