"""What the tests of access share: the scopes that the contract promises, and two customers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import duration_pb2
from google.protobuf.message import Message

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import forecast_pb2, lane_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from svckit.errors import AcpSessionNotFound, ModelRejected
from svckit.testing import eventually
from tests.service.gateway.suite import Suite, Turn, asking, suite, user

ROOT = Path(__file__).parents[3]
SERVICE = gw.DESCRIPTOR.services_by_name["GatewayService"]
METHODS = {method.name: method for method in SERVICE.methods}
SCOPES = ("read", "send", "control", "admin")
ANN = "acme"
SESSION = "agent:main:http:direct:ann-notes"
SECRET = "the merger with Globex"
ACP_ID = "acp-of-ann"

# Who calls: name of the token to scope and customer.
TOKENS = {
    **{f"ann-{scope}": (scope, ANN) for scope in SCOPES[:3]},
    **{f"eve-{scope}": (scope, "evil") for scope in SCOPES[:3]},
    "root": ("admin", ""),
}


def promised_scopes() -> dict[str, str]:
    """Return the scope of each method as its comment in the contract says."""
    text = (ROOT / "protos/conveyor/gateway/v1/gateway_service.proto").read_text("utf-8")
    service = text[text.index("service GatewayService {") :]
    found = {}
    for comment, name in re.findall(r"((?:^ *//.*\n)+) *rpc (\w+)\(", service, re.MULTILINE):
        words = " ".join(line.strip().removeprefix("//").strip() for line in comment.split("\n"))
        scope = re.search(r"\bScope\s+`(\w+)`", words)
        found[name] = scope[1] if scope else ""
    return found


def token_of(name: str) -> str:
    """Return the token of a caller."""
    return f"token-of-{name}-0123456789"


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a caller's calls."""
    return (("authorization", f"Bearer {token_of(name)}"),)


@dataclass
class World:
    """A gateway with tokens, and what Ann has there."""

    around: Suite
    run_id: str = ""
    flow_id: str = ""
    question_id: str = ""
    names: set[str] = field(default_factory=set)
    """What nobody else may read."""

    def stub(self, method: str) -> Any:
        return getattr(self.around.stub, method)

    async def call(self, method: str, request: Message, who: str | None) -> list[Any]:
        """Call a method and return its answers; of a stream the first."""
        return await self.call_with(method, request, bearer(who) if who else ())

    async def call_with(self, method: str, request: Message, metadata: Any) -> list[Any]:
        call = self.stub(method)(request, metadata=metadata, timeout=30)
        if not METHODS[method].server_streaming:
            return [await call]
        try:
            first = await call.read()
            return [first] if isinstance(first, Message) else []
        finally:
            call.cancel()

    def leaked(self, said: bytes | str) -> set[str]:
        """Return what of Ann's is in an answer."""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        return {name for name in self.names if name in text}


@asynccontextmanager
async def world(directory: Path, **more: str) -> AsyncIterator[World]:
    """Ann asked for something, which asks her something; she has an ACP session too."""
    env = dict(more)
    for name, (scope, customer) in TOKENS.items():
        file = directory / f"{name}.token"
        file.write_text(token_of(name) + "\n")
        base = f"CONVEYOR_GATEWAY__TOKENS__{name.upper()}__"
        env |= {f"{base}TOKEN_FILE": str(file), f"{base}SCOPES": scope}
        if customer:
            env[f"{base}CUSTOMER_KEY"] = customer
    async with suite(directory, **env) as around:
        _script(around)
        around.agent.on(SECRET, _child_asks)
        around.agent.on("count the shares", asking("May I read the shares?"))
        async with around.serve():
            found = World(around)
            await _begin(found)
            yield found


async def _child_asks(turn: Turn) -> Any:
    if turn.first:
        return turn.wait_for(await turn.spawn("count the shares"))
    return turn.reply("done")


async def _begin(found: World) -> None:
    request = gw.SendMessageRequest(
        inbound=gw.InboundMessage(session_key=SESSION, message=user(SECRET)), request_id="first"
    )
    [sent] = await found.call("SendMessage", request, "ann-send")
    found.run_id = found.flow_id = sent.accepted.run.run_id

    async def asked() -> str:
        [open_ones] = await found.call("ListQuestions", gw.ListQuestionsRequest(), "ann-read")
        assert len(open_ones.questions) == 1
        return str(open_ones.questions[0].question_id)

    found.question_id = await eventually(asked)
    found.names = {ANN, SESSION, SECRET, found.run_id, "May I read", "shares", ACP_ID, "ann-"}


