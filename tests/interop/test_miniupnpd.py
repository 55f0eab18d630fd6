"""The port mapper against miniupnpd of Debian, in network namespaces: PCP, NAT-PMP, IGD v1 and v2, pinholes."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.slow]

LAB = Path(__file__).with_name("miniupnpd_lab.py")
OUTSIDE = "44.0.0.1"
HOST6 = "2001:db8:77::2"


@functools.cache
def missing() -> str:
    """Why the lab cannot run here, or ""."""
    for program in ("unshare", "nsenter", "ip", "nft", "ss", "miniupnpd"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    script = "ip link add name v0 type veth peer name v1 && nft add table inet t"
    done = subprocess.run(["unshare", "-Urnm", "sh", "-c", script], capture_output=True, text=True, check=False)
    return f"no network namespaces: {done.stderr.strip()}" if done.returncode else ""


def play(scenario: str, directory: Path) -> dict[str, Any]:
    if missing():
        pytest.skip(missing())
    command = ["unshare", "-Urnm", "--kill-child", sys.executable, str(LAB), scenario, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(result: dict[str, Any]) -> set[tuple[str, str, str, int]]:
    return {(m["method"], m["protocol"], *m["external"]) for m in result["mappings"]}


def test_pcp_for_both_families(tmp_path: Path) -> None:
    result = play("all", tmp_path)
    assert summary(result) == {("pcp", p, host, 4000) for p in ("tcp", "udp") for host in (OUTSIDE, HOST6)}
    assert result["reached"] == {OUTSIDE: True, HOST6: True}
    assert result["reached_after"] == {OUTSIDE: False, HOST6: False}
    assert "4000" in result["rules"]
    assert "4000" not in result["rules_after"]
    assert result["report"]["ignored"] == {}
    assert result["settled_ms"] < 5000  # milliseconds, but for a busy machine and a link that has just come up


def test_nat_pmp(tmp_path: Path) -> None:
    result = play("nat-pmp", tmp_path)
    assert summary(result) == {("nat-pmp", p, OUTSIDE, 4000) for p in ("tcp", "udp")}
    assert result["reached"] == {OUTSIDE: True}
    assert result["reached_after"] == {OUTSIDE: False}


@pytest.mark.parametrize("scenario", ["igd", "igd-v1"])
def test_igd_mappings_and_pinholes(tmp_path: Path, scenario: str) -> None:
    pytest.importorskip("async_upnp_client")
    result = play(scenario, tmp_path)
    hosts = [OUTSIDE] if scenario == "igd-v1" else [OUTSIDE, HOST6]  # pinholes came with v2
    assert summary(result) == {("igd", p, host, 4000) for p in ("tcp", "udp") for host in hosts}
    assert result["reached"] == dict.fromkeys(hosts, True)
    assert result["reached_after"] == dict.fromkeys(hosts, False)
    assert "4000" not in result["rules_after"]


def test_igd_is_the_last_choice(tmp_path: Path) -> None:
    pytest.importorskip("async_upnp_client")
    result = play("last", tmp_path)
    outcomes = {a["method"]: a["outcome"] for a in result["report"]["attempts"] if ":" not in a["gateway"]}
    assert outcomes == {"pcp": "no answer", "nat-pmp": "no answer", "igd": "mapped"}
    assert {m["method"] for m in result["mappings"] if ":" in m["gateway"]} == {"pcp"}


def test_a_router_behind_another(tmp_path: Path) -> None:
    """miniupnpd makes no mappings while its outside address is private, and says so; pinholes do not care."""
    pytest.importorskip("async_upnp_client")
    result = play("behind another", tmp_path)
    assert summary(result) == {("pcp", p, HOST6, 4000) for p in ("tcp", "udp")}
    attempts = [a for a in result["report"]["attempts"] if ":" not in a["gateway"]]
    assert {(a["method"], a["outcome"]) for a in attempts} == {(m, "refused") for m in ("pcp", "nat-pmp", "igd")}
    assert len(result["report"]["advice"]) == 3


def test_a_router_that_restarts(tmp_path: Path) -> None:
    result = play("restart", tmp_path)
    assert summary(result) == {("pcp", p, host, 4000) for p in ("tcp", "udp") for host in (OUTSIDE, HOST6)}
    assert result["restored_ms"] < 10_000


def test_no_daemon(tmp_path: Path) -> None:
    result = play("nobody", tmp_path)
    assert result["mappings"] == []
    assert {a["outcome"] for a in result["report"]["attempts"]} == {"no answer"}
    assert result["settled_ms"] < 8000  # one second, but for a busy machine; silence would be waited for longer
