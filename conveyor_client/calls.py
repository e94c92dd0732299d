"""The calls of `GatewayService` that answer once, as typed methods."""

from __future__ import annotations

from collections.abc import Mapping

from conveyor.agent.v1 import agent_service_pb2 as agent_pb
from conveyor.common.v1 import content_pb2 as content_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.gateway.v1 import session_pb2 as session_pb
from conveyor.scheduler.v1 import flow_service_pb2 as flow_pb
from conveyor.scheduler.v1 import forecast_pb2 as forecast_pb
from conveyor.scheduler.v1 import lane_pb2 as lane_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client.acp_calls import AcpCalls
from conveyor_client.messages import as_inbound, as_message
from svckit.ids import new_ulid


class Calls(AcpCalls):
    """Every call that answers once. `ConveyorClient` adds the streams and the connection's life.

    Lists return one page with `next_page_token`; pass it as `page_token` for the next one.
    """

    # Talking

    async def send(
        self,
        message: str | content_pb.Message,
        *,
        session_key: str = "",
        agent_id: str = "",
        customer_key: str = "",
        queue_mode: lane_pb.QueueMode.ValueType = lane_pb.QUEUE_MODE_UNSPECIFIED,
        budget: run_pb.Budget | None = None,
        priority: int = 0,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> gateway_pb.SendMessageResponse:
        """Queue a message; returns once it is stored.

        An empty `session_key` means the caller's own session with `agent_id`. `request_id` makes
        repeating harmless; without one each call is a new message.
        """
        inbound = as_inbound(
            message, session_key, agent_id, customer_key, queue_mode, budget, priority, labels
        )
        return await self._to.call(
            lambda stub: stub.SendMessage,
            gateway_pb.SendMessageRequest(inbound=inbound, request_id=request_id or new_ulid()),
        )

    async def execute(
        self, text: str, *, session_key: str = "", request_id: str | None = None
    ) -> gateway_pb.ExecuteCommandResponse:
        """Run a slash command, for example `/lanes`."""
        return await self._to.call(
            lambda stub: stub.ExecuteCommand,
            gateway_pb.ExecuteCommandRequest(
                session_key=session_key, text=text, request_id=request_id or new_ulid()
            ),
        )

    # Sessions

    async def session(self, session_key: str) -> gateway_pb.GetSessionResponse:
        """Return a session and the token to watch it from now on."""
        return await self._to.call(
            lambda stub: stub.GetSession, gateway_pb.GetSessionRequest(session_key=session_key)
        )

    async def sessions(
        self,
        filter: session_pb.SessionFilter | None = None,
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> gateway_pb.ListSessionsResponse:
        """List sessions, last used first."""
        return await self._to.call(
            lambda stub: stub.ListSessions,
            gateway_pb.ListSessionsRequest(
                filter=filter, page_size=page_size, page_token=page_token
            ),
        )

    async def messages(
        self,
        session_key: str,
        *,
        since_reset: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> agent_pb.ListMessagesResponse:
        """List messages of a session, oldest first."""
        return await self._to.call(
            lambda stub: stub.ListMessages,
            agent_pb.ListMessagesRequest(
                session_key=session_key,
                since_reset=since_reset,
                page_size=page_size,
                page_token=page_token,
            ),
        )

    async def reset(
        self, session_key: str, *, request_id: str | None = None
    ) -> agent_pb.ResetSessionResponse:
        """Make a session forget, as `/new`."""
        return await self._to.call(
            lambda stub: stub.ResetSession,
            agent_pb.ResetSessionRequest(
                session_key=session_key, request_id=request_id or new_ulid()
            ),
        )

    # Runs and flows

    async def run(self, run_id: str) -> scheduler_pb.GetRunResponse:
        """Return a run."""
        return await self._to.call(
            lambda stub: stub.GetRun, scheduler_pb.GetRunRequest(run_id=run_id)
        )

    async def runs(
        self, filter: run_pb.RunFilter | None = None, *, page_size: int = 0, page_token: str = ""
    ) -> scheduler_pb.ListRunsResponse:
        """List runs, newest first."""
        return await self._to.call(
            lambda stub: stub.ListRuns,
            scheduler_pb.ListRunsRequest(filter=filter, page_size=page_size, page_token=page_token),
        )

    async def cancel(self, run_id: str, *, reason: str = "") -> scheduler_pb.CancelRunResponse:
        """Stop a run and everything it spawned."""
        return await self._to.call(
            lambda stub: stub.CancelRun, scheduler_pb.CancelRunRequest(run_id=run_id, reason=reason)
        )

    async def steer(
        self, run_id: str, message: str | content_pb.Message, *, request_id: str | None = None
    ) -> gateway_pb.SteerRunResponse:
        """Give a message to a run that executes or waits for children."""
        return await self._to.call(
            lambda stub: stub.SteerRun,
            gateway_pb.SteerRunRequest(
                run_id=run_id, message=as_message(message), request_id=request_id or new_ulid()
            ),
        )

    async def explain(self, run_id: str) -> scheduler_pb.ExplainRunResponse:
        """Say why a run is where it is and when it should start."""
        return await self._to.call(
            lambda stub: stub.ExplainRun, scheduler_pb.ExplainRunRequest(run_id=run_id)
        )

    async def flow(self, flow_id: str) -> flow_pb.GetFlowResponse:
        """Return a flow with its whole tree, parents before children, in one message."""
        whole = await self._to.call(
            lambda stub: stub.GetFlow, flow_pb.GetFlowRequest(flow_id=flow_id)
        )
        while whole.next_page_token:
            page = await self._to.call(
                lambda stub: stub.GetFlow,
                flow_pb.GetFlowRequest(flow_id=flow_id, page_token=whole.next_page_token),
            )
            whole.nodes.extend(page.nodes)
            whole.next_page_token = page.next_page_token
        return whole

    async def flows(
        self, filter: flow_pb.FlowFilter | None = None, *, page_size: int = 0, page_token: str = ""
    ) -> flow_pb.ListFlowsResponse:
        """List flows, newest first."""
        return await self._to.call(
            lambda stub: stub.ListFlows,
            flow_pb.ListFlowsRequest(filter=filter, page_size=page_size, page_token=page_token),
        )

    async def cancel_flow(self, flow_id: str, *, reason: str = "") -> flow_pb.CancelFlowResponse:
        """Stop every run of a flow."""
        return await self._to.call(
            lambda stub: stub.CancelFlow, flow_pb.CancelFlowRequest(flow_id=flow_id, reason=reason)
        )

    # Lanes

    async def lanes(
        self,
        kind: lane_pb.LaneKind.ValueType = lane_pb.LANE_KIND_UNSPECIFIED,
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> scheduler_pb.ListLanesResponse:
        """List lanes with their use: global ones first, then sessions with unfinished runs."""
        return await self._to.call(
            lambda stub: stub.ListLanes,
            scheduler_pb.ListLanesRequest(kind=kind, page_size=page_size, page_token=page_token),
        )

    async def update_lane(self, name: str, limit: int | None) -> scheduler_pb.UpdateLaneResponse:
        """Set the limit of a global lane, 0 pauses it; None goes back to the configuration."""
        return await self._to.call(
            lambda stub: stub.UpdateLane, scheduler_pb.UpdateLaneRequest(name=name, limit=limit)
        )

    async def forecast(
        self, input: forecast_pb.ForecastInput, *, page_size: int = 0, page_token: str = ""
    ) -> scheduler_pb.ForecastResponse:
        """Play a load on a virtual clock."""
        return await self._to.call(
            lambda stub: stub.Forecast,
            scheduler_pb.ForecastRequest(input=input, page_size=page_size, page_token=page_token),
        )

    # Questions

    async def questions(
        self,
        filter: scheduler_pb.QuestionFilter | None = None,
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> gateway_pb.ListQuestionsResponse:
        """List questions that runs ask people, newest first; open ones unless `filter` says more.

        `session_key` of a conversation also finds those of everything spawned from it.
        """
        return await self._to.call(
            lambda stub: stub.ListQuestions,
            gateway_pb.ListQuestionsRequest(
                filter=filter, page_size=page_size, page_token=page_token
            ),
        )

    async def answer(self, question_id: str, option_id: str) -> gateway_pb.AnswerQuestionResponse:
        """Answer a question with one of its options. The same answer again changes nothing."""
        return await self._to.call(
            lambda stub: stub.AnswerQuestion,
            gateway_pb.AnswerQuestionRequest(question_id=question_id, option_id=option_id),
        )

    # The gateway, agents, models

    async def server_info(self) -> gateway_pb.ServerInfo:
        """Say which release the gateway is, and where its traces are shown."""
        answer = await self._to.call(
            lambda stub: stub.GetServerInfo, gateway_pb.GetServerInfoRequest()
        )
        return answer.server

    async def agents(
        self, *, page_size: int = 0, page_token: str = ""
    ) -> agent_pb.ListAgentsResponse:
        """List the configured agents."""
        return await self._to.call(
            lambda stub: stub.ListAgents,
            agent_pb.ListAgentsRequest(page_size=page_size, page_token=page_token),
        )

    async def models(
        self, *, page_size: int = 0, page_token: str = ""
    ) -> agent_pb.ListModelsResponse:
        """List the configured models."""
        return await self._to.call(
            lambda stub: stub.ListModels,
            agent_pb.ListModelsRequest(page_size=page_size, page_token=page_token),
        )
