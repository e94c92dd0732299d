"""What a harness at work leaves in a trace: a span per turn of its run, its tools below the turn in
which they begin, and nothing of what was said unless that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from acp_svc import spans as acp_spans
from conveyor.scheduler.v1 import run_pb2
from svckit import pseudonyms
from svckit.testing import eventually
from svckit.testing.spans import memory_tracer, span_tree
from tests.service.acp.turn_bench import TurnBench, turn_bench

# What the scheduler tells, and calls between the services, are tested elsewhere.
OURS = ("/", "run.started", "enqueue", "wait session", "wait global", "wait approval", "run.lost")


def spans(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    found = [span for span in exporter.get_finished_spans() if span.name.startswith(name)]
    return sorted(found, key=lambda span: span.start_time or 0)


def facts(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


async def turns_over(exporter: InMemorySpanExporter, count: int) -> None:
    """A turn's own span ends a moment after its run."""
    await eventually(lambda: len(spans(exporter, "run acp")) == count, timeout=30)


async def answered_twice(b: TurnBench, run_id: str) -> run_pb2.Run:
    """Allow what is asked first, and then what is asked next."""
    [first] = await b.questions()
    await b.answer(first, "allow")

    async def next_is_asked() -> bool:
        return [q.question_id for q in await b.questions()] != [first.question_id]

    await eventually(next_is_asked, timeout=30)
    await b.answer((await b.questions())[0], "allow")
    return await b.ended(run_id)


async def test_what_follows_a_permission_belongs_to_the_turn_at_work(tmp_path: Path) -> None:
    """All of it stood below the span of the first turn, and the spans of the others were empty."""
    tracer, exporter = memory_tracer()
    async with turn_bench(tmp_path, tracer=tracer) as b:
        session_id = await b.spawn()
        run_id = await b.send(
            session_id, "write secret.txt s3cret ;; peek secret.txt ;; run true ;; usage"
        )
        run = await answered_twice(b, run_id)
        await turns_over(exporter, 3)
    shown = ("conveyor.outcome", "conveyor.waits_for", "conveyor.acp.permission.rule")
    waits = "conveyor.outcome=suspend conveyor.waits_for=approval"
    assert span_tree(exporter, attributes=shown, without=OURS) == "\n".join(
        [
            "CONSUMER run acp conveyor.outcome=suspend",
            "  INTERNAL open scripted",
            f"  CLIENT invoke_agent scripted {waits}",
            "    INTERNAL execute_tool edit",
            "    INTERNAL wait permission conveyor.acp.permission.rule=asked",
            "CONSUMER run acp conveyor.outcome=suspend",
            f"  CLIENT invoke_agent scripted {waits}",
            "    INTERNAL execute_tool read",
            "    INTERNAL execute_tool execute",
            "    INTERNAL wait permission conveyor.acp.permission.rule=asked",
            "CONSUMER run acp conveyor.outcome=complete",
            "  CLIENT invoke_agent scripted conveyor.outcome=complete",
        ]
    )
    first, second, third = spans(exporter, "invoke_agent")
    assert [facts(span)["conveyor.turn"] for span in (first, second, third)] == [1, 2, 3]
    [link] = second.links
    assert first.context is not None
    assert link.context.span_id == first.context.span_id
    # A wait is no work: the turn before it is over when it begins.
    assert (first.end_time or 0) < (second.start_time or 0)
    told = facts(third)
    assert told["session.id"] == told["gen_ai.conversation.id"]
    assert told["session.id"] == pseudonyms.of(run.spec.session_key)
    assert told["llm.token_count.prompt"] > 0
    assert told["gen_ai.response.finish_reasons"] == ("end_turn",)
    everything = " ".join(span.to_json() for span in exporter.get_finished_spans())
    assert "s3cret" not in everything
    assert "secret.txt" not in everything
    assert run.spec.session_key not in everything


async def test_what_a_rule_decided_what_failed_and_what_was_said(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(acp_spans, "MOST_TOOL_SPANS", 2)
    tracer, exporter = memory_tracer()
    async with turn_bench(tmp_path, tracer=tracer, more="[telemetry]\ncapture_content = true") as b:
        session_id = await b.spawn(mode="deny-all")
        tools = " ;; ".join(f"tool number {number}" for number in range(4))
        await b.prompt(session_id, f"write a.txt x ;; {tools} ;; say:done ;; stop my-s3cret")
        await b.ended(await b.send(session_id, "error -32603 s3cret"))
        await turns_over(exporter, 2)
    shown = (
        *("error.type", "conveyor.acp.permission.rule", "conveyor.cause"),
        *("conveyor.tools.left_out", "conveyor.acp.stop_reason"),
    )
    failed = "error.type=ACP_TURN_FAILED conveyor.cause=protocol"
    assert span_tree(exporter, attributes=shown, events=True, without=OURS) == "\n".join(
        [
            "CONSUMER run acp",
            "  INTERNAL open scripted",
            "  CLIENT invoke_agent scripted conveyor.tools.left_out=3 "
            "conveyor.acp.stop_reason=other",
            "    * permission decided conveyor.acp.permission.rule=deny-all",
            "    INTERNAL execute_tool edit error.type=tool ERROR",
            "    INTERNAL execute_tool other",
            "CONSUMER run acp error.type=ACP_TURN_FAILED ERROR",
            "  INTERNAL open scripted",
            f"  CLIENT invoke_agent scripted {failed} ERROR",
        ]
    )
    first, second = (facts(span) for span in spans(exporter, "invoke_agent"))
    assert first["input.value"].startswith("write a.txt x")
    assert "done" in json.loads(first["gen_ai.output.messages"])[0]["parts"][0]["content"]
    assert second["input.value"] == "error -32603 s3cret"
    everything = " ".join(
        span.to_json()
        for span in exporter.get_finished_spans()
        if not span.name.startswith("invoke_agent")
    )
    assert "s3cret" not in everything
