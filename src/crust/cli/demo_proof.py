"""The last part of `crust demo`: a receipt, shown to a process that knows nothing, and what that process refuses."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crust.crypto.hashing import HashId
from crust.crypto.keys import Identity, PeerId
from crust.proto.session.signing import Signer, Verifier
from crust.wire.receipt import Kind

if TYPE_CHECKING:
    from crust.node.message import Message
    from crust.wire.receipt import Receipt

__all__ = ["SAID", "Verdict", "export", "judge"]

SAID: Final = b"Ada owes Ben 100 tonnes of wheat."
_SAID_OTHERWISE: Final = b"Ada owes Ben 900 tonnes of wheat."

_PROGRAM: Final = "import sys; from crust.cli import main; sys.exit(main())"
_REFUTED: Final = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the third process found.

    Attributes:
        signer: who it says has signed the message; "" if it does not believe it.
        refused: what was put before it that is not genuine, and whether it refused that.
    """

    signer: str
    refused: dict[str, bool]


async def export(message: Message, ada: PeerId, folder: Path) -> None:
    """Write down a message and its receipt, and beside them what Ben could try to pass off as Ada's.

    Args:
        message: from Ada.
        ada: her PeerId.
        folder: where to; made here.
    """
    receipt = await message.receipt()
    await asyncio.to_thread(_write, message.data, receipt, ada, folder)


def _write(said: bytes, receipt: Receipt, ada: PeerId, folder: Path) -> None:
    raw = bytes(receipt)
    damaged = bytearray(raw)
    damaged[-40] ^= 1
    folder.mkdir()
    for name, data in (
        ("message", said),
        ("otherwise", _SAID_OTHERWISE),
        ("receipt", raw),
        ("damaged.receipt", bytes(damaged)),
        ("forged.receipt", _forge(ada, receipt.claims.receiver, _SAID_OTHERWISE)),
    ):
        (folder / name).write_bytes(data)


def _forge(signer: PeerId, receiver: PeerId, said: bytes) -> bytes:
    """A receipt in perfect order, made with another key, and the signer's name put into it."""
    forger = Identity.generate()
    seed, session = secrets.token_bytes(32), secrets.token_bytes(32)
    signing = Signer(forger, receiver, HashId.SHA256, seed, session)
    verifying = Verifier(forger.id, receiver, HashId.SHA256, seed, session)
    for side in (signing, verifying):
        side.add_batch(Kind.MESSAGE, 4, [said], 0.0)
    segment = verifying.segment
    verifying.receive_signature(signing.sign(time.time()), 0.0)
    return bytes(segment.receipt(0) or b"").replace(bytes(forger.id), bytes(signer))


async def judge(folder: Path) -> Verdict:
    """Run `crust verify` on what `export` wrote: new processes, in a home where there is no key and no setting.

    Raises:
        OSError: no process can be started.
    """
    home = folder / "home"
    home.mkdir()
    genuine, *others = await asyncio.gather(
        *(
            _verify(folder / receipt, folder / file, home)
            for receipt, file in (
                ("receipt", "message"),
                ("receipt", "otherwise"),
                ("damaged.receipt", "message"),
                ("forged.receipt", "otherwise"),
            )
        )
    )
    code, record = genuine
    names = ("an altered message", "an altered receipt", "another's signature")
    refused = {name: code == _REFUTED for name, (code, _) in zip(names, others, strict=True)}
    return Verdict(str(record["signer"]) if code == 0 and record["verified"] else "", refused)


async def _verify(receipt: Path, file: Path, home: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON object of `crust verify`."""
    import json

    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-B", "-c", _PROGRAM, "verify", "--json", str(receipt), str(file)),
        env={**kept, "HOME": str(home), "APPDATA": str(home), "LOCALAPPDATA": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the other
    )
    try:
        out, _ = await process.communicate()
    except BaseException:
        process.kill()
        await asyncio.shield(process.wait())
        raise
    return process.returncode or 0, json.loads(out) if out else {}
