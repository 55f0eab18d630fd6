"""Show the main job on this machine: two nodes, one encrypted connection, a folder sent and compared, a receipt.

Two processes with fresh identities talk over the loopback interface. Nothing leaves this machine, and nothing is left
on it. It takes some 10 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import crust
from crust.bench.process import Worker, WorkerError, serve
from crust.bench.process import run as run_worker
from crust.cli.demo_proof import SAID, Verdict, export, judge
from crust.cli.output import CommandError, Output, format_bytes
from crust.node.transfer import STREAM_NAME, TransferError, TransferProgress, receive_files, scan, send_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from rich.progress import Progress
__all__ = ["add_arguments", "run"]

# Parts of the standard library are left out, largest first, until what is left is no more than this.
_FOLDER_BYTES: Final = 150_000_000
# Below the standard library's folder, but not of it; thousands of megabytes on some machines.
_NOT_STANDARD: Final = frozenset({"site-packages", "dist-packages"})

_BULK_MESSAGES: Final = 256
_BULK_MESSAGE_BYTES: Final = 1 << 20
_URGENT_MESSAGES: Final = 5
_STEP_SECONDS: Final = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`crust demo` has no options of its own."""


async def run(args: argparse.Namespace, out: Output) -> int:
    """Run the demo; 0 if everything arrived as it was sent.

    Raises:
        CommandError: the second process, the disk or the connection failed.
    """
    sys.dont_write_bytecode = True  # the folder that is sent must not change meanwhile
    started = time.perf_counter()
    story = _Story(out)
    story.begin()
    # A cancel may come within any of these: what was made is removed whatever happens.
    with tempfile.TemporaryDirectory(prefix="crust-demo-", ignore_cleanup_errors=True) as place:
        ben = await Worker.start("crust.cli.demo", writes_bytecode=False)
        try:
            async with crust.Node(config=_config()) as ada:
                record = await _show(ada, ben, Path(place), story)
        except (WorkerError, TransferError, OSError) as error:
            raise CommandError(f"the demo failed: {error}") from error
        finally:
            await asyncio.shield(ben.stop())
    story.end(time.perf_counter() - started)
    if args.json:
        out.data("", record)
    return 0 if record["hashes_equal"] and record["receipt_signer"] and record["tampered_refused"] else 1


async def _show(ada: crust.Node, ben: Worker, place: Path, story: _Story) -> dict[str, Any]:
    """The whole story; returns what `--json` prints."""
    introduced = await ben.call("open")
    story.identities(ada.id, introduced["id"], ben.pid)

    began = time.perf_counter()
    connection = await ada.connect(introduced["contact"], timeout=10)
    await connection.ping()
    connect_ms = (time.perf_counter() - began) * 1000
    path = connection.path
    story.connected(introduced["contact"], connect_ms, path)
    try:
        figures = await _use(connection, ben, place, story)
        figures |= await _prove(connection, ben, ada.id, place / "proof", story)
        await connection.close()
    except BaseException:
        # An orderly end delivers what is queued: after Ctrl-C there is no time for that, the files are to be removed.
        connection.abort()
        raise
    return {"connect_ms": round(connect_ms, 3), "path": path, **figures}


