"""Who calls, and what they may do.

Bearer tokens come in a later release. Until then everybody who reaches the loopback address is
the caller `local` with every scope; every use case already asks its `Principal`, so that tokens
change this module only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from svckit.errors import ScopeMissing


class Scope(IntEnum):
    """What a caller may do. Each scope includes those before it."""

    READ = 1
    SEND = 2
    CONTROL = 3
    ADMIN = 4


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. `customer_key` is whose things it sees, empty for no customer."""

    name: str
    scope: Scope
    customer_key: str = ""

    def require(self, scope: Scope) -> None:
        """Raise `ScopeMissing` unless the caller has `scope`."""
        if self.scope < scope:
            name = scope.name.lower()
            raise ScopeMissing(f"this call needs the scope {name}", metadata={"scope": name})

    @property
    def is_admin(self) -> bool:
        """True when the caller may see everybody's things."""
        return self.scope >= Scope.ADMIN

    def may_see(self, customer_key: str) -> bool:
        """True when things of this customer exist for the caller."""
        return self.is_admin or (bool(self.customer_key) and customer_key == self.customer_key)


LOCAL = Principal(name="local", scope=Scope.ADMIN)


def authenticate() -> Principal:
    """Return the caller of a request."""
    return LOCAL
