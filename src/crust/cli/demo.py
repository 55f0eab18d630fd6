"""Show the main job on this machine: two nodes behind two NATs, one encrypted connection, a folder, a receipt.

Where the machine allows it, each node is a process behind a router of its own, in a laboratory of network namespaces,
and a third one, on an internet between them, is the rendezvous that both reach; otherwise both are on the loopback
interface. Identities are fresh, nothing leaves this machine, and nothing is left on it. It takes some 15 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import crust
from crust.bench.process import Worker, WorkerError
from crust.cli.demo_ben import config
from crust.cli.demo_folder import standard_library, tree_hash
from crust.cli.demo_proof import SAID, judge
from crust.cli.demo_stage import FarWorker, Stage, play_in_lab
from crust.cli.demo_story import Story
from crust.cli.output import CommandError, Output
from crust.cli.ping import explain
from crust.cli.scratch import scratch_folder
from crust.node.transfer import TransferError, TransferProgress, scan, send_files
from crust.testing.natlab import LabUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crust.types import Transport

__all__ = ["add_arguments", "run"]

# How much is sent in a laboratory, whose wires are long and made of Python, and how much without.
_FOLDER_BYTES: Final = {True: 50_000_000, False: 150_000_000}
_BULK_MESSAGES: Final = {True: 64, False: 256}
_BULK_MESSAGE_BYTES: Final = 1 << 20
_URGENT_MESSAGES: Final = 5
_TRIAL_MESSAGES: Final = 8
_STEP_SECONDS: Final = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust demo` takes."""
    parser.add_argument("--loopback", action="store_true", help="no NATs: both nodes on the loopback interface")
    # For the process that plays Ada in a laboratory.
    parser.add_argument("--stage", type=Stage.parse, help=argparse.SUPPRESS)


async def run(args: argparse.Namespace, out: Output) -> int:
    """Run the demo; 0 if everything arrived as it was sent.

    Raises:
        CommandError: another process, the disk or the connection failed.
    """
    sys.dont_write_bytecode = True  # the folder that is sent must not change meanwhile
    if args.stage is not None:
        return await _play(args.stage, await FarWorker.on_standard_input(), out)
    began = time.monotonic()
    skipped = "--loopback"
    # A cancel may come within any of these: what was made is removed whatever happens.
    with scratch_folder("crust-demo-") as place:
        if not args.loopback:
            try:
                return await play_in_lab(place, began, ["--json"] if args.json else [])
            except LabUnavailable as error:
                skipped = str(error)
        ben = await Worker.start("crust.cli.demo_ben", writes_bytecode=False)
        try:
            return await _play(Stage(place=place, began=began, skipped=skipped), ben, out)
        finally:
            await asyncio.shield(ben.stop())


async def _play(stage: Stage, ben: Worker | FarWorker, out: Output) -> int:
    """Be Ada, with Ben at the other end of the pipes."""
    story = Story(out)
    story.begin(stage.skipped)
    try:
        async with crust.Node(config=config(stage.rendezvous)) as ada:
            await ada.bootstrapped()
            record = await _show(ada, ben, stage, story)
    except (WorkerError, TransferError, OSError) as error:
        raise CommandError(f"the demo failed: {error}") from error
    story.end(time.monotonic() - stage.began)
    out.record(record)
    return 0 if record["hashes_equal"] and record["receipt_signer"] and record["tampered_refused"] else 1


async def _show(ada: crust.Node, ben: Worker | FarWorker, stage: Stage, story: Story) -> dict[str, Any]:
    """The whole story; returns what `--json` prints."""
    introduced = await ben.call("open", rendezvous=stage.rendezvous)
    story.identities(ada.id, introduced["id"], stage.places)

    # Behind a NAT the key alone will do, as both are connected to a node that passes sealed offers between them.
    target = introduced["id"] if stage.rendezvous else introduced["contact"]
    connection, connect_ms = await _connect(ada, target)
    path = connection.path
    what = f"by his PeerId alone: {target}" if stage.rendezvous else f"by his contact, the line he gave: {target[:24]}…"
    report = connection.report
    story.connected(what, connect_ms, path, "" if report is None else explain(report))
    try:
        await ben.call("accept")
        transports = await _each_by_itself(target, ben, stage)
        story.each_by_itself(transports)
        figures = await _use(connection, ben, stage, story)
        figures |= await _prove(connection, ben, ada.id, stage.place / "proof", story)
        await connection.close()
    except BaseException:
        # An orderly end delivers what is queued: after Ctrl-C there is no time for that, the files are to be removed.
        connection.abort()
        raise
    return {
        "connect_ms": round(connect_ms, 3),
        "path": path,
        "natted": stage.rendezvous is not None,
        "skipped": stage.skipped,
        "transports": transports,
        **figures,
    }