async def _use(connection: crust.Connection, ben: Worker, place: Path, story: _Story) -> dict[str, Any]:
    """Send the folder, compare it, and let urgent messages overtake; returns the figures of these."""
    entries, files, size = await asyncio.to_thread(_standard_library, shutil.disk_usage(place).free // 3)
    story.folder(files, size)
    inbox = place / "inbox"
    began = time.perf_counter()
    await _send_folder(connection, entries, ben, inbox, story)
    folder_seconds = time.perf_counter() - began
    names = [entry.name for entry in entries]
    ours, theirs = await asyncio.gather(
        asyncio.to_thread(_tree_hash, entries[0].parent, names), ben.call("hash", folder=str(inbox))
    )
    story.compared(size, folder_seconds, ours, theirs)

    return {
        "files": files,
        "bytes": size,
        "folder_mb_s": round(size / folder_seconds / 1e6, 1),
        "hashes_equal": ours == theirs,
        **await _overtake(connection, ben, story),
    }


def _config() -> crust.Config:
    """Loopback only, and nothing that would look for other machines."""
    return crust.Config(listen=["127.0.0.1:0"], lan=False, port_mapping=False, punch=False, relay=False)


def _standard_library(most_bytes: int) -> tuple[list[Path], int, int]:
    """The top-level entries of the running interpreter's standard library, with the number and size of their files.

    Raises:
        CommandError: this interpreter's library is not a readable folder (it may come as a zip file).
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts = []
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        if entry.name in _NOT_STANDARD or entry.is_symlink():
            continue
        with contextlib.suppress(TransferError):  # what this user may not read
            manifest = scan([entry]).manifest
            if manifest.files:
                parts.append((manifest.bytes, manifest.files, entry))
    parts.sort()
    limit = min(most_bytes, _FOLDER_BYTES)
    while parts and sum(size for size, _, _ in parts) > limit:
        parts.pop()
    if not parts:
        raise CommandError(f"there is nothing to send: {root} is no folder that can be read, or the disk is full")
    entries = sorted(entry for _, _, entry in parts)
    return entries, sum(files for _, files, _ in parts), sum(size for size, _, _ in parts)


def _tree_hash(root: Path, names: Sequence[str]) -> str:
    """SHA-256 over the names and contents of all files of these entries, read from the disk."""
    total = hashlib.sha256()
    for name in sorted(names):
        top = root / name
        for path in sorted(_files(top)) if top.is_dir() else [top]:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            relative = path.relative_to(root).as_posix().encode()
            total.update(len(relative).to_bytes(4, "big") + relative + content)
    return total.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.is_file() and not path.is_symlink():  # a transfer carries no links
                yield path


async def _overtake(connection: crust.Connection, ben: Worker, story: _Story) -> dict[str, Any]:
    """Push bulk messages, and among them urgent ones that are answered at once."""
    block = os.urandom(_BULK_MESSAGE_BYTES)
    sent = 0
    due: asyncio.Queue[None] = asyncio.Queue()
    delays: list[float] = []
    passed: list[int] = []

    async def push() -> None:
        nonlocal sent
        for number in range(1, _BULK_MESSAGES + 1):
            await connection.send(block, priority=crust.Priority.BULK)
            sent += len(block)
            if number % (_BULK_MESSAGES // (_URGENT_MESSAGES + 1)) == 0:
                due.put_nowait(None)

    async def urge() -> None:
        for _ in range(_URGENT_MESSAGES):
            await due.get()
            before = sent
            began = time.perf_counter()
            await connection.send(b"urgent", priority=crust.Priority.HIGH)
            answer = await connection.receive()
            delays.append((time.perf_counter() - began) * 1000)
            passed.append(before - int(answer.data))

    story.overtaking()
    taken = asyncio.create_task(ben.call("take", count=_BULK_MESSAGES, seconds=_STEP_SECONDS))
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_STEP_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(push())
            group.create_task(urge())
        await taken
    finally:
        taken.cancel()
    seconds = time.perf_counter() - began
    figures = {
        "mb_s": round(sent / seconds / 1e6, 1),
        "overtook_ms": round(statistics.median(delays), 3),
        "overtaken_bytes": max(0, int(statistics.median(passed))),
    }
    story.overtook(sent, **figures)
    return figures


async def _prove(
    connection: crust.Connection, ben: Worker, ada: crust.PeerId, folder: Path, story: _Story
) -> dict[str, Any]:
    """Send a message; Ben keeps its receipt, and a third process looks at both, and at forgeries."""
    story.proving()
    await connection.send(SAID)
    await ben.call("export", ada=str(ada), folder=str(folder), seconds=_STEP_SECONDS)
    verdict = await judge(folder)
    story.proved(ada, verdict)
    return {
        "receipt_signer": verdict.signer if verdict.signer == str(ada) else None,
        "tampered_refused": all(verdict.refused.values()),
    }


async def _send_folder(
    connection: crust.Connection, entries: Sequence[Path], ben: Worker, inbox: Path, story: _Story
) -> None:
    receiving = asyncio.create_task(ben.call("receive", into=str(inbox), seconds=_STEP_SECONDS))
    try:
        progress = TransferProgress()
        with story.progress(progress):
            async with asyncio.timeout(_STEP_SECONDS):
                await send_files(connection, await asyncio.to_thread(scan, entries), progress=progress)
                await receiving
    finally:
        receiving.cancel()


class _Story:
    """What the demo tells, for people who see Crust for the first time."""

    def __init__(self, out: Output) -> None:
        from rich.console import Console

        # With --json, standard output is for the object alone.
        self._console = Console(stderr=out.json, highlight=False, soft_wrap=True)

    def begin(self) -> None:
        """Before anything is done."""
        self._console.print("[bold]Crust demo[/]: two nodes on this machine, each a process of its own.")

    def identities(self, ada: crust.PeerId, ben: str, ben_pid: int) -> None:
        """Both nodes are up."""
        self._title(1, "Two keys")
        self._tell(f"Ada is {ada} (process {os.getpid()})")
        self._tell(f"Ben is {ben} (process {ben_pid})")
        self._tell("A PeerId is a public key, made a moment ago. Whoever knows it can dial it, and nobody else can")
        self._tell("answer in its place: there is no server, no account and no certificate.")

    def connected(self, contact: str, connect_ms: float, path: crust.Path | None) -> None:
        """Ada has dialled Ben, and an echo came back."""
        self._title(2, "Ada dials Ben")
        self._tell(f"Ben's contact, the one line that he gave away: {contact[:24]}…")
        self._tell(f"Connected and answered in {connect_ms:.1f} ms, path: {path}")
        self._tell("Both have proved their keys, and all bytes look random to others, from the first one on.")

    def folder(self, files: int, size: int) -> None:
        """The folder is about to be sent."""
        self._title(3, "A folder")
        root = sysconfig.get_path("stdlib")
        self._tell(f"Ada sends this Python's standard library: {root}, {files:,} files, {format_bytes(size)}")

    @contextlib.contextmanager
    def progress(self, transfer: TransferProgress) -> Iterator[None]:
        """A bar that follows the transfer, on a terminal."""
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        bar = Progress(
            TextColumn("  "),
            BarColumn(bar_width=40),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            get_time=time.perf_counter,
        )
        with bar:
            following = asyncio.create_task(self._follow(bar, transfer))
            try:
                yield
            finally:
                following.cancel()

    async def _follow(self, bar: Progress, transfer: TransferProgress) -> None:
        task = bar.add_task("", total=None)
        while True:
            bar.update(task, total=transfer.bytes or None, completed=transfer.bytes_done)
            await asyncio.sleep(0.1)

    def compared(self, size: int, seconds: float, ours: str, theirs: str) -> None:
        """The folder has arrived, and both sides have hashed their copy."""
        self._tell(f"Arrived in {seconds:.1f} s, {size / seconds / 1e6:,.0f} MB/s; the disks have their share in that.")
        self._tell(f"SHA-256 of all names and contents, at Ada's: {ours[:16]}…")
        self._tell(f"                                  at Ben's: {theirs[:16]}…")
        if ours == theirs:
            self._console.print("   [green]The copy is identical.[/]")
        else:
            self._console.print("   [red]The copy differs![/] That must not happen: please report it.")

    def overtaking(self) -> None:
        """Bulk messages are about to be sent."""
        self._title(4, "Urgent messages overtake")
        size = format_bytes(_BULK_MESSAGES * _BULK_MESSAGE_BYTES)
        self._tell(f"Ada pushes {size} of bulk messages, and now and then an urgent one, which Ben answers at once.")

    def overtook(self, sent: int, *, mb_s: float, overtook_ms: float, overtaken_bytes: float) -> None:
        """Everything has arrived."""
        self._tell(f"Throughput {mb_s:,.0f} MB/s, encrypted, from process to process")
        self._tell(
            f"An urgent message was there and answered in {overtook_ms:.1f} ms, "
            f"past {format_bytes(overtaken_bytes)} that had been sent before it."
        )

    def proving(self) -> None:
        """A message is about to be sent, and its receipt kept."""
        self._title(5, "Proof")
        self._tell(f'Ada sends a message, "{SAID.decode()}", and Ben keeps its receipt.')

    def proved(self, ada: crust.PeerId, verdict: Verdict) -> None:
        """A third process has looked at the receipt, and at what is not genuine."""
        self._tell("A third process that knows neither of them, and has no key and no connection, runs crust verify:")
        if verdict.signer == str(ada):
            self._console.print(f"   [green]signed by Ada[/], {verdict.signer}")
        else:
            self._console.print("   [red]the receipt was not believed![/] That must not happen: please report it.")
        for what, refused in verdict.refused.items():
            self._console.print(f"   [green]refused[/]: {what}" if refused else f"   [red]NOT REFUSED[/]: {what}")

    def end(self, seconds: float) -> None:
        """Everything is done and tidied up."""
        self._console.print(f"\nDone in {seconds:.1f} s; both nodes and all files are gone again.", markup=False)
        self._tell("Between two machines: `crust receive --into inbox` prints a contact on one,")
        self._tell("`crust send CONTACT FOLDER` sends from the other. `crust bench` measures, `crust --help` has more.")

    def _title(self, number: int, text: str) -> None:
        self._console.print(f"\n[bold]{number}  {text}[/]")

    def _tell(self, text: str) -> None:
        self._console.print(f"   {text}", markup=False)


class _Ben:
    """The other process: a node that takes one connection and does as it is told."""

    def __init__(self) -> None:
        self._node: crust.Node | None = None
        self._connection: crust.Connection | None = None

    async def do(self, what: str, arguments: dict[str, Any]) -> Any:
        """Run one command."""
        commands: dict[str, Callable[..., Awaitable[Any]]] = {
            "open": self._open,
            "receive": self._receive,
            "hash": self._hash,
            "take": self._take,
            "export": self._export,
        }
        return await commands[what](**arguments)

    async def _open(self) -> dict[str, str]:
        self._node = crust.Node(config=_config())
        await self._node.start()
        return {"id": str(self._node.id), "contact": str(await self._node.contact())}

    async def _accepted(self) -> crust.Connection:
        if self._connection is None:
            assert self._node is not None
            self._connection = await anext(self._node)
        return self._connection

    async def _receive(self, into: str) -> None:
        connection = await self._accepted()
        stream = await anext(connection.streams())
        assert stream.name == STREAM_NAME
        os.mkdir(into)
        await receive_files(connection, stream, into)

    async def _hash(self, folder: str) -> str:
        return await asyncio.to_thread(lambda: _tree_hash(Path(folder), os.listdir(folder)))

    async def _take(self, count: int) -> None:
        """Receive bulk messages; answer an urgent one with the number of bytes that have arrived before it."""
        connection = await self._accepted()
        arrived = 0
        while count:
            message = await connection.receive()
            if message.priority is crust.Priority.BULK:
                arrived += len(message.data)
                count -= 1
            else:
                await connection.send(b"%d" % arrived, priority=message.priority)

    async def _export(self, ada: str, folder: str) -> None:
        """Receive a message, and write down what proves that Ada sent it."""
        connection = await self._accepted()
        await export(await connection.receive(), crust.PeerId.parse(ada), Path(folder))


if __name__ == "__main__":
    run_worker(serve(_Ben().do))
