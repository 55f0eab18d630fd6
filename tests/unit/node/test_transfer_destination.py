"""From a sender's disk to a receiver's, without a connection: what is written, continued, refused and left behind."""

from __future__ import annotations

import errno
import os
import random
import resource
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crust.crypto.hashing import HashId
from crust.errors import RemoteProtocolError
from crust.node.transfer import TransferConflictError, TransferError, TransferProgress, TransferRefusedError, scan
from crust.node.transfer import destination as destination_module
from crust.node.transfer.destination import Destination, TransferStopped
from crust.node.transfer.digest import DIGEST_BYTES, digest
from crust.node.transfer.frame import FILE, SMALL_FILE_BYTES, WHOLE, Frame, Plan, PlanItem, pack
from crust.node.transfer.intake import Intake
from crust.node.transfer.manifest import STAGING_NAME, TOP, Entry, Manifest
from crust.node.transfer.outflow import Outflow
from crust.node.transfer.source import Source

HASH = HashId.SHA256
LARGE = SMALL_FILE_BYTES * 3 + 17


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    top = tmp_path / "top"
    (top / "empty").mkdir(parents=True)
    (top / "sub").mkdir()
    (top / "small").write_text("small")
    (top / "nothing").write_bytes(b"")
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o700)
    (top / "sub" / "large").write_bytes(random.Random(1).randbytes(LARGE))
    (top / "sub" / "edge").write_bytes(bytes(SMALL_FILE_BYTES))
    for path in (top / "small", top / "sub" / "large", top / "sub"):
        os.utime(path, ns=(5, 1_500_000_000_123_456_789))
    return top


@pytest.fixture
def into(tmp_path: Path) -> Path:
    into = tmp_path / "into"
    into.mkdir()
    return into


