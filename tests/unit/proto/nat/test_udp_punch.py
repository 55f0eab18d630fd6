"""UDP punching schedules on a fake clock."""

from __future__ import annotations

import functools
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import RemoteCandidate, Trust
from crust.proto.nat.checklist import CheckState
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.punch import (
    Established,
    FreshSocketAdvised,
    GaveUp,
    Hopeless,
    PunchEnd,
    PunchOptions,
    SendProbe,
    SocketsWanted,
)
from crust.proto.nat.strategy import Approach, Plan
from crust.proto.nat.udp_punch import UdpPuncher
from crust.types import Candidate
from crust.wire.stun import Address
from tests.unit.proto.nat import support
from tests.unit.proto.nat.support import PEER, events

remote = functools.partial(support.remote, "utp")


def puncher(
    approach: Approach = Approach.PUNCH,
    *,
    careful: bool = False,
    budget: DestinationBudget | None = None,
    **options: object,
) -> UdpPuncher:
    made = PunchOptions(**options)  # type: ignore[arg-type]
    plan = Plan(approach, "because", ("advice",), careful=careful, openers=careful)
    return UdpPuncher(plan, Random(1).randbytes, budget or DestinationBudget(), 0.0, made)


def run(engine: UdpPuncher, until: float, start: float = 0.0) -> list[tuple[float, SendProbe]]:
    sent = [(start, probe) for probe in engine.probes_to_send(start)]
    while (due := engine.next_timeout()) is not None and due <= until:
        now = max(due, start)
        sent += [(now, probe) for probe in engine.probes_to_send(now)]
    return sent


def targets(sent: list[tuple[float, SendProbe]]) -> Counter[Address]:
    return Counter(probe.target for _, probe in sent)


def test_probes_are_dense_at_first_and_end() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    sent = run(engine, 60.0)
    times = [at for at, _ in sent]
    assert times[0] == 0.0
    assert sum(at < 0.5 for at in times) == 6
    assert max(b - a for a, b in pairwise(times)) <= 0.51
    assert times[-1] < 10.0
    assert len(times) < 40
    assert all(probe == SendProbe(0, (PEER, 5000)) for _, probe in sent)
    assert events(engine) == [GaveUp(PunchEnd.TIMEOUT)]
    assert engine.ended is PunchEnd.TIMEOUT
    assert engine.next_timeout() is None
    assert engine.probes_to_send(99.0) == []


def test_what_only_the_peer_names_gets_five_datagrams() -> None:
    engine = puncher(patience=100.0)
    victims = [remote(f"192.0.2.{n}", 53, "host", Trust.CLAIMED) for n in range(1, 30)]
    engine.add([*victims, *(remote("192.0.2.1", port, "host", Trust.CLAIMED) for port in range(80, 90))], 0.0)
    hosts = Counter(probe.target[0] for _, probe in run(engine, 100.0))
    assert set(hosts.values()) == {5}


def test_the_limit_of_a_claimed_address_holds_whatever_the_schedule() -> None:
    engine = puncher(limits=TraversalLimits(unverified_datagrams=3))
    engine.add([remote("192.0.2.1", 53, "host", Trust.CLAIMED)], 0.0)
    assert len(run(engine, 5.0)) == 3
    assert engine.allowance.refused["unverified"] == 2


def test_tcp_candidates_are_not_for_this_engine() -> None:
    engine = puncher()
    candidate = Candidate("tcp", PEER, 5000)
    engine.add([RemoteCandidate(candidate, Trust.ATTESTED, False, 1)], 0.0)
    assert run(engine, 5.0) == []


def test_the_whole_node_counts() -> None:
    budget = DestinationBudget(TraversalLimits(unverified_host_datagrams_per_hour=7))
    sent = 0
    for _ in range(10):
        engine = puncher(budget=budget)
        engine.add([remote("192.0.2.1", 53, "host", Trust.CLAIMED)], 0.0)
        sent += len(run(engine, 5.0))
    assert sent == 7


