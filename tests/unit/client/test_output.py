from __future__ import annotations

import json
import re
import tomllib

import pytest
from google.protobuf.any_pb2 import Any
from rich.console import Console

from conveyor.acp.v1 import doctor_pb2
from conveyor.agent.v1 import task_pb2
from conveyor.scheduler.v1 import flow_service_pb2, run_pb2, scheduler_service_pb2
from conveyor_client.cli.output import (
    as_json,
    fitting,
    measured,
    print_table,
    printable,
    tokens,
)
from conveyor_client.cli.tree import flow_tree, guard_words, node_line
from conveyor_client.diagnosis import flat_toml, summarise
from svckit.settings import load
from svckit.words import shorten, span


def node(run_id: str, parent: str, label: str, state: run_pb2.RunState.ValueType) -> run_pb2.Run:
    run = run_pb2.Run(run_id=run_id, state=state, turn=1, attempt=1)
    run.spec.label = label
    run.spec.queue = "agent"
    run.spawn.parent_run_id = parent
    run.usage.input_tokens = 1200
    run.usage.output_tokens = 34
    run.timing.create_time.seconds = 1000
    run.timing.start_time.seconds = 1001
    run.timing.executed.FromMilliseconds(2500)
    run.timing.global_lane_wait.FromMilliseconds(1000)
    run.timing.end_time.seconds = 1070
    return run


def test_a_flow_is_a_tree_with_states_times_and_tokens() -> None:
    answer = flow_service_pb2.GetFlowResponse(
        nodes=[
            node("R", "", "", run_pb2.RUN_STATE_SUSPENDED),
            node("A", "R", "research [x]", run_pb2.RUN_STATE_SUCCEEDED),
            node("B", "R", "draft", run_pb2.RUN_STATE_FAILED),
            node("C", "A", "deeper", run_pb2.RUN_STATE_RUNNING),
        ]
    )
    answer.flow.flow_id = "R"
    answer.flow.state = run_pb2.RUN_STATE_SUSPENDED
    answer.flow.session_key = "agent:main:cli:direct:me"
    answer.nodes[0].suspension.condition.children.SetInParent()
    answer.nodes[2].error.message = "no attempt is left"
    for asked_and_answered, found in zip(answer.nodes, ("p:a", "p:a", "p:b"), strict=False):
        asked_and_answered.requested_model, asked_and_answered.effective_model = "p:a", found
    target = Console(width=200)
    with target.capture() as captured:
        target.print(flow_tree(answer))
    lines = captured.get().splitlines()
    # The tree's own line, then parents before children.
    root, research, deeper, draft = lines[1:]
    assert "◌ waiting" in root
    assert "waits for its children, lane released" in root
    assert "✓ succeeded  research [x]  A  waited 1.0 s, worked 2.5 s, in all 1 min 10 s" in research
    assert "1,234 tokens" in research
    assert deeper.index("◐") > research.index("✓") == draft.index("✗")
    assert "no attempt is left" in draft
    # Only where another model answered than was asked.
    assert "p:a → p:b" in draft
    assert "p:a" not in root + research + deeper


def test_json_has_snake_case_names_and_known_payloads() -> None:
    run = run_pb2.Run(run_id="r")
    run.spec.task.Pack(task_pb2.AgentTask(agent_id="main"))
    text = as_json(scheduler_service_pb2.GetRunResponse(run=run))
    assert "\n" not in text
    assert json.loads(text)["run"]["spec"]["task"] == {
        "@type": "type.googleapis.com/conveyor.agent.v1.AgentTask",
        "agent_id": "main",
    }


def test_json_leaves_out_what_a_newer_server_packed() -> None:
    run = run_pb2.Run(run_id="r")
    run.spec.task.CopyFrom(Any(type_url="type.googleapis.com/conveyor.new.v1.Task", value=b"x"))
    run.spec.labels["a"] = "b"
    document = json.loads(as_json(scheduler_service_pb2.ListRunsResponse(runs=[run])))
    assert document["runs"][0]["run_id"] == "r"
    assert document["runs"][0]["spec"]["labels"] == {"a": "b"}


@pytest.mark.parametrize(
    ("length", "words"),
    [(0.44, "0.4 s"), (59.9, "59.9 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")],
)
def test_lengths_of_time(length: float, words: str) -> None:
    assert span(length) == words


def test_cost_is_a_lower_bound_while_calls_have_no_price() -> None:
    run = run_pb2.Run()
    run.usage.input_tokens = 5
    run.usage.cost_micros_usd = 1500
    run.usage.unpriced_calls = 1
    assert tokens(run.usage) == "5 tokens, ≥ $0.0015"


