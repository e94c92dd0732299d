"""Does what slash commands say, beside the lanes, and answers them."""

from __future__ import annotations

from collections.abc import Callable, Container

import sqlalchemy as sa

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.domain.commands import UNSPECIFIED, queue_answer, read_queue
from gateway_svc.domain.deliveries import DeliveryKind
from gateway_svc.domain.reply_route import ReplyAddress
from gateway_svc.domain.routing import MAX_MESSAGE_ID, Routed, RoutingRules, queue_mode_of
from gateway_svc.store import outbox
from gateway_svc.store import sessions as store
from svckit.clock import Clock
from svckit.database import Database


class Commands:
    """Runs commands of conversations. One per process.

    `pushed` are the channels that deliver to people: their senders read no answer of a call, so it
    goes through the outbox, and `filled` is called.
    """

    def __init__(
        self,
        database: Database,
        rules: RoutingRules,
        clock: Clock,
        pushed: Container[str],
        filled: Callable[[], None],
    ) -> None:
        self._database = database
        self._rules = rules
        self._clock = clock
        self._pushed = pushed
        self._filled = filled

    async def run(
        self, routed: Routed, text: str, request_id: str, address: ReplyAddress
    ) -> ss.AcceptedRun:
        """Do what a message says that is a command, and answer in the place of a run.

        The run has no id; it has succeeded, and its result is the answer. The session is known.
        """
        command, key = read_queue(text), routed.key
        configured = queue_mode_of(key, routed.agent_id, self._rules)
        push = address.channel in self._pushed

        def apply(connection: sa.Connection) -> str:
            if command.sets is not None:
                store.set_queue_mode(connection, key.text, command.sets)
            row = store.find(connection, key.text)
            own: lane_pb2.QueueMode.ValueType = row.known.queue_mode if row else UNSPECIFIED
            answer = command.problem or queue_answer(own, configured)
            if push:
                outbox.add(connection, self._delivery(address, request_id, answer))
            return answer

        said = await self._database.run(apply)
        if push:
            self._filled()
        reply = content_pb2.Message(
            message_id=f"re-{routed.message.message_id}"[:MAX_MESSAGE_ID],
            role=content_pb2.ROLE_AGENT,
            parts=[content_pb2.ContentPart(text=said)],
        )
        return ss.AcceptedRun(
            run=run_pb2.Run(
                state=run_pb2.RUN_STATE_SUCCEEDED,
                spec=run_pb2.RunSpec(session_key=key.text, customer_key=routed.customer_key),
                result=run_pb2.RunResult(reply=reply),
            )
        )

    def _delivery(self, address: ReplyAddress, request_id: str, text: str) -> outbox.NewEntry:
        # No event: the channel's own id of the message keeps a repeated one from being told twice.
        return outbox.NewEntry(
            recipient=address.recipient,
            event_key=f"command {request_id}",
            channel=address.channel,
            kind=DeliveryKind.REPLY,
            text=text,
            run_id="",
            create_us=self._clock.now_us(),
        )
