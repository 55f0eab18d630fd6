"""UDP as it is: noise, copies and forgeries on the way, floods, and peers that are who they say and hostile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable

import pytest

import crust
from crust.net.clock import monotonic
from crust.proto.noise.envelope import outer_secret
from crust.proto.noise.handshake import Hello, Network, Signing
from crust.proto.tunnel.handshake import TunnelInitiator
from crust.proto.utp.events import DropReason
from crust.wire import frames
from crust.wire.tunnel import Introduction
from crust.wire.utp import Extension, Header, PacketType, serialize_header, serialize_selective_ack
from tests.integration.node_support import eventually, node, nothing_left, port_of, soon, target
from tests.integration.raw_utp_peer import RawUtpPeer
from tests.integration.udp_proxy import UdpProxy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have all of 127.0.0.0/8")

UTP = {"transports": ["utp"], "signing": "off"}
CHANCE = random.Random(1)


@contextlib.asynccontextmanager
async def victim(**settings: object) -> AsyncIterator[crust.Node]:
    async with nothing_left(), node(**{**UTP, "handshake_timeout": 2, **settings}) as bob:
        yield bob


async def assert_friend(bob: crust.Node) -> None:
    """A friend gets its connection, and soon."""
    async with node(listen=[], **UTP) as friend:
        ours = await soon(friend.connect(target(bob.id, port_of(bob))))
        await ours.send(b"hello")
        theirs = await soon(anext(bob))
        assert (await soon(theirs.receive())).data == b"hello"
        await soon(ours.close())


def endpoint(of: crust.Node):  # type: ignore[no-untyped-def]
    return of._front.endpoint


def tables(of: crust.Node) -> tuple[int, int, int]:
    return endpoint(of).indexes, endpoint(of).pending, of._acceptor.half_open


class Sprayer:
    """Sends from several addresses of 127.0.0.0/8."""

    def __init__(self, port: int, addresses: int = 8) -> None:
        self.port = port
        self.sockets = []
        for n in range(addresses):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sockets.append(sock)
            sock.setblocking(False)
            sock.bind((f"127.9.{n}.1", 0))

    async def spray(self, bob: crust.Node, datagrams: Iterable[bytes]) -> None:
        """Send, not faster than they are read; every one is counted."""
        sent = handled(bob)
        for at, datagram in enumerate(datagrams):
            self.sockets[at % len(self.sockets)].sendto(datagram, ("127.0.0.1", self.port))
            sent += 1
            if at % 50 == 0:
                await eventually(lambda: handled(bob) >= sent - 50)  # noqa: B023
        await eventually(lambda: handled(bob) >= sent)
        assert handled(bob) == sent

    def answers(self) -> list[bytes]:
        found = []
        for sock in self.sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(sock.recv(65_536))
        return found

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def __enter__(self) -> Sprayer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def handled(bob: crust.Node) -> int:
    """Datagrams that came to nothing, by whatever reason, and requests that were answered."""
    stats = endpoint(bob).stats
    return sum(n for name, n in stats.items() if name.startswith(("datagram.", "handshake.")))


def requests(peer: crust.PeerId, network: str = "crust", count: int = 1, copies: int = 1) -> list[bytes]:
    """First messages of strangers who know the PeerId."""
    found: list[bytes] = []
    for _ in range(count):
        identity = crust.Identity.generate()
        introduction = Introduction(
            CHANCE.getrandbits(32), bytes(16), Hello(identity.id, signing=Signing.OFF, hashes=1)
        )
        made = TunnelInitiator(
            identity, peer, Network.of(network), introduction, outer_secret(peer), random=secrets.token_bytes
        )
        found += (made.request() for _ in range(copies))
    return found


class TestStrangers:
    async def test_noise_of_every_length_is_counted_and_not_answered(self) -> None:
        async with victim() as bob:
            before = tables(bob)
            with Sprayer(port_of(bob)) as sprayer:
                await sprayer.spray(bob, (CHANCE.randbytes(size) for size in range(1500)))
                assert sprayer.answers() == []
            assert tables(bob) == before
            assert endpoint(bob).stats == {"datagram.short": 48, "datagram.stranger": 1452}
            assert bob.stats["datagram.short"] == 48
            assert bob.stats["datagram.stranger"] == 1452
            await assert_friend(bob)

    async def test_requests_to_another(self) -> None:
        async with victim() as bob:
            with Sprayer(port_of(bob)) as sprayer:
                await sprayer.spray(bob, requests(crust.Identity.generate().id, count=5, copies=20))
                assert sprayer.answers() == []
            assert bob.stats["datagram.stranger"] == 100

    async def test_another_network_gets_a_hint_smaller_than_its_question(self) -> None:
        async with victim() as bob:
            with Sprayer(port_of(bob), 1) as sprayer:
                asked = requests(bob.id, "another", count=10)
                await sprayer.spray(bob, asked)
                await asyncio.sleep(0)
                answers = sprayer.answers()
            assert bob.stats["handshake.network_mismatch"] == 10
            assert len(answers) == 10
            assert all(len(answer) < len(question) for answer, question in zip(answers, asked, strict=True))
            assert tables(bob)[1:] == (0, 0)

    async def test_altered_requests(self) -> None:
        async with victim() as bob:
            [request] = requests(bob.id)

            def altered() -> Iterable[bytes]:
                for at in range(0, len(request), 3):
                    yield request[:at] + bytes((request[at] ^ 1 << at % 8,)) + request[at + 1 :]
                for size in range(0, len(request), 5):
                    yield request[:size]
                    yield request[size:]
                    yield request + bytes(size + 1)

            with Sprayer(port_of(bob)) as sprayer:
                # The whole one is the last slice's `request[0:]`, which is let through.
                await sprayer.spray(bob, (data for data in altered() if data != request))
                assert sprayer.answers() == []
            assert tables(bob)[1:] == (0, 0)
            await assert_friend(bob)

    async def test_our_own_words_sent_back_to_us(self) -> None:
        """Reflection: what we send never counts as what a peer sends."""
        async with victim() as bob, node(**UTP) as carol:
            heard: list[bytes] = []
            async with UdpProxy(port_of(carol)) as proxy:
                proxy.keep = lambda data: heard.append(data) or True
                ours = await soon(bob.connect(target(carol.id, proxy.port)))
                for n in range(20):
                    await soon(ours.send(bytes(5000) + bytes([n])))
                await soon(ours.flush())
                before, connections = tables(bob), list(bob.connections)
                stats = endpoint(bob).stats.copy()
                with Sprayer(port_of(bob)) as sprayer:
                    await sprayer.spray(bob, list(heard))
                    assert sprayer.answers() == []
                assert tables(bob) == before
                assert bob.connections == connections
                counted = {key for key in endpoint(bob).stats - stats if key.startswith("datagram.")}
                assert counted <= {"datagram.stranger", "datagram.short"}
                await soon(ours.send(b"still here"))
                await soon(ours.flush())
                ours.abort()

    async def test_replays_after_a_restart_of_the_node(self) -> None:
        """What was recorded opens nothing: a request gets an answer that only its sender can read, and then nothing."""
        identity = crust.Identity.generate()
        heard: list[bytes] = []
        async with node(identity, **UTP) as bob, node(listen=[], **UTP) as alice, UdpProxy(port_of(bob)) as proxy:
            proxy.keep = lambda data: heard.append(data) or True
            ours = await soon(alice.connect(target(bob.id, proxy.port)))
            await soon(ours.send(b"once"))
            await soon(ours.flush())
            ours.abort()
        async with (
            victim(listen=["127.0.0.1:0"], handshake_timeout=0.5) as other,
            node(identity, **UTP, handshake_timeout=0.5) as bob,
        ):
            with Sprayer(port_of(bob)) as sprayer:
                for _ in range(3):
                    for data in heard:
                        sprayer.sockets[0].sendto(data, ("127.0.0.1", port_of(bob)))
                await eventually(lambda: bob.stats["handshake.never_proved"])
            await eventually(lambda: tables(bob)[1:] == (0, 0))
            assert not bob.connections
            assert not bob.stats["connections.accepted"]
            await assert_friend(bob)
            await assert_friend(other)


class TestLoad:
    async def test_no_state_without_a_cookie_and_friends_still_connect(self) -> None:
        """Strangers who know the PeerId, from more addresses than can be counted."""
        async with victim(max_half_open=300) as bob:
            asked = requests(bob.id, count=300, copies=4)
            CHANCE.shuffle(asked)
            while endpoint(bob)._entrance._admission.admits(monotonic()):
                pass  # as after many more of them
            with Sprayer(port_of(bob), 60) as sprayer:
                for at, datagram in enumerate(asked):
                    sprayer.sockets[at % 60].sendto(datagram, ("127.0.0.1", port_of(bob)))
                    if at % 40 == 0:
                        await asyncio.sleep(0)
                        assert endpoint(bob).pending <= 300
                        assert bob._acceptor.half_open <= 300
                await eventually(lambda: bob.stats["handshake.cookie_sent"])
                await assert_friend(bob)
                answers = sprayer.answers()
                assert max(map(len, answers)) <= max(map(len, asked))
                assert sum(map(len, answers)) <= sum(map(len, asked))
            await eventually(lambda: tables(bob)[1:] == (0, 0), 30)
            await eventually(lambda: not bob.connections)
            assert tables(bob)[0] <= 2

    async def test_a_flood_beside_a_transfer(self) -> None:
        """A second of noise from a process of its own; how fast things go on is for tools/udp_attack.py to say."""
        async with victim() as bob, node(listen=[], **UTP) as alice:
            ours = await soon(alice.connect(target(bob.id, port_of(bob))))
            theirs = await soon(anext(bob))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crust.testing.flood", f"127.0.0.1:{port_of(bob)}"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            pool = [CHANCE.randbytes(CHANCE.randrange(0, 1473)).hex() for _ in range(500)]
            sources = [f"127.8.{n}.1:0" for n in range(20)]
            order = {"rate": 4000, "seconds": 1.0, "datagrams": pool, "sources": sources}
            flooding = asyncio.create_task(process.communicate(json.dumps(order).encode()))
            sent = 0
            while not flooding.done():
                for _ in range(8):
                    await soon(ours.send(sent.to_bytes(4, "big") * 4000))
                    sent += 1
                for n in range(sent - 8, sent):
                    assert (await soon(theirs.receive())).data == n.to_bytes(4, "big") * 4000
            flood = json.loads((await flooding)[0])
            await eventually(lambda: handled(bob) >= flood["sent"] // 2)
            assert tables(bob)[1:] == (0, 0)
            await soon(ours.close())


class TestOnTheWay:
    """Somebody between the peers, who sees and touches every datagram."""

    @pytest.mark.parametrize(
        ("name", "touch", "reasons"),
        [
            ("altered", lambda data: [data, data[:-1] + bytes((data[-1] ^ 4,))], {"datagram.forged"}),
            ("cut", lambda data: [data[: len(data) // 2], data], set()),
            ("repeated", lambda data: [data, data, data], {"datagram.replayed"}),
            ("with bytes behind", lambda data: [data + b"!", data], set()),
            ("swapped halves", lambda data: [data[len(data) // 2 :] + data[: len(data) // 2], data], set()),
        ],
    )
    async def test_every_datagram(self, name: str, touch: Callable[[bytes], list[bytes]], reasons: set[str]) -> None:
        async with victim() as bob, node(listen=[], **UTP) as alice, UdpProxy(port_of(bob)) as proxy:
            # Both ways: the proxy shows what goes towards the upstream, and copies are made there.
            forward = proxy._backs

            def keep(data: bytes) -> bool:
                for back in forward.values():
                    for each in touch(data):
                        if each != data:
                            back.sendto(each, ("127.0.0.1", port_of(bob)))
                    for _ in range(sum(each == data for each in touch(data)) - 1):
                        back.sendto(data, ("127.0.0.1", port_of(bob)))
                return True

            proxy.keep = keep
            ours = await soon(alice.connect(target(bob.id, proxy.port)))
            theirs = await soon(anext(bob))
            for n in range(60):
                await soon(ours.send(n.to_bytes(4, "big") * 3000))
                assert (await soon(theirs.receive())).data == n.to_bytes(4, "big") * 3000
            assert not ours.closed
            assert bob.stats["connections.accepted"] == 1
            if name != "repeated":
                assert handled(bob) >= 60
            for reason in reasons:
                assert bob.stats[reason] >= 60
            proxy.keep = lambda data: True
            await soon(ours.close())
            await eventually(lambda: not bob.connections)

    async def test_everything_kept_and_sent_again_from_elsewhere(self) -> None:
        """An old datagram moves nobody: no answer goes where it came from, not even to a challenge."""
        async with victim() as bob, node(listen=[], **UTP) as alice, UdpProxy(port_of(bob)) as proxy:
            heard: list[bytes] = []
            proxy.keep = lambda data: heard.append(data) or True
            ours = await soon(alice.connect(target(bob.id, proxy.port)))
            theirs = await soon(anext(bob))
            await soon(ours.send(bytes(50_000)))
            await soon(theirs.receive())
            await soon(ours.flush())
            where = theirs.path
            with Sprayer(port_of(bob)) as sprayer:
                await sprayer.spray(bob, list(heard) * 3)
                await soon(theirs.send(bytes(50_000)))
                await soon(theirs.flush())
                assert sprayer.answers() == []
            assert theirs.path == where
            assert not bob.stats["tunnel.new_address"]
            await soon(ours.close())

    async def test_a_faster_copy_from_elsewhere_gets_at_most_three_times_its_bytes(self) -> None:
        """Roaming cannot be aimed at a third party: what takes the place of the original moves no more than a try."""
        async with victim() as bob, node(listen=[], **UTP) as alice, UdpProxy(port_of(bob)) as proxy:
            ours = await soon(alice.connect(target(bob.id, proxy.port)))
            theirs = await soon(anext(bob))
            await soon(ours.send(b"here"))
            await soon(theirs.receive())
            await soon(ours.flush())
            with Sprayer(port_of(bob), 1) as sprayer:
                came = 0

                def redirect(data: bytes) -> bool:
                    nonlocal came
                    if not came:
                        came = len(data)
                        sprayer.sockets[0].sendto(data, ("127.0.0.1", port_of(bob)))
                        return False
                    return True

                proxy.keep = redirect
                sending = asyncio.create_task(theirs.send(bytes(2_000_000)))
                await soon(ours.send(b"from elsewhere"))
                assert (await soon(theirs.receive())).data == b"from elsewhere"
                assert len((await soon(ours.receive())).data) == 2_000_000
                await soon(sending)
                await soon(theirs.flush())
                assert sum(map(len, sprayer.answers())) <= 3 * came
            await soon(ours.close())


def header(kind: PacketType = PacketType.DATA, **fields: int) -> bytes:
    values = {
        "extension": 0,
        "connection_id": 2,
        "timestamp": 1,
        "timestamp_difference": 0,
        "wnd_size": 1 << 20,
        "seq_nr": 0,
        "ack_nr": 0,
    }
    return serialize_header(Header(kind, **{**values, **fields}))


class TestHostilePeer:
    """Who has proved a key, and says what no honest µTP says."""

    @staticmethod
    def numbers(peer: RawUtpPeer) -> tuple[int, int]:
        """The next sequence number of ours, and the last of the node's that we know."""
        assert peer.association is not None
        utp = peer.association.utp
        return utp._sender.flight.next_seq & 0xFFFF, (utp._receiver.buffer.next_seq - 1) & 0xFFFF

    @pytest.mark.parametrize(
        ("name", "make"),
        [
            (
                "an ack of what was never sent",
                lambda seq, ack: (header(PacketType.STATE, ack_nr=ack + 500 & 0xFFFF), b""),
            ),
            (
                "a selective ack of what was never sent",
                lambda seq, ack: (
                    header(PacketType.STATE, ack_nr=ack, extension=Extension.SELECTIVE_ACK),
                    serialize_selective_ack((1 << 900) - 1),
                ),
            ),
            (
                "a chain of extensions",
                lambda seq, ack: (
                    header(ack_nr=ack, seq_nr=seq, extension=100),
                    b"".join(bytes((kind, 0)) for kind in [*range(101, 200), 0]),
                ),
            ),
            ("a SYN", lambda seq, ack: (header(PacketType.SYN, seq_nr=seq, ack_nr=ack), b"")),
            ("an unknown type", lambda seq, ack: (b"\x91" + header(ack_nr=ack)[1:], b"")),
            ("an unknown version", lambda seq, ack: (b"\x0e" + header(ack_nr=ack)[1:], b"")),
            (
                "a part past its end",
                lambda seq, ack: (header(ack_nr=ack, seq_nr=seq, extension=Extension.PART), b"\0\4\0\5\0\6xxx"),
            ),
            ("a RESET from elsewhere", lambda seq, ack: (header(PacketType.RESET, ack_nr=ack + 9000 & 0xFFFF), b"")),
        ],
    )
    async def test_a_violation_ends_its_connection_and_is_counted(
        self, name: str, make: Callable[[int, int], tuple[bytes, bytes]]
    ) -> None:
        async with victim(resume_timeout=0.1) as bob:
            with RawUtpPeer(bob.id, port_of(bob)) as peer:
                await soon(peer.join())
                theirs = await soon(anext(bob))
                peer.say_packet(*make(*self.numbers(peer)))
                await eventually(lambda: theirs.closed)
                assert bob.stats["connections.lost"] == 1
            await assert_friend(bob)
            await eventually(lambda: tables(bob)[1:] == (0, 0))

    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("tiny packets", lambda seq, ack, n: (header(ack_nr=ack, seq_nr=seq + n & 0xFFFF), b"x")),
            ("empty packets", lambda seq, ack, n: (header(ack_nr=ack, seq_nr=seq + n & 0xFFFF), b"")),
            ("every second packet", lambda seq, ack, n: (header(ack_nr=ack, seq_nr=seq + 1 + 2 * n & 0xFFFF), b"xx")),
            ("far ahead", lambda seq, ack, n: (header(ack_nr=ack, seq_nr=seq + 20_000 + n & 0xFFFF), b"xx")),
            ("old packets", lambda seq, ack, n: (header(ack_nr=ack, seq_nr=seq - 1 - n % 50 & 0xFFFF), b"xx")),
            ("repeated acks", lambda seq, ack, n: (header(PacketType.STATE, ack_nr=ack, seq_nr=seq), b"")),
            ("a FIN before the end", lambda seq, ack, n: (header(PacketType.FIN, ack_nr=ack, seq_nr=seq + 9), b"")),
            ("windows", lambda seq, ack, n: (header(PacketType.STATE, ack_nr=ack, seq_nr=seq, wnd_size=n % 3), b"")),
            (
                "clocks",
                lambda seq, ack, n: (
                    header(
                        PacketType.STATE, ack_nr=ack, seq_nr=seq, timestamp=n * 99_999_999 & 0xFFFFFFFF,
                        timestamp_difference=n * 77_777_777 & 0xFFFFFFFF,
                    ),
                    b"",
                ),
            ),
        ],
    )  # fmt: skip
    async def test_a_flood_is_harmless_or_ends_the_connection(
        self, name: str, make: Callable[[int, int, int], tuple[bytes, bytes]]
    ) -> None:
        async with victim(resume_timeout=0.1, receive_window_bytes=256 * 1024) as bob:
            with RawUtpPeer(bob.id, port_of(bob)) as peer:
                await soon(peer.join())
                theirs = await soon(anext(bob))
                sending = asyncio.create_task(theirs.send(bytes(100_000)))
                await asyncio.sleep(0)
                numbers = self.numbers(peer)
                for n in range(3000):
                    if peer.association is None or peer.association.closed:
                        break
                    peer.say_packet(*make(*numbers, n))
                    if n % 20 == 0:
                        await asyncio.sleep(0)
                await assert_friend(bob)
                link = bob._front.endpoint
                assert link.indexes <= 3
                theirs.abort()
                await soon(asyncio.gather(sending, return_exceptions=True))
            await eventually(lambda: not bob.connections)

    async def test_a_window_that_stays_shut(self) -> None:
        """Its sends wait; nobody else's do, and `close` ends."""
        async with victim(close_timeout=0.5, resume_timeout=0.1) as bob:
            with RawUtpPeer(bob.id, port_of(bob)) as peer:
                await soon(peer.join())
                theirs = await soon(anext(bob))
                seq, ack = self.numbers(peer)
                peer.silent = True
                sending = asyncio.create_task(theirs.send(bytes(40_000_000)))
                for _ in range(20):
                    peer.say_packet(header(PacketType.STATE, ack_nr=ack, seq_nr=seq, wnd_size=0))
                    await asyncio.sleep(0)
                await assert_friend(bob)
                await soon(theirs.close())
                await soon(asyncio.gather(sending, return_exceptions=True))

    async def test_drops_of_an_authenticated_peer_are_counted(self) -> None:
        async with victim(resume_timeout=0.1) as bob:
            with RawUtpPeer(bob.id, port_of(bob)) as peer:
                await soon(peer.join())
                theirs = await soon(anext(bob))
                seq, ack = self.numbers(peer)
                peer.say_packet(header(ack_nr=ack, seq_nr=seq + 20_000 & 0xFFFF), b"x")
                name = f"utp.{DropReason.OUT_OF_WINDOW.name.lower()}"
                await eventually(lambda: bob.stats[name] == 1)
                theirs.abort()

    @pytest.mark.parametrize(
        "pieces",
        [
            [frames.serialize_ack(999)],
            [b"\xee"],
            [frames.serialize_messages(5, 4, [b""] * 10_000)] * 30,
            [frames.serialize_messages(1 << 40, 4, [b"x"])] * 2,
            [frames.serialize_fragment(0, 4, 1 << 31, 1, False) + b"x"],
            [frames.serialize_stream_data(0, 9, 1, False) + b"x"],
            [frames.serialize_seed(0, bytes(32))],
            [frames.serialize_signature(0, bytes(136))],
        ],
    )
    async def test_session_frames(self, pieces: list[bytes]) -> None:
        async with victim(resume_timeout=0.1, receive_window_bytes=256 * 1024) as bob:
            with RawUtpPeer(bob.id, port_of(bob)) as peer:
                await soon(peer.join())
                theirs = await soon(anext(bob))
                for piece in pieces:
                    peer.say(piece)
                if pieces[0] == pieces[-1] and len(pieces) == 2:
                    await assert_friend(bob)  # a gap that is never filled is held, and no more
                    theirs.abort()
                else:
                    with pytest.raises(crust.PeerLost, match="broke the protocol"):
                        await soon(theirs.receive())
                    assert bob.stats["protocol_error"] == 1
