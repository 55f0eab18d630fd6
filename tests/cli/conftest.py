"""The real `crust` command, each process with a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(sys.executable).with_name("crust")
LOCAL = ("--listen", "127.0.0.1:0", "--no-lan", "--no-port-mapping")

# Signal to end; the promise is 2 s, the rest is for a machine that is busy with other tests.
END_SECONDS = 3.0


class Running:
    """A command that runs in the background."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self._errors = errors

    def line(self) -> str:
        """The next line of output; waits for it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"no line came; standard error: {self.errors}"
        return line.rstrip("\n")

    def record(self) -> dict[str, Any]:
        """The next line as a JSON object."""
        record = json.loads(self.line())
        assert isinstance(record, dict)
        return record

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self._errors.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until standard error has a text."""
        deadline = time.monotonic() + 30
        while text not in self.errors:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.errors}"
            assert time.monotonic() < deadline, f"{text!r} does not come: {self.errors}"
            time.sleep(0.01)

    def end(self) -> int:
        """Wait for the end; returns the exit code."""
        return self.process.wait(timeout=40)

    def rest(self) -> list[str]:
        """The lines that were not read yet, after the end."""
        assert self.process.stdout is not None
        return self.process.stdout.read().splitlines()

    def signal(self, number: int = signal.SIGINT) -> int:
        """Send a signal; returns the exit code, which must come soon."""
        self.process.send_signal(number)
        started = time.monotonic()
        code = self.process.wait(timeout=20)
        assert time.monotonic() - started < END_SECONDS
        assert "Traceback" not in self.errors
        return code


class Crust:
    """Starts commands, and ends what is left of them.

    Args:
        home: of the user, where default identities and configuration lie.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(exist_ok=True)
        self._running: list[Running] = []
        self._count = 0

    def environment(self, home: str | None = None) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "CRUST_"))}
        place = self.home if home is None else self.home / home
        place.mkdir(exist_ok=True)
        return {**keep, "HOME": str(place), "COLUMNS": "100"}

    def run(self, *arguments: object, user: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
        if "input" in options:
            del options["stdin"]
        done = subprocess.run(
            [SCRIPT, *map(str, arguments)],
            env=self.environment(user),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            **options,
        )
        assert "Traceback" not in done.stderr
        return done

    def start(self, *arguments: object, user: str | None = None, **options: Any) -> Running:
        """Start a command."""
        self._count += 1
        errors = self.home / f"stderr-{self._count}"
        options.setdefault("stdin", subprocess.DEVNULL)
        with open(errors, "w") as file:
            process = subprocess.Popen(
                [SCRIPT, *map(str, arguments)],
                env=self.environment(user),
                stdout=options.pop("stdout", subprocess.PIPE),
                stderr=file,
                text=True,
                **options,
            )
        running = Running(process, errors)
        self._running.append(running)
        return running

    def close(self) -> None:
        for running in self._running:
            running.process.kill()
            running.process.wait()
            for stream in (running.process.stdout, running.process.stdin):
                if stream is not None:
                    stream.close()


@pytest.fixture
def crust(tmp_path: Path) -> Iterator[Crust]:
    crust = Crust(tmp_path / "home")
    try:
        yield crust
    finally:
        crust.close()


@pytest.fixture
def node(crust: Crust) -> Callable[..., tuple[Running, str, str]]:
    """Start `crust node` of the user "node"; returns it, its contact and its PeerId."""

    def start(*arguments: object) -> tuple[Running, str, str]:
        running = crust.start("node", *LOCAL, "--json", *arguments, user="node")
        first = running.record()
        return running, first["contact"], first["id"]

    return start
