"""The handshake over datagrams: Noise IK as over TCP, but any message may be lost, repeated or overtaken.

    initiator                                                       responder
    marked salt 16 ‖ proof 16 ‖ AEAD(request)    ------>
                                                 <------            masked header ‖ AEAD(response)
                                                                    or AEAD(cookie), AEAD(hint), or nothing

The salt is 12 random bytes and a mark of 4, encrypted under a key that hangs on the responder's PeerId. To a stranger
it is random; the responder tells noise from requests by one block of AES, a tenth of what opening the envelope costs.
The proof stands outside the envelope so that under load it is checked first: it is what the cookie makes of the salt,
and random where there is none; the mark says which.
A retransmitted request is the same Noise message in a new envelope: new salt, new padding. Answers are sealed under a
key that hangs on the request's tag, so that repeated answers differ, too, and fit no other request. The responder holds
nothing before the envelope has opened, and under load before a cookie came back (PROTOCOL 5).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from crust.crypto.aead import TAG_BYTES, Suite, aead, best_suite, mac, nonce
from crust.crypto.dh import DH_BYTES, DhKey, LowOrderKeyError
from crust.crypto.keys import Identity, PeerId
from crust.errors import RemoteProtocolError
from crust.proto.noise.envelope import SALT_BYTES
from crust.proto.noise.ik import IkInitiator, IkResponder, NoiseAuthenticationError
from crust.proto.noise.outcome import (
    DiscardReason,
    FailureReason,
    HandshakeFailed,
    Network,
    Random,
    check_own_hello,
    draw,
)
from crust.proto.tunnel.constants import ANSWERS_KEPT, MAX_PADDING, MAX_REPLY_PADDING, MAX_REQUEST, REQUESTS_KEPT
from crust.proto.tunnel.cookie import prove
from crust.proto.tunnel.header import HeaderMask
from crust.wire.handshake import Hello, Hint, UnsupportedVersionError
from crust.wire.tunnel import (
    HANDSHAKE_COUNTER,
    HEADER_BYTES,
    PROOF_BYTES,
    REQUEST_BYTES,
    RESPONSE_BYTES,
    SAMPLE_BYTES,
    SMALLEST_DATAGRAM,
    Introduction,
    TunnelRequest,
    parse_introduction,
    parse_reply,
    parse_request,
    parse_response,
    serialize_cookie_reply,
    serialize_hint_reply,
    serialize_introduction,
    serialize_request,
    serialize_response,
)

__all__ = [
    "ENVELOPE_BYTES",
    "SMALLEST_REQUEST",
    "Discarded",
    "OpenedRequest",
    "SaltMark",
    "TunnelInitiator",
    "TunnelKeys",
    "TunnelResponder",
    "is_request",
    "make_salt",
    "mask_datagram",
    "open_request",
    "seal_cookie",
    "seal_hint",
]

ENVELOPE_BYTES: Final = SALT_BYTES + PROOF_BYTES
SMALLEST_REQUEST: Final = ENVELOPE_BYTES + REQUEST_BYTES + TAG_BYTES
_MARK_BYTES: Final = 4
_COOKIE_MARK: Final = 1  # a cookie is shown; else the mark is 0
_NONCE: Final = nonce(Suite.AESGCM, 0)  # every key here seals one message
_HINT_FAILURES: Final = {
    Hint.NETWORK_MISMATCH: FailureReason.NETWORK_MISMATCH,
    Hint.REFUSED: FailureReason.REFUSED,
    Hint.SIGNING_MISMATCH: FailureReason.SIGNING_MISMATCH,
    Hint.UNSUPPORTED_VERSION: FailureReason.UNSUPPORTED_VERSION,
    Hint.BUSY: FailureReason.BUSY,
}


@dataclass(frozen=True, slots=True)
class TunnelKeys:
    """What a finished handshake gives.

    Attributes:
        peer: the other side; on the responder's side proved only by its first datagram (PROTOCOL 2).
        hello: what it said of itself.
        suite: the cipher.
        send_key: of what we send.
        receive_key: of what we receive.
        index: the peer's.
        header_key: the peer's.
        handshake_hash: the same on both sides, and of this handshake only.
        initiator: whether we began.
    """

    peer: PeerId
    hello: Hello
    suite: Suite
    send_key: bytes
    receive_key: bytes
    index: int
    header_key: bytes
    handshake_hash: bytes
    initiator: bool


class Discarded(Exception):
    """A message 1 that is thrown away.

    Attributes:
        reason: why.
        hint: what its sender may be told.
    """

    def __init__(self, reason: DiscardReason, hint: Hint | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def _request_key(secret: bytes, salt: bytes) -> bytes:
    """Of message 1; not the one of TCP, so that neither can be passed off as the other."""
    return mac(secret, salt + b"datagram")


def _salt_cipher(secret: bytes) -> Cipher[ECB]:
    return Cipher(AES(mac(secret, b"datagram salt")), ECB())  # noqa: S305 - a single random block


def make_salt(secret: bytes, random: Random, *, shows: bool = False) -> bytes:
    """A new salt of a request to the responder whose `outer_secret` that is.

    Args:
        secret: see above.
        random: gives random bytes.
        shows: whether the request shows a cookie.
    """
    return (
        _salt_cipher(secret)
        .encryptor()
        .update(random(SALT_BYTES - _MARK_BYTES) + int(shows).to_bytes(_MARK_BYTES, "big"))
    )


class SaltMark:
    """Recognises the salts of requests to us.

    Args:
        secret: our `outer_secret`.
    """

    __slots__ = ("_decrypt",)

    def __init__(self, secret: bytes) -> None:
        # An ECB context has no state between whole blocks, so one serves for ever.
        self._decrypt = _salt_cipher(secret).decryptor().update

    def read(self, start: bytes, size: int) -> bool | None:
        """Whether a request shows a cookie; None for what is no request to us. By chance one in 2^31 looks like one.

        Args:
            start: at least the salt.
            size: of the whole datagram.
        """
        mark = int.from_bytes(self._decrypt(start[:SALT_BYTES])[-_MARK_BYTES:], "big")
        return mark == _COOKIE_MARK if is_request(mark, size) else None

    def unmask(self, blocks: bytes) -> bytes:
        """The salts of many datagrams, decrypted with what lies between them."""
        return self._decrypt(blocks)


def is_request(mark: int, size: int) -> bool:
    """Whether a datagram may be a request to us.

    Args:
        mark: the last four bytes of its decrypted salt: 1 if it shows a cookie, 0 if not.
        size: of the whole datagram.
    """
    return mark <= _COOKIE_MARK and SMALLEST_REQUEST <= size <= MAX_REQUEST


def _reply_key(secret: bytes, salt: bytes, tag: bytes) -> bytes:
    """Of a reply that holds no state: it fits one request."""
    return mac(secret, salt + tag + b"datagram reply")


def _response_key(chaining_key: bytes, tag: bytes) -> bytes:
    """Of message 2; labels have other lengths than what HKDF mixes in (see `noise.envelope`)."""
    return mac(chaining_key, tag + b"crust-v1 datagram message 2")


def _prologue(network: Network, suite: Suite, responder: PeerId, renews: bytes) -> bytes:
    return network.prologue(suite, responder) + b"udp" + renews


def mask_datagram(mask: HeaderMask, header: bytes, sealed: bytes) -> bytes:
    """A whole datagram of its unmasked header and what is sealed."""
    return mask.apply_one(header, sealed[:SAMPLE_BYTES]) + sealed


def _keys(noise: IkInitiator | IkResponder, suite: Suite, theirs: Introduction, *, initiator: bool) -> TunnelKeys:
    first, second = noise.split()
    send, receive = (first, second) if initiator else (second, first)
    hash_ = noise.handshake_hash
    return TunnelKeys(
        theirs.hello.peer, theirs.hello, suite, send, receive, theirs.index, theirs.header_key, hash_, initiator
    )


class TunnelInitiator:
    """The dialling side; with `renews` the side that renews the keys of an association.

    Args:
        identity: ours.
        remote: whom we dial.
        network: ours.
        introduction: what we say of ourselves.
        random: gives that many random bytes.
        ephemeral: a key pair that is used for nothing else; a new one when left out.
        suite: the cipher; what is faster here when left out.
        renews: the hash of the handshake whose keys are replaced; nothing for a new association.
    """

    __slots__ = ("_cookie", "_hello", "_message", "_noise", "_random", "_remote", "_requests", "_secret", "_suite")

    def __init__(  # noqa: PLR0913 - what a handshake is made of
        self,
        identity: Identity,
        remote: PeerId,
        network: Network,
        introduction: Introduction,
        secret: bytes,
        *,
        random: Random,
        ephemeral: DhKey | None = None,
        suite: Suite | None = None,
        renews: bytes = b"",
    ) -> None:
        check_own_hello(identity, introduction.hello)
        self._remote = remote
        self._hello = introduction.hello
        self._suite = suite or best_suite()
        self._random = random
        self._secret = secret
        prologue = _prologue(network, self._suite, remote, renews)
        ephemeral = ephemeral or DhKey(random(DH_BYTES))
        self._noise = IkInitiator(self._suite, prologue, identity.dh, ephemeral, remote.x25519)
        self._message = self._noise.write_message_1(serialize_introduction(introduction))
        self._cookie: bytes | None = None
        # (salt, tag, where it went), the newest first.
        self._requests: deque[tuple[bytes, bytes, Hashable]] = deque(maxlen=REQUESTS_KEPT)

    @property
    def message(self) -> bytes:
        """The bare Noise message 1, for an envelope that is there already (renewal)."""
        return bytes((self._suite.value,)) + self._message

    def request(self, route: Hashable = None, padding: int = MAX_PADDING) -> bytes:
        """Message 1, in a new envelope each time.

        Args:
            route: where it goes, if it goes to several addresses.
            padding: random bytes at most.
        """
        salt = make_salt(self._secret, self._random, shows=self._cookie is not None)
        start = salt + (self._random(PROOF_BYTES) if self._cookie is None else prove(self._cookie, salt))
        body = serialize_request(TunnelRequest(self._suite, self._message), draw(self._random, 0, padding))
        sealed = aead(Suite.AESGCM, _request_key(self._secret, salt)).encrypt(_NONCE, body, start)
        self._requests.appendleft((salt, sealed[-TAG_BYTES:], route))
        return start + sealed

    def keep_requests(self, count: int) -> None:
        """Remember more requests, as they go to several addresses."""
        self._requests = deque(self._requests, maxlen=count)

    def _sent_to(self, route: Hashable) -> Iterator[tuple[bytes, bytes]]:
        """What an answer from there may belong to: requests to that address, or, who knows, the newest to others."""
        there = ((salt, tag) for salt, tag, to in self._requests if to == route)
        others = ((salt, tag) for salt, tag, to in self._requests if to != route)
        return itertools.chain(itertools.islice(there, REQUESTS_KEPT), itertools.islice(others, REQUESTS_KEPT))

    def receive_response(self, header: bytes, sealed: bytes | memoryview, route: Hashable = None) -> TunnelKeys | None:
        """Read a datagram that carries our index as message 2.

        Args:
            header: unmasked.
            sealed: what follows it.
            route: from where it came, if requests went to several addresses.

        Returns:
            None when it is none.

        Raises:
            HandshakeFailed: the peer is broken, or does not fit us.
        """
        for _, tag in self._sent_to(route):
            key = _response_key(self._noise.chaining_key, tag)
            try:
                body = aead(self._suite, key).decrypt(nonce(self._suite, 0), sealed, header)
            except InvalidTag:
                continue
            return self.receive_message(self._parse(body))
        return None

    @staticmethod
    def _parse(body: bytes) -> bytes:
        try:
            return parse_response(body)
        except RemoteProtocolError as error:
            raise HandshakeFailed(FailureReason.WRONG_KEY_OR_NOT_CRUST, f"a broken answer: {error}") from error

    def receive_message(self, message: bytes) -> TunnelKeys:
        """Read the bare Noise message 2, once.

        Raises:
            HandshakeFailed: the peer is broken, or does not fit us.
        """
        try:
            theirs = parse_introduction(self._noise.read_message_2(message))
        except RemoteProtocolError as error:
            raise HandshakeFailed(FailureReason.WRONG_KEY_OR_NOT_CRUST, f"a broken answer: {error}") from error
        if theirs.hello.peer != self._remote:
            raise HandshakeFailed(FailureReason.WRONG_KEY_OR_NOT_CRUST, "the peer answers under another PeerId")
        if not self._hello.signing.agrees_with(theirs.hello.signing):
            raise HandshakeFailed(FailureReason.SIGNING_MISMATCH)
        return _keys(self._noise, self._suite, theirs, initiator=True)

    def receive_reply(self, datagram: bytes | memoryview, route: Hashable = None) -> bool | None:
        """Read a datagram from the dialled address (`route`, if there are several) as a cookie or a hint.

        Returns:
            True for a new cookie: the request should go out again. False for one that we have. None for neither.

        Raises:
            HandshakeFailed: a hint says so.
        """
        for salt, tag in self._sent_to(route):
            try:
                body = aead(Suite.AESGCM, _reply_key(self._secret, salt, tag)).decrypt(_NONCE, datagram, tag)
                reply = parse_reply(body)
            except InvalidTag:
                continue
            except RemoteProtocolError:
                return None
            if isinstance(reply, Hint):
                raise HandshakeFailed(_HINT_FAILURES[reply])
            new = reply != self._cookie
            self._cookie = reply
            return new
        return None


class OpenedRequest(NamedTuple):
    """A message 1 whose envelope has opened: its sender knows our PeerId, no more is known.

    Attributes:
        salt: of the envelope.
        tag: of the envelope.
        size: bytes of the datagram; no answer may be longer.
        request: what was inside.
    """

    salt: bytes
    tag: bytes
    size: int
    request: TunnelRequest

    @property
    def ephemeral(self) -> bytes:
        """The initiator's ephemeral key, the same in all copies."""
        return self.request.noise[:DH_BYTES]