class Transfer:
    """Both sides in one thread."""

    def __init__(self, source: Source, into: Path, *, overwrite: bool = False, peer: str = "peer") -> None:
        self.progress = TransferProgress()
        self.outflow = Outflow(source, TransferProgress(), threading.Event())
        self.stop = threading.Event()
        self.destination = Destination(
            str(into), peer, source.manifest, overwrite=overwrite, progress=self.progress, stop=self.stop
        )
        self.plan: Plan | None = None

    def agree(self) -> None:
        self.plan = Plan(HASH, True, tuple(self.destination.plan()))
        self.destination.hash_found(HASH)
        proofs = self.outflow.proofs(self.plan)
        parts = [proofs[at : at + DIGEST_BYTES] for at in range(0, len(proofs), DIGEST_BYTES)]
        self.outflow.keep(self.plan, self.destination.accept(HASH, parts))

    def stream(self) -> bytes:
        assert self.plan is not None
        return b"".join(piece for block in self.outflow.blocks(self.plan) for piece in block.pieces)

    def run(self, cut: Iterator[int] | None = None) -> bytes:
        """Everything; the stream is cut where `cut` says."""
        try:
            self.agree()
            intake = Intake(self.destination)
            data = self.stream()
            at = 0
            while at < len(data):
                size = next(cut) if cut else len(data)
                intake.feed(data[at : at + size])
                at += size
            return intake.done()
        finally:
            self.destination.release()


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def test_a_fresh_transfer(top: Path, into: Path) -> None:
    transfer = Transfer(scan([top]), into)
    total = transfer.run()
    assert tree(into / "top") == tree(top)
    assert not (into / STAGING_NAME).exists()
    assert total == transfer.outflow.total_digest()
    assert (into / "top" / "small").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert (into / "top" / "sub" / "large").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert (into / "top" / "sub").stat().st_mtime_ns == 1_500_000_000_123_456_789
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((into / "top" / "run").stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((into / "top" / "small").stat().st_mode) == 0o666 & ~umask
    progress = transfer.progress
    assert (progress.files, progress.files_done) == (5, 5)
    assert progress.bytes == progress.bytes_done == transfer.destination.transferred_bytes


@pytest.mark.parametrize("seed", range(5))
def test_the_stream_may_be_cut_anywhere(top: Path, into: Path, seed: int) -> None:
    draw = random.Random(seed)
    (top / "sub" / "edge").unlink()
    sizes = iter(lambda: draw.choice([1, 2, 3, 5, 7, 100, 70_000]), None)
    Transfer(scan([top]), into).run(sizes)
    assert tree(into / "top") == tree(top)


def test_claims_come_in_the_order_in_which_files_are_complete(top: Path, into: Path) -> None:
    (into / "top" / "sub").mkdir(parents=True)
    (into / "top" / "sub" / "large").write_bytes((top / "sub" / "large").read_bytes())
    transfer = Transfer(scan([top]), into)
    transfer.agree()
    assert transfer.plan is not None
    claims: list[bytes] = []
    intake = Intake(transfer.destination)
    for block in transfer.outflow.blocks(transfer.plan):
        claims += block.claims
        for piece in block.pieces:
            intake.feed(piece)
    intake.done()
    transfer.destination.release()
    digests = transfer.destination.digests
    assert [c[-DIGEST_BYTES:] for c in claims] == [digests[number] for number in transfer.destination.completed]
    assert transfer.destination.completed[0] == next(
        n for n, e in enumerate(transfer.destination.manifest) if e.name == "large"
    )


# --- again ---------------------------------------------------------------------------------------------------------


def test_what_is_complete_is_not_sent_again(top: Path, into: Path) -> None:
    Transfer(scan([top]), into).run()
    before = {path: path.stat().st_ino for path in into.rglob("*")}
    again = Transfer(scan([top]), into)
    again.run()
    assert {path: path.stat().st_ino for path in into.rglob("*")} == before
    assert again.destination.transferred_bytes == again.outflow.transferred_bytes == 0
    assert again.destination.kept_files == again.outflow.kept_files == 5
    assert again.destination.done() == again.outflow.total_digest()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_continued_after_a_break(top: Path, into: Path, share: float) -> None:
    source = scan([top / "sub" / "large"])
    broken = Transfer(source, into)
    broken.agree()
    data = broken.stream()
    Intake(broken.destination).feed(data[: int(len(data) * share)])
    broken.destination.release()
    assert not (into / "large").exists()
    again = Transfer(scan([top / "sub" / "large"]), into)
    total = again.run()
    assert (into / "large").read_bytes() == (top / "sub" / "large").read_bytes()
    assert again.destination.resumed_files == again.outflow.resumed_files == 1
    assert again.destination.transferred_bytes < LARGE * (1.01 - share)
    assert total == again.outflow.total_digest()
    assert not (into / STAGING_NAME).exists()


def test_only_the_last_step_was_missing(top: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Transfer(scan([top / "sub" / "large"]), into)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _fail(errno.EIO))
        with pytest.raises(TransferError):
            broken.run()
    again = Transfer(scan([top / "sub" / "large"]), into)
    again.run()
    assert (into / "large").read_bytes() == (top / "sub" / "large").read_bytes()
    assert again.destination.transferred_bytes == 0
    assert not (into / STAGING_NAME).exists()


def _partial(top: Path, into: Path) -> Path:
    broken = Transfer(scan([top / "sub" / "large"]), into)
    broken.agree()
    Intake(broken.destination).feed(broken.stream()[: LARGE // 2])
    broken.destination.release()
    (partial,) = (into / STAGING_NAME).glob(".*/.*")
    return partial


def test_a_damaged_part_is_not_continued(top: Path, into: Path) -> None:
    partial = _partial(top, into)
    with open(partial, "r+b") as file:
        file.write(b"damaged")
    again = Transfer(scan([top / "sub" / "large"]), into)
    again.run()
    assert (into / "large").read_bytes() == (top / "sub" / "large").read_bytes()
    assert again.destination.transferred_bytes == LARGE
    assert again.destination.resumed_files == 0


def test_a_part_of_another_version_is_dropped(top: Path, into: Path) -> None:
    partial = _partial(top, into)
    (top / "sub" / "large").write_bytes(random.Random(2).randbytes(LARGE + 1))
    Transfer(scan([top / "sub" / "large"]), into).run()
    assert (into / "large").read_bytes() == (top / "sub" / "large").read_bytes()
    assert not partial.exists()
    assert not (into / STAGING_NAME).exists()


def test_a_part_that_is_too_long_is_dropped(top: Path, into: Path) -> None:
    partial = _partial(top, into)
    with open(partial, "r+b") as file:
        file.truncate(LARGE + 1)
    again = Transfer(scan([top / "sub" / "large"]), into)
    again.run()
    assert again.destination.transferred_bytes == LARGE


def test_a_part_that_is_a_link_is_not_followed(top: Path, into: Path, tmp_path: Path) -> None:
    partial = _partial(top, into)
    partial.unlink()
    victim = tmp_path / "victim"
    victim.write_bytes(b"v" * 10)
    partial.symlink_to(victim)
    Transfer(scan([top / "sub" / "large"]), into).run()
    assert victim.read_bytes() == b"v" * 10
    assert (into / "large").read_bytes() == (top / "sub" / "large").read_bytes()


def test_parts_of_other_files_stay_until_they_are_old(top: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = _partial(top, into)
    Transfer(scan([top / "small"]), into).run()
    assert partial.exists()
    month_later = time.time() + 31 * 86400
    monkeypatch.setattr(time, "time", lambda: month_later)
    Transfer(scan([top / "run"]), into).run()
    assert not (into / STAGING_NAME).exists()


def test_parts_of_another_peer_are_left_alone(top: Path, into: Path) -> None:
    partial = _partial(top, into)
    Transfer(scan([top / "sub" / "large"]), into, peer="somebody").run()
    assert partial.exists()


def test_two_transfers_of_one_peer(top: Path, into: Path) -> None:
    first = Transfer(scan([top / "small"]), into)
    with pytest.raises(TransferRefusedError, match="under way"):
        Transfer(scan([top / "run"]), into)
    other = Transfer(scan([top / "run"]), into, peer="other")
    other.run()
    first.run()
    assert not (into / STAGING_NAME).exists()


# --- conflicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"shrt", b"other"])
def test_files_that_differ_are_a_conflict(top: Path, into: Path, content: bytes) -> None:
    (into / "top").mkdir()
    (into / "top" / "small").write_bytes(content)
    before = tree(into)
    with pytest.raises(TransferConflictError, match="top/small exists") as caught:
        Transfer(scan([top]), into).run()
    assert caught.value.paths == ["top/small"]
    assert tree(into) == before


def test_many_conflicts_are_counted(top: Path, into: Path) -> None:
    (into / "top").mkdir()
    for n in range(10):
        (top / f"f{n}").write_text("x")
        (into / "top" / f"f{n}").write_text("longer")
    with pytest.raises(TransferConflictError, match="and 7 more exist"):
        Transfer(scan([top]), into).run()


@pytest.mark.parametrize("content", [b"shrt", b"other", b"a longer one"])
def test_overwrite(top: Path, into: Path, content: bytes) -> None:
    (into / "top" / "sub").mkdir(parents=True)
    (into / "top" / "small").write_bytes(content)
    (into / "top" / "sub" / "large").write_bytes(bytes(LARGE))
    (into / "top" / "mine").write_text("mine")
    Transfer(scan([top]), into, overwrite=True).run()
    assert tree(into / "top") == tree(top) | {"mine": b"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo"])
def test_what_is_no_file_is_in_the_way(top: Path, into: Path, kind: str, overwrite: bool) -> None:
    (into / "top").mkdir()
    place = into / "top" / "small"
    if kind == "link":
        (into / "victim").write_text("small")
        place.symlink_to(into / "victim")
    elif kind == "dangling":
        place.symlink_to("nowhere")
    elif kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    with pytest.raises(TransferRefusedError, match="top/small exists"):
        Transfer(scan([top]), into, overwrite=overwrite).run()
    assert not (into / STAGING_NAME).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_path_through_a_link_is_refused(top: Path, into: Path, tmp_path: Path, overwrite: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (into / "top").mkdir()
    (into / "top" / "sub").symlink_to(outside)
    with pytest.raises(TransferRefusedError, match="folder top/sub exists in the destination as a link"):
        Transfer(scan([top]), into, overwrite=overwrite).run()
    assert not list(outside.iterdir())
    assert not (into / "top" / "small").exists()


@pytest.mark.parametrize("name", [".bashrc", ".ssh"])
def test_settings_in_the_home_folder_are_not_received(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where they do not exist yet they are nobody's to protect but ours."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "authorized_keys").write_text("mine")
    monkeypatch.setenv("HOME", str(into))
    with pytest.raises(TransferRefusedError, match="settings in the home folder"):
        Transfer(scan([tmp_path / name]), into, overwrite=True).run()
    assert not list(into.iterdir())
    (into / "elsewhere").mkdir()
    Transfer(scan([tmp_path / name]), into / "elsewhere").run()
    assert (into / "elsewhere" / name / "authorized_keys").read_text() == "mine"


def test_a_file_where_a_folder_belongs(top: Path, into: Path) -> None:
    (into / "top").write_text("file")
    with pytest.raises(TransferRefusedError, match="folder top exists"):
        Transfer(scan([top]), into).run()


def test_what_appears_meanwhile_is_not_replaced(top: Path, into: Path) -> None:
    transfer = Transfer(scan([top / "small"]), into)
    transfer.agree()
    (into / "small").write_text("mine")
    with pytest.raises(TransferRefusedError, match="meanwhile"):
        Intake(transfer.destination).feed(transfer.stream())
    transfer.destination.release()
    assert (into / "small").read_text() == "mine"


def test_a_staging_folder_that_is_a_link(top: Path, into: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (into / STAGING_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TransferRefusedError):
        Transfer(scan([top]), into)


# --- a disk that fails ---------------------------------------------------------------------------------------------


def _fail(number: int) -> object:
    def fail(*_args: object, **_named: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_in_the_midst(top: Path, into: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    transfer = Transfer(scan([top]), into)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", _fail(number))
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
