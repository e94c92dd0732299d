"""Whether a call of a hook comes from who it should: two schemes, both HMAC-SHA256.

`standard` is that of the Standard Webhooks specification: the id and the time of the call are
signed with the body. `github` signs the body alone, so neither time nor id can be trusted there: a
call is then known by its body.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Literal

Scheme = Literal["standard", "github"]

SHORTEST_KEY = 16
"""Bytes."""
_PREFIX = "whsec_"
_MAX_ID = 256
_MAX_SIGNATURES = 10
_NOBODY = b"\0" * 32


def key_of(secret: str, scheme: Scheme) -> bytes:
    """Return the key that a secret stands for; raises `ValueError` saying what is wrong with it."""
    if scheme == "github":
        key = secret.encode()
    else:
        text = secret.removeprefix(_PREFIX)
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"must be base64, as in {_PREFIX}…") from None
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"must have at least {SHORTEST_KEY} bytes")
    return key


def verified(
    scheme: Scheme,
    keys: Sequence[bytes],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    tolerance: float,
) -> str | None:
    """Return what names a call, the same for a repeated one; `None` when it is not signed rightly.

    `headers` has names in small letters, `now` is in seconds since 1970, and `tolerance` how far
    the time of the call may be from it. Any of `keys` may have signed. Without keys nobody has, and
    to find that out takes as long.
    """
    if scheme == "github":
        return _github(keys, headers, body)
    return _standard(keys, headers, body, now, tolerance)


def _standard(
    keys: Sequence[bytes], headers: Mapping[str, str], body: bytes, now: float, tolerance: float
) -> str | None:
    call_id = headers.get("webhook-id", "")
    stamp = headers.get("webhook-timestamp", "")
    # A dot in the id could move the border between what is signed: id, time and body.
    plain = call_id.isascii() and call_id.isprintable() and "." not in call_id
    if not 1 <= len(call_id) <= _MAX_ID or not plain:
        return None
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        return None
    signed = f"{call_id}.{stamp}.".encode() + body
    offered = [
        signature
        for version, _, signature in (
            each.partition(",") for each in headers.get("webhook-signature", "").split(" ")
        )
        if version == "v1"
    ][:_MAX_SIGNATURES]
    right = [base64.b64encode(_sign(key, signed)) for key in keys or (_NOBODY,)]
    fits = _any_fits(offered, right)
    in_time = abs(now - int(stamp)) <= tolerance
    return call_id if fits and in_time and keys else None


def _github(keys: Sequence[bytes], headers: Mapping[str, str], body: bytes) -> str | None:
    name, _, offered = headers.get("x-hub-signature-256", "").partition("=")
    right = [_sign(key, body).hex().encode() for key in keys or (_NOBODY,)]
    fits = _any_fits([offered], right)
    return hashlib.sha256(body).hexdigest() if fits and name == "sha256" and keys else None


def _any_fits(offered: Sequence[str], right: Sequence[bytes]) -> bool:
    found = False
    for each in offered:
        for one in right:
            found |= hmac.compare_digest(each.encode("utf-8", "surrogateescape"), one)
    return found


def _sign(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")