def open_request(secret: bytes, datagram: bytes) -> OpenedRequest | None:
    """Open the envelope of what may be a message 1.

    Args:
        secret: our `outer_secret`.
        datagram: whatever came.

    Returns:
        None when it is none. That is what a flood of noise is, so it costs no exception of ours.

    Raises:
        Discarded: one that we do not understand; then `hint` can be sealed with `seal_hint`.
    """
    if not SMALLEST_REQUEST <= len(datagram) <= MAX_REQUEST:
        return None
    salt = datagram[:SALT_BYTES]
    try:
        body = AESGCM(_request_key(secret, salt)).decrypt(_NONCE, datagram[ENVELOPE_BYTES:], datagram[:ENVELOPE_BYTES])
    except InvalidTag:
        return None
    try:
        request = parse_request(body)
    except UnsupportedVersionError as error:
        raise Discarded(DiscardReason.UNSUPPORTED_VERSION, Hint.UNSUPPORTED_VERSION) from error
    except RemoteProtocolError as error:
        raise Discarded(DiscardReason.MALFORMED) from error
    return OpenedRequest(salt, datagram[-TAG_BYTES:], len(datagram), request)


def seal_hint(secret: bytes, datagram: bytes, hint: Hint, random: Random) -> bytes:
    """A hint in answer to a message 1; shorter than it."""
    most = min(len(datagram) - 1 - TAG_BYTES - 2, MAX_REPLY_PADDING)
    body = serialize_hint_reply(hint, draw(random, SMALLEST_DATAGRAM - TAG_BYTES - 2, most))
    return _seal_reply(secret, datagram, body)


