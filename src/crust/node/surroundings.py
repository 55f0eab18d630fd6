"""What a node knows of the NAT before it, learnt from what its rendezvous nodes see of it.

Two ports of one rendezvous tell whether another destination gets another outside port; a few sockets that live for a
moment tell how new ports follow each other. All of it happens in the background after a bootstrap connection has come
up; only a NAT that counts its ports is asked once more, just before an offer, where it stands (`prepare`). What is
measured over a main socket leaves from the very port that will be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from crust.crypto.keys import PeerId
from crust.net.clock import monotonic
from crust.net.interfaces import local_addresses
from crust.net.tcp import share_port
from crust.net.udp import bind_udp, sockaddr
from crust.node.connection import Connection
from crust.node.core import Core
from crust.node.udp import UdpFront
from crust.proto.nat.behaviour import FilteringKind, FilteringTest, NatBehaviour, NatVerdict, Observation
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.strategy import PortKnowledge, knowledge_of
from crust.proto.nat.tcp_punch import MEETING_SOCKETS
from crust.proto.nat.terms import Standing, take_standing
from crust.types import Transport
from crust.wire.contact import is_dialable
from crust.wire.probe import NUMBER_BYTES, serialize_probe
from crust.wire.service import (
    REACH_BYTES,
    TRANSPORTS,
    AskObserver,
    AskReach,
    Observer,
    Reached,
    ServiceMessage,
    Sighted,
)

__all__ = ["Surroundings"]

Version = Literal[4, 6]
Local = tuple[str, int]

_FRESH_SOCKETS: Final = 4
"""Sockets that live for a moment, to see how new ports follow each other."""

_SIGHT_TIMES: Final = (0.0, 0.08, 0.25)
_SIGHT_SECONDS: Final = 0.6
"""When a probe over UDP is sent, and how long its sighting is waited for."""

_ASK_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 1.5
_PATIENCE: Final = 0.1
"""So long an offer waits for what is being learnt."""

_AGAIN_SECONDS: Final = 0.2
"""So long it waits for the last word about a sequential NAT."""

_REACH_GRACE: Final = 0.15
_WAYS_MOST: Final = 16
_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class _Way:
    """To an observer: one port of a rendezvous node that looks at probes."""

    connection: Connection
    transport: Transport
    local: Local
    observer: Local
    message: Observer
    trusted: bool

    @property
    def version(self) -> Version:
        return 6 if ":" in self.observer[0] else 4


@dataclass(slots=True)
class _Wanted:
    """A probe that was sent."""

    sighted: asyncio.Future[Local]
    connection: Connection
    sent_at: float = field(default_factory=monotonic)


class Surroundings:
    """Keeps how the NATs before a node behave, for each transport and IP version.

    Args:
        core: the node's centre.
        front: the UDP sockets; None without µTP.
        listening: gives the address on which TCP is listened to, and from which to dial a host.
        listens_on: says whether a local port is one that we listen on.
        trusted: says whether the user has named a rendezvous.
    """

    def __init__(
        self,
        core: Core,
        front: UdpFront | None,
        listening: Callable[[str], Local | None],
        listens_on: Callable[[int], bool],
        trusted: Callable[[PeerId], bool],
    ) -> None:
        self._core = core
        self._front = front
        self._listening = listening
        self._listens_on = listens_on
        self._trusted = trusted
        self._behaviours: dict[tuple[Transport, Version], NatBehaviour] = {}
        self._hosts: dict[Version, str] = {}  # our own, on the way to those who see us
        self._ways: dict[tuple[Transport, Local], _Way] = {}
        self._asked: dict[tuple[Connection, int], asyncio.Future[Observer]] = {}
        self._wanted: dict[bytes, _Wanted] = {}
        self._reach: dict[bytes, tuple[_Way, bool]] = {}
        self._learning: dict[asyncio.Task[None], tuple[Connection, int]] = {}  # over which path
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what is known -------------------------------------------------------------------------------------------

    def behaviour(self, transport: Transport, version: Version = 4) -> NatBehaviour:
        """What was collected."""
        key = (transport, version)
        found = self._behaviours.get(key)
        if found is None:
            found = self._behaviours[key] = NatBehaviour("tcp" if transport == "tcp" else "udp")
        return found

    def verdict(self, transport: Transport, version: Version = 4) -> NatVerdict:
        """How the NAT treats one transport."""
        return self.behaviour(transport, version).verdict

    def standings(self) -> dict[Transport, Standing]:
        """What to tell a peer now. IPv6 is hardly ever translated: only a node without IPv4 tells of it."""
        now = monotonic()
        version: Version = 6 if 4 not in self._hosts and 6 in self._hosts else 4
        found: dict[Transport, Standing] = {}
        for transport in TRANSPORTS:
            if transport in self._core.config.transports and (transport, version) in self._behaviours:
                behaviour = self.behaviour(transport, version)
                sockets = MEETING_SOCKETS if transport == "tcp" else TraversalLimits().meeting_sockets
                found[transport] = take_standing(behaviour.verdict, behaviour.samples, sockets, now)
        return found

    @property
    def learning(self) -> bool:
        """Whether more is about to be known."""
        return bool(self._answering())

    def _answering(self) -> list[asyncio.Task[None]]:
        """What is under way, surplus paths left out: they are closed soon after they have come up, and say no more."""
        return [task for task, (via, path) in self._learning.items() if path in via.session.path_ids and not via.closed]

    @property
    def ready(self) -> bool:
        """Whether `prepare` would not wait."""
        return not self.learning and not self._counting()

    def _counting(self) -> list[_Way]:
        """Ways through a NAT that counts its ports, one for each transport."""
        found: dict[Transport, _Way] = {}
        for way in self._ways.values():
            if way.version == 4 and knowledge_of(self.verdict(way.transport)) is PortKnowledge.SEQUENTIAL:
                found[way.transport] = way
        return list(found.values())

    async def learnt(self, seconds: float = _PATIENCE) -> None:
        """Wait until what is being learnt is known, or the time is up. Cancellation loses nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while waiting := self._answering():  # a path that comes up meanwhile shows more
                    await asyncio.wait(waiting)

    async def prepare(self) -> dict[Transport, Standing]:
        """What to tell a peer now; a NAT that counts its ports is asked where it stands. Takes 0.3 s at most."""
        await self.learnt()
        again = [self._core.loop.create_task(self._show_fresh(way, 1)) for way in self._counting()]
        if again:
            await asyncio.wait(again, timeout=_AGAIN_SECONDS)
        return self.standings()

    # --- what is seen --------------------------------------------------------------------------------------------

    def path_up(self, connection: Connection, path_id: int) -> None:
        """A rendezvous is reached on another path: ask where it looks at probes."""
        connection.send_service(AskObserver(), path_id)
        offered = self._asked[connection, path_id] = self._core.loop.create_future()
        task = self._run(self._learn(connection, path_id, offered))
        self._learning[task] = connection, path_id
        task.add_done_callback(self._learning.pop)

    def address_seen(self, connection: Connection, path_id: int, seen: Local, sent_at: float) -> None:
        """A rendezvous has told from where it sees us on a path."""
        source, local = connection.path_source(path_id), connection.path_local(path_id)
        if source is not None and local is not None:
            observer = (source.host, source.port)
            self._note(source.transport, local, observer, seen, sent_at, self._trusted(connection.peer))

    def _note(
        self, transport: Transport, local: Local, observer: Local, seen: Local, sent_at: float, trusted: bool
    ) -> None:
        version: Version = 6 if ":" in local[0] else 4
        known = self._hosts.get(version)
        if known is not None and known != local[0] and known not in {each.host for each in local_addresses()}:
            for (_, of), behaviour in self._behaviours.items():
                if of == version:
                    behaviour.network_changed()
            self._ways = {key: way for key, way in self._ways.items() if way.version != version}
        self._hosts[version] = local[0]
        self.behaviour(transport, version).observe(Observation(local, observer, seen, sent_at, trusted))

    def receive(self, connection: Connection, message: ServiceMessage, path_id: int | None) -> bool:
        """A message of a rendezvous; False when it is not for this."""
        if isinstance(message, Observer):
            asked = None if path_id is None else self._asked.get((connection, path_id))
            if asked is not None and not asked.done():
                asked.set_result(message)
        elif isinstance(message, Sighted):
            wanted = self._wanted.get(message.number)
            ours = wanted is not None and wanted.connection is connection and not wanted.sighted.done()
            if wanted is not None and ours and is_dialable(message.host):
                wanted.sighted.set_result((message.host, message.port))
        elif isinstance(message, Reached):
            self._reached(message)
        else:
            return False
        return True

    def forget(self, connection: Connection) -> None:
        """A rendezvous has gone."""
        self._ways = {key: way for key, way in self._ways.items() if way.connection is not connection}

    def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._core.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- learning ------------------------------------------------------------------------------------------------

    async def _learn(self, connection: Connection, path_id: int, offered: asyncio.Future[Observer]) -> None:
        """Show what there is to show, once the rendezvous has said where."""
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                way = self._way(connection, path_id, await offered)
        except TimeoutError:
            return
        finally:
            self._asked.pop((connection, path_id), None)
        if way is None:
            return
        # Whatever gets in does so within a round trip; that nothing does takes its time, and nobody need wait for it.
        self._run(self._test_filtering(way, path_id))
        if self._listens_on(way.local[1]):
            await self._show_main(way)
        verdict = self.verdict(way.transport, way.version)
        if verdict.translated and verdict.dependent:
            await self._show_fresh(way, _FRESH_SOCKETS)

    def _way(self, connection: Connection, path_id: int, message: Observer) -> _Way | None:
        source, local = connection.path_source(path_id), connection.path_local(path_id)
        if source is None or local is None or len(self._ways) >= _WAYS_MOST:
            return None
        port = message.tcp if source.transport == "tcp" else message.utp
        if not port:
            return None
        observer = (source.host, port)
        trusted = self._trusted(connection.peer)
        way = self._ways[source.transport, observer] = _Way(
            connection, source.transport, local, observer, message, trusted
        )
        return way

    async def _show_main(self, way: _Way) -> None:
        """Show the socket that will carry data."""
        if way.transport == "tcp":
            listening = self._listening(way.observer[0])
            if listening is not None:
                await self._show_tcp(way, listening)
            return
        front = self._front
        assert front is not None
        await self._show_utp(way, way.local, lambda probe: front.send_plain(probe, way.local[1], *way.observer))

    async def _show_fresh(self, way: _Way, count: int) -> None:
        """Show new sockets, one after the other without a pause, so that others' mappings do not come between."""
        local = (way.local[0], 0)
        if way.transport == "tcp":
            await asyncio.gather(*(self._show_tcp(way, local) for _ in range(count)))
            return
        with contextlib.ExitStack() as opened:
            shown = []
            for _ in range(count):
                try:
                    sock = opened.enter_context(bind_udp(*local))
                except OSError:
                    break
                send = _sender(sock, way.observer)
                shown.append(self._show_utp(way, sock.getsockname()[:2], send))
            await asyncio.gather(*shown)

    async def _show_utp(self, way: _Way, local: Local, send: Callable[[bytes], object]) -> None:
        number, wanted = self._want(way)
        probe = serialize_probe(way.message.key, "utp", way.message.token, number)
        try:
            for index, at in enumerate(_SIGHT_TIMES):
                with contextlib.suppress(OSError):
                    send(probe)
                later = _SIGHT_TIMES[index + 1] if index + 1 < len(_SIGHT_TIMES) else _SIGHT_SECONDS
                done, _ = await asyncio.wait((wanted.sighted,), timeout=later - at)
                if done:
                    self._take(way, local, wanted)
                    return
        finally:
            del self._wanted[number]

    async def _show_tcp(self, way: _Way, local: Local) -> None:
        loop = self._core.loop
        number, wanted = self._want(way)
        sock = socket.socket(socket.AF_INET6 if way.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if local[1]:
                share_port(sock)
            # Not to leave the pair of ports waiting (TIME_WAIT): it may be wanted again soon.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            sock.bind(local)
            async with asyncio.timeout(_CONNECT_SECONDS):
                wanted.sent_at = monotonic()
                await loop.sock_connect(sock, way.observer)
                own: Local = sock.getsockname()[:2]
                await loop.sock_sendall(sock, serialize_probe(way.message.key, "tcp", way.message.token, number))
                await wanted.sighted
            self._take(way, own, wanted)
        except (OSError, TimeoutError):
            self._core.stats.count("surroundings.not_seen")
        finally:
            sock.close()
            del self._wanted[number]

    def _want(self, way: _Way) -> tuple[bytes, _Wanted]:
        number = self._core.random(NUMBER_BYTES)
        wanted = self._wanted[number] = _Wanted(self._core.loop.create_future(), way.connection)
        return number, wanted

    def _take(self, way: _Way, local: Local, wanted: _Wanted) -> None:
        self._note(way.transport, local, way.observer, wanted.sighted.result(), wanted.sent_at, way.trusted)

    # --- filtering -----------------------------------------------------------------------------------------------

    async def _test_filtering(self, way: _Way, path_id: int) -> None:
        """Have a port that we sent nothing to try to reach us."""
        if way.connection.closed or not self._listens_on(way.local[1]):
            return
        word = self._core.random(REACH_BYTES)
        self._reach[word] = (way, False)
        if self._front is not None and way.transport == "utp":
            self._front.await_plain(word, lambda: self._heard(word))
        try:
            way.connection.send_service(AskReach(word), path_id)
            await asyncio.sleep(_CONNECT_SECONDS)
        finally:
            self._reach.pop(word, None)
            if self._front is not None:
                self._front.forget_plain(word)

    def _heard(self, word: bytes) -> None:
        found = self._reach.pop(word, None)
        if found is not None:
            self._judge_filter(found[0], answered=True)

    def _reached(self, message: Reached) -> None:
        found = self._reach.get(message.word)
        if found is None:
            return
        if found[0].transport == "tcp":
            del self._reach[message.word]
            self._judge_filter(found[0], answered=message.connected)
        elif message.connected:
            self._core.loop.call_later(_REACH_GRACE, self._silent, message.word)

    def _silent(self, word: bytes) -> None:
        found = self._reach.pop(word, None)
        if found is not None:
            self._judge_filter(found[0], answered=False)

    def _judge_filter(self, way: _Way, *, answered: bool) -> None:
        test = FilteringTest(FilteringKind.OTHER_PORT, answered, way.observer, way.trusted)
        self.behaviour(way.transport, way.version).filtering_test(test)


def _sender(sock: socket.socket, observer: Local) -> Callable[[bytes], object]:
    address = sockaddr(*observer)
    return lambda probe: sock.sendto(probe, address)
