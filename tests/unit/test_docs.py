"""The reference pages say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import crust

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_api_page_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: crust\.([\w.]+)$", (DOCS / "reference" / "api.md").read_text(), re.MULTILINE))
    assert set(crust.__all__) <= shown | {name.rpartition(".")[2] for name in shown}


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    config = (ROOT / "mkdocs.yml").read_text()
    assert {page for page in pages if page not in config} == set()
    assert set(re.findall(r": (\S+\.md)$", config, re.MULTILINE)) == pages


def test_mkdocs_file_is_plain_yaml() -> None:
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["theme"]["font"] is False


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_top_pages_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target


def test_files_of_the_source_that_pages_name_are_there() -> None:
    named = {
        (page.name, path)
        for page in DOCS.rglob("*.md")
        for path in re.findall(r"`((?:tests|tools|src|examples|fuzz)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    }
    assert named
    assert {each for each in named if not (ROOT / each[1]).exists()} == set()


def test_rules_that_the_code_cites_are_written_down() -> None:
    protocol = (DOCS / "explanation" / "protocol.md").read_text()
    cited = {
        number
        for path in (ROOT / "src").rglob("*.py")
        for group in re.findall(r"PROTOCOL (\d+(?:(?:, | and |-| to )\d+)*)", path.read_text(encoding="utf-8"))
        for number in re.findall(r"\d+", group)
    }
    assert cited
    assert {number for number in cited if f"{{ #rule-{number} }}" not in protocol} == set()
