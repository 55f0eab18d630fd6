"""`crust demo`: everything arrives as it was sent, nothing is left behind, an interruption ends it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import crust
from crust.cli import demo_folder, demo_proof, main
from crust.cli.output import CommandError
from crust.testing.natlab import Lab, LabUnavailable
from tests.cli.processes import children, interrupt
from tests.commands import CRUST


def environment(tmp_path: Path) -> dict[str, str]:
    """Temporary files and settings go where the test can see them."""
    return {**os.environ, "TMPDIR": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}


TITLES = [
    "1  Two keys",
    "2  Ada dials Ben",
    "3  Each transport by itself",
    "4  A folder",
    "5  Urgent messages overtake",
    "6  Proof",
]


async def has_lab() -> bool:
    try:
        async with Lab():
            return True
    except LabUnavailable:
        return False


async def skip_without(stage: list[str]) -> None:
    if not stage and not await has_lab():
        pytest.skip("no lab on this machine")


STAGES = pytest.mark.parametrize("stage", [["--loopback"], []], ids=["loopback", "lab"])


@STAGES
async def test_one_json_object_tells_that_all_went_well(tmp_path: Path, stage: list[str]) -> None:
    await skip_without(stage)
    done = await asyncio.to_thread(
        subprocess.run,
        [*CRUST, "demo", "--json", *stage],
        capture_output=True,
        text=True,
        timeout=55,
        env=environment(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    record = json.loads(line)
    assert record["hashes_equal"] is True
    assert record["files"] >= 200
    assert record["bytes"] > 1_000_000
    assert record["mb_s"] > 0
    assert 0 < record["connect_ms"] < 5000
    assert 0 < record["overtook_ms"] < 5000
    assert record["path"]["transport"] in ("tcp", "utp")
    for name in ("tcp", "utp"):
        assert record["transports"][name]["path"]["transport"] == name
        assert 0 < record["transports"][name]["connect_ms"] < 5000
        assert record["transports"][name]["mb_s"] > 0
    assert crust.PeerId.parse(record["receipt_signer"])
    assert record["tampered_refused"] is True
    if stage:
        assert (record["natted"], record["skipped"], record["path"]["kind"]) == (False, "--loopback", "direct")
        assert record["path"]["remote"].startswith("127.0.0.1:")
        assert "there is no NAT to get through: --loopback" in done.stderr
    else:
        assert (record["natted"], record["skipped"]) == (True, None)
        ways = [record["path"], *(record["transports"][name]["path"] for name in ("tcp", "utp"))]
        assert [way["kind"] for way in ways] == ["punched"] * 3
        assert record["path"]["local"].startswith("192.168.1.2:")
        assert record["path"]["remote"].startswith("11.0.2.1:")
        assert "server-reflexive" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "The copy is identical." in done.stderr
    assert f"Ada is {record['receipt_signer']}" in done.stderr


async def test_story_for_people(tmp_path: Path) -> None:
    stage: list[str] = [] if await has_lab() else ["--loopback"]
    done = await asyncio.to_thread(
        subprocess.run,
        [*CRUST, "demo", *stage],
        capture_output=True,
        text=True,
        timeout=55,
        env=environment(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if line[:1].isdigit()] == TITLES
    assert "The copy is identical." in done.stdout
    assert "signed by Ada" in done.stdout
    for what in ("an altered message", "an altered receipt", "another's signature"):
        assert f"refused: {what}" in done.stdout
    assert "{" not in done.stdout
    assert "\x1b" not in done.stdout


async def test_without_namespaces_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def without_lab(_lab: Lab) -> None:
        raise LabUnavailable("user namespaces are forbidden here")

    monkeypatch.setattr(Lab, "__aenter__", without_lab)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert await asyncio.to_thread(main, ["demo", "--json"]) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert (record["natted"], record["skipped"]) == (False, "user namespaces are forbidden here")
    assert record["hashes_equal"]
    assert "there is no NAT to get through: user namespaces are forbidden here." in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("moment", "stage"),
    [(moment, ["--loopback"]) for moment in TITLES[1::2]] + [(moment, []) for moment in TITLES[::2]],
)
async def test_interrupt_leaves_nothing_behind(tmp_path: Path, moment: str, stage: list[str]) -> None:
    await skip_without(stage)
    process = await asyncio.create_subprocess_exec(
        *CRUST,
        "demo",
        *stage,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(tmp_path), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    while (line := await process.stdout.readline()).decode().strip() != moment:
        assert line, await process.stderr.read()
    started = children(process.pid)
    assert len(started) == 2  # the other side or the laboratory, and what removes the files should we be killed
    await interrupt(process, started)
    assert await process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


async def test_a_judge_that_would_believe_anything_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crust.Node() as ada, crust.Node() as ben:
        connection = await ada.connect(await ben.contact())
        await connection.send(demo_proof.SAID)
        await demo_proof.export(await (await anext(ben)).receive(), ada.id, tmp_path / "proof")
    verdict = await demo_proof.judge(tmp_path / "proof")
    assert verdict.signer == str(ada.id)
    assert list(verdict.refused.values()) == [True, True, True]
    assert list((tmp_path / "proof" / "home").iterdir()) == []
    # One that says yes to everything, and one that says nothing.
    for program, signer, refused in (('print(\'{"signer": "x", "verified": true}\')', "x", False), ("1/0", "", False)):
        (tmp_path / "proof" / "home").rmdir()
        monkeypatch.setattr(demo_proof, "_PROGRAM", program)
        verdict = await demo_proof.judge(tmp_path / "proof")
        assert verdict.signer == signer
        assert set(verdict.refused.values()) == {refused}


def test_library_is_sent_without_what_was_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, size in (
        ("site-packages/big.py", 50),
        ("json/a.py", 10),
        ("json/b.py", 10),
        ("os.py", 15),
        ("test/x", 70),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / "link.py").symlink_to(tmp_path / "os.py")
    monkeypatch.setattr(demo_folder.sysconfig, "get_path", lambda _name: str(tmp_path))
    assert demo_folder.standard_library(1000) == ([tmp_path / "json", tmp_path / "os.py", tmp_path / "test"], 4, 105)
    assert demo_folder.standard_library(40) == ([tmp_path / "json", tmp_path / "os.py"], 3, 35)
    with pytest.raises(CommandError, match="nothing to send"):
        demo_folder.standard_library(5)


def test_library_in_a_zip_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = tmp_path / "python311.zip"
    archive.write_bytes(b"PK")
    monkeypatch.setattr(demo_folder.sysconfig, "get_path", lambda _name: str(archive))
    with pytest.raises(CommandError, match="no folder"):
        demo_folder.standard_library(1000)


def test_tree_hash_sees_names_contents_and_places(tmp_path: Path) -> None:
    def tree(name: str, files: dict[str, bytes]) -> Path:
        for path, content in files.items():
            place = tmp_path / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return tmp_path / name

    reference = tree("a", {"x/1": b"one", "x/y/2": b"two", "3": b"three"})
    same = tree("b", {"3": b"three", "x/y/2": b"two", "x/1": b"one"})
    (same / "x" / "link").symlink_to("1")
    assert demo_folder.tree_hash(reference, ["x", "3"]) == demo_folder.tree_hash(same, ["3", "x"])
    for files in (
        {"x/1": b"one", "x/y/2": b"two", "3": b"thr33"},
        {"x/1": b"one", "x/z/2": b"two", "3": b"three"},
        {"x/1": b"two", "x/y/2": b"one", "3": b"three"},
        {"x/1": b"one", "x/y/2": b"two", "x/3": b"three", "3": b"three"},
    ):
        other = tree(f"c{len(list(tmp_path.iterdir()))}", files)
        assert demo_folder.tree_hash(reference, ["x", "3"]) != demo_folder.tree_hash(other, ["x", "3"])
