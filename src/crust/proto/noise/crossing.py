"""The handshake over a stream that both sides have opened at the same time (RFC 9293 §3.5): each sends message 1.

Nobody waits for the other: who finds a message 1 where message 2 was expected knows that the two have crossed. Then the
larger PeerId stays the initiator and passes over the other's message 1; the smaller one becomes the responder and
answers it. Where the stream is an ordinary one, the side that accepted it answers as ever, and nothing crosses.
"""

from __future__ import annotations

from dataclasses import dataclass

from crust.crypto.keys import Identity, PeerId
from crust.proto.noise.initiator import InitiatorHandshake
from crust.proto.noise.outcome import FailureReason, HandshakeFailed, HandshakeResult, Incoming1, Network, Random
from crust.proto.noise.replay import EphemeralCache
from crust.proto.noise.responder import ResponderHandshake
from crust.wire.handshake import Hello

__all__ = ["Crossed", "CrossingHandshake"]


@dataclass(frozen=True, slots=True)
class Crossed:
    """The peer has begun as well, and is the initiator.

    Attributes:
        responder: which is to accept or to refuse.
        first: the peer's message 1.
    """

    responder: ResponderHandshake
    first: Incoming1


class CrossingHandshake:
    """The side that has connected, where the peer may have connected too.

    Args:
        identity: ours.
        remote: whom we dial.
        network: ours.
        hello: what we say of ourselves.
        random: gives that many random bytes.
        seen: shared by all handshakes of the identity.
    """

    def __init__(
        self,
        identity: Identity,
        remote: PeerId,
        network: Network,
        hello: Hello,
        *,
        random: Random,
        seen: EphemeralCache,
    ) -> None:
        self._remote = remote
        self._larger = identity.id > remote
        self._initiator = InitiatorHandshake(identity, remote, network, hello, random=random)
        self._responder = ResponderHandshake(identity, network, random=random, seen=seen)
        self._failure: HandshakeFailed | None = None
        self._crossed = False

    def data_to_send(self) -> bytes:
        """Message 1, once."""
        return self._initiator.data_to_send()

    def receive_data(self, data: bytes, now: float) -> HandshakeResult | Crossed | None:
        """Take bytes from the peer.

        Args:
            data: what came.
            now: the time.

        Returns:
            Keys, if the peer has answered; `Crossed`, if it has begun and is to be answered; None while more is needed.

        Raises:
            HandshakeFailed: what answers refuses, or is not the peer.
        """
        if self._crossed:
            return self._initiator.receive_data(data)
        if self._failure is None:
            try:
                result = self._initiator.receive_data(data)
            except HandshakeFailed as failure:
                if failure.reason is not FailureReason.WRONG_KEY_OR_NOT_CRUST:
                    raise  # a sealed hint, or a banner: no message 1 looks like that
                self._failure = failure
            else:
                if result is not None:
                    return result
        while data and (part := data[: self._responder.missing]):
            data = data[len(part) :]
            first = self._responder.receive_data(part, now)
            if first is not None:
                return self._cross(first, data)
        if self._failure is not None and self._responder.discarding:
            raise self._failure
        return None

    def receive_eof(self) -> HandshakeFailed:
        """What an end of the stream at this point means. The caller raises it."""
        return self._initiator.receive_eof()

    def _cross(self, first: Incoming1, rest: bytes) -> HandshakeResult | Crossed | None:
        """Both have begun: the larger PeerId goes on."""
        if first.hello.peer != self._remote:
            raise HandshakeFailed(FailureReason.WRONG_KEY_OR_NOT_CRUST, "another peer has connected to this node")
        if not self._larger:
            return Crossed(self._responder, first)
        self._crossed = True
        self._initiator.rewind()
        return self._initiator.receive_data(rest) if rest else None
