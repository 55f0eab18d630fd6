"""Which session a HELLO belongs to, for all peers of a node."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from crust.config import Config
from crust.crypto.keys import Identity
from crust.errors import PeerLost
from crust.proto.session.engine import NO_NONCE, Session
from crust.proto.session.limits import Limits
from crust.proto.session.registry import Decision, Registry
from crust.wire import frames

PEER, OTHER = (Identity.from_seed(bytes([n]) * 32).id for n in (1, 2))
THEIRS, THEIRS_TOO = b"t" * 16, b"u" * 16


@dataclass(eq=False)
class Holder:
    session: Session


class Random:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(size, "big")


@pytest.fixture
def registry() -> Registry[Holder]:
    return Registry(Random())


def add(registry: Registry[Holder], remote: bytes = NO_NONCE) -> Holder:
    limits = Limits.of(Config())
    holder = Holder(Session(nonce=registry.nonce(PEER), side=0, limits=limits, random=Random(), now=0.0))
    holder.session.remote_nonce = remote
    registry.add(PEER, holder)
    return holder


def hello(nonce: bytes, yours: bytes = NO_NONCE) -> frames.Hello:
    return frames.Hello(nonce, yours, 0, 1, 1, 1)


def remove(registry: Registry[Holder], holder: Holder, *, closed: bool = False, until: float = 100.0) -> None:
    holder.session.abort(PeerLost(None, "over"))
    registry.remove(PEER, holder, closed=closed, until=until)


def test_one_nonce_for_each_peer(registry: Registry[Holder]) -> None:
    assert registry.nonce(PEER) == registry.nonce(PEER)
    assert registry.nonce(PEER) != registry.nonce(OTHER)


def test_a_new_nonce_when_the_session_has_ended(registry: Registry[Holder]) -> None:
    holder = add(registry)
    remove(registry, holder)
    assert registry.nonce(PEER) != holder.session.nonce


def test_a_new_nonce_while_the_session_is_closing(registry: Registry[Holder]) -> None:
    """A new session must not be taken for the one that closes."""
    holder = add(registry, THEIRS)
    holder.session.attach(1, rank=1, now=0.0)
    holder.session.close(0.0)
    later = add(registry)
    assert later.session.nonce != holder.session.nonce
    remove(registry, holder, closed=True)
    assert registry.nonce(PEER) == later.session.nonce
    assert registry.decide(PEER, hello(THEIRS, holder.session.nonce), 1.0) == (Decision.GONE, None, 1)


def test_nobody_known_is_new(registry: Registry[Holder]) -> None:
    assert registry.decide(PEER, hello(THEIRS), 0.0) == (Decision.NEW, None, 0)


def test_same_pair_attaches(registry: Registry[Holder]) -> None:
    holder = add(registry, THEIRS)
    assert registry.decide(PEER, hello(THEIRS, holder.session.nonce), 0.0) == (Decision.ATTACH, holder, 0)


def test_no_nonce_of_ours_with_a_known_one_attaches(registry: Registry[Holder]) -> None:
    """Glare, and races."""
    holder = add(registry, THEIRS)
    assert registry.decide(PEER, hello(THEIRS), 0.0)[:2] == (Decision.ATTACH, holder)
    fresh = Registry[Holder](Random())
    dialling = add(fresh)
    assert fresh.decide(PEER, hello(THEIRS), 0.0)[:2] == (Decision.ATTACH, dialling)


def test_a_nonce_of_ours_that_is_unknown_is_gone(registry: Registry[Holder]) -> None:
    assert registry.decide(PEER, hello(THEIRS, b"z" * 16), 0.0) == (Decision.GONE, None, 0)
    add(registry, THEIRS)
    assert registry.decide(PEER, hello(THEIRS, b"z" * 16), 0.0) == (Decision.GONE, None, 0)


def test_a_new_nonce_of_the_peer_is_a_conflict(registry: Registry[Holder]) -> None:
    holder = add(registry, THEIRS)
    assert registry.decide(PEER, hello(THEIRS_TOO), 0.0) == (Decision.CONFLICT, holder, 0)


def test_two_instances_each_have_their_session(registry: Registry[Holder]) -> None:
    one = add(registry, THEIRS)
    two = add(registry, THEIRS_TOO)
    assert one.session.nonce == two.session.nonce
    for holder, nonce in ((one, THEIRS), (two, THEIRS_TOO)):
        assert registry.decide(PEER, hello(nonce, holder.session.nonce), 0.0)[:2] == (Decision.ATTACH, holder)
    remove(registry, one)
    assert registry.nonce(PEER) == two.session.nonce
    assert registry.holders_of(PEER) == [two]


class TestTombstones:
    @pytest.mark.parametrize(("closed", "code"), [(True, 1), (False, 0)])
    def test_say_why(self, registry: Registry[Holder], closed: bool, code: int) -> None:
        holder = add(registry, THEIRS)
        remove(registry, holder, closed=closed)
        assert registry.decide(PEER, hello(THEIRS, holder.session.nonce), 50.0) == (Decision.GONE, None, code)

    def test_for_a_time(self, registry: Registry[Holder]) -> None:
        holder = add(registry, THEIRS)
        remove(registry, holder, closed=True, until=100.0)
        assert registry.decide(PEER, hello(THEIRS, holder.session.nonce), 101.0) == (Decision.GONE, None, 0)

    def test_only_so_many(self, registry: Registry[Holder]) -> None:
        holders = []
        for _ in range(5000):
            holders.append(add(registry, THEIRS))
            remove(registry, holders[-1], closed=True)
        first, last = holders[0].session.nonce, holders[-1].session.nonce
        assert registry.decide(PEER, hello(THEIRS, first), 0.0)[2] == 0
        assert registry.decide(PEER, hello(THEIRS, last), 0.0)[2] == 1


class TestHolders:
    def test_count(self, registry: Registry[Holder]) -> None:
        one, two = add(registry), add(registry)
        assert registry.count == 2
        assert registry.holders() == [one, two]
        remove(registry, one)
        remove(registry, one)
        assert registry.count == 1
        remove(registry, two)
        assert registry.holders() == []
        assert registry.holders_of(PEER) == []

    def test_find_gives_the_newest_that_takes_data(self, registry: Registry[Holder]) -> None:
        assert registry.find(PEER) is None
        one, two = add(registry, THEIRS), add(registry, THEIRS_TOO)
        assert registry.find(PEER) is two
        two.session.attach(1, rank=1, now=0.0)
        two.session.close(0.0)
        assert registry.find(PEER) is one
        remove(registry, one)
        assert registry.find(PEER) is None
