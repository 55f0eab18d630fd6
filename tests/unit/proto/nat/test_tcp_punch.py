"""TCP punching schedules on a fake clock."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import RemoteCandidate, Trust
from crust.proto.nat.checklist import CheckState
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.punch import (
    Connect,
    Established,
    GaveUp,
    Hopeless,
    PunchEnd,
    PunchOptions,
    SocketsWanted,
)
from crust.proto.nat.strategy import Approach, Plan
from crust.proto.nat.tcp_punch import MEETING_SOCKETS, TcpPuncher
from crust.types import Candidate
from tests.unit.proto.nat import support
from tests.unit.proto.nat.support import PEER, events

remote = functools.partial(support.remote, "tcp")
Outcome = Callable[[TcpPuncher, Connect, float], float]
"""What becomes of an attempt that starts at a time: reports it, returns when."""


def puncher(
    approach: Approach = Approach.PUNCH, *, budget: DestinationBudget | None = None, **options: object
) -> TcpPuncher:
    plan = Plan(approach, "because", ("advice",))
    made = PunchOptions(**options)  # type: ignore[arg-type]
    return TcpPuncher(plan, Random(1).randbytes, budget or DestinationBudget(), 0.0, made)


def run(engine: TcpPuncher, until: float, outcome: str, rtt: float = 0.04) -> list[tuple[float, Connect]]:
    """Let every attempt end the same way: "refused" after a round trip, "silent", "unreachable", or "pending"."""
    started: list[tuple[float, Connect]] = []
    pending: list[tuple[float, Connect]] = []
    now = 0.0
    while now <= until:
        for connect in engine.connects_to_start(now):
            started.append((now, connect))
            if outcome != "pending":
                pending.append((now + (connect.timeout if outcome == "silent" else rtt), connect))
        times = [at for at, _ in pending]
        if (due := engine.next_timeout()) is not None:
            times.append(max(due, now))
        if not times:
            break
        now = min(times)
        for entry in [e for e in pending if e[0] <= now]:
            pending.remove(entry)
            _, connect = entry
            if outcome == "refused":
                engine.refused(connect.socket, connect.target, now)
            elif outcome == "silent":
                engine.timed_out(connect.socket, connect.target, now)
            else:
                engine.unreachable(connect.socket, connect.target, now, "no route")
    return started


def test_silence_is_answered_long_before_the_kernel_would() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    started = run(engine, 20.0, "silent")
    assert [round(at, 3) for at, _ in started[:5]] == [0.0, 0.15, 0.45, 1.05, 2.25]
    assert {connect.socket for _, connect in started} == {0}
    assert max(connect.timeout for _, connect in started) == 2.0
    assert engine.ended is PunchEnd.TIMEOUT
    assert events(engine) == [GaveUp(PunchEnd.TIMEOUT)]
    assert engine.next_timeout() is None


def test_an_attempt_lasts_three_round_trips_at_least() -> None:
    engine = puncher(rtt=0.3)
    engine.add([remote()], 0.0)
    [connect] = engine.connects_to_start(0.0)
    assert connect == Connect(0, (PEER, 5000), pytest.approx(0.9))


def test_rst_is_answered_at_once_and_unevenly() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    started = run(engine, 20.0, "refused")
    gaps = [b - a - 0.04 for (a, _), (b, _) in pairwise(started)]
    assert all(0.002 <= gap <= 0.015 for gap in gaps[:15])
    assert all(0.08 <= gap <= 0.16 for gap in gaps[15:])
    assert len(set(gaps[:15])) == 15
    assert 50 < len(started) <= 80
    assert started[-1][0] > 7


def test_a_host_without_a_route_is_tried_slowly() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    started = run(engine, 20.0, "unreachable")
    assert len(started) == 10
    assert engine.checks.checks[0].detail == "no route"
    predicting = puncher(Approach.PREDICT_THEIRS)
    predicting.add([remote(port=40000, kind="predicted")], 0.0)
    assert len(run(predicting, 20.0, "unreachable")) == 8


def test_what_only_the_peer_names_gets_two_attempts() -> None:
    engine = puncher()
    engine.add([remote("192.0.2.1", 22, "host", Trust.CLAIMED)], 0.0)
    started = run(engine, 20.0, "refused")
    assert len(started) == 2
    assert started[0][1].timeout == 3.0
    [check] = engine.checks.checks
    assert (check.state, check.detail) == (CheckState.FAILED, "no answer")


def test_the_whole_node_counts() -> None:
    budget = DestinationBudget()
    count = 0
    for port in range(100):
        engine = puncher(budget=budget)
        engine.add([remote("192.0.2.1", 1 + port, "host", Trust.CLAIMED)], 0.0)
        count += len(run(engine, 5.0, "refused"))
    assert count == TraversalLimits().unverified_host_connects_per_hour
    assert engine.allowance.refused["host"] > 0


def test_a_dial_has_a_total() -> None:
    engine = puncher(Approach.PREDICT_THEIRS)
    engine.add([remote(port=40000 + n, kind="predicted") for n in range(50)], 0.0)
    started = run(engine, 20.0, "refused")
    ports = Counter(connect.target[1] for _, connect in started)
    assert len(ports) == 32
    assert max(ports.values()) == 8
    assert len(started) == 256
    engine = puncher(limits=TraversalLimits(dial_connects=5))
    engine.add([remote()], 0.0)
    assert len(run(engine, 20.0, "refused")) == 5


def test_both_sides_begin_together() -> None:
    engine = puncher(hold=0.03)
    engine.add([remote(), remote("192.168.1.9", 5000, "host", near=True)], 0.0)
    started = run(engine, 0.05, "pending")
    assert sorted((connect.target[0], round(at, 3)) for at, connect in started) == [
        ("192.168.1.9", 0.0),
        (PEER, 0.03),
    ]


def test_a_meeting() -> None:
    engine = puncher(Approach.MEET, hold=0.02)
    meeting = [remote(port=40000 + 24 * n, kind="predicted") for n in range(2)]
    engine.add(meeting, 0.0)
    engine.add(meeting, 0.0)
    assert events(engine) == [
        SocketsWanted(1, MEETING_SOCKETS),
        SocketsWanted(MEETING_SOCKETS + 1, 2 * MEETING_SOCKETS),
    ]
    started = run(engine, 5.0, "refused")
    first = [connect for at, connect in started if at < 0.1]
    assert [connect.socket for connect in first] == list(range(1, MEETING_SOCKETS + 1))
    assert {connect.target for connect in first} == {(PEER, 40000)}
    assert started[0][0] == pytest.approx(0.02)
    assert len(started) == 2 * MEETING_SOCKETS  # none is tried twice: it would get another port


def test_predicted_ports_are_bounded_whatever_the_peer_sends() -> None:
    engine = puncher(Approach.MEET)
    for n in range(300):
        engine.add([remote(port=20000 + n, kind="predicted")], 0.0)
    wanted = [event for event in events(engine) if isinstance(event, SocketsWanted)]
    assert wanted[-1].last < TraversalLimits().dial_sockets
    assert len(run(engine, 20.0, "refused")) == TraversalLimits().dial_sockets // MEETING_SOCKETS * MEETING_SOCKETS


def test_a_predicted_port_that_is_known_is_not_tried_twice() -> None:
    engine = puncher(Approach.PREDICT_THEIRS)
    engine.add([remote()], 0.0)
    engine.connects_to_start(0.0)
    engine.add([remote(kind="predicted")], 0.0)
    assert engine.connects_to_start(0.0) == []


def test_predicted_ports_mean_nothing_to_other_plans() -> None:
    engine = puncher()
    engine.add([remote(port=40000, kind="predicted")], 0.0)
    assert run(engine, 5.0, "pending") == []


def test_success_ends_it() -> None:
    engine = puncher()
    engine.add([remote(), remote(port=5001)], 0.0)
    run(engine, 0.1, "pending")
    engine.established(0, (PEER, 5000), 0.1)
    engine.established(0, (PEER, 5001), 0.2)
    engine.refused(0, (PEER, 5001), 0.2)
    engine.timed_out(0, (PEER, 5002), 0.2)
    engine.unreachable(0, (PEER, 5002), 0.2, "")
    engine.add([remote(port=6000)], 0.2)
    engine.stop(0.3)
    assert events(engine) == [Established(0, (PEER, 5000))]
    assert engine.connects_to_start(0.4) == []
    assert [check.state for check in engine.checks.checks] == [CheckState.SUCCEEDED, CheckState.CANCELLED]


def test_an_accepted_connection_from_elsewhere_wins_too() -> None:
    engine = puncher()
    engine.established(0, ("192.0.2.77", 7), 0.2)
    assert events(engine) == [Established(0, ("192.0.2.77", 7))]


def test_outcomes_of_attempts_that_were_not_made() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    engine.connects_to_start(0.0)
    engine.refused(0, (PEER, 5000), 0.1)
    engine.refused(0, (PEER, 5000), 0.1)
    engine.timed_out(3, (PEER, 5000), 0.1)
    assert len(engine.connects_to_start(0.2)) == 1


def test_udp_candidates_are_not_for_this_engine() -> None:
    engine = puncher()
    engine.add([RemoteCandidate(Candidate("utp", PEER, 5000), Trust.ATTESTED, False, 1)], 0.0)
    assert run(engine, 5.0, "pending") == []


def test_stop_and_hopeless() -> None:
    engine = puncher(Approach.HOPELESS)
    assert events(engine) == [Hopeless("because", ("advice",))]
    engine.add([remote()], 0.0)
    assert len(engine.connects_to_start(0.0)) == 1
    engine.stop(0.1)
    assert events(engine) == [GaveUp(PunchEnd.STOPPED)]


def test_what_is_given_up_is_not_tried_again() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    [connect] = engine.connects_to_start(0.0)
    assert not engine.is_over(connect.target)
    engine.given_up(connect.socket, connect.target, 0.05, "SSH answers there")
    assert engine.is_over(connect.target)
    assert engine.checks.checks[0].detail == "SSH answers there"
    assert engine.connects_to_start(5.0) == []
    engine.given_up(connect.socket, connect.target, 5.0, "twice")
    assert engine.checks.checks[0].detail == "SSH answers there"


def test_an_address_that_the_budget_does_not_allow_is_over() -> None:
    budget = DestinationBudget(TraversalLimits(host_connects_per_hour=1))
    engine = puncher(budget=budget)
    engine.add([remote()], 0.0)
    [connect] = engine.connects_to_start(0.0)
    engine.refused(connect.socket, connect.target, 0.05)
    assert not engine.is_over(connect.target)
    assert engine.connects_to_start(1.0) == []
    assert engine.is_over(connect.target)


def test_everything_is_over_when_the_dial_is() -> None:
    engine = puncher()
    assert not engine.is_over((PEER, 5000))
    engine.stop(0.0)
    assert engine.is_over((PEER, 5000))
