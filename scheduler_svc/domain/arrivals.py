"""Who arrives when in a forecast.

Arrivals come one after the other, so that a million of them need no list. Customers are numbered
from 0 in the order in which they first arrive.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping

import msgspec


class Draw(enum.IntEnum):
    """What a random number is for. Each purpose has numbers of its own."""

    GAP = 1
    TURN = 2
    CLOSING_TURN = 3
    CHILD = 4


Chance = Callable[[Draw, int], float]
"""A number in [0, 1) for a purpose and a count; always the same one for the same two."""


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One message, or several of one session at once."""

    at: int
    customer: int
    customer_key: str
    # Empty when the session never has two unfinished runs: then it needs no lane.
    session_key: str
    # How many messages the session gets now, and by how much their orders differ. 0: the next one.
    messages: int = 1
    order: int = 0
    stride: int = 0
    priority: int = 0
    # 0: as all others.
    turn_time: int = 0


class Burst(msgspec.Struct, frozen=True):
    """All customers at time 0, each with the same number of messages in one session."""

    customers: int
    messages: int = 1

    @property
    def ordered(self) -> int:
        """How many places in the order of acceptance the arrivals name themselves."""
        return self.customers * self.messages

    @property
    def weights(self) -> Mapping[str, int]:
        """Shares of customers; those not named have 1."""
        return {}

    def play(self, chance: Chance) -> Iterator[Arrival]:
        """The arrivals in order: the first message of everybody, then the second, …"""
        several = self.messages > 1
        for i in range(self.customers):
            key = str(i + 1)
            yield Arrival(0, i, key, key if several else "", self.messages, i + 1, self.customers)


class Rate(msgspec.Struct, frozen=True):
    """One message from each of many customers, over `duration` microseconds."""

    per_second: float
    duration: int
    # Evenly spaced, the first one at 0. Otherwise a Poisson process.
    even: bool = False

    ordered = 0

    @property
    def weights(self) -> Mapping[str, int]:
        """Shares of customers; those not named have 1."""
        return {}

    def play(self, chance: Chance) -> Iterator[Arrival]:
        """The arrivals in order."""
        gap, number, at = 1_000_000 / self.per_second, 0, 0.0
        if not self.even:
            at = -gap * math.log(1.0 - chance(Draw.GAP, 0))
        while at < self.duration:
            yield Arrival(int(at), number, str(number + 1), "")
            number += 1
            # Multiplied rather than added up, so that even gaps do not drift.
            at = gap * number if self.even else at - gap * math.log(1.0 - chance(Draw.GAP, number))


class Message(msgspec.Struct, frozen=True):
    """One message of a list."""

    at: int
    customer_key: str
    session_key: str
    weight: int = 1
    priority: int = 0
    turn_time: int = 0


class Listed(msgspec.Struct, frozen=True):
    """Messages given one by one, in any order; those of the same time arrive in the given one."""

    messages: list[Message]

    ordered = 0

    @property
    def weights(self) -> Mapping[str, int]:
        """Shares of customers; the first arrival of a customer sets it."""
        found: dict[str, int] = {}
        for message in self._in_order():
            found.setdefault(message.customer_key, message.weight)
        return found

    def keys(self) -> list[str]:
        """Keys of the customers by number."""
        return list(dict.fromkeys(message.customer_key for message in self._in_order()))

    def play(self, chance: Chance) -> Iterator[Arrival]:
        """The arrivals in order."""
        numbers = {key: number for number, key in enumerate(self.keys())}
        for m in self._in_order():
            yield Arrival(
                m.at,
                numbers[m.customer_key],
                m.customer_key,
                m.session_key,
                priority=m.priority,
                turn_time=m.turn_time,
            )

    def _in_order(self) -> list[Message]:
        return sorted(self.messages, key=lambda message: message.at)


Arrivals = Burst | Rate | Listed
