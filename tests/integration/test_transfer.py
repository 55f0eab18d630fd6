"""Files from node to node: whole, continued, refused, interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import crust
from crust.node.transfer import (
    STREAM_NAME,
    TransferConflictError,
    TransferError,
    TransferInterruptedError,
    TransferProgress,
    TransferRefusedError,
    TransferResult,
    receive_files,
    refuse_files,
    scan,
    send_files,
)
from crust.node.transfer import destination as destination_module
from crust.node.transfer.digest import supported
from crust.node.transfer.frame import HEADER, Frame, Offer, Plan, pack, parse_header
from crust.node.transfer.manifest import STAGING_NAME, TOP, Entry, Manifest

LARGE = 8 << 20


def config(**settings: Any) -> crust.Config:
    return crust.Config(
        listen=["127.0.0.1:0"], lan=False, port_mapping=False, resume_timeout=1.0, close_timeout=1.0, **settings
    )


class Pair:
    """Two connected nodes."""

    def __init__(self, ada: crust.Connection, ben: crust.Connection, into: Path) -> None:
        self.ada = ada
        self.ben = ben
        self.into = into

    async def stream(self) -> crust.Stream:
        return await anext(self.ben.streams())

    async def receive(self, **options: Any) -> TransferResult:
        return await receive_files(self.ben, await self.stream(), self.into, **options)

    async def transfer(self, source: Path, **options: Any) -> tuple[TransferResult, TransferResult]:
        """Both must succeed."""
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(self.receive(**options))
            sending = group.create_task(send_files(self.ada, scan([source])))
        return sending.result(), receiving.result()

    async def errors(self, source: Path, **options: Any) -> tuple[BaseException, BaseException]:
        """Both must fail."""
        sent, received = await asyncio.gather(
            send_files(self.ada, scan([source])), self.receive(**options), return_exceptions=True
        )
        assert isinstance(sent, BaseException)
        assert isinstance(received, BaseException)
        return sent, received


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    into = tmp_path / "into"
    into.mkdir()
    async with crust.Node(config=config()) as ada, crust.Node(config=config()) as ben:
        connection = await ada.connect(await ben.contact())
        yield Pair(connection, await anext(ben), into)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "sub" / "empty").mkdir(parents=True)
    for number in range(300):
        (top / f"{number}").write_bytes(b"x" * number)
    (top / "sub" / "large").write_bytes(random.Random(3).randbytes(LARGE))
    return top


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


async def test_a_folder(pair: Pair, source: Path) -> None:
    sent, received = await pair.transfer(source)
    assert tree(pair.into / "top") == tree(source)
    assert sent.files == received.files == 301
    assert sent.bytes == received.bytes == sent.transferred_bytes == received.transferred_bytes
    assert sent.hashes_equal
    assert received.hashes_equal
    assert sent.hash_name == received.hash_name
    assert not (pair.into / STAGING_NAME).exists()


async def test_several_transfers_of_one_connection(pair: Pair, source: Path) -> None:
    first, _ = await pair.transfer(source / "sub")
    again, _ = await pair.transfer(source / "sub")
    assert (first.kept_files, again.kept_files) == (0, 1)
    assert again.transferred_bytes == 0


async def test_messages_go_on_meanwhile(pair: Pair, source: Path) -> None:
    transfer = asyncio.create_task(pair.transfer(source))
    await pair.ada.send(b"hello", priority=crust.Priority.HIGH)
    assert (await pair.ben.receive()).data == b"hello"
    await transfer


async def test_progress(pair: Pair, source: Path) -> None:
    progress = TransferProgress()
    _, received = await pair.transfer(source, progress=progress)
    assert progress.phase == "done"
    assert progress.files == progress.files_done == received.files
    assert progress.bytes == progress.bytes_done == received.bytes


async def _interrupt(pair: Pair, source: Path, which: str) -> tuple[Any, Any]:
    """Cancel one side when a part has arrived; returns what both sides ended with."""
    progress = TransferProgress()
    receiving = asyncio.create_task(pair.receive(progress=progress))
    sending = asyncio.create_task(send_files(pair.ada, scan([source])))
    while not progress.bytes_done and not receiving.done():
        await asyncio.sleep(0)
    (receiving if which == "receiver" else sending).cancel()
    return tuple(await asyncio.gather(sending, receiving, return_exceptions=True))


@pytest.mark.parametrize("which", ["sender", "receiver"])
async def test_interrupted_and_continued(pair: Pair, source: Path, which: str) -> None:
    source = source / "sub" / "large"
    source.write_bytes(random.Random(4).randbytes(64 << 20))
    sent, received = await _interrupt(pair, source, which)
    ours, theirs = (sent, received) if which == "sender" else (received, sent)
    assert isinstance(ours, asyncio.CancelledError)
    assert isinstance(theirs, TransferInterruptedError)
    assert str(theirs) == f"the {which} was interrupted"
    assert not (pair.into / "large").exists()
    sent, received = await pair.transfer(source)
    assert (pair.into / "large").read_bytes() == source.read_bytes()
    assert received.resumed_files == sent.resumed_files == 1
    assert received.transferred_bytes == sent.transferred_bytes < sent.bytes


async def test_a_peer_that_waits_for_no_files(pair: Pair, source: Path) -> None:
    async def turn_away() -> None:
        (await pair.stream()).reset()

    turning = asyncio.create_task(turn_away())
    with pytest.raises(TransferRefusedError, match="does not wait for files"):
        await send_files(pair.ada, scan([source]))
    await turning


async def test_refused_by_hand(pair: Pair, source: Path) -> None:
    async def refuse() -> None:
        await refuse_files(pair.ben, await pair.stream(), "not now")

    refusing = asyncio.create_task(refuse())
    with pytest.raises(TransferRefusedError, match="the receiver refuses: not now"):
        await send_files(pair.ada, scan([source]))
    await refusing


async def test_conflict(pair: Pair, source: Path) -> None:
    (pair.into / "top").mkdir()
    (pair.into / "top" / "7").write_bytes(b"another")
    before = tree(pair.into)
    sent, received = await pair.errors(source)
    assert isinstance(received, TransferConflictError)
    assert received.paths == ["top/7"]
    assert isinstance(sent, TransferRefusedError)
    assert "top/7 exists in the destination with other content" in str(sent)
    assert tree(pair.into) == before
    await pair.transfer(source, overwrite=True)
    assert tree(pair.into / "top") == tree(source)


async def test_full_disk(pair: Pair, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def write(descriptor: int, data: memoryview) -> None:
        nonlocal written
        written += len(data)
        if written > LARGE // 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(destination_module, "_write_all", write)
        sent, received = await pair.errors(source)
    for error in (sent, received):
        assert type(error) is TransferError
        assert "top/sub/large cannot be written: No space left on device" in str(error)
    assert not (pair.into / "top" / "sub" / "large").exists()
    for path in (pair.into / "top").rglob("*"):
        assert path.is_dir() or path.read_bytes() == (source / path.relative_to(pair.into / "top")).read_bytes()
    _, again = await pair.transfer(source)
    assert again.resumed_files == 1
    assert tree(pair.into / "top") == tree(source)


@pytest.mark.parametrize("change", ["vanish", "grow"])
async def test_changed_after_the_scan(pair: Pair, source: Path, change: str) -> None:
    found = scan([source])
    if change == "vanish":
        (source / "sub" / "large").unlink()
    else:
        (source / "sub" / "large").write_bytes(b"short")
    sent, received = await asyncio.gather(send_files(pair.ada, found), pair.receive(), return_exceptions=True)
    what = "has vanished" if change == "vanish" else "has changed"
    for error in (sent, received):
        assert type(error) is TransferError
        assert f"top/sub/large {what} while it was being sent" in str(error)
    assert not (pair.into / "top" / "sub" / "large").exists()
    assert not (pair.into / STAGING_NAME).exists()


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_the_connection_is_lost(pair: Pair, source: Path, who: str) -> None:
    (source / "sub" / "large").write_bytes(bytes(64 << 20))
    progress = TransferProgress()
    receiving = asyncio.create_task(pair.receive(progress=progress))
    sending = asyncio.create_task(send_files(pair.ada, scan([source])))
    while not progress.bytes_done:
        await asyncio.sleep(0)
    (pair.ada if who == "sender" else pair.ben).abort()
    sent, received = await asyncio.gather(sending, receiving, return_exceptions=True)
    assert isinstance(sent, (crust.PeerLost, crust.ConnectionClosed))
    assert isinstance(received, (crust.PeerLost, crust.ConnectionClosed))


# --- a hostile sender ------------------------------------------------------------------------------------------------

FILE = Entry("f", TOP, False, 4, 0, False)


async def _answer(stream: crust.Stream) -> tuple[Frame, bytes]:
    kind, length = parse_header(await stream.readexactly(HEADER.size))
    return kind, await stream.readexactly(length)


@pytest.mark.parametrize("name", ["..", "/etc/passwd", "a/../../b", "a\\b", "C:x", "a\0", "a\x1bb", "x\n"])
async def test_hostile_names(pair: Pair, name: str) -> None:
    receiving = asyncio.create_task(pair.receive())
    stream = await pair.ada.open_stream(STREAM_NAME)
    stream.write(Offer(supported(), Manifest([FILE._replace(name=name)]).serialize()).serialize())
    kind, body = await _answer(stream)
    assert kind is Frame.FAIL
    assert body.decode()[1:].isprintable()
    with pytest.raises(TransferRefusedError, match="is refused"):
        await receiving
    assert tree(pair.into) == {}


@pytest.mark.parametrize(
    "first",
    [
        b"\x01\xff\xff\xff\xff",
        b"\x00\x00\x00\x00\x00",
        pack(Frame.DONE),
        pack(Frame.OFFER, b"\x02\x03\x00"),
        pack(Frame.OFFER, b""),
        pack(Frame.OFFER, b"\x01\x00\x00" + bytes(4)),  # no hash function in common
        pack(Frame.OFFER, b"\x01\x03\x00" + b"\xff" * 40),
    ],
)
async def test_offers_that_are_none(pair: Pair, first: bytes) -> None:
    receiving = asyncio.create_task(pair.receive())
    stream = await pair.ada.open_stream(STREAM_NAME)
    stream.write(first)
    with pytest.raises(TransferRefusedError):
        await receiving
    assert (await _answer(stream))[0] is Frame.FAIL
    assert tree(pair.into) == {}


@pytest.mark.parametrize("proof", [b"", b"short", bytes(64)])
async def test_proofs_that_are_none(pair: Pair, proof: bytes) -> None:
    (pair.into / "f").write_bytes(b"mine")
    receiving = asyncio.create_task(pair.receive())
    stream = await pair.ada.open_stream(STREAM_NAME)
    stream.write(Offer(supported(), Manifest([FILE]).serialize()).serialize())
    assert (await _answer(stream))[0] is Frame.PLAN
    stream.write(pack(Frame.PROOF, proof))
    with pytest.raises(TransferRefusedError):
        await receiving
    assert (pair.into / "f").read_bytes() == b"mine"


async def test_a_sender_that_ends_in_the_midst(pair: Pair) -> None:
    receiving = asyncio.create_task(pair.receive())
    stream = await pair.ada.open_stream(STREAM_NAME)
    stream.write(Offer(supported(), Manifest([FILE]).serialize()).serialize())
    assert (await _answer(stream))[0] is Frame.PLAN
    stream.write_eof()
    with pytest.raises(TransferRefusedError, match="too soon"):
        await receiving


async def test_a_sender_that_resets_the_stream(pair: Pair) -> None:
    receiving = asyncio.create_task(pair.receive())
    stream = await pair.ada.open_stream(STREAM_NAME)
    stream.write(Offer(supported(), Manifest([FILE]).serialize()).serialize())
    assert (await _answer(stream))[0] is Frame.PLAN
    stream.reset()
    with pytest.raises(TransferInterruptedError):
        await receiving


# --- a hostile receiver ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"\x02\xff\xff\xff\xff",
        pack(Frame.RESULT, bytes(36)),
        pack(Frame.PLAN, b""),
        pack(Frame.PLAN, b"\x09\x00" + bytes(4)),
        pack(Frame.PLAN, b"\x01\x00\x00\x00\x00\x01" + b"\xff" * 12),
        pack(Frame.PLAN, b"\x01\x00\x00\x00\x00\x00") + pack(Frame.RESULT, bytes(36)),
        pack(Frame.PLAN, b"\x01\x00\x00\x00\x00\x01" + bytes(4) + bytes(8)) + pack(Frame.VERDICT, b""),
    ],
)
async def test_receivers_that_are_none(pair: Pair, source: Path, answer: bytes) -> None:
    async def receive() -> None:
        stream = await pair.stream()
        stream.write(answer)
        with contextlib.suppress(crust.CrustError):
            await stream.read()

    receiving = asyncio.create_task(receive())
    with pytest.raises(crust.CrustError):
        await send_files(pair.ada, scan([source / "7"]))
    receiving.cancel()


async def test_a_receiver_that_did_not_get_everything(pair: Pair, source: Path) -> None:
    async def receive() -> None:
        stream = await pair.stream()
        stream.write(Plan(max(h for h in _hashes() if h.bit & supported()), False, ()).serialize())
        while await stream.read(1 << 20):
            pass
        stream.write(pack(Frame.RESULT, b"\0\0\0\1" + bytes(32)))

    receiving = asyncio.create_task(receive())
    result = await send_files(pair.ada, scan([source / "7"]))
    assert not result.hashes_equal
    await receiving


def _hashes() -> Any:
    from crust.crypto.hashing import HashId

    return HashId
