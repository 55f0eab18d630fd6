from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from crust.crypto.hashing import HashId
from crust.errors import BadSignatureError, LocalProtocolError, ReceiptError, RemoteProtocolError
from crust.proto.session.signing import (
    LIMIT_BYTES,
    LIMIT_SECONDS,
    LIMIT_UNITS,
    MAX_SIGNATURE_DELAY,
    SIGNATURE_DELAY,
    TARGET_BYTES,
    TARGET_UNITS,
    Signer,
    SigningPace,
    Verifier,
)
from crust.wire.receipt import Kind
from crust.wire.statement import Statement, conflict
from tests.signing_pair import ALICE, BOB, MALLORY, SEED, SESSION, WALL_TIME, SigningPair, pattern

MIB = 1 << 20


class TestUnits:
    def test_numbers_are_counted_over_all_kinds(self) -> None:
        pair = SigningPair()
        signer = pair.signer
        assert signer.add_batch(Kind.MESSAGE, 4, [b"a", b"b"], 0.0) == 0
        assert signer.add_batch(Kind.STREAM_CHUNK, 1, [b"c"], 0.0) == 2
        signer.begin(6, 5)
        signer.update(6, b"he", 0.0)
        assert signer.add_batch(Kind.MESSAGE, 4, [b"overtakes"], 0.0) == 3
        signer.update(6, b"llo", 0.0)
        assert signer.finish(6, 0.0) == 4
        assert signer.add_tombstone(6, 0.0) == 5
        assert signer.next_number == 6
        assert signer.unsigned_units == 6
        assert signer.unsigned_bytes == 1 + 1 + 1 + 9 + 5
        signer.sign(WALL_TIME)
        assert (signer.next_number, signer.unsigned_units, signer.unsigned_bytes) == (6, 0, 0)

    def test_an_empty_batch_is_nothing(self) -> None:
        pair = SigningPair()
        assert pair.signer.add_batch(Kind.MESSAGE, 4, [], 0.0) == 0
        assert pair.signer.next_timeout() is None

    @pytest.mark.parametrize("hash_id", HashId)
    @pytest.mark.parametrize("length", [0, 1, 2048, 2049, 300_000])
    @pytest.mark.parametrize("size", [1000, 65536])
    def test_how_a_message_was_split_does_not_show(self, hash_id: HashId, length: int, size: int) -> None:
        content = pattern(length)
        signer = Signer(ALICE, BOB.id, hash_id, SEED, SESSION)
        signer.add_batch(Kind.MESSAGE, 4, [content], 0.0)
        pair = SigningPair(hash_id)
        pair.add_in_fragments(content, size)
        assert pair.signer.sign(WALL_TIME) == signer.sign(WALL_TIME)

    @pytest.mark.parametrize("count", [1, 63, 64, 65, 128])
    def test_around_what_is_hashed_together(self, count: int) -> None:
        pair = SigningPair(HashId.BLAKE3)
        for value in range(count):
            pair.add([bytes((value,))])
        assert pair.sign() == range(count)
        assert pair.signer.hash_id is HashId.BLAKE3
        for number in (0, count - 1):
            assert pair.receipt(number).verify(pair.contents[number]) == ALICE.id

    @pytest.mark.parametrize("counts", [[1] * 200, [200], [3] * 66 + [2], [63, 1, 64, 72]])
    def test_how_units_were_batched_does_not_show(self, counts: list[int]) -> None:
        contents = [pattern(length) for length in range(1900, 2100)]
        pair = SigningPair(HashId.BLAKE3)
        at = 0
        for count in counts:
            pair.add(contents[at : at + count])
            at += count
        other = Signer(ALICE, BOB.id, HashId.BLAKE3, SEED, SESSION)
        for content in contents:
            other.add_batch(Kind.MESSAGE, 4, [content], 0.0)
        assert pair.signer.sign(WALL_TIME) == other.sign(WALL_TIME)

    def test_buffers_may_change_when_they_have_been_taken(self) -> None:
        pair = SigningPair()
        for count in (1, 2, 100):
            for length in (10, 5000):
                buffers = [bytearray(pattern(length)) for _ in range(count)]
                pair.signer.add_batch(Kind.MESSAGE, 4, buffers, 0.0)
                pair.verifier.add_batch(Kind.MESSAGE, 4, [memoryview(bytes(buffer)) for buffer in buffers], 0.0)
                for buffer in buffers:
                    buffer[:] = bytes(len(buffer))
        assert len(pair.sign()) == 206

    def test_several_large_messages_at_once(self) -> None:
        pair = SigningPair()
        contents = {priority: pattern(10_000 + priority) for priority in range(8)}
        segment = pair.verifier.segment
        numbers = {}
        for ledger in (pair.signer, pair.verifier):
            for priority, content in contents.items():
                ledger.begin(priority, len(content))
            for at in range(0, 10_000, 4000):
                for priority, content in contents.items():
                    ledger.update(priority, content[at : at + 4000 if at < 8000 else None], 0.0)
            for priority in (3, 1, 0, 2, 7, 5, 6, 4):
                numbers[priority] = ledger.finish(priority, 0.0)
        assert pair.sign() == range(8)
        assert numbers[3] == 0
        for priority, content in contents.items():
            receipt = segment.receipt(numbers[priority])
            assert receipt is not None
            assert receipt.verify(content) == ALICE.id
            assert receipt.claims.priority == priority

    def test_a_tombstone_ends_the_message_under_way(self) -> None:
        pair = SigningPair()
        for ledger in (pair.signer, pair.verifier):
            ledger.begin(4, 10_000)
            ledger.update(4, bytes(5000), 0.0)
            ledger.add_tombstone(4, 0.0)
            ledger.begin(4, 3)
            ledger.update(4, b"new", 0.0)
            ledger.finish(4, 0.0)
        segment = pair.verifier.segment
        assert pair.sign() == range(2)
        receipt = segment.receipt(1)
        assert receipt is not None
        assert receipt.verify(b"new") == ALICE.id
        # A receipt that somebody makes for the tombstone is none.
        tombstone = segment.receipt(0)
        assert tombstone is not None
        with pytest.raises(ReceiptError):
            type(tombstone).from_bytes(bytes(tombstone))

    def test_misuse_is_told(self) -> None:
        signer = SigningPair().signer
        with pytest.raises(LocalProtocolError, match="no message"):
            signer.update(4, b"", 0.0)
        with pytest.raises(LocalProtocolError, match="no message"):
            signer.finish(4, 0.0)
        assert not signer.is_under_way(4)
        signer.begin(4, 3)
        assert signer.is_under_way(4)
        assert not signer.is_under_way(3)
        with pytest.raises(LocalProtocolError, match="under way already"):
            signer.begin(4, 3)
        signer.update(4, b"ab", 0.0)
        with pytest.raises(LocalProtocolError, match="add up"):
            signer.finish(4, 0.0)

    @pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
    def test_a_seed_has_32_bytes(self, seed: bytes) -> None:
        with pytest.raises(LocalProtocolError):
            Signer(ALICE, BOB.id, HashId.SHA256, seed, SESSION)


