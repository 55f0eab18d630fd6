"""The command line of the fuzz targets; see the package."""

from __future__ import annotations

import argparse
import subprocess
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

from fuzz.runner import keep, run_plain
from fuzz.target import Target
from fuzz.targets import TARGETS

WORK = Path("build") / "fuzz"


def main() -> int:
    """Run what the arguments ask for; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="feed mutated bytes to parsers and engines")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="one of: " + ", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default 0)")
    parser.add_argument("--plain", action="store_true", help="do not use atheris")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run one input and show what it raises")
    options = parser.parse_args()
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"there is no target {unknown[0]!r}")
    chosen = [TARGETS[name] for name in options.targets or TARGETS]
    if options.input is not None:
        if len(chosen) != 1:
            parser.error("--input goes with one target")
        chosen[0].try_input(options.input.read_bytes())
        return 0
    guided = not options.plain and find_spec("atheris") is not None
    return max((run_guided if guided else run_here)(target, options.seconds, options.seed) for target in chosen)


def run_here(target: Target, seconds: float, seed: int) -> int:
    """The plain runner."""
    outcome = run_plain(target, seed=seed, seconds=seconds)
    if outcome.error is None:
        print(f"{target.name}: {outcome.inputs} inputs, nothing found")
        return 0
    traceback.print_exception(outcome.error)
    print(f"{target.name}: found, kept as {keep(target, outcome.finding or b'')}")
    return 1


def run_guided(target: Target, seconds: float, seed: int) -> int:
    """Atheris, in a process of its own."""
    work = WORK / target.name
    command = [sys.executable, "-m", "fuzz.guided", target.name, str(max(1, round(seconds))), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [path for kind in ("crash-*", "timeout-*", "oom-*") for path in sorted(work.glob(kind))]
    if done.returncode == 0 and not found:
        runs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
        print(f"{target.name}: {runs[-1].lower() if runs else 'done'}, nothing found")
        return 0
    sys.stderr.write(done.stdout + done.stderr)
    for path in found:
        print(f"{target.name}: found, kept as {keep(target, path.read_bytes())}")
        path.unlink()
    return 1


if __name__ == "__main__":
    sys.exit(main())
