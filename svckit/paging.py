"""Opaque page tokens that are bound to the filters of their first page."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from svckit.errors import invalid_field

Scalar: TypeAlias = str | int | float | bool | None
Filters: TypeAlias = Mapping[str, "Scalar | Sequence[Scalar]"]


def encode(last_key: Sequence[Scalar], filters: Filters) -> str:
    """Return a token for the page after the item whose sort key is `last_key`."""
    body = json.dumps([_fingerprint(filters), list(last_key)], separators=(",", ":"))
    return base64.urlsafe_b64encode(body.encode()).rstrip(b"=").decode()


def decode(token: str, filters: Filters) -> tuple[Scalar, ...] | None:
    """Return the `last_key` of a token, or None for the first page (an empty token).

    Raises `InvalidField` for `page_token` when the token is not one of ours, or is of a list with
    other filters.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        body = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        fingerprint, last_key = body
        if not isinstance(last_key, list) or any(isinstance(k, list | dict) for k in last_key):
            raise ValueError("not a key")
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise invalid_field(
            "page_token", "is not a token of this list; leave it empty for the first page"
        ) from None
    if fingerprint != _fingerprint(filters):
        raise invalid_field(
            "page_token", "belongs to a list with other filters; keep the filters, or start again"
        )
    return tuple(last_key)


def _fingerprint(filters: Filters) -> str:
    plain = {
        key: value if isinstance(value, str | int | float | bool | None) else list(value)
        for key, value in filters.items()
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