class TestSessionId:
    def test_it_can_come_after_the_first_data(self) -> None:
        pair = SigningPair(session=None)
        pair.add([b"early"])
        assert not pair.signer.due(100.0)
        assert pair.signer.next_timeout() is None
        with pytest.raises(LocalProtocolError, match="session id"):
            pair.signer.sign(WALL_TIME)
        with pytest.raises(LocalProtocolError, match="session id"):
            pair.verifier.receive_signature(bytes(128), 0.0)
        pair.signer.set_session_id(SESSION)
        pair.verifier.set_session_id(SESSION)
        assert pair.signer.due(100.0)
        assert pair.sign() == range(1)
        assert pair.receipt(0).claims.session == SESSION

    def test_it_is_set_once(self) -> None:
        signer = SigningPair().signer
        signer.set_session_id(SESSION)
        with pytest.raises(LocalProtocolError, match="set already"):
            signer.set_session_id(bytes(32))
        with pytest.raises(LocalProtocolError, match="32 bytes"):
            signer.set_session_id(bytes(16))

    def test_another_session_does_not_verify(self) -> None:
        pair = SigningPair()
        pair.verifier = Verifier(ALICE.id, BOB.id, HashId.SHA256, SEED, bytes(32))
        pair.add([b"data"])
        with pytest.raises(BadSignatureError, match="not made by"):
            pair.sign()


