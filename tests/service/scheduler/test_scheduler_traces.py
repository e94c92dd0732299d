"""What the scheduler and its workers contribute to a trace, as trees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit import conventions as c
from svckit import pseudonyms, tracecontext
from svckit.errors import TurnFailed
from svckit.testing import eventually, memory_tracer, span_tree
from svckit.worker import Complete, Fail, Handler, LeasedTurn, Outcome, Suspend, Worker

from .conftest import Driver, driver, message, settings

SESSION = "agent:main:whatsapp:dm:+491701234567"


class Traced:
    """A tracer, where its spans go, and what they look like."""

    def __init__(self) -> None:
        self.tracer, self.exporter = memory_tracer()

    @contextmanager
    def message(self) -> Iterator[trace.Span]:
        """Somebody's request, to which what is sent inside belongs."""
        with self.tracer.start_as_current_span("POST /messages") as span:
            yield span

    def tree(self, *attributes: str, calls: bool = False) -> str:
        """All spans; those of calls only when asked for, with what is below them one level up."""
        found = InMemorySpanExporter()
        spans = self.exporter.get_finished_spans()
        left_out = {
            s.context.span_id: s.parent
            for s in spans
            if s.context is not None and c.RPC_METHOD in (s.attributes or {}) and not calls
        }
        for span in spans:
            if span.context is None or span.context.span_id in left_out:
                continue
            parent = span.parent
            while parent is not None and parent.span_id in left_out:
                parent = left_out[parent.span_id]
            found.export([_below(span, parent)])
        return span_tree(found, attributes=attributes)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [s for s in self.exporter.get_finished_spans() if s.name == name]

    def span(self, name: str) -> ReadableSpan:
        [span] = self.spans(name)
        return span

    def orphans(self) -> list[str]:
        spans = self.exporter.get_finished_spans()
        known = {s.context.span_id for s in spans if s.context is not None}
        return [s.name for s in spans if s.parent is not None and s.parent.span_id not in known]


def _below(span: ReadableSpan, parent: trace.SpanContext | None) -> ReadableSpan:
    return ReadableSpan(
        span.name,
        context=span.context,
        parent=parent,
        attributes=span.attributes,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
    )


