"""What the gateway says of itself, and where it says that a failed call can be seen."""

from __future__ import annotations

import time
from pathlib import Path

import grpc.aio
import pytest

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from svckit.grpc.status import from_rpc_error
from svckit.testing import memory_tracer
from svckit.version import __version__
from tests.service.gateway.suite import suite

TEMPLATE = "https://traces.example/trace/{trace_id}?tab=tree"
TOKEN = "token-of-ann-0123456789"
TOKENS = {
    "CONVEYOR_GATEWAY__TOKENS__ANN__TOKEN_FILE": "ann.token",
    "CONVEYOR_GATEWAY__TOKENS__ANN__SCOPES": "read",
    "CONVEYOR_GATEWAY__TOKENS__ANN__CUSTOMER_KEY": "ann",
}


async def test_it_says_its_release_and_where_traces_are_shown(tmp_path: Path) -> None:
    async with suite(tmp_path, CONVEYOR_TELEMETRY__UI_URL=TEMPLATE) as around, around.serve():
        server = (await around.stub.GetServerInfo(gw.GetServerInfoRequest())).server
        assert (server.version, server.trace_url_template) == (__version__, TEMPLATE)
        assert abs(server.start_time.ToMicroseconds() / 1e6 - time.time()) < 60
        answer = (await around.http.get("/v1/server")).json()["server"]
        assert answer.pop("start_time").endswith("Z")
        assert answer == {"version": __version__, "trace_url_template": TEMPLATE}
        assert (await around.http.get("/v1/server?verbose=1")).status_code == 400


async def test_an_error_names_its_trace_and_to_those_let_in_the_page_that_shows_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "ann.token").write_text(TOKEN)
    env = TOKENS | {"CONVEYOR_GATEWAY__TOKENS__ANN__TOKEN_FILE": str(tmp_path / "ann.token")}
    tracer, exporter = memory_tracer()
    held = {"Authorization": f"Bearer {TOKEN}"}
    # As a caller that has a trace of its own sends it.
    its_own = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    async with (
        suite(tmp_path, CONVEYOR_TELEMETRY__UI_URL=TEMPLATE, **env) as around,
        around.serve(tracer),
    ):
        for path in ("/v1/runs/none", "/v1/runs?page_size=many"):
            answer = await around.http.get(path, headers=held)
            told = answer.json()["error"]
            assert told["trace_id"] in _traces(exporter), path
            assert told["trace_url"] == TEMPLATE.replace("{trace_id}", told["trace_id"])
        told = (await around.http.get("/v1/runs/none", headers=held | its_own)).json()["error"]
        assert told["trace_id"] == "a" * 32

        stranger = (await around.http.get("/v1/runs/none")).json()["error"]
        assert stranger["trace_id"] in _traces(exporter)
        hook = (await around.http.post("/hooks/none", content=b"{}")).json()["error"]
        for refused in (stranger, hook):
            assert "trace_url" not in refused, refused["reason"]

        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await around.stub.GetRun(
                ss.GetRunRequest(run_id="none"),
                metadata=(("authorization", f"Bearer {TOKEN}"),),
            )
        assert from_rpc_error(failed.value).trace_id in _traces(exporter)


async def test_without_a_trace_an_error_names_none(tmp_path: Path) -> None:
    async with suite(tmp_path, CONVEYOR_TELEMETRY__UI_URL=TEMPLATE) as around, around.serve():
        told = (await around.http.get("/v1/runs/none")).json()["error"]
        assert set(told) == {"reason", "message", "metadata", "fields"}


def _traces(exporter: object) -> set[str]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    assert isinstance(exporter, InMemorySpanExporter)
    spans = [span.get_span_context() for span in exporter.get_finished_spans()]
    return {trace.format_trace_id(span.trace_id) for span in spans if span}
