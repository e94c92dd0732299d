"""Whose turn it is: weighted round robin over customers, by stride scheduling.

Every customer in line has a *pass*, and the smallest pass is served next. Serving moves the pass of
a customer on by its stride, which is the smaller the greater its weight; one that joins, also
again, starts one stride after the pass that was served last. So shares follow the weights, leaving
and coming back gains nothing, and with equal weights this is plain round robin. Within a customer
the runs are first come first served, `priority` being an offset on the waiting time.

Everything costs the logarithm of what is in line: neither a step nor a removal looks at all
customers. What is taken out stays in the heaps until it comes up, or until it is most of them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from typing import Any

from scheduler_svc.domain.records import SECOND, Run

# The stride of weight 1. Every weight from 1 to 100 divides it, so that passes are exact.
STRIDE = math.lcm(*range(1, 101))
# Entries of a heap that may always be stale, so that they are seldom looked through.
_SPARE = 32

# Earliest first: when it came, less its priority; its order of acceptance; its id.
_Entry = tuple[int, int, str]


class _Customer:
    __slots__ = ("heap", "live", "place", "stride")

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.heap: list[_Entry] = []
        # How many of the heap were not taken out.
        self.live = 0
        # Pass and number of its entry in the line; an entry with another number is stale.
        self.place = (0, 0)


class FairLine:
    """Ready runs of one class, in the order of weighted round robin over their customers."""

    __slots__ = ("_arrivals", "_customers", "_line", "_owners", "_virtual_time", "_weights")

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = weights
        self._customers: dict[str, _Customer] = {}
        # Run id -> customer. What is not here any more is stale.
        self._owners: dict[str, str] = {}
        # (pass, number, customer). The number orders equal passes: first come first served.
        self._line: list[tuple[int, int, str]] = []
        self._arrivals = 0
        # The pass that was served last.
        self._virtual_time = 0

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def customers(self) -> set[str]:
        """Customers with a run in line."""
        return set(self._customers)

    @property
    def customer_count(self) -> int:
        """How many customers have a run in line."""
        return len(self._customers)

    def of_customer(self, name: str) -> int:
        """How many runs of a customer are in line."""
        customer = self._customers.get(name)
        return customer.live if customer is not None else 0

    def copy(self) -> FairLine:
        """A line of its own with the same runs, for playing forward. Costs all that is in line."""
        twin = FairLine(self._weights)
        for name, customer in self._customers.items():
            copied = twin._customers[name] = _Customer(customer.stride)
            copied.heap, copied.live = customer.heap.copy(), customer.live
            copied.place = customer.place
        twin._owners, twin._line = self._owners.copy(), self._line.copy()
        twin._arrivals, twin._virtual_time = self._arrivals, self._virtual_time
        return twin

    def push(self, run: Run) -> None:
        """Adds a run, which must not be in line. A customer without one joins the round."""
        name = run.customer_key
        customer = self._customers.get(name)
        if customer is None:
            customer = _Customer(STRIDE // self._weights.get(name, 1))
            self._customers[name] = customer
            self._stand(name, customer, self._virtual_time)
        heapq.heappush(
            customer.heap, (run.create_time - run.priority * SECOND, run.order, run.run_id)
        )
        customer.live += 1
        self._owners[run.run_id] = name

    def remove(self, run_id: str) -> None:
        """Takes a run out; harmless when it is not in line."""
        name = self._owners.pop(run_id, None)
        if name is None:
            return
        customer = self._customers[name]
        customer.live -= 1
        if not customer.live:
            self._leave(name)
        elif len(customer.heap) > 2 * customer.live + _SPARE:
            customer.heap = list({e for e in customer.heap if self._owners.get(e[2]) == name})
            heapq.heapify(customer.heap)

    def pop(self) -> str:
        """Takes out the run that is next; empty when there is none."""
        while self._line:
            served, number, name = heapq.heappop(self._line)
            customer = self._customers.get(name)
            if customer is None or customer.place != (served, number):
                continue
            self._virtual_time = served
            while True:
                run_id = heapq.heappop(customer.heap)[2]
                if self._owners.get(run_id) == name:
                    break
            del self._owners[run_id]
            customer.live -= 1
            if customer.live:
                self._stand(name, customer, served)
            else:
                self._leave(name)
            return run_id
        return ""

    def in_order(self) -> Iterator[str]:
        """The runs in the order in which `pop` would give them. Changes nothing.

        Each step costs the logarithm of the steps so far, however many are in line. The line must
        not change while this is used.
        """
        line = _Walk(self._line)
        heaps: dict[str, Iterator[str]] = {}
        left: dict[str, int] = {}
        number = self._arrivals
        while True:
            place = line.pop()
            if place is None:
                return
            served, stood, name = place
            customer = self._customers.get(name)
            if customer is None:
                continue
            if name not in heaps:
                if customer.place != (served, stood):
                    continue
                heaps[name], left[name] = self._of(name, customer), customer.live
            elif stood <= self._arrivals:
                continue  # a stale entry of a customer that was served already
            yield next(heaps[name])
            left[name] -= 1
            if left[name]:
                number += 1
                line.push((served + customer.stride, number, name))

    def _of(self, name: str, customer: _Customer) -> Iterator[str]:
        walk, last = _Walk(customer.heap), ""
        while True:
            entry = walk.pop()
            if entry is None:  # pragma: no cover - `live` counts what is left
                return
            # A run that was taken out and came back stands in the heap twice, side by side.
            if entry[2] != last and self._owners.get(entry[2]) == name:
                last = entry[2]
                yield last

    def _stand(self, name: str, customer: _Customer, after: int) -> None:
        self._arrivals += 1
        customer.place = (after + customer.stride, self._arrivals)
        heapq.heappush(self._line, (*customer.place, name))

    def _leave(self, name: str) -> None:
        del self._customers[name]
        if len(self._line) > 2 * len(self._customers) + _SPARE:
            self._line = [(*c.place, name) for name, c in self._customers.items()]
            heapq.heapify(self._line)


class _Walk:
    """Takes entries off a heap in order, and takes further ones in, without changing the heap."""

    __slots__ = ("_edge", "_heap")

    def __init__(self, heap: list[Any]) -> None:
        self._heap = heap
        # What may come next: entries of the heap with their place in it, and further ones (-1).
        self._edge: list[tuple[Any, int]] = [(heap[0], 0)] if heap else []

    def push(self, entry: Any) -> None:
        heapq.heappush(self._edge, (entry, -1))

    def pop(self) -> Any:
        if not self._edge:
            return None
        entry, place = heapq.heappop(self._edge)
        if place >= 0:
            for below in (2 * place + 1, 2 * place + 2):
                if below < len(self._heap):
                    heapq.heappush(self._edge, (self._heap[below], below))
        return entry
