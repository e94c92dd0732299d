"""Pseudonyms of people and conversations, for whatever leaves a service to be looked at by others.

Session keys, customer keys, peers and phone numbers never stand in a span, a metric or a log: they
go as a keyed hash. The same name has the same pseudonym in all services that share the key, so that
what belongs together is found together.

There are few phone numbers, so whoever has the key can try them all. The key is a secret for that
reason (`telemetry.hash_key_file`, `telemetry.hash_key_env`). Without one a key is used that anybody
can read here, which keeps names out of sight, and no more.
"""

from __future__ import annotations

import hmac
from functools import lru_cache

from svckit.secrets import read_secret
from svckit.settings import Settings

DEFAULT_KEY = b"conveyor"
"""Used when the configuration names none. Public: see above."""
DIGITS = 16
"""Hexadecimal digits of a pseudonym: 64 bits, so that two names never share one by chance."""

_key = DEFAULT_KEY


def setup(settings: Settings) -> None:
    """Take the key that the configuration names. Raises `StartError` when it cannot be read."""
    telemetry = settings.telemetry
    if telemetry.hash_key_env or telemetry.hash_key_file:
        secret = read_secret(
            "telemetry.hash_key", env=telemetry.hash_key_env, file=telemetry.hash_key_file
        )
        use_key(secret.encode())
    else:
        use_key(DEFAULT_KEY)


def use_key(key: bytes) -> None:
    """Make pseudonyms with `key` from now on, in the whole process."""
    global _key
    _key = key
    of.cache_clear()


@lru_cache(maxsize=8192)
def of(name: str) -> str:
    """Return the pseudonym of a session key, customer key, peer or number; nothing for nothing."""
    if not name:
        return ""
    return hmac.digest(_key, name.encode("utf-8", "surrogatepass"), "sha256").hex()[:DIGITS]
