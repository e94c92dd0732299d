"""Pages of runs, newest first, with opaque tokens bound to their filter."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import Message as ProtoMessage

from conveyor.scheduler.v1 import flow_service_pb2, run_pb2
from scheduler_svc.domain.records import RunState
from scheduler_svc.rpc.validate import digest
from scheduler_svc.store.base import LaneStore, RunQuery, StoredRun
from svckit import paging
from svckit.errors import invalid_field


def run_query(wanted: run_pb2.RunFilter) -> RunQuery:
    """The store's form of a filter."""
    return RunQuery(
        session_key=wanted.session_key,
        flow_id=wanted.flow_id,
        customer_key=wanted.customer_key,
        lane=wanted.global_lane,
        states=_states(wanted.states),
        labels=dict(wanted.labels),
    )


def flow_query(wanted: flow_service_pb2.FlowFilter) -> RunQuery:
    """The store's form of a filter of roots."""
    return RunQuery(
        session_key=wanted.session_key,
        customer_key=wanted.customer_key,
        states=_states(wanted.states),
        labels=dict(wanted.labels),
        roots=True,
        with_children=wanted.with_children,
        since=wanted.after_time.ToMicroseconds() if wanted.HasField("after_time") else 0,
    )


def _states(states: Iterable[int]) -> frozenset[RunState]:
    known = set(RunState)
    return frozenset(RunState(state) for state in states if state in known)


async def runs_page(
    store: LaneStore, query: RunQuery, filters: ProtoMessage, token: str, size: int
) -> tuple[list[StoredRun], str]:
    """One page and the token of the next; the token is empty on the last page."""
    before = position(token, filters)
    found = await store.list_runs(query, before=before, after=0, limit=size + 1)
    page = found[:size]
    more = len(found) > size
    return page, token_after(page[-1].run.order, filters) if more else ""


def token_after(place: int, filters: ProtoMessage) -> str:
    """The token of the page behind a place in a list with these filters."""
    return paging.encode([place], {"filter": digest(filters)})


def position(token: str, filters: ProtoMessage) -> int:
    """The place that a token names; 0 for the first page. Raises `InvalidField`."""
    found = paging.decode(token, {"filter": digest(filters)})
    if found is None:
        return 0
    if len(found) != 1 or not isinstance(found[0], int):
        raise invalid_field("page_token", "is not a token of this list; start again without")
    return found[0]
