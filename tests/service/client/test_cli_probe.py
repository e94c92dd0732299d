"""`conveyor model`: a probe as it runs, its verdict, and the list."""

from __future__ import annotations

import json

import pytest

from conveyor.agent.v1 import agent_service_pb2 as agent_pb
from conveyor.agent.v1 import probe_pb2 as pb
from conveyor_client.diagnosis import judged
from svckit.errors import ModelUnavailable
from tests.service.client.conftest import Gateway
from tests.service.client.test_cli import conveyor

REPORT = pb.ProbeReport(
    model="local:qwen",
    base_url="http://127.0.0.1:11434/v1",
    verdict=pb.PROBE_VERDICT_NEEDS_INSISTING,
    explanation="It does what it is told.",
    figures=[
        pb.ProbeFigure(tier=1, outcome=pb.PROBE_OUTCOME_RIGHT, count=1),
        pb.ProbeFigure(tier=1, outcome=pb.PROBE_OUTCOME_INVENTED_REFUSAL, count=3),
        pb.ProbeFigure(tier=2, outcome=pb.PROBE_OUTCOME_RIGHT, count=4),
    ],
    scores=[
        pb.ProbeScore(tier=1, tries=4, good=1, share=0.25, low=0.05, high=0.7, required=0.75),
        pb.ProbeScore(tier=2, tries=4, good=4, share=1, low=0.51, high=1, required=0.85),
    ],
    provider_errors=2,
    prompt_set="1",
)
RESULTS = [
    pb.ProbeResult(prompt_id="natural-a", tier=1, outcome=pb.PROBE_OUTCOME_RIGHT),
    pb.ProbeResult(
        prompt_id="natural-b",
        tier=1,
        outcome=pb.PROBE_OUTCOME_INVENTED_REFUSAL,
        excerpt="I may not.\n\x1b[31mNot [bold]me.",
    ),
    pb.ProbeResult(
        prompt_id="explicit-c",
        tier=2,
        outcome=pb.PROBE_OUTCOME_WRONG_COUNT,
        expected_children=3,
        asked_children=1,
    ),
]


def script(gateway: Gateway) -> None:
    REPORT.usage.model_calls, REPORT.usage.input_tokens = 8, 1000
    items = [agent_pb.ProbeModelResponse(result=result, total=8) for result in RESULTS]
    gateway.script.queue(
        "ProbeModel", [*items, agent_pb.ProbeModelResponse(report=REPORT, total=8)]
    )


async def test_a_probe_tells_what_went_wrong_and_its_verdict_with_figures(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    script(gateway)
    verb = ["model", "probe", "local:qwen", "--tier", "natural", "--tier", "explicit"]
    assert await conveyor("--address", gateway.address, *verb, "--repetitions", "2") == 0
    assert capsys.readouterr().out.splitlines() == [
        "natural-b: invented a refusal: I may not. [31mNot [bold]me.",
        "explicit-c: wrong number of sub-agents (1, right: 3)",
        "",
        "local:qwen at http://127.0.0.1:11434/v1: needs-insisting",
        "It does what it is told.",
        "",
        "  natural     1 of 4 good,  25% (95 %: 5% to 70%; required: 75%)",
        "  explicit    4 of 4 good, 100% (95 %: 51% to 100%; required: 85%)",
        "  natural: invented a refusal 3",
        "  provider errors, not counted: 2",
        "",
        "8 model calls, 1,000 tokens; prompt set 1; not stored, since not all tiers were tried",
    ]
    (asked,) = gateway.script.calls["ProbeModel"]
    assert (asked.model, list(asked.tiers), asked.repetitions) == ("local:qwen", [1, 2], 2)


async def test_a_probe_as_json_is_one_document_per_line(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    script(gateway)
    assert await conveyor("--address", gateway.address, "model", "probe", "x", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["result" in line for line in lines] == [True, True, True, False]
    assert lines[-1]["report"]["verdict"] == "PROBE_VERDICT_NEEDS_INSISTING"


async def test_a_probe_of_a_provider_that_is_away_says_so(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.always("ProbeModel", ModelUnavailable("probe of x:y at http://z stopped"))
    assert await conveyor("--address", gateway.address, "model", "probe", "x:y") == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == "error: probe of x:y at http://z stopped (MODEL_UNAVAILABLE)\n"


async def test_the_list_shows_the_verdict_of_each_model(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [agent_pb.Model(model="demo"), agent_pb.Model(model="local:qwen", probe=REPORT)]
    gateway.script.always("ListModels", agent_pb.ListModelsResponse(models=models))
    assert await conveyor("--address", gateway.address, "model", "list") == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert "never probed" in first
    assert "needs-insisting" in second
    assert "natural 1/4, explicit 4/4" in second


@pytest.mark.parametrize(
    ("verdict", "status", "words"),
    [
        (pb.PROBE_VERDICT_ORCHESTRATOR, "ok", "orchestrator"),
        (pb.PROBE_VERDICT_NEEDS_INSISTING, "warning", "needs-insisting"),
        (pb.PROBE_VERDICT_LEAF_ONLY, "warning", "leaf-only"),
        (pb.PROBE_VERDICT_UNSPECIFIED, "warning", "too few"),
    ],
)
def test_doctor_says_what_a_verdict_means(
    verdict: pb.ProbeVerdict.ValueType, status: str, words: str
) -> None:
    found = judged(agent_pb.Model(model="m", probe=pb.ProbeReport(verdict=verdict)))
    assert (found.status, words in found.message) == (status, True)
    assert judged(agent_pb.Model(model="m")).hint == "conveyor model probe m"
