"""The real `crust` command, each process with a home of its own."""

from __future__ import annotations

import codecs
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

SCRIPT = Path(sys.executable).with_name("crust")
LOCAL = ("--listen", "127.0.0.1:0", "--no-lan", "--no-port-mapping")

# Signal to end; the promise is 2 s, the rest is for a machine that is busy with other tests.
END_SECONDS = 3.0


class Talk(threading.Thread):
    """Reads what a command says on standard error, as it comes, and wakes who waits for a part of it.

    Args:
        stream: the reading end of a pipe; closed when the last writer has closed the other.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._news = threading.Condition()
        self._text = ""
        self._ended = False
        self.start()

    def run(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with self._stream:
            while data := os.read(self._stream.fileno(), 65536):
                with self._news:
                    self._text += decoder.decode(data)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def so_far(self) -> str:
        with self._news:
            return self._text

    def wait_for(self, text: str, seconds: float) -> str:
        """All that was said when the text had come, the command had ended, or the time was up."""
        with self._news:
            self._news.wait_for(lambda: self._ended or text in self._text, seconds)
            return self._text

    def to_the_end(self, seconds: float) -> str:
        """All that was said by a command that has ended."""
        with self._news:
            self._news.wait_for(lambda: self._ended, seconds)
            return self._text


class Running:
    """A command that runs in the background."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process = process
        self._talk = Talk(process.stderr)

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
        """Standard error so far; all of it when the command has ended."""
        return self._talk.so_far if self.process.poll() is None else self._talk.to_the_end(10)

    def wait_for(self, text: str) -> None:
        """Wait until standard error has a text."""
        said = self._talk.wait_for(text, 30)
        assert text in said, f"{text!r} does not come; exit code {self.process.poll()}: {said}"

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

    def kill(self) -> None:
        """End it, and close its pipes."""
        self.process.kill()
        self.process.wait()
        self._talk.join(10)
        for stream in (self.process.stdout, self.process.stdin):
            if stream is not None:
                stream.close()


class Crust:
    """Starts commands, and ends what is left of them.

    Args:
        home: of the user, where default identities and configuration lie.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(exist_ok=True)
        self._running: list[Running] = []

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
        options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(
            [SCRIPT, *map(str, arguments)],
            env=self.environment(user),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        running = Running(process)
        self._running.append(running)
        return running

    def close(self) -> None:
        for running in self._running:
            running.kill()


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
