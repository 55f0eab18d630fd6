"""Two engines on one path: messages, order, acknowledgement, HELLO, what a peer must not do."""

from __future__ import annotations

import itertools

import pytest

from crust.config import Config
from crust.errors import ConnectionClosed, LocalProtocolError, PeerLost, RemoteProtocolError
from crust.proto.session.datagram import DATAGRAM_LIMIT
from crust.proto.session.engine import ACK_DELAY, NO_NONCE, SessionState
from crust.proto.session.events import DatagramReceived, PathDead, Ponged, ServiceReceived, SessionEnded
from crust.proto.session.paths import CONTROL_WAITING
from crust.testing.pair import Link, Pair, Peer
from crust.types import Priority
from crust.wire import frames

KIB = 1024
MIB = 1024 * KIB


def joined(**settings: object) -> tuple[Pair, Link]:
    """A pair whose two HELLOs are done."""
    pair = Pair(**settings)  # type: ignore[arg-type]
    link = pair.add_path()
    pair.run(2)
    return pair, link


def say(peer: Peer, link: Link, *pieces: bytes, payloads: tuple[bytes, ...] = ()) -> None:
    """Hand a peer what the other would never write."""
    control = bytes((len(payloads),)) + b"".join(pieces)
    peer.session.receive_group(link.id, control, list(payloads), 1002.0)


def hello(nonce: bytes = b"n" * 16, yours: bytes = NO_NONCE, expected: int = 0, **changes: int) -> bytes:
    values = {"window": 1 << 20, "stream_window": 1 << 20, "max_message": 1 << 20, **changes}
    return frames.serialize_hello(frames.Hello(nonce, yours, expected, **values))


SIZES = [0, 1, 255, 4 * KIB, frames.INLINE_LIMIT - 1, frames.INLINE_LIMIT, frames.INLINE_LIMIT + 1,
         frames.RECORD_LIMIT - 1, frames.RECORD_LIMIT, frames.RECORD_LIMIT + 1, 300 * KIB, 3 * MIB + 7]  # fmt: skip


