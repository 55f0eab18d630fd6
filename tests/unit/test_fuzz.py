"""A short run of every fuzz target: its seeds, the kept corpus, and the same mutations each time."""

from __future__ import annotations

import pytest

from fuzz.runner import run_plain
from fuzz.target import CORPUS, Target
from fuzz.targets import TARGETS

INPUTS = 2000
SECONDS = 3.0


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_short_run(target: Target) -> None:
    outcome = run_plain(target, inputs=INPUTS, seconds=SECONDS)
    if outcome.error is not None:
        assert outcome.finding is not None
        pytest.fail(f"{target.name}: {outcome.error!r} for {outcome.finding.hex()}")
    assert outcome.inputs >= len(target.seeds())


def test_every_kept_corpus_has_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(TARGETS)


def test_a_finding_is_reported() -> None:
    def run(data: bytes) -> None:
        if b"\xff" in data:
            raise ValueError(data)
        raise KeyError(data)

    outcome = run_plain(Target("example", run, (KeyError,), lambda: [bytes(20)]), inputs=1000)
    assert isinstance(outcome.error, ValueError)
    assert outcome.finding is not None
    assert b"\xff" in outcome.finding
