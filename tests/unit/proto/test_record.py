"""Records: masked lengths, groups, renewal of keys, and whatever may be done to the bytes on their way."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from crust.crypto.aead import Suite
from crust.errors import RemoteProtocolError
from crust.proto import record
from crust.proto.noise import transport
from crust.proto.noise.transport import first_keys
from crust.proto.record import RecordCodec

FIELD, TAG = 2, 16


class Ends:
    """Two codecs and the bytes between them."""

    def __init__(self, suite: Suite = Suite.AESGCM, seed: int = 0) -> None:
        self.random = random.Random(seed)
        keys = [self.random.randbytes(32) for _ in range(3)]
        self.now = 0.0
        self.initiator, self.responder = (
            RecordCodec(
                first_keys(suite, *keys, initiator=initiator),
                initiator=initiator,
                random=self.random.randbytes,
                now=0.0,
            )
            for initiator in (True, False)
        )
        self.kept = {True: b"", False: b""}  # by receiver: whether it is the initiator

    def codec(self, initiator: bool) -> RecordCodec:
        return self.initiator if initiator else self.responder

    def seal(self, *groups: tuple[bytes, Sequence[bytes]], initiator: bool = True) -> bytes:
        views = [(control, [memoryview(p) for p in payloads]) for control, payloads in groups]
        return bytes(self.codec(initiator).seal(views, self.now))

    def open(self, data: bytes, *, initiator: bool = False, step: int = 0) -> list[tuple[bytes, list[bytes]]]:
        """What the receiver makes of some bytes, which come in pieces of `step`."""
        groups = []
        for at in range(0, len(data), step or len(data) or 1):
            kept = self.kept[initiator] + data[at : at + (step or len(data))]
            found, used = self.codec(initiator).receive_data(memoryview(kept), self.now)
            groups += found
            self.kept[initiator] = kept[used:]
        return groups

    def pass_on(self) -> None:
        """Let both say what they have to say of their own, until they are quiet."""
        while self.initiator.has_outgoing or self.responder.has_outgoing:
            for initiator in (True, False):
                if self.codec(initiator).has_outgoing:
                    self.open(self.seal(initiator=initiator), initiator=not initiator)


def group(control: bytes = b"frames", *payloads: bytes) -> tuple[bytes, list[bytes]]:
    return bytes((len(payloads),)) + control, list(payloads)


suites = pytest.mark.parametrize("suite", list(Suite))
sides = pytest.mark.parametrize("initiator", [True, False])


class TestGroups:
    @suites
    @sides
    @pytest.mark.parametrize("step", [0, 1, 7, 1000])
    def test_round_trip(self, suite: Suite, initiator: bool, step: int) -> None:
        ends = Ends(suite)
        sent = [group(b"a"), group(b"b" * 1000, b"payload"), group(b"c", *(bytes([n]) * 50 for n in range(15)))]
        assert ends.open(ends.seal(*sent, initiator=initiator), initiator=not initiator, step=step) == sent

    @pytest.mark.parametrize("size", [1, 2, 255, 65_535, 65_536])
    def test_sizes(self, size: int) -> None:
        ends = Ends()
        sent = [group(bytes(size - 1), bytes(size))]
        assert ends.open(ends.seal(*sent)) == sent

    def test_a_group_is_given_when_its_last_payload_has_come(self) -> None:
        ends = Ends()
        sent = group(b"x", b"1", b"2")
        data = ends.seal(sent)
        assert ends.open(data[:-1]) == []
        assert ends.open(data[-1:]) == [sent]

    def test_the_buffer_given_is_large_enough_and_not_overrun(self) -> None:
        ends = Ends()
        control, payloads = group(b"x" * 100, b"y" * 70)
        views = [(control, [memoryview(p) for p in payloads])]
        size = ends.initiator.sealed_bytes(views)
        out = bytearray(b"\xaa" * (size + 10))
        used = ends.initiator.seal_into(views, memoryview(out)[:size], 0.0)
        assert used <= size
        assert out[size:] == b"\xaa" * 10
        assert ends.open(bytes(out[:used])) == [(control, payloads)]

    def test_too_many_payloads_announced(self) -> None:
        ends = Ends()
        with pytest.raises(RemoteProtocolError, match="too many"):
            ends.open(ends.seal((b"\x10rest", [])))

    def test_releasing_what_is_idle_changes_nothing(self) -> None:
        ends = Ends()
        for n in range(5):
            ends.initiator.release()
            ends.responder.release()
            assert ends.open(ends.seal(group(b"%d" % n))) == [group(b"%d" % n)]


class TestSecrecy:
    def test_lengths_are_masked(self) -> None:
        ends = Ends()
        fields = {ends.seal(group(b"same"))[:FIELD] for _ in range(200)}
        assert len(fields) > 150

    def test_nothing_repeats(self) -> None:
        ends = Ends()
        assert len({ends.seal(group(b"same" * 10)) for _ in range(200)}) == 200

    @suites
    def test_no_nonce_is_used_twice_under_one_key(self, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
        used: set[tuple[bytes, bytes]] = set()
        next_nonce = transport.CipherKeys.next_nonce
        sealing: list[RecordCodec] = []

        def watch(keys: transport.CipherKeys) -> bytes:
            nonce = next_nonce(keys)
            if sealing:
                assert (keys._key, nonce) not in used
                used.add((keys._key, nonce))
            return nonce

        monkeypatch.setattr(transport.CipherKeys, "next_nonce", watch)
        monkeypatch.setattr(record, "RENEW_RECORDS", 20)
        ends = Ends(suite)
        for n in range(300):
            initiator = n % 3 != 0
            sealing.append(ends.initiator)
            data = ends.seal(group(b"%d" % n, b"payload"), initiator=initiator)
            sealing.clear()
            ends.open(data, initiator=not initiator)
        assert ends.initiator.renewals > 3
        assert len({key for key, _ in used}) > 6

    def test_the_directions_have_keys_of_their_own(self) -> None:
        ends = Ends()
        data = ends.seal(group(b"x"), initiator=True)
        with pytest.raises(RemoteProtocolError):
            ends.open(data + bytes(70_000), initiator=True)


class TestTampering:
    def test_any_byte(self) -> None:
        plain = [group(b"frames", b"payload"), group(b"more")]
        size = len(Ends().seal(*plain))
        for at in range(size):
            ends = Ends()
            data = bytearray(ends.seal(*plain))
            data[at] ^= 1 << at % 8
            try:
                got = ends.open(bytes(data) + bytes(140_000))
            except RemoteProtocolError:
                continue
            raise AssertionError(f"byte {at}: {got}")

    def test_a_record_left_out(self) -> None:
        ends = Ends()
        ends.seal(group(b"lost"))
        with pytest.raises(RemoteProtocolError, match="authentic"):
            ends.open(ends.seal(group(b"next")) + bytes(70_000))

    def test_a_record_twice(self) -> None:
        ends = Ends()
        data = ends.seal(group(b"once"))
        assert ends.open(data)
        with pytest.raises(RemoteProtocolError):
            ends.open(data + bytes(70_000))

    def test_two_records_exchanged(self) -> None:
        ends = Ends()
        one, two = ends.seal(group(b"one")), ends.seal(group(b"two"))
        with pytest.raises(RemoteProtocolError):
            ends.open(two + one + bytes(70_000))

    def test_cut_short_is_not_an_error_yet(self) -> None:
        ends = Ends()
        data = ends.seal(group(b"frames"))
        for size in range(len(data)):
            assert Ends().open(data[:size]) == []


def renew(ends: Ends, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Make a renewal due."""
    if how == "time":
        ends.now += record.RENEW_SECONDS
    else:
        monkeypatch.setattr(record, "RENEW_RECORDS", 1)