@pytest.mark.parametrize("signing", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_message_of_any_size(size: int, signing: bool) -> None:
    pair = Pair(signing=signing)
    pair.add_path(delay=0.01)
    data = pair.random.randbytes(size)
    pair.a.send(data)
    pair.b.send(data[::-1])
    pair.settle()
    assert pair.b.read_all() == [data]
    assert pair.a.read_all() == [data[::-1]]
    assert not pair.a.session.outbox.has_work()


@pytest.mark.parametrize("signing", [False, True])
def test_all_priorities_at_once(signing: bool) -> None:
    pair = Pair(signing=signing)
    pair.add_path(capacity=100 * KIB)
    sent: dict[Priority, list[bytes]] = {priority: [] for priority in Priority}
    for n, (priority, size) in enumerate(itertools.product(Priority, SIZES)):
        data = b"%d:" % n + bytes([n % 251]) * size
        sent[priority].append(data)
        pair.a.send(data, priority)
    pair.settle(30)
    got: dict[Priority, list[bytes]] = {priority: [] for priority in Priority}
    while found := pair.b.session.next_message():
        got[found[1]].append(found[0])
    assert got == sent


def test_many_small_messages_share_frames() -> None:
    pair, link = joined()
    carried = link.lanes[0].carried
    for n in range(10_000):
        pair.a.send(b"%d" % n)
    pair.settle()
    assert pair.b.read_all() == [b"%d" % n for n in range(10_000)]
    assert link.lanes[0].carried - carried < 10


def test_received_messages_come_most_urgent_first() -> None:
    pair, _ = joined()
    for priority in (Priority.IDLE, Priority.NORMAL, Priority.CRITICAL, Priority.NORMAL):
        pair.a.send(priority.name.encode(), priority)
    pair.settle()
    assert [data for data, _ in pair.b.read_marked()] == [b"CRITICAL", b"NORMAL", b"NORMAL", b"IDLE"]


class TestAcknowledgement:
    def test_small_amounts_after_50_ms(self) -> None:
        pair, _ = joined()
        start = pair.clock.now
        pair.a.send(b"x")
        pair.run(0.04)
        assert pair.a.session.outbox.retained_bytes
        pair.run(1, until=lambda: not pair.a.session.outbox.retained_bytes)
        assert pair.clock.now - start == pytest.approx(ACK_DELAY)

    def test_one_for_256_kib(self) -> None:
        pair, _ = joined()
        acks = 0
        deliver = pair.deliver

        def count(link: Link, sender: int, parcel: object) -> None:
            nonlocal acks
            acks += sender == 1 and any(isinstance(f, frames.Ack) for f in parcel.frames)  # type: ignore[attr-defined]
            deliver(link, sender, parcel)  # type: ignore[arg-type]

        pair.deliver = count  # type: ignore[method-assign]
        for _ in range(64):
            pair.a.send(bytes(64 * KIB))
            pair.run(0.001)
        pair.settle()
        assert 12 <= acks <= 20  # 4 MiB

    def test_rides_with_data(self) -> None:
        pair, _ = joined()
        question = bytes(20_000)
        pair.a.send(question)
        pair.run(0.001)
        assert pair.b.read() == question
        pair.b.send(b"answer")
        pair.run(0.001)
        assert not pair.a.session.outbox.retained_bytes

    def test_of_little_waits_for_its_time(self) -> None:
        pair, _ = joined()
        pair.a.send(b"question")
        pair.run(0.001)
        assert pair.b.read() == b"question"
        pair.b.send(b"answer")
        pair.run(0.001)
        assert pair.a.session.outbox.retained_bytes
        pair.run(0.06)
        assert not pair.a.session.outbox.retained_bytes

    def test_of_what_was_never_sent_ends_the_session(self) -> None:
        pair, link = joined()
        with pytest.raises(RemoteProtocolError, match="never sent"):
            say(pair.a, link, frames.serialize_ack(1))
        assert isinstance(pair.a.ended, PeerLost)

    def test_an_old_one_changes_nothing(self) -> None:
        pair, link = joined()
        pair.a.send(b"x")
        pair.settle()
        say(pair.a, link, frames.serialize_ack(0))
        assert pair.a.session.outbox.acked == 1
        assert pair.a.ended is None

    def test_nothing_new_is_written_beyond_the_retention_bound(self) -> None:
        pair, link = joined(config=Config(retention_bytes=512 * KIB, receive_window_bytes=64 * MIB))
        link.lanes[1].held = True  # no acknowledgement comes
        for _ in range(40):
            pair.a.send(bytes(64 * KIB))
        pair.run(0.2)
        outbox = pair.a.session.outbox
        assert 512 * KIB <= outbox.retained_bytes <= 512 * KIB + 65 * KIB
        link.hold(held=False)
        pair.settle()
        assert len(pair.b.read_all()) == 40


class TestBurst:
    @staticmethod
    def payloads(pause: float, **attach: int) -> list[int]:
        """Payload records of one group after the other, each acknowledged after so many seconds."""
        session, now = Pair().a.session, 1000.0
        session.attach(77, rank=10, now=now, **attach)
        session.receive_group(77, b"\0" + hello(window=1 << 30), [], now)
        session.next_group(77, now)
        for _ in range(60):
            session.send(bytes(frames.RECORD_LIMIT), Priority.NORMAL, None)
        sizes = []
        for _ in range(6):
            group = session.next_group(77, now)
            assert group is not None
            sizes.append(len(group[1]))
            now += pause
            session.receive_group(77, b"\0" + frames.serialize_ack(session.outbox.next_number), [], now)
        return sizes

    def test_grows_with_progress(self) -> None:
        assert self.payloads(0.001) == [1, 2, 4, 4, 4, 4]

    def test_grows_further_while_the_path_is_fast(self) -> None:
        assert self.payloads(0.001, largest_burst=8) == [1, 2, 4, 8, 8, 8]
        assert self.payloads(0.01, largest_burst=8) == [1, 2, 4, 4, 4, 4]


class TestHello:
    def test_is_the_first_frame(self) -> None:
        pair = Pair()
        link = pair.add_path()
        group = pair.a.session.next_group(link.id, 1000.0)
        assert group is not None
        first, *others = frames.parse_frames(*group, start=1)
        assert isinstance(first, frames.Hello)
        assert first.nonce == pair.a.session.nonce
        assert first.your_nonce == NO_NONCE
        assert others == [frames.MaxStreams(1024)]

    def test_has_a_random_length(self) -> None:
        lengths = set()
        for seed in range(20):
            pair = Pair(seed=seed)
            link = pair.add_path()
            group = pair.a.session.next_group(link.id, 1000.0)
            assert group is not None
            lengths.add(len(group[0]))
        assert len(lengths) > 10

    def test_data_of_a_new_session_do_not_wait_for_the_answer(self) -> None:
        pair = Pair()
        link = pair.add_path()
        link.lanes[1].held = True
        pair.a.send(b"early")
        pair.run(0.01)
        assert pair.b.read_all() == [b"early"]

    def test_both_learn_the_other_nonce(self) -> None:
        pair, _ = joined()
        assert pair.a.session.remote_nonce == pair.b.session.nonce
        assert pair.b.session.remote_nonce == pair.a.session.nonce

    def test_limits_the_size_of_messages(self) -> None:
        pair, _ = joined(configs=(Config(), Config(max_message_bytes=1000)))
        assert pair.a.session.max_message_bytes == 1000

    def test_other_frames_before_it_end_the_session(self) -> None:
        pair = Pair()
        link = pair.add_path()
        with pytest.raises(RemoteProtocolError, match="not HELLO"):
            say(pair.a, link, frames.serialize_ping(1))

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (hello(NO_NONCE), "another session"),
            (hello(yours=b"z" * 16), "another session"),
            (hello(expected=1), "never sent"),
        ],
    )
    def test_wrong_ones_end_the_session(self, given: bytes, text: str) -> None:
        pair = Pair()
        link = pair.add_path()
        with pytest.raises(RemoteProtocolError, match=text):
            say(pair.a, link, given)
        assert pair.a.session.state is SessionState.ENDED
        assert isinstance(pair.a.ended, PeerLost)

    def test_a_second_one_ends_the_session(self) -> None:
        pair, link = joined()
        with pytest.raises(RemoteProtocolError, match="second HELLO"):
            say(pair.a, link, hello(pair.b.session.nonce))

    def test_of_another_instance_ends_the_session(self) -> None:
        pair, _ = joined()
        pair.a.session.attach(77, rank=10, now=1002.0)
        with pytest.raises(RemoteProtocolError, match="another instance"):
            pair.a.session.receive_group(77, b"\0" + hello(b"q" * 16), [], 1002.0)

    def test_a_limit_of_nothing_is_taken_for_one_byte(self) -> None:
        pair = Pair()
        link = pair.add_path()
        say(pair.a, link, hello(max_message=0))
        assert pair.a.session.max_message_bytes == 1