class TestWhenToSign:
    def test_twenty_milliseconds_after_the_first_unit(self) -> None:
        signer = SigningPair().signer
        assert signer.next_timeout() is None
        signer.add_batch(Kind.MESSAGE, 4, [b"a"], 10.0)
        signer.add_batch(Kind.MESSAGE, 4, [b"b"], 10.015)
        assert signer.next_timeout() == 10.0 + SIGNATURE_DELAY
        assert not signer.due(10.019)
        assert signer.due(10.021)
        signer.sign(WALL_TIME)
        assert signer.next_timeout() is None
        assert not signer.due(11.0)
        signer.add_batch(Kind.MESSAGE, 4, [b"c"], 12.0)
        assert signer.next_timeout() == 12.0 + SIGNATURE_DELAY

    def test_a_stretched_delay(self) -> None:
        signer = SigningPair().signer
        signer.add_batch(Kind.MESSAGE, 4, [b"a"], 10.0)
        signer.delay = 0.5
        assert signer.next_timeout() == 10.5

    def test_at_once_beyond_8_mib(self) -> None:
        signer = SigningPair().signer
        signer.delay = 1.0
        block = bytes(MIB)
        for count in range(7):
            signer.add_batch(Kind.MESSAGE, 4, [block], 5.0 + count / 1000)
            assert not signer.due(5.01)
        signer.add_batch(Kind.MESSAGE, 4, [block], 5.008)
        assert TARGET_BYTES == 8 * MIB
        assert signer.due(5.01)

    def test_at_once_beyond_4096_units(self) -> None:
        signer = SigningPair().signer
        signer.delay = 1.0
        signer.add_batch(Kind.MESSAGE, 4, [b""] * (TARGET_UNITS - 1), 5.0)
        assert not signer.due(5.0)
        signer.add_batch(Kind.MESSAGE, 4, [b""], 5.0)
        assert signer.due(5.0)

    def test_fragments_of_an_unfinished_message_are_nothing_to_sign(self) -> None:
        signer = SigningPair().signer
        signer.begin(4, 100 * MIB)
        signer.update(4, bytes(10 * MIB), 0.0)
        assert signer.next_timeout() is None
        with pytest.raises(LocalProtocolError, match="nothing to sign"):
            signer.sign(WALL_TIME)

    @pytest.mark.parametrize(("wall", "told"), [(-1.0, 0), (0.0, 0), (1e30, 253_402_300_799_999_999), (1.5, 1_500_000)])
    def test_whatever_the_wall_clock_says(self, wall: float, told: int) -> None:
        pair = SigningPair()
        pair.add([b"data"])
        pair.sign(wall)
        assert pair.receipt(0).claims.time == told / 1e6


class TestPace:
    @staticmethod
    def settle(signers: int, gap: float) -> tuple[float, float]:
        """The delay and the rate where so many signers end up whose units come `gap` seconds apart."""
        pace = SigningPace()
        now, rate = 0.0, 0.0
        for _ in range(60):
            rate = signers / (pace.delay + gap)
            for _ in range(int(rate / 4) + 1):
                now += 1 / rate
                pace.signed(now)
        return pace.delay, rate

    def test_few_connections_keep_the_short_delay(self) -> None:
        assert self.settle(30, 0.0) == (SIGNATURE_DELAY, pytest.approx(1500))

    def test_a_thousand_connections_share_two_thousand_signatures(self) -> None:
        delay, rate = self.settle(1000, 0.1)
        assert rate == pytest.approx(2000, rel=0.05)
        assert 0.3 < delay < 0.5

    def test_never_longer_than_a_second(self) -> None:
        assert self.settle(100_000, 0.0)[0] == MAX_SIGNATURE_DELAY

    def test_it_recovers(self) -> None:
        pace = SigningPace()
        now = 0.0
        for _ in range(20_000):
            now += 1 / 20_000
            pace.signed(now)
        assert pace.delay > 0.1
        pace.signed(now + 10.0)
        assert pace.signed(now + 11.0) == SIGNATURE_DELAY


