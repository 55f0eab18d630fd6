"""STUN transactions on a fake clock."""

from __future__ import annotations

from random import Random

import pytest

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.nat.stun import (
    MAX_TRANSACTIONS,
    StunClient,
    StunFailed,
    StunFailure,
    StunServer,
    StunServerStream,
    StunStreamClient,
    StunSucceeded,
)
from crust.wire.stun import ChangeRequest, MessageClass, StunError, StunMessage, parse_stun, serialize_stun

SERVER = ("192.0.2.1", 3478)
CLIENT = ("198.51.100.7", 40000)
OTHER = ("192.0.2.2", 3479)
ENDPOINTS = {(0, 0): SERVER, (0, 1): ("192.0.2.1", 3479), (1, 0): ("192.0.2.2", 3478), (1, 1): OTHER}


def new_client(**options: float) -> StunClient:
    return StunClient(Random(1).randbytes, **options)  # type: ignore[arg-type]


def answer(request: bytes, **fields: object) -> bytes:
    defaults: dict[str, object] = {"xor_mapped_address": CLIENT}
    message_class = MessageClass.ERROR if "error" in fields else MessageClass.SUCCESS
    return serialize_stun(StunMessage(message_class, request[8:20], **{**defaults, **fields}))  # type: ignore[arg-type]


def test_a_request_and_its_answer() -> None:
    client = new_client()
    transaction_id = client.request(SERVER, 10.0)
    [(request, to)] = client.datagrams_to_send(10.0)
    assert to == SERVER
    assert client.datagrams_to_send(10.0) == []
    reply = StunServer().respond(request, CLIENT)
    assert reply is not None
    assert client.owns(reply.data)
    client.receive_datagrams([(reply.data, SERVER)], 10.04)
    event = client.next_event()
    assert isinstance(event, StunSucceeded)
    assert (event.transaction_id, event.observed, event.source, event.sent_at) == (transaction_id, CLIENT, SERVER, 10.0)
    assert event.rtt == pytest.approx(0.04)
    assert client.next_event() is None
    assert client.next_timeout() is None
    assert not client.owns(reply.data)
    client.receive_datagrams([(reply.data, SERVER)], 10.05)
    assert client.next_event() is None
    assert client.ignored == {"not awaited": 1}


def test_retransmissions_as_in_rfc_8489() -> None:
    """§6.2.1: with an RTO of 500 ms requests leave at 0, 500, 1500, 3500, 7500, 15500, 31500 ms, failure at 39500."""
    client = new_client()
    client.request(SERVER, 0.0)
    sent = [0.0] * len(client.datagrams_to_send(0.0))
    while (now := client.next_timeout()) is not None:
        client.handle_timeout(now)
        sent += [now] * len(client.datagrams_to_send(now))
        last = now
    assert sent == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert last == 39.5
    event = client.next_event()
    assert isinstance(event, StunFailed)
    assert (event.reason, event.transmissions) == (StunFailure.TIMEOUT, 7)


def test_a_probe_is_sent_once() -> None:
    client = new_client(initial_rto=0.2, transmissions=1, last_wait=2)
    client.request(SERVER, 0.0)
    assert client.next_timeout() == 0.4
    client.handle_timeout(0.39)
    assert client.next_event() is None
    client.handle_timeout(0.4)
    assert isinstance(client.next_event(), StunFailed)
    assert len(client.datagrams_to_send(0.4)) == 1


def test_an_answer_to_a_retransmission_has_no_round_trip_time() -> None:
    client = new_client()
    client.request(SERVER, 0.0)
    client.handle_timeout(0.5)
    request = client.datagrams_to_send(0.5)[1][0]
    client.receive_datagrams([(answer(request), SERVER)], 0.6)
    event = client.next_event()
    assert isinstance(event, StunSucceeded)
    assert event.rtt is None


def test_a_slow_server_is_given_more_time_for_ten_minutes() -> None:
    client = new_client()
    for now, expected in ((0.0, 0.5), (100.0, 1.2), (800.0, 0.5)):
        client.request(SERVER, now)
        timeout = client.next_timeout()
        assert timeout is not None
        assert timeout - now == pytest.approx(expected)
        [(request, _)] = client.datagrams_to_send(now)
        client.receive_datagrams([(answer(request), SERVER)], now + 0.4)
    client.request(SERVER, 801.0)
    assert client.next_timeout() == pytest.approx(801.0 + 0.4 + 4 * 0.2)


