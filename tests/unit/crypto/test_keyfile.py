"""The key file: private, whole, and one for all who create it at once."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crust.crypto import keyfile
from crust.crypto.keys import Identity
from crust.errors import IdentityError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a key file that is there."""
    path = tmp_path / "identity"
    Identity.load_or_create(path)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


class TestCreate:
    def test_created_then_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "identity"
        created = Identity.load_or_create(path)
        assert Identity.load_or_create(path).id == Identity.load(str(path)).id == created.id
        assert mode(path) == 0o600
        assert mode(path.parent) == mode(path.parent.parent) == 0o700
        assert os.listdir(path.parent) == ["identity"]

    def test_what_it_looks_like(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        assert lines[0] == "crust-identity-v1"
        assert lines[1].startswith("# ")
        assert lines[2] == f"id: {Identity.load(path).id}"
        assert lines[3].startswith("seed: ")
        assert len(lines) == 4

    def test_an_existing_directory_is_left_alone(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        Identity.load_or_create(tmp_path / "identity")
        assert mode(tmp_path) == 0o755

    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
    def test_mode_whatever_the_umask(self, tmp_path: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            Identity.load_or_create(tmp_path / "identity")
        finally:
            os.umask(before)
        assert mode(tmp_path / "identity") == 0o600

    def test_many_at_once_agree(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "identity"
        barrier = threading.Barrier(12)
        identities: list[Identity] = []

        def create() -> None:
            barrier.wait()
            identities.append(Identity.load_or_create(path))

        threads = [threading.Thread(target=create) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(identities) == 12
        assert {identity.id for identity in identities} == {Identity.load(path).id}
        assert os.listdir(path.parent) == ["identity"]

    def test_the_first_one_wins(self, path: Path) -> None:
        before = path.read_bytes()
        assert not keyfile.create(path, bytes(32), "crustx", "temporary")
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == ["identity"]

    def test_created_between_look_and_write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "identity"
        others = Identity.from_seed(bytes(32))

        def late(*arguments: Any) -> bool:
            assert create(path, bytes(32), str(others.id), "other")
            return create(*arguments)

        create = keyfile.create
        monkeypatch.setattr(keyfile, "create", late)
        assert Identity.load_or_create(path).id == others.id

    @pytest.mark.parametrize("taken", [False, True])
    def test_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
        def link(source: Path, target: Path) -> None:
            if taken:
                target.write_text("")
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
        path = tmp_path / "identity"
        assert keyfile.create(path, bytes(32), "crustx", "temporary") is not taken
        assert os.listdir(tmp_path) == ["identity"]
        if not taken:
            assert mode(path) == 0o600

    @pytest.mark.parametrize("function", ["fsync", "link"])
    def test_full_disk_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
        def fail(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, function, fail)
        with pytest.raises(IdentityError, match="cannot write the key file: No space left"):
            Identity.load_or_create(tmp_path / "identity")
        assert os.listdir(tmp_path) == []

    def test_below_a_file(self, path: Path) -> None:
        with pytest.raises(IdentityError, match="cannot read the key file"):
            Identity.load_or_create(path / "identity")
        with pytest.raises(IdentityError, match="cannot write the key file"):
            keyfile.create(path / "identity", bytes(32), "crustx", "temporary")

    def test_dangling_link(self, tmp_path: Path) -> None:
        (tmp_path / "identity").symlink_to(tmp_path / "nowhere")
        with pytest.raises(IdentityError, match="no such key file"):
            Identity.load_or_create(tmp_path / "identity")
        assert os.listdir(tmp_path) == ["identity"]


class TestRefused:
    @pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644, 0o666, 0o777])
    def test_open_to_others(self, path: Path, bits: int) -> None:
        path.chmod(bits)
        for load in (Identity.load, Identity.load_or_create):
            with pytest.raises(IdentityError, match=rf"others can read .*mode 0{bits:o}.*chmod 600"):
                load(path)

    @pytest.mark.parametrize("bits", [0o400, 0o600, 0o700])
    def test_private_is_fine(self, path: Path, bits: int) -> None:
        path.chmod(bits)
        Identity.load(path)

    def test_mode_says_nothing_elsewhere(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.chmod(0o644)
        monkeypatch.setattr(keyfile, "_CHECKS_MODE", False)
        Identity.load(path)
        path.unlink()
        Identity.load_or_create(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda text: "", "the key file is empty"),
            (lambda text: "\n\n", "the key file is empty"),
            (lambda text: "hello\n" + text, "not a Crust key file"),
            (lambda text: "-----BEGIN OPENSSH PRIVATE KEY-----\n", "not a Crust key file"),
            (lambda text: text + "\xe9", "not a Crust key file"),
            (lambda text: text + "x" * 5000, "not a Crust key file"),
            (lambda text: text.replace("-v1", "-v2"), "version '2'; this Crust reads version 1"),
            (lambda text: "crust-identity-v1\n", "truncated"),
            (lambda text: text[: text.index("seed")], "truncated"),
            (lambda text: text[: text.index("seed: ") + 6], "damaged|truncated"),
            (lambda text: text[:-5], "damaged|truncated"),
            (lambda text: text[:-9], "damaged|truncated"),
            (lambda text: text.replace("seed: ", "seed: 0"), "damaged"),
            (lambda text: text.replace("seed: ", "seed: aaaaaaaa"), "damaged|truncated"),
            (lambda text: text.replace("id: crust", "id: crusta"), "damaged: its seed is not that of its id"),
        ],
    )
    def test_not_a_whole_key_file(self, path: Path, change: Callable[[str], str], message: str) -> None:
        rewrite(path, change)
        before = path.read_bytes()
        for load in (Identity.load, Identity.load_or_create):
            with pytest.raises(IdentityError, match=message) as caught:
                load(path)
            assert str(path) in str(caught.value)
        assert path.read_bytes() == before

    def test_every_truncation(self, path: Path) -> None:
        whole = path.read_text()
        for size in range(len(whole) - 1):  # the last newline may go
            path.write_text(whole[:size])
            with pytest.raises(IdentityError):
                Identity.load(path)

    def test_a_changed_seed(self, path: Path) -> None:
        whole = path.read_text()
        start = whole.index("seed: ") + 6
        for position in range(start, start + 51):
            changed = "b" if whole[position] != "b" else "c"
            path.write_text(whole[:position] + changed + whole[position + 1 :])
            with pytest.raises(IdentityError, match="damaged"):
                Identity.load(path)

    def test_comments_blanks_and_case_do_not_matter(self, path: Path) -> None:
        expected = Identity.load(path).id
        rewrite(path, lambda text: text.replace("seed:", "# seed: no\n\n  seed :  ").upper().replace("SEED", "seed"))
        rewrite(path, lambda text: text.replace("CRUST-IDENTITY-V1", "crust-identity-v1").replace("ID:", "id:"))
        assert Identity.load(path).id == expected

    def test_directory(self, tmp_path: Path) -> None:
        for load in (Identity.load, Identity.load_or_create):
            with pytest.raises(IdentityError, match="a directory, not a key file"):
                load(tmp_path)

    def test_fifo_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "identity", 0o600)
        with pytest.raises(IdentityError, match="not a regular file"):
            Identity.load_or_create(tmp_path / "identity")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(IdentityError, match="no such key file"):
            Identity.load(tmp_path / "identity")

    def test_read_error(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "read", fail)
        with pytest.raises(IdentityError, match="cannot read the key file: Input/output error"):
            Identity.load(path)