class TestReceipts:
    @pytest.mark.parametrize("hash_id", HashId)
    def test_each_message_has_its_own(self, hash_id: HashId) -> None:
        pair = SigningPair(hash_id)
        for round_ in range(5):
            pair.add([pattern(round_ * 1000 + extra) for extra in range(round_ * 20 + 1)])
            pair.add_in_fragments(pattern(100_000 + round_), 65536)
            pair.sign()
        for number, content in enumerate(pair.contents):
            receipt = pair.receipt(number)
            assert receipt.verify(content) == ALICE.id
            assert receipt.claims.number == number

    def test_none_before_the_signature(self) -> None:
        pair = SigningPair()
        pair.add([b"a"])
        segment, number = pair.tokens[0]
        assert segment.receipt(number) is None
        pair.sign()
        assert segment.receipt(number) is not None
        assert segment.receipt(number + 1) is None

    def test_from_both_sides_of_a_signature_that_comes_late(self) -> None:
        # Units arrive between what is signed and its signature: a batch then ends within a segment.
        pair = SigningPair()
        bodies = []
        for value in range(6):
            pair.add([bytes((value, extra)) for extra in range(3)])
            bodies.append(pair.signer.sign(WALL_TIME))
        assert pair.verifier.receive_signature(bodies[0], 0.0) == range(3)
        pair.add([b"more"])
        bodies.append(pair.signer.sign(WALL_TIME))
        for number, body in enumerate(bodies[1:], 1):
            verified = pair.verifier.receive_signature(body, 0.0)
            assert verified.start == 3 * number
        for number, content in enumerate(pair.contents):
            assert pair.receipt(number).verify(content) == ALICE.id
        assert pair.verifier.unsigned_units == pair.verifier.unsigned_bytes == 0

    def test_they_outlive_the_verifier(self) -> None:
        pair = SigningPair()
        pair.add([b"kept", b"other"])
        pair.sign()
        del pair.verifier
        assert pair.receipt(0).verify(b"kept") == ALICE.id

    def test_batches_go_with_their_messages(self) -> None:
        def run(keep: Callable[[int], bool], pair: SigningPair, rounds: int) -> None:
            for round_ in range(rounds):
                pair.add([b"data"] * 1000)
                pair.sign()
                pair.contents.clear()
                if not keep(round_):
                    pair.tokens = pair.tokens[:-1000]

        pair = SigningPair()
        run(lambda _: False, pair, 20)
        tracemalloc.start()
        try:
            run(lambda _: False, pair, 40)
            assert tracemalloc.get_traced_memory()[0] < 50_000
            run(lambda _: True, pair, 40)
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert 1_600_000 < kept < 8_000_000  # 40,000 leaves of 40 bytes, and this test's own tokens


