"""What model calls consumed: counted for the run and, in the same commit, for all its ancestors."""

from __future__ import annotations

import sys

from scheduler_svc.domain import requests
from scheduler_svc.domain.budgets import ancestors
from scheduler_svc.domain.emits import UsageReported
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.records import Usage


def report(
    k: Kernel,
    run_id: str,
    request_id: str,
    body_hash: bytes,
    usage: Usage,
    requested_model: str,
    effective_model: str,
    now: int,
) -> bool:
    """Counts one model call, once per `request_id`. Returns False for a repeated one.

    Spent is spent: a report counts after the lease was lost and after the run ended. The caller
    makes sure that the run and its ancestors are known: live, or among `Kernel.ended`. Raises
    `RequestIdReused`.
    """
    run = k.runs.get(run_id) or k.ended[run_id]
    if requests.seen(k, request_id, body_hash):
        return False
    requests.remember(k, request_id, body_hash, run_id)
    if usage == Usage():
        return True  # a call that cost nothing is no news
    run.requested_model = sys.intern(requested_model)
    run.effective_model = sys.intern(effective_model)
    run.usage.add(usage)
    for node in (run, *ancestors(k, run)):
        node.tree_usage.add(usage)
        k.touch(node)
    k.session(run.session_key)
    k.emit(run, UsageReported(requested_model, effective_model, usage), now)
    return True
