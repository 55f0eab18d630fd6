"""Nodes whose peers do not sign as they should: cut off, with proof if there is one. What honest ones can rely on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

import crust
from crust.crypto.hashing import Buffer
from crust.crypto.keys import Identity
from crust.errors import BadSignatureError, RemoteProtocolError, SigningMismatchError
from crust.proto.session.outbox import Outbox
from crust.proto.session.signing import LIMIT_BYTES, LIMIT_SECONDS, LIMIT_UNITS, Signer
from crust.testing.pair import Pair
from crust.wire import frames
from crust.wire.receipt import Kind
from crust.wire.statement import PURPOSE, Statement, conflict, parse_body

Sabotage = Callable[[Outbox], None]
"""What a hostile peer does to the sending half of its session, before the first byte goes out."""


def make_node(**settings: Any) -> crust.Node:
    config = crust.Config(listen=["127.0.0.1:0"], transports=["tcp"], lan=False, port_mapping=False, **settings)
    return crust.Node(config=config)


def corrupt(node: crust.Node, sabotage: Sabotage) -> None:
    """Make a started node hostile: every session that it makes from now on is tampered with."""
    core: Any = node._core
    new_connection = core.new_connection

    def tampered(*arguments: Any) -> crust.Connection:
        connection: crust.Connection = new_connection(*arguments)
        sabotage(connection.session.outbox)
        return connection

    core.new_connection = tampered


async def connect(
    hostile: crust.Node, victim: crust.Node, *, dials: bool = True
) -> tuple[crust.Connection, crust.Connection]:
    """The connection between two nodes, as the hostile one and as its victim have it."""
    if dials:
        ours = await hostile.connect(await victim.contact())
        return ours, await anext(victim)
    theirs = await victim.connect(await hostile.contact())
    return await anext(hostile), theirs


def becomes(kind: type[Signer]) -> Sabotage:
    """The signer does as another class says."""

    def sabotage(outbox: Outbox) -> None:
        assert outbox.signer is not None
        outbox.signer.__class__ = kind

    return sabotage


# --- how a peer may misbehave --------------------------------------------------------------------------------------


class Withholding(Signer):
    """Never signs, not even when it closes."""

    def due(self, now: float) -> bool:
        return False

    def next_timeout(self) -> float | None:
        return None

    @property
    def unsigned_units(self) -> int:
        return 0


class Forging(Signer):
    """Sends 64 bytes that are no signature."""

    def sign(self, wall_time: float) -> bytes:
        body = bytearray(super().sign(wall_time))
        body[-1] ^= 1
        return bytes(body)


class Impersonating(Signer):
    """Signs with a key that is not its own."""

    def sign(self, wall_time: float) -> bytes:
        self._identity = Identity.generate()
        return super().sign(wall_time)


class Lying(Signer):
    """Signs other contents than it sends."""

    def add_batch(self, kind: Kind, priority: int, buffers: Sequence[Buffer], now: float) -> int:
        return super().add_batch(kind, priority, [bytes(len(buffer)) for buffer in buffers], now)

    def update(self, priority: int, buffer: Buffer, now: float) -> None:
        super().update(priority, bytes(len(buffer)), now)


class Demoting(Signer):
    """Signs another priority than it sends with."""

    def add_batch(self, kind: Kind, priority: int, buffers: Sequence[Buffer], now: float) -> int:
        return super().add_batch(kind, (priority + 1) % 8, buffers, now)


class Forgetting(Signer):
    """Signs all but the first unit of a batch."""

    def sign(self, wall_time: float) -> bytes:
        body = super().sign(wall_time)
        statement = parse_body(body, self.direction)
        return self.resigned(msgspec.structs.replace(statement, first=statement.first + 1, last=statement.last + 1))

    def resigned(self, statement: Statement) -> bytes:
        signature = self._identity.sign(PURPOSE, statement.signed_data())
        return msgspec.structs.replace(statement, signature=signature).body()


def signs_twice(changes: Callable[[Statement], dict[str, Any]]) -> Sabotage:
    """After each signature comes another over the same numbers, with some fields changed."""

    def sabotage(outbox: Outbox) -> None:
        class Twice(Forgetting):
            def sign(self, wall_time: float) -> bytes:
                body = Signer.sign(self, wall_time)
                statement = parse_body(body, self.direction)
                again = self.resigned(msgspec.structs.replace(statement, **changes(statement)))
                outbox.queue_control(lambda number: frames.serialize_signature(number, again))
                return body

        becomes(Twice)(outbox)

    return sabotage


def sends(*serialize: Callable[[int], bytes], seed_first: bool = True) -> Sabotage:
    """Some frames more than it should, before all data."""

    def sabotage(outbox: Outbox) -> None:
        if not seed_first:
            outbox._control.clear()
        for one in serialize:
            outbox.queue_control(one)

    return sabotage


def seed(number: int) -> bytes:
    return frames.serialize_seed(number, bytes(32))


def garbage(number: int) -> bytes:
    return frames.serialize_signature(number, bytes(136))


CAUGHT_BY_SIGNATURE = {
    "forges": (becomes(Forging), "not made by the peer's key", 0),
    "signs with another key": (becomes(Impersonating), "not made by the peer's key", 0),
    "signs something else": (becomes(Lying), "something else than what was sent", 1),
    "signs another priority": (becomes(Demoting), "something else than what was sent", 1),
    "leaves one out": (becomes(Forgetting), "not over the units that follow", 1),
    "signs twice, another content": (signs_twice(lambda _: {"root": bytes(32)}), "signed twice differently", 2),
    "signs twice, another time": (signs_twice(lambda s: {"time_us": s.time_us + 1}), "signed twice differently", 2),
    "signs twice, another batch": (signs_twice(lambda s: {"batch": s.batch + 1}), "signed twice differently", 2),
    "signs ahead": (
        signs_twice(lambda s: {"batch": s.batch + 1, "first": s.last + 5, "last": s.last + 9}),
        "not over the units that follow",
        1,
    ),
}
CAUGHT_BY_FRAME = {
    "sends its seed late": (sends(seed_first=False), "seed does not come first"),
    "sends its seed twice": (sends(seed), "a seed for signatures that were not agreed"),
    "signs before its seed": (sends(garbage, seed_first=False), "a signature that was not agreed"),
}


async def assert_unharmed(node: crust.Node) -> None:
    """Somebody else finds the node as it should be."""
    async with make_node(signing=node.config.signing) as friend:
        ours, theirs = await connect(friend, node)
        await ours.send(b"hello")
        message = await theirs.receive()
        if node.config.signing != "off":
            assert (await message.receipt()).verify(b"hello") == friend.id
        await ours.close()


async def push(connection: crust.Connection, data: bytes) -> None:
    """Send until the peer is lost."""
    with contextlib.suppress(crust.PeerLost):
        while True:
            for _ in range(256):
                await connection.send(data)
            await asyncio.sleep(0)  # a message without bytes fills no queue


async def drain(connection: crust.Connection) -> list[bytes]:
    """Receive until the peer is lost."""
    got = []
    with contextlib.suppress(crust.PeerLost):
        while True:
            got.append((await connection.receive()).data)
    return got


async def lost(node: crust.Node, theirs: crust.Connection, events: Any) -> crust.PeerLost:
    """How a victim loses a hostile peer, told by everything that tells it."""
    error = await theirs.wait_ended()
    assert isinstance(error, crust.PeerLost)
    async for event in events:
        if isinstance(event, crust.PeerLost):
            assert event is error
            break
    assert error.peer == theirs.peer
    assert error.reason.startswith("the peer broke the protocol: ")
    assert isinstance(error.__cause__, RemoteProtocolError)
    await drain(theirs)
    with pytest.raises(crust.PeerLost):
        await theirs.send(b"")
    assert theirs not in node.connections
    assert node.stats["protocol_error"] == 1
    assert node.stats["connections.lost"] == 1
    return error


@pytest.mark.parametrize("signing", ["on", "strict"])
@pytest.mark.parametrize("dials", [True, False], ids=["dialling", "dialled"])
@pytest.mark.parametrize("how", CAUGHT_BY_SIGNATURE)
async def test_who_signs_falsely_is_cut_off_with_proof(how: str, dials: bool, signing: str) -> None:
    sabotage, reason, statements = CAUGHT_BY_SIGNATURE[how]
    async with asyncio.timeout(20), make_node(signing=signing) as victim, make_node(signing=signing) as hostile:
        events = victim.events()
        corrupt(hostile, sabotage)
        ours, theirs = await connect(hostile, victim, dials=dials)
        await ours.send(b"one")
        await ours.send(b"two")
        error = await lost(victim, theirs, events)
        assert reason in error.reason
        assert victim.stats["protocol_error.signature"] == 1
        assert isinstance(error.__cause__, BadSignatureError)
        assert error.proof == error.__cause__.proof
        assert len(error.proof) == statements
        for statement in error.proof:
            # A third party gets them as bytes.
            assert Statement.from_bytes(bytes(statement)) == statement
            assert statement.is_genuine()
            assert statement.direction.sender == hostile.id
            assert statement.direction.receiver == victim.id
        if statements == 2:
            assert conflict(*error.proof) == hostile.id
        assert isinstance(await ours.wait_ended(), crust.PeerLost)  # also who knows no way back need not wait
        await assert_unharmed(victim)


@pytest.mark.parametrize("size", [10, 30_000, 3_000_000], ids=["packed", "fragment", "fragments"])
@pytest.mark.parametrize("what", ["message", "stream"])
async def test_every_way_of_sending_is_covered(what: str, size: int) -> None:
    """Pieces of streams too: there is no receipt for one, but who signs another content is found out."""
    async with asyncio.timeout(20), make_node() as victim, make_node() as hostile:
        events = victim.events()
        corrupt(hostile, becomes(Lying))
        ours, theirs = await connect(hostile, victim)
        if what == "message":
            await ours.send(b"x" * size)
        else:
            stream = await ours.open_stream("s")
            stream.write(b"x" * size)
        [statement] = (await lost(victim, theirs, events)).proof
        ours.abort()
        assert conflict_free(statement)


def conflict_free(statement: Statement) -> bool:
    """One statement alone contradicts nothing."""
    with pytest.raises(crust.ReceiptError):
        conflict(statement, statement)
    return statement.is_genuine()


@pytest.mark.parametrize("dials", [True, False], ids=["dialling", "dialled"])
@pytest.mark.parametrize("how", CAUGHT_BY_FRAME)
async def test_who_breaks_the_order_of_signing_is_cut_off(how: str, dials: bool) -> None:
    sabotage, reason = CAUGHT_BY_FRAME[how]
    async with asyncio.timeout(20), make_node() as victim, make_node() as hostile:
        events = victim.events()
        corrupt(hostile, sabotage)
        ours, theirs = await connect(hostile, victim, dials=dials)
        # The hostile peer may be cut off before it can say this.
        with_data = asyncio.ensure_future(ours.send(b"one"))
        error = await lost(victim, theirs, events)
        await asyncio.gather(with_data, return_exceptions=True)
        ours.abort()
        assert reason in error.reason
        assert error.proof == ()
        assert victim.stats["protocol_error.signature"] == 0
        await assert_unharmed(victim)


@pytest.mark.parametrize("frame", [seed, garbage], ids=["seed", "signature"])
async def test_who_signs_where_signing_is_off_is_cut_off(frame: Callable[[int], bytes]) -> None:
    async with asyncio.timeout(20), make_node(signing="off") as victim, make_node(signing="off") as hostile:
        events = victim.events()
        corrupt(hostile, sends(frame))
        ours, theirs = await connect(hostile, victim)
        assert "not agreed" in (await lost(victim, theirs, events)).reason
        ours.abort()
        await assert_unharmed(victim)


@pytest.mark.parametrize(("size", "reason"), [(0, f"over {LIMIT_UNITS:,} messages"), (60_000, "over 16 MiB")])
async def test_who_withholds_its_signature_is_cut_off(size: int, reason: str) -> None:
    async with asyncio.timeout(30), make_node() as victim, make_node() as hostile:
        events = victim.events()
        corrupt(hostile, becomes(Withholding))
        ours, theirs = await connect(hostile, victim)
        pushing = asyncio.create_task(push(ours, bytes(size)))
        assert sum(map(len, await drain(theirs))) <= LIMIT_BYTES + (1 << 20)  # what stood in one more read
        error = await lost(victim, theirs, events)
        assert reason in error.reason
        assert victim.stats["protocol_error.signature"] == 1
        await pushing
        await assert_unharmed(victim)


def test_who_withholds_its_signature_and_keeps_talking_is_cut_off_in_time() -> None:
    pair = Pair(signing=True)
    pair.add_path()
    pair.settle()
    becomes(Withholding)(pair.a.session.outbox)
    started = pair.clock.now
    while pair.b.ended is None:
        pair.a.session.send(b"tick", 4, None)
        pair.run(0.25)
        assert pair.clock.now < started + LIMIT_SECONDS + 1
    assert isinstance(pair.b.ended, crust.PeerLost)
    assert "withheld for 5 s" in pair.b.ended.reason


async def test_who_closes_without_signing_is_not_closed_in_order() -> None:
    async with asyncio.timeout(20), make_node() as victim, make_node() as hostile:
        events = victim.events()
        corrupt(hostile, becomes(Withholding))
        ours, theirs = await connect(hostile, victim)
        await ours.send(b"one")
        message = await theirs.receive()
        closing = asyncio.create_task(ours.close())
        error = await lost(victim, theirs, events)
        assert "closed without signing" in error.reason
        with pytest.raises(crust.ReceiptUnavailable) as caught:
            await message.receipt()
        assert caught.value.__cause__ is error
        await closing
        await assert_unharmed(victim)


# --- agreement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialling", ["on", "strict", "off"])
@pytest.mark.parametrize("dialled", ["on", "strict", "off"])
async def test_signing_is_off_only_by_agreement(dialling: str, dialled: str) -> None:
    async with asyncio.timeout(20), make_node(signing=dialling) as ada, make_node(signing=dialled) as ben:
        contact = await ben.contact()
        if (dialling == "off") == (dialled == "off"):
            ours, theirs = await connect(ada, ben)
            assert ours.signed == theirs.signed == (dialling != "off")
            await ours.send(b"data")
            message = await theirs.receive()
            if ours.signed:
                assert (await message.receipt()).verify(b"data") == ada.id
            else:
                with pytest.raises(crust.ReceiptUnavailable, match="signing is off"):
                    await message.receipt()
            return
        with pytest.raises(SigningMismatchError, match="one side signs and the other does not") as caught:
            await ada.connect(contact)
        assert caught.value.report is not None
        assert caught.value.report.attempts[-1].outcome == "signing mismatch"
        assert ben.stats["refused.signing_mismatch"] >= 1
        assert ben.connections == ada.connections == []


# --- strict mode ---------------------------------------------------------------------------------------------------


async def test_strict_mode_delivers_nothing_unverified() -> None:
    async with asyncio.timeout(20), make_node(signing="strict") as victim, make_node() as hostile:
        corrupt(hostile, becomes(Withholding))
        ours, theirs = await connect(hostile, victim)
        await ours.send(b"message")
        await ours.send(b"large" * 100_000)
        stream = await ours.open_stream("s")
        stream.write(b"stream")
        streams = aiter(theirs.streams())
        first = asyncio.ensure_future(anext(streams))
        receiving = asyncio.ensure_future(theirs.receive())
        await ours.flush()  # the victim has all of it
        await theirs.ping()
        assert not receiving.done()
        assert not first.done()
        assert not theirs.session.inbox.has_message
        becomes(Signer)(ours.session.outbox)
        await ours.send(b"last")
        assert (await receiving).data == b"message"
        assert [(await theirs.receive()).data for _ in range(2)] == [b"large" * 100_000, b"last"]
        assert await (await first).read(100) == b"stream"


@pytest.mark.parametrize("how", CAUGHT_BY_SIGNATURE)
async def test_strict_mode_delivers_nothing_that_is_falsely_signed(how: str) -> None:
    sabotage, _, _ = CAUGHT_BY_SIGNATURE[how]
    async with asyncio.timeout(20), make_node(signing="strict") as victim, make_node() as hostile:
        corrupt(hostile, sabotage)
        ours, theirs = await connect(hostile, victim)
        await ours.send(b"one")
        stream = await ours.open_stream("s")
        stream.write(b"two")
        await theirs.wait_ended()
        ours.abort()
        # Where the first signature was right, what it covers is delivered.
        assert await drain(theirs) == ([b"one"] if how.startswith(("signs twice", "signs ahead")) else [])


def lose_path(connection: crust.Connection) -> None:
    """The socket is gone, as after a reset."""
    for path in list(connection._paths.values()):
        path.abort()


@pytest.mark.parametrize("signing", ["on", "strict"])
async def test_receipts_and_order_outlive_the_path(signing: str) -> None:
    async with asyncio.timeout(30), make_node(signing=signing) as ada, make_node(signing=signing) as ben:
        ours, theirs = await connect(ada, ben)
        stream = await ours.open_stream("s")
        said = [b"%d" % number * (1 + number % 7 * 3000) for number in range(300)]

        async def talk() -> None:
            for number, data in enumerate(said):
                await ours.send(data)
                stream.write(data)
                await stream.drain()
                if number % 60 == 30:
                    lose_path(ours if number % 120 == 30 else theirs)
            stream.write_eof()

        async def listen() -> list[crust.Message]:
            return [await theirs.receive() for _ in said]

        async def read() -> bytes:
            return await (await anext(aiter(theirs.streams()))).read()

        _, messages, streamed = await asyncio.gather(talk(), listen(), read())
        assert streamed == b"".join(said)
        assert [message.data for message in messages] == said
        numbers = []
        for message in messages:
            receipt = await message.receipt()
            assert receipt.verify(message.data) == ada.id
            numbers.append(receipt.claims.number)
        assert numbers == sorted(set(numbers))
        assert len(theirs.paths) > 1
        assert ben.stats["protocol_error.signature"] == 0


async def test_a_signature_written_before_the_path_was_lost_is_repeated_as_it_was() -> None:
    """A second one over the same numbers, with a later time, would be proof of treachery."""
    async with asyncio.timeout(20), make_node() as ada, make_node() as ben:
        ours, theirs = await connect(ada, ben)
        await ours.send(b"one")
        first = await theirs.receive()
        receipt = await first.receipt()
        for number in range(3):
            await ours.send(b"%d" % number)
            lose_path(ours)
            message = await theirs.receive()
            assert (await message.receipt()).verify(message.data) == ada.id
        assert await first.receipt() == receipt


# --- receipts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closes", [True, False], ids=["sender closes", "receiver closes"])
async def test_receipts_after_an_orderly_close(closes: bool) -> None:
    async with asyncio.timeout(20), make_node() as ada, make_node() as ben:
        ours, theirs = await connect(ada, ben)
        for number in range(10):
            await ours.send(b"%d" % number)
        if closes:
            await ours.close()
            messages = [message async for message in theirs]
        else:
            messages = [await theirs.receive() for _ in range(10)]
            await theirs.close()
        assert isinstance(await theirs.wait_ended(), crust.ConnectionClosed)
        for number, message in enumerate(messages):
            assert (await message.receipt()).verify(b"%d" % number) == ada.id
        assert len(messages) == 10


async def test_no_receipt_for_what_was_lost_before_it_was_signed() -> None:
    async with asyncio.timeout(20), make_node() as victim, make_node() as hostile:
        ours, theirs = await connect(hostile, victim)
        await ours.send(b"signed")
        signed = await theirs.receive()
        receipt = await signed.receipt()
        becomes(Withholding)(ours.session.outbox)
        await ours.send(b"unsigned")
        unsigned = await theirs.receive()
        waiting = asyncio.ensure_future(unsigned.receipt())
        await theirs.ping()
        assert not waiting.done()
        theirs.abort()
        with pytest.raises(crust.ReceiptUnavailable, match="lost before") as caught:
            await waiting
        ours.abort()
        assert isinstance(caught.value.__cause__, crust.PeerLost)
        assert await signed.receipt() == receipt


async def test_a_receipt_can_be_awaited_by_many_and_given_up_by_some() -> None:
    async with asyncio.timeout(20), make_node() as ada, make_node() as ben:
        ours, theirs = await connect(ada, ben)
        await ours.send(b"data")
        message = await theirs.receive()
        waiting = [asyncio.ensure_future(message.receipt()) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        receipts = await asyncio.gather(*waiting[1:])
        assert len(set(receipts)) == 1
        assert receipts[0].verify(b"data") == ada.id
