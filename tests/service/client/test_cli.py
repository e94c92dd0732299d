"""The command line as people call it, against a scripted gateway."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import doctor_pb2
from conveyor.agent.v1 import agent_service_pb2 as agent_pb
from conveyor.common.v1 import content_pb2, question_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import flow_service_pb2, lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client.cli import main, suite
from svckit.errors import FlowNotFound
from svckit.version import __version__

from .conftest import Gateway
from .items import SESSION, accepted, announced, ended, replied

Run = Callable[..., "asyncio.Future[int]"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration file of the developer must not matter."""
    monkeypatch.chdir(tmp_path)


async def conveyor(*arguments: str) -> int:
    """Run the command in a thread (it has a loop of its own) and return its exit code."""

    def run() -> int:
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        return int(exited.value.code or 0)

    return await asyncio.to_thread(run)


async def test_send_prints_where_the_message_is(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.always(
        "SendMessage", gateway_pb.SendMessageResponse(accepted=accepted().accepted)
    )
    code = await conveyor(
        "--address", gateway.address, "send", "--session", SESSION, "--queue-mode", "steer", "hello"
    )
    assert code == 0
    assert capsys.readouterr().out == f"run R queued\nsession {SESSION}\n"
    (request,) = gateway.script.calls["SendMessage"]
    assert request.inbound.queue_mode == lane_pb2.QUEUE_MODE_STEER


async def test_send_wait_tells_announcements_then_the_joined_answer(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.queue(
        "Chat",
        [accepted(), announced("one", 1), announced("two", 2), replied("Both.", 3), ended()],
    )
    assert await conveyor("--address", gateway.address, "send", "--wait", "do two things") == 0
    assert capsys.readouterr().out.splitlines() == [
        "✓ one succeeded: one done",
        "✓ two succeeded: two done",
        "Both.",
    ]


async def test_send_wait_as_json_is_one_document_per_line(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.queue("Chat", [accepted(), announced("one", 1), ended()])
    assert await conveyor("--address", gateway.address, "send", "--wait", "--json", "x") == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(d) - {"resume_token"} for d in documents] == [{"accepted"}, {"event"}, {"ended"}]
    assert documents[1]["event"]["child_announced"]["announcement"]["announcement_id"] == "one"


async def test_send_wait_fails_when_the_run_failed(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.queue("Chat", [accepted(), ended(run_pb2.RUN_STATE_FAILED, "no attempt left")])
    assert await conveyor("--address", gateway.address, "send", "--wait", "x") == 1
    assert capsys.readouterr().out == "✗ the run failed: no attempt left\n"


async def test_send_reads_standard_input(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.script.always("SendMessage", gateway_pb.SendMessageResponse())
    monkeypatch.setattr(sys, "stdin", io.StringIO("from\na pipe"))
    assert await conveyor("--address", gateway.address, "send", "-") == 0
    (request,) = gateway.script.calls["SendMessage"]
    assert request.inbound.message.parts[0].text == "from\na pipe"


async def test_chat_converses_in_order_and_answers_before_it_ends(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.always("ListAgents", agent_pb.ListAgentsResponse())
    gateway.script.queue(
        "Chat",
        [accepted(), replied("one", 1), ended()],
        commanded("main: 1 of 4 working\nacp: paused"),
        [accepted(), replied("two", 2), ended()],
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\n\n/lanes\n/etc/hosts is odd\n/quit\n"))
    assert await conveyor("--address", gateway.address, "chat") == 0
    lines = capsys.readouterr().out.splitlines()
    # What is a command the gateway knows; the lines of its answer stay lines.
    assert {"one", "main: 1 of 4 working", "acp: paused"} <= set(lines)
    sent = [call.inbound for call in gateway.script.calls["Chat"]]
    assert [item.session_key for item in sent] == ["", SESSION, SESSION]
    assert [item.message.parts[0].text for item in sent] == [
        "first",
        "/lanes",
        "/etc/hosts is odd",
    ]


def commanded(text: str) -> list[gateway_pb.ChatResponse]:
    """What a chat with a command answers."""
    run = run_pb2.Run(state=run_pb2.RUN_STATE_SUCCEEDED)
    run.spec.session_key = SESSION
    run.result.reply.message_id = "re-1"
    run.result.reply.parts.add(text=text)
    first = gateway_pb.ChatResponse()
    first.accepted.run.CopyFrom(run)
    return [first, gateway_pb.ChatResponse(ended=run)]


async def test_commands_of_the_chat_from_the_command_line(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = gateway_pb.ExecuteCommandResponse(command="subagents kill", text="Stopped it.\nNow.")
    answer.data.Pack(scheduler_pb.CancelRunResponse(affected_runs=2))
    gateway.script.always("ExecuteCommand", answer)
    at = ("--address", gateway.address, "command")
    assert await conveyor(*at, "/kill 1", "--session", SESSION, "--request-id", "r1") == 0
    assert capsys.readouterr().out == "Stopped it.\nNow.\n"
    assert await conveyor(*at, "kill", "market trend", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"] == "subagents kill"
    assert printed["data"]["affected_runs"] == 2
    first, second = gateway.script.calls["ExecuteCommand"]
    assert (first.text, first.session_key, first.request_id) == ("/kill 1", SESSION, "r1")
    assert second.text == "/kill market trend"


async def test_lists_have_tables_and_json(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_pb2.Run(run_id="R", state=run_pb2.RUN_STATE_RUNNING)
    run.spec.session_key = SESSION
    script = gateway.script
    script.always("ListRuns", scheduler_pb.ListRunsResponse(runs=[run], next_page_token="tok"))
    script.always(
        "ListSessions",
        gateway_pb.ListSessionsResponse(
            sessions=[session_pb2.Session(session_key=SESSION, agent_id="main", waiting=2)]
        ),
    )
    script.always(
        "ListFlows",
        flow_service_pb2.ListFlowsResponse(flows=[flow_service_pb2.Flow(flow_id="F")]),
    )
    script.always(
        "ListLanes",
        scheduler_pb.ListLanesResponse(
            lanes=[lane_pb2.Lane(name="main", limit=0, configured_limit=4, waiting=7)]
        ),
    )
    script.always(
        "ListAgents", agent_pb.ListAgentsResponse(agents=[agent_pb.Agent(agent_id="main")])
    )
    script.always("ListModels", agent_pb.ListModelsResponse(models=[agent_pb.Model(model="demo")]))
    script.always(
        "ListHarnesses",
        acp_pb.ListHarnessesResponse(harnesses=[acp_pb.Harness(harness_id="codex")]),
    )
    for verb, table, field in (
        (["runs", "--state", "running", "--limit", "9"], "more: --page tok", "runs"),
        (["sessions"], SESSION, "sessions"),
        (["flow", "list", "--with-children"], "F", "flows"),
        (["lanes"], "paused (configured 4)", "lanes"),
        (["agents"], "main", "agents"),
        (["model", "list"], "never probed", "models"),
        (["acp", "harnesses"], "codex", "harnesses"),
    ):
        assert await conveyor("--address", gateway.address, *verb) == 0
        assert table in capsys.readouterr().out
        assert await conveyor("--address", gateway.address, *verb, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert len(document[field]) == 1
    filters = script.calls["ListRuns"][0]
    assert list(filters.filter.states) == [run_pb2.RUN_STATE_RUNNING]
    assert filters.page_size == 9


async def test_questions_are_listed_and_answered(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    question = question_pb2.Question(
        question_id="R/1.1.0",
        number=3,
        title="delete [it]",
        state=question_pb2.QUESTION_STATE_OPEN,
        root_session_key=SESSION,
        options=[question_pb2.QuestionOption(option_id="yes", name="Allow once")],
    )
    script = gateway.script
    script.always("ListQuestions", gateway_pb.ListQuestionsResponse(questions=[question]))
    answered = question_pb2.Question()
    answered.CopyFrom(question)
    answered.answer.option_id = "yes"
    script.always("AnswerQuestion", gateway_pb.AnswerQuestionResponse(question=answered))
    address = ("--address", gateway.address, "questions")
    for verb in ((), ("list", "--session", SESSION, "--state", "open", "--state", "expired")):
        assert await conveyor(*address, *verb) == 0
        shown = capsys.readouterr().out
        for text in ("R/1.1.0", "3", "open", "delete [it]", "yes (Allow once)", SESSION):
            assert text in shown
    wanted = script.calls["ListQuestions"][-1].filter
    assert (wanted.session_key, list(wanted.states)) == (SESSION, [1, 3])
    assert await conveyor(*address, "list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["questions"][0]["number"] == 3
    # By its number and the name of an option, or by ids, which the server judges.
    for typed in (("3", "allow once"), ("R/1.1.0", "yes"), ("S/9", "yes")):
        assert await conveyor(*address, "answer", *typed) == 0
        told = "question 3 (delete [it]) answered: Allow once\n"
        assert capsys.readouterr().out == told
    given = [(c.question_id, c.option_id) for c in script.calls["AnswerQuestion"]]
    assert given == [("R/1.1.0", "yes"), ("R/1.1.0", "yes"), ("S/9", "yes")]
    assert await conveyor(*address, "answer", "7", "yes") == 1
    assert "no open question is '7'" in capsys.readouterr().err


async def test_long_keys_are_not_folded_in_a_pipe(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "agent:main:http:direct:" + "x" * 200
    gateway.script.always(
        "ListSessions",
        gateway_pb.ListSessionsResponse(sessions=[session_pb2.Session(session_key=key)]),
    )
    await conveyor("--address", gateway.address, "sessions")
    assert key in capsys.readouterr().out


async def test_sessions_of_sub_agents_are_listed_with_those_that_were_archived(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(request: gateway_pb.ListSessionsRequest) -> gateway_pb.ListSessionsResponse:
        children = session_pb2.SESSION_KIND_SUBAGENT in request.filter.kinds
        key = f"{'child' if children else 'talk'}-{request.filter.include_archived}"
        return gateway_pb.ListSessionsResponse(sessions=[session_pb2.Session(session_key=key)])

    gateway.script.always("ListSessions", listed)
    for flags, key in [
        ([], "talk-False"),
        (["--children"], "child-False"),
        (["--children", "--archived"], "child-True"),
    ]:
        await conveyor("--address", gateway.address, "sessions", *flags)
        assert key in capsys.readouterr().out


async def test_messages_of_a_session(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    said = content_pb2.Message(
        role=content_pb2.ROLE_USER, parts=[content_pb2.ContentPart(text="[bold]hi[/]")]
    )
    gateway.script.always("ListMessages", agent_pb.ListMessagesResponse(messages=[said]))
    assert await conveyor("--address", gateway.address, "sessions", SESSION) == 0
    # What people wrote is text, not markup.
    assert "[bold]hi[/]" in capsys.readouterr().out
    gateway.script.always("ListMessages", agent_pb.ListMessagesResponse())
    assert await conveyor("--address", gateway.address, "sessions", "a chat") == 0
    # A coding agent answered it: what it was told is in the events, not with our agent.
    assert "conveyor watch --session 'a chat' --from-start" in capsys.readouterr().out


async def test_flow_show_prints_the_tree(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    root = run_pb2.Run(run_id="R", state=run_pb2.RUN_STATE_SUCCEEDED)
    child = run_pb2.Run(run_id="C", state=run_pb2.RUN_STATE_SUCCEEDED)
    child.spawn.parent_run_id = "R"
    child.spec.label = "research"
    answer = flow_service_pb2.GetFlowResponse(nodes=[root, child])
    answer.flow.flow_id = "R"
    gateway.script.always("GetFlow", answer)
    assert await conveyor("--address", gateway.address, "flow", "show", "R") == 0
    assert "research" in capsys.readouterr().out.splitlines()[2]
    assert await conveyor("--address", gateway.address, "flow", "show", "R", "--json") == 0
    assert json.loads(capsys.readouterr().out)["nodes"][1]["spawn"] == {"parent_run_id": "R"}


async def test_lanes_are_set_and_reset(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.always(
        "UpdateLane",
        scheduler_pb.UpdateLaneResponse(
            lane=lane_pb2.Lane(name="main", limit=1, configured_limit=4)
        ),
    )
    at = ("--address", gateway.address, "lanes", "set", "main")
    assert await conveyor(*at, "--limit", "0") == 0
    assert await conveyor(*at, "--reset") == 0
    assert capsys.readouterr().out == "lane main: limit 1 (configured 4)\n" * 2
    paused, reset = gateway.script.calls["UpdateLane"]
    assert paused.HasField("limit")
    assert paused.limit == 0
    assert not reset.HasField("limit")
    assert await conveyor(*at) == 2
    assert await conveyor(*at, "--reset", "--limit", "1") == 2


async def test_cancel_and_steer(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_pb2.Run(run_id="R", state=run_pb2.RUN_STATE_CANCELLING)
    gateway.script.always("CancelRun", scheduler_pb.CancelRunResponse(run=run, affected_runs=3))
    gateway.script.always("SteerRun", gateway_pb.SteerRunResponse(run=run))
    cancelled = flow_service_pb2.CancelFlowResponse(affected_runs=4)
    cancelled.flow.flow_id = "R"
    gateway.script.always("CancelFlow", cancelled)
    at = ("--address", gateway.address)
    assert await conveyor(*at, "cancel", "R", "--reason", "enough") == 0
    assert await conveyor(*at, "flow", "cancel", "R") == 0
    assert await conveyor(*at, "steer", "R", "left") == 0
    out = capsys.readouterr().out
    assert "run R cancelling, 3 runs stopped" in out
    assert "4 runs stopped" in out
    assert gateway.script.calls["CancelRun"][0].reason == "enough"


async def test_why_says_what_holds_a_run_and_until_when(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    told = scheduler_pb.ExplainRunResponse()
    told.explanation.run.run_id = "R"
    told.explanation.run.state = run_pb2.RUN_STATE_QUEUED
    busy = told.explanation.reasons.add(text="All 4 slots of lane main are taken.").lane_busy
    busy.holders.add(run_id="H", session_key="s[1]", state=run_pb2.RUN_STATE_RUNNING)
    busy.holders.add(state=run_pb2.RUN_STATE_RUNNING)
    estimate = told.explanation.estimate
    estimate.position = 3
    estimate.as_of_time.FromSeconds(100)
    estimate.start_time.FromSeconds(112)
    estimate.start_time_p90.FromSeconds(115)
    estimate.basis.source = lane_pb2.ESTIMATE_SOURCE_MEASURED
    estimate.basis.samples = 20
    estimate.basis.turn_time_p50.FromSeconds(5)
    estimate.basis.turn_time_p90.FromSeconds(6)
    gateway.script.always("ExplainRun", told)
    at = ("--address", gateway.address)
    assert await conveyor(*at, "why", "R") == 0
    assert capsys.readouterr().out.splitlines() == [
        "R ○ queued · 3rd in line, about 12 s",
        "• All 4 slots of lane main are taken.",
        "    H running s[1]",
        "    another customer's run running",
        "nine in ten start within 15 s; 20 turns measured, 5.0 s (nine in ten: 6.0 s)",
    ]
    assert await conveyor(*at, "why", "R", "--json") == 0
    shown = json.loads(capsys.readouterr().out)["explanation"]
    assert shown["estimate"]["start_time"] == "1970-01-01T00:01:52Z"
    assert gateway.script.calls["ExplainRun"][0].run_id == "R"


async def test_send_says_where_the_message_stands(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = gateway_pb.SendMessageResponse()
    answer.accepted.run.run_id = "R"
    answer.accepted.estimate.position = 2
    answer.accepted.estimate.as_of_time.FromSeconds(100)
    answer.accepted.estimate.start_time.FromSeconds(104)
    gateway.script.always("SendMessage", answer)
    assert await conveyor("--address", gateway.address, "send", "hello") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2nd in line, about 4.0 s"


async def test_errors_are_one_line(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.script.always("GetFlow", FlowNotFound("there is no such flow"))
    assert await conveyor("--address", gateway.address, "flow", "show", "x") == 1
    assert capsys.readouterr().err == "error: there is no such flow (FLOW_NOT_FOUND)\n"


TRACE = "0af7651916cd43dd8448eb211c80319c"
PAGE = "https://traces.example/{trace_id}"


@pytest.mark.parametrize(
    ("flags", "template", "line"),
    [
        ("01", PAGE, f"trace {TRACE}  https://traces.example/{TRACE}"),
        ("01", "", f"trace {TRACE}"),
        ("00", PAGE, f"trace {TRACE} (not recorded)"),
        ("", PAGE, ""),
    ],
)
async def test_what_shows_a_run_says_where_its_trace_is(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], flags: str, template: str, line: str
) -> None:
    run = run_pb2.Run(run_id="R")
    if flags:
        run.trace.traceparent = f"00-{TRACE}-b7ad6b7169203331-{flags}"
    script = gateway.script
    script.always("GetFlow", flow_service_pb2.GetFlowResponse(nodes=[run]))
    script.always("GetRun", scheduler_pb.GetRunResponse(run=run))
    told = scheduler_pb.ExplainRunResponse()
    told.explanation.run.CopyFrom(run)
    script.always("ExplainRun", told)
    info = gateway_pb.ServerInfo(trace_url_template=template)
    script.always("GetServerInfo", gateway_pb.GetServerInfoResponse(server=info))
    for verb in (("flow", "show", "R"), ("runs", "R"), ("why", "R")):
        assert await conveyor("--address", gateway.address, *verb) == 0
        traces = [each for each in capsys.readouterr().out.splitlines() if "trace" in each]
        assert traces == [line] * bool(line), verb


async def test_the_demo_says_where_its_trace_is(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make trace-ui` promises the link of a demo flow, and nobody printed it."""

    async def runs(address: str, *, encrypted: bool) -> bool:
        return address == gateway.address and not encrypted

    # The scripted gateway says nothing of its health.
    monkeypatch.setattr(suite, "_answers", runs)
    run = run_pb2.Run(run_id="R")
    run.trace.traceparent = f"00-{TRACE}-b7ad6b7169203331-01"
    script = gateway.script
    script.queue("Chat", [accepted(), replied("Both.", 1), ended()])
    script.always("GetFlow", flow_service_pb2.GetFlowResponse(nodes=[run]))
    info = gateway_pb.ServerInfo(trace_url_template=PAGE)
    script.always("GetServerInfo", gateway_pb.GetServerInfoResponse(server=info))
    assert await conveyor("--address", gateway.address, "demo") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"trace {TRACE}  https://traces.example/{TRACE}"


async def test_an_error_says_where_its_trace_is(
    traced_gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, at = traced_gateway.script, ("--address", traced_gateway.address)
    script.always("GetFlow", FlowNotFound("there is no such flow"))
    info = gateway_pb.ServerInfo(trace_url_template=PAGE)
    script.queue("GetServerInfo", gateway_pb.GetServerInfoResponse(server=info))
    assert await conveyor(*at, "flow", "show", "x") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: there is no such flow (FLOW_NOT_FOUND)"
    trace_id = second.split()[1]
    assert second == f"  trace {trace_id}  https://traces.example/{trace_id}"
    assert int(trace_id, 16)
    # In a conversation too.
    script.always("ListAgents", agent_pb.ListAgentsResponse())
    script.queue("Chat", FlowNotFound("there is no such flow"))
    script.queue("GetServerInfo", gateway_pb.GetServerInfoResponse(server=info))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert await conveyor(*at, "chat") == 0
    said = capsys.readouterr().out
    assert re.search(
        "no such flow\n +trace ([0-9a-f]{32})  https://traces.example/\\1$", said.strip()
    )
    # A gateway of before does not know where traces are shown; the id is there all the same.
    assert await conveyor(*at, "flow", "show", "x") == 1
    assert re.fullmatch("  trace [0-9a-f]{32}", capsys.readouterr().err.splitlines()[1])


async def test_version_says_that_of_both_sides(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    info = gateway_pb.ServerInfo(version="7.8.9", trace_url_template=PAGE)
    info.start_time.FromSeconds(1)
    gateway.script.always("GetServerInfo", gateway_pb.GetServerInfoResponse(server=info))
    assert await conveyor("--address", gateway.address, "version") == 0
    client, server, traces = capsys.readouterr().out.splitlines()
    assert client == f"client {__version__}"
    assert server.startswith("server 7.8.9, since 1970-01-01 ")
    assert traces == f"traces {PAGE}"
    assert await conveyor("--address", gateway.address, "version", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "client": {"version": __version__},
        "server": {
            "version": "7.8.9",
            "trace_url_template": PAGE,
            "start_time": "1970-01-01T00:00:01Z",
        },
    }
    # Without a suite it still says its own.
    assert await conveyor("--address", "127.0.0.1:1", "version") == 1
    said = capsys.readouterr()
    assert said.out == f"client {__version__}\n"
    assert "start it with `conveyor up`" in said.err
    assert await conveyor("--address", "127.0.0.1:1", "version", "--client") == 0
    assert await conveyor("--version") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"conveyor {__version__}"


async def test_a_suite_that_does_not_run_names_the_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert await conveyor("--address", "127.0.0.1:1", "runs") == 1
    assert "start it with `conveyor up`" in capsys.readouterr().err


async def test_the_configuration_is_checked_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.toml"
    good.write_text("[lanes.main]\nlimit = 3\n")
    assert await conveyor("--config", str(good), "config", "check") == 0
    assert "is good" in capsys.readouterr().out
    assert await conveyor("--config", str(good), "config", "show") == 0
    assert "lanes.main.limit = 3" in capsys.readouterr().out.splitlines()
    bad = tmp_path / "bad.toml"
    bad.write_text('[lanes.main]\nlimit = "many"\n[colour]\nred = 1\n')
    for verb in (("config", "check"), ("up",), ("doctor",), ("runs",)):
        code = await conveyor("--config", str(bad), *verb)
        told = capsys.readouterr()
        assert code == (1 if verb == ("doctor",) else 2), verb
        assert "lanes.main.limit" in told.out + told.err
        assert "colour" in told.out + told.err
        assert "Traceback" not in told.err


async def test_doctor_says_that_there_is_no_configuration_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    await conveyor("doctor")
    assert "no conveyor.toml here, so the defaults hold" in capsys.readouterr().out
    (tmp_path / "conveyor.toml").write_text("[lanes.main]\nlimit = 3\n")
    await conveyor("doctor")
    assert "configuration: read from conveyor.toml" in capsys.readouterr().out


async def test_the_password_of_the_store_is_not_shown(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "conveyor.toml"
    url = postgres_url.replace("conveyor@", "conveyor:hush@")
    file.write_text(f'[store]\nurl = "{url}"\n')
    told = ""
    for verb in (("config", "show"), ("config", "show", "--json"), ("doctor",)):
        assert await conveyor("--config", str(file), *verb) in (0, 1)
        told += "".join(capsys.readouterr())
    assert f'store.url = "{url.replace("hush", "***")}"' in told
    assert "with fsync=off" in told  # doctor has asked the server
    assert "hush" not in told


async def test_acp_doctor_fails_unless_all_is_well(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    report = doctor_pb2.DoctorReport(
        checks=[
            doctor_pb2.DoctorCheck(
                kind=doctor_pb2.DOCTOR_CHECK_KIND_COMMAND_FOUND,
                harness_id="codex",
                status=doctor_pb2.DOCTOR_STATUS_FAILED,
                code="ACP_BACKEND_MISSING",
                message="codex-acp was not found",
                hint="npm install -g x",
            ),
            doctor_pb2.DoctorCheck(
                kind=doctor_pb2.DOCTOR_CHECK_KIND_VERSION,
                harness_id="codex",
                status=doctor_pb2.DOCTOR_STATUS_SKIPPED,
                message="not checked, because the check before failed: command found",
            ),
        ]
    )
    gateway.script.always("AcpDoctor", gateway_pb.AcpDoctorResponse(report=report))
    assert await conveyor("--address", gateway.address, "acp", "doctor", "codex") == 1
    assert capsys.readouterr().out.splitlines() == [
        "✗ codex: command found: codex-acp was not found (ACP_BACKEND_MISSING)",
        "    → npm install -g x",
        "healthy: no",
    ]
    report.healthy = True
    gateway.script.always("AcpDoctor", gateway_pb.AcpDoctorResponse(report=report))
    assert await conveyor("--address", gateway.address, "acp", "doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True


async def test_doctor_names_the_fix_of_each_failed_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "agent.db").write_text("this is not a database")
    from conveyor_client.supervision.addresses import free_addresses

    http, grpc, *inner = free_addresses(5)
    config = tmp_path / "conveyor.toml"
    config.write_text(
        f'[store]\nurl = "sqlite:///{store}"\n[gateway]\nhttp = "{http}"\ngrpc = "{grpc}"\n'
        f'[services]\nscheduler = "{inner[0]}"\nagent = "{inner[1]}"\nacp = "{inner[2]}"\n'
    )
    assert await conveyor("--config", str(config), "doctor", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["healthy"] is False
    failed = [check for check in document["checks"] if check["status"] == "failed"]
    assert [check["name"] for check in failed] == ["store", "scheduler", "agent", "acp", "gateway"]
    assert "agent.db is not a database" in failed[0]["message"]
    assert all(check["hint"] for check in failed)


async def test_what_a_server_says_cannot_drive_the_terminal(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.queue("GetFlow", FlowNotFound("no flow \x1b]0;owned\x07 here"))
    assert await conveyor("--address", gateway.address, "flow", "show", "F") == 1
    assert capsys.readouterr().err == "error: no flow ]0;owned here (FLOW_NOT_FOUND)\n"
