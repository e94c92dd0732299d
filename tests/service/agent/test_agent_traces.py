"""What a turn of an agent leaves in a trace: one span for the turn, one per model and tool, what
happened between them, and nothing of what was said unless that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conveyor.common.v1 import question_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit import pseudonyms, tracecontext
from svckit.testing import eventually, memory_tracer, span_tree
from svckit.testing.fake_openai import Failure, FakeOpenAI, Reply, ToolCall
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import SESSION, FakeScheduler, reply_text, said

OURS = ("WorkerService", "run.started", "LimitService/Reserve", "AcpService")
SECRET = "my-secret-words"


def toml(provider: FakeOpenAI, more: str = "") -> str:
    return f"""
{more}
[agents.defaults]
model = "fake:big"
fallback_models = ["other:small"]
[agents.defaults.approvals]
sessions_spawn = "ask"
[providers.fake]
base_url = "{provider.base_url}"
input_price_usd = 2
output_price_usd = 10
[providers.other]
base_url = "{provider.base_url}"
"""


def spans(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    found = [span for span in exporter.get_finished_spans() if span.name.startswith(name)]
    return sorted(found, key=lambda span: span.start_time or 0)


def facts(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


async def answer(
    scheduler: FakeScheduler, exporter: InMemorySpanExporter, run: ws.LeasedRun
) -> Any:
    """Let a turn be done, until its spans are there."""
    end = await scheduler.answer(run)
    key = (run.run.run_id, run.lease.turn)
    await eventually(
        lambda: any(
            (found.get("conveyor.run.id"), found.get("conveyor.turn")) == key
            for found in map(facts, spans(exporter, "run agent"))
        ),
        timeout=30,
    )
    return end


async def test_one_turn_is_one_piece_of_its_flows_trace(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    tracer, exporter = memory_tracer()
    async with start_agent(tracer=tracer):
        with tracer.start_as_current_span("enqueue main"):
            created = tracecontext.current()
        leased = scheduler.leased("[[spawn: dig]]")
        leased.run.trace.CopyFrom(created)
        await answer(scheduler, exporter, leased)
        done = scheduler.resumption(scheduler.child_result("C1", "gold"))
        again = scheduler.leased("[[spawn: dig]]", turn=2, resumption=done)
        again.run.trace.CopyFrom(created)
        await answer(scheduler, exporter, again)
        # Another message: this turn gives the conversation back meanwhile.
        yields = "[[spawn-background: dig]] [[yield: later]]"
        await answer(scheduler, exporter, scheduler.leased(yields, run_id="R2"))
    shown = ("conveyor.outcome", "conveyor.waits_for", "conveyor.yielded")
    waits = "conveyor.outcome=suspend conveyor.waits_for=children"
    assert span_tree(exporter, attributes=shown, without=OURS) == "\n".join(
        [
            "INTERNAL enqueue main",
            "  CONSUMER run agent conveyor.outcome=suspend",
            f"    INTERNAL invoke_agent main {waits} conveyor.yielded=False",
            "      CLIENT chat demo",
            "      INTERNAL execute_tool sessions_spawn",
            "        CLIENT SchedulerService/EnqueueRuns",
            "  CONSUMER run agent conveyor.outcome=complete",
            "    INTERNAL invoke_agent main conveyor.outcome=complete",
            "      CLIENT chat demo",
            "CONSUMER run agent conveyor.outcome=suspend",
            f"  INTERNAL invoke_agent main {waits} conveyor.yielded=True",
            "    CLIENT chat demo",
            "    INTERNAL execute_tool sessions_spawn",
            "      CLIENT SchedulerService/EnqueueRuns",
            "    INTERNAL execute_tool sessions_yield",
        ]
    )
    # The child is created by the tool, and stored with the tool's context.
    stored = scheduler.children["C1"].trace.traceparent
    tool, _ = spans(exporter, "execute_tool sessions_spawn")
    assert tool.context is not None
    assert f"{tool.context.span_id:016x}" in stored
    assert facts(tool)["conveyor.children.started"] == 1
    # What both conventions say of the turn, known before a sampler decides.
    turn = facts(spans(exporter, "invoke_agent")[0])
    assert (turn["gen_ai.agent.name"], turn["openinference.span.kind"]) == ("main", "AGENT")
    assert turn["session.id"] == turn["gen_ai.conversation.id"] == pseudonyms.of(SESSION)
    assert (turn["gen_ai.request.model"], turn["gen_ai.provider.name"]) == ("demo", "conveyor")
    everything = " ".join(str(facts(span)) for span in exporter.get_finished_spans())
    assert SESSION not in everything


async def test_models_that_fail_answer_and_stand_in_each_have_their_span(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    tracer, exporter = memory_tracer()
    provider.script(
        Failure(500, message=SECRET),
        Failure(404, message=SECRET),
        Reply(tool_calls=[ToolCall("rm_rf_" + SECRET), ToolCall("agents_list")]),
        Reply("hi", model="big-2025", input_tokens=70, output_tokens=9),
    )
    async with start_agent(toml(provider), tracer=tracer):
        with tracer.start_as_current_span("POST steer"):
            sender = tracecontext.current()
        steered = said("s1", f"also {SECRET}")
        steered.trace.CopyFrom(sender)
        leased = scheduler.leased(f"go {SECRET}")
        leased.steered.append(steered)
        end = await answer(scheduler, exporter, leased)
        # A turn that fails because both models do.
        provider.script(Failure(401, message=SECRET), Failure(401, message=SECRET))
        await answer(scheduler, exporter, scheduler.leased("go", run_id="R2"))
    assert reply_text(end) == "hi"
    shown = (
        *("error.type", "gen_ai.provider.name", "gen_ai.response.model"),
        *("conveyor.model.attempt", "conveyor.model.retry_reason", "conveyor.steered.inputs"),
    )
    tree = span_tree(exporter, attributes=shown, events=True, without=("POST", *OURS))
    attempt, why = "conveyor.model.attempt", "conveyor.model.retry_reason"
    one = f"error.type=MODEL_UNAVAILABLE {attempt}=1 {why}=server_error"
    two = f"error.type=MODEL_REJECTED {attempt}=2 {why}=not_found"
    key = f"error.type=MODEL_REJECTED {attempt}=1 {why}=auth"
    openai = "gen_ai.provider.name=openai"
    other = f"gen_ai.response.model=small {attempt}=1 {why}=not_found"
    last = f"{attempt}=1 {why}=auth"
    assert tree == "\n".join(
        [
            "CONSUMER run agent",
            f"  INTERNAL invoke_agent main {openai}",
            "    * steered conveyor.steered.inputs=1",
            f"    CLIENT chat big error.type=MODEL_REJECTED {openai} {attempt}=2 ERROR",
            f"      * model call failed {one}",
            f"      * model call failed {two}",
            f"    CLIENT chat small {openai} {other}",
            "    INTERNAL execute_tool unknown error.type=tool ERROR",
            "    INTERNAL execute_tool agents_list",
            f"    CLIENT chat big {openai} gen_ai.response.model=big-2025 {attempt}=1",
            "CONSUMER run agent error.type=MODEL_REJECTED ERROR",
            f"  INTERNAL invoke_agent main error.type=MODEL_REJECTED {openai} ERROR",
            f"    CLIENT chat big error.type=MODEL_REJECTED {openai} {attempt}=1 ERROR",
            f"      * model call failed {key}",
            f"    CLIENT chat small error.type=MODEL_REJECTED {openai} {last} ERROR",
            f"      * model call failed {key}",
        ]
    )
    said_hi = facts(spans(exporter, "chat big")[1])
    assert said_hi["gen_ai.usage.input_tokens"] == said_hi["llm.token_count.prompt"] == 70
    assert said_hi["llm.token_count.total"] == 79
    assert said_hi["gen_ai.response.finish_reasons"] == ("stop",)
    assert said_hi["llm.cost.total"] == (70 * 2 + 9 * 10) / 1e6
    assert said_hi["conveyor.model.provider_id"] == "fake"
    assert facts(spans(exporter, "chat small")[0])["gen_ai.response.finish_reasons"] == (
        "tool_call",
    )
    # Who steered is linked, since it is another trace.
    (link,) = spans(exporter, "invoke_agent")[0].links
    assert trace.format_trace_id(link.context.trace_id) == tracecontext.trace_id_of(sender)
    everything = " ".join(span.to_json() for span in exporter.get_finished_spans())
    assert SECRET not in everything


async def test_a_call_that_people_are_asked_about_says_so_in_both_turns(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    tracer, exporter = memory_tracer()
    provider.script(
        Reply(tool_calls=[ToolCall("sessions_spawn", {"task": SECRET})]),
        Reply(f"no {SECRET}"),
    )
    async with start_agent(toml(provider, "[telemetry]\ncapture_content = true"), tracer=tracer):
        await answer(scheduler, exporter, scheduler.leased(f"go {SECRET}"))
        denied = question_pb2.Answer(
            question_id="R1/1.2.1", option_id="deny", responder="+491701234567"
        )
        resumption = ann.Resumption(reason=ann.RESUME_REASON_ANSWERED, answers=[denied])
        again = scheduler.leased(f"go {SECRET}", turn=2, resumption=resumption)
        await answer(scheduler, exporter, again)
    shown = ("conveyor.question.id", "conveyor.question.outcome", "conveyor.waits_for")
    assert span_tree(exporter, attributes=shown, events=True, without=OURS) == "\n".join(
        [
            "CONSUMER run agent",
            "  INTERNAL invoke_agent main conveyor.waits_for=approval",
            "    * question asked conveyor.question.id=R1/1.2.1",
            "    CLIENT chat big",
            "CONSUMER run agent",
            "  INTERNAL invoke_agent main",
            "    * question answered conveyor.question.id=R1/1.2.1 conveyor.question.outcome=deny",
            "    * tool not run",
            "    CLIENT chat big",
        ]
    )
    # Contents, as they were asked for: of both conventions, and of nobody's number.
    first, second = (facts(span) for span in spans(exporter, "invoke_agent"))
    assert first["input.value"] == f"go {SECRET}"
    assert json.loads(first["gen_ai.input.messages"])[0]["parts"][0]["content"] == f"go {SECRET}"
    assert "output.value" not in first
    assert second["output.value"] == f"no {SECRET}"
    asked, answered = (facts(span) for span in spans(exporter, "chat big"))
    [call] = json.loads(asked["gen_ai.output.messages"])[0]["parts"]
    assert (call["name"], call["arguments"]) == ("sessions_spawn", {"task": SECRET})
    assert asked["gen_ai.system_instructions"]
    roles = [one["role"] for one in json.loads(answered["gen_ai.input.messages"])]
    assert roles[-2:] == ["assistant", "tool"]
    assert answered["output.value"] == f"no {SECRET}"
    assert "+491701234567" not in " ".join(
        span.to_json() for span in exporter.get_finished_spans() if "chat" not in span.name
    )
