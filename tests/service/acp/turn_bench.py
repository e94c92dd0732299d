"""The harness service with a real scheduler in front and the scripted harness behind it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry import trace

from acp_svc.app import build as build_acp
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from conveyor.acp.v1 import session_pb2 as s
from conveyor.acp.v1 import task_pb2
from conveyor.common.v1 import content_pb2, question_pb2
from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.events.v1 import event_log_service_pb2_grpc as ev_grpc
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from scheduler_svc.app import build as build_scheduler
from svckit.clock import SystemClock
from svckit.grpc import client
from svckit.grpc.status import from_proto
from svckit.settings import load
from svckit.testing import eventually, in_process

SCRIPTED = Path(__file__).parents[2] / "harnesses" / "scripted.py"
ENDED = (
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_EXPIRED,
)
LONG = 30.0
MODES = {
    "approve-reads": s.PERMISSION_MODE_APPROVE_READS,
    "approve-all": s.PERMISSION_MODE_APPROVE_ALL,
    "deny-all": s.PERMISSION_MODE_DENY_ALL,
    "ask": s.PERMISSION_MODE_ASK,
}


def harness(*flags: str) -> str:
    """The command line of the scripted harness, as the configuration takes it."""
    return str([sys.executable, str(SCRIPTED), *flags])


class SkippingClock(SystemClock):
    """A clock that can go forward at once: nobody waits for what takes ten seconds at least."""

    def __init__(self) -> None:
        super().__init__()
        self._skipped = 0

    def now_us(self) -> int:
        return super().now_us() + self._skipped

    def skip(self, seconds: float) -> None:
        self._skipped += round(seconds * 1_000_000)


@dataclass
class TurnBench:
    """What a test does with it."""

    root: Path
    scheduler: Any
    log: Any
    acp: Any
    clock: SkippingClock
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    async def spawn(self, harness_id: str = "scripted", mode: str = "ask", **spec: Any) -> str:
        """Store a session that its first run opens; returns its id."""
        number = next(self._ids)
        answer = await client.call(
            self.acp.SpawnSession(
                acp_pb.SpawnSessionRequest(
                    spec=s.AcpSessionSpec(
                        harness_id=harness_id, permission_mode=MODES[mode], **spec
                    ),
                    request_id=f"spawn-{number}",
                    return_starting=True,
                )
            )
        )
        return str(answer.session.acp_session_id)

    async def session(self, session_id: str) -> s.AcpSession:
        answer = await client.call(
            self.acp.GetSession(acp_pb.GetSessionRequest(acp_session_id=session_id))
        )
        return answer.session

    async def send(
        self,
        session_id: str,
        text: str,
        *,
        open_only: bool = False,
        new: s.AcpSessionSpec | None = None,
        route: str = "here",
        queue_mode: lane_pb2.QueueMode.ValueType = lane_pb2.QUEUE_MODE_FOLLOWUP,
        key: str = "",
        **spec: Any,
    ) -> str:
        """Prompt a session; returns the run's id."""
        number = next(self._ids)
        task = task_pb2.AcpTask(acp_session_id=session_id, open_only=open_only)
        if new is not None:
            task = task_pb2.AcpTask(new_session=new)
        elif not key:
            key = (await self.session(session_id)).spec.session_key
        run = run_pb2.RunSpec(
            session_key=key or f"s-{number}",
            customer_key="ann",
            queue="acp",
            reply_route=run_pb2.ReplyRoute(address=route, delivers_later=True) if route else None,
            **spec,
        )
        run.task.Pack(task)
        item = pb.EnqueueItem(
            spec=run,
            message=content_pb2.Message(
                message_id=f"m-{number}",
                role=content_pb2.ROLE_USER,
                parts=[content_pb2.ContentPart(text=text)],
            ),
            request_id=f"q-{number}",
            queue_policy=lane_pb2.QueuePolicy(mode=queue_mode),
        )
        answer = await client.call(self.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item])))
        [result] = answer.results
        assert result.HasField("accepted"), result
        return str(result.accepted.run.run_id)

    async def run(self, run_id: str) -> run_pb2.Run:
        answer = await client.call(self.scheduler.GetRun(pb.GetRunRequest(run_id=run_id)))
        return answer.run

    async def ended(self, run_id: str) -> run_pb2.Run:
        async def over() -> bool:
            return (await self.run(run_id)).state in ENDED

        await eventually(over, timeout=LONG)
        return await self.run(run_id)

    async def prompt(self, session_id: str, text: str, **more: Any) -> str:
        """Prompt a session and return its reply."""
        run = await self.ended(await self.send(session_id, text, **more))
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.error
        return reply_of(run)

    async def questions(self, count: int = 1) -> list[question_pb2.Question]:
        """Wait until so many questions are open; oldest first."""
        found: list[question_pb2.Question] = []

        async def look() -> bool:
            request = pb.ListQuestionsRequest(
                filter=pb.QuestionFilter(states=[question_pb2.QUESTION_STATE_OPEN])
            )
            answer = await client.call(self.scheduler.ListQuestions(request))
            found[:] = sorted(answer.questions, key=lambda q: q.number)
            return len(found) == count

        await eventually(look, timeout=LONG)
        return found

    async def answer(self, question: question_pb2.Question, option_id: str) -> None:
        answer = question_pb2.Answer(
            question_id=question.question_id, option_id=option_id, responder="ann"
        )
        request = pb.SteerRunRequest(
            run_id=question.run_id, answer=answer, request_id=f"a-{next(self._ids)}"
        )
        await client.call(self.scheduler.SteerRun(request))

    async def cancel(self, run_id: str) -> None:
        await client.call(
            self.scheduler.CancelRun(pb.CancelRunRequest(run_id=run_id, reason="enough"))
        )

    async def events(self, key: str, *payloads: str) -> list[event_pb2.Event]:
        request = ev.ListEventsRequest(session_key=key, payloads=payloads, page_size=1000)
        return list((await client.call(self.log.ListEvents(request))).events)

    async def said(self, run_id: str, text: str) -> None:
        """Wait until the harness said something that is shown while a run is at work."""
        request = ev.WatchEventsRequest(
            session_key=(await self.run(run_id)).spec.session_key, payloads=["delta"]
        )
        call = self.log.WatchEvents(request)
        shown = ""
        async for answer in call:
            if answer.HasField("delta") and answer.delta.run_id == run_id:
                shown = shown[: answer.delta.offset] + answer.delta.text
                if text in shown:
                    break
        call.cancel()

    async def decisions(self, run_id: str) -> list[tuple[bool, str, str]]:
        """What was decided about permissions in a run: allowed, rule, responder."""
        run = await self.run(run_id)
        events = await self.events(run.spec.session_key, "permission_decided")
        return [
            (
                e.permission_decided.allowed,
                e.permission_decided.rule,
                e.permission_decided.responder,
            )
            for e in events
            if e.run_id == run_id
        ]


