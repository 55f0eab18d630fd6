"""Show, check or print the configuration.

crust config show      what a command would use, file and options together
crust config check     say whether a file can be used
crust config default   a file with every setting, its default and its meaning
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from crust.cli.options import add_node_options, config_path, load_config
from crust.cli.output import Output
from crust.config import Config
from crust.errors import ConfigError, ParseError
from crust.wire.contact import parse_target

_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action, and the options whose effect `show` shows."""
    parser.add_argument("action", choices=["show", "check", "default"])
    parser.add_argument("file", nargs="?", help="the file to check or show; the same as --config FILE")
    add_node_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Do what `action` says."""
    if args.file:
        args.config = args.file
    if args.action == "default":
        out.data(default_text(), {"config": _values(Config())})
        return 0
    path = config_path(args)
    if args.action == "check":
        if path is None:
            raise ConfigError("there is no configuration file; `crust config default` prints one to start from")
        _check_contacts(Config.from_file(path), path)
        out.data(f"{path}: good", {"file": str(path), "ok": True})
        return 0
    values = _values(load_config(args))
    lines = [f"# {path}" if path else "# no file: defaults and options"]
    lines += [_line(name, value) for name, value in values.items()]
    out.data("\n".join(lines), {"file": None if path is None else str(path), "config": values})
    return 0


def _check_contacts(config: Config, path: Path) -> None:
    for text in config.bootstrap:
        try:
            parse_target(text)
        except ParseError as error:
            raise ConfigError(f"{path}: bootstrap: {error}") from error


def default_text() -> str:
    """A TOML file with every setting commented out at its default, below what it means."""
    meanings = _meanings()
    plain = _values(Config())
    lines = ["# Settings of Crust. Each line shows a default; take the # away to change it."]
    for name, value in plain.items():
        lines.append("")
        lines += [f"# {part}" for part in _wrap(meanings.get(name, ""))]
        lines.append(f"#{_line(name, value).removeprefix('# ')}")
    return "\n".join(lines)


def _meanings() -> dict[str, str]:
    """What each field is for, from the docstring of `Config`: one place to write it."""
    attributes = (inspect.getdoc(Config) or "").partition("Attributes:")[2]
    meanings: dict[str, str] = {}
    name = ""
    for line in attributes.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            meanings[name] = start[2]
        elif name and line.startswith("        "):
            meanings[name] += " " + line.strip()
    return meanings


def _wrap(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, _WIDTH)


def _values(config: Config) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in Config.__struct_fields__}
    if values["network_key"] is not None:
        values["network_key"] = "(set, not shown)"
    return values


def _line(name: str, value: Any) -> str:
    """`name = value` in TOML; a comment for a value that TOML has no word for."""
    return f"# {name} = (not set)" if value is None else f"{name} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    import json

    return json.dumps(str(value), ensure_ascii=False)  # a JSON string is a TOML basic string
