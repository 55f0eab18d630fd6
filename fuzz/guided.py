"""One target under atheris: `python -m fuzz.guided TARGET SECONDS SEED`. libFuzzer ends the process by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["crust"]):
    from fuzz.targets import TARGETS

WORK = Path("build") / "fuzz"


def main() -> None:
    """Run; does not return."""
    name, seconds, seed = sys.argv[1:]
    target = TARGETS[name]
    work = WORK / name
    inputs = work / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate([*target.seeds(), *target.kept()]):
        (inputs / f"seed-{number}").write_bytes(data)
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-seed={int(seed) + 1}",
        f"-artifact_prefix={work}/",
        "-timeout=5",
        "-max_len=131072",
        str(inputs),
    ]
    atheris.Setup(arguments, target.try_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
