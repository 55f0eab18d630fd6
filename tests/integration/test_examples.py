"""Every example of the README and the documentation runs, and says what the pages say it does."""

from __future__ import annotations

import ast
import asyncio
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import crust

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SAID = {
    "first_connection.py": r"b'hello' from crust[a-z2-7]{56} over direct (tcp|utp) \S+ -> \S+",
    "accept_or_refuse.py": r"friend: direct (tcp|utp) \S+ -> \S+\nstranger: \S+ the peer refused this node",
    "natlab.py": r"(at home 1\S+ behind .*\nat home somebody says hello|no lab on this machine: .*)",
    "priorities.py": r"URGENT 4 bytes\nBULK 30000000 bytes",
    "receipts.py": r"number 0 in this session\nsigned by crust[a-z2-7]{56}\nrefused: .+",
    "rendezvous.py": r"(not yet: .*\n)*connected: True path: (direct|punched) (tcp|utp) \S+ -> \S+",
    "swap_contacts.py": r"connected: True",
    "streams.py": r"log: 7 bytes\npicture: 100000 bytes",
    "survive.py": r"(event: PeerConnected\n)?arrived: b'an order'\nclosed in good order",
}
PAIRS = {"hello_server.py", "hello_client.py"}


QUIET = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "quiet")}


def python(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=cwd, env=QUIET, capture_output=True, text=True, timeout=50, check=False)


def blocks(page: Path) -> Iterator[str]:
    """The Python code in a page, files that it includes left out."""
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if not block.startswith("--8<--"):
            yield block


def test_every_example_is_tried() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(SAID) | PAIRS


@pytest.mark.parametrize("name", SAID)
def test_example(name: str, tmp_path: Path) -> None:
    done = python(ROOT / "examples" / name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(SAID[name], "\n".join(sorted_events(done.stdout)), re.DOTALL), done.stdout
    assert not done.stderr


def sorted_events(output: str) -> list[str]:
    """Lines with the events first: when they are printed is up to the event loop."""
    return sorted(output.splitlines(), key=lambda line: not line.startswith("event:"))


async def test_server_and_client(tmp_path: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "examples" / "hello_server.py",
        cwd=tmp_path,
        env=QUIET,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        contact = (await server.stdout.readline()).decode().strip()
        done = await asyncio.to_thread(python, ROOT / "examples" / "hello_client.py", contact, cwd=tmp_path)
        assert done.stdout == "you said: hello\n", done.stderr
    finally:
        server.kill()
        await server.communicate()
    done = await asyncio.to_thread(python, ROOT / "examples" / "hello_client.py", contact, cwd=tmp_path)
    assert done.returncode == 1
    assert "tcp" in done.stderr
    assert "Traceback" not in done.stderr


def test_readme_shows_the_first_example() -> None:
    assert next(blocks(ROOT / "README.md")) == (ROOT / "examples" / "first_connection.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, id=f"{page.stem}-{number}") for page in PAGES for number, block in enumerate(blocks(page))],
)
async def test_block(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "asyncio.run(" in block:
        assert page_is_a_file(block)
        return
    monkeypatch.chdir(tmp_path)
    code = compile(block, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with crust.Node() as alice, crust.Node() as bob:
        names = {"asyncio": asyncio, "crust": crust, "pathlib": pathlib}
        if re.search(r"\bconn\b", block):
            await (await alice.connect(await bob.contact())).send(b"100 tonnes of wheat")
            names["conn"] = await anext(bob)
        running = eval(code, names)
        if running is not None:
            await running


def page_is_a_file(block: str) -> bool:
    """A whole program in a page is one of the examples, which have their own test."""
    return any(path.read_text(encoding="utf-8") == block for path in (ROOT / "examples").glob("*.py"))
