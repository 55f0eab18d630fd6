"""How much the search for a path may send, each limit with its reason. All of them hold whatever a peer says."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TraversalLimits"]


@dataclass(frozen=True, slots=True)
class TraversalLimits:
    """Limits of one dial, and of the whole node towards one destination.

    Attributes:
        candidates: remote candidates of one dial; the rest of a longer list is refused.
        unverified_datagrams: datagrams of one dial to a host that only the peer vouches for (PROTOCOL 22).
        unverified_connects: TCP attempts to such a host (PROTOCOL 22).
        dial_datagrams: datagrams of one dial, birthday probing included.
        dial_connects: TCP attempts of one dial.
        dial_sockets: UDP sockets that one dial may open.
        predicted_ports: how many predicted ports of a peer are tried at once.
        meeting_sockets: sockets that try to obtain one predicted port (both NATs sequential).
        birthday_probes: random ports tried; 1,750 against 256 open ones find one in 99.9 % of cases.
        birthday_rate: such probes per second; 250 find a port within 0.7 s in the median and are 20 kB/s.
        host_datagrams_per_hour: of all dials together to one host (IPv6 /64) that vouched for itself: three birthday
            dials.
        host_connects_per_hour: the same for TCP attempts.
        unverified_host_datagrams_per_hour: of all dials together to one host (IPv6 /64) that only peers name: many
            lying peers make no flood.
        unverified_host_connects_per_hour: the same for TCP attempts.
        hosts: hosts that are counted at once; when there are more, unverified ones are refused.
        dial_seconds: how long probes are sent without any answer.
        stagger: seconds between the first probes to two candidates (RFC 8445 §14.2 allows 5 ms).
    """

    candidates: int = 64
    unverified_datagrams: int = 5
    unverified_connects: int = 2
    dial_datagrams: int = 2000
    dial_connects: int = 256
    dial_sockets: int = 256
    predicted_ports: int = 32
    meeting_sockets: int = 24
    birthday_probes: int = 1750
    birthday_rate: float = 250.0
    host_datagrams_per_hour: int = 6000
    host_connects_per_hour: int = 768
    unverified_host_datagrams_per_hour: int = 20
    unverified_host_connects_per_hour: int = 8
    hosts: int = 8192
    dial_seconds: float = 10.0
    stagger: float = 0.005