def reply_of(run: run_pb2.Run) -> str:
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.error
    return "".join(part.text for part in run.result.reply.parts)


def result_of(run: run_pb2.Run) -> task_pb2.AcpResult:
    result = task_pb2.AcpResult()
    assert run.result.details.Unpack(result)
    return result


def failure_of(run: run_pb2.Run) -> tuple[str, Mapping[str, str]]:
    assert run.state == run_pb2.RUN_STATE_FAILED, run
    error = from_proto(run.error)
    return error.reason, error.metadata


@asynccontextmanager
async def turn_bench(
    tmp_path: Path,
    harnesses: Mapping[str, Sequence[str]] | None = None,
    acp: str = "",
    more: str = "",
    tracer: trace.Tracer | None = None,
) -> AsyncIterator[TurnBench]:
    """Start both services. `harnesses`: flags of the scripted harness, by harness id."""
    root, home = tmp_path / "work", tmp_path / "home"
    root.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    text = f"""
        [store]
        url = "sqlite:///{tmp_path}/data"
        [acp]
        workspace_roots = ["{root}"]
        default_harness = "scripted"
        sandbox = "off"
        {acp}
        """
    for harness_id, flags in {"scripted": (), **(harnesses or {})}.items():
        text += f"""
        [acp.harness.{harness_id}]
        command = {harness(*flags)}
        env = {{HOME = "{home}"}}
        """
    config = tmp_path / "conveyor.toml"
    config.write_text(text + more)
    clock = SkippingClock()
    async with in_process(
        build_scheduler, load(config, {}), tracer=tracer, clock=clock
    ) as scheduler:
        config.write_text(f'[services]\nscheduler = "{scheduler.address}"\n{text}{more}')
        async with in_process(build_acp, load(config, {}), tracer=tracer) as service:
            yield TurnBench(
                root=root,
                scheduler=pb_grpc.SchedulerServiceStub(scheduler.channel),
                log=ev_grpc.EventLogServiceStub(scheduler.channel),
                acp=acp_grpc.AcpServiceStub(service.channel),
                clock=clock,
            )
