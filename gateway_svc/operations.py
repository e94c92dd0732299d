"""Calls that the gateway passes on: runs, flows, lanes, agents, models and harnesses.

Each asks for its scope, keeps other customers' things out, and clears what clients do not see.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal, Scope
from gateway_svc.domain.redaction import clear_explanation, clear_run
from gateway_svc.domain.routing import check_request_id, checked_message
from gateway_svc.refusals import flow_not_found, own_words, run_not_found
from gateway_svc.upstream import Upstream
from svckit.errors import FlowNotFound, RunNotFound
from svckit.grpc.client import call, mapped_errors


class Operations:
    """Passes calls on to the services behind. One per process."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def get_run(self, request: ss.GetRunRequest, principal: Principal) -> ss.GetRunResponse:
        """Return a run."""
        principal.require(Scope.READ)
        with _no_run(request.run_id):
            answer = await call(self._upstream.scheduler.GetRun(request), service="scheduler")
        _own_run(answer.run, request.run_id, principal)
        clear_run(answer.run, for_admin=principal.is_admin)
        return answer

    async def list_runs(
        self, request: ss.ListRunsRequest, principal: Principal
    ) -> ss.ListRunsResponse:
        """List runs, newest first."""
        principal.require(Scope.READ)
        if not principal.is_admin:
            if not principal.customer_key:
                return ss.ListRunsResponse()
            request.filter.customer_key = principal.customer_key
        answer = await call(self._upstream.scheduler.ListRuns(request), service="scheduler")
        for run in answer.runs:
            clear_run(run, for_admin=principal.is_admin)
        return answer

    async def cancel_run(
        self, request: ss.CancelRunRequest, principal: Principal
    ) -> ss.CancelRunResponse:
        """Stop a run and everything it spawned."""
        principal.require(Scope.CONTROL)
        await self._require_run(request.run_id, principal)
        answer = await call(self._upstream.scheduler.CancelRun(request), service="scheduler")
        clear_run(answer.run, for_admin=principal.is_admin)
        return answer

    async def steer_run(
        self, request: gw.SteerRunRequest, principal: Principal
    ) -> gw.SteerRunResponse:
        """Give a run a message."""
        principal.require(Scope.CONTROL)
        check_request_id(request.request_id)
        message = checked_message(
            request.message, request_id=request.request_id, field_name="message"
        )
        await self._require_run(request.run_id, principal)
        steer = ss.SteerRunRequest(
            run_id=request.run_id,
            message=message,
            request_id=principal.request_id(request.request_id),
        )
        with own_words():
            answer = await call(self._upstream.scheduler.SteerRun(steer), service="scheduler")
        return gw.SteerRunResponse(run=clear_run(answer.run, for_admin=principal.is_admin))

    async def explain_run(
        self, request: ss.ExplainRunRequest, principal: Principal
    ) -> ss.ExplainRunResponse:
        """Say why a run is where it is; other customers' runs are not named."""
        principal.require(Scope.READ)
        with _no_run(request.run_id):
            answer = await call(self._upstream.scheduler.ExplainRun(request), service="scheduler")
        _own_run(answer.explanation.run, request.run_id, principal)
        clear_explanation(
            answer.explanation, for_admin=principal.is_admin, may_see=principal.may_see
        )
        return answer

    async def list_flows(
        self, request: fs.ListFlowsRequest, principal: Principal
    ) -> fs.ListFlowsResponse:
        """List flows, newest first."""
        principal.require(Scope.READ)
        if not principal.is_admin:
            if not principal.customer_key:
                return fs.ListFlowsResponse()
            request.filter.customer_key = principal.customer_key
        return await call(self._upstream.flows.ListFlows(request), service="scheduler")

    async def get_flow(
        self, request: fs.GetFlowRequest, principal: Principal
    ) -> fs.GetFlowResponse:
        """Return a flow with its tree."""
        principal.require(Scope.READ)
        with _no_flow(request.flow_id):
            answer = await call(self._upstream.flows.GetFlow(request), service="scheduler")
        if not principal.may_see(answer.flow.customer_key):
            raise flow_not_found(request.flow_id)
        for run in answer.nodes:
            clear_run(run, for_admin=principal.is_admin)
        return answer

    async def cancel_flow(
        self, request: fs.CancelFlowRequest, principal: Principal
    ) -> fs.CancelFlowResponse:
        """Stop every run of a flow."""
        principal.require(Scope.CONTROL)
        if not principal.is_admin:
            await self.get_flow(fs.GetFlowRequest(flow_id=request.flow_id, page_size=1), principal)
        return await call(self._upstream.flows.CancelFlow(request), service="scheduler")

    async def list_lanes(
        self, request: ss.ListLanesRequest, principal: Principal
    ) -> ss.ListLanesResponse:
        """List lanes with their use."""
        principal.require(Scope.READ)
        if not principal.is_admin:
            # Names of session lanes tell about others.
            if request.kind == lane_pb2.LANE_KIND_SESSION:
                return ss.ListLanesResponse()
            request.kind = lane_pb2.LANE_KIND_GLOBAL
        return await call(self._upstream.scheduler.ListLanes(request), service="scheduler")

    async def update_lane(
        self, request: ss.UpdateLaneRequest, principal: Principal
    ) -> ss.UpdateLaneResponse:
        """Change the limit of a global lane."""
        principal.require(Scope.ADMIN)
        return await call(self._upstream.scheduler.UpdateLane(request), service="scheduler")

    async def forecast(
        self, request: ss.ForecastRequest, principal: Principal
    ) -> ss.ForecastResponse:
        """Play a load on a virtual clock."""
        principal.require(Scope.READ)
        return await call(self._upstream.scheduler.Forecast(request), service="scheduler")

    async def list_agents(
        self, request: ag.ListAgentsRequest, principal: Principal
    ) -> ag.ListAgentsResponse:
        """List the configured agents."""
        principal.require(Scope.READ)
        return await call(self._upstream.agents.ListAgents(request), service="agent")

    async def list_models(
        self, request: ag.ListModelsRequest, principal: Principal
    ) -> ag.ListModelsResponse:
        """List the configured models."""
        principal.require(Scope.READ)
        return await call(self._upstream.agents.ListModels(request), service="agent")

    async def probe_model(
        self, request: ag.ProbeModelRequest, principal: Principal
    ) -> AsyncGenerator[ag.ProbeModelResponse, None]:
        """Stream a probe. Leaving it, with `aclosing`, ends the probe."""
        principal.require(Scope.ADMIN)
        stream = self._upstream.agents.ProbeModel(request)
        try:
            async with mapped_errors(service="agent"):
                async for message in stream:
                    yield message
        finally:
            stream.cancel()

    async def list_harnesses(
        self, request: acp.ListHarnessesRequest, principal: Principal
    ) -> acp.ListHarnessesResponse:
        """List the harnesses of the registry and the configuration."""
        principal.require(Scope.READ)
        return await call(self._upstream.acp.ListHarnesses(request), service="acp")

    async def acp_doctor(
        self, request: gw.AcpDoctorRequest, principal: Principal
    ) -> gw.AcpDoctorResponse:
        """Examine the harnesses."""
        principal.require(Scope.CONTROL)
        answer = await call(
            self._upstream.acp.Doctor(acp.DoctorRequest(harness_id=request.harness_id)),
            service="acp",
        )
        return gw.AcpDoctorResponse(report=answer.report)

    async def _require_run(self, run_id: str, principal: Principal) -> None:
        if not principal.is_admin:
            await self.get_run(ss.GetRunRequest(run_id=run_id), principal)


def _own_run(run: run_pb2.Run, run_id: str, principal: Principal) -> None:
    if not principal.may_see(run.spec.customer_key):
        raise run_not_found(run_id)


@contextmanager
def _no_run(run_id: str) -> Iterator[None]:
    """What is not there is said in the same words as what is another customer's."""
    try:
        yield
    except RunNotFound:
        raise run_not_found(run_id) from None


@contextmanager
def _no_flow(flow_id: str) -> Iterator[None]:
    try:
        yield
    except FlowNotFound:
        raise flow_not_found(flow_id) from None
