"""The laboratory that `crust demo` plays in: two homes behind NATs, and a rendezvous on an internet between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crust.bench.process import WorkerError, ask
from crust.cli.output import CommandError
from crust.testing.natlab import Lab, LabError, LabUnavailable, Nat, Ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from crust.testing.natlab import Host, Process

__all__ = ["FarWorker", "Stage", "play_in_lab"]

_CRUST: Final = "import sys; from crust.cli import main; sys.exit(main())"
_START_SECONDS: Final = 20.0
# What Ada may take to put the terminal in order and remove her files.
_END_SECONDS: Final = 1.2
_LINE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Stage:
    """What Ada has to know.

    Attributes:
        place: a folder that is removed in the end.
        began: when the demo did, by the monotonic clock.
        skipped: why there are no NATs; None where there are.
        rendezvous: contact of a node that both peers reach; None without NATs.
        places: where everybody is, in lines for people.
    """

    place: Path
    began: float
    skipped: str | None = None
    rendezvous: str | None = None
    places: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str()` gives."""
        record = json.loads(text)
        return cls(**{**record, "place": Path(record["place"])})

    def __str__(self) -> str:
        return json.dumps(
            {
                "place": str(self.place),
                "began": self.began,
                "skipped": self.skipped,
                "rendezvous": self.rendezvous,
                "places": self.places,
            }
        )


class FarWorker:
    """A worker that somebody else has started, at the other end of a socket; see `crust.bench.process`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def on_standard_input(cls) -> Self:
        """The worker whose socket is our standard input."""
        made = socket.socket(fileno=os.dup(0))
        return cls(*await asyncio.open_connection(sock=made, limit=_LINE_BYTES))

    async def call(self, do: str, *, seconds: float = 60.0, **arguments: Any) -> Any:
        """Have something done and wait for its result.

        Raises:
            WorkerError: it failed, or took longer than `seconds`.
        """
        return await ask(self._reader, self._writer, do, seconds, arguments)


async def play_in_lab(place: Path, began: float, options: list[str]) -> int:
    """Build the laboratory, start everybody in it, and wait for the end of Ada, who tells the story.

    Args:
        place: a folder for their files.
        began: when the demo did, by the monotonic clock.
        options: of the demo.

    Returns:
        Ada's exit code.

    Raises:
        LabUnavailable: there can be no laboratory on this machine.
        CommandError: somebody did not start.
    """
    words = place / "words"
    try:
        async with Lab() as lab:
            return await _play(lab, place, began, options)
    except LabUnavailable:
        raise
    except (LabError, WorkerError) as error:
        said = words.read_text(errors="replace").strip().splitlines() if words.exists() else []
        raise CommandError(f"the demo failed: {error}{': ' + said[-1] if said else ''}") from error


async def _play(lab: Lab, place: Path, began: float, options: list[str]) -> int:
    # Both homes have the same private addresses, as homes have, and routers that let in what was asked for only.
    homes = [await lab.site(name, Nat(ports=Ports.RANDOM)) for name in ("Ada's", "Ben's")]
    ada, ben = [await home.host() for home in homes]
    middle = await lab.public("rendezvous")
    with open(place / "words", "wb", buffering=0) as words:  # noqa: ASYNC230 - a file of our own
        contact = await _start_rendezvous(middle, place, words.fileno())
        stage = Stage(
            place=place,
            began=began,
            rendezvous=contact,
            places=[
                *(
                    f"{name} is at {host.address}, behind a router whose outside address is {home.address}."
                    for name, host, home in zip(("Ada", "Ben"), (ada, ben), homes, strict=True)
                ),
                "The routers choose ports at random, and let in nothing that was not asked for (endpoint-independent",
                "mapping, address-and-port-dependent filtering). It is 40 ms from one to the other and back, and 20 ms",
                f"to {middle.address}, a node on the internet that both are connected to: their rendezvous.",
            ],
        )
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-B", "-m", "crust.cli.demo_ben"]
            await ben.run(command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=words)
            command = [sys.executable, "-B", "-c", _CRUST, "demo", *options, "--stage", str(stage)]
            playing = await ada.run(command, stdin=ours.fileno(), stdout=None, stderr=None)
        async with _ending(playing):
            return await playing.wait()


async def _start_rendezvous(host: Host, place: Path, words: int) -> str:
    """Start an ordinary node on the internet; returns its contact."""
    settings = place / "config.toml"
    settings.touch()
    listen = [f"--listen={f'[{each}]' if ':' in each else each}:443" for each in host.addresses]
    node = await host.run(
        [
            *(sys.executable, "-B", "-c", _CRUST, "node", "--json", *listen),
            *("--config", str(settings), "--identity", str(place / "rendezvous.key")),
        ],
        stdin=subprocess.DEVNULL,
        stderr=words,
    )
    assert node.stdout is not None
    try:
        async with asyncio.timeout(_START_SECONDS):
            line = await node.stdout.readline()
    except TimeoutError:
        line = b""
    if not line:
        raise LabError("the rendezvous did not start")
    return str(json.loads(line)["contact"])


@contextlib.asynccontextmanager
async def _ending(process: Process) -> AsyncIterator[None]:
    """After Ctrl-C, which the programs of a lab do not hear, let one end in an orderly way."""
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_SECONDS)
