"""From a sender's disk to a receiver's, without a connection: what is written, continued, refused and left behind."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from pathlib import Path

import pytest

from crust.node.transfer import TransferConflictError, TransferError, TransferRefusedError, scan
from crust.node.transfer.digest import DIGEST_BYTES
from crust.node.transfer.intake import Intake
from crust.node.transfer.manifest import STAGING_NAME
from tests.unit.node.transfer_support import LARGE, Transfer, failing, tree


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
        patch.setattr(os, "replace", failing(errno.EIO))
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
