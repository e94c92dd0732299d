"""Runs of ACP sessions: prompts and openings, in the lane that the session works in."""

from __future__ import annotations

from dataclasses import dataclass

from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.domain.binding import Bound, acp_spec
from gateway_svc.domain.keys import DEFAULT_CHANNEL, parse_key
from gateway_svc.domain.reply_route import ReplyAddress, decode_address
from gateway_svc.domain.routing import Routed, RoutingRules, policy_of, queue_mode_of
from gateway_svc.intake import Intake
from gateway_svc.store import sessions as store
from gateway_svc.upstream import Upstream
from svckit.database import Database
from svckit.grpc.client import call

_NEWEST = 20
"""Runs of a lane among which one is looked for that came before."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The conversation in which somebody gave a command: whose it is, and where answers go.

    `said` is what they wrote; it stands for the opening in the history of events.
    """

    session_key: str
    customer_key: str
    address: ReplyAddress
    said: str = ""

    @classmethod
    def of(cls, routed: Routed, said: str = "") -> Origin:
        """Return the origin of a message."""
        stored = decode_address(routed.spec.reply_route.address)
        address = stored or ReplyAddress(DEFAULT_CHANNEL, routed.key.peer)
        return cls(routed.key.text, routed.customer_key, address, said)


class HarnessRuns:
    """Queues runs of ACP sessions. One per process."""

    def __init__(
        self, database: Database, upstream: Upstream, intake: Intake, rules: RoutingRules
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._intake = intake
        self._rules = rules

    async def queue(
        self,
        session: acp_session.AcpSession,
        message: content_pb2.Message,
        request_id: str,
        *,
        address: ReplyAddress | None = None,
        mode: lane_pb2.QueueMode.ValueType = lane_pb2.QUEUE_MODE_UNSPECIFIED,
        open_only: bool = False,
    ) -> ss.AcceptedRun:
        """Queue a run of a session in the session's lane, idempotently per `request_id`.

        Without an `address` its answer and its questions go where the session was spawned from.
        """
        key = parse_key(session.spec.session_key)
        row = await self._database.run(lambda connection: store.find(connection, key.text))
        if address is None:
            stored = decode_address(row.reply_address) if row else None
            address = stored or address_of(key.text)
        if open_only:
            mode = lane_pb2.QUEUE_MODE_FOLLOWUP
        if not mode and row is not None:
            mode = row.known.queue_mode or queue_mode_of(key, row.agent_id, self._rules)
        spec = acp_spec(
            Bound.of(session),
            self._rules.acp,
            session_key=key.text,
            customer_key=session.spec.customer_key,
            address=address,
            open_only=open_only,
        )
        spec.label = session.spec.label
        parent = session.spec.parent_session_key
        if parent != key.text and parent and parse_key(parent).is_conversation:
            spec.question_session_key = parent
        spec.session_epoch = row.epoch if row else 0
        policy = policy_of(mode or lane_pb2.QUEUE_MODE_FOLLOWUP, self._rules)
        routed = Routed(
            key,
            session.spec.harness_id,
            session.spec.customer_key,
            message,
            spec,
            policy,
            previous_trace=row.trace if row else "",
        )
        return await self._intake.enqueue(routed, request_id)

    async def earlier(
        self, session: acp_session.AcpSession, request_id: str
    ) -> ss.AcceptedRun | None:
        """Return what `queue` returned for a request that comes again, as far as that is known.

        For a session that takes no prompt any more: to queue it again could make a new run.
        """
        scheduler = self._upstream.scheduler
        wanted = run_pb2.RunFilter(session_key=session.spec.session_key)
        listed = await call(
            scheduler.ListRuns(ss.ListRunsRequest(filter=wanted, page_size=_NEWEST)),
            service="scheduler",
        )
        for run in listed.runs:
            found = await call(
                scheduler.GetRun(ss.GetRunRequest(run_id=run.run_id)), service="scheduler"
            )
            if any(item.request_id == request_id for item in found.run.inputs):
                return ss.AcceptedRun(
                    run=run, outcome=lane_pb2.ENQUEUE_OUTCOME_QUEUED, deduplicated=True
                )
        return None


def address_of(session_key: str) -> ReplyAddress:
    """Return where answers wait for whoever watches, when nobody said where they go."""
    return ReplyAddress(DEFAULT_CHANNEL, parse_key(session_key).peer)