def test_the_round_trip_times_of_many_servers_are_bounded() -> None:
    client = new_client()
    for number in range(300):
        server = (f"10.0.{number >> 8}.{number & 255}", 1)
        client.request(server, 0.0)
        [(request, _)] = client.datagrams_to_send(0.0)
        client.receive_datagrams([(answer(request), server)], 0.4)
    client.request(("10.0.0.0", 1), 1.0)  # forgotten
    assert client.next_timeout() == 1.5


@pytest.mark.parametrize(
    ("fields", "reason", "code"),
    [
        ({"error": StunError(420, "Unknown")}, StunFailure.REFUSED, 420),
        ({"xor_mapped_address": None}, StunFailure.NONSENSE, 0),
        ({"xor_mapped_address": ("0.0.0.0", 5)}, StunFailure.NONSENSE, 0),
        ({"xor_mapped_address": ("224.0.0.1", 5)}, StunFailure.NONSENSE, 0),
        ({"xor_mapped_address": ("255.255.255.255", 5)}, StunFailure.NONSENSE, 0),
        ({"xor_mapped_address": ("1.2.3.4", 0)}, StunFailure.NONSENSE, 0),
    ],
)
def test_answers_that_tell_nothing(fields: dict[str, object], reason: StunFailure, code: int) -> None:
    client = new_client()
    client.request(SERVER, 0.0)
    [(request, _)] = client.datagrams_to_send(0.0)
    client.receive_datagrams([(answer(request, **fields), SERVER)], 0.1)
    event = client.next_event()
    assert isinstance(event, StunFailed)
    assert (event.reason, event.code) == (reason, code)


def test_an_attribute_that_must_be_understood_fails_the_transaction() -> None:
    client = new_client()
    client.request(SERVER, 0.0)
    [(request, _)] = client.datagrams_to_send(0.0)
    data = answer(request) + bytes.fromhex("00700000")
    client.receive_datagrams([(data[:2] + (len(data) - 20).to_bytes(2, "big") + data[4:], SERVER)], 0.1)
    event = client.next_event()
    assert isinstance(event, StunFailed)
    assert event.reason is StunFailure.NONSENSE


def test_strangers_cannot_answer() -> None:
    client = new_client()
    client.request(SERVER, 0.0)
    [(request, _)] = client.datagrams_to_send(0.0)
    client.receive_datagrams([(answer(request), OTHER), (b"junk", SERVER), (request, SERVER)], 0.1)
    assert client.next_event() is None
    assert client.ignored == {"from elsewhere": 1, "malformed": 1, "not awaited": 1}
    assert not client.owns(b"junk")
    assert not client.owns(answer(bytes(20)))


def test_icmp_and_cancel() -> None:
    client = new_client()
    client.request(SERVER, 0.0)
    client.request(OTHER, 0.0)
    client.cancel(client.request(CLIENT, 0.0))
    client.receive_error(SERVER, "connection refused")
    event = client.next_event()
    assert isinstance(event, StunFailed)
    assert (event.server, event.reason) == (SERVER, StunFailure.UNREACHABLE)
    assert client.next_event() is None


def test_pending_requests_are_capped() -> None:
    client = new_client()
    for _ in range(MAX_TRANSACTIONS):
        client.request(SERVER, 0.0)
    with pytest.raises(LocalProtocolError):
        client.request(SERVER, 0.0)


def test_the_shortest_reply() -> None:
    server = StunServer()
    request = serialize_stun(StunMessage(MessageClass.REQUEST, bytes(12), software="x" * 100))
    reply = server.respond(request, CLIENT)
    assert reply is not None
    assert len(reply.data) == 32
    assert parse_stun(reply.data).xor_mapped_address == CLIENT
    sealed = serialize_stun(StunMessage(MessageClass.REQUEST, bytes(12), fingerprint=True))
    reply = server.respond(sealed, CLIENT)
    assert reply is not None
    assert parse_stun(reply.data).fingerprint


def test_what_the_server_does_not_answer() -> None:
    server = StunServer()
    request = serialize_stun(StunMessage(MessageClass.REQUEST, bytes(12)))
    for data, source in (
        (b"junk", CLIENT),
        (answer(request), CLIENT),
        (serialize_stun(StunMessage(MessageClass.INDICATION, bytes(12))), CLIENT),
        (request, ("198.51.100.7", 0)),
        (request, ("224.0.0.1", 5)),
    ):
        assert server.respond(data, source) is None
    assert server.ignored == {"malformed": 1, "not a request": 2, "source": 2}