class TestGone:
    @pytest.mark.parametrize(
        ("code", "kind", "text"),
        [(0, PeerLost, "restarted"), (1, ConnectionClosed, "closed"), (2, PeerLost, "refused"), (9, PeerLost, "")],
    )
    def test_names_the_nonce_that_hello_named(self, code: int, kind: type[Exception], text: str) -> None:
        """The peer says of our HELLO's `your_nonce` that it knows none such."""
        pair, link = joined()
        pair.kill(link)
        again = pair.add_path()
        group = pair.a.session.next_group(again.id, 1002.0)
        assert group is not None
        named = frames.parse_frames(*group, start=1)[0]
        assert isinstance(named, frames.Hello)
        say(pair.a, again, frames.serialize_gone(named.your_nonce, code))
        assert isinstance(pair.a.ended, kind)
        assert text in str(pair.a.ended)

    def test_of_another_session_changes_nothing(self) -> None:
        pair, link = joined()
        pair.kill(link)
        again = pair.add_path()
        say(pair.a, again, frames.serialize_gone(b"z" * 16, 0))
        assert pair.a.ended is None

    def test_ends_only_its_path_while_another_answers(self) -> None:
        """The second path has reached another program with the same identity."""
        pair, _ = joined()
        pair.a.session.attach(77, rank=10, now=pair.clock.now)
        gone = b"\0" + frames.serialize_gone(pair.a.session.remote_nonce, 0)
        pair.a.session.receive_group(77, gone, [], pair.clock.now)
        assert pair.a.ended is None
        event = pair.a.session.next_event()
        assert isinstance(event, PathDead)
        assert event.path_id == 77


