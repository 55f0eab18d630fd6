"""Claims of a transfer and the receipts for them: compared with what came, waited for together, kept by file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import crust
from crust.node.message import Message
from crust.node.transfer import (
    ClaimHandler,
    ReceiptFolder,
    TransferError,
    TransferRefusedError,
    TransferResult,
    await_signatures,
    receive_files,
    scan,
    send_files,
)
from crust.node.transfer import outflow as outflow_module
from crust.node.transfer.digest import claim


def config(**settings: Any) -> crust.Config:
    return crust.Config(listen=["127.0.0.1:0"], lan=False, port_mapping=False, **settings)


async def transfer(
    sources: Sequence[Path], into: Path, handler: ClaimHandler | None, **settings: Any
) -> tuple[TransferResult, TransferResult, crust.PeerId]:
    """Send something from one new node to another; what both sides say, and who the sender was."""
    into.mkdir(exist_ok=True)
    async with (
        asyncio.timeout(30),
        crust.Node(config=config(**settings)) as ada,
        crust.Node(config=config(**settings)) as ben,
    ):
        connection = await ada.connect(await ben.contact())

        async def receive() -> TransferResult:
            accepted = await anext(ben)
            stream = await anext(accepted.streams())
            return await receive_files(accepted, stream, into, on_claims=handler)

        receiving = asyncio.create_task(receive())
        try:
            sent = await send_files(connection, scan(sources))
        except crust.CrustError:
            await receiving  # the receiver's error tells more
            raise
        return sent, await receiving, ada.id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of all sorts, small and large ones."""
    top = tmp_path / "album"
    (top / "deep" / "er").mkdir(parents=True)
    for number in range(200):
        (top / "deep" / f"{number}.txt").write_bytes(b"%d" % number)
    (top / "empty").write_bytes(b"")
    (top / "deep" / "er" / "big").write_bytes(os.urandom(3_000_000))
    return top


