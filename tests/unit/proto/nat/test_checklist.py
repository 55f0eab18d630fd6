"""The check list on a fake clock."""

from __future__ import annotations

import pytest

from crust.errors import LocalProtocolError
from crust.proto.nat.candidates import LocalView, RemoteCandidate, Trust, screen
from crust.proto.nat.checklist import TRANSITIONS, CheckInput, CheckList, CheckState
from crust.types import Candidate

VIEW = LocalView()


def remotes(count: int, first: int = 1, **options: object) -> list[RemoteCandidate]:
    candidates = [Candidate("utp", f"203.0.113.{n}", 5000) for n in range(first, first + count)]
    return screen(candidates, VIEW, **options).kept  # type: ignore[arg-type]


def run(checks: CheckList, now: float) -> list[tuple[float, str]]:
    started = [(now, c.remote.candidate.host) for c in checks.start(now)]
    while (due := checks.next_timeout()) is not None:
        now = max(due, now)
        started += [(now, c.remote.candidate.host) for c in checks.start(now)]
    return started


def test_starts_are_staggered_in_order_of_priority() -> None:
    checks = CheckList(stagger=0.005)
    assert checks.next_timeout() is None
    checks.add(remotes(4))
    started = run(checks, 10.0)
    assert [host for _, host in started] == [f"203.0.113.{n}" for n in range(1, 5)]
    assert [at for at, _ in started] == pytest.approx([10.0, 10.005, 10.01, 10.015])


def test_twenty_dead_candidates_cost_no_more_than_a_hundred_milliseconds() -> None:
    checks = CheckList(stagger=0.005)
    checks.add(remotes(21))
    assert run(checks, 0.0)[-1][0] <= 0.1 + 1e-9


def test_late_timers_do_not_add_up_and_pauses_make_no_burst() -> None:
    checks = CheckList(stagger=0.005)
    checks.add(remotes(40))
    now = 1.0
    for _ in range(10):
        checks.start(now)
        due = checks.next_timeout()
        assert due is not None
        now = max(now, due) + 0.002  # each timer is late by 2 ms
    assert now < 1.0 + 11 * 0.005 + 0.004
    assert len(checks.start(60.0)) == 1


def test_candidates_trickle() -> None:
    checks = CheckList(stagger=0.005, limit=5)
    checks.add(remotes(2))
    run(checks, 0.0)
    added = checks.add(remotes(3))  # two of them are known
    assert [check.remote.candidate.host for check in added] == ["203.0.113.3"]
    assert run(checks, 1.0) == [(1.0, "203.0.113.3")]
    assert len(checks.add(remotes(10, first=50))) == 2
    checks.add(remotes(1, by_hand=True))
    assert checks.checks[0].remote.trust is Trust.BY_HAND
    checks.add(remotes(1))
    assert checks.checks[0].remote.trust is Trust.BY_HAND


def test_outcomes() -> None:
    checks = CheckList()
    added = checks.add(remotes(4))
    keys = [check.key for check in added]
    checks.start(0.0)
    checks.failed(keys[0], 0.1, "refused")
    checks.succeeded(keys[2], 0.2)  # the peer reached us before its turn had come
    checks.failed(keys[2], 0.25, "reset")
    assert not checks.exhausted
    checks.failed(keys[1], 0.3, "unreachable")
    checks.close(0.4, "another one won")
    assert checks.exhausted
    checks.succeeded(keys[0], 0.5, "late")
    assert not checks.exhausted
    assert [(c.state, c.started_at, c.ended_at, c.detail) for c in checks.checks] == [
        (CheckState.SUCCEEDED, 0.0, 0.5, "late"),
        (CheckState.FAILED, None, 0.3, "unreachable"),
        (CheckState.FAILED, None, 0.25, "reset"),
        (CheckState.CANCELLED, None, 0.4, "another one won"),
    ]
    assert checks.add(remotes(1, first=99)) == []
    assert checks.next_timeout() is None
    with pytest.raises(LocalProtocolError):
        checks.failed(("tcp", ("203.0.113.1", 1)), 0.0, "")


def test_the_table_is_complete() -> None:
    for state in CheckState:
        for happened in CheckInput:
            assert ((state, happened) in TRANSITIONS) == (
                happened is not CheckInput.START or state is CheckState.WAITING
            )
