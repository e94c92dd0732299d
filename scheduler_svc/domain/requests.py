"""Request ids: the same one is the same request, and with another body it is refused.

The engine has put what the store knows of the ids at hand into `Kernel.requests`.
"""

from __future__ import annotations

from scheduler_svc.domain.kernel import Kernel, KnownRequest
from svckit.errors import RequestIdReused


def seen(k: Kernel, request_id: str, body_hash: bytes) -> KnownRequest | None:
    """What is known of a request; `None` when it is new. Raises `RequestIdReused`."""
    known = k.requests.get(request_id)
    if known is not None and known.body_hash != body_hash:
        raise RequestIdReused(
            f"request_id {request_id!r} was used before with another body; use a new one",
            metadata={"requestId": request_id, "runId": known.run_id},
        )
    return known


def remember(k: Kernel, request_id: str, body_hash: bytes, run_id: str) -> None:
    """Notes the run that holds the message of a request now."""
    k.requests[request_id] = k.changes.requests[request_id] = KnownRequest(body_hash, run_id)