class TestBadSignatures:
    @pytest.fixture
    def pair(self) -> SigningPair:
        pair = SigningPair()
        pair.add([b"one", b"two", b"three"])
        return pair

    def test_forged(self, pair: SigningPair) -> None:
        body = bytearray(pair.signer.sign(WALL_TIME))
        body[-1] ^= 1
        with pytest.raises(BadSignatureError, match="not made by") as caught:
            pair.verifier.receive_signature(bytes(body), 0.0)
        assert caught.value.proof == ()

    def test_by_another_key(self, pair: SigningPair) -> None:
        other = SigningPair(sender=MALLORY)
        other.add(pair.contents)
        with pytest.raises(BadSignatureError, match="not made by"):
            pair.verifier.receive_signature(other.signer.sign(WALL_TIME), 0.0)

    @pytest.mark.parametrize("body", [b"", bytes(127), bytes(1000), b"\xff" * 128])
    def test_no_signature_at_all(self, pair: SigningPair, body: bytes) -> None:
        with pytest.raises(RemoteProtocolError):
            pair.verifier.receive_signature(body, 0.0)

    @pytest.mark.parametrize("contents", [[b"one", b"two", b"thre!"], [b"two", b"one", b"three"]])
    def test_over_other_data(self, contents: list[bytes]) -> None:
        pair = SigningPair()
        pair.signer.add_batch(Kind.MESSAGE, 4, contents, 0.0)
        pair.verifier.add_batch(Kind.MESSAGE, 4, [b"one", b"two", b"three"], 0.0)
        body = pair.signer.sign(WALL_TIME)
        with pytest.raises(BadSignatureError, match="something else") as caught:
            pair.verifier.receive_signature(body, 0.0)
        (proof,) = caught.value.proof
        assert proof.is_genuine()
        assert proof.body() == body

    @pytest.mark.parametrize("sent", [{"kind": Kind.STREAM_CHUNK}, {"priority": 5}])
    def test_over_another_kind_or_priority(self, sent: dict[str, int]) -> None:
        pair = SigningPair()
        pair.signer.add_batch(Kind.MESSAGE, 4, [b"one"], 0.0)
        pair.verifier.add_batch(Kind(sent.get("kind", 0)), sent.get("priority", 4), [b"one"], 0.0)
        with pytest.raises(BadSignatureError, match="something else"):
            pair.sign()

    def test_over_what_was_not_sent(self, pair: SigningPair) -> None:
        pair.signer.add_batch(Kind.MESSAGE, 4, [b"four"], 0.0)
        with pytest.raises(BadSignatureError, match="not over the units that follow"):
            pair.sign()

    def test_a_batch_left_out(self, pair: SigningPair) -> None:
        pair.signer.sign(WALL_TIME)
        pair.add([b"four"])
        with pytest.raises(BadSignatureError, match="not over the units that follow"):
            pair.sign()

    def test_a_repetition_is_no_news(self, pair: SigningPair) -> None:
        body = pair.signer.sign(WALL_TIME)
        assert pair.verifier.receive_signature(body, 0.0) == range(3)
        assert not pair.verifier.receive_signature(body, 0.0)
        pair.add([b"four"])
        assert not pair.verifier.receive_signature(body, 0.0)
        assert pair.sign() == range(3, 4)

    @pytest.mark.parametrize("wall_time", [WALL_TIME, WALL_TIME + 1])
    @pytest.mark.parametrize("later", [0, 10])
    def test_signed_twice_differently(self, pair: SigningPair, wall_time: float, later: int) -> None:
        twin = SigningPair()
        twin.add([b"one", b"two"] if wall_time == WALL_TIME else pair.contents)
        pair.sign()
        for value in range(later):
            pair.add([bytes((value,))])
            pair.sign()
        with pytest.raises(BadSignatureError, match="twice differently") as caught:
            pair.verifier.receive_signature(twin.signer.sign(wall_time), 0.0)
        one, other = caught.value.proof
        assert conflict(one, other) == ALICE.id
        # The proof travels as bytes, and convinces without the session.
        assert conflict(*(Statement.from_bytes(bytes(proof)) for proof in caught.value.proof)) == ALICE.id

    def test_an_overlap_under_a_new_number(self, pair: SigningPair) -> None:
        pair.sign()
        twin = SigningPair()
        twin.add([b"one"])
        twin.signer.sign(WALL_TIME)
        twin.add([b"two", b"three", b"four"])
        pair.add([b"four"])
        with pytest.raises(BadSignatureError, match="twice differently") as caught:
            pair.verifier.receive_signature(twin.signer.sign(WALL_TIME), 0.0)
        assert conflict(*caught.value.proof) == ALICE.id

    def test_one_too_old_to_prove(self, pair: SigningPair) -> None:
        twin = SigningPair()
        twin.add([b"other"])
        old = twin.signer.sign(WALL_TIME)
        pair.sign()
        for value in range(40):
            pair.add([bytes((value,))])
            pair.sign()
        with pytest.raises(BadSignatureError, match="not over the units that follow"):
            pair.verifier.receive_signature(old, 0.0)


