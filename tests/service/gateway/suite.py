"""A gateway in front of a real scheduler, whose runs are done by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from google.rpc import status_pb2
from opentelemetry import trace

from conveyor.acp.v1 import (
    acp_service_pb2,
    acp_service_pb2_grpc,  # noqa: F401  (makes the service known)
)
from conveyor.agent.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,  # noqa: F401
    task_pb2,
)
from conveyor.common.v1 import content_pb2, question_pb2
from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.events.v1 import event_log_service_pb2_grpc as ev_grpc
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1 import gateway_service_pb2_grpc as gw_grpc
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as ss_grpc
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from gateway_svc.app import GatewayApp, builder
from gateway_svc.delivery.channel import Channel
from scheduler_svc.app import build as build_scheduler
from svckit.errors import TurnFailed
from svckit.settings import Settings, load
from svckit.testing import InProcess, ScriptedServicer, in_process, scripted_server
from svckit.worker import Complete, Fail, LeasedTurn, Outcome, Suspend, Worker

if TYPE_CHECKING:
    from conveyor.gateway.v1.gateway_service_pb2_grpc import GatewayServiceAsyncStub

AGENT = "conveyor.agent.v1.AgentService"
ACP = "conveyor.acp.v1.AcpService"

Behaviour = Callable[["Turn"], Awaitable[Outcome]]


class Turn:
    """A turn, with the few things that behaviours of tests do in it."""

    def __init__(self, leased: LeasedTurn, scheduler: Any, log: Any) -> None:
        self.leased = leased
        self.run = leased.run
        self._scheduler = scheduler
        self._log = log
        self._written = 0

    @property
    def text(self) -> str:
        return self.run.inputs[0].message.parts[0].text

    @property
    def first(self) -> bool:
        return self.leased.turn == 1

    @property
    def message_id(self) -> str:
        return f"{self.run.run_id}-{self.leased.turn}"

    async def say(self, text: str) -> None:
        """Stream a piece of the reply."""
        delta = event_pb2.MessageDelta(message_id=self.message_id, text=text, offset=self._written)
        await self._log.AppendEvents(
            ev.AppendEventsRequest(lease_id=self.leased.lease_id, deltas=[delta])
        )
        self._written += len(text)

    async def spawn(self, *texts: str) -> list[str]:
        """Start children; returns their run ids."""
        items = []
        for index, text in enumerate(texts):
            call_id = f"{self.leased.turn}.1.{index}"
            task = run_pb2.RunSpec(queue="agent", label=text[:64])
            task.task.Pack(task_pb2.AgentTask(agent_id="main"))
            items.append(
                ss.EnqueueItem(
                    spec=task,
                    message=user(text, f"m-{call_id}"),
                    request_id=f"{self.run.run_id}/{call_id}",
                    parent_lease_id=self.leased.lease_id,
                    tool_call_id=call_id,
                )
            )
        answer = await self._scheduler.EnqueueRuns(ss.EnqueueRunsRequest(items=items))
        return [result.accepted.run.run_id for result in answer.results]

    async def ask(self, call: str, title: str) -> str:
        """Ask whether a tool may be called; returns the id of the question."""
        question_id = f"{self.run.run_id}/{call}"
        options = [
            question_pb2.QuestionOption(
                option_id="yes",
                name="Allow once",
                kind=question_pb2.QUESTION_OPTION_KIND_ALLOW_ONCE,
            ),
            question_pb2.QuestionOption(
                option_id="no", name="Deny", kind=question_pb2.QUESTION_OPTION_KIND_REJECT_ONCE
            ),
        ]
        question = question_pb2.Question(
            question_id=question_id, title=title, options=options, default_option_id="no"
        )
        event = event_pb2.Event(
            event_id=f"q-{call}", question_asked=event_pb2.QuestionAsked(question=question)
        )
        await self._log.AppendEvents(
            ev.AppendEventsRequest(lease_id=self.leased.lease_id, events=[event])
        )
        return question_id

    def reply(self, text: str) -> Complete:
        message = content_pb2.Message(
            message_id=self.message_id,
            role=content_pb2.ROLE_AGENT,
            parts=[content_pb2.ContentPart(text=text)],
        )
        return Complete(run_pb2.RunResult(reply=message))

    def wait_for(self, run_ids: Sequence[str]) -> Suspend:
        wait = run_pb2.WaitCondition(children=run_pb2.ChildrenWait(run_ids=run_ids))
        return Suspend(ws.SuspendRunRequest(condition=wait, hold_session_lane=True))

    def wait_for_answers(self, question_ids: Sequence[str]) -> Suspend:
        wait = run_pb2.WaitCondition(approval=run_pb2.ApprovalWait(question_ids=question_ids))
        return Suspend(ws.SuspendRunRequest(condition=wait, hold_session_lane=True))


class Agent:
    """Does all runs. `on` gives texts a behaviour; without one a run echoes its text.

    `hold`: a run whose text was given to it waits until `let_go`.
    """

    def __init__(self) -> None:
        self._behaviours: dict[str, Behaviour] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self.started: list[str] = []
        self.scheduler: Any = None
        self.log: Any = None

    def on(self, text: str, behaviour: Behaviour) -> None:
        self._behaviours[text] = behaviour

    def hold(self, text: str) -> None:
        self._gates[text] = asyncio.Event()

    def let_go(self, text: str) -> None:
        self._gates[text].set()

    async def __call__(self, leased: LeasedTurn) -> Outcome:
        turn = Turn(leased, self.scheduler, self.log)
        self.started.append(turn.text)
        if gate := self._gates.get(turn.text):
            await gate.wait()
        if behaviour := self._behaviours.get(turn.text):
            return await behaviour(turn)
        await turn.say("echo: ")
        await turn.say(turn.text)
        return turn.reply(f"echo: {turn.text}")


def delegating(*tasks: str) -> Behaviour:
    """Spawn children, wait for all, then join what they said."""

    async def behave(turn: Turn) -> Outcome:
        if turn.first:
            return turn.wait_for(await turn.spawn(*tasks))
        # They come in the order they ended; as a model would, it answers in the order it asked.
        results = sorted(
            turn.leased.leased.resumption.children, key=lambda child: child.tool_call_id
        )
        return turn.reply("; ".join(result.text for result in results))

    return behave


def asking(title: str) -> Behaviour:
    """Ask people, wait, then say which option they chose."""

    async def behave(turn: Turn) -> Outcome:
        if turn.first:
            return turn.wait_for_answers([await turn.ask("1.1.0", title)])
        [answer] = turn.leased.leased.resumption.answers
        return turn.reply(f"{answer.responder} said {answer.option_id}")

    return behave


async def failing(turn: Turn) -> Outcome:
    """Fail for good."""
    return Fail(TurnFailed("the tool broke", metadata={"cause": "tool"}), retryable=False)


def user(text: str, message_id: str = "") -> content_pb2.Message:
    return content_pb2.Message(
        message_id=message_id,
        role=content_pb2.ROLE_USER,
        parts=[content_pb2.ContentPart(text=text)],
    )


@dataclass
class Suite:
    """What a test talks to. `gateway` and `http` change when the gateway is restarted."""

    directory: Path
    environ: dict[str, str]
    agent: Agent
    agents: ScriptedServicer
    acp: ScriptedServicer
    scheduler: InProcess
    channels: Sequence[Channel] = ()
    config: Path | None = None
    gateway: InProcess = field(init=False)
    http: httpx.AsyncClient = field(init=False)

    @property
    def stub(self) -> GatewayServiceAsyncStub:
        return gw_grpc.GatewayServiceStub(self.gateway.channel)

    @property
    def settings(self) -> Settings:
        return load(self.config, self.environ)

    @asynccontextmanager
    async def serve(self, tracer: trace.Tracer | None = None) -> AsyncIterator[None]:
        """Run the gateway for the block; a second time it finds what the first one left."""
        build = builder(self.channels)
        async with in_process(build, self.settings, name="gateway", tracer=tracer) as running:
            app = running.app
            assert isinstance(app, GatewayApp)
            self.gateway = running
            base = f"http://{app.http_address}"
            async with httpx.AsyncClient(
                base_url=base, timeout=30, trust_env=False, verify=False
            ) as client:
                self.http = client
                yield

    async def send(self, session: str, text: str, **more: Any) -> gw.SendMessageResponse:
        request_id = more.pop("request_id", "") or f"r-{session}-{text}".replace(" ", "_")
        inbound = gw.InboundMessage(session_key=session, message=user(text), **more)
        return await self.stub.SendMessage(
            gw.SendMessageRequest(inbound=inbound, request_id=request_id)
        )

    def chat(self, session: str, text: str, **more: Any) -> Any:
        inbound = gw.InboundMessage(
            session_key=session, message=user(text), queue_mode=more.pop("queue_mode", 0)
        )
        request_id = more.pop("request_id", "") or f"c-{session}-{text}".replace(" ", "_")
        return self.stub.Chat(gw.ChatRequest(inbound=inbound, request_id=request_id, **more))


@asynccontextmanager
async def suite(
    directory: Path,
    channels: Sequence[Channel] = (),
    scheduler_address: str = "127.0.0.1:0",
    **env: str,
) -> AsyncIterator[Suite]:
    """Everything around a gateway; the gateway itself is started with `Suite.serve`."""
    base = {"CONVEYOR_STORE__URL": f"sqlite:///{directory}"} | env
    # Nothing here restarts this scheduler, and a store without a disk keeps the tests quick.
    log = base | {"CONVEYOR_STORE__URL": "memory:"}
    agents, acp = ScriptedServicer(AGENT), ScriptedServicer(ACP)
    agents.always("ListModels", agent_service_pb2.ListModelsResponse())
    acp.always("ListSessions", acp_service_pb2.ListSessionsResponse())
    async with AsyncExitStack() as stack:
        address, _ = await stack.enter_async_context(scripted_server(agents, acp))
        scheduler = await stack.enter_async_context(
            in_process(build_scheduler, load(None, log), scheduler_address, name="scheduler")
        )
        agent = Agent()
        agent.scheduler = ss_grpc.SchedulerServiceStub(scheduler.channel)
        agent.log = ev_grpc.EventLogServiceStub(scheduler.channel)
        worker = Worker(
            scheduler.channel,
            queue="agent",
            name="agent-0",
            slots=16,
            handler=agent,
            poll_wait=1.0,
            extend_interval=0.1,
            drain_grace=0.0,
        )
        work = asyncio.create_task(worker.run(), name="worker")

        async def stop_worker() -> None:
            await worker.drain()
            await asyncio.gather(work, return_exceptions=True)

        stack.push_async_callback(stop_worker)
        environ = base | {
            "CONVEYOR_SERVICES__SCHEDULER": scheduler.address,
            "CONVEYOR_SERVICES__AGENT": address,
            "CONVEYOR_SERVICES__ACP": address,
            "CONVEYOR_GATEWAY__HTTP": "127.0.0.1:0",
            "CONVEYOR_GATEWAY__GRPC": "127.0.0.1:0",
        }
        yield Suite(directory, environ, agent, agents, acp, scheduler, channels)


def kind(response: Any) -> str:
    return str(response.WhichOneof("message"))


def payload(event: event_pb2.Event) -> str:
    return str(event.WhichOneof("payload"))


def text_of(message: content_pb2.Message) -> str:
    return "".join(part.text for part in message.parts)


def reason_of(error: Any) -> str:
    """Return the reason in a failed call."""
    from svckit.grpc.status import from_rpc_error

    return from_rpc_error(error).reason


__all__ = [
    "Agent",
    "Suite",
    "Turn",
    "asking",
    "delegating",
    "failing",
    "status_pb2",
    "suite",
    "user",
]