class TestMisbehaviour:
    @pytest.mark.parametrize(
        ("pieces", "text"),
        [
            ([frames.serialize_messages(1 << 40, 4, [b"x"]), frames.serialize_messages(1 << 41, 4, [b"x"])], ""),
            ([frames.serialize_fragment(0, 4, (64 << 20) + 1, 1, False) + b"x"], "is over"),
            ([frames.serialize_fragment(0, 4, 2, 1, False) + b"x", frames.serialize_fragment(1, 4, 3, 1, False) + b"x"],
             "does not fit"),
            ([frames.serialize_fragment(0, 4, 1, 2, False) + b"xx"], "does not fit"),
            ([frames.serialize_abort(0, 4)], "not begun"),
            ([frames.serialize_stream_data(0, 2, 1, False) + b"x"], "never opened"),
            ([frames.serialize_stream_fin(0, 3)], "never opened"),
            ([frames.serialize_stream_credit(5, 1)], "never opened"),
            ([frames.serialize_stream_open(0, 5, 4, b"")], "out of order"),
            ([frames.serialize_stream_open(0, 0, 4, b"")], "out of order"),
            ([frames.serialize_close(0, 0), frames.serialize_abort(1, 4)], "after CLOSE"),
            ([frames.serialize_seed(0, bytes(32))], "not agreed"),
            ([frames.serialize_signature(0, bytes(136))], "not agreed"),
            ([frames.serialize_datagram(bytes(DATAGRAM_LIMIT + 1))], "datagram"),
        ],
    )  # fmt: skip
    def test_ends_the_session(self, pieces: list[bytes], text: str) -> None:
        pair, link = joined()
        if not text:
            for piece in pieces:
                say(pair.a, link, piece)  # early, not wrong
            assert pair.a.ended is None
            return
        with pytest.raises(RemoteProtocolError, match=text):
            say(pair.a, link, *pieces)
        assert isinstance(pair.a.ended, PeerLost)
        assert isinstance(pair.a.ended.__cause__, RemoteProtocolError)
        pair.run(1)
        assert pair.a.count(SessionEnded) == 1

    def test_more_than_the_credit(self) -> None:
        pair, link = joined(config=Config(receive_window_bytes=256 * KIB))
        for number in range(4):
            say(pair.a, link, frames.serialize_messages(number, 4, [bytes(60_000)]))
        with pytest.raises(RemoteProtocolError, match="credit"):
            say(pair.a, link, frames.serialize_messages(4, 4, [bytes(60_000)]))

    def test_early_frames_beyond_the_reorder_buffer(self) -> None:
        pair, link = joined(config=Config(retention_bytes=512 * KIB))
        for number in range(1, 9):
            head = frames.serialize_fragment(number, 4, 64 * MIB, frames.RECORD_LIMIT, True)
            say(pair.a, link, head, payloads=(bytes(frames.RECORD_LIMIT),))
        head = frames.serialize_fragment(20, 4, 64 * MIB, frames.RECORD_LIMIT, True)
        say(pair.a, link, head, payloads=(bytes(frames.RECORD_LIMIT),))
        head = frames.serialize_fragment(21, 4, 64 * MIB, frames.RECORD_LIMIT, True)
        with pytest.raises(RemoteProtocolError, match="reorder buffer"):
            say(pair.a, link, head, payloads=(bytes(frames.RECORD_LIMIT),))

    def test_the_reorder_buffer_takes_all_that_may_be_outstanding(self) -> None:
        """In groups of four payload records, each counted once."""
        pair, link = joined(config=Config(retention_bytes=1 * MIB))
        payload = bytes(frames.RECORD_LIMIT)
        for group in range(4):
            heads = [
                frames.serialize_fragment(1 + 4 * group + n, 4, 64 * MIB, frames.RECORD_LIMIT, True) for n in range(4)
            ]
            say(pair.a, link, *heads, payloads=(payload,) * 4)
        assert pair.a.ended is None

    def test_too_many_early_frames(self) -> None:
        pair, link = joined(config=Config(retention_bytes=1 << 30))
        for number in range(1, 65_537):
            say(pair.a, link, frames.serialize_abort(number, 0))
        with pytest.raises(RemoteProtocolError, match="reorder buffer"):
            say(pair.a, link, frames.serialize_abort(65_537, 0))

    def test_nothing_is_heard_after_the_end(self) -> None:
        pair, link = joined()
        pair.a.session.abort(PeerLost(None, "gone"))
        say(pair.a, link, b"\xff\xff\xff")
        assert str(pair.a.ended) == "gone"

    def test_a_flood_of_pings_holds_no_memory(self) -> None:
        pair, link = joined()
        for token in range(10_000):
            say(pair.a, link, frames.serialize_ping(token))
        group = pair.a.session.next_group(link.id, 1002.0)
        assert group is not None
        assert len(frames.parse_frames(*group, start=1)) <= CONTROL_WAITING + 2


