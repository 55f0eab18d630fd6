"""PCP and NAT-PMP clients against a pure router, on a fake clock."""

from __future__ import annotations

from random import Random

import pytest

from crust.errors import LocalProtocolError
from crust.proto.nat.leases import (
    MAX_MAPPINGS,
    RECOVERY_INTERVAL,
    RETRY_CEILING,
    TRANSITIONS,
    LeaseClient,
    LeaseEvent,
    LeaseGranted,
    LeaseLost,
    LeaseRefused,
    LeaseRemoved,
    MappingInput,
    MappingState,
    RouterRestarted,
    RouterSilent,
    RouterUnsupported,
)
from crust.proto.nat.natpmp import NatPmpClient
from crust.proto.nat.pcp import PcpClient
from crust.wire.natpmp import (
    NatPmpAddressRequest,
    NatPmpAddressResponse,
    NatPmpMapRequest,
    NatPmpMapResponse,
    NatPmpOpcode,
    serialize_natpmp,
)
from crust.wire.pcp import (
    PcpMapping,
    PcpRequest,
    PcpResponse,
    PcpResult,
    parse_pcp_request,
    serialize_pcp,
)
from tests.portmap_router import OUTSIDE, Router

GATEWAY = "192.168.1.1"
SOURCE = (GATEWAY, 5351)


def events_of(client: LeaseClient) -> list[LeaseEvent]:
    events = []
    while (event := client.next_event()) is not None:
        events.append(event)
    return events


def serve(client: LeaseClient, router: Router | None, now: float) -> list[LeaseEvent]:
    """Deliver what is to be sent and the answers, until nothing moves."""
    while out := client.datagrams_to_send(now):
        for data in out:
            reply = router.answer(data, now) if router else None
            if reply is not None:
                client.receive_datagrams([(reply, SOURCE)], now)
    return events_of(client)


def run(client: LeaseClient, router: Router | None, now: float, until: float) -> list[LeaseEvent]:
    events = serve(client, router, now)
    while (due := client.next_timeout()) is not None and due <= until:
        client.handle_timeout(due)
        events += serve(client, router, due)
    return events


def pcp(**options: int) -> PcpClient:
    return PcpClient(GATEWAY, "192.168.1.2", Random(1).randbytes, **options)


def natpmp() -> NatPmpClient:
    return NatPmpClient(GATEWAY, Random(1).randbytes)


CLIENTS = pytest.mark.parametrize("make", [pcp, natpmp])


