"""Asks the scheduler how runs stand, so that a listing shows what was answered a moment ago."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_svc import convert
from agent_svc.domain.reconcile import Standing
from agent_svc.store.transcripts import Transcripts
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as sched
from svckit.clock import Clock
from svckit.errors import RunNotFound, ServiceError
from svckit.grpc.client import call
from svckit.logging import get_logger

if TYPE_CHECKING:
    from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

_log = get_logger("agent.standing")


class StandingReader:
    """Brings the history of a session in line with the scheduler, on demand."""

    def __init__(self, stub: SchedulerServiceAsyncStub, store: Transcripts, clock: Clock) -> None:
        self._stub = stub
        self._store = store
        self._clock = clock

    async def align(self, session_key: str) -> None:
        """Adopt the replies that were accepted. Without a scheduler nothing is adopted."""
        standings: dict[str, Standing] = {}
        for item in await self._store.open_runs(session_key):
            request = sched.GetRunRequest(run_id=item.run_id)
            try:
                response = await call(self._stub.GetRun(request), service="scheduler")
            except RunNotFound:
                continue
            except ServiceError as err:
                _log.warning("history not aligned", reason=err.reason)
                return
            standings[item.run_id] = standing_of(response.run)
        if standings:
            await self._store.align(session_key, standings, self._clock.now_us())

    async def has_runs(self, session_key: str) -> bool:
        """Tell whether the scheduler knows a run of the session."""
        request = sched.ListRunsRequest(
            filter=run_pb2.RunFilter(session_key=session_key), page_size=1
        )
        response = await call(self._stub.ListRuns(request), service="scheduler")
        return bool(response.runs)


def standing_of(run: run_pb2.Run) -> Standing:
    """Read what is certain: while a run works or waits in its lane, its last turn may be open."""
    if run.state in convert.END_STATES:
        return Standing(convert.END_STATES[run.state], run.turn)
    if run.state == run_pb2.RUN_STATE_SUSPENDED:
        return Standing("live", run.turn)
    return Standing("live", max(0, run.turn - 1))
