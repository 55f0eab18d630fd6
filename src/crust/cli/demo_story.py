"""What `crust demo` tells, for people who see Crust for the first time."""

from __future__ import annotations

import asyncio
import contextlib
import sysconfig
import time
from typing import TYPE_CHECKING, Any

from crust.cli.demo_proof import SAID
from crust.cli.output import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

    import crust
    from crust.cli.demo_proof import Verdict
    from crust.cli.output import Output
    from crust.node.transfer import TransferProgress

__all__ = ["Story"]

_NAMES = {"tcp": "TCP", "utp": "µTP"}


class Story:
    """Prints it, step by step."""

    def __init__(self, out: Output) -> None:
        from rich.console import Console

        # With --json, standard output is for the object alone.
        self._console = Console(stderr=out.json, highlight=False, soft_wrap=True)
        self._step = 0

    def begin(self, skipped: str | None) -> None:
        """Before anything is done.

        Args:
            skipped: why there are no NATs; None where there are.
        """
        where = "two nodes behind two NATs, in namespaces of this machine" if skipped is None else "two nodes"
        self._console.print(f"[bold]Crust demo[/]: {where}, each a process of its own.")
        if skipped is not None:
            self._tell(f"Both use the loopback interface, and there is no NAT to get through: {skipped}.")

    def identities(self, ada: crust.PeerId, ben: str, places: list[str]) -> None:
        """Both nodes are up.

        Args:
            ada: who dials.
            ben: who is dialled.
            places: where they are, a line each.
        """
        self._title("Two keys")
        self._tell(f"Ada is {ada}")
        self._tell(f"Ben is {ben}")
        self._tell("A PeerId is a public key, made a moment ago. Whoever knows it can dial it, and nobody else can")
        self._tell("answer in its place: there is no account and no certificate.")
        for line in places:
            self._tell(line)

    def connected(self, target: str, connect_ms: float, path: crust.Path | None, explained: str) -> None:
        """Ada has dialled Ben, and an echo came back."""
        self._title("Ada dials Ben")
        self._tell(target)
        for line in explained.splitlines():
            self._tell(line)
        self._tell(f"Connected and answered in {connect_ms:.1f} ms, path: {path}")
        self._tell("Both have proved their keys, and all bytes look random to others, from the first one on.")

    def each_by_itself(self, transports: dict[str, dict[str, Any]]) -> None:
        """A node of Ada's that may use one transport only has dialled Ben, and so has one with the other."""
        self._title("Each transport by itself")
        for name, found in transports.items():
            self._tell(
                f"{_NAMES[name]}: connected and answered in {found['connect_ms']:.1f} ms, path: {found['path']}; "
                f"then {found['mb_s']:,.0f} MB/s"
            )
        self._tell("Where a network lets only one of them pass, that one is used.")

    def folder(self, files: int, size: int) -> None:
        """The folder is about to be sent."""
        self._title("A folder")
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

    def overtaking(self, size: int) -> None:
        """Bulk messages are about to be sent."""
        self._title("Urgent messages overtake")
        bulk = f"{format_bytes(size)} of bulk messages"
        self._tell(f"Ada pushes {bulk}, and now and then an urgent one, which Ben answers at once.")

    def overtook(self, sent: int, *, mb_s: float, overtook_ms: float, overtaken_bytes: float) -> None:
        """Everything has arrived."""
        self._tell(f"Throughput {mb_s:,.0f} MB/s, encrypted, from process to process")
        self._tell(
            f"An urgent message was there and answered in {overtook_ms:.1f} ms, "
            f"past {format_bytes(overtaken_bytes)} that had been sent before it."
        )

    def proving(self) -> None:
        """A message is about to be sent, and its receipt kept."""
        self._title("Proof")
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

    def _title(self, text: str) -> None:
        self._step += 1
        self._console.print(f"\n[bold]{self._step}  {text}[/]")

    def _tell(self, text: str) -> None:
        self._console.print(f"   {text}", markup=False)