@CLIENTS
def test_map_renew_at_half_life_and_delete(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router()
    client.map("udp", 4000, 0.0)
    events = run(client, router, 0.0, 0.0)
    lease = client.leases[0]
    assert isinstance(events[-1], LeaseGranted)
    assert (lease.external_host, lease.external_port, lease.lifetime, lease.expires_at) == (OUTSIDE, 4000, 3600, 3600)
    assert client.answered
    renewed = run(client, router, 0.0, 1799.0)
    assert renewed == []
    renewed = run(client, router, 0.0, 2251.0)
    assert [e.changed for e in renewed if isinstance(e, LeaseGranted)] == [False]
    assert 3600 + 1800 <= client.leases[0].expires_at <= 3600 + 2250
    client.unmap("udp", 4000, 2300.0)
    assert client.leases == []
    assert run(client, router, 2300.0, 2300.0) == [LeaseRemoved("udp", 4000, confirmed=True)]
    assert not client.busy
    assert router.mappings == {}
    client.unmap("udp", 4000, 2300.0)
    assert client.next_timeout() is None


@CLIENTS
def test_a_router_that_restarts_is_asked_again(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router()
    client.map("udp", 4000, 0.0)
    client.map("tcp", 4000, 0.0)
    run(client, router, 0.0, 0.0)
    router.restart(90.0)
    router.outside = "203.0.113.10"
    client.probe(101.0)
    events = run(client, router, 101.0, 101.0)
    assert isinstance(next(e for e in events if not isinstance(e, LeaseGranted)), RouterRestarted)
    assert sum(isinstance(e, LeaseLost) for e in events) == 2
    assert len(router.mappings) == 2
    assert {lease.external_host for lease in client.leases} == {"203.0.113.10"}
    # no second recovery before the interval is over, but one then
    router.restart(101.5)
    client.probe(103.0)
    events = run(client, router, 103.0, 103.5)
    assert router.mappings == {}
    run(client, router, 103.5, 101.0 + RECOVERY_INTERVAL)
    assert len(router.mappings) == 2


@CLIENTS
def test_what_the_restarted_router_grants_is_kept(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router()
    client.map("udp", 4000, 0.0)
    run(client, router, 0.0, 0.0)
    router.restart(90.0)
    client.map("tcp", 4000, 100.0)
    events = run(client, router, 100.0, 100.0)
    assert [e.lease.protocol for e in events if isinstance(e, LeaseLost)] == ["udp"]
    assert [e.lease.protocol for e in events if isinstance(e, LeaseGranted)] == ["tcp", "udp"]
    assert len(router.mappings) == 2


@CLIENTS
def test_a_late_refusal_changes_nothing(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router()
    client.map("udp", 4000, 0.0)
    request = client.datagrams_to_send(0.0)[-1]
    client.receive_datagrams([(router.answer(request, 0.0) or b"", SOURCE)], 0.0)
    router.result = 2
    client.receive_datagrams([(router.answer(request, 0.0) or b"", SOURCE)], 0.0)
    assert [type(e) for e in events_of(client)] == [LeaseGranted]
    assert len(client.leases) == 1


@CLIENTS
def test_a_steady_router_is_not_thought_to_restart(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router()
    client.map("udp", 4000, 0.0)
    for now in range(0, 7000, 60):
        client.probe(now)
        events = run(client, router, now, now + 59)
        assert not any(isinstance(e, RouterRestarted | LeaseLost) for e in events)


@CLIENTS
def test_a_router_that_restarts_early_in_its_life(make: type[LeaseClient]) -> None:
    """Its clock has not gone back by the 2 s that the RFCs look for; but it is younger than what it granted."""
    client: LeaseClient = make()
    router = Router(started_at=-0.5)
    client.map("udp", 4000, 0.0)
    run(client, router, 0.0, 0.0)
    router.restart(1.6)
    client.probe(1.8)
    events = run(client, router, 1.8, 1.8)
    assert any(isinstance(e, RouterRestarted) for e in events)
    assert len(router.mappings) == 1


@CLIENTS
def test_an_announcement_has_leases_renewed_at_once(make: type[LeaseClient]) -> None:
    """The clock of a router that restarts within its first second tells nothing."""
    client: LeaseClient = make()
    router = Router(started_at=0.0)
    client.map("udp", 4000, 0.0)
    run(client, router, 0.0, 0.0)
    router.restart(0.3)
    probe = PcpRequest("192.168.1.2", 0) if isinstance(client, PcpClient) else NatPmpAddressRequest()
    data = serialize_pcp(probe) if isinstance(probe, PcpRequest) else serialize_natpmp(probe)
    announcement = router.answer(data, 0.4) or b""
    for now in (0.4, 0.5):
        client.receive_datagrams([(announcement, SOURCE)], now)
        assert not any(isinstance(e, LeaseLost) for e in run(client, router, now, now))
        assert len(router.mappings) == 1
    asked = len(router.requests)
    client.receive_datagrams([(announcement, SOURCE)], 0.6)  # whoever sends them: we do not ask more often
    run(client, router, 0.6, 0.6)
    assert len(router.requests) == asked


@CLIENTS
def test_a_young_router_is_not_thought_to_restart(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router(started_at=-0.01)
    client.map("udp", 4000, 0.0)
    for tenths in range(1, 100):
        client.probe(tenths / 10)
        events = run(client, router, tenths / 10, tenths / 10)
        assert not any(isinstance(e, RouterRestarted | LeaseLost) for e in events)


@CLIENTS
def test_a_silent_router(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    client.map("udp", 4000, 0.0)
    events = run(client, None, 0.0, 5.0)
    [silent] = events
    assert isinstance(silent, RouterSilent)
    assert 120 < silent.retry_at < 125
    again = run(client, None, 5.0, 10_000.0)
    waits = [e.retry_at for e in again if isinstance(e, RouterSilent)]
    assert waits[-1] - waits[-2] < RETRY_CEILING + 5
    assert not client.answered
    # it wakes up
    events = run(client, Router(), 10_000.0, 12_000.0)
    assert any(isinstance(e, LeaseGranted) for e in events)


@CLIENTS
def test_deletion_is_given_up(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    client.map("udp", 4000, 0.0)
    client.map("tcp", 4000, 0.0)
    run(client, Router(), 0.0, 0.0)
    client.unmap_all(1.0)
    client.unmap_all(1.0)
    events = run(client, None, 1.0, 10.0)
    assert set(events) == {LeaseRemoved("udp", 4000, confirmed=False), LeaseRemoved("tcp", 4000, confirmed=False)}
    assert not client.busy


@CLIENTS
def test_a_mapping_that_is_waiting_is_dropped_at_once(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    client.map("udp", 4000, 0.0)
    run(client, None, 0.0, 5.0)
    client.unmap("udp", 4000, 6.0)
    assert events_of(client) == [LeaseRemoved("udp", 4000, confirmed=False)]
    assert not client.busy


@CLIENTS
def test_a_port_may_be_mapped_again_while_it_is_being_deleted(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router()
    client.map("udp", 4000, 0.0)
    run(client, router, 0.0, 0.0)
    client.unmap("udp", 4000, 1.0)
    client.map("udp", 4000, 1.0)
    events = run(client, router, 1.0, 1.0)
    assert any(isinstance(e, LeaseGranted) for e in events)
    assert len(client.leases) == 1


@CLIENTS
@pytest.mark.parametrize("result", [2, 3, 4, 200])
def test_refusals_are_told_and_tried_again(make: type[LeaseClient], result: int) -> None:
    client: LeaseClient = make()
    router = Router(result=result)
    client.map("udp", 4000, 0.0)
    events = run(client, router, 0.0, 1.0)
    if make is pcp and result == PcpResult.UNSUPP_OPCODE:
        assert events == [RouterUnsupported("the router makes no mappings by PCP")]
        return
    [refused] = [e for e in events if isinstance(e, LeaseRefused)]
    assert refused.code == result
    assert refused.detail
    assert refused.retry_at == (60 if make is pcp else 300)
    router.result = 0
    assert any(isinstance(e, LeaseGranted) for e in run(client, router, 1.0, 301.0))


@CLIENTS
def test_a_refused_renewal_keeps_the_lease_until_it_expires(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router()
    client.map("udp", 4000, 0.0)
    run(client, router, 0.0, 0.0)
    router.result = 2
    events = run(client, router, 0.0, 3590.0)
    assert events
    assert all(isinstance(e, LeaseRefused) for e in events)
    assert len(client.leases) == 1
    events = run(client, router, 3590.0, 3600.0)
    assert [e.reason for e in events if isinstance(e, LeaseLost)] == ["the lease ran out"]
    assert client.leases == []


@CLIENTS
def test_an_unanswered_renewal_is_repeated_until_the_lease_ends(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    client.map("udp", 4000, 0.0)
    run(client, Router(), 0.0, 0.0)
    assert run(client, None, 0.0, 3590.0) == []
    events = run(client, None, 3590.0, 3700.0)
    assert isinstance(events[0], LeaseLost)
    assert isinstance(events[1], RouterSilent)


@CLIENTS
def test_nonsense_is_ignored_and_counted(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    client.map("udp", 4000, 0.0)
    out = client.datagrams_to_send(0.0)
    client.receive_datagrams([(b"", SOURCE), (b"\x02", SOURCE), (out[-1], ("192.168.1.7", 5351))], 0.0)
    client.receive_datagrams([(out[-1], (GATEWAY, 80))], 0.0)
    assert client.ignored == {"malformed": 2, "not the router": 2}
    for outside, lifetime in (("0.0.0.0", 60), ("224.0.0.1", 60), ("127.0.0.1", 60), (OUTSIDE, 0)):
        router = Router(outside=outside, lifetime=lifetime)
        for data in out:
            reply = router.answer(data, 0.0)
            assert reply is not None
            if make is pcp or lifetime == 0:
                client.receive_datagrams([(reply, SOURCE)], 0.0)
    assert client.ignored["nonsense"] == (4 if make is pcp else 1)
    assert client.leases == []


@CLIENTS
def test_a_late_grant_does_not_end_a_deletion(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    router = Router()
    client.map("udp", 4000, 0.0)
    replies = [(router.answer(data, 0.0) or b"", SOURCE) for data in client.datagrams_to_send(0.0)]
    client.unmap("udp", 4000, 0.1)
    client.receive_datagrams(replies, 0.2)
    assert client.ignored["late"] == 1
    assert client.busy
    assert LeaseRemoved("udp", 4000, confirmed=True) in run(client, router, 0.2, 0.2)


@CLIENTS
def test_what_cannot_be_mapped(make: type[LeaseClient]) -> None:
    client: LeaseClient = make()
    client.map("udp", 4000, 0.0)
    for port in (4000, 0, 65536):
        with pytest.raises(LocalProtocolError):
            client.map("udp", port, 0.0)
    for port in range(1, MAX_MAPPINGS):
        client.map("tcp", port, 0.0)
    with pytest.raises(LocalProtocolError):
        client.map("tcp", 5000, 0.0)


def test_pcp_keeps_its_nonce_for_renewal_and_deletion() -> None:
    client, router = pcp(), Router()
    client.map("udp", 4000, 0.0, external_port=5000, external_host=OUTSIDE)
    run(client, router, 0.0, 2300.0)
    client.unmap("udp", 4000, 2300.0)
    run(client, router, 2300.0, 2300.0)
    requests = [r for r in router.requests if isinstance(r, PcpRequest)]
    assert len(requests) == 3
    bodies = [r.mapping for r in requests if r.mapping]
    assert len({body.nonce for body in bodies}) == 1
    assert [(r.lifetime, b.external_port, b.external_host) for r, b in zip(requests, bodies, strict=True)] == [
        (7200, 5000, OUTSIDE),
        (7200, 5000, OUTSIDE),
        (0, 0, "0.0.0.0"),
    ]


def test_pcp_answers_to_others_are_not_ours() -> None:
    client = pcp()
    client.map("udp", 4000, 0.0)
    [data] = client.datagrams_to_send(0.0)
    body = parse_pcp_request(data).mapping
    assert body is not None
    for stranger in (
        PcpMapping(bytes(12), 17, 4000, 4000, OUTSIDE),
        PcpMapping(body.nonce, 6, 4000, 4000, OUTSIDE),
        PcpMapping(body.nonce, 17, 4001, 4000, OUTSIDE),
    ):
        client.receive_datagrams([(serialize_pcp(PcpResponse(1, 0, 60, 5, stranger)), SOURCE)], 0.0)
    client.receive_datagrams([(serialize_pcp(PcpResponse(1, 3, 60, 5)), SOURCE)], 0.0)
    assert client.ignored == {"not awaited": 3, "malformed": 1}
    assert client.leases == []


def test_pcp_pinhole_for_ipv6() -> None:
    client = PcpClient("fe80::1%eth0", "2001:db8::5", Random(1).randbytes)
    router = Router(outside="2001:db8::5")
    client.map("tcp", 4000, 0.0)
    [data] = client.datagrams_to_send(0.0)
    request = parse_pcp_request(data)
    assert request.client_host == "2001:db8::5"
    assert request.mapping is not None
    assert request.mapping.external_host == "::"
    reply = router.answer(data, 0.0)
    assert reply is not None
    client.receive_datagrams([(reply, ("fe80::1", 5351))], 0.0)
    assert client.leases[0].external_host == "2001:db8::5"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        ("0081000100000000", "NAT-PMP only"),
        ("01810001" + "00" * 20, "PCP version 1 only"),
        ("02810001" + "00" * 20, "the router does not take PCP version 2"),
    ],
)
def test_a_router_that_does_not_speak_pcp(data: str, detail: str) -> None:
    client = pcp()
    client.map("udp", 4000, 0.0)
    client.receive_datagrams([(bytes.fromhex(data), SOURCE)] * 2, 0.1)
    assert events_of(client) == [RouterUnsupported(detail)]
    assert client.unsupported == detail
    assert client.next_timeout() == 0.1 + RETRY_CEILING


def test_a_refused_announcement_is_no_restart() -> None:
    client = pcp()
    client.probe(0.0)
    client.receive_datagrams([(serialize_pcp(PcpResponse(0, 2, 0, 5)), SOURCE)], 0.0)
    assert client.next_timeout() is None
    assert not client.answered


def test_a_probe_is_repeated_and_given_up() -> None:
    client = pcp()
    client.probe(0.0)
    count = 0
    while True:
        count += len(client.datagrams_to_send(0.0))
        if (due := client.next_timeout()) is None:
            break
        client.handle_timeout(due)
    assert count == 3


def test_forged_clocks_are_limited_in_what_they_cause() -> None:
    client, router = pcp(), Router()
    client.map("udp", 4000, 0.0)
    run(client, router, 0.0, 0.0)
    for step in range(100):
        now = 1.0 + step / 100
        client.receive_datagrams([(serialize_pcp(PcpResponse(0, 0, 0, step % 2 * 5000)), SOURCE)], now)
        serve(client, router, now)
    assert len(router.requests) <= 3


def test_natpmp_tells_the_outside_address_later() -> None:
    client, router = natpmp(), Router()
    client.map("udp", 4000, 0.0)
    address, mapping = client.datagrams_to_send(0.0)
    client.receive_datagrams([(router.answer(mapping, 0.0) or b"", SOURCE)], 0.0)
    [event] = events_of(client)
    assert isinstance(event, LeaseGranted)
    assert event.lease.external_host is None
    client.receive_datagrams([(router.answer(address, 0.0) or b"", SOURCE)], 0.1)
    [event] = events_of(client)
    assert isinstance(event, LeaseGranted)
    assert event.changed
    assert event.lease.external_host == OUTSIDE
    # and announces another one
    client.receive_datagrams([(serialize_natpmp(NatPmpAddressResponse(1100, "203.0.113.77")), SOURCE)], 100.0)
    assert client.leases[0].external_host == "203.0.113.77"
    assert client.outside_host == "203.0.113.77"


def test_natpmp_refusals() -> None:
    client = natpmp()
    client.map("udp", 4000, 0.0)
    client.receive_datagrams([(bytes.fromhex("0080000300000005"), SOURCE)], 0.0)  # no outside address
    assert client.answered
    client.receive_datagrams([(bytes.fromhex("0082000200000005"), SOURCE)], 0.0)  # TCP: not asked for
    assert client.ignored == {"not awaited": 1}
    client.receive_datagrams([(serialize_natpmp(NatPmpMapResponse(NatPmpOpcode.MAP_TCP, 5, 1, 1, 5)), SOURCE)], 0.0)
    assert client.ignored == {"not awaited": 2}
    client.receive_datagrams([(bytes.fromhex("0080000000000005e0000001"), SOURCE)], 0.0)
    assert client.ignored["nonsense"] == 1
    client.receive_datagrams([(bytes.fromhex("00810001"), SOURCE)], 0.0)
    assert events_of(client) == [RouterUnsupported("the router does not take NAT-PMP")]


def test_natpmp_requests() -> None:
    client, router = natpmp(), Router()
    client.map("tcp", 4000, 0.0, external_port=5000)
    run(client, router, 0.0, 0.0)
    client.unmap("tcp", 4000, 1.0)
    run(client, router, 1.0, 1.0)
    assert router.requests == [
        NatPmpAddressRequest(),
        NatPmpMapRequest(NatPmpOpcode.MAP_TCP, 4000, 5000, 7200),
        NatPmpMapRequest(NatPmpOpcode.MAP_TCP, 4000, 0, 0),
    ]


def test_the_table_leads_from_every_state_to_the_end() -> None:
    reach = {MappingState.GONE}
    for _ in MappingState:
        reach |= {state for (state, _), after in TRANSITIONS.items() if after in reach}
    assert reach == set(MappingState)
    assert {state for state, happened in TRANSITIONS if happened is MappingInput.UNMAP} == set(MappingState) - {
        MappingState.GONE
    }
