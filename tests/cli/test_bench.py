"""`crust bench`: the baselines are really measured, nothing is made up, the end comes when it is asked for."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from crust.bench import MEASURES, ROWS, control
from crust.bench.control import FIGURES, Plan, Results, measure
from crust.bench.process import UnsupportedError, Worker, WorkerError
from crust.bench.report import BARS, check, medians, summary
from crust.cli import bench
from tests.cli.processes import alive, children, ended, interrupt
from tests.commands import CRUST
from tests.waiting import eventually

BASELINES = ("raw_tcp", "tls", "raw_udp_gso")


def tiny(**changes: object) -> Plan:
    values: dict[str, object] = {"rounds": 1, "bulk": 16, "messages": 200, "pings": 20, "connects": 3, "idle": 20}
    return Plan(**(values | changes))  # type: ignore[arg-type]


def no_progress(_round: int | None, _row: str, _measure: str) -> None:
    pass


async def test_baselines_give_every_figure_that_means_something() -> None:
    results = await measure(tiny(rows=BASELINES, rounds=2), no_progress)
    figures = medians(results)
    if "raw_udp_gso" in results.missing:  # a kernel without UDP_SEGMENT
        assert "UDP_" in results.missing.pop("raw_udp_gso")
    else:
        assert {name for name, value in figures["raw_udp_gso"].items() if value} == {
            "bulk_mb_s",
            "rtt_us",
            "cpu_s_per_gib",
        }
    assert results.missing == {}
    assert results.rounds == 2
    for row in ("raw_tcp", "tls"):
        readings = results.figures[row]
        assert {name: len(values) for name, values in readings.items() if name != "idle_kib"} == {
            name: 2 for name in FIGURES if name != "idle_kib"
        }
        assert all(value > 0 for name, values in readings.items() if name != "idle_kib" for value in values)
        assert readings["idle_kib"] == [max(results.idle_sides[row])]


async def test_crust_rows_give_every_figure() -> None:
    results = await measure(tiny(rows=["tcp", "tcp_unsigned"]), no_progress)
    assert results.missing == {}
    for row in ("tcp", "tcp_unsigned"):
        assert set(results.figures[row]) == set(FIGURES)
        assert all(value > 0 for name, [value] in results.figures[row].items() if name != "idle_kib")
        assert results.figures[row]["idle_kib"] == [max(results.idle_sides[row])]
    assert results.idle_connections == 20


@pytest.mark.parametrize("row", ["utp", "utp_1500"])
async def test_utp_is_measured_over_utp_or_said_to_be_missing(row: str) -> None:
    results = await measure(tiny(rows=[row], measures=["rtt"]), no_progress)
    assert bool(results.missing.get(row)) is (row not in results.figures)


async def test_packets_cost_cpu() -> None:
    """What one datagram costs on either side, where bulk data are datagrams."""
    results = await measure(tiny(rows=["raw_tcp", "utp_1500"], measures=["bulk"]), no_progress)
    costs = summary(tiny(), results)["cpu_us_per_packet"]
    assert costs["raw_udp_gso"] is costs["utp"] is None
    if "utp_1500" not in results.missing:
        assert costs["utp_1500"]["send"] > 0.1
        assert costs["utp_1500"]["receive"] > 0.1
    assert "raw_tcp" not in costs


async def test_what_is_not_asked_for_is_not_measured() -> None:
    told: list[tuple[int | None, str, str]] = []
    results = await measure(tiny(rows=["raw_tcp"], measures=["rtt"]), lambda *step: told.append(step))
    assert told == [(0, "raw_tcp", "rtt")]
    assert list(results.figures) == ["raw_tcp"]
    assert list(results.figures["raw_tcp"]) == ["rtt_us"]


async def test_no_further_round_when_time_runs_out() -> None:
    results = await measure(tiny(rows=["raw_tcp"], measures=["rtt"], rounds=50, seconds=1.5), no_progress)
    assert 0 < results.rounds < 50


async def test_a_row_that_fails_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    results = await measure(tiny(rows=["no_such_row", "raw_tcp"], measures=["rtt"]), no_progress)
    assert "no_such_row" in results.missing["no_such_row"]
    assert results.figures["raw_tcp"]["rtt_us"]


async def test_memory_leaves_time_for_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_IDLE_SHARE", 0.0)
    results = await measure(tiny(rows=["raw_tcp"], measures=["rtt", "idle"]), no_progress)
    assert results.missing == {"raw_tcp idle": "no time left"}
    assert results.rounds == 1


async def test_failure_of_the_memory_measure_costs_that_figure_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> float:
        raise WorkerError("hold: OSError: Too many open files")

    monkeypatch.setattr(control._Pair, "idle", fail)
    results = await measure(tiny(rows=["raw_tcp"], measures=["rtt", "idle"]), no_progress)
    assert results.missing == {"raw_tcp idle": "hold: OSError: Too many open files"}
    assert list(results.figures["raw_tcp"]) == ["rtt_us"]


async def test_worker_answers_with_the_reason_and_goes_on() -> None:
    worker = await Worker.start("crust.bench.worker")
    try:
        with pytest.raises(WorkerError, match="cannot do 'serve'"):
            await worker.call("serve")
        with pytest.raises(WorkerError, match="no row 'tin_cans'"):
            await worker.call("row", name="tin_cans")
        assert await worker.call("row", name="raw_tcp") in ("uvloop", "asyncio")
        usage = await worker.call("usage")
        assert usage["cpu_s"] > 0
        assert usage["rss"] > 1_000_000
        assert await worker.call("limit") >= 64
    finally:
        await worker.stop()
    with pytest.raises(WorkerError):
        await worker.call("usage")


async def test_a_worker_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await Worker.start("crust.bench.worker")
    try:
        await worker.call("row", name="raw_tcp")
        [address] = await worker.call("serve", role="hold", count=0, listeners=1)
        with pytest.raises(WorkerError, match="not done within"):
            await worker.call("rtt", address=address, count=1, seconds=0.2)
    finally:
        await worker.stop()


async def test_unsupported_is_told_apart_from_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise UnsupportedError("this kernel is a teapot")

    monkeypatch.setattr(control._Pair, "__aenter__", refuse)
    results = await measure(tiny(rows=["raw_udp_gso"], rounds=3), no_progress)
    assert results.missing == {"raw_udp_gso": "this kernel is a teapot"}
    assert medians(results)["raw_udp_gso"] == dict.fromkeys(FIGURES)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
async def test_worker_ends_with_its_parent() -> None:
    code = (
        "import asyncio\n"
        "from crust.bench.process import Worker\n"
        "async def main():\n"
        "    worker = await Worker.start('crust.bench.worker')\n"
        "    await worker.call('usage')\n"
        "    print(worker.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    worker = int(await parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(5):
        await ended([worker])


def test_medians_ratios_and_bars() -> None:
    results = Results(rounds=3, loop="asyncio")
    for value in (1000.0, 3000.0, 2000.0):
        results.add("raw_tcp", "bulk_mb_s", value)
        results.add("tls", "bulk_mb_s", value / 2)
        results.add("tcp_unsigned", "bulk_mb_s", value * 0.59)
    results.add("raw_tcp", "connect_ms", 0.5)
    results.add("tls", "connect_ms", 1.0)
    results.add("tcp_unsigned", "connect_ms", 1.9)
    results.add("tcp_unsigned", "idle_kib", 20.5)
    figures = medians(results)
    assert figures["raw_tcp"]["bulk_mb_s"] == 2000
    assert figures["utp"] == dict.fromkeys(FIGURES)
    verdicts = {(c.bar.row, c.bar.figure, str(c.bar)): c.passed for c in check(figures)}
    assert verdicts["tcp_unsigned", "bulk_mb_s", ">= 0.6 x raw_tcp"] is False
    assert verdicts["tcp_unsigned", "bulk_mb_s", ">= 1 x tls"] is True
    assert verdicts["tcp_unsigned", "connect_ms", "<= 4 x raw_tcp or 1 x tls"] is True
    assert verdicts["tcp_unsigned", "idle_kib", "<= 20"] is False
    assert verdicts["utp", "idle_kib", "<= 20"] is None
    record = json.loads(json.dumps(summary(tiny(), results)))
    assert record["ratios"]["tcp_unsigned"]["bulk_mb_s"] == {"raw_tcp": 0.59, "tls": 1.18}
    assert record["ratios"]["utp"] == {}
    assert set(ROWS) <= set(record)
    assert len(record["checks"]) == len(BARS)
    assert record["readings"]["raw_tcp"]["bulk_mb_s"] == [1000, 3000, 2000]


def test_command_prints_a_table_for_people() -> None:
    done = subprocess.run(
        [*CRUST, "bench", "--quick", "--only", "tls,raw_tcp", "--measure", "rtt,connect"],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["64", "B", "rtt", "µs", "connect", "ms"]
    assert lines[1].startswith("raw TCP ")
    assert lines[2].startswith("mutual TLS 1.3 ")
    assert "one round" in lines[-1]
    assert done.stderr == "round 1 of 1\n"


def test_command_prints_one_json_object() -> None:
    done = subprocess.run(
        [*CRUST, "bench", "--quick", "--json", "--only", "raw_tcp", "--measure", "rtt"],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    record = json.loads(line)
    assert all(list(record[row]) == list(FIGURES) for row in ROWS)
    assert record["raw_tcp"]["rtt_us"] > 0
    assert record["tcp"]["rtt_us"] is None
    assert record["missing"] == {}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "raw_tcp,pigeon"], "pigeon"),
        (["--measure", "smell"], "smell"),
        (["--rounds", "0"], "1 to 100"),
        (["--rounds", "many"], "many"),
    ],
)
def test_mistyped_arguments(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert complaint in capsys.readouterr().err


def test_names_keep_the_order_of_the_table() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(["--only", "tls, raw_tcp", "--measure", ",".join(reversed(MEASURES))])
    assert args.only == ("raw_tcp", "tls")
    assert args.measure == MEASURES


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
async def test_interrupt_ends_it_and_its_workers_within_two_seconds() -> None:
    process = await asyncio.create_subprocess_exec(
        *CRUST, "bench", "--json", "--only", "tls", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stdout is not None
    await process.stderr.readline()  # "memory": workers start
    await eventually(lambda: len(children(process.pid)) >= 2)  # they have said nothing yet
    workers = children(process.pid)
    assert len(workers) == 2
    await interrupt(process, workers)
    assert await process.stdout.read() == b""
