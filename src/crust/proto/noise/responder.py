"""The dialled side of the handshake over a byte stream."""

from __future__ import annotations

from crust.crypto.aead import TAG_BYTES, Suite
from crust.crypto.dh import DH_BYTES, DhKey, LowOrderKeyError
from crust.crypto.keys import Identity
from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.noise.envelope import FIELD_BYTES, SALT_BYTES, Envelope, SealedFrame, outer_secret, response_frame
from crust.proto.noise.ik import IkResponder, NoiseAuthenticationError
from crust.proto.noise.outcome import (
    MAX_PADDING,
    MAX_REQUEST_SEALED,
    MIN_REQUEST_SEALED,
    MIN_RESPONSE_SEALED,
    REQUEST_HEADER,
    DiscardReason,
    HandshakeResult,
    Incoming1,
    Network,
    Random,
    State,
    check_own_hello,
    draw,
    finish,
)
from crust.proto.noise.replay import EphemeralCache
from crust.wire.handshake import (
    HINT_BYTES,
    Hello,
    Hint,
    Request,
    UnsupportedVersionError,
    parse_hello,
    parse_request,
    serialize_hello,
    serialize_hint,
    serialize_response,
)

__all__ = ["ResponderHandshake"]


class _Discarded(Exception):
    """Message 1 is thrown away."""

    def __init__(self, reason: DiscardReason, hint: Hint | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class ResponderHandshake:
    """The dialled side.

    Args:
        identity: ours.
        network: ours.
        random: gives that many random bytes.
        seen: shared by all handshakes of the identity.

    Attributes:
        hint: bytes to send before discarding, when the first message came from another network or version.
        reason: why nothing (more) is answered; None as long as the handshake goes well.
    """

    __slots__ = (
        "_buffer",
        "_envelope",
        "_frame",
        "_hello",
        "_identity",
        "_network",
        "_noise",
        "_random",
        "_request_bytes",
        "_seen",
        "_state",
        "_suite",
        "_tag",
        "hint",
        "reason",
    )

    def __init__(self, identity: Identity, network: Network, *, random: Random, seen: EphemeralCache) -> None:
        self._identity = identity
        self._network = network
        self._random = random
        self._seen = seen
        self._state = State.WAITING
        self._buffer = bytearray()
        self._envelope: Envelope | None = None
        self._frame: SealedFrame | None = None
        self._noise: IkResponder | None = None
        self._suite = Suite.AESGCM
        self._hello: Hello | None = None
        self._tag = b""
        self._request_bytes = 0
        self.hint: bytes | None = None
        self.reason: DiscardReason | None = None

    @property
    def discarding(self) -> bool:
        """Whether to read on, throw everything away and close at a random moment (PROTOCOL 4)."""
        return self._state is State.DISCARDING

    @property
    def missing(self) -> int:
        """How many bytes may be given without one that follows message 1 among them; 0 when it is whole."""
        if self._state is not State.WAITING:
            return 0
        if self._frame is None:
            return REQUEST_HEADER - len(self._buffer)
        return REQUEST_HEADER + self._frame.sealed_bytes(self._buffer[SALT_BYTES:REQUEST_HEADER]) - len(self._buffer)

    def receive_data(self, data: bytes, now: float) -> Incoming1 | None:
        """Take bytes from a stranger. Whatever they are, no error comes of it.

        Returns:
            None while more is needed, or when `discarding` is true by now; then look at `reason` and `hint` too.

        Raises:
            LocalProtocolError: the handshake is finished.
        """
        if self._state is State.DISCARDING:
            return None
        if self._state is State.DONE:
            raise LocalProtocolError("the handshake is finished")
        if self._state is State.DECIDING:
            if data:
                self._discard(DiscardReason.TRAILING_DATA)
            return None
        try:
            return self._receive(data, now)
        except _Discarded as discarded:
            self._discard(discarded.reason)
            if discarded.hint is not None:
                self.hint = self._seal_hint(discarded.hint)
            return None

    def accept(self, hello: Hello) -> tuple[bytes, HandshakeResult]:
        """Answer with message 2.

        Args:
            hello: what we say of ourselves.

        Returns:
            The bytes to send, and the keys.

        Raises:
            LocalProtocolError: there is no first message to accept, or the Hello is not ours to give or disagrees about
                signing with the peer's (refuse it with `Hint.SIGNING_MISMATCH`).
        """
        if self._state is not State.DECIDING or self._noise is None or self._hello is None:
            raise LocalProtocolError("there is no first message to accept")
        check_own_hello(self._identity, hello)
        if not hello.signing.agrees_with(self._hello.signing):
            raise LocalProtocolError("the peer's signing mode does not agree with ours")
        frame = response_frame(self._suite, self._noise.chaining_key)
        message = self._noise.write_message_2(DhKey(self._random(DH_BYTES)), serialize_hello(hello))
        body = serialize_response(message, 0)
        room = self._request_bytes - FIELD_BYTES - TAG_BYTES - len(body)
        data = frame.seal(serialize_response(message, draw(self._random, 0, min(room, MAX_PADDING))))
        self._state = State.DONE
        return data, finish(self._noise, self._suite, self._hello, initiator=False, rest=b"")

    def refuse(self, hint: Hint = Hint.REFUSED) -> bytes:
        """Turn the peer down.

        Returns:
            The bytes to send; what arrives afterwards is discarded.

        Raises:
            LocalProtocolError: there is no first message to refuse.
        """
        if self._state is not State.DECIDING:
            raise LocalProtocolError("there is no first message to refuse")
        self._discard(DiscardReason.REFUSED)
        return self._seal_hint(hint)

    def _receive(self, data: bytes, now: float) -> Incoming1 | None:
        """Collect message 1 and open it."""
        self._buffer += data
        if self._frame is None:
            if len(self._buffer) < REQUEST_HEADER:
                return None
            self._envelope = Envelope(outer_secret(self._identity.id), bytes(self._buffer[:SALT_BYTES]))
            self._frame = self._envelope.request()
        sealed = self._frame.sealed_bytes(self._buffer[SALT_BYTES:REQUEST_HEADER])
        if not MIN_REQUEST_SEALED <= sealed <= MAX_REQUEST_SEALED:
            raise _Discarded(DiscardReason.IMPLAUSIBLE_LENGTH)
        total = REQUEST_HEADER + sealed
        if len(self._buffer) < total:
            return None
        trailing = len(self._buffer) > total
        message = bytes(self._buffer[:total])
        self._buffer.clear()
        return self._open(self._frame, message, now, trailing=trailing)

    def _open(self, frame: SealedFrame, message: bytes, now: float, *, trailing: bool) -> Incoming1:
        """Open a whole message 1: envelope, then Noise, then what it says."""
        self._request_bytes = len(message)
        self._tag = message[-TAG_BYTES:]
        try:
            body = frame.open(message[SALT_BYTES:])
        except RemoteProtocolError as error:
            raise _Discarded(DiscardReason.OUTER_TAG) from error
        try:
            request = parse_request(body)
        except UnsupportedVersionError as error:
            raise _Discarded(DiscardReason.UNSUPPORTED_VERSION, Hint.UNSUPPORTED_VERSION) from error
        except RemoteProtocolError as error:
            raise _Discarded(DiscardReason.MALFORMED) from error
        ephemeral = request.noise[:DH_BYTES]
        self._seen.expire(now)
        if ephemeral in self._seen:
            raise _Discarded(DiscardReason.REPLAYED)
        try:
            hello = self._open_noise(request)
        except LowOrderKeyError as error:
            raise _Discarded(DiscardReason.LOW_ORDER_KEY) from error
        except NoiseAuthenticationError as error:
            raise _Discarded(DiscardReason.FORGED_STATIC) from error
        except RemoteProtocolError as error:
            raise _Discarded(DiscardReason.MALFORMED) from error
        # Only now, so that a stranger's broken copy cannot keep the true message out.
        self._seen.add(ephemeral, now)
        if trailing:
            raise _Discarded(DiscardReason.TRAILING_DATA)
        self._hello = hello
        self._state = State.DECIDING
        return Incoming1(hello)

    def _open_noise(self, request: Request) -> Hello:
        """Read the Noise message and bind the claimed PeerId to its static key.

        Raises:
            RemoteProtocolError: of what kind tells the reason.
        """
        self._suite = request.suite
        prologue = self._network.prologue(request.suite, self._identity.id)
        noise = IkResponder(request.suite, prologue, self._identity.dh)
        try:
            static = noise.read_static(request.noise)
        except NoiseAuthenticationError as error:
            # The sender knows our PeerId, so it may learn this much (PROTOCOL 4).
            raise _Discarded(DiscardReason.NETWORK_MISMATCH, Hint.NETWORK_MISMATCH) from error
        hello = parse_hello(noise.read_payload())
        if not hello.peer.matches_static(static):
            raise _Discarded(DiscardReason.WRONG_PEER_ID)
        self._noise = noise
        return hello

    def _seal_hint(self, hint: Hint) -> bytes:
        """A hint as bytes, of lengths like those of message 2, but shorter than message 1."""
        assert self._envelope is not None
        overhead = FIELD_BYTES + TAG_BYTES + HINT_BYTES
        least = FIELD_BYTES + MIN_RESPONSE_SEALED
        padding = draw(self._random, least - overhead, min(self._request_bytes - 1, least + MAX_PADDING) - overhead)
        return self._envelope.hint(self._tag).seal(serialize_hint(hint, padding))

    def _discard(self, reason: DiscardReason) -> None:
        """Go silent."""
        self._state = State.DISCARDING
        self.reason = reason
        self._buffer.clear()
        self._noise = None
