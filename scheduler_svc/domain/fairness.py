"""Whose turn it is: weighted round robin over customers, by stride scheduling.

Every customer in line has a *pass*, and the smallest pass is served next. Serving moves the pass of
a customer on by its stride, which is the smaller the greater its weight; one that joins, also
again, starts one stride after the pass that was served last. So shares follow the weights, leaving
and coming back gains nothing, and with equal weights this is plain round robin. Within a customer
the runs are first come first served, `priority` being an offset on the waiting time.

Customers with the same pass stand in a ring, first come first served. There are few different
passes, however many customers, so a step costs hardly more than its customer's own heap: neither a
step nor a removal looks at all customers. What is taken out stays where it stands until it comes
up, or until that is most of what stands there.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from scheduler_svc.domain.records import SECOND

# The stride of weight 1. Every weight from 1 to 100 divides it, so that passes are exact.
STRIDE = math.lcm(*range(1, 101))
# Entries that may always be stale, so that they are seldom looked through.
_SPARE = 32

# Earliest first: when it came, less its priority; its order of acceptance; its id.
_Entry = tuple[int, int, str]


class Waiting(Protocol):
    """What the order is decided by. A `Run` has it, and what a forecast plays with."""

    run_id: str
    customer_key: str
    create_time: int
    priority: int
    order: int

    @property
    def resumed(self) -> bool:
        """True when it has executed before."""
        ...

    @property
    def place(self) -> int:
        """Its place among the never-started runs of its session."""
        ...


class _Customer:
    __slots__ = ("heap", "live", "name", "stride")

    def __init__(self, name: str, stride: int, heap: list[_Entry], live: int) -> None:
        self.name = name
        self.stride = stride
        self.heap = heap
        # How many of the heap were not taken out. 0: it has left, and is stale where it stands.
        self.live = live


class FairLine:
    """Ready runs of one class, in the order of weighted round robin over their customers."""

    __slots__ = ("_customers", "_passes", "_rings", "_stale", "_virtual_time", "_weights", "owners")

    def __init__(self, weights: Mapping[str, int]) -> None:
        # Run id -> customer, of all that is in line. To others it says how much that is.
        self.owners: dict[str, _Customer] = {}
        self._weights = weights
        self._customers: dict[str, _Customer] = {}
        # Pass -> its customers in the order in which they came; and the passes as a heap.
        self._rings: dict[int, deque[_Customer]] = {}
        self._passes: list[int] = []
        # Customers in the rings that have left.
        self._stale = 0
        # The pass that was served last.
        self._virtual_time = 0

    def __len__(self) -> int:
        return len(self.owners)

    @property
    def customers(self) -> set[str]:
        """Customers with a run in line."""
        return set(self._customers)

    @property
    def customer_count(self) -> int:
        """How many customers have a run in line."""
        return len(self._customers)

    @property
    def oldest(self) -> str:
        """The run that has been in line for longest; empty when there is none."""
        return next(iter(self.owners), "")

    def of_customer(self, name: str) -> int:
        """How many runs of a customer are in line."""
        customer = self._customers.get(name)
        return customer.live if customer is not None else 0

    def copy(self) -> FairLine:
        """A line of its own with the same runs, for playing forward. Costs all that is in line."""
        twin = FairLine(self._weights)
        twin._customers = {
            name: _Customer(name, customer.stride, customer.heap.copy(), customer.live)
            for name, customer in self._customers.items()
        }
        twin.owners = {run_id: twin._customers[c.name] for run_id, c in self.owners.items()}
        twin._rings = {
            place: deque(twin._customers[c.name] for c in ring if c.live)
            for place, ring in self._rings.items()
        }
        twin._passes, twin._virtual_time = self._passes.copy(), self._virtual_time
        return twin

    def push(self, run: Waiting) -> None:
        """Adds a run, which must not be in line. A customer without one joins the round."""
        name, run_id = run.customer_key, run.run_id
        entry = (run.create_time - run.priority * SECOND, run.order, run_id)
        customer = self._customers.get(name)
        if customer is None:
            weight = self._weights.get(name, 1)
            stride = STRIDE if weight == 1 else STRIDE // weight
            customer = self._customers[name] = _Customer(name, stride, [entry], 1)
            self._stand(customer, self._virtual_time)
        else:
            heapq.heappush(customer.heap, entry)
            customer.live += 1
        self.owners[run_id] = customer

    def remove(self, run_id: str) -> None:
        """Takes a run out; harmless when it is not in line."""
        customer = self.owners.pop(run_id, None)
        if customer is None:
            return
        customer.live -= 1
        if not customer.live:
            del self._customers[customer.name]
            self._stale += 1
            if self._stale > 2 * len(self._customers) + _SPARE:
                self._drop_stale()
        else:
            self._tidy(customer)

    def pop(self) -> str:
        """Takes out the run that is next; empty when there is none."""
        passes, rings, owners = self._passes, self._rings, self.owners
        while passes:
            served = passes[0]
            ring = rings[served]
            while ring:
                customer = ring.popleft()
                if not customer.live:
                    self._stale -= 1
                    continue
                # Above `served` when it was passed over before: waiting gains it nothing.
                self._virtual_time = max(self._virtual_time, served)
                run_id = heapq.heappop(customer.heap)[2]
                while owners.get(run_id) is not customer:
                    run_id = heapq.heappop(customer.heap)[2]
                del owners[run_id]
                customer.live -= 1
                if customer.live:
                    self._stand(customer, self._virtual_time)
                else:
                    del self._customers[customer.name]
                return run_id
            del rings[heapq.heappop(passes)]
        return ""

    def pop_for(self, may_take: Callable[[str], bool]) -> str:
        """Takes out the first run that `may_take` lets through; empty when there is none.

        Looks at all that goes before it. Who is passed over keeps pass and place, and is served
        first by whoever may take it; from there it moves on like all others.
        """
        for served in sorted(self._passes):
            for customer in self._rings[served]:
                found = customer.live and next(filter(may_take, self._of(customer)), "")
                if not found:
                    continue
                self._rings[served].remove(customer)
                self._virtual_time = max(self._virtual_time, served)
                del self.owners[found]
                customer.live -= 1
                if customer.live:
                    self._tidy(customer)
                    self._stand(customer, self._virtual_time)
                else:
                    del self._customers[customer.name]
                return found
        return ""

    def in_order(self) -> Iterator[str]:
        """The runs in the order in which `pop` would give them. Changes nothing.

        A step costs the logarithm of the steps so far, however many are in line; the first one also
        the number of different passes. The line must not change while this is used.
        """
        passes, virtual_time = self._passes.copy(), self._virtual_time
        later: dict[int, deque[_Customer]] = {}
        runs: dict[str, Iterator[str]] = {}
        left: dict[str, int] = {}
        while passes:
            served = heapq.heappop(passes)
            virtual_time = max(virtual_time, served)
            for customer in itertools.chain(self._rings.get(served, ()), later.pop(served, ())):
                name = customer.name
                if not customer.live:
                    continue
                if name not in runs:
                    runs[name], left[name] = self._of(customer), customer.live
                yield next(runs[name])
                left[name] -= 1
                if left[name]:
                    place = virtual_time + customer.stride
                    if place not in later:
                        later[place] = deque()
                        if place not in self._rings:
                            heapq.heappush(passes, place)
                    later[place].append(customer)

    def _of(self, customer: _Customer) -> Iterator[str]:
        last = ""
        for entry in _walk(customer.heap):
            # A run that was taken out and came back stands in the heap twice, side by side.
            if entry[2] != last and self.owners.get(entry[2]) is customer:
                last = entry[2]
                yield last

    def _tidy(self, customer: _Customer) -> None:
        if len(customer.heap) > 2 * customer.live + _SPARE:
            customer.heap = list({e for e in customer.heap if self.owners.get(e[2]) is customer})
            heapq.heapify(customer.heap)

    def _stand(self, customer: _Customer, after: int) -> None:
        place = after + customer.stride
        ring = self._rings.get(place)
        if ring is None:
            ring = self._rings[place] = deque()
            heapq.heappush(self._passes, place)
        ring.append(customer)

    def _drop_stale(self) -> None:
        for place, ring in self._rings.items():
            self._rings[place] = deque(customer for customer in ring if customer.live)
        self._stale = 0


def _walk(heap: list[Any]) -> Iterator[Any]:
    """The entries of a heap in order, without changing it."""
    edge: list[tuple[Any, int]] = [(heap[0], 0)] if heap else []
    while edge:
        entry, place = heapq.heappop(edge)
        for below in (2 * place + 1, 2 * place + 2):
            if below < len(heap):
                heapq.heappush(edge, (heap[below], below))
        yield entry
