"""STUN transactions (RFC 8489 §6): a client for datagrams, one for streams, and a server without state.

All three are engines: the caller owns the sockets, and one `StunClient` belongs to each, since what is learned is the
outside address of that very socket. On a socket that carries other traffic `StunClient.owns` tells whose a datagram is.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.wire.stun import (
    HEADER_BYTES,
    TRANSACTION_ID_BYTES,
    Address,
    ChangeRequest,
    ErrorCode,
    MessageClass,
    StunError,
    StunMessage,
    looks_like_stun,
    parse_stun,
    serialize_stun,
    stun_frame_bytes,
)

__all__ = [
    "StunClient",
    "StunEvent",
    "StunFailed",
    "StunFailure",
    "StunReply",
    "StunServer",
    "StunServerStream",
    "StunStreamClient",
    "StunSucceeded",
]

# RFC 8489 §6.2.1 and §6.2.2
INITIAL_RTO = 0.5
MAX_TRANSMISSIONS = 7  # Rc
LAST_WAIT = 16  # Rm, in RTOs
STREAM_TIMEOUT = 39.5  # Ti
RTO_CACHE_SECONDS = 600.0

# Ours
MAX_TRANSACTIONS = 1024
MAX_RTO_CACHE = 256
_CHANGE_REQUEST = 0x0003
_RESPONSE_PORT = 0x0027


class StunFailure(enum.Enum):
    """Why a transaction failed."""

    TIMEOUT = "no answer"
    REFUSED = "error response"
    UNREACHABLE = "unreachable"
    NONSENSE = "answer of no use"


@dataclass(frozen=True, slots=True)
class StunSucceeded:
    """A server told the outside address.

    Attributes:
        transaction_id: what `request` returned.
        server: whom we asked.
        source: who answered; another address than `server` only after CHANGE-REQUEST.
        observed: our address as the server saw it.
        message: the whole response (OTHER-ADDRESS, RESPONSE-ORIGIN, SOFTWARE).
        sent_at: when the request first left: the age of the NAT's mapping.
        rtt: seconds; None when the request was sent more than once, as nobody knows which was answered (Karn).
    """

    transaction_id: bytes
    server: Address
    source: Address
    observed: Address
    message: StunMessage
    sent_at: float
    rtt: float | None


@dataclass(frozen=True, slots=True)
class StunFailed:
    """A transaction that told nothing.

    Attributes:
        transaction_id: what `request` returned.
        server: whom we asked.
        reason: the kind of failure.
        code: of the error response, else 0.
        detail: the same in words.
        transmissions: how often the request was sent: one unanswered datagram proves little.
    """

    transaction_id: bytes
    server: Address
    reason: StunFailure
    code: int
    detail: str
    transmissions: int


StunEvent = StunSucceeded | StunFailed


@dataclass(slots=True)
class _Transaction:
    transaction_id: bytes
    server: Address
    request: bytes
    change: ChangeRequest | None
    sent_at: float
    interval: float
    due: float
    transmissions: int = 1


class _Transactions:
    """What both clients share: pending requests, their events, and counters of what was ignored."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._pending: dict[bytes, _Transaction] = {}
        self._events: deque[StunEvent] = deque()
        self.ignored: Counter[str] = Counter()
        """Datagrams that changed nothing, by reason."""

    def next_event(self) -> StunEvent | None:
        """The oldest outcome that was not taken yet."""
        return self._events.popleft() if self._events else None

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        return min((t.due for t in self._pending.values()), default=None)

    def cancel(self, transaction_id: bytes) -> None:
        """Forget a request without an event."""
        self._pending.pop(transaction_id, None)

    def _begin(self, server: Address, now: float, change: ChangeRequest | None, interval: float) -> _Transaction:
        if len(self._pending) >= MAX_TRANSACTIONS:
            raise LocalProtocolError(f"more than {MAX_TRANSACTIONS} STUN requests at once")
        transaction_id = self._random(TRANSACTION_ID_BYTES)
        message = StunMessage(MessageClass.REQUEST, transaction_id, change_request=change)
        transaction = _Transaction(
            transaction_id, server, serialize_stun(message), change, now, interval, due=now + interval
        )
        self._pending[transaction_id] = transaction
        return transaction

    def _fail(self, transaction: _Transaction, reason: StunFailure, detail: str, code: int = 0) -> None:
        self._pending.pop(transaction.transaction_id, None)
        self._events.append(
            StunFailed(transaction.transaction_id, transaction.server, reason, code, detail, transaction.transmissions)
        )

    def _receive(self, data: bytes, source: Address | None, now: float) -> _Transaction | None:
        """Take one message; the transaction that it ended well, if any."""
        try:
            message = parse_stun(data)
        except RemoteProtocolError:
            self.ignored["malformed"] += 1
            return None
        transaction = self._pending.get(message.transaction_id)
        if transaction is None or message.message_class not in (MessageClass.SUCCESS, MessageClass.ERROR):
            self.ignored["not awaited"] += 1
            return None
        source = source or transaction.server
        if source != transaction.server and transaction.change is None:
            self.ignored["from elsewhere"] += 1
            return None
        if message.message_class is MessageClass.ERROR:
            error = message.error or StunError(ErrorCode.SERVER_ERROR)
            self._fail(transaction, StunFailure.REFUSED, f"error {error.code} {error.reason}".rstrip(), error.code)
            return None
        if message.not_understood:  # RFC 8489 §6.3.3
            self._fail(transaction, StunFailure.NONSENSE, f"unknown attribute {message.not_understood[0]:#06x}")
            return None
        observed = message.observed
        if observed is None or not _plausible(observed):
            self._fail(transaction, StunFailure.NONSENSE, f"outside address {observed}")
            return None
        del self._pending[transaction.transaction_id]
        rtt = now - transaction.sent_at if transaction.transmissions == 1 else None
        self._events.append(
            StunSucceeded(
                transaction.transaction_id, transaction.server, source, observed, message, transaction.sent_at, rtt
            )
        )
        return transaction