def test_a_dial_has_a_total() -> None:
    engine = puncher(limits=TraversalLimits(dial_datagrams=12))
    engine.add([remote()], 0.0)
    assert len(run(engine, 20.0)) == 12
    assert engine.allowance.refused["dial"] > 0
    assert engine.allowance.sent_to((PEER, 5000)) == engine.allowance.spent == 12


def test_candidates_trickle_and_are_staggered() -> None:
    engine = puncher()
    engine.add([remote(port=5000 + n) for n in range(4)], 0.0)
    first = {}
    for at, probe in run(engine, 0.1):
        first.setdefault(probe.target[1], at)
    assert sorted(first.values()) == pytest.approx([0.0, 0.005, 0.01, 0.015])
    engine.add([remote(port=6000)], 1.0)
    sent = run(engine, 1.02, start=1.0)
    assert (1.0, SendProbe(0, (PEER, 6000))) in sent


def test_hold_sends_openers_until_the_peer_has_begun() -> None:
    engine = puncher(careful=True, hold=0.5, opener_ttl=2)
    engine.add([remote(), remote("192.168.1.9", 5000, "host", near=True)], 0.0)
    engine.add([remote("192.0.2.9", 53, "host", Trust.CLAIMED)], 0.0)
    sent = run(engine, 0.2)
    far = [(at, probe.ttl) for at, probe in sent if probe.target[0] == PEER]
    assert [ttl for _, ttl in far] == [2, 2, 2]
    near = [probe.ttl for _, probe in sent if probe.target[0] == "192.168.1.9"]
    assert near[:2] == [None, None]
    assert not [probe for _, probe in sent if probe.target[0] == "192.0.2.9"]  # no opener for a stranger
    engine.peer_started(0.2)
    engine.peer_started(0.21)
    sent = run(engine, 0.25, start=0.2)
    assert SendProbe(0, (PEER, 5000)) in [probe for _, probe in sent]
    # what was scheduled for the end of the hold is not sent as well
    assert targets(run(engine, 0.7, start=0.25))[PEER, 5000] < 6


def test_the_hold_ends_by_itself() -> None:
    engine = puncher(careful=True, hold=0.5, opener_ttl=2)
    engine.add([remote()], 0.0)
    sent = run(engine, 1.0)
    assert min(at for at, probe in sent if probe.ttl is None) == 0.5


def test_a_careless_plan_does_not_hold() -> None:
    engine = puncher(hold=0.5, opener_ttl=2, quiet=(1,))
    engine.add([remote()], 0.0)
    assert run(engine, 0.0) == [(0.0, SendProbe(0, (PEER, 5000)))]


def test_quiet_sockets_send_openers_only() -> None:
    engine = puncher(careful=True, opener_ttl=2, quiet=(1,), coordinated=False, patience=40.0)
    engine.add([remote()], 0.0)
    sent = run(engine, 39.0)
    assert {probe.ttl for _, probe in sent if probe.socket == 1} == {2}
    assert {probe.ttl for _, probe in sent if probe.socket == 0} == {None}
    quiet = [at for at, probe in sent if probe.socket == 1]
    assert max(b - a for a, b in pairwise(quiet)) <= 10.0
    slow = [at for at, probe in sent if probe.socket == 0 and at > 11]
    assert min(b - a for a, b in pairwise(slow)) >= 2.9
    engine.received(1, (PEER, 5000), 39.1)
    assert SendProbe(1, (PEER, 5000)) in [probe for _, probe in run(engine, 39.5, start=39.1)]


def test_an_answer_becomes_a_peer_reflexive_candidate() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    run(engine, 0.1)
    source = (PEER, 61234)
    engine.received(0, source, 0.1)
    engine.received(0, source, 0.11)
    sent = run(engine, 0.4, start=0.11)
    assert targets(sent)[source] >= 3
    check = next(check for check in engine.checks.checks if check.remote.address == source)
    assert (check.remote.trust, check.remote.candidate.kind) == (Trust.ANSWERED, "peer-reflexive")
    engine.established(0, source, 0.4)
    engine.established(0, source, 0.5)
    assert events(engine) == [Established(0, source)]
    assert engine.ended is PunchEnd.ESTABLISHED
    assert run(engine, 10.0, start=0.5) == []
    states = {check.remote.address: check.state for check in engine.checks.checks}
    assert states == {source: CheckState.SUCCEEDED, (PEER, 5000): CheckState.CANCELLED}
    for late in (engine.received, engine.unreachable):
        late(0, source, 0.6)
    engine.add([remote(port=7)], 0.6)
    engine.stop(0.7)
    assert events(engine) == []