class TestWithheld:
    def test_not_while_signatures_come(self) -> None:
        pair = SigningPair()
        for step in range(2000):
            now = step * 0.1
            pair.add([bytes(100_000)], now=now)
            assert pair.verifier.overdue(now) is None
            if pair.signer.due(now):
                pair.sign(now=now)
            pair.tokens.clear()
            pair.contents.clear()

    def test_sixteen_mib(self) -> None:
        verifier = SigningPair().verifier
        for _ in range(LIMIT_BYTES // MIB):
            verifier.add_batch(Kind.MESSAGE, 4, [bytes(MIB)], 0.0)
            assert verifier.overdue(0.0) is None
        verifier.add_batch(Kind.MESSAGE, 4, [bytes(MIB)], 0.0)
        assert "16 MiB" in str(verifier.overdue(0.0))

    def test_a_message_larger_than_that_can_be_signed(self) -> None:
        pair = SigningPair()
        pair.add_in_fragments(bytes(40 * MIB), 65536)
        assert pair.verifier.overdue(0.0) is None
        pair.add_in_fragments(bytes(7 * MIB), 65536)
        assert pair.verifier.overdue(0.0) is None
        assert pair.sign() == range(2)
        pair.add_in_fragments(bytes(7 * MIB), 65536)
        assert pair.verifier.overdue(0.0) is None

    def test_fragments_behind_it_count(self) -> None:
        verifier = SigningPair().verifier
        verifier.add_batch(Kind.MESSAGE, 4, [bytes(9 * MIB)], 0.0)
        verifier.begin(6, 100 * MIB)
        for _ in range(8):
            verifier.update(6, bytes(MIB), 0.0)
            assert verifier.overdue(0.0) is None
        verifier.update(6, b"x", 0.0)
        assert "16 MiB" in str(verifier.overdue(0.0))

    def test_65536_messages(self) -> None:
        verifier = SigningPair().verifier
        for _ in range(LIMIT_UNITS // 1024):
            verifier.add_batch(Kind.MESSAGE, 4, [b""] * 1024, 0.0)
        assert verifier.overdue(0.0) is None
        verifier.add_tombstone(4, 0.0)
        assert "65,536 messages" in str(verifier.overdue(0.0))

    def test_five_seconds_of_frames(self) -> None:
        verifier = SigningPair().verifier
        verifier.add_batch(Kind.MESSAGE, 4, [b"a"], 100.0)
        now = 100.0
        while now < 100.0 + LIMIT_SECONDS - 0.2:
            now += 0.1
            verifier.add_batch(Kind.STREAM_CHUNK, 4, [b"b"], now)
            assert verifier.overdue(now) is None
        assert "5 s" in str(verifier.overdue(now + 0.5))

    def test_silence_is_not_withholding(self) -> None:
        # The path was down for an hour; then frames come again, and the signature among them.
        pair = SigningPair()
        pair.add([b"a"], now=100.0)
        assert pair.verifier.overdue(3700.0) is None
        assert pair.sign(now=3700.1) == range(1)
        assert pair.verifier.overdue(7000.0) is None

    def test_a_slow_peer_that_never_signs_is_found_as_well(self) -> None:
        verifier = SigningPair().verifier
        for minute in range(6):
            verifier.add_batch(Kind.MESSAGE, 4, [b"a"], 60.0 * minute)
            assert verifier.overdue(60.0 * minute) is None
        verifier.add_batch(Kind.MESSAGE, 4, [b"a"], 360.0)
        assert "5 s" in str(verifier.overdue(360.0))

    def test_the_time_counts_from_the_first_unsigned_unit(self) -> None:
        pair = SigningPair()
        for second in range(100):
            assert pair.verifier.overdue(second / 2) is None
        pair.add([b"a"], now=50.0)
        pair.sign(now=54.0)
        pair.add([b"b"], now=80.0)
        assert pair.verifier.overdue(80.5) is None