class StunClient(_Transactions):
    """Binding requests over one UDP socket (RFC 8489 §6.2.1).

    Args:
        random: returns that many random bytes.
        initial_rto: the first wait before a retransmission; doubled each time.
        transmissions: how often a request is sent (Rc).
        last_wait: how long the last one is waited for, in initial RTOs (Rm).

    The defaults of the RFC give up after 39.5 s. Who cannot wait so long sends less often; `transmissions=1` with a
    small `last_wait` is a probe.
    """

    def __init__(
        self,
        random: Callable[[int], bytes],
        *,
        initial_rto: float = INITIAL_RTO,
        transmissions: int = MAX_TRANSMISSIONS,
        last_wait: float = LAST_WAIT,
    ) -> None:
        super().__init__(random)
        self._initial_rto = initial_rto
        self._max_transmissions = transmissions
        self._last_wait = last_wait
        self._out: list[tuple[bytes, Address]] = []
        self._rto: dict[str, tuple[float, float, float]] = {}  # host: srtt, rttvar, when last used

    def request(self, server: Address, now: float, *, change: ChangeRequest | None = None) -> bytes:
        """Ask a server.

        Args:
            server: numeric host and port.
            now: the time.
            change: have the server answer from another of its addresses (RFC 5780): a test of filtering.

        Returns:
            The transaction id, which comes back in the event.

        Raises:
            LocalProtocolError: too many requests are pending.
        """
        transaction = self._begin(server, now, change, self._first_interval(server[0], now))
        if self._max_transmissions == 1:
            transaction.due = now + transaction.interval * self._last_wait
        self._out.append((transaction.request, server))
        return transaction.transaction_id

    def owns(self, data: bytes) -> bool:
        """Whether a datagram answers a request of ours: to be asked on sockets that carry more than STUN."""
        return looks_like_stun(data) and bytes(data[8:HEADER_BYTES]) in self._pending

    def receive_datagrams(self, batch: Iterable[tuple[bytes, Address]], now: float) -> None:
        """Take datagrams with their sources; what is not a fitting answer is counted and ignored."""
        for data, source in batch:
            transaction = self._receive(data, source, now)
            if transaction is not None and transaction.transmissions == 1:
                self._learn_rtt(transaction.server[0], now - transaction.sent_at, now)

    def receive_error(self, server: Address, detail: str) -> None:
        """The socket reported that `server` cannot be reached (ICMP): its requests fail now."""
        for transaction in [t for t in self._pending.values() if t.server == server]:
            self._fail(transaction, StunFailure.UNREACHABLE, detail)

    def handle_timeout(self, now: float) -> None:
        """Send again what is due; give up what was sent often enough."""
        for transaction in [t for t in self._pending.values() if t.due <= now]:
            if transaction.transmissions >= self._max_transmissions:
                self._fail(transaction, StunFailure.TIMEOUT, f"no answer to {transaction.transmissions} requests")
                continue
            transaction.transmissions += 1
            self._out.append((transaction.request, transaction.server))
            first = transaction.interval
            if transaction.transmissions == self._max_transmissions:
                wait = first * self._last_wait
            else:
                wait = first * 2 ** (transaction.transmissions - 1)
            transaction.due = max(transaction.due, now) + wait

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """What is to be sent now, with destinations; each is returned once."""
        out, self._out = self._out, []
        return out

    def _first_interval(self, host: str, now: float) -> float:
        """RFC 8489 §6.2.1: the RTO of the last transaction with this host, for ten minutes."""
        known = self._rto.get(host)
        if known is None or now - known[2] > RTO_CACHE_SECONDS:
            return self._initial_rto
        return max(self._initial_rto, known[0] + 4 * known[1])

    def _learn_rtt(self, host: str, rtt: float, now: float) -> None:
        """RFC 6298 §2, without its floor of one second."""
        known = self._rto.pop(host, None)
        if known is None or now - known[2] > RTO_CACHE_SECONDS:
            srtt, rttvar = rtt, rtt / 2
        else:
            rttvar = 0.75 * known[1] + 0.25 * abs(known[0] - rtt)
            srtt = 0.875 * known[0] + 0.125 * rtt
        if len(self._rto) >= MAX_RTO_CACHE:
            del self._rto[next(iter(self._rto))]
        self._rto[host] = srtt, rttvar, now