def receipts_in(directory: Path) -> dict[str, crust.Receipt]:
    return {
        path.relative_to(directory).as_posix(): crust.Receipt.from_bytes(path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("signing", ["on", "strict"])
async def test_a_receipt_for_each_file(folder: Path, tmp_path: Path, signing: str) -> None:
    (tmp_path / "receipts").mkdir()
    keeper = ReceiptFolder(tmp_path / "receipts", tmp_path / "in")
    sent, received, sender = await transfer([folder], tmp_path / "in", keeper.keep, signing=signing)
    files = sorted(path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if path.is_file())
    assert sent.claims == received.claims == keeper.kept == len(files) == 202
    assert keeper.failures == []
    receipts = receipts_in(tmp_path / "receipts")
    assert sorted(receipts) == [f"{name}.receipt" for name in files]
    for name in files:
        assert receipts[f"{name}.receipt"].verify_file(tmp_path / "in" / name) == sender
    with pytest.raises(crust.ReceiptError):
        receipts["album/empty.receipt"].verify_file(folder / "deep" / "0.txt")


async def test_files_that_are_there_already_are_claimed_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "receipts").mkdir()
    await transfer([folder], tmp_path / "in", None)
    os.truncate(tmp_path / "in" / "album" / "empty", 0)
    (tmp_path / "in" / "album" / "deep" / "7.txt").unlink()
    for _ in range(2):  # receipts of an earlier time are replaced
        keeper = ReceiptFolder(tmp_path / "receipts", tmp_path / "in")
        _, received, sender = await transfer([folder], tmp_path / "in", keeper.keep)
        assert (keeper.kept, keeper.failures) == (202, [])
    assert received.kept_files == 202
    receipt = receipts_in(tmp_path / "receipts")["album/deep/er/big.receipt"]
    assert receipt.verify_file(folder / "deep" / "er" / "big") == sender


async def test_signatures_are_waited_for_together(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1000):
        (folder / str(number)).write_bytes(b"x")
    calls = []

    async def handler(claims: Sequence[tuple[str, Message]]) -> None:
        calls.append(len(claims))
        await await_signatures(claims)

    await transfer([folder], tmp_path / "in", handler)
    assert sum(calls) == 1000
    assert len(calls) < 500


async def test_no_claims_unless_asked_for(folder: Path, tmp_path: Path) -> None:
    sent, received, _ = await transfer([folder], tmp_path / "in", None)
    assert sent.claims == received.claims == 0


async def test_no_files_no_claims(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    sent, received, _ = await transfer([tmp_path / "nothing"], tmp_path / "in", await_signatures)
    assert sent.claims == received.claims == 0


@pytest.mark.parametrize("wrong", ["size", "hash", "function"])
async def test_a_claim_for_something_else_ends_the_transfer(
    folder: Path, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(size: int, hash_id: Any, digest: bytes) -> bytes:
        if size != 3_000_000:
            return claim(size, hash_id, digest)
        if wrong == "function":
            return claim(size, type(hash_id)(3 - hash_id), digest)
        return claim(size + 1, hash_id, digest) if wrong == "size" else claim(size, hash_id, bytes(32))

    monkeypatch.setattr(outflow_module, "claim", lie)
    with pytest.raises(TransferRefusedError, match="a claim for another content"):
        await transfer([folder], tmp_path / "in", await_signatures)


async def test_a_failing_handler_ends_the_transfer(folder: Path, tmp_path: Path) -> None:
    async def handler(claims: Sequence[tuple[str, Message]]) -> None:
        raise TransferError("enough of it")

    with pytest.raises(TransferError, match="enough of it"):
        await transfer([folder], tmp_path / "in", handler)


async def test_what_cannot_be_kept_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "top"
    (folder / "b.receipt").mkdir(parents=True)
    (folder / "b.receipt" / "inner").write_bytes(b"inner")
    for name in ("a", "b", "c", "d" * 250):
        (folder / name).write_bytes(name.encode())
    receipts = tmp_path / "receipts"
    (receipts / "top").mkdir(parents=True)
    (receipts / "top" / "a.receipt").write_bytes(b"somebody's notes")
    (receipts / "top" / "c.receipt").symlink_to(tmp_path / "elsewhere")
    keeper = ReceiptFolder(receipts, tmp_path / "in")
    _, received, _ = await transfer([folder], tmp_path / "in", keeper.keep)
    assert received.files == 5
    assert keeper.kept == 1
    for name, text in zip(("a", "b", "c", "ddd"), sorted(keeper.failures), strict=True):
        assert text.startswith(f"no receipt is kept for top/{name}")
    assert (receipts / "top" / "a.receipt").read_bytes() == b"somebody's notes"
    assert not (tmp_path / "elsewhere").exists()
    assert not [path for path in receipts.rglob("*") if path.name.endswith(".new")]


@pytest.mark.parametrize("within", [".", "receipts"])
async def test_no_receipt_takes_the_place_of_a_received_file(tmp_path: Path, within: str) -> None:
    """A sender sends a receipt under the very name that the receipt for another of its files is to have."""
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "kept").mkdir()
    await transfer([tmp_path / "x"], tmp_path / "in", ReceiptFolder(tmp_path / "kept", tmp_path / "in").keep)
    genuine = (tmp_path / "kept" / "x.receipt").read_bytes()

    planted = tmp_path / "source" / within / "z" / "x.receipt"
    planted.parent.mkdir(parents=True)
    planted.write_bytes(genuine)
    (tmp_path / "source" / "z").mkdir(exist_ok=True)
    (tmp_path / "source" / "z" / "x").write_bytes(b"other")
    into = tmp_path / "into"
    keeper = ReceiptFolder(into / within, into)
    try:
        await transfer(sorted((tmp_path / "source").iterdir()), into, keeper.keep)
    except TransferError as error:
        # The receipt was there first: then it is the transfer that replaces nothing.
        assert "has appeared in the destination" in str(error)  # noqa: PT017 - either end is right
    else:
        assert (into / within / "z" / "x.receipt").read_bytes() == genuine
        assert len(keeper.failures) == 1
