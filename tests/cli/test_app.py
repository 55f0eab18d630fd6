"""What all commands share: help, usage errors, exit codes, output."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crust import errors
from crust.cli import COMMANDS, main
from crust.cli.app import exit_code, sentence
from crust.cli.output import (
    CommandError,
    Output,
    OutputClosed,
    format_bytes,
    format_duration,
    printable,
    table,
    to_json,
)
from crust.node.transfer import SourceError, TransferError, TransferInterruptedError, TransferRefusedError
from tests.cli.conftest import SCRIPT, Crust


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert name in out
        assert summary in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--json", "--config", "--identity", "--debug"):
        assert option in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("crust ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "No command given"),
        (["frobnicate"], "There is no command 'frobnicate'"),
        (["id", "extra"], "Unrecognized arguments: extra"),
        (["ping", "--cuont", "3"], "Unrecognized arguments"),
        (["ping", "crust", "-c", "0"], "'0' is not a number from 1"),
        (["ping", "crust", "-c", "many"], "'many' is not a number from 1"),
        (["ping", "crust", "--timeout", "0"], "not a number of seconds above 0"),
        (["ping", "crust", "--timeout", "soon"], "not a number of seconds"),
        (["ping", "crust", "--timeout", "nan"], "not a number of seconds"),
        (["ping", "crust", "--transport", "sctp"], "invalid choice: 'sctp'"),
        (["ping", "crust", "--listen", "nowhere"], "'nowhere' is not"),
        (["ping"], "give either a TARGET or --swap"),
        (["ping", "--swap", "crust"], "give either a TARGET or --swap"),
        (["ping", "crustxyz"], "not a PeerId"),
        (["ping", "hello"], "not"),
        (["send", "crustxyz"], "required: FILE"),
        (["send"], "required: TARGET, FILE"),
        (["send", "crustxyz", "file"], "not a PeerId"),
        (["receive", "--from", "crustxyz"], "not a PeerId"),
        (["receive", "--into", "/proc/nothing"], "--into /proc/nothing: "),
        (["node", "--config", "/nonexistent"], "/nonexistent: No such file"),
        (["node", "--identity", "/proc/nothing/key"], "/proc/nothing/key"),
        (["node", "--from", "crustxyz", "--listen", "127.0.0.1:0"], "not a PeerId"),
        (["pipe"], "give either a TARGET or --listen"),
        (["pipe", "TARGET", "--listen"], "give either a TARGET or --listen"),
        (["expose", "localhost"], "'localhost' is not HOST:PORT"),
        (["expose", "localhost:0"], "is not HOST:PORT"),
        (["forward", "crustxyz", "70000"], "'70000' is not a port"),
        (["config", "shwo"], "invalid choice: 'shwo'"),
    ],
)
def test_usage_errors_are_one_sentence(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("crust")


def test_a_contact_in_the_configuration_is_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('bootstrap = ["crust:aaaa"]')
    assert main(["config", "check", str(tmp_path / "c.toml")]) == 2
    assert "bootstrap: not a contact" in capsys.readouterr().err


def test_an_error_is_a_json_object_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("nonsense = 1")
    assert main(["config", "check", str(tmp_path / "c.toml"), "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert list(record) == ["error"]
    assert "nonsense" in record["error"]


def test_debug_shows_where(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    assert main(["config", "check", missing, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["config", "check", missing]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.IdentityError("x"), 2),
        (errors.ParseError("x"), 2),
        (errors.SelfDialError("x"), 2),
        (SourceError("x"), 2),
        (errors.NoPathError("x"), 3),
        (errors.NotAuthenticError("x"), 4),
        (errors.NetworkMismatchError("x"), 4),
        (errors.RefusedError("x"), 4),
        (TransferRefusedError("x"), 4),
        (errors.RemoteProtocolError("x"), 4),
        (errors.ReceiptError("x"), 4),
        (errors.PeerLost(None, "x"), 5),
        (errors.ConnectionClosed("x"), 5),
        (errors.StreamResetError("x"), 5),
        (TransferInterruptedError("x"), 5),
        (TransferError("x"), 1),
        (CommandError("x", code=7), 7),
        (OSError(5, "I/O"), 1),
        (ValueError("x"), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_sentences() -> None:
    assert sentence(OSError(2, "No such file", "/x")) == "/x: No such file"
    assert sentence(OSError(2, "No such file")) == "No such file"
    assert sentence(errors.NoPathError("no path")) == "no path"
    assert "this should not have happened" in sentence(KeyError("x"))
    assert "--identity" in sentence(errors.SelfDialError("myself"))
    assert sentence(errors.CrustError()) == "CrustError"


# --- starting fast ---


@pytest.mark.parametrize("absent", ["rich", "segno", "cyclopts", "platformdirs"])
def test_nothing_heavy_is_imported_for_a_simple_command(absent: str, tmp_path: Path) -> None:
    code = (
        "import sys; from crust.cli import main; "
        f"code = main(['id', '--identity', {str(tmp_path / 'key')!r}]); "
        f"sys.exit(code or {absent!r} in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- output ---


def test_to_json() -> None:
    class Colour(enum.Enum):
        LIGHT_RED = 1

    class Level(enum.IntEnum):
        HIGH = 2

    @dataclasses.dataclass
    class Point:
        x: int
        name: Any

    value = {
        "a": Point(1, Colour.LIGHT_RED),
        2: [Level.HIGH, b"\x01", (None, True)],
        "s": {3.5},
        "e": ValueError("why"),
    }
    assert json.loads(json.dumps(to_json(value))) == {
        "a": {"x": 1, "name": "light_red"},
        "2": ["high", "01", [None, True]],
        "s": [3.5],
        "e": "why",
    }


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (4e9, "4.0 GB"),
        (1e19, "10000.0 PB"),
    ],
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.97, "1 min 0 s"), (185, "3 min 5 s"), (7440, "2 h 4 min")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_printable() -> None:
    assert printable("a\x1b[2Jb\n") == "a\ufffd[2Jb\ufffd"


def test_table() -> None:
    assert table(["a", "bb"], [["long", ""], ["x", "y"]]) == "a     bb\nlong\nx     y"


def test_output_knows_when_nobody_reads(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    saved = os.dup(1)
    monkeypatch.setattr(sys, "stdout", Gone())
    try:
        with pytest.raises(OutputClosed):
            Output().data("text")
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def test_output_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    out = Output(json=True)
    out.data("text", {"a": 1})
    out.say("talk")
    assert not out.is_terminal()


@pytest.mark.parametrize("arguments", [["--help"], ["id"], ["config", "default"]])
def test_a_reader_that_is_gone(crust: Crust, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        done = subprocess.run(
            [SCRIPT, *arguments], env=crust.environment(), stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=30
        )
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_descriptors_that_are_closed(crust: Crust, closed: str) -> None:
    done = subprocess.run(["sh", "-c", f'"$0" id {closed}', SCRIPT], env=crust.environment(), timeout=30, check=False)
    assert done.returncode == 0


def test_names_that_the_terminal_cannot_show(crust: Crust) -> None:
    environment = {**crust.environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [SCRIPT, "config", "check", "größe.toml"], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "gr\\xf6\\xdfe.toml: No such file" in done.stderr


# --- id and config ---


def test_id_is_created_and_kept(crust: Crust) -> None:
    first = crust.run("id")
    assert first.returncode == 0
    assert first.stdout.startswith("crust")
    assert len(first.stdout.strip()) == 61
    again = crust.run("id", "--json")
    assert json.loads(again.stdout) == {"id": first.stdout.strip()}
    (key,) = crust.home.rglob("identity")
    assert key.stat().st_mode & 0o777 == 0o600


def test_id_with_a_file(crust: Crust, tmp_path: Path) -> None:
    one = crust.run("id", "--identity", tmp_path / "one")
    two = crust.run("id", "--identity", tmp_path / "two")
    assert one.stdout != two.stdout
    assert crust.run("id", "--identity", tmp_path / "one").stdout == one.stdout
    (tmp_path / "one").chmod(0o644)
    assert crust.run("id", "--identity", tmp_path / "one").returncode == 2


def test_config_default_is_a_good_file(crust: Crust, tmp_path: Path) -> None:
    text = crust.run("config", "default").stdout
    assert "\n#listen" in text
    assert "\n#max_message_bytes = " in text
    (tmp_path / "c.toml").write_text(text)
    done = crust.run("config", "check", tmp_path / "c.toml", "--json")
    assert json.loads(done.stdout) == {"file": str(tmp_path / "c.toml"), "ok": True}
    # Every line that shows a value can be used as it is.
    lines = [
        line.lstrip("#")
        for line in text.splitlines()
        if " = " in line and line.startswith("#") and "(not set)" not in line
    ]
    (tmp_path / "c.toml").write_text("\n".join(line for line in lines if not line.startswith(" ")))
    assert crust.run("config", "check", tmp_path / "c.toml").returncode == 0


def test_config_show_joins_file_and_options(crust: Crust, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('network_name = "ours"\nnetwork_key = "secret"\nlan = true\n')
    done = crust.run("config", "show", "--config", tmp_path / "c.toml", "--no-lan", "--transport", "tcp", "--json")
    record = json.loads(done.stdout)
    assert record["config"]["network_name"] == "ours"
    assert record["config"]["lan"] is False
    assert record["config"]["transports"] == ["tcp"]
    assert "secret" not in done.stdout
    text = crust.run("config", "show", tmp_path / "c.toml").stdout
    assert 'network_name = "ours"' in text
    assert "secret" not in text


def test_config_check_without_a_file(crust: Crust) -> None:
    done = crust.run("config", "check")
    assert done.returncode == 2
    assert "there is no configuration file" in done.stderr


def test_the_default_configuration_file_is_read(crust: Crust) -> None:
    folder = crust.home / ".config" / "crust"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('network_name = "mine"')
    assert 'network_name = "mine"' in crust.run("config", "show").stdout


@pytest.mark.parametrize(
    ("absent", "arguments", "text"),
    [
        ("platformdirs", ["id"], "crust id needs platformdirs: pip install 'crust-p2p[cli]'"),
        ("segno", ["node", "--qr", "--listen", "127.0.0.1:0"], "--qr needs segno: pip install 'crust-p2p[cli]'"),
        ("crust.cli.id", ["id"], "crust id: this build is incomplete, it lacks crust.cli.id"),
    ],
)
def test_a_missing_extra_is_named(crust: Crust, absent: str, arguments: list[str], text: str) -> None:
    code = f"import sys; sys.modules[{absent!r}] = None; from crust.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=crust.environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_transfer_without_extras(crust: Crust, tmp_path: Path) -> None:
    """No uvloop, no BLAKE3, no rich: the same, with what Python has."""
    (tmp_path / "file").write_bytes(b"x" * 300_000)
    config = tmp_path / "c.toml"
    config.write_text("lan = false\nport_mapping = false\n")
    code = (
        "import sys; sys.modules.update({name: None for name in ('uvloop', 'blake3', 'rich', 'platformdirs')}); "
        "from crust.cli import main; sys.exit(main())"
    )
    arguments = ["receive", "--into", tmp_path / "into", "--listen", "127.0.0.1:0", "--identity", tmp_path / "key"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--config", config], stdout=subprocess.PIPE, text=True
    ) as receiving:
        assert receiving.stdout is not None
        contact = receiving.stdout.readline().strip()
        sent = crust.run("send", contact, tmp_path / "file", "--no-lan", "--json")
        assert receiving.wait(30) == 0
    assert json.loads(sent.stdout)["hash"] == "sha256"
    assert (tmp_path / "into" / "file").read_bytes() == b"x" * 300_000