class TestPing:
    def test_round_trip(self) -> None:
        pair = Pair()
        pair.add_path(delay=0.03)
        pair.run(1)
        token = pair.a.session.ping(pair.clock.now)
        pair.run(1)
        assert [e for e in pair.a.events if isinstance(e, Ponged)] == [Ponged(token, pytest.approx(0.06))]

    def test_an_answer_to_nothing_is_ignored(self) -> None:
        pair, link = joined()
        say(pair.a, link, frames.serialize_pong(12345))
        assert pair.a.ended is None
        assert not pair.a.count(Ponged)

    def test_only_so_many_are_remembered(self) -> None:
        pair = Pair()
        for _ in range(100):
            pair.a.session.ping(pair.clock.now)
        pair.add_path()
        pair.run(1)
        assert 0 < pair.a.count(Ponged) <= 64

    def test_an_outage_is_no_round_trip(self) -> None:
        """A PING that is repeated on another path says nothing about that path's round trip."""
        pair = Pair()
        link = pair.add_path(delay=0.01)
        pair.run(1)
        pair.kill(link)
        pair.a.session.ping(pair.clock.now)
        pair.run(60)
        again = pair.add_path(delay=0.01)
        pair.run(2)
        assert pair.a.count(Ponged) >= 1
        assert pair.a.session.path_rtt(again.id) < 0.2


class TestDatagrams:
    def test_arrive(self) -> None:
        pair, _ = joined()
        pair.a.session.send_datagram(b"")
        pair.a.session.send_datagram(bytes(DATAGRAM_LIMIT))
        pair.run(0.1)
        assert pair.b.events == [DatagramReceived(b""), DatagramReceived(bytes(DATAGRAM_LIMIT))]

    def test_too_long(self) -> None:
        pair = Pair()
        with pytest.raises(LocalProtocolError, match="1200"):
            pair.a.session.send_datagram(bytes(DATAGRAM_LIMIT + 1))

    def test_a_burst_goes_out_whole(self) -> None:
        pair, _ = joined()
        for n in range(300):
            pair.a.session.send_datagram(b"%d" % n + bytes(1000))
        pair.pump(pair.a)  # one turn: nothing else may happen that would make the front end write again
        pair._deliver_due()
        pair.pump(pair.b)
        assert pair.b.count(DatagramReceived) == 300

    def test_the_oldest_give_way(self) -> None:
        pair, _ = joined()
        assert all(pair.a.session.send_datagram(bytes(1200)) for _ in range(800))
        kept = [pair.a.session.send_datagram(b"%d" % n + bytes(1190)) for n in range(200)]
        assert not all(kept)
        pair.run(0.1)
        last = pair.b.events[-1]
        assert isinstance(last, DatagramReceived)
        assert last.data.startswith(b"199")

    def test_pass_while_messages_flow(self) -> None:
        pair = Pair()
        pair.add_path(capacity=64 * KIB)
        pair.run(0.1)
        for _ in range(2000):
            pair.a.send(bytes(1000), Priority.BULK)
        pair.a.session.send_datagram(b"voice")
        pair.run(0.1, until=lambda: bool(pair.b.count(DatagramReceived)))
        assert pair.b.count(DatagramReceived)