def seconds(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9


@pytest.fixture
def t() -> Traced:
    return Traced()


@asynccontextmanager
async def scheduler(
    path: Path, t: Traced, store: str = "memory", **env: str
) -> AsyncIterator[Driver]:
    config = settings(
        path,
        store,
        CONVEYOR_RUNS__BACKOFF__INITIAL_SECONDS="0",
        CONVEYOR_RUNS__LEASE_SECONDS="1",
        CONVEYOR_AGENTS__DEFAULTS__SUBAGENTS__MAX_SPAWN_DEPTH="3",
        **env,
    )
    async with driver(config, tracer=t.tracer) as found:
        yield found


@pytest.fixture
async def s(tmp_path: Path, t: Traced) -> AsyncIterator[Driver]:
    async with scheduler(tmp_path, t) as found:
        yield found


@asynccontextmanager
async def working(s: Driver, t: Traced, handler: Handler) -> AsyncIterator[Worker]:
    worker = Worker(
        s.channel, queue="agent", name="w", slots=4, handler=handler, tracer=t.tracer, poll_wait=5
    )
    running = asyncio.create_task(worker.run())
    try:
        yield worker
        await worker.drain()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def reply(text: str = "done") -> run_pb2.RunResult:
    return run_pb2.RunResult(reply=message(text, "r", content_pb2.ROLE_AGENT))


def waits(ids: list[str]) -> Suspend:
    children = run_pb2.WaitCondition(children=run_pb2.ChildrenWait(run_ids=ids))
    return Suspend(ws.SuspendRunRequest(condition=children, hold_session_lane=True))


def links_of(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


async def test_a_message_is_one_tree_from_request_to_answer(s: Driver, t: Traced) -> None:
    async def answer(turn: LeasedTurn) -> Outcome:
        with t.tracer.start_as_current_span("thinking"):
            return Complete(reply())

    with t.message():
        accepted = await s.send(SESSION, customer_key="c-1")
    async with working(s, t, answer):
        await eventually(lambda: t.spans("run agent"))
    assert t.tree(calls=True) == "\n".join(
        [
            "INTERNAL POST /messages",
            "  CLIENT SchedulerService/EnqueueRuns",
            "    SERVER SchedulerService/EnqueueRuns",
            "      PRODUCER enqueue agent",
            "        INTERNAL wait global lane main",
            "        CONSUMER run agent",
            "          INTERNAL run.started",
            "          INTERNAL thinking",
            "          CLIENT WorkerService/CompleteRuns",
            "            SERVER WorkerService/CompleteRuns",
        ]
    )
    run = dict(t.span("run agent").attributes or {})
    assert run[c.SESSION_ID] == run[c.GEN_AI_CONVERSATION_ID] == pseudonyms.of(SESSION)
    assert (run[c.RUN_ID], run[c.ATTEMPT], run[c.OUTCOME]) == (accepted.run.run_id, 1, "complete")
    everything = str([s.to_json() for s in t.exporter.get_finished_spans()])
    assert "49170" not in everything
    assert "c-1" not in everything
    # What is delivered is put below the turn that said it.
    said = [e for e in await s.log(SESSION) if e.WhichOneof("payload") == "message_completed"][-1]
    context = t.span("run agent").context
    assert context is not None
    assert said.trace.traceparent == tracecontext.traceparent_of(context)


async def test_a_wait_behind_another_says_what_was_told_and_how_wrong_it_was(
    s: Driver, t: Traced
) -> None:
    await s.lease()  # somebody works, else nobody knows when a run starts
    with t.message():
        await s.send("a", "one")
        await s.send("a", "two")
    first = await s.lease_one()
    await s.complete(first)
    await s.lease_one()
    assert len(t.spans("wait global lane main")) == 2
    waited = t.span("wait session lane")
    told = dict(waited.attributes or {})
    assert told[c.WAIT_POSITION] == 1
    estimate, error = told[c.WAIT_ESTIMATE], told[c.WAIT_ESTIMATE_ERROR]
    assert isinstance(estimate, float)
    assert isinstance(error, float)
    following = t.spans("wait global lane main")[-1]
    took = seconds(waited) + seconds(following)
    assert abs(estimate + error - took) < 1e-6
    assert waited.end_time == following.start_time


async def test_children_are_below_the_tool_and_their_ends_are_linked(s: Driver, t: Traced) -> None:
    async def work(turn: LeasedTurn) -> Outcome:
        if turn.run.spawn.depth or turn.leased.HasField("resumption"):
            return Complete(reply())
        with t.tracer.start_as_current_span("execute_tool sessions_spawn"):
            ids = await s.spawn(turn.leased, "x", "y")
        return waits(ids)

    with t.message():
        await s.send("a")
    async with working(s, t, work):
        await eventually(lambda: len(t.spans("run agent")) == 4)
    child = [
        "            PRODUCER enqueue agent",
        "              INTERNAL wait global lane subagent",
        "              CONSUMER run agent conveyor.outcome=complete",
        "                INTERNAL run.started",
        "                PRODUCER announce main",
    ]
    lines = t.tree(c.OUTCOME).replace(" conveyor.outcome=queued", "").splitlines()
    assert sorted(lines) == sorted(
        [
            "INTERNAL POST /messages",
            "  PRODUCER enqueue agent",
            "    INTERNAL wait global lane main",
            "    CONSUMER run agent conveyor.outcome=suspend",
            "      INTERNAL run.started",
            "      INTERNAL execute_tool sessions_spawn",
            *[line[4:] for line in child * 2],
            "    INTERNAL wait children",
            "    INTERNAL wait global lane main",
            "    CONSUMER run agent conveyor.outcome=complete",
            "      INTERNAL run.started",
        ]
    )
    assert t.orphans() == []
    resumed = t.spans("run agent")[-1]
    announced = [s.context.span_id for s in t.spans("announce main") if s.context is not None]
    assert sorted(links_of(resumed)) == sorted(announced)
    assert (resumed.attributes or {})[c.RESUME_REASON] == "children_settled"
    waited = t.span("wait children")
    assert (waited.attributes or {})[c.WAIT_CHILDREN_COUNT] == 2
    told = [e for e in await s.log("a") if e.WhichOneof("payload") == "child_announced"]
    assert {e.trace.traceparent for e in told} == {
        e.child_announced.announcement.trace.traceparent for e in told
    }


async def test_a_lost_lease_is_told_of_and_the_next_attempt_is_linked_to_it(
    s: Driver, t: Traced
) -> None:
    with t.message():
        await s.send("a")
    lost = await s.lease_one()
    s.me.incarnation += 1  # the process was killed, and started again
    again = await s.lease_one()
    assert again.lease.attempt == 2
    gone = t.span(c.RUN_LOST)
    assert gone.context is not None
    assert gone.status.status_code is trace.StatusCode.ERROR
    assert gone.status.description == "LEASE_LOST"
    assert (gone.attributes or {})[c.ATTEMPT] == 1
    assert (gone.attributes or {})[c.WORKER] == "agent-0"
    assert gone.start_time == lost.lease.expire_time.ToNanoseconds() - 10**9
    # In the place of the span that the worker would have made.
    own = tracecontext.turn_span_id(lost.run.run_id, lost.lease.fencing_token)
    assert gone.context.span_id == own
    assert [link.traceparent for link in again.links] == [tracecontext.traceparent_of(gone.context)]
    parent = gone.parent
    assert parent is not None
    assert parent.span_id == tracecontext.parse(lost.run.trace.traceparent).span_id  # type: ignore[union-attr]


async def test_a_worker_that_lost_its_lease_leaves_the_span_to_the_scheduler(
    s: Driver, t: Traced
) -> None:
    hold = asyncio.Event()

    async def work(turn: LeasedTurn) -> Outcome:
        if turn.attempt == 1:
            with t.tracer.start_as_current_span("at work"):
                await hold.wait()
        return Complete(reply())

    with t.message():
        accepted = await s.send("a")
    async with working(s, t, work):
        await eventually(lambda: t.spans(c.RUN_STARTED))
        run = await s.run(accepted.run.run_id)
        # The scheduler gives it up, as when nothing was heard of it for too long.
        k = s.engine._kernel
        await s.engine.submit(lambda k, now: _lose(k, run.run_id, now))
        assert k is s.engine._kernel
        await eventually(lambda: t.spans("run agent"))
    assert t.tree(c.ATTEMPT) == "\n".join(
        [
            "INTERNAL POST /messages",
            "  PRODUCER enqueue agent",
            "    INTERNAL wait global lane main",
            "    CONSUMER run.lost conveyor.attempt=1 ERROR",
            "      INTERNAL run.started conveyor.attempt=1",
            "      INTERNAL at work",
            "    INTERNAL wait global lane main",
            "    CONSUMER run agent conveyor.attempt=2",
            "      INTERNAL run.started conveyor.attempt=2",
        ]
    )
    assert t.orphans() == []
    lost = t.span(c.RUN_LOST).context
    assert lost is not None
    assert links_of(t.span("run agent")) == [lost.span_id]


def _lose(k: Any, run_id: str, now: int) -> None:
    from scheduler_svc.domain import attempts

    attempts.lose(k, k.runs[run_id], now)


async def test_a_failed_attempt_is_linked_from_the_next(s: Driver, t: Traced) -> None:
    async def work(turn: LeasedTurn) -> Outcome:
        if turn.attempt == 1:
            return Fail(TurnFailed("no"), retryable=True)
        return Complete(reply())

    with t.message():
        await s.send("a")
    async with working(s, t, work):
        await eventually(lambda: len(t.spans("run agent")) == 2)
    failed, done = t.spans("run agent")
    assert failed.context is not None
    assert (failed.attributes or {})[c.ERROR_TYPE] == "TURN_FAILED"
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert links_of(done) == [failed.context.span_id]


async def test_a_kept_turn_goes_on_in_a_span_of_its_own(s: Driver, t: Traced) -> None:
    async def work(turn: LeasedTurn) -> Outcome:
        limit = run_pb2.LimitWait(name="a limit")
        limit.retry_after.FromMilliseconds(10)
        wait = run_pb2.WaitCondition(limit=limit)
        await turn.wait_kept(ws.SuspendRunRequest(condition=wait, hold_session_lane=True))
        with t.tracer.start_as_current_span("after the wait"):
            return Complete(reply())

    with t.message():
        await s.send("a")
    async with working(s, t, work):
        await eventually(lambda: len(t.spans("run agent")) == 2)
    assert t.tree(c.TURN, calls=True) == "\n".join(
        [
            "INTERNAL POST /messages",
            "  CLIENT SchedulerService/EnqueueRuns",
            "    SERVER SchedulerService/EnqueueRuns",
            "      PRODUCER enqueue agent",
            "        INTERNAL wait global lane main conveyor.turn=1",
            "        CONSUMER run agent conveyor.turn=1",
            "          INTERNAL run.started conveyor.turn=1",
            "          CLIENT WorkerService/SuspendRun",
            "            SERVER WorkerService/SuspendRun",
            "        INTERNAL wait limit conveyor.turn=2",
            "        INTERNAL wait global lane main conveyor.turn=2",
            "        CONSUMER run agent conveyor.turn=2",
            "          INTERNAL run.started conveyor.turn=2",
            "          INTERNAL after the wait",
            "          CLIENT WorkerService/CompleteRuns",
            "            SERVER WorkerService/CompleteRuns",
        ]
    )


async def test_a_wait_outlives_a_restart_and_nothing_is_told_twice(
    tmp_path: Path, t: Traced
) -> None:
    async with scheduler(tmp_path, t, "sqlite") as before:
        with t.message():
            accepted = await before.send("a")
    async with scheduler(tmp_path, t, "sqlite") as after:
        leased = await after.lease_one()
    assert len(t.spans("enqueue agent")) == 1
    assert t.spans("wait session lane") == []
    waited = t.span("wait global lane main")
    assert waited.start_time == accepted.run.timing.create_time.ToNanoseconds()
    assert waited.end_time == leased.run.timing.start_time.ToNanoseconds()
    assert (waited.attributes or {})[c.WAIT_POSITION] == 1
    assert t.orphans() == []


async def test_a_repeated_request_is_told_of_once_and_one_that_joins_is_linked(
    s: Driver, t: Traced
) -> None:
    with t.message():
        item = s.item("a", "one", mode=lane_pb2.QUEUE_MODE_COLLECT)
        item.queue_policy.debounce.FromMilliseconds(20)
        other = s.item("a", "two", mode=lane_pb2.QUEUE_MODE_COLLECT)
        other.queue_policy.debounce.FromMilliseconds(20)
        for each in (item, item, other):
            await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[each]))
    outcomes = [(span.attributes or {})[c.OUTCOME] for span in t.spans("enqueue agent")]
    assert outcomes == ["queued", "collected"]
    leased = await s.lease_one()
    joined = t.spans("enqueue agent")[1].context
    assert joined is not None
    assert [link.traceparent for link in leased.links] == [tracecontext.traceparent_of(joined)]


