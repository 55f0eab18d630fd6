"""What all dials together send to one host."""

from __future__ import annotations

import pytest

from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import Trust
from crust.proto.nat.limits import TraversalLimits

LIMITS = TraversalLimits(
    host_datagrams_per_hour=100,
    host_connects_per_hour=10,
    unverified_host_datagrams_per_hour=20,
    unverified_host_connects_per_hour=4,
    hosts=8,
)


def test_claimed_addresses_get_a_handful() -> None:
    budget = DestinationBudget(LIMITS)
    assert sum(budget.take("192.0.2.1", "datagram", Trust.CLAIMED, float(n)) for n in range(1000)) == 20
    assert sum(budget.take("192.0.2.1", "connect", Trust.CLAIMED, float(n)) for n in range(1000)) == 4
    assert budget.refused == 980 + 996
    assert budget.take("192.0.2.2", "datagram", Trust.CLAIMED, 0.0, amount=50) == 20


def test_vouched_addresses_get_more_and_share_the_account() -> None:
    budget = DestinationBudget(LIMITS)
    assert budget.take("192.0.2.1", "datagram", Trust.ATTESTED, 0.0, amount=90) == 90
    assert budget.take("192.0.2.1", "datagram", Trust.CLAIMED, 0.0) == 0
    assert budget.take("192.0.2.1", "datagram", Trust.BY_HAND, 0.0, amount=90) == 10
    assert budget.take("192.0.2.1", "datagram", Trust.ANSWERED, 0.0, amount=90) == 90
    assert budget.take("192.0.2.1", "connect", Trust.ATTESTED, 0.0, amount=90) == 10


def test_a_host_is_a_machine_whatever_the_port_or_its_ipv6_address() -> None:
    budget = DestinationBudget(LIMITS)
    hosts = [f"2001:db8::{n:x}" for n in range(100)]
    assert sum(budget.take(host, "datagram", Trust.CLAIMED, 0.0) for host in hosts) == 20
    assert budget.take("2001:db8:0:1::1%eth0", "datagram", Trust.CLAIMED, 0.0) == 1


@pytest.mark.parametrize("step", [7.0, 100.0, 599.0, 601.0, 1800.0])
def test_never_more_than_the_limit_in_any_hour(step: float) -> None:
    budget = DestinationBudget(LIMITS)
    sent = []
    now = 0.0
    while now < 5 * 3600:
        sent += [now] * budget.take("192.0.2.1", "datagram", Trust.CLAIMED, now, amount=3)
        now += step
    assert sent[-1] > 3600
    for start in sent:
        assert sum(start <= at < start + 3600 for at in sent) <= 20


def test_too_many_hosts_at_once() -> None:
    budget = DestinationBudget(LIMITS)
    assert sum(budget.take(f"192.0.2.{n}", "datagram", Trust.CLAIMED, 0.0) for n in range(20)) == 8
    assert budget.take("192.0.2.99", "datagram", Trust.ATTESTED, 0.0, amount=5) == 5
    assert budget.take("192.0.2.99", "datagram", Trust.CLAIMED, 9000.0) == 1
