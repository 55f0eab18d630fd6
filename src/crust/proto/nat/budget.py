"""How many datagrams and TCP attempts the whole node sends to one host, over all its dials (PROTOCOL 22).

A dial limits itself; this limits what many dials, begun by many lying peers, add up to. Hosts are counted whatever the
port, IPv6 ones by /64: a victim is a machine, not a port.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from crust.proto.nat.candidates import Trust
from crust.proto.nat.limits import TraversalLimits

__all__ = ["DestinationBudget"]

HOUR = 3600.0
_SLOTS = 6  # an hour is counted in tenths of an hour less one: never more than the limit in any hour
_SLOT = HOUR / _SLOTS

Kind = Literal["datagram", "connect"]


@dataclass(slots=True)
class _Account:
    """What went to one host: (slot, datagrams, connects), the newest last."""

    slots: deque[list[int]] = field(default_factory=deque)

    def spent(self, slot: int, column: int) -> int:
        while self.slots and self.slots[0][0] < slot - _SLOTS:
            self.slots.popleft()
        return sum(entry[column] for entry in self.slots)

    def add(self, slot: int, column: int, amount: int) -> None:
        if not self.slots or self.slots[-1][0] != slot:
            self.slots.append([slot, 0, 0])
        self.slots[-1][column] += amount


class DestinationBudget:
    """One for each node, shared by all its dials.

    Args:
        limits: how much goes to one host within an hour.
    """

    def __init__(self, limits: TraversalLimits | None = None) -> None:
        self._limits = limits or TraversalLimits()
        self._accounts: dict[str, _Account] = {}
        self.refused = 0
        """How many sendings were not allowed."""

    def take(self, host: str, kind: Kind, trust: Trust, now: float, amount: int = 1) -> int:
        """Ask to send.

        Args:
            host: numeric destination.
            kind: "datagram" or "connect".
            trust: who vouches for the address; `CLAIMED` is limited hard. An address that has answered is not limited,
                but counted.
            now: the time.
            amount: how many.

        Returns:
            How many may be sent, which are thereby counted.
        """
        slot, column = int(now // _SLOT), 1 if kind == "datagram" else 2
        key = _destination(host)
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= self._limits.hosts:
                self._forget(slot)
            if len(self._accounts) >= self._limits.hosts:
                granted = 0 if trust is Trust.CLAIMED else amount
                self.refused += amount - granted
                return granted
            account = self._accounts[key] = _Account()
        if trust is Trust.ANSWERED:
            granted = amount
        else:
            granted = max(min(amount, self._limit(kind, trust) - account.spent(slot, column)), 0)
        self.refused += amount - granted
        if granted:
            account.add(slot, column, granted)
        return granted

    def _limit(self, kind: Kind, trust: Trust) -> int:
        limits = self._limits
        if trust is Trust.CLAIMED:
            datagrams, connects = limits.unverified_host_datagrams_per_hour, limits.unverified_host_connects_per_hour
        else:
            datagrams, connects = limits.host_datagrams_per_hour, limits.host_connects_per_hour
        return datagrams if kind == "datagram" else connects

    def _forget(self, slot: int) -> None:
        """Drop the accounts whose hour is over."""
        for key in [k for k, account in self._accounts.items() if account.slots[-1][0] < slot - _SLOTS]:
            del self._accounts[key]


def _destination(host: str) -> str:
    plain = host.partition("%")[0]
    if ":" not in plain:
        return plain
    return str(ipaddress.ip_network(f"{plain}/64", strict=False))
