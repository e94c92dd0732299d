"""Hands decided messages to the scheduler: the one way from the gateway to a run."""

from __future__ import annotations

import sqlalchemy as sa
from opentelemetry import trace

from conveyor.scheduler.v1 import lane_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc import spans
from gateway_svc.domain.reply_route import decode_address
from gateway_svc.domain.routing import Routed
from gateway_svc.store import sessions as store
from gateway_svc.upstream import Upstream
from svckit import tracecontext
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import Internal
from svckit.failpoints import failpoint
from svckit.grpc.client import call
from svckit.grpc.status import from_proto
from svckit.logging import get_logger

_NEW_RUN = frozenset(
    {
        lane_pb2.ENQUEUE_OUTCOME_QUEUED,
        lane_pb2.ENQUEUE_OUTCOME_STEER_FELL_BACK,
        lane_pb2.ENQUEUE_OUTCOME_INTERRUPTED,
    }
)

log = get_logger(__name__)


class Intake:
    """Stores messages as runs. One per process."""

    def __init__(
        self,
        database: Database,
        upstream: Upstream,
        clock: Clock,
        tracer: trace.Tracer,
        *,
        capture_content: bool = False,
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._clock = clock
        self._tracer = tracer
        self._capture = capture_content

    async def enqueue(self, routed: Routed, request_id: str) -> ss.AcceptedRun:
        """Store a message, idempotently per `request_id`; its session is in use from then on.

        Raises what `SendMessage` is documented to fail with.
        """
        with spans.accepting(self._tracer, routed, capture=self._capture) as span:
            return await self._enqueue(routed, request_id, span)

    async def _enqueue(self, routed: Routed, request_id: str, span: trace.Span) -> ss.AcceptedRun:
        item = ss.EnqueueItem(
            spec=routed.spec,
            message=routed.message,
            request_id=request_id,
            queue_policy=routed.policy,
        )
        response = await call(
            self._upstream.scheduler.EnqueueRuns(ss.EnqueueRunsRequest(items=[item])),
            service="scheduler",
        )
        if len(response.results) != 1:
            raise Internal("the scheduler did not answer for the message")
        result = response.results[0]
        if result.WhichOneof("result") == "error":
            raise from_proto(result.error)
        accepted = result.accepted
        failpoint("gateway.accept.unanswered")
        key, now = routed.key.text, self._clock.now_us()
        # Only a new run tells what its task holds: one that the message joined has its own.
        new = not accepted.deduplicated and accepted.outcome in _NEW_RUN
        notice = routed.notice if new else None
        spans.accepted(span, accepted, new=new)
        context = tracecontext.current().traceparent if new else ""
        address = routed.spec.reply_route.address
        sender = decode_address(address)
        # What others say in a conversation says nothing about where its customer is.
        own = address if sender is not None and sender.channel == routed.key.channel else ""

        def note(connection: sa.Connection) -> None:
            store.touch(connection, key, now, own)
            if notice is not None:
                store.noticed(connection, key, notice)
            if context:
                store.traced(connection, key, context)

        await self._database.run(note)
        log.info(
            "message accepted",
            run_id=accepted.run.run_id,
            outcome=lane_pb2.EnqueueOutcome.Name(accepted.outcome),
            deduplicated=accepted.deduplicated,
        )
        return accepted