class TestRenewal:
    @suites
    @pytest.mark.parametrize("how", ["time", "count"])
    def test_by_time_and_by_count(self, suite: Suite, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
        ends = Ends(suite)
        assert ends.open(ends.seal(group(b"before"))) == [group(b"before")]
        renew(ends, monkeypatch, how)
        assert ends.open(ends.seal(group(b"with the offer"))) == [group(b"with the offer")]
        assert ends.responder.has_outgoing
        monkeypatch.undo()
        ends.pass_on()
        assert ends.initiator.renewals == ends.responder.renewals == 1
        for initiator in (True, False):
            sent = [group(b"after", b"payload")]
            assert ends.open(ends.seal(*sent, initiator=initiator), initiator=not initiator) == sent

    def test_the_responder_asks_for_none(self) -> None:
        ends = Ends()
        ends.now += 10 * record.RENEW_SECONDS
        ends.open(ends.seal(group(b"x"), initiator=False), initiator=True)
        assert not ends.initiator.has_outgoing
        assert ends.responder.renewals == 0

    def test_what_is_received_counts_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The initiator says little; the responder's key wears out."""
        monkeypatch.setattr(record, "RENEW_RECORDS", 50)
        ends = Ends()
        for _ in range(60):
            ends.open(ends.seal(group(b"data"), initiator=False), initiator=True)
        ends.open(ends.seal(group(b"ack")))
        ends.pass_on()
        assert ends.initiator.renewals == 1

    def test_traffic_in_flight_both_ways(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each side writes on while the other's part of the renewal is under way."""
        monkeypatch.setattr(record, "RENEW_RECORDS", 30)
        source = random.Random(5)
        ends = Ends()
        wires = {True: b"", False: b""}  # by sender
        sent: dict[bool, list[object]] = {True: [], False: []}
        got: dict[bool, list[object]] = {True: [], False: []}
        for n in range(3000):
            side = source.random() < 0.5
            if source.random() < 0.6:
                plain = group(b"%d" % n, *([b"payload"] * source.randrange(3)))
                sent[side].append(plain)
                wires[side] += ends.seal(plain, initiator=side)
            else:
                size = source.randrange(len(wires[side]) + 1)
                data, wires[side] = wires[side][:size], wires[side][size:]
                got[side] += ends.open(data, initiator=not side)
                if ends.codec(not side).has_outgoing:
                    wires[not side] += ends.seal(initiator=not side)
        for _ in range(4):
            for side in (True, False):
                data, wires[side] = wires[side], b""
                got[side] += ends.open(data, initiator=not side)
                wires[not side] += ends.seal(initiator=not side) if ends.codec(not side).has_outgoing else b""
        assert got == sent
        assert ends.initiator.renewals > 10
        assert abs(ends.initiator.renewals - ends.responder.renewals) <= 1

    def test_at_most_2_to_the_22_records_under_one_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that takes no part in the renewal is cut off, whichever side it is."""
        monkeypatch.setattr(transport, "MAX_RECORDS", 40)
        ends = Ends()
        for _ in range(40):
            ends.seal(group(b"x"))
        with pytest.raises(RemoteProtocolError, match="renew"):
            ends.seal(group(b"x"))
        other = Ends()
        data = other.seal(*(group(b"x") for _ in range(40)))
        other.open(data)
        monkeypatch.setattr(transport, "MAX_RECORDS", 1000)
        late = other.seal(group(b"late"))
        monkeypatch.setattr(transport, "MAX_RECORDS", 40)
        with pytest.raises(RemoteProtocolError, match="renew"):
            other.open(late)

    def test_the_limit_leaves_room_for_the_renewal(self) -> None:
        assert record.RENEW_RECORDS <= transport.MAX_RECORDS // 2
        assert record.RENEW_SECONDS < 3600

    @pytest.mark.parametrize(
        ("from_initiator", "plain"),
        [
            (True, b"\xff"),
            (True, b"\xff\x00"),
            (True, b"\xff\x04"),
            (True, b"\xff\x02" + bytes(32)),
            (True, b"\xff\x03"),
            (False, b"\xff\x01" + bytes(32)),
            (False, b"\xff\x02" + bytes(32)),
            (False, b"\xff\x03"),
            (True, b"\xff\x01" + bytes(31)),
            (True, b"\xff\x01" + bytes(33)),
            (True, b"\xff\x01" + bytes(32)),  # a key of low order
            (True, b"\xff\x01" + b"\x01" + bytes(31)),
        ],
    )
    def test_out_of_turn_or_malformed(self, from_initiator: bool, plain: bytes) -> None:
        ends = Ends()
        data = ends.seal((plain, []), initiator=from_initiator)
        with pytest.raises(RemoteProtocolError):
            ends.open(data, initiator=not from_initiator)

    def test_two_offers(self) -> None:
        ends = Ends()
        ends.now += record.RENEW_SECONDS
        ends.open(ends.seal())
        again = ends.seal((b"\xff\x01" + bytes(range(32)), []))
        with pytest.raises(RemoteProtocolError, match="out of turn"):
            ends.open(again)

    def test_a_payload_may_begin_like_a_renewal(self) -> None:
        ends = Ends()
        sent = [group(b"x", b"\xff\x01" + bytes(32))]
        assert ends.open(ends.seal(*sent)) == sent


@pytest.mark.parametrize("make", [lambda e: e.seal(group(b"x")), lambda e: e.seal(group(b"x", b"y" * 70))])
def test_overhead_is_eighteen_bytes_a_record(make: Callable[[Ends], bytes]) -> None:
    ends = Ends()
    data = make(ends)
    groups = ends.open(data)
    plain = sum(len(control) + sum(map(len, payloads)) for control, payloads in groups)
    records = sum(1 + len(payloads) for _, payloads in groups)
    assert len(data) == plain + records * (FIELD + TAG)
