"""`crust lab`: what it dials, what it prints, its exit codes; a tiny matrix where this machine can hold one."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crust.cli import lab, main
from crust.cli.output import Output
from crust.testing.natlab import NATS, Lab, LabError, LabUnavailable, Outcome, Verdict, summarize
from tests.commands import CRUST
from tests.waiting import eventually


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    lab.add_arguments(parser)
    return parser.parse_args(argv)


def dial(first: str, second: str, transport: str, ms: float | None, **changes: Any) -> Outcome:
    fields: dict[str, Any] = {"path": None if ms is None else "punched", "error": "no path" if ms is None else None}
    return Outcome(first=first, second=second, transport=transport, attempt=0, connect_ms=ms, **(fields | changes))


async def skip_without_lab() -> None:
    try:
        async with Lab():
            pass
    except LabUnavailable as error:
        pytest.skip(str(error))


# What is dialled


def test_every_pair_once_by_default() -> None:
    pairs = lab._chosen_pairs(parse())
    assert len(pairs) == len(set(pairs)) == len(NATS) * (len(NATS) + 1) // 2
    assert {frozenset(pair) for pair in pairs} == {frozenset((a, b)) for a in NATS for b in NATS}


def test_chosen_kinds_and_pairs() -> None:
    assert lab._chosen_pairs(parse("--kinds", "public,cgnat")) == [
        ("public", "public"),
        ("public", "cgnat"),
        ("cgnat", "cgnat"),
    ]
    assert lab._chosen_pairs(parse("public", "cgnat")) == lab._chosen_pairs(parse("--kinds", "public,cgnat"))
    assert lab._chosen_pairs(parse("--pairs", "cgnat:public, cgnat:public")) == [("cgnat", "public")]
    assert lab._chosen_pairs(parse("--pairs", "cgnat:public,public:public", "--both-ways")) == [
        ("cgnat", "public"),
        ("public", "cgnat"),
        ("public", "public"),
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--kinds", "nat"], "there is no kind 'nat'; there are public,"),
        (["--pairs", "public"], "'public' is not KIND:KIND"),
        (["--tries", "0"], "not a number from 1"),
        (["--late", "-1"], "above 0"),
        (["--late", "2-1"], "the least comes first"),
        (["--kinds", "public", "--pairs", "public:public"], "either kinds or --pairs"),
        (["public", "--pairs", "public:public"], "either kinds or --pairs"),
        (["--loss", "51"], "not a number of percent from 0 to 50"),
        (["--dead", "61"], "not a number from 0 to 60"),
    ],
)
def test_usage(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", *argv]) == 2
    assert said in capsys.readouterr().err


def test_conditions() -> None:
    args = parse("--late", "0-2", "--round-trip", "100", "--loss", "1", "--rate", "10", "--dead", "20", "--jobs", "3")
    assert (args.late, args.round_trip, args.loss, args.rate) == ((0.0, 2.0), 100.0, 1.0, 10.0)
    assert (args.dead, args.jobs) == (20, 3)
    assert parse("--late", "1.5").late == (1.5, 1.5)
    assert parse().late == (0.0, 0.0)


# What comes of it


def test_summary_beside_expectations() -> None:
    easy = [dial("cgnat", "full-cone", "tcp", ms) for ms in (170.0, 200.0, 190.0)]
    slow = [dial("cgnat", "public", "tcp", 900.0)]
    lost = [dial("cgnat", "cgnat", "utp", 100.0), dial("cgnat", "cgnat", "utp", None)]
    hopeless = [
        dial("symmetric-random", "symmetric-random", "utp", None, result={"report": {"elapsed_ms": ms}})
        for ms in (700.0, 1900.0)
    ]
    late = [dial("symmetric-random", "symmetric-random", "tcp", None, result={"report": {"elapsed_ms": 9000.0}})]
    mute = [dial("symmetric-random", "symmetric-random", "any", None)]
    found = summarize([*easy, *slow, *lost, *hopeless, *late, *mute])
    assert [each.verdict for each in found] == [
        Verdict.AS_EXPECTED,
        Verdict.SLOW,
        Verdict.SHOULD_CONNECT,
        Verdict.AS_EXPECTED,
        Verdict.SAID_LATE,
        Verdict.SAID_LATE,
    ]
    assert [(each.tries, each.ok, each.connected, each.met) for each in found] == [
        (3, 3, True, True),
        (1, 1, True, False),
        (2, 1, False, False),
        (2, 0, True, True),
        (1, 0, True, False),
        (1, 0, True, False),
    ]
    assert (found[0].median_ms, found[0].worst_ms, found[0].kinds, found[0].told_ms) == (190, 200, ("punched",), None)
    assert [each.told_ms for each in found[3:]] == [1300, 9000, None]


def test_luck_may_fail_once_in_a_hundred_but_not_be_slow() -> None:
    def guessed(times: list[float | None]) -> Verdict:
        [found] = summarize([dial("port-restricted", "symmetric-random", "utp", each) for each in times])
        return found.verdict

    assert guessed([1500.0] * 99 + [None]) is Verdict.AS_EXPECTED
    assert guessed([1500.0] * 99 + [10_001.0]) is Verdict.AS_EXPECTED
    assert guessed([1500.0] * 98 + [None, 10_001.0]) is Verdict.SHOULD_CONNECT
    assert guessed([2100.0] * 100) is Verdict.SLOW


def test_what_a_peer_is_late_by_does_not_count() -> None:
    for ms, verdict in ((2200.0, Verdict.AS_EXPECTED), (200.0, Verdict.AS_EXPECTED), (2300.0, Verdict.SLOW)):
        [found] = summarize([dial("cgnat", "full-cone", "tcp", ms, late=2.0)])
        assert found.verdict is verdict


def test_a_race_is_won_by_one_of_them() -> None:
    won = {"path": {"kind": "punched", "transport": "utp"}}
    [found] = summarize([dial("cgnat", "cgnat", "any", 150.0, result=won)])
    assert (found.transports, found.verdict) == (("utp",), Verdict.AS_EXPECTED)
    assert "punched utp" in lab._tables([found], ["any"])


def test_a_relayed_path_is_no_direct_one() -> None:
    [found] = summarize([dial("cgnat", "cgnat", "tcp", 90.0, path="relayed")])
    assert (found.ok, found.connected, found.kinds, found.median_ms) == (0, False, ("relayed",), None)


def test_tables_for_people() -> None:
    found = summarize(
        [
            *(dial(first, second, "tcp", 180.0) for first in ("public", "cgnat") for second in ("public", "cgnat")),
            dial("cgnat", "cgnat", "utp", None),
            dial("udp-blocked", "cgnat", "utp", None, result={"report": {"elapsed_ms": 15000.0}}),
        ]
    )
    text = lab._tables(found, ["tcp", "utp"])
    assert "TCP: path that won, median ms" in text
    assert text.count("punched 180") == 4
    assert "should connect" in text
    assert "said so after 15.0 s" in text
    assert "6 dials in 6 pairs; 4 of these as they should be." in text


def test_tables_for_a_page() -> None:
    found = summarize(
        [
            dial("public", "public", "tcp", 180.4),
            dial("public", "cgnat", "tcp", 190.0),
            dial("public", "cgnat", "tcp", None),
            dial("cgnat", "cgnat", "tcp", None),
        ]
    )
    assert lab._pages(found, ["tcp"]).splitlines() == [
        "tcp:",
        "",
        "|  | public | cgnat |",
        "| --- | ---: | ---: |",
        "| **public** | 180 | 190 (1 of 2) |",
        "| **cgnat** |  | none |",
    ]


async def test_a_pair_that_should_connect_and_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await skip_without_lab()

    async def fail(*_: object, **__: object) -> AsyncIterator[Outcome]:
        yield dial("public", "full-cone", "tcp", None, result={"report": {"error": "no path"}})

    monkeypatch.setattr(lab, "run_matrix", fail)
    argv = ["lab", "--pairs", "public:full-cone", "--transport", "tcp", "--json"]
    assert await asyncio.to_thread(main, argv) == 3
    one, total = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["ok"], one["error"], one["report"]) == (False, "no path", {"error": "no path"})
    assert (total["connected"], total["ok"], total["met"], total["dials"]) == (False, 0, 0, 1)


# What is missing


async def without_lab(_lab: Lab) -> None:
    raise LabUnavailable("user namespaces are forbidden here")


async def test_no_lab_on_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Lab, "__aenter__", without_lab)
    assert await asyncio.to_thread(main, ["lab", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": "no lab on this machine: user namespaces are forbidden here"}
    assert said.err == "crust: no lab on this machine: user namespaces are forbidden here\n"


async def test_kinds_that_cannot_be_built_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    await skip_without_lab()
    place = Lab.place

    async def lacking(self: Lab, kind: str, *rest: Any, **options: Any) -> Any:
        if kind == "igd-symmetric":
            raise LabUnavailable("miniupnpd is missing")
        return await place(self, kind, *rest, **options)

    monkeypatch.setattr(Lab, "place", lacking)
    pairs = [("public", "full-cone"), ("public", "igd-symmetric")]
    async with Lab() as made:
        out = Output(quiet=True)
        assert await lab._possible(made, pairs, False, out) == (
            [("public", "full-cone")],
            {"igd-symmetric": "miniupnpd is missing"},
        )
        with pytest.raises(LabUnavailable, match="miniupnpd"):
            await lab._possible(made, pairs, True, out)


def test_a_failing_program_has_the_last_word(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("warning\ncrust: the port is taken\n")
    assert lab._with_last_words("the listener ended", words) == "the listener ended: crust: the port is taken"
    words.write_text("")
    assert lab._with_last_words("the listener ended", words) == "the listener ended"


async def test_a_program_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    await skip_without_lab()

    async def fail(*_: object, **__: object) -> AsyncIterator[Outcome]:
        raise LabError("the listener said nothing")
        yield

    monkeypatch.setattr(lab, "run_matrix", fail)
    assert await asyncio.to_thread(main, ["lab", "--pairs", "public:public", "--transport", "tcp"]) == 1
    assert capsys.readouterr().err == "crust: the listener said nothing\n"


# The real thing


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}


@pytest.mark.netns
@pytest.mark.parametrize("condition", [[], ["--late", "0.5"], ["--dead", "20", "--different-ranges"]])
async def test_a_tiny_matrix(tmp_path: Path, condition: list[str]) -> None:
    await skip_without_lab()
    options = ["--pairs", "full-cone:address-restricted", "--transport", "tcp", "--prove", *condition]
    done = await asyncio.to_thread(
        subprocess.run, [*CRUST, "lab", "--json", *options], capture_output=True, text=True, env=environment(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    one, total = map(json.loads, done.stdout.splitlines())
    assert one["ok"], one
    assert (one["first"], one["second"], one["transport"], one["path"]) == (
        "full-cone",
        "address-restricted",
        "tcp",
        "punched",
    )
    [pair] = total["summary"]
    assert pair["expected"]["direct"]
    assert (pair["tries"], pair["ok"], pair["median_ms"], pair["kinds"]) == (1, 1, one["connect_ms"], ["punched"])
    assert total["missing"] == {}
    assert total["proved"]
    assert "2 kinds are what they are said to be" in done.stderr
    assert "1 of 1: full-cone to address-restricted, tcp: punched" in done.stderr
    assert list(tmp_path.iterdir()) == []


async def start_dialling(tmp_path: Path) -> asyncio.subprocess.Process:
    """A laboratory in the middle of a dial."""
    process = await asyncio.create_subprocess_exec(
        *(*CRUST, "lab", "--pairs", "full-cone:full-cone", "--transport", "tcp", "--tries", "100"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    )
    assert process.stderr is not None
    assert await process.stderr.readline()
    return process


@pytest.mark.netns
async def test_an_interruption_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    await skip_without_lab()
    process = await start_dialling(tmp_path)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(2):
        assert await process.wait() == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.netns
async def test_a_kill_leaves_nothing_either(tmp_path: Path) -> None:
    await skip_without_lab()
    process = await start_dialling(tmp_path)
    assert list(tmp_path.glob("crust-lab-*/*.key"))
    process.kill()
    await process.wait()
    await eventually(lambda: not list(tmp_path.iterdir()), 5)  # by whoever outlives it
