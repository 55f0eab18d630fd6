"""The dialling side of the handshake over a byte stream."""

from __future__ import annotations

from typing import Final

from crust.crypto.aead import TAG_BYTES, Suite, best_suite
from crust.crypto.dh import DH_BYTES, DhKey
from crust.crypto.keys import Identity, PeerId
from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.noise import banner
from crust.proto.noise.envelope import FIELD_BYTES, SALT_BYTES, Envelope, SealedFrame, outer_secret, response_frame
from crust.proto.noise.ik import IkInitiator
from crust.proto.noise.outcome import (
    MAX_PADDING,
    MIN_HINT_SEALED,
    MIN_RESPONSE_SEALED,
    FailureReason,
    HandshakeFailed,
    HandshakeResult,
    Network,
    Random,
    State,
    check_own_hello,
    draw,
    finish,
)
from crust.wire.handshake import (
    Hello,
    Hint,
    Request,
    parse_hello,
    parse_hint,
    parse_response,
    serialize_hello,
    serialize_request,
)

__all__ = ["InitiatorHandshake"]

_HINT_FAILURES: Final = {
    Hint.NETWORK_MISMATCH: FailureReason.NETWORK_MISMATCH,
    Hint.REFUSED: FailureReason.REFUSED,
    Hint.SIGNING_MISMATCH: FailureReason.SIGNING_MISMATCH,
    Hint.UNSUPPORTED_VERSION: FailureReason.UNSUPPORTED_VERSION,
    Hint.BUSY: FailureReason.BUSY,
}


class InitiatorHandshake:
    """The dialling side.

    Args:
        identity: ours.
        remote: whom we dial.
        network: ours.
        hello: what we say of ourselves.
        random: gives that many random bytes.
        suite: the cipher; what is faster here when left out.

    Raises:
        LocalProtocolError: the Hello has another PeerId than the identity.
    """

    def __init__(
        self,
        identity: Identity,
        remote: PeerId,
        network: Network,
        hello: Hello,
        *,
        random: Random,
        suite: Suite | None = None,
    ) -> None:
        check_own_hello(identity, hello)
        self._remote = remote
        self._hello = hello
        self._suite = suite or best_suite()
        self._state = State.WAITING
        self._failure: HandshakeFailed | None = None
        self._buffer = bytearray()
        prologue = network.prologue(self._suite, remote)
        self._noise = IkInitiator(self._suite, prologue, identity.dh, DhKey(random(DH_BYTES)), remote.x25519)
        envelope = Envelope(outer_secret(remote), random(SALT_BYTES))
        message = self._noise.write_message_1(serialize_hello(hello))
        body = serialize_request(Request(self._suite, message), draw(random, 0, MAX_PADDING))
        self._to_send = envelope.request().seal(body)
        self._request_bytes = len(self._to_send)
        # What may come back, each with the sizes that it can have: nothing is longer than message 1.
        self._answers = response_frame(self._suite, self._noise.chaining_key), envelope.hint(self._to_send[-TAG_BYTES:])
        self._response: SealedFrame | None = self._answers[0]
        self._hint: SealedFrame | None = self._answers[1]

    def data_to_send(self) -> bytes:
        """The first flight, once."""
        data, self._to_send = self._to_send, b""
        return data

    def receive_data(self, data: bytes) -> HandshakeResult | None:
        """Take bytes from the peer.

        Returns:
            None while more is needed.

        Raises:
            HandshakeFailed: what answers refuses, or is not the peer. It raises the same again from then on.
            LocalProtocolError: the handshake is finished.
        """
        if self._failure is not None:
            raise self._failure
        if self._state is not State.WAITING:
            raise LocalProtocolError("the handshake is finished")
        self._buffer += data
        try:
            recognised = banner.recognise(self._buffer)
            if recognised is not None:
                raise HandshakeFailed(*recognised)
            result = self._try_response()
            if result is None:
                self._try_hint()
                if self._response is None and self._hint is None and not banner.may_become_banner(self._buffer):
                    raise HandshakeFailed(FailureReason.WRONG_KEY_OR_NOT_CRUST)
        except HandshakeFailed as failure:
            self._state, self._failure = State.FAILED, failure
            raise
        if result is not None:
            self._state = State.DONE
            self._buffer.clear()
        return result

    def rewind(self) -> None:
        """Forget what came, and wait anew: it was no answer, but the peer's own message 1 (`CrossingHandshake`).

        Raises:
            LocalProtocolError: the handshake is finished.
        """
        if self._state is State.DONE:
            raise LocalProtocolError("the handshake is finished")
        self._state, self._failure = State.WAITING, None
        self._response, self._hint = self._answers
        self._buffer.clear()

    def receive_eof(self) -> HandshakeFailed:
        """What an end of the stream at this point means. The caller raises it."""
        if self._failure is None:
            silent = FailureReason.SILENT if not self._buffer else FailureReason.WRONG_KEY_OR_NOT_CRUST
            self._state, self._failure = State.FAILED, HandshakeFailed(silent)
        return self._failure

    def _whole_frame(self, frame: SealedFrame, least: int, total: int) -> bytes | None:
        """The bytes of a frame as soon as all are there.

        Args:
            frame: which knows the mask.
            least: how short its sealed body can be.
            total: how long the whole frame can be.

        Raises:
            RemoteProtocolError: its length is impossible.
        """
        if len(self._buffer) < FIELD_BYTES:
            return None
        end = FIELD_BYTES + frame.sealed_bytes(self._buffer)
        if not FIELD_BYTES + least <= end <= total:
            raise RemoteProtocolError("an impossible length")
        return bytes(self._buffer[:end]) if len(self._buffer) >= end else None

    def _try_response(self) -> HandshakeResult | None:
        """Read the buffer as message 2; once this fails it is none."""
        if self._response is None:
            return None
        try:
            frame = self._whole_frame(self._response, MIN_RESPONSE_SEALED, self._request_bytes)
            if frame is None:
                return None
            body = self._response.open(frame)
        except RemoteProtocolError:
            self._response = None
            return None
        # From here on the peer holds the static key that was dialled; what is wrong now is a broken peer.
        try:
            hello = parse_hello(self._noise.read_message_2(parse_response(body)))
        except RemoteProtocolError as error:
            raise HandshakeFailed(FailureReason.WRONG_KEY_OR_NOT_CRUST, f"a broken answer: {error}") from error
        if hello.peer != self._remote:
            raise HandshakeFailed(FailureReason.WRONG_KEY_OR_NOT_CRUST, "the peer answers under another PeerId")
        if not self._hello.signing.agrees_with(hello.signing):
            raise HandshakeFailed(FailureReason.SIGNING_MISMATCH)
        return finish(self._noise, self._suite, hello, initiator=True, rest=bytes(self._buffer[len(frame) :]))

    def _try_hint(self) -> None:
        """Read the buffer as a hint; once this fails it is none."""
        if self._hint is None:
            return
        try:
            frame = self._whole_frame(self._hint, MIN_HINT_SEALED, self._request_bytes - 1)
            if frame is None:
                return
            hint = parse_hint(self._hint.open(frame))
        except RemoteProtocolError:
            self._hint = None
            return
        raise HandshakeFailed(_HINT_FAILURES[hint])
