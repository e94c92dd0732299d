"""Ids that sort by the time they were made."""

from __future__ import annotations

import os
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_lock = threading.Lock()
_last = 0


def new_ulid() -> str:
    """Return a ULID, 26 characters, greater than any that this process returned before.

    `python-ulid` draws new randomness within a millisecond, so its ids do not sort by creation;
    the order of acceptance is part of the contract, hence the counting variant of the ULID
    specification here.
    """
    global _last
    fresh = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    with _lock:
        # A clock that went back, or two ids within one millisecond: count up from the last one.
        _last = fresh if fresh >> 80 > _last >> 80 else _last + 1
        value = _last
    # Two characters at a time: an id is made for every message.
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])


def new_id(prefix: str = "") -> str:
    """Return `prefix` followed by a new ULID."""
    return prefix + new_ulid()
