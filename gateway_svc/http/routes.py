"""The paths of the public interface, each translated to a use case."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import caller
from gateway_svc.http.acp_routes import add_acp_routes
from gateway_svc.http.bodies import (
    IDEMPOTENCY_KEY,
    from_query,
    plain,
    request_id_of,
    send_request,
    steer_request,
    truth,
)
from gateway_svc.http.hook_routes import add_hook_routes
from gateway_svc.http.sse import event_stream, probe_stream
from gateway_svc.http.wire import parse_json, respond, to_message
from gateway_svc.refusals import not_yet
from gateway_svc.use_cases import UseCases
from svckit.errors import invalid_field
from svckit.metrics import Metrics, definitions

_EVENT_PARAMETERS = frozenset({"include_descendants", "from_now", "payloads", "resume_token"})

# Paths of the contract that a later release fills, and what they belong to.
_LATER = (
    ("POST", "/v1/chat/completions", "ChatCompletions", "OpenAI-compatible calls"),
    ("POST", "/channels/{rest:path}", "Channels", "push channels"),
    ("GET", "/channels/{rest:path}", "Channels", "push channels"),
)


def build_router(do: UseCases, metrics: Metrics) -> APIRouter:
    """Return the routes over the use cases."""
    router = APIRouter()
    metrics.gauge(definitions.HTTP_STREAMS)  # there before the first one

    @router.post("/v1/sessions/{key}/messages")
    async def send_message(key: str, request: Request) -> Response:
        body = parse_json(await request.body())
        asked = send_request(plain(key), request.headers.get(IDEMPOTENCY_KEY), body)
        sent = await do.inbox.send(asked, caller())
        return respond(sent, 202)

    @router.get("/v1/sessions/{key}/events")
    async def watch_session(key: str, request: Request) -> Response:
        query = request.query_params
        for name in query:
            if name not in _EVENT_PARAMETERS:
                raise invalid_field(name[:64], "is not a parameter of this stream")
        asked = gw.WatchSessionRequest(
            session_key=plain(key),
            # A browser that reconnects says where it was, whatever the address says.
            resume_token=request.headers.get("Last-Event-ID") or query.get("resume_token", ""),
            from_now=truth("from_now", query.get("from_now")),
            include_descendants=truth("include_descendants", query.get("include_descendants")),
            payloads=query.getlist("payloads"),
        )
        return await event_stream(do.sessions.watch(asked, caller()), metrics)

    @router.get("/v1/sessions")
    async def list_sessions(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), gw.ListSessionsRequest())
        return respond(await do.conversations.list(asked, caller()))

    @router.get("/v1/sessions/{key}")
    async def get_session(key: str) -> Response:
        return respond(await do.conversations.get(plain(key), caller()))

    @router.delete("/v1/sessions/{key}")
    async def reset_session(key: str, request: Request) -> Response:
        body = parse_json(await request.body())
        request_id = request_id_of(request.headers.get(IDEMPOTENCY_KEY), body)
        asked = to_message(body, ag.ResetSessionRequest())
        asked.session_key, asked.request_id = plain(key), request_id
        return respond(await do.conversations.reset(asked, caller()))

    @router.get("/v1/sessions/{key}/messages")
    async def list_messages(key: str, request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), ag.ListMessagesRequest())
        asked.session_key = plain(key)
        return respond(await do.conversations.messages(asked, caller()))

    @router.get("/v1/runs")
    async def list_runs(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), ss.ListRunsRequest())
        return respond(await do.operations.list_runs(asked, caller()))

    @router.get("/v1/runs/{run_id}")
    async def get_run(run_id: str) -> Response:
        asked = ss.GetRunRequest(run_id=plain(run_id))
        return respond(await do.operations.get_run(asked, caller()))

    @router.post("/v1/forecast")
    async def forecast(request: Request) -> Response:
        asked = to_message(parse_json(await request.body()), ss.ForecastRequest())
        return respond(await do.operations.forecast(asked, caller()))

    @router.get("/v1/runs/{run_id}/explain")
    async def explain_run(run_id: str) -> Response:
        asked = ss.ExplainRunRequest(run_id=plain(run_id))
        return respond(await do.operations.explain_run(asked, caller()))

    @router.post("/v1/runs/{run_id}/cancel")
    async def cancel_run(run_id: str, request: Request) -> Response:
        asked = to_message(parse_json(await request.body()), ss.CancelRunRequest())
        asked.run_id = plain(run_id)
        return respond(await do.operations.cancel_run(asked, caller()))

    @router.post("/v1/runs/{run_id}/steer")
    async def steer_run(run_id: str, request: Request) -> Response:
        body = parse_json(await request.body())
        asked = steer_request(plain(run_id), request.headers.get(IDEMPOTENCY_KEY), body)
        return respond(await do.operations.steer_run(asked, caller()))

    @router.get("/v1/flows")
    async def list_flows(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), fs.ListFlowsRequest())
        return respond(await do.operations.list_flows(asked, caller()))

    @router.get("/v1/flows/{flow_id}")
    async def get_flow(flow_id: str, request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), fs.GetFlowRequest())
        asked.flow_id = plain(flow_id)
        return respond(await do.operations.get_flow(asked, caller()))

    @router.post("/v1/flows/{flow_id}/cancel")
    async def cancel_flow(flow_id: str, request: Request) -> Response:
        asked = to_message(parse_json(await request.body()), fs.CancelFlowRequest())
        asked.flow_id = plain(flow_id)
        return respond(await do.operations.cancel_flow(asked, caller()))

    @router.get("/v1/lanes")
    async def list_lanes(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), ss.ListLanesRequest())
        return respond(await do.operations.list_lanes(asked, caller()))

    @router.patch("/v1/lanes/{name}")
    async def update_lane(name: str, request: Request) -> Response:
        asked = to_message(parse_json(await request.body()), ss.UpdateLaneRequest())
        asked.name = plain(name)
        return respond(await do.operations.update_lane(asked, caller()))

    @router.post("/v1/commands")
    async def execute_command(request: Request) -> Response:
        body = parse_json(await request.body())
        request_id = request_id_of(request.headers.get(IDEMPOTENCY_KEY), body)
        asked = to_message(body, gw.ExecuteCommandRequest())
        asked.request_id = request_id
        return respond(await do.inbox.execute(asked, caller()))

    @router.get("/v1/questions")
    async def list_questions(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), gw.ListQuestionsRequest())
        return respond(await do.questions.list_questions(asked, caller()))

    # Ids of questions hold a slash: it may come as it is, or as %2F.
    @router.post("/v1/questions/{question_id:path}")
    async def answer_question(question_id: str, request: Request) -> Response:
        asked = to_message(parse_json(await request.body()), gw.AnswerQuestionRequest())
        if asked.question_id not in ("", plain(question_id)):
            raise invalid_field("question_id", "differs from the question in the path")
        asked.question_id = plain(question_id)
        return respond(await do.questions.answer_question(asked, caller()))

    @router.get("/v1/agents")
    async def list_agents(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), ag.ListAgentsRequest())
        return respond(await do.operations.list_agents(asked, caller()))

    @router.get("/v1/models")
    async def list_models(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), ag.ListModelsRequest())
        return respond(await do.operations.list_models(asked, caller()))

    @router.post("/v1/models/probe")
    async def probe_model(request: Request) -> Response:
        asked = to_message(parse_json(await request.body()), ag.ProbeModelRequest())
        return await probe_stream(do.operations.probe_model(asked, caller()), metrics)

    @router.get("/v1/acp/harnesses")
    async def list_harnesses(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), acp.ListHarnessesRequest())
        return respond(await do.operations.list_harnesses(asked, caller()))

    @router.get("/v1/acp/doctor")
    async def acp_doctor(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), gw.AcpDoctorRequest())
        return respond(await do.operations.acp_doctor(asked, caller()))

    @router.get("/v1/server")
    async def get_server_info(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), gw.GetServerInfoRequest())
        return respond(do.about.server_info(asked, caller()))

    add_acp_routes(router, do.harness_sessions)
    add_hook_routes(router, do.hooks)
    for method, path, feature, what in _LATER:
        router.add_api_route(path, _later(feature, what), methods=[method])
    return router


def _later(feature: str, what: str) -> Callable[[], Awaitable[Any]]:
    async def refuse() -> Any:
        raise not_yet(feature, what)

    return refuse
