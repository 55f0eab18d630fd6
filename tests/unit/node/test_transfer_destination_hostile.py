"""A disk that fails, a sender that changes its files or lies: what the destination makes of it."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import pytest

from crust.errors import RemoteProtocolError
from crust.node.transfer import TransferConflictError, TransferError, TransferProgress, scan
from crust.node.transfer import destination as destination_module
from crust.node.transfer.destination import Destination, TransferStopped
from crust.node.transfer.digest import digest
from crust.node.transfer.frame import FILE, WHOLE, Frame, PlanItem, pack
from crust.node.transfer.intake import Intake
from crust.node.transfer.manifest import TOP, Entry, Manifest
from tests.unit.node.transfer_support import HASH, LARGE, Transfer, failing, tree

# --- a disk that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_in_the_midst(top: Path, into: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    transfer = Transfer(scan([top]), into)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(number))
        with pytest.raises(TransferError, match=os.strerror(number)):
            transfer.run()
    assert not [path for path in into.rglob("*") if path.is_file() and path.stat().st_size]
    # And on with it, once there is room again.
    Transfer(scan([top]), into).run()
    assert tree(into / "top") == tree(top)


def test_too_large_for_the_file_system(top: Path, into: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, hard))
    try:
        with pytest.raises(TransferError, match="sub/large cannot be written: File too large"):
            Transfer(scan([top]), into).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (into / "top" / "sub" / "large").exists()
    again = Transfer(scan([top]), into)
    again.run()
    assert again.destination.resumed_files == 1
    assert tree(into / "top") == tree(top)


def test_no_room_is_seen_before_anything_is_sent(top: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = destination_module.shutil.disk_usage(into)
    monkeypatch.setattr(destination_module.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(TransferError, match=r"not enough room.* 1,000 free"):
        Transfer(scan([top]), into).run()
    assert tree(into) == {}


def test_a_destination_that_is_gone(top: Path, into: Path) -> None:
    into.rmdir()
    with pytest.raises(TransferError, match="No such file"):
        Transfer(scan([top]), into)


def test_reading_stops_when_the_transfer_does(top: Path, into: Path) -> None:
    Transfer(scan([top]), into).run()
    again = Transfer(scan([top]), into)
    again.destination.plan()
    again.stop.set()
    with pytest.raises(TransferStopped):
        again.destination.hash_found(HASH)
    again.destination.release()


# --- a sender that changes or lies -----------------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_sent(top: Path, into: Path) -> None:
    transfer = Transfer(scan([top / "sub" / "large"]), into)
    transfer.agree()
    assert transfer.plan is not None
    blocks = transfer.outflow.blocks(transfer.plan)
    next(blocks)
    with open(top / "sub" / "large", "ab") as file:
        file.write(b"more")
    with pytest.raises(TransferError, match="large has changed"):
        list(blocks)
    transfer.destination.release()


@pytest.mark.parametrize("length", [0, 10, LARGE - 1])
def test_a_file_that_shrinks_while_it_is_sent(top: Path, into: Path, length: int) -> None:
    transfer = Transfer(scan([top / "sub" / "large"]), into)
    transfer.agree()
    assert transfer.plan is not None
    blocks = transfer.outflow.blocks(transfer.plan)
    next(blocks)
    os.truncate(top / "sub" / "large", length)
    with pytest.raises(TransferError, match="large has changed"):
        list(blocks)
    transfer.destination.release()


def test_a_proof_of_a_file_that_shrank(top: Path, into: Path) -> None:
    Transfer(scan([top / "small"]), into).run()
    transfer = Transfer(scan([top / "small"]), into)
    (top / "small").write_text("")
    with pytest.raises(TransferError, match="changed"):
        transfer.run()


def offered(into: Path, *entries: Entry) -> tuple[Destination, Intake]:
    manifest = Manifest(list(entries))
    place = Destination(
        str(into), "liar", manifest, overwrite=False, progress=TransferProgress(), stop=threading.Event()
    )
    place.plan()
    place.accept(HASH, [])
    return place, Intake(place)


FILE_ENTRY = Entry("f", TOP, False, 4, 0, False)
FOLDER_ENTRY = Entry("d", TOP, True, 0, 0, False)
GOOD = digest(HASH, b"data")


def whole(number: int, data: bytes, file_digest: bytes = GOOD) -> bytes:
    return pack(Frame.WHOLE, WHOLE.pack(number, file_digest) + data)


def begin(number: int, offset: int = 0) -> bytes:
    return pack(Frame.FILE, FILE.pack(number, offset))


def data(content: bytes) -> bytes:
    return pack(Frame.DATA, content)


def end(file_digest: bytes = GOOD) -> bytes:
    return pack(Frame.END, file_digest)


DONE = pack(Frame.DONE)


def _take(intake: Intake, stream: bytes) -> None:
    intake.feed(stream)
    intake.done()


@pytest.mark.parametrize(
    "stream",
    [
        whole(1, b"data"),  # a folder
        whole(7, b"data"),  # not offered
        whole(0, b"dat"),
        whole(0, b"datax"),
        whole(0, b"data") + whole(0, b"data"),
        whole(0, b"data") + begin(0),
        begin(1),
        begin(7),
        begin(0, 1),
        begin(0) + begin(0),
        begin(0) + whole(0, b"data"),
        begin(0) + data(b"datax"),
        begin(0) + data(b"dat") + data(b"ax"),
        begin(0) + data(b"dat") + end(),
        data(b"data"),
        end(),
        begin(0) + data(b"data") + DONE,
        DONE + whole(0, b"data"),
        DONE + DONE,
        pack(Frame.RESULT, bytes(36)),
        pack(Frame.PLAN, bytes(6)),
        pack(Frame.END, b"short"),
        pack(Frame.FILE, b"short"),
        pack(Frame.WHOLE, b"short"),
        b"\x00\x00\x00\x00\x00",
        b"\x06\xff\xff\xff\xff",
    ],
)
def test_streams_that_are_none(into: Path, stream: bytes) -> None:
    place, intake = offered(into, FILE_ENTRY, FOLDER_ENTRY)
    with pytest.raises(RemoteProtocolError):
        _take(intake, stream)
    place.release()


@pytest.mark.parametrize("stream", [b"", begin(0), begin(0) + data(b"data"), DONE])
def test_streams_that_end_too_soon(into: Path, stream: bytes) -> None:
    place, intake = offered(into, FILE_ENTRY)
    with pytest.raises(RemoteProtocolError):
        _take(intake, stream)
    place.release()
    assert not (into / "f").exists()


@pytest.mark.parametrize("stream", [whole(0, b"evil"), begin(0) + data(b"evil") + end()])
def test_content_that_is_not_that_of_its_hash(into: Path, stream: bytes) -> None:
    place, intake = offered(into, FILE_ENTRY)
    with pytest.raises(TransferError, match="another content"):
        intake.feed(stream)
    place.release()
    assert tree(into) == {}


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_sender_that_gives_up(into: Path, kind: int) -> None:
    place, intake = offered(into, FILE_ENTRY)
    with pytest.raises(TransferError, match="sender"):
        intake.feed(begin(0) + data(b"da") + pack(Frame.FAIL, bytes((kind,)) + b"why"))
    place.release()
    # What an interruption left is kept for another time; what changed is of no use.
    assert bool(list(into.rglob("*"))) == (kind == 3)


@pytest.mark.parametrize("mtime", [-(1 << 63), (1 << 63) - 1, 0])
def test_times_that_no_disk_can_hold(into: Path, mtime: int) -> None:
    place, intake = offered(into, FILE_ENTRY._replace(mtime_ns=mtime), FOLDER_ENTRY._replace(mtime_ns=mtime))
    intake.feed(whole(0, b"data") + DONE)
    intake.done()
    place.release()
    assert (into / "f").read_bytes() == b"data"


def test_a_proof_must_match(top: Path, into: Path) -> None:
    """A sender that lacks what it offers learns nothing of the file that is there, and changes nothing."""
    (into / "f").write_bytes(b"mine")
    place = Destination(
        str(into),
        "liar",
        Manifest([FILE_ENTRY]),
        overwrite=False,
        progress=TransferProgress(),
        stop=threading.Event(),
    )
    assert place.plan() == [PlanItem(0, 4)]
    place.hash_found(HASH)
    with pytest.raises(TransferConflictError):
        place.accept(HASH, [bytes(32)])
    place.release()
    assert (into / "f").read_bytes() == b"mine"