def seal_cookie(secret: bytes, datagram: bytes, cookie: bytes, random: Random) -> bytes:
    """A cookie in answer to a message 1; shorter than it."""
    padding = draw(random, SMALLEST_DATAGRAM - TAG_BYTES - 1 - len(cookie), MAX_REPLY_PADDING)
    return _seal_reply(secret, datagram, serialize_cookie_reply(cookie, padding))


def _seal_reply(secret: bytes, datagram: bytes, body: bytes) -> bytes:
    tag = datagram[-TAG_BYTES:]
    return aead(Suite.AESGCM, _reply_key(secret, datagram[:SALT_BYTES], tag)).encrypt(_NONCE, body, tag)


class TunnelResponder:
    """The dialled side, from an opened request on; with `renews` the other side of a renewal.

    Args:
        identity: ours.
        network: ours.
        request: what the initiator sent.
        renews: see `TunnelInitiator`.

    Attributes:
        introduction: what the initiator says of itself; claimed only, until its first datagram.

    Raises:
        Discarded: the message is not authentic or impossible.
    """

    __slots__ = ("_answers", "_chaining_key", "_message", "_noise", "_suite", "introduction")

    def __init__(self, identity: Identity, network: Network, request: TunnelRequest, *, renews: bytes = b"") -> None:
        self._suite = request.suite
        prologue = _prologue(network, request.suite, identity.id, renews)
        self._noise = IkResponder(request.suite, prologue, identity.dh)
        self.introduction = self._open(request.noise)
        self._chaining_key = self._noise.chaining_key
        self._message = b""
        self._answers: dict[bytes, bytes] = {}

    def _open(self, message: bytes) -> Introduction:
        try:
            static = self._noise.read_static(message)
        except LowOrderKeyError as error:
            raise Discarded(DiscardReason.LOW_ORDER_KEY) from error
        except NoiseAuthenticationError as error:
            # The sender knows our PeerId, so it may learn this much (PROTOCOL 4).
            raise Discarded(DiscardReason.NETWORK_MISMATCH, Hint.NETWORK_MISMATCH) from error
        except RemoteProtocolError as error:
            raise Discarded(DiscardReason.MALFORMED) from error
        try:
            introduction = parse_introduction(self._noise.read_payload())
        except LowOrderKeyError as error:
            raise Discarded(DiscardReason.LOW_ORDER_KEY) from error
        except NoiseAuthenticationError as error:
            raise Discarded(DiscardReason.FORGED_STATIC) from error
        except RemoteProtocolError as error:
            raise Discarded(DiscardReason.MALFORMED) from error
        if not introduction.hello.peer.matches_static(static):
            raise Discarded(DiscardReason.WRONG_PEER_ID)
        return introduction

    def answer(self, introduction: Introduction, ephemeral: DhKey) -> None:
        """Make message 2, once; `response` seals it as often as it is asked for.

        Args:
            introduction: what we say of ourselves.
            ephemeral: a key pair that is used for nothing else.
        """
        self._message = self._noise.write_message_2(ephemeral, serialize_introduction(introduction))

    @property
    def keys(self) -> TunnelKeys:
        """What the handshake gives; after `answer`."""
        return _keys(self._noise, self._suite, self.introduction, initiator=False)

    def accept(self, introduction: Introduction, random: Random) -> TunnelKeys:
        """Make message 2, and the keys."""
        self.answer(introduction, DhKey(random(DH_BYTES)))
        return self.keys

    @property
    def message(self) -> bytes:
        """The bare Noise message 2, for an envelope that is there already (renewal)."""
        return self._message

    def response(self, tag: bytes, size: int, random: Random) -> bytes:
        """Message 2 in answer to the request with that tag and size, a different datagram for each of them.

        A copy of a request gets a copy of its answer, as two different ones would use a nonce twice; a request beyond
        the first few gets the first answer again, which the initiator has forgotten: nothing honest sends so many.
        """
        answer = self._answers.get(tag)
        if answer is not None:
            return answer
        if len(self._answers) >= ANSWERS_KEPT:
            return next(iter(self._answers.values()))
        room = size - HEADER_BYTES - TAG_BYTES - RESPONSE_BYTES
        body = serialize_response(self._message, draw(random, 0, min(room, MAX_PADDING)))
        header = self.introduction.index.to_bytes(4, "big") + HANDSHAKE_COUNTER.to_bytes(8, "big")
        header = header.ljust(HEADER_BYTES, b"\0")
        sealed = aead(self._suite, _response_key(self._chaining_key, tag)).encrypt(nonce(self._suite, 0), body, header)
        answer = self._answers[tag] = mask_datagram(HeaderMask(self.introduction.header_key), header, sealed)
        return answer