def test_a_path_that_nobody_announced_may_win() -> None:
    engine = puncher()
    engine.established(0, ("192.0.2.77", 7), 0.2)
    assert events(engine) == [Established(0, ("192.0.2.77", 7))]


def test_an_answer_lifts_the_limits_of_a_claimed_address() -> None:
    engine = puncher()
    claimed = remote("192.0.2.9", 5000, "host", Trust.CLAIMED)
    engine.add([claimed], 0.0)
    run(engine, 3.0)
    engine.received(0, claimed.address, 3.0)
    assert len(run(engine, 5.5, start=3.0)) == 6


def test_icmp_slows_down_and_advises_once() -> None:
    engine = puncher(opener_ttl=2)
    engine.add([remote()], 0.0)
    run(engine, 0.01)
    engine.unreachable(0, (PEER, 5000), 0.04)
    engine.unreachable(0, (PEER, 5000), 0.05)
    engine.unreachable(0, ("192.0.2.1", 1), 0.05)
    assert events(engine) == [FreshSocketAdvised(0, (PEER, 5000))]
    times = [at for at, _ in run(engine, 9.0, start=0.05)]
    assert times == pytest.approx([1.05, 4.05, 7.05])


def test_after_an_answer_icmp_is_no_news() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    engine.received(0, (PEER, 5000), 0.1)
    engine.unreachable(0, (PEER, 5000), 0.2)
    assert events(engine) == []


def test_stop() -> None:
    engine = puncher()
    engine.add([remote()], 0.0)
    engine.stop(0.1)
    assert events(engine) == [GaveUp(PunchEnd.STOPPED)]
    assert engine.probes_to_send(0.2) == []


def test_hopeless_is_said_at_once_and_the_rest_is_tried() -> None:
    engine = puncher(Approach.HOPELESS)
    assert events(engine) == [Hopeless("because", ("advice",))]
    engine.add([remote("2001:db8::5", 5000, "host", Trust.CLAIMED)], 0.0)
    assert len(run(engine, 5.0)) == 5


def test_predicted_ports_are_tried_together() -> None:
    engine = puncher(Approach.PREDICT_THEIRS)
    engine.add([remote()], 0.0)
    predicted = [remote(port=40000 + n, kind="predicted") for n in range(50)]
    engine.add(predicted, 0.0)
    engine.add(predicted, 0.0)
    sent = run(engine, 0.02)
    assert {probe.target[1] for _, probe in sent if probe.target[1] >= 40000} == set(range(40000, 40032))
    assert all(probe.socket == 0 for _, probe in sent)
    everything = targets(run(engine, 20.0, start=0.02))
    assert max(everything.values()) <= 40
    assert engine.allowance.spent < 400


def test_memory_is_bounded_whatever_the_peer_sends() -> None:
    engine = puncher(Approach.MEET)
    for n in range(1000):
        engine.add([remote(port=20000 + n, kind="predicted"), remote(port=1024 + n)], 0.0)
        engine.received(0, (PEER, 30000 + n), 0.0)
    assert len(engine.checks.checks) <= TraversalLimits().candidates
    sent = run(engine, 20.0)
    assert len(sent) <= TraversalLimits().dial_datagrams
    assert len({probe.socket for _, probe in sent}) <= TraversalLimits().dial_sockets


def test_a_candidate_that_is_attested_later() -> None:
    engine = puncher(Approach.PROBE_MANY)
    engine.add([remote(trust=Trust.CLAIMED)], 0.0)
    engine.add([remote(trust=Trust.CLAIMED)], 0.0)
    assert len(run(engine, 0.3)) == 2
    engine.add([remote()], 0.3)
    assert len(run(engine, 1.0, start=0.3)) > 100