def test_unknown_attributes_are_refused_shortly() -> None:
    body = b"".join((0x100 + i).to_bytes(2, "big") + b"\0\0" for i in range(40))
    request = b"\0\1" + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + bytes(12) + body
    reply = StunServer().respond(request, CLIENT)
    assert reply is not None
    message = parse_stun(reply.data)
    assert message.error == StunError(420)
    assert message.unknown_attributes == tuple(range(0x100, 0x110))
    assert len(reply.data) < len(request)


def test_change_request_needs_two_addresses() -> None:
    request = serialize_stun(StunMessage(MessageClass.REQUEST, bytes(12), change_request=ChangeRequest(True, True)))
    reply = StunServer().respond(request, CLIENT)
    assert reply is not None
    assert parse_stun(reply.data).unknown_attributes == (3,)
    reply = StunServer(ENDPOINTS).respond(request, CLIENT, stream=True)
    assert reply is not None
    assert parse_stun(reply.data).error == StunError(420)
    with pytest.raises(LocalProtocolError):
        StunServer({(0, 0): SERVER})


def test_response_port_goes_to_the_same_host() -> None:
    request = serialize_stun(StunMessage(MessageClass.REQUEST, bytes(12), response_port=999))
    reply = StunServer(ENDPOINTS).respond(request, CLIENT)
    assert reply is not None
    assert reply.destination == (CLIENT[0], 999)
    reply = StunServer().respond(request, CLIENT)
    assert reply is not None
    assert reply.destination == CLIENT
    assert parse_stun(reply.data).unknown_attributes == (0x27,)


@pytest.mark.parametrize("ip", [False, True])
@pytest.mark.parametrize("port", [False, True])
def test_rfc_5780(ip: bool, port: bool) -> None:
    client, server = new_client(), StunServer(ENDPOINTS)
    client.request(SERVER, 0.0, change=ChangeRequest(ip, port))
    [(request, _)] = client.datagrams_to_send(0.0)
    reply = server.respond(request, CLIENT)
    assert reply is not None
    assert reply.endpoint == (ip, port)
    client.receive_datagrams([(reply.data, ENDPOINTS[reply.endpoint])], 0.1)
    event = client.next_event()
    assert isinstance(event, StunSucceeded)
    assert event.source == event.message.response_origin == ENDPOINTS[ip, port]
    assert event.message.other_address == OTHER
    plain = server.respond(serialize_stun(StunMessage(MessageClass.REQUEST, bytes(12))), CLIENT)
    assert plain is not None
    assert parse_stun(plain.data).response_origin == SERVER


def test_a_stream_in_pieces() -> None:
    client = StunStreamClient(SERVER, Random(2).randbytes)
    stream = StunServerStream(StunServer(), CLIENT)
    ids = [client.request(0.0), client.request(0.0)]
    data = client.data_to_send()
    assert client.data_to_send() == b""
    replies = b"".join(stream.receive_data(data[i : i + 7]) for i in range(0, len(data), 7))
    for i in range(0, len(replies), 5):
        client.receive_data(replies[i : i + 5], 0.1)
    events = [client.next_event(), client.next_event()]
    assert [e.transaction_id for e in events if isinstance(e, StunSucceeded)] == ids
    assert client.next_timeout() is None


def test_a_stream_that_is_not_stun() -> None:
    client = StunStreamClient(SERVER, Random(2).randbytes)
    client.request(0.0)
    client.receive_data(b"HTTP/1.1 400 Bad Request\r\n", 0.1)
    event = client.next_event()
    assert isinstance(event, StunFailed)
    assert event.reason is StunFailure.NONSENSE
    with pytest.raises(RemoteProtocolError):
        StunServerStream(StunServer(), CLIENT).receive_data(b"GET / HTTP/1.1\r\n\r\n")
    assert StunServerStream(StunServer(), CLIENT).receive_data(answer(bytes(20))) == b""


def test_a_stream_that_ends_or_stays_silent() -> None:
    client = StunStreamClient(SERVER, Random(2).randbytes, timeout=5)
    client.request(0.0)
    assert client.next_timeout() == 5
    client.handle_timeout(4.9)
    client.handle_timeout(5)
    client.request(6.0)
    client.receive_eof()
    events = [client.next_event(), client.next_event()]
    assert [e.reason for e in events if isinstance(e, StunFailed)] == [StunFailure.TIMEOUT, StunFailure.UNREACHABLE]
