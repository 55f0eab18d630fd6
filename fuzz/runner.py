"""The plain runner: seeds, then the kept corpus, then mutations of both until a bound."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from random import Random

from fuzz.mutate import mutate
from fuzz.target import CORPUS, Target

_POOL = 512
_SLOW_SECONDS = 5.0


@dataclass(slots=True)
class Outcome:
    """How a run went.

    Attributes:
        inputs: how many were run.
        finding: the input that raised what it may not, or took too long.
        error: what it raised.
    """

    inputs: int = 0
    finding: bytes | None = None
    error: Exception | None = None


class TooSlow(Exception):
    """One input kept the target busy for seconds."""


def run_plain(target: Target, *, seed: int = 0, inputs: int | None = None, seconds: float | None = None) -> Outcome:
    """Run a target until one of the bounds is reached or something is found.

    Args:
        target: what to run.
        seed: the same seed gives the same inputs.
        inputs: how many mutated inputs at most.
        seconds: how long at most.
    """
    random = Random(seed)
    pool = [*target.seeds(), *target.kept()] or [b""]
    outcome = Outcome()
    began = time.monotonic()
    for data in pool:
        if not _try(target, data, outcome):
            return outcome
    originals = len(pool)
    while (inputs is None or outcome.inputs < originals + inputs) and (
        seconds is None or time.monotonic() - began < seconds
    ):
        # Half of the time from what is known to be well-formed, so that changes keep getting past the first check.
        parent = pool[random.randrange(originals)] if random.getrandbits(1) else random.choice(pool)
        data = mutate(parent, pool, random)
        if not _try(target, data, outcome):
            return outcome
        # Changes pile up in a bounded pool; without coverage any input is as good as another.
        if len(pool) < originals + _POOL:
            pool.append(data)
        else:
            pool[random.randrange(originals, len(pool))] = data
    return outcome


def _try(target: Target, data: bytes, outcome: Outcome) -> bool:
    outcome.inputs += 1
    began = time.monotonic()
    try:
        target.try_input(data)
        if time.monotonic() - began > _SLOW_SECONDS:
            raise TooSlow(f"{time.monotonic() - began:.1f} s for {len(data)} bytes")
    except Exception as error:
        outcome.finding, outcome.error = data, error
        return False
    return True


def keep(target: Target, data: bytes) -> str:
    """Write an input into the kept corpus; returns its path."""
    folder = CORPUS / target.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
    path.write_bytes(data)
    return str(path)