def _script(around: Suite) -> None:
    """The services behind that are played here know both customers too."""
    session = acp_session.AcpSession(
        acp_session_id=ACP_ID,
        state=acp_session.ACP_SESSION_STATE_READY,
        spec=acp_session.AcpSessionSpec(
            harness_id="scripted",
            cwd="/srv/merger",
            customer_key=ANN,
            session_key=f"agent:scripted:acp:{ACP_ID}",
            parent_session_key=SESSION,
        ),
    )

    def one(answer: Callable[[acp_session.AcpSession], Message]) -> Callable[[Any], Any]:
        def find(request: Any) -> Any:
            if request.acp_session_id != ACP_ID:
                return AcpSessionNotFound("words of another service")
            return answer(session)

        return find

    def listed(request: acp.ListSessionsRequest) -> acp.ListSessionsResponse:
        mine = request.filter.customer_key in ("", ANN)
        return acp.ListSessionsResponse(sessions=[session] if mine else [])

    def spawned(request: acp.SpawnSessionRequest) -> acp.SpawnSessionResponse:
        new = acp_session.AcpSession(acp_session_id="acp-new", spec=request.spec)
        new.state = acp_session.ACP_SESSION_STATE_READY
        new.spec.session_key = new.spec.session_key or "agent:scripted:acp:acp-new"
        return acp.SpawnSessionResponse(session=new)

    answers: Mapping[str, Any] = {
        "GetSession": one(lambda found: acp.GetSessionResponse(session=found)),
        "ConfigureSession": one(lambda found: acp.ConfigureSessionResponse(session=found)),
        "CancelTurn": one(lambda found: acp.CancelTurnResponse()),
        "CloseSession": one(lambda found: acp.CloseSessionResponse(session=found)),
        "ListSessions": listed,
        "SpawnSession": spawned,
        "ListHarnesses": acp.ListHarnessesResponse(),
        "Doctor": acp.DoctorResponse(),
    }
    for method, answer in answers.items():
        around.acp.always(method, answer)
    around.agents.always("ListAgents", ag.ListAgentsResponse())
    around.agents.always("ListMessages", ag.ListMessagesResponse())
    around.agents.always("ResetSession", ag.ResetSessionResponse(epoch=1))
    around.agents.always("ProbeModel", ModelRejected("no such key", metadata={"model": "m"}))


@dataclass(frozen=True)
class Case:
    """A call about something of Ann's. `hidden` is what others are told of it.

    `elsewhere` is the same call about what nobody has. Without `hidden`, others get an answer, in
    which nothing of Ann's is.
    """

    request: Callable[[World], Message]
    hidden: str = ""
    elsewhere: Callable[[], Message] | None = None


_NO_RUN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def _acp(request: type[Any], **more: Any) -> Case:
    return Case(
        lambda _: request(acp_session_id=ACP_ID, **more),
        "ACP_SESSION_NOT_FOUND",
        lambda: request(acp_session_id="acp-of-nobody", **more),
    )


def _run(request: type[Any], **more: Any) -> Case:
    return Case(
        lambda w: request(run_id=w.run_id, **more),
        "RUN_NOT_FOUND",
        lambda: request(run_id=_NO_RUN, **more),
    )


def _flow(request: type[Any]) -> Case:
    return Case(
        lambda w: request(flow_id=w.flow_id),
        "FLOW_NOT_FOUND",
        lambda: request(flow_id=_NO_RUN),
    )


def _session(request: type[Any], **more: Any) -> Case:
    return Case(
        lambda _: request(session_key=SESSION, **more),
        "SESSION_NOT_FOUND",
        lambda: request(session_key="agent:main:http:direct:nobody", **more),
    )


def _inbound(request: type[Any]) -> Case:
    def ask(_: World) -> Message:
        inbound = gw.InboundMessage(session_key=SESSION, message=user("what goes on here?"))
        return request(inbound=inbound, request_id="said")  # type: ignore[no-any-return]

    return Case(ask, "SESSION_NOT_FOUND")