class StunStreamClient(_Transactions):
    """Binding requests over one TCP connection (RFC 8489 §6.2.2): no retransmission, one deadline.

    Args:
        server: the other end of the connection.
        random: returns that many random bytes.
        timeout: seconds for an answer.
    """

    def __init__(self, server: Address, random: Callable[[int], bytes], *, timeout: float = STREAM_TIMEOUT) -> None:
        super().__init__(random)
        self._server = server
        self._timeout = timeout
        self._out = bytearray()
        self._in = bytearray()

    def request(self, now: float) -> bytes:
        """Ask; the transaction id comes back in the event.

        Raises:
            LocalProtocolError: too many requests are pending.
        """
        transaction = self._begin(self._server, now, None, self._timeout)
        self._out += transaction.request
        return transaction.transaction_id

    def data_to_send(self) -> bytes:
        """Bytes for the connection; each is returned once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes from the connection. After something that is not STUN every request has failed."""
        self._in += data
        try:
            for frame in _take_frames(self._in):
                self._receive(frame, None, now)
        except RemoteProtocolError as error:
            self._in.clear()
            self._fail_all(StunFailure.NONSENSE, str(error))

    def receive_eof(self, detail: str = "the connection ended") -> None:
        """The connection is gone: every pending request fails."""
        self._fail_all(StunFailure.UNREACHABLE, detail)

    def handle_timeout(self, now: float) -> None:
        """Give up requests whose time is over."""
        for transaction in [t for t in self._pending.values() if t.due <= now]:
            self._fail(transaction, StunFailure.TIMEOUT, f"no answer within {self._timeout:g} s")

    def _fail_all(self, reason: StunFailure, detail: str) -> None:
        for transaction in list(self._pending.values()):
            self._fail(transaction, reason, detail)


@dataclass(frozen=True, slots=True)
class StunReply:
    """What to send, to whom, and from which of the server's sockets (see `StunServer`).

    Over TCP the reply goes back on its connection.
    """

    data: bytes
    destination: Address
    endpoint: tuple[int, int]


