"""What a session does with numbered frames once they are in order: verify, hold back where that is asked, deliver.

With signing on, every unit is first entered into the verifier, in the same order as the sender's signer saw it. In
strict mode its delivery then waits for the signature, and so does everything behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from crust.errors import BadSignatureError, LocalProtocolError, RemoteProtocolError
from crust.proto.session.inbox import Inbox
from crust.proto.session.multiplexer import StreamMultiplexer
from crust.proto.session.signing import SIGNATURE_DELAY, Verifier
from crust.proto.session.streams import HalfInput
from crust.proto.session.terms import SigningTerms
from crust.wire import frames
from crust.wire.receipt import Kind

__all__ = ["Delivery", "Mark"]

_HELD_FRAMES: Final = 65_536
"""Frames that strict mode holds: the limits of what is unsigned count units, and not every frame is one."""

_DELAY_STEP: Final = 1.5  # smaller changes are not worth a frame

Mark = tuple[Any, int] | None
"""What finds the receipt of a unit: the verifier's segment and the unit's number; None when signing is off."""


class Delivery:
    """Takes numbered frames in order.

    Args:
        inbox: where messages wait for the application.
        streams: where bytes of streams do.
        terms: how the peer signs; None when it does not.
        closed: called when the peer's CLOSE is delivered.
        service: called with each message between the nodes.
    """

    __slots__ = (
        "_closed",
        "_held",
        "_inbox",
        "_opening",
        "_peer_hears",
        "_service",
        "_streams",
        "_terms",
        "_told_delay",
        "_wanted_delay",
        "delay_due",
        "signatures",
        "verifier",
    )

    def __init__(
        self,
        inbox: Inbox,
        streams: StreamMultiplexer,
        terms: SigningTerms | None,
        closed: Callable[[float], None],
        service: Callable[[bytes], None],
    ) -> None:
        self._inbox = inbox
        self._streams = streams
        self._terms = terms
        self._closed = closed
        self._service = service
        self._held: deque[tuple[int, frames.NumberedFrame, bytes, Mark]] | None = None
        self._opening: dict[int, int] = {}  # priorities of streams whose opening is held
        self.verifier: Verifier | None = None
        self.signatures = 0  # verified so far
        self._peer_hears = False
        self._told_delay = self._wanted_delay = SIGNATURE_DELAY
        self.delay_due = False  # the peer should be told how often to sign

    def take(self, frame: frames.NumberedFrame, now: float) -> None:
        """The next frame.

        Raises:
            RemoteProtocolError: the peer broke the protocol, or its signature is not what it should be.
        """
        kind = type(frame)
        if (aside := _ASIDE.get(kind)) is not None:
            aside(self, frame, now)
            return
        terms = self._terms
        message = b""
        mark: Mark = None
        if isinstance(frame, frames.Fragment):
            whole = self._inbox.add_fragment(frame)
            if terms is not None:
                mark = self._enter_fragment(frame, whole is not None, now)
            if whole is None:
                return
            message = whole
        elif terms is not None:
            mark = self._enter(frame, now)
        if kind is frames.Abort:
            self._inbox.abort(frame.priority)  # type: ignore[union-attr]
        elif terms is not None and terms.strict and (self._held or self._unverified()):
            verifier = self.verifier
            if self._held is None:
                self._held = deque()
            elif len(self._held) > _HELD_FRAMES:
                raise BadSignatureError(f"signature withheld: over {_HELD_FRAMES:,} frames wait for it")
            self._held.append((0 if verifier is None else verifier.next_number, frame, message, mark))
            if isinstance(frame, frames.StreamOpen):
                self._opening[frame.stream] = frame.priority
        else:
            _DELIVER[kind](self, frame, message, mark, now)

    def peer_hears(self) -> None:
        """The peer has acknowledged its first frame."""
        self._peer_hears = True
        if self.verifier is not None:
            self.verifier.heard()

    def check_overdue(self, now: float) -> None:
        """Cut off a peer that withholds its signatures (PROTOCOL 19).

        Raises:
            BadSignatureError: it does.
        """
        if self.verifier is not None and (how := self.verifier.overdue(now)) is not None:
            raise BadSignatureError(how)

    # --- signatures ----------------------------------------------------------------------------------------------

    def _on_service(self, frame: frames.Service, now: float) -> None:
        self._service(frame.body)

    def _on_seed(self, frame: frames.Seed, now: float) -> None:
        terms = self._terms
        if terms is None or self.verifier is not None:
            raise RemoteProtocolError("a seed for signatures that were not agreed")
        self.verifier = Verifier(terms.remote, terms.identity.id, terms.hash_id, frame.seed, terms.session_id)
        if not self._peer_hears:
            self.verifier.unheard()

    def _on_signature(self, frame: frames.Signature, now: float) -> None:
        if self.verifier is None:
            raise RemoteProtocolError("a signature that was not agreed")
        self.verifier.receive_signature(frame.body, now)
        self.signatures += 1
        self._pace(now)
        if self._held:
            verified = self.verifier.next_number - self.verifier.unsigned_units
            while self._held and self._held[0][0] <= verified:
                _, held, message, mark = self._held.popleft()
                _DELIVER[type(held)](self, held, message, mark, now)

    def _pace(self, now: float) -> None:
        """Ask the peer to sign less often while all peers together give us too much to check (PROTOCOL 19)."""
        terms = self._terms
        if terms is None or terms.strict:  # what waits for its signature does not wait longer
            return
        self._wanted_delay = terms.pace.verified(now)
        if not self._told_delay / _DELAY_STEP < self._wanted_delay < self._told_delay * _DELAY_STEP:
            self.delay_due = True

    def take_delay(self) -> int:
        """The milliseconds that the peer is told now."""
        self.delay_due = False
        self._told_delay = self._wanted_delay
        return round(self._told_delay * 1000)

    def repeat_delay(self) -> None:
        """Another path carries what we say: the last word may be lost."""
        self.delay_due = self.delay_due or self._told_delay > SIGNATURE_DELAY

    def _unverified(self) -> bool:
        return self.verifier is not None and self.verifier.unsigned_units > 0

    def _enter(self, frame: frames.NumberedFrame, now: float) -> Mark:
        """Enter a frame's units into the verifier; returns the mark of the first."""
        verifier = self.verifier
        if verifier is None:
            raise RemoteProtocolError("the peer's seed does not come first")
        if isinstance(frame, frames.Messages):
            first = verifier.add_batch(Kind.MESSAGE, frame.priority, frame.data, now)
            return verifier.segment, first
        if isinstance(frame, frames.StreamData):
            priority = self._opening.get(frame.stream)
            if priority is None:
                priority = self._streams.priority_of(frame.stream)
            verifier.add_batch(Kind.STREAM_CHUNK, priority, (frame.data,), now)
        elif isinstance(frame, frames.Abort):
            verifier.add_tombstone(frame.priority, now)
        return None

    def _enter_fragment(self, frame: frames.Fragment, last: bool, now: float) -> Mark:
        verifier = self.verifier
        if verifier is None:
            raise RemoteProtocolError("the peer's seed does not come first")
        priority = frame.priority
        try:
            if not verifier.is_under_way(priority):
                if last:
                    return verifier.segment, verifier.add_batch(Kind.MESSAGE, priority, (frame.data,), now)
                verifier.begin(priority, frame.total)
            verifier.update(priority, frame.data, now)
            if not last:
                return None
            number = verifier.finish(priority, now)
        except LocalProtocolError as error:
            raise RemoteProtocolError(str(error)) from error
        return verifier.segment, number

    # --- delivery ------------------------------------------------------------------------------------------------

    def _messages(self, frame: frames.Messages, message: bytes, mark: Mark, now: float) -> None:
        self._inbox.add_messages(frame.priority, frame.data, mark)

    def _large(self, frame: frames.Fragment, message: bytes, mark: Mark, now: float) -> None:
        self._inbox.deliver(frame.priority, [message], len(message), mark)

    def _stream_open(self, frame: frames.StreamOpen, message: bytes, mark: Mark, now: float) -> None:
        self._opening.pop(frame.stream, None)
        self._streams.opened_by_peer(frame)

    def _stream_data(self, frame: frames.StreamData, message: bytes, mark: Mark, now: float) -> None:
        self._streams.received(frame)

    def _stream_fin(self, frame: frames.StreamFin, message: bytes, mark: Mark, now: float) -> None:
        self._streams.ended_by_peer(frame.stream, HalfInput.FIN)

    def _stream_reset(self, frame: frames.StreamReset, message: bytes, mark: Mark, now: float) -> None:
        self._streams.ended_by_peer(frame.stream, HalfInput.RESET)

    def _stream_stop(self, frame: frames.StreamStop, message: bytes, mark: Mark, now: float) -> None:
        self._streams.stopped_by_peer(frame)

    def _close(self, frame: frames.Close, message: bytes, mark: Mark, now: float) -> None:
        if self._unverified():
            raise BadSignatureError("closed without signing all that was sent")
        self._closed(now)


_ASIDE: Final[dict[type, Callable[[Delivery, Any, float], None]]] = {
    frames.Signature: Delivery._on_signature,
    frames.Seed: Delivery._on_seed,
    frames.Service: Delivery._on_service,
}

_DELIVER: Final[dict[type, Callable[[Delivery, Any, bytes, Mark, float], None]]] = {
    frames.Messages: Delivery._messages,
    frames.Fragment: Delivery._large,
    frames.StreamOpen: Delivery._stream_open,
    frames.StreamData: Delivery._stream_data,
    frames.StreamFin: Delivery._stream_fin,
    frames.StreamReset: Delivery._stream_reset,
    frames.StreamStop: Delivery._stream_stop,
    frames.Close: Delivery._close,
}