class TestServices:
    def test_arrive_in_order_with_frames(self) -> None:
        pair, link = joined()
        pair.a.session.send_service(b"offer")
        pair.a.session.send_service(b"about this path", link.id)
        pair.settle()
        assert sorted(e.body for e in pair.b.events if isinstance(e, ServiceReceived)) == [b"about this path", b"offer"]

    def test_large_ones_fit_their_records(self) -> None:
        pair, link = joined()
        bodies = [bytes([n]) * 16_384 for n in range(12)]
        for body in bodies:
            pair.a.session.send_service(body)
        for n in range(CONTROL_WAITING + 5):
            assert pair.a.session.send_service(bytes(1024), link.id) is (n < CONTROL_WAITING)
        pair.settle()
        got = [e.body for e in pair.b.events if isinstance(e, ServiceReceived)]
        assert [body for body in got if len(body) > 1024] == bodies
        assert len(got) == 12 + CONTROL_WAITING

    def test_about_a_path_that_is_not_there(self) -> None:
        pair = Pair()
        assert not pair.a.session.send_service(b"x", 99)


def test_check_open_tells_the_cause() -> None:
    pair, _ = joined()
    pair.a.session.check_open()
    pair.a.close()
    with pytest.raises(ConnectionClosed):
        pair.a.session.check_open()
    lost = PeerLost(None, "gone")
    pair.a.session.abort(lost)
    with pytest.raises(PeerLost) as caught:
        pair.a.session.check_open()
    assert caught.value is lost


def test_an_unknown_path_has_nothing_to_write() -> None:
    pair, _ = joined()
    assert pair.a.session.next_group(99, 1002.0) is None
    pair.a.session.detach(99, 1002.0)
    pair.a.session.probe(99, 1002.0)
    pair.a.session.close_path(99)
    assert not pair.a.session.confirmed(99)


class TestCutOff:
    def test_the_peer_is_told(self) -> None:
        """It may be unable to dial, and would wait for its return until `resume_timeout`."""
        pair, link = joined()
        pair.add_path()
        pair.run(1)
        with pytest.raises(RemoteProtocolError):
            say(pair.b, link, b"\xee")
        pair.run(0.1)
        assert isinstance(pair.b.ended, PeerLost)
        assert isinstance(pair.a.ended, PeerLost)
        assert "cut us off" in str(pair.a.ended)
        assert not pair.a.broken
        for peer in pair.peers:
            assert peer.session.next_timeout() is None

    def test_a_path_without_hello_says_it_first(self) -> None:
        pair = Pair()
        link = pair.add_path()
        pair.a.session.attach(77, rank=10, now=1000.0)
        with pytest.raises(RemoteProtocolError):
            say(pair.a, link, b"\xee")
        first = pair.a.session.next_group(77, 1000.0)
        second = pair.a.session.next_group(77, 1000.0)
        assert first is not None
        assert second is not None
        assert isinstance(frames.parse_frames(*first, start=1)[0], frames.Hello)
        assert frames.parse_frames(*second, start=1) == [frames.Gone(pair.a.session.nonce, 3)]
        assert pair.a.session.next_group(77, 1000.0) is None