class StunServer:
    """Answers binding requests, keeping nothing of them; the caller limits the rate.

    A reply holds what was asked for and nothing else: 32 bytes for IPv4. SOFTWARE is left out, FINGERPRINT answers
    only FINGERPRINT, reasons of errors are numbers.

    Args:
        endpoints: addresses by (index of host, index of port), when there are two of each: then the server also
            answers CHANGE-REQUEST and RESPONSE-PORT and tells its other address (RFC 5780 §6). Otherwise it refuses
            these with 420, as RFC 5780 §7.2 wants.
    """

    def __init__(self, endpoints: Mapping[tuple[int, int], Address] | None = None) -> None:
        self._endpoints = dict(endpoints or {})
        if self._endpoints and set(self._endpoints) != {(0, 0), (0, 1), (1, 0), (1, 1)}:
            raise LocalProtocolError("RFC 5780 takes two hosts with two ports each")
        self.ignored: Counter[str] = Counter()
        """Datagrams that got no reply, by reason."""

    def respond(
        self, data: bytes, source: Address, *, endpoint: tuple[int, int] = (0, 0), stream: bool = False
    ) -> StunReply | None:
        """The reply to one datagram or frame.

        Args:
            data: what came in.
            source: where from; the reply goes to that host and no other.
            endpoint: on which of `endpoints` it came in.
            stream: it came over TCP, where no other address can answer.

        Returns:
            None where nothing is to be sent.
        """
        try:
            request = parse_stun(data)
        except RemoteProtocolError:
            self.ignored["malformed"] += 1
            return None
        if request.message_class is not MessageClass.REQUEST:
            self.ignored["not a request"] += 1
            return None
        if not _plausible(source):
            self.ignored["source"] += 1
            return None
        reply = StunMessage(MessageClass.ERROR, request.transaction_id, fingerprint=request.fingerprint)
        change, port = request.change_request, request.response_port
        refused = request.not_understood
        if stream or not self._endpoints:
            refused += (_CHANGE_REQUEST,) * (change is not None) + (_RESPONSE_PORT,) * (port is not None)
        if refused:
            error = StunError(ErrorCode.UNKNOWN_ATTRIBUTE)
            reply = replace(reply, error=error, unknown_attributes=refused[:16])
            return StunReply(serialize_stun(reply), source, endpoint)
        reply = replace(reply, message_class=MessageClass.SUCCESS, xor_mapped_address=source)
        origin = endpoint
        if self._endpoints:
            if change is not None:
                origin = endpoint[0] ^ change.change_ip, endpoint[1] ^ change.change_port
            other = self._endpoints[endpoint[0] ^ 1, endpoint[1] ^ 1]
            reply = replace(reply, response_origin=self._endpoints[origin], other_address=other)
        return StunReply(serialize_stun(reply), (source[0], port) if port else source, origin)


class StunServerStream:
    """One TCP connection to a `StunServer`.

    Args:
        server: does the answering.
        source: the other end of the connection.
        endpoint: on which of the server's endpoints it was accepted.
    """

    def __init__(self, server: StunServer, source: Address, *, endpoint: tuple[int, int] = (0, 0)) -> None:
        self._server = server
        self._source = source
        self._endpoint = endpoint
        self._in = bytearray()

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes, return the replies.

        Raises:
            RemoteProtocolError: the stream does not carry STUN; close it.
        """
        self._in += data
        replies = (
            self._server.respond(frame, self._source, endpoint=self._endpoint, stream=True)
            for frame in _take_frames(self._in)
        )
        return b"".join(reply.data for reply in replies if reply is not None)


def _take_frames(buffer: bytearray) -> Iterable[bytes]:
    """Remove whole messages from the front of `buffer`."""
    while buffer:
        length = stun_frame_bytes(buffer)
        if length is None or len(buffer) < length:
            return
        frame = bytes(buffer[:length])
        del buffer[:length]
        yield frame


def _plausible(address: Address) -> bool:
    """Whether a packet can have come from there."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    return address[1] != 0 and not (host.is_unspecified or host.is_multicast or str(host) == "255.255.255.255")