async def _connect(node: crust.Node, target: str) -> tuple[crust.Connection, float]:
    """Dial; the time counts from the call to the first echo."""
    began = time.perf_counter()
    connection = await node.connect(target, timeout=10)
    await connection.ping()
    return connection, (time.perf_counter() - began) * 1000


async def _each_by_itself(target: str, ben: Worker | FarWorker, stage: Stage) -> dict[str, dict[str, Any]]:
    """Dial from nodes that have one transport only, and push some messages."""
    found: dict[str, dict[str, Any]] = {}
    names: tuple[Transport, ...] = ("tcp", "utp")
    for name in names:
        async with crust.Node(config=config(stage.rendezvous, name)) as node:
            await node.bootstrapped()
            connection, connect_ms = await _connect(node, target)
            path = connection.path
            began = time.perf_counter()
            drained = asyncio.create_task(ben.call("drain", size=_TRIAL_MESSAGES * _BULK_MESSAGE_BYTES))
            try:
                for _ in range(_TRIAL_MESSAGES):
                    await connection.send(bytes(_BULK_MESSAGE_BYTES))
                await connection.receive()
                seconds = time.perf_counter() - began
                await drained
            finally:
                drained.cancel()
            await connection.close()
        rate = _TRIAL_MESSAGES * _BULK_MESSAGE_BYTES / seconds / 1e6
        found[name] = {"connect_ms": round(connect_ms, 3), "path": path, "mb_s": round(rate, 1)}
    return found


async def _use(connection: crust.Connection, ben: Worker | FarWorker, stage: Stage, story: Story) -> dict[str, Any]:
    """Send the folder, compare it, and let urgent messages overtake; returns the figures of these."""
    natted, place = stage.rendezvous is not None, stage.place
    limit = min(shutil.disk_usage(place).free // 3, _FOLDER_BYTES[natted])
    entries, files, size = await asyncio.to_thread(standard_library, limit)
    story.folder(files, size)
    inbox = place / "inbox"
    began = time.perf_counter()
    await _send_folder(connection, entries, ben, inbox, story)
    folder_seconds = time.perf_counter() - began
    names = [entry.name for entry in entries]
    ours, theirs = await asyncio.gather(
        asyncio.to_thread(tree_hash, entries[0].parent, names), ben.call("hash", folder=str(inbox))
    )
    story.compared(size, folder_seconds, ours, theirs)

    return {
        "files": files,
        "bytes": size,
        "folder_mb_s": round(size / folder_seconds / 1e6, 1),
        "hashes_equal": ours == theirs,
        **await _overtake(connection, ben, story, _BULK_MESSAGES[natted]),
    }


async def _overtake(
    connection: crust.Connection, ben: Worker | FarWorker, story: Story, messages: int
) -> dict[str, Any]:
    """Push bulk messages, and among them urgent ones that are answered at once."""
    block = os.urandom(_BULK_MESSAGE_BYTES)
    sent = 0
    due: asyncio.Queue[None] = asyncio.Queue()
    delays: list[float] = []
    passed: list[int] = []

    async def push() -> None:
        nonlocal sent
        for number in range(1, messages + 1):
            await connection.send(block, priority=crust.Priority.BULK)
            sent += len(block)
            if number % (messages // (_URGENT_MESSAGES + 1)) == 0:
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

    story.overtaking(messages * _BULK_MESSAGE_BYTES)
    taken = asyncio.create_task(ben.call("take", count=messages, seconds=_STEP_SECONDS))
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
    connection: crust.Connection, ben: Worker | FarWorker, ada: crust.PeerId, folder: Path, story: Story
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
    connection: crust.Connection, entries: Sequence[Path], ben: Worker | FarWorker, inbox: Path, story: Story
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
