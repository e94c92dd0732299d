"""Lets callers in: finds out who they are, how often they called, and remembers it for the call.

Both doors, gRPC and HTTP, admit a call before anything else is done with it; what is done for it
asks `caller()`. A call that nobody admitted has no caller, and fails.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from gateway_svc.domain.principals import Principal, Scope, Tokens
from gateway_svc.domain.rates import WINDOW_SECONDS, Rates
from svckit.errors import RateLimited, Unauthenticated
from svckit.metrics import NOBODY, Metrics, definitions

__all__ = ["LOCAL", "Door", "Principal", "Scope", "acting", "caller", "enter"]

LOCAL = Principal(name="local", scope=Scope.ADMIN)
"""Everybody, as long as no token is configured: only this machine can reach the gateway then."""

_caller: contextvars.ContextVar[Principal] = contextvars.ContextVar("caller")


def caller() -> Principal:
    """Return the caller of the request that is served."""
    return _caller.get()


def enter(principal: Principal) -> None:
    """Make `principal` the caller for the rest of this task."""
    _caller.set(principal)


@contextmanager
def acting(principal: Principal) -> Iterator[None]:
    """Make `principal` the caller for a block."""
    token = _caller.set(principal)
    try:
        yield
    finally:
        _caller.reset(token)


class Door:
    """Admits callers. One per process. `clock` gives seconds that never go back."""

    def __init__(
        self,
        holders: Mapping[str, Principal],
        clock: Callable[[], float],
        metrics: Metrics = NOBODY,
    ) -> None:
        """Take the tokens, each with its holder; none means that everybody is `LOCAL`."""
        self._tokens = Tokens(holders)
        self._clock = clock
        self._rates = Rates()
        self._refused = metrics.counter(definitions.CALLERS_REFUSED)
        for reason in ("token", "rate"):
            self._refused.start(reason)
        self.holders: Sequence[Principal] = tuple(holders.values())

    def admit(self, credentials: Sequence[str]) -> Principal:
        """Return who calls with these `Authorization` headers.

        Raises `Unauthenticated`, or `RateLimited` for one that calls too often.
        """
        try:
            principal = self._tokens.holder(credentials) if self._tokens else LOCAL
        except Unauthenticated:
            self._refused.add("token")
            raise
        self.count(principal)
        return principal

    def knows(self, credentials: Sequence[str]) -> bool:
        """Whether `admit` would find out who calls. Counts nothing."""
        try:
            return not self._tokens or bool(self._tokens.holder(credentials))
        except Unauthenticated:
            return False

    def count(self, principal: Principal) -> None:
        """Count one call of a caller; raises `RateLimited` when it is one too many."""
        per_minute = principal.requests_per_minute
        wait = self._rates.take(principal.name, per_minute, self._clock())
        if wait > 0:
            self._refused.add("rate")
            raise RateLimited(
                f"more than {per_minute} calls in a minute; wait a moment",
                metadata={"limit": str(per_minute), "windowSeconds": f"{WINDOW_SECONDS:g}"},
                retry_after=wait,
            )
