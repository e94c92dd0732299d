"""Who calls, what they may do, and how a bearer token becomes the one who holds it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from gateway_svc.domain.keys import DEFAULT_CHANNEL, SessionKey
from svckit.errors import ScopeMissing, Unauthenticated

SHORTEST_TOKEN = 16
"""Characters; fewer could be guessed."""
LONGEST_TOKEN = 4096
_PULLED = frozenset({"http", "grpc", "web"})
_MARK = re.compile(r"^c~[0-9a-f]{10}~")
_LONGEST_MARKED = 100


class Scope(IntEnum):
    """What a caller may do. Each scope includes those before it."""

    READ = 1
    SEND = 2
    CONTROL = 3
    ADMIN = 4


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. `customer_key` is whose things it sees; an admin sees all.

    `requests_per_minute` is what it may call at most, 0 for any number. `is_hook`: it acts for the
    configuration, which named the conversation itself.
    """

    name: str
    scope: Scope
    customer_key: str = ""
    requests_per_minute: int = 0
    is_hook: bool = False

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

    def request_id(self, request_id: str) -> str:
        """Return the idempotency key under which the suite knows a request of this caller.

        Customers choose theirs without knowing of each other: the same one of two is two requests,
        and says nothing about the other's. Marking one twice changes nothing.
        """
        if self.is_admin:
            return request_id
        digest = hashlib.blake2b(self.customer_key.encode(), digest_size=5).hexdigest()
        mark = f"c~{digest}~"
        if request_id.startswith(mark):
            return request_id
        if len(request_id) > _LONGEST_MARKED:
            digest = hashlib.blake2b(request_id.encode(), digest_size=16).hexdigest()
            request_id = f"{request_id[:64]}-{digest}"
        return mark + request_id


def own_request_id(request_id: str) -> str:
    """Return an idempotency key as its caller chose it."""
    return _MARK.sub("", request_id)


class Tokens:
    """The configured tokens. Keeps their hashes only."""

    def __init__(self, holders: Mapping[str, Principal]) -> None:
        """Take the tokens, each with its holder."""
        self._known = [(_hash(token), holder) for token, holder in holders.items()]

    def __bool__(self) -> bool:
        return bool(self._known)

    def holder(self, credentials: Sequence[str]) -> Principal:
        """Return the holder of the token in the `Authorization` headers of a call.

        Raises `Unauthenticated` for none, several, another scheme, or a token that is not known.
        """
        if not credentials:
            raise Unauthenticated("this call needs a token: send `Authorization: Bearer <token>`")
        scheme, _, token = credentials[0].strip().partition(" ")
        found: Principal | None = None
        if len(credentials) == 1 and scheme.lower() == "bearer" and len(token) <= LONGEST_TOKEN:
            hashed = _hash(token.strip())
            # All of them, whichever fits: the time taken tells nothing about the one that does.
            for known, holder in self._known:
                if hmac.compare_digest(known, hashed):
                    found = holder
        if found is None:
            raise Unauthenticated("this token is not known here")
        return found


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def default_customer_of(token_name: str) -> str:
    """Return the customer of a token that names none: channel and peer, as of any other sender."""
    return f"{DEFAULT_CHANNEL}:{token_name}"


def may_begin(key: SessionKey, caller: Principal, holders: Iterable[Principal]) -> bool:
    """True when the first message of a session may come from this caller.

    Whoever begins a session owns it. So nobody takes the sessions that the holders of other tokens
    get by themselves, nor those of people on channels of their own.
    """
    if caller.is_admin or caller.is_hook:
        return True
    if key.channel not in _PULLED:
        return False
    return all(
        holder.customer_key == caller.customer_key for holder in holders if holder.name == key.peer
    )