async def test_a_run_that_is_stopped_while_it_waits_has_an_end_in_its_trace(
    s: Driver, t: Traced
) -> None:
    with t.message():
        accepted = await s.send("a")
        await s.lease_one()
        waiting = await s.send("a", "two")
        await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=waiting.run.run_id))
        await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=accepted.run.run_id))
    ended = t.span(c.RUN_ENDED)
    told = dict(ended.attributes or {})
    assert (told[c.RUN_ID], told[c.OUTCOME]) == (waiting.run.run_id, "cancelled")
    assert told[c.ERROR_TYPE] == "RUN_CANCELLED"
    assert ended.status.status_code is trace.StatusCode.UNSET
    assert (ended.start_time or 0) // 1000 == waiting.run.timing.create_time.ToMicroseconds()
    assert t.orphans() == []


async def test_what_is_refused_is_not_told_of(s: Driver, t: Traced) -> None:
    with t.message():
        await s.refused(s.item("a", "x", global_lane="nowhere"))
        await s.send("b")
    assert len(t.spans("enqueue agent")) == 1


async def test_a_run_may_begin_a_trace_with_a_link(tmp_path: Path, t: Traced) -> None:
    async with scheduler(tmp_path, t, CONVEYOR_TELEMETRY__CONTINUATION="link") as s:
        with t.message() as request:
            await s.send("a")
        leased = await s.lease_one()
        await s.spawn(leased, "x")
        await s.lease_one()
    root, spawned = t.spans("enqueue agent")
    assert root.context is not None
    assert root.parent is None
    assert root.context.trace_id != request.get_span_context().trace_id
    assert [link.context.trace_id for link in root.links] == [request.get_span_context().trace_id]
    assert spawned.context is not None
    assert spawned.context.trace_id not in (root.context.trace_id, 0)
    waited = t.spans("wait global lane main")[0].context
    assert waited is not None
    assert waited.trace_id == root.context.trace_id


async def test_nothing_is_made_of_a_trace_that_is_not_sampled(s: Driver, t: Traced) -> None:
    request = trace.NonRecordingSpan(
        trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(0))
    )

    async def answer(turn: LeasedTurn) -> Outcome:
        return Complete(reply())

    with trace.use_span(request):
        await s.send("a")
    async with working(s, t, answer):
        await eventually(lambda: _kinds(s))
    spans = t.exporter.get_finished_spans()
    # The test looks at its runs meanwhile: those calls are sampled for themselves.
    assert not [s.name for s in spans if c.RPC_METHOD not in (s.attributes or {})]


async def _kinds(s: Driver) -> bool:
    return (await s.kinds("a")).count("message_completed") == 2
