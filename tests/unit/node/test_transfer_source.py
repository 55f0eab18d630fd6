"""Finding what is to be sent, and noticing what changed since."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from crust.crypto.hashing import HashId
from crust.node.transfer import SourceError, TransferError, scan
from crust.node.transfer.digest import digest, new_hasher
from crust.node.transfer.source import Source, hash_prefix


def paths(source: Source) -> list[str]:
    return [source.manifest.path(n) + ("/" if e.is_folder else "") for n, e in enumerate(source.manifest)]


def test_a_tree(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "empty").mkdir(parents=True)
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "b.txt").write_text("bb")
    (top / "a.sh").write_text("a")
    (top / "a.sh").chmod(0o755)
    (top / "sub" / "deeper" / "leaf").write_bytes(b"")
    os.utime(top / "b.txt", ns=(1, 1_234_567_890_123_456_789))
    source = scan([top])
    assert paths(source) == [
        "top/",
        "top/a.sh",
        "top/b.txt",
        "top/empty/",
        "top/sub/",
        "top/sub/deeper/",
        "top/sub/deeper/leaf",
    ]
    by_name = {e.name: e for e in source.manifest}
    assert by_name["a.sh"].executable
    assert not by_name["b.txt"].executable
    assert by_name["b.txt"].mtime_ns == 1_234_567_890_123_456_789
    assert by_name["b.txt"].size == 2
    assert not source.notes
    assert [Path(source.location(n)).name for n in range(len(source.manifest))] == [e.name for e in source.manifest]


def test_several_and_a_link_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    (tmp_path / "link").symlink_to("x")
    source = scan([tmp_path / "x", str(tmp_path / "link")])
    assert paths(source) == ["x", "link"]
    with source.open(1) as descriptor:
        assert os.read(descriptor, 10) == b"x"


def test_the_name_of_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert paths(scan(["."]))[0] == "here/"
    assert paths(scan([".."]))[0] == f"{tmp_path.name}/"
    assert paths(scan(["sub/.."]))[0] == "here/"
    with pytest.raises(SourceError, match="whole disk"):
        scan(["/"])


def test_links_and_devices_in_folders_are_left_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    top = tmp_path / "top"
    top.mkdir()
    (top / "file").write_text("f")
    (top / "link").symlink_to(outside / "secret")
    (top / "folder").symlink_to(outside)
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(top / "socket"))
        source = scan([top])
    assert paths(source) == ["top/", "top/file"]
    assert len(source.notes) == 5


def test_what_vanishes_while_its_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stays").write_text("s")
    (tmp_path / "temporary").write_text("t")
    scandir = os.scandir

    class Listing:
        def __init__(self, path: str) -> None:
            self._listing = scandir(path)

        def __enter__(self) -> list[os.DirEntry[str]]:
            entries = list(self._listing)
            (tmp_path / "temporary").unlink()
            return entries

        def __exit__(self, *_: object) -> None:
            self._listing.close()

    monkeypatch.setattr(os, "scandir", Listing)
    assert paths(scan([tmp_path])) == [f"{tmp_path.name}/", f"{tmp_path.name}/stays"]


def test_nothing_to_send(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match=r"nothing to send.*fifo"):
        scan([tmp_path / "fifo"])


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        scan([tmp_path / "missing"])
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(SourceError, match="No such file"):
        scan([tmp_path / "dangling"])


@pytest.mark.parametrize("name", ["a\nb", "back\\slash", os.fsdecode(b"\xff")])
def test_names_that_no_receiver_takes(tmp_path: Path, name: str) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / name).write_text("x")
    with pytest.raises(SourceError, match="name is refused") as caught:
        scan([tmp_path / "top"])
    assert str(caught.value).isprintable()


def test_two_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same").write_text(folder)
    with pytest.raises(SourceError, match="twice"):
        scan([tmp_path / "a" / "same", tmp_path / "b" / "same"])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("x")
    (tmp_path / "private").chmod(0)
    with pytest.raises(SourceError, match="Permission"):
        scan([tmp_path / "private"])


def test_vanished_and_changed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    source = scan([file])
    with source.open(0) as descriptor:
        file.write_text("other")
        with pytest.raises(TransferError, match="file has changed"):
            source.check_unchanged(0, descriptor)
    with pytest.raises(TransferError, match="file has changed"), source.open(0):
        pass
    file.unlink()
    with pytest.raises(TransferError, match="file has vanished"), source.open(0):
        pass


def test_a_file_that_became_something_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    source = scan([file])
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(TransferError), source.open(0):
        pass
    file.unlink()
    os.mkfifo(file)  # opening it for reading would wait for a writer
    with pytest.raises(TransferError, match="changed"), source.open(0):
        pass


def test_hash_of_a_prefix(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        for length in (0, 1, 1 << 20, 2_500_000, 3_000_000):
            hasher = new_hasher(HashId.SHA256)
            assert sum(hash_prefix(file.fileno(), length, hasher)) == length
            assert hasher.digest() == digest(HashId.SHA256, data[:length])
        assert sum(hash_prefix(file.fileno(), 4_000_000, new_hasher(HashId.SHA256))) == 3_000_000