def test_an_answer_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9bc\n\td") == "a[2Jbc\n\td"
    assert shorten("a\n b  c" + "x" * 200, 10) == "a b cxxxx…"


def test_the_shown_configuration_is_toml_that_loads_again(tmp_path) -> None:
    settings = load(
        environ={
            "CONVEYOR_LANES__MAIN__LIMIT": "7",
            "CONVEYOR_CUSTOMERS__ANN__WEIGHT": "3",
            "CONVEYOR_PROVIDERS__LOCAL__BASE_URL": "http://x/v1",
        }
    )
    text = "\n".join(flat_toml(settings.model_dump(mode="json")))
    assert tomllib.loads(text)["lanes"]["main"]["limit"] == 7
    path = tmp_path / "again.toml"
    path.write_text(text)
    assert load(path, environ={}).model_dump() == settings.model_dump()


def harness_check(
    kind: doctor_pb2.DoctorCheckKind.ValueType,
    status: doctor_pb2.DoctorStatus.ValueType,
    harness_id: str = "",
    code: str = "",
) -> doctor_pb2.DoctorCheck:
    return doctor_pb2.DoctorCheck(kind=kind, status=status, harness_id=harness_id, code=code)


def test_harnesses_never_make_the_suite_unhealthy() -> None:
    found, roots, version = (
        doctor_pb2.DOCTOR_CHECK_KIND_COMMAND_FOUND,
        doctor_pb2.DOCTOR_CHECK_KIND_WORKSPACE_ROOTS,
        doctor_pb2.DOCTOR_CHECK_KIND_VERSION,
    )
    failed, skipped, ok = (
        doctor_pb2.DOCTOR_STATUS_FAILED,
        doctor_pb2.DOCTOR_STATUS_SKIPPED,
        doctor_pb2.DOCTOR_STATUS_OK,
    )
    report = doctor_pb2.DoctorReport(
        checks=[
            harness_check(found, failed, "codex", "ACP_BACKEND_MISSING"),
            harness_check(version, skipped, "codex"),
            harness_check(found, failed, "qwen", "ACP_BACKEND_MISSING"),
            harness_check(roots, failed, code="ACP_CWD_NOT_ALLOWED"),
        ]
    )
    results = list(summarise(report))
    assert [(r.name, r.status) for r in results] == [
        ("harnesses: workspace roots", "warning"),
        ("harnesses: not installed", "warning"),
    ]
    assert results[1].message == "codex, qwen"
    assert "conveyor acp doctor" in results[1].hint
    report.checks.append(harness_check(found, ok, "gemini"))
    assert [(r.name, r.status) for r in summarise(report)][1:] == [
        ("harness gemini: command found", "ok"),
        ("harnesses: not installed", "ok"),
    ]


FLOWS = ("FLOW", "STATE", "RUNS", "SESSION", "TOKENS", "ACCEPTED")
FLOW = "01KBBC3J5N8M2Z0Y7C5W1Q9TXA"


@pytest.mark.parametrize("width", [200, 100, 80, 60, 50])
def test_ids_in_a_table_are_whole_in_every_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    session = "agent:main:http:direct:local"
    row = (FLOW, "[green]✓ succeeded[/]", "4", session, "1,234 tokens", "2026-11-22 17:51:15")
    print_table(FLOWS, [row] * 3, "none", whole="FLOW", give_way=("TOKENS", "ACCEPTED", "RUNS"))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert sum(FLOW in line for line in lines) == 3
    if width >= 80:
        assert sum(session in line for line in lines) == 3
        assert ("TOKENS" in lines[0], "RUNS" in lines[0]) == (width == 200, True)


def test_columns_give_way_in_order_and_only_as_many_as_needed() -> None:
    widths = {"A": 10, "B": 5, "C": 5}
    assert fitting(widths, 24, ("C", "B")) == ["A", "B", "C"]
    assert fitting(widths, 23, ("C", "B")) == ["A", "B"]
    assert fitting(widths, 16, ("C", "B")) == ["A"]
    assert fitting(widths, 3, ("C", "B")) == ["A"]


def test_a_cell_is_measured_as_it_is_shown() -> None:
    assert measured("[green]✓ done[/]") == 6
    assert measured("研究") == 4
    assert measured("") == 0


def test_a_tree_says_what_the_delegation_guard_did() -> None:
    run = node("R", "", "root", run_pb2.RUN_STATE_SUCCEEDED)
    assert "guard" not in node_line(run)
    run.effective_model = "local:strong"
    for step in ("insist", "force_tool", "fall_back_model"):
        run.guard.add(trigger="false_claim", step=step, model="local:weak")
    expected = "guard: false claim → insisted → forced → fell back to local:strong"
    assert expected in node_line(run)
    run.guard.add(trigger="textual_call", step="parse_call", model="local:strong", resolved=True)
    assert guard_words(run) == f"{expected} → call as text → made the call"
