"""What the gateway leaves in a trace: messages, linked to those before them, commands, calls of
hooks and deliveries; and nobody's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc import spans as gateway_spans
from gateway_svc.delivery import dispatcher
from gateway_svc.delivery.channel import DeliveryFailed, Undeliverable
from svckit import captured, pseudonyms, tracecontext
from svckit.testing import eventually, memory_tracer, span_tree
from tests.service.gateway.suite import suite
from tests.service.gateway.test_gateway_delivery import Caught, Phone, caught
from tests.service.gateway.test_gateway_hooks import call, not_served

__all__ = ["caught"]

KEY = "agent:main:http:direct:+491701234567"
LOOKS = ("/List", "/Get", "/Explain")


def spans(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    found = [span for span in exporter.get_finished_spans() if span.name.startswith(name)]
    return sorted(found, key=lambda span: span.start_time or 0)


def facts(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return trace.format_trace_id(span.context.trace_id)


async def test_a_message_begins_a_trace_with_a_link_to_the_one_before_it(tmp_path: Path) -> None:
    tracer, exporter = memory_tracer()
    path = f"/v1/sessions/{KEY}/messages"
    async with suite(tmp_path) as around:
        around.agent.hold("hold")
        async with around.serve(tracer):
            first = (await around.http.post(path, json={"text": "one"})).json()["accepted"]
            await around.http.post("/v1/commands", json={"text": "/status", "session_key": KEY})
            refused = await around.http.post("/v1/commands", json={"text": "/why 99 99"})
            assert refused.status_code == 400
        # It is remembered by whoever serves next.
        async with around.serve(tracer):
            held = await around.send(KEY, "hold", request_id="r-hold")
            await eventually(lambda: "hold" in around.agent.started, timeout=30)
            steer = {"text": "also", "queue_mode": "QUEUE_MODE_STEER"}
            steered = (await around.http.post(path, json=steer)).json()["accepted"]
            around.agent.let_go("hold")
            # A watch, and who looks on as the console does, leave nothing.
            quiet = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
            await around.http.get("/v1/lanes", headers=quiet)
            again = await around.send(KEY, "hold", request_id="r-hold")
            run = (await around.stub.GetRun(ss.GetRunRequest(run_id=first["run"]["run_id"]))).run
    assert again.accepted.deduplicated
    assert steered["run"]["run_id"] == held.accepted.run.run_id
    shown = ("http.response.status_code", "conveyor.accept.outcome", "error.type")
    tree = span_tree(exporter, attributes=shown, without=LOOKS)
    sends, takes = "GatewayService/SendMessage", "SchedulerService/EnqueueRuns"
    posts = "SERVER POST /v1/sessions/{key}/messages http.response.status_code=202"
    commands = "SERVER POST /v1/commands http.response.status_code"
    assert tree == "\n".join(
        [
            posts,
            "  INTERNAL accept message conveyor.accept.outcome=queued",
            f"    CLIENT {takes}",
            f"{commands}=200",
            "  INTERNAL command status",
            f"{commands}=400",
            "  INTERNAL command why error.type=INVALID_FIELD",
            f"CLIENT {sends}",
            f"  SERVER {sends}",
            "    INTERNAL accept message conveyor.accept.outcome=queued",
            f"      CLIENT {takes}",
            posts,
            "  INTERNAL accept message conveyor.accept.outcome=steered",
            f"    CLIENT {takes}",
            f"CLIENT {sends}",
            f"  SERVER {sends}",
            "    INTERNAL accept message conveyor.accept.outcome=queued",
            f"      CLIENT {takes}",
        ]
    )
    taken = spans(exporter, "accept message")
    one, hold, _, _ = taken
    # Each begins a trace of its own, and says which one the session was in before.
    assert len({trace_id(span) for span in taken}) == 4
    links = [[f"{link.context.trace_id:032x}" for link in span.links] for span in taken]
    # The third joined a run, the fourth was the second again: both point at its trace.
    assert links == [[], [trace_id(one)], 2 * [trace_id(hold)], 2 * [trace_id(hold)]]
    assert tracecontext.trace_id_of(run.trace) == trace_id(one)
    request = spans(exporter, "POST /v1/sessions")[0]
    for span in (request, one, spans(exporter, "command status")[0]):
        assert facts(span)["session.id"] == pseudonyms.of(KEY)
    assert facts(request)["http.route"] == "/v1/sessions/{key}/messages"
    assert facts(one)["conveyor.run.id"] == first["run"]["run_id"]
    everything = " ".join(span.to_json() for span in exporter.get_finished_spans())
    assert "+491701234567" not in everything
    assert "a" * 32 not in everything


async def test_with_contents_the_request_says_what_was_said(tmp_path: Path) -> None:
    tracer, exporter = memory_tracer()
    async with (
        suite(tmp_path, CONVEYOR_TELEMETRY__CAPTURE_CONTENT="true") as around,
        around.serve(tracer),
    ):
        await around.http.post(f"/v1/sessions/{KEY}/messages", json={"text": "hi"})
        await around.http.post(f"/v1/sessions/{KEY}/messages", json={"text": "long " * 20_000})
    said, long = (facts(span) for span in spans(exporter, "POST"))
    assert (said["input.value"], said["input.mime_type"]) == ("hi", "text/plain")
    assert json.loads(said["gen_ai.input.messages"])[0]["role"] == "user"
    # A collector refuses a batch for one span that is too large.
    assert len(long["input.value"]) == captured.ATTRIBUTE_BYTES


async def test_a_delivery_belongs_to_what_it_tells_of_and_few_of_its_attempts_are_shown(
    tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_spans, "MOST_ATTEMPTS_SHOWN", 2)
    monkeypatch.setattr(dispatcher, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(dispatcher, "_FIRST_PAUSE", 0.01)
    tracer, exporter = memory_tracer()
    phone = Phone()
    phone.failures["annabel"] = [DeliveryFailed("away") for _ in range(4)]
    phone.failures["robert"] = [Undeliverable("gone")]
    async with suite(tmp_path, [phone]) as around, around.serve(tracer):
        for peer in ("annabel", "robert"):
            await caught.hear(peer, f"s3cret of {peer}")
        await caught.hear("annabel", "/queue")
        await eventually(lambda: len(spans(exporter, "deliver")) == 5, timeout=30)
    shown = ("conveyor.delivery.attempt", "conveyor.delivery.outcome", "error.type")
    delivered = spans(exporter, "deliver phone")
    told = [[facts(span)[key] for key in shown if key in facts(span)] for span in delivered]
    assert sorted(told) == [
        [1, "delivered"],
        [1, "given_up", "undeliverable"],
        [1, "postponed", "delivery_failed"],
        [2, "postponed", "delivery_failed"],
        [5, "delivered"],
    ]
    # Below the message that is answered, also when the answer comes an hour later.
    traces = {trace_id(span) for span in spans(exporter, "accept message")}
    assert {trace_id(span) for span in delivered} <= traces | {
        trace_id(span) for span in spans(exporter, "command queue")
    }
    assert all(span.parent is not None for span in delivered)
    everything = " ".join(span.to_json() for span in exporter.get_finished_spans())
    for name in ("s3cret", "annabel", "robert"):
        assert name not in everything, name


async def test_a_call_of_a_hook_is_named_once_it_is_known_who_called(tmp_path: Path) -> None:
    tracer, exporter = memory_tracer()
    sent = {"repository": {"full_name": "s3cret/web"}, "message": "s3cret"}
    async with not_served(tmp_path) as around, around.serve(tracer):
        for _ in range(2):
            assert (await call(around, "ci", sent)).status_code == 202
        assert (await call(around, "ci", sent, "msg_2", key=b"another")).status_code == 401
        assert (await call(around, "s3cret", sent)).status_code == 401
    shown = ("http.response.status_code", "conveyor.hook.action", "conveyor.accept.deduplicated")
    post = "SERVER POST /hooks/{name} http.response.status_code"
    hook, again = "conveyor.hook.action=message", "conveyor.accept.deduplicated"
    assert span_tree(exporter, attributes=shown, without=(*LOOKS, "Enqueue")) == "\n".join(
        [
            f"{post}=202",
            f"  INTERNAL hook ci {hook} {again}=False",
            f"    INTERNAL accept message {again}=False",
            f"{post}=202",
            f"  INTERNAL hook ci {hook} {again}=True",
            f"{post}=401",
            f"{post}=401",
        ]
    )
    assert "s3cret" not in " ".join(span.to_json() for span in exporter.get_finished_spans())


async def test_only_who_has_a_token_says_to_which_trace_a_call_belongs(tmp_path: Path) -> None:
    """Strangers had spans recorded whatever the ratio, and in traces of others."""
    tracer, exporter = memory_tracer()
    token = "token-of-anna-0123456789"
    of_anna = "CONVEYOR_GATEWAY__TOKENS__ANNA__"
    (tmp_path / "token").write_text(token)
    env = {f"{of_anna}TOKEN_FILE": str(tmp_path / "token"), f"{of_anna}SCOPES": '["read"]'}
    said = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    stranger, known = said, said | {"authorization": f"Bearer {token}"}
    name = "/conveyor.gateway.v1.GatewayService/GetServerInfo"
    async with suite(tmp_path, **env) as around, around.serve(tracer):
        for headers, status in ((stranger, 401), (known, 200)):
            answer = await around.http.get("/v1/server", headers=headers)
            assert answer.status_code == status
        refused = await around.http.post("/hooks/none", headers=stranger)
        assert refused.status_code == 401
        async with grpc.aio.insecure_channel(around.gateway.address) as channel:
            call: Any = channel.unary_unary(name)
            for metadata in (stranger, known):
                with suppress(grpc.aio.AioRpcError):
                    await call(b"", metadata=tuple(metadata.items()))
    begun = [
        (
            facts(span).get("http.response.status_code") or facts(span)["rpc.response.status_code"],
            trace_id(span) == "a" * 32,
            [trace.format_trace_id(link.context.trace_id) for link in span.links],
        )
        for span in exporter.get_finished_spans()
        if span.kind is trace.SpanKind.SERVER
    ]
    linked = (False, ["a" * 32])
    assert begun == [
        (401, *linked),
        (200, True, []),
        (401, *linked),
        ("UNAUTHENTICATED", *linked),
        ("OK", True, []),
    ]