def test_predicted_ports_mean_nothing_to_other_plans() -> None:
    engine = puncher(Approach.PUNCH)
    engine.add([remote(port=40000, kind="predicted")], 0.0)
    assert run(engine, 5.0) == []


def test_uncoordinated_the_predicted_side_only_opens_at_first() -> None:
    engine = puncher(Approach.PREDICTED, careful=True, opener_ttl=2, coordinated=False)
    engine.add([remote()], 0.0)
    sent = run(engine, 5.0)
    assert {probe.ttl for at, probe in sent if at < 3.0} == {2}
    assert {probe.ttl for at, probe in sent if at >= 3.0} == {None}


def test_a_meeting_takes_fresh_sockets_for_each_round() -> None:
    engine = puncher(Approach.MEET)
    engine.add([remote(port=40000 + 24 * n, kind="predicted") for n in range(3)], 0.0)
    assert engine.probes_to_send(0.0) == []
    assert events(engine) == [SocketsWanted(1, 24)]
    sent = run(engine, 0.45)
    first = [probe.socket for at, probe in sent if at < 0.02]
    assert first == list(range(1, 25))
    assert {probe.target for _, probe in sent} == {(PEER, 40000)}
    assert len(sent) == 4 * 24
    run(engine, 2.0, start=0.46)
    assert events(engine) == [SocketsWanted(25, 48), SocketsWanted(49, 72)]


def test_sockets_are_capped() -> None:
    engine = puncher(Approach.MEET, limits=TraversalLimits(dial_sockets=40))
    engine.add([remote(port=40000 + 24 * n, kind="predicted") for n in range(3)], 0.0)
    run(engine, 5.0)
    assert events(engine) == [SocketsWanted(1, 24)]
    engine = puncher(Approach.OPEN_MANY, limits=TraversalLimits(dial_sockets=1))
    engine.add([remote()], 0.0)
    assert events(engine) == []


def test_opening_many_ports() -> None:
    engine = puncher(Approach.OPEN_MANY, careful=True, opener_ttl=2, quiet=(1,))
    engine.add([remote("192.0.2.9", 5000, "host", Trust.CLAIMED)], 0.0)
    assert events(engine) == []
    engine.add([remote()], 0.0)
    assert events(engine) == [SocketsWanted(2, 255)]
    sent = run(engine, 0.9)
    opened = {probe.socket for _, probe in sent if probe.target == (PEER, 5000) and probe.ttl == 2}
    assert opened >= set(range(2, 256))
    everything = sent + run(engine, 20.0, start=0.9)
    assert len(everything) <= 2000
    full = Counter(probe.socket for at, probe in everything if probe.ttl is None and at > 5.9)
    assert set(full) >= set(range(2, 256))


def test_probing_many_ports() -> None:
    engine = puncher(Approach.PROBE_MANY)
    engine.add([remote()], 0.0)
    sent = run(engine, 20.0)
    assert len(sent) <= 2000
    probed = {probe.target for _, probe in sent}
    assert len(probed) >= 1700
    assert {host for host, _ in probed} == {PEER}
    times = sorted(at for at, probe in sent if probe.target != (PEER, 5000))
    assert times[0] == pytest.approx(0.15)
    assert all(b - a <= 0.0201 for a, b in pairwise(times))
    per_second = Counter(int(at) for at in times)
    assert max(per_second.values()) <= 260
    assert engine.allowance.refused == {}


def test_birthday_probing_only_where_somebody_vouches() -> None:
    engine = puncher(Approach.PROBE_MANY)
    engine.add([remote("192.0.2.9", 5000, "server-reflexive", Trust.CLAIMED)], 0.0)
    assert len(run(engine, 20.0)) == 5


def test_three_birthday_dials_an_hour_to_one_host() -> None:
    budget = DestinationBudget()
    totals = []
    for _ in range(5):
        engine = puncher(Approach.PROBE_MANY, budget=budget)
        engine.add([remote()], 0.0)
        totals.append(len(run(engine, 20.0)))
    assert sum(totals) == TraversalLimits().host_datagrams_per_hour
    assert totals[-1] == 0