_FORECAST = forecast_pb2.ForecastInput(
    burst=forecast_pb2.Burst(customers=2),
    turn_time=forecast_pb2.TimeDistribution(fixed=duration_pb2.Duration(seconds=1)),
)
CASES: Mapping[str, Case] = {
    "SendMessage": _inbound(gw.SendMessageRequest),
    "Chat": _inbound(gw.ChatRequest),
    "WatchSession": _session(gw.WatchSessionRequest),
    "WatchAnnouncements": _flow(gw.WatchAnnouncementsRequest),
    "ExecuteCommand": Case(
        lambda _: gw.ExecuteCommandRequest(session_key=SESSION, text="/status", request_id="s"),
        "SESSION_NOT_FOUND",
    ),
    "GetSession": _session(gw.GetSessionRequest),
    "ListSessions": Case(lambda _: gw.ListSessionsRequest()),
    "ResetSession": _session(ag.ResetSessionRequest, request_id="r"),
    "ListMessages": _session(ag.ListMessagesRequest),
    "ListRuns": Case(lambda _: ss.ListRunsRequest()),
    "GetRun": _run(ss.GetRunRequest),
    "ListFlows": Case(lambda _: fs.ListFlowsRequest()),
    "GetFlow": _flow(fs.GetFlowRequest),
    "CancelFlow": _flow(fs.CancelFlowRequest),
    "CancelRun": _run(ss.CancelRunRequest),
    "SteerRun": _run(gw.SteerRunRequest, message=user("faster"), request_id="st"),
    "ExplainRun": _run(ss.ExplainRunRequest),
    "ListLanes": Case(lambda _: ss.ListLanesRequest()),
    "UpdateLane": Case(lambda _: ss.UpdateLaneRequest(name="main", limit=4)),
    "Forecast": Case(lambda _: ss.ForecastRequest(input=_FORECAST)),
    "ListAgents": Case(lambda _: ag.ListAgentsRequest()),
    "ListModels": Case(lambda _: ag.ListModelsRequest()),
    "ProbeModel": Case(lambda _: ag.ProbeModelRequest(model="m")),
    "ListHarnesses": Case(lambda _: acp.ListHarnessesRequest()),
    "GetServerInfo": Case(lambda _: gw.GetServerInfoRequest()),
    "AcpDoctor": Case(lambda _: gw.AcpDoctorRequest()),
    "SpawnAcpSession": Case(
        lambda _: gw.SpawnAcpSessionRequest(
            spec=acp_session.AcpSessionSpec(harness_id="scripted", cwd="/tmp"),
            bind_session_key=SESSION,
            request_id="sp",
        ),
        "SESSION_NOT_FOUND",
    ),
    "ListAcpSessions": Case(lambda _: gw.ListAcpSessionsRequest()),
    "GetAcpSession": _acp(gw.GetAcpSessionRequest),
    "PromptAcpSession": _acp(gw.PromptAcpSessionRequest, message=user("go on"), request_id="p"),
    "ConfigureAcpSession": _acp(gw.ConfigureAcpSessionRequest),
    "CancelAcpTurn": _acp(gw.CancelAcpTurnRequest),
    "CloseAcpSession": _acp(gw.CloseAcpSessionRequest),
    "ListQuestions": Case(lambda _: gw.ListQuestionsRequest()),
    "AnswerQuestion": Case(
        lambda w: gw.AnswerQuestionRequest(question_id=w.question_id, option_id="yes"),
        "QUESTION_NOT_FOUND",
        lambda: gw.AnswerQuestionRequest(question_id=f"{_NO_RUN}/1.1.0", option_id="yes"),
    ),
}
"""A call of each method. The tests fail when one is missing: who adds a method says whose it is."""

COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("help", "status", "agents", "lanes", "why", "tasks", "flow list", "flow show"),
            *("subagents list", "subagents info", "subagents log"),
            *("acp help", "acp status", "acp sessions", "acp install"),
        ),
        "read",
    ),
    **dict.fromkeys(
        ("new", "queue", "model", "subagents spawn", "approve", "deny", "acp steer"), "send"
    ),
    **dict.fromkeys(
        (
            *("stop", "flow cancel", "subagents steer", "subagents send", "subagents kill"),
            *("acp spawn", "acp cancel", "acp close", "acp permissions", "acp model", "acp cwd"),
            *("acp set-mode", "acp set", "acp timeout", "acp doctor"),
        ),
        "control",
    ),
}
"""The scope that each command needs: that of the call with the same effect."""

KINDS = (lane_pb2.LANE_KIND_UNSPECIFIED, lane_pb2.LANE_KIND_SESSION, lane_pb2.LANE_KIND_GLOBAL)
