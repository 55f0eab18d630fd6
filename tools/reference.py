#!/usr/bin/env python3
"""Write the tables of docs/reference that follow from the code: settings, commands and options, errors.

make reference            rewrites what stands between the markers in the pages
python tools/reference.py --check    says which page is out of date (a test runs this)
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from crust import config, errors
from crust.cli import COMMANDS, app, options

PAGES = Path(__file__).resolve().parent.parent / "docs" / "reference"
KIB = 1024


def attribute_docs(cls: type) -> dict[str, str]:
    """The entries under "Attributes:" of a Google docstring."""
    text = inspect.getdoc(cls) or ""
    entries: dict[str, str] = {}
    name = ""
    for line in text.partition("Attributes:\n")[2].splitlines():
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            name = entry[1]
            entries[name] = entry[2]
        elif line.startswith("        ") and name:
            entries[name] += " " + line.strip()
        else:
            name = ""
    return entries


def cell(text: str) -> str:
    """Text for a table cell: the first letter large, a full stop at the end, bars escaped."""
    text = text.strip()
    if text and text[-1] not in ".!?)":
        text += "."
    text = re.sub(r"PROTOCOL (\d+)", r"[rule \1](../explanation/protocol.md#rule-\1)", text)
    return (text[:1].upper() + text[1:]).replace("|", "\\|")


def size(count: float) -> str:
    """A number of bytes in the largest unit that divides it."""
    for unit, factor in (("GiB", KIB**3), ("MiB", KIB**2), ("KiB", KIB)):
        if count >= factor and count % factor == 0:
            return f"{count // factor:.0f} {unit}"
    return f"{count:,.0f}"


def show_default(name: str, value: Any) -> str:
    """A default as TOML would have it, sizes in units too."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value}` ({size(value)})" if name.endswith("_bytes") else f"`{value:g}`"


def show_takes(name: str, hint: Any) -> str:
    """What a setting takes, in words."""
    if name in config._RANGES:
        least, most = config._RANGES[name]
        if name.endswith("_bytes"):
            return f"{size(least)} to {size(most)}"
        return f"{least:g} to {most:g} s" if hint is float else f"{least} to {most:,}"
    if hint is bool:
        return "true, false"
    if any(get_origin(part) is list for part in (hint, *get_args(hint))):
        return "list"
    words = [word for part in get_args(hint) or (hint,) for word in literal_words(part)]
    return ", ".join(words) if words else "text"


def literal_words(hint: Any) -> list[str]:
    """The texts that a Literal allows."""
    return [f'"{word}"' for word in get_args(hint) if isinstance(word, str)]


def config_table() -> Iterator[str]:
    """One row for each setting."""
    yield "| setting | default | takes | meaning |"
    yield "|---|---|---|---|"
    meanings = attribute_docs(config.Config)
    plain = config.Config()
    for name, hint in get_type_hints(config.Config).items():
        default = show_default(name, getattr(plain, name))
        yield f"| `{name}` | {default} | {show_takes(name, hint)} | {cell(meanings[name])} |"


def option_rows(actions: list[argparse.Action]) -> Iterator[str]:
    """A table of arguments and options, or nothing when there are none."""
    shown = [action for action in actions if action.help != argparse.SUPPRESS and "-h" not in action.option_strings]
    if not shown:
        return
    yield "| argument | meaning |"
    yield "|---|---|"
    for action in shown:
        value = action.metavar or action.dest.upper()
        value = value if isinstance(value, str) else " ".join(value)
        if action.choices is not None:
            value = "|".join(map(str, action.choices))
        words = ", ".join(action.option_strings) or value
        if action.option_strings and action.nargs != 0:
            words += f" {value}"
        words = words.replace("|", "\\|")
        yield f"| `{words}` | {cell((action.help or '') % {'default': action.default})} |"
    yield ""


def collect(*adders: Callable[[argparse.ArgumentParser], None]) -> list[argparse.Action]:
    """The actions that these functions add to a parser, sub-parsers left out."""
    parser = argparse.ArgumentParser(add_help=False)
    for add in adders:
        add(parser)
    return parser._actions


def cli_tables() -> Iterator[str]:
    """The shared options, then a section for each command."""
    common = collect(app._add_common)
    node = collect(options.add_node_options)
    known = {flag for action in (*common, *node) for flag in action.option_strings}
    yield "### Options of every command"
    yield ""
    yield from option_rows(common)
    yield "### Options of every command that makes a node"
    yield ""
    yield from option_rows(node)
    for name, summary in COMMANDS.items():
        if find_spec(f"crust.cli.{name}") is None:
            continue  # planned
        module = importlib.import_module(f"crust.cli.{name}")
        actions = collect(module.add_arguments)
        makes_node = any("--transport" in action.option_strings for action in actions)
        own = [action for action in actions if not known.intersection(action.option_strings)]
        yield f"### `crust {name}`"
        yield ""
        for paragraph in (inspect.getdoc(module) or cell(summary)).split("\n\n"):
            # What is laid out in columns stays so.
            yield f"```text\n{paragraph}\n```" if "   " in paragraph else paragraph
            yield ""
        yield from option_rows(own)
        if makes_node:
            yield "Takes the options of a node too."
            yield ""


def error_table() -> Iterator[str]:
    """One row for each error, its base and the exit code of a command that it ends."""
    yield "| error | is a | exit code | meaning |"
    yield "|---|---|---|---|"
    for cls in walk(errors.CrustError):
        base = ", ".join(f"`{base.__name__}`" for base in cls.__bases__)
        error = cls.__new__(cls)
        meaning = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
        yield f"| `{cls.__name__}` | {base} | {app.exit_code(error)} | {cell(meaning)} |"


def walk(cls: type[errors.CrustError]) -> Iterator[type[errors.CrustError]]:
    """A class of this package and all below it, depth first."""
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from walk(below)


def render(page: Path, lines: Iterator[str]) -> tuple[str, str]:
    """The page as it is, and as it should be."""
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- generated by tools/reference.py -->\n", "<!-- end -->\n"
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    return text, f"{head}{begin}\n" + "\n".join(lines).strip() + f"\n\n{end}{tail}"


def main() -> int:
    """Rewrite the pages, or check them."""
    check = "--check" in sys.argv[1:]
    stale = 0
    for name, lines in (("config.md", config_table()), ("errors.md", error_table()), ("cli.md", cli_tables())):
        old, new = render(PAGES / name, lines)
        if old == new:
            continue
        if check:
            print(f"docs/reference/{name} is out of date: run `make reference`")
            stale = 1
        else:
            (PAGES / name).write_text(new, encoding="utf-8")
            print(f"docs/reference/{name} written")
    return stale


if __name__ == "__main__":
    sys.exit(main())
