"""TCP hole punching by simultaneous open (RFC 9293 §3.5): which connect leaves from which port to which address, when.

Both sides connect to each other from the port that was measured, beside their listeners. A SYN that finds the far NAT
closed is dropped, or answered with RST. Dropped: the next SYN goes out long before the kernel's second one (1 s later).
RST: the attempt is repeated at once and at uneven intervals, until two SYNs cross between the NATs; they do when they
leave within one way's time of each other. So it helps to begin together: the side that answers an offer holds its first
SYN for as long as its answer travels (`PunchOptions.hold`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import RemoteCandidate, Trust
from crust.proto.nat.draw import uniform
from crust.proto.nat.punch import Connect, Due, Puncher, PunchOptions, SocketsWanted
from crust.proto.nat.strategy import Approach, Plan
from crust.wire.stun import Address

__all__ = ["TcpPuncher"]

FIRST_TIMEOUT = 0.12  # or three round trips: an attempt that is under way must not be cut off
LAST_TIMEOUT = 2.0
# After RST. Our SYN keeps our own NAT open until the RST comes back, which is one round trip: when the next one leaves
# at once, it is open nearly all the time, and any SYN of the other side gets in. That one side does so is enough, so
# that it may go on more slowly after a while, as long as the other begins quickly.
QUICK_RETRIES = 15
QUICK_RETRY = (0.002, 0.015)
SLOW_RETRY = (0.08, 0.16)
UNREACHABLE_RETRY = 1.0
UNVERIFIED_TIMEOUT = 3.0  # two attempts only: let the kernel repeat its SYN
ATTEMPTS = 80  # to one address
PREDICTED_ATTEMPTS = 8  # to each of them
MEETING_SOCKETS = 24
MEETING_TIMEOUT = 1.0
MEETING_ROUND = 0.6
MEETING_SPACING = 0.0005
AFTER_MEETING = 0.3  # ordinary attempts of ours would use up a port in the midst of a row, perhaps the very one


@dataclass(slots=True)
class _Flow:
    """One socket and one address: at most one attempt at a time."""

    socket: int
    remote: RemoteCandidate
    attempts_left: int
    timeout: float
    refusals: int = 0
    running: bool = False


@dataclass(order=True, slots=True)
class _Start(Due):
    flow: _Flow = field(compare=False)


class TcpPuncher(Puncher[_Start]):
    """The connects of one dial.

    Args:
        plan: for these two NATs.
        random: returns that many random bytes.
        budget: of the whole node.
        now: the time.
        options: of the dial.
    """

    def __init__(
        self,
        plan: Plan,
        random: Callable[[int], bytes],
        budget: DestinationBudget,
        now: float,
        options: PunchOptions | None = None,
    ) -> None:
        options = options or PunchOptions()
        super().__init__("tcp", plan, random, budget, now, options)
        self._first_timeout = max(FIRST_TIMEOUT, 3 * options.rtt)
        self._go_at = now + options.hold
        self._sockets = 1
        self._flows: dict[tuple[int, Address], _Flow] = {}
        self._meeting_at = now

    # -- verbs ---------------------------------------------------------------------------------------------------

    def add(self, remotes: Iterable[RemoteCandidate], now: float) -> None:
        """Take the peer's candidates, also while connecting (they trickle)."""
        ordinary = []
        for remote in remotes:
            if remote.candidate.transport != "tcp" or self.ended is not None:
                continue
            if remote.candidate.kind != "predicted":
                ordinary.append(remote)
            elif remote not in self._predicted and len(self._predicted) < self._limits.candidates:
                self._predicted.append(remote)
                self._begin_predicted(remote, now)
        self.checks.add(ordinary)

    def refused(self, socket: int, target: Address, now: float) -> None:
        """RST: the far NAT or host has nothing there yet; or a connection was reset before it was `established`."""
        flow = self._finished(socket, target)
        if flow is not None:
            flow.refusals += 1
            least, most = QUICK_RETRY if flow.refusals <= QUICK_RETRIES else SLOW_RETRY
            self._again(flow, now + least + (most - least) * uniform(self._random))

    def timed_out(self, socket: int, target: Address, now: float) -> None:
        """Silence for as long as the `Connect` said."""
        flow = self._finished(socket, target)
        if flow is not None:
            flow.timeout = min(flow.timeout * 2, LAST_TIMEOUT)
            self._again(flow, now)

    def unreachable(self, socket: int, target: Address, now: float, detail: str) -> None:
        """No route, or forbidden by a firewall: tried again, but slowly."""
        flow = self._finished(socket, target)
        if flow is not None:
            if ("tcp", target) in self.checks:
                self.checks.failed(("tcp", target), now, detail)
            self._again(flow, now + UNREACHABLE_RETRY)

    def given_up(self, socket: int, target: Address, now: float, detail: str) -> None:
        """Not to be tried again: what answers there is not the peer."""
        flow = self._finished(socket, target)
        if flow is not None:
            flow.attempts_left = 0
            if ("tcp", target) in self.checks:
                self.checks.failed(("tcp", target), now, detail)

    def is_over(self, target: Address) -> bool:
        """Whether nothing more will be attempted towards an address, and nothing is under way."""
        if self.ended is not None:
            return True
        flows = [flow for (_, address), flow in self._flows.items() if address == target]
        return bool(flows) and not any(flow.running or flow.attempts_left for flow in flows)

    # -- the pump ------------------------------------------------------------------------------------------------

    def connects_to_start(self, now: float) -> list[Connect]:
        """What is to be attempted now; each is returned once. Events are to be taken first (`SocketsWanted`)."""
        if self._has_ended(now):
            return []
        for check in self.checks.start(now):
            claimed = check.remote.trust is Trust.CLAIMED
            attempts = self._limits.unverified_connects if claimed else ATTEMPTS
            timeout = UNVERIFIED_TIMEOUT if claimed else self._first_timeout
            start = now if check.remote.near else max(now, self._go_at)
            if self._plan.approach is Approach.MEET and not check.remote.near:
                start += AFTER_MEETING
            self._begin(_Flow(0, check.remote, attempts, timeout), start)
        connects = []
        while self._queue and self._queue[0].due <= now:
            flow = heapq.heappop(self._queue).flow
            if flow.running or not flow.attempts_left:
                continue
            if not self.allowance.take(flow.remote.address, flow.remote.trust, now):
                flow.attempts_left = 0
                continue
            flow.running = True
            flow.attempts_left -= 1
            connects.append(Connect(flow.socket, flow.remote.address, flow.timeout))
        return connects

    # -- flows ---------------------------------------------------------------------------------------------------

    def _begin_predicted(self, remote: RemoteCandidate, now: float) -> None:
        if self._plan.approach is Approach.PREDICT_THEIRS:
            if len(self._predicted) <= self._limits.predicted_ports:
                self._begin(_Flow(0, remote, PREDICTED_ATTEMPTS, self._first_timeout), max(now, self._go_at))
        elif self._plan.approach is Approach.MEET and self._sockets + MEETING_SOCKETS <= self._limits.dial_sockets:
            first = self._sockets
            self._sockets += MEETING_SOCKETS
            self._events.append(SocketsWanted(first, self._sockets - 1))
            start = max(now, self._go_at, self._meeting_at)
            self._meeting_at = start + MEETING_ROUND
            for index in range(MEETING_SOCKETS):
                # One attempt only: a second one might get another port.
                self._begin(_Flow(first + index, remote, 1, MEETING_TIMEOUT), start + index * MEETING_SPACING)

    def _begin(self, flow: _Flow, when: float) -> None:
        key = (flow.socket, flow.remote.address)
        if key not in self._flows:
            self._flows[key] = flow
            self._again(flow, when)

    def _again(self, flow: _Flow, when: float) -> None:
        if self.ended is None and flow.attempts_left > 0:
            heapq.heappush(self._queue, _Start(when, next(self._order), flow))
        elif self.ended is None and ("tcp", flow.remote.address) in self.checks:
            self.checks.failed(("tcp", flow.remote.address), when, "no answer")

    def _finished(self, socket: int, target: Address) -> _Flow | None:
        flow = self._flows.get((socket, target))
        if flow is None or not flow.running:
            return None
        flow.running = False
        return flow
