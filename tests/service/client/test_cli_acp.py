"""The verbs of ACP sessions as people call them, against a scripted gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.acp.v1 import session_pb2 as acp_pb
from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client.cli.following import Typed
from conveyor_client.cli.narrate import Utterance
from conveyor_client.client import ConveyorClient
from svckit.errors import AcpBackendUnavailable, AcpSessionInitFailed, QuestionClosed
from svckit.grpc.status import to_proto
from svckit.testing import eventually

from .conftest import Gateway
from .items import message
from .test_cli import conveyor

LANE = "agent:claude:acp:S"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def session(**more: Any) -> acp_pb.AcpSession:
    spec = acp_pb.AcpSessionSpec(
        harness_id="claude",
        session_key=LANE,
        cwd="/repo",
        label="fix",
        permission_mode=acp_pb.PERMISSION_MODE_ASK,
    )
    return acp_pb.AcpSession(
        acp_session_id="S", spec=spec, state=acp_pb.ACP_SESSION_STATE_READY, **more
    )


def question() -> question_pb2.Question:
    return question_pb2.Question(
        question_id="R/1",
        number=3,
        title="Write a.txt",
        timeout=Duration(seconds=300),
        options=[
            question_pb2.QuestionOption(option_id="opt-1", name="Allow once"),
            question_pb2.QuestionOption(option_id="opt-2", name="Reject"),
        ],
    )


def events() -> list[gateway_pb.WatchSessionResponse]:
    """What a turn does, among what another run does."""
    updated, call = event_pb2.HarnessUpdated, event_pb2.HarnessToolCall
    plan = event_pb2.HarnessPlan(
        entries=[
            event_pb2.HarnessPlanEntry(
                content="write", status=event_pb2.HARNESS_ITEM_STATUS_IN_PROGRESS
            ),
            event_pb2.HarnessPlanEntry(
                content="test", status=event_pb2.HARNESS_ITEM_STATUS_PENDING
            ),
        ]
    )
    decided = event_pb2.PermissionDecided(title="Read b.txt", allowed=True, rule="approve-reads")
    reply = event_pb2.MessageCompleted(
        message=message("done", "R-1"), kind=event_pb2.MESSAGE_KIND_REPLY
    )
    payloads: list[tuple[str, dict[str, Any]]] = [
        ("other", {"message_completed": reply}),
        ("R", {"harness_updated": updated(plan=plan)}),
        ("R", {"harness_updated": updated(plan=plan)}),
        (
            "R",
            {
                "harness_updated": updated(
                    tool_call=call(tool_call_id="1", title="Read b.txt", locations=["/repo/b.txt"])
                )
            },
        ),
        ("R", {"permission_decided": decided}),
        ("R", {"question_asked": event_pb2.QuestionAsked(question=question())}),
        ("R", {"message_completed": reply}),
        (
            "R",
            {
                "run_state_changed": event_pb2.RunStateChanged(
                    state=run_pb2.RUN_STATE_SUCCEEDED, previous_state=run_pb2.RUN_STATE_RUNNING
                )
            },
        ),
    ]
    return [
        gateway_pb.WatchSessionResponse(
            event=event_pb2.Event(session_key=LANE, sequence=n, run_id=run_id, **payload),
            resume_token=f"t{n}",
        )
        for n, (run_id, payload) in enumerate(payloads, 1)
    ]


def working(gateway: Gateway, state: run_pb2.RunState.ValueType) -> None:
    """Accept a prompt and do it."""
    run = run_pb2.Run(run_id="R", state=run_pb2.RUN_STATE_QUEUED)
    run.spec.session_key = LANE
    accepted = scheduler_pb.AcceptedRun(run=run)
    gateway.script.always(
        "PromptAcpSession",
        gateway_pb.PromptAcpSessionResponse(accepted=accepted, resume_token="t0"),
    )

    async def watched() -> AsyncIterator[gateway_pb.WatchSessionResponse]:
        for item in events():
            yield item
        await asyncio.Event().wait()

    gateway.script.always("WatchSession", lambda request: watched())
    ended = run_pb2.Run(run_id="R", state=state)
    ended.result.reply.CopyFrom(message("done", "R-1"))
    if state == run_pb2.RUN_STATE_FAILED:
        ended.error.message = "the harness crashed"
    gateway.script.always("GetRun", scheduler_pb.GetRunResponse(run=ended))


async def test_a_prompt_shows_the_work_of_its_turn_and_how_to_answer(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    working(gateway, run_pb2.RUN_STATE_SUCCEEDED)
    assert await conveyor("--address", gateway.address, "acp", "prompt", "S", "do it") == 0
    assert capsys.readouterr().out.splitlines() == [
        "· plan: 0 of 2 done, now: write",
        "· Read b.txt",
        "· allowed: Read b.txt (approve-reads)",
        "· question 3 (5 min to answer): Write a.txt",
        "· answer: conveyor questions answer R/1 opt-1|opt-2",
        "done",
    ]
    [prompted] = gateway.script.calls["PromptAcpSession"]
    assert (prompted.acp_session_id, prompted.message.parts[0].text) == ("S", "do it")
    [watched] = gateway.script.calls["WatchSession"]
    assert (watched.session_key, watched.resume_token) == (LANE, "t0")


async def test_a_prompt_that_failed_is_an_exit_code_and_json_is_one_document_a_line(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    working(gateway, run_pb2.RUN_STATE_FAILED)
    verb = ("--address", gateway.address, "acp", "prompt", "S", "do it")
    assert await conveyor(*verb) == 1
    assert "✗ the run failed: the harness crashed" in capsys.readouterr().out
    assert await conveyor(*verb, "--json", "--request-id", "k") == 1
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "accepted" in documents[0]
    assert documents[-1]["ended"]["state"] == "RUN_STATE_FAILED"
    assert gateway.script.calls["PromptAcpSession"][-1].request_id == "k"
    assert await conveyor(*verb, "--no-wait") == 0
    assert capsys.readouterr().out == "run R queued\n"


async def test_a_spawn_says_what_was_opened_and_gives_it_its_task(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    working(gateway, run_pb2.RUN_STATE_SUCCEEDED)
    gateway.script.always("SpawnAcpSession", gateway_pb.SpawnAcpSessionResponse(session=session()))
    options = "--permissions ask --mode oneshot --cwd /repo --turn-timeout 90 --env A --env B"
    verb = ("--address", gateway.address, "acp", "spawn", "claude", "do it", *options.split())
    assert await conveyor(*verb, "--bind", "chat", "--request-id", "k") == 0
    shown = capsys.readouterr().out
    assert "S  ready" in shown
    assert "permissions:   ask" in shown
    assert shown.endswith("done\n")
    [asked] = gateway.script.calls["SpawnAcpSession"]
    assert (asked.bind_session_key, asked.request_id) == ("chat", "k")
    assert asked.spec.permission_mode == acp_pb.PERMISSION_MODE_ASK
    assert asked.spec.mode == acp_pb.ACP_SESSION_MODE_ONESHOT
    assert (asked.spec.turn_timeout.seconds, list(asked.spec.env_names)) == (90, ["A", "B"])
    assert gateway.script.calls["PromptAcpSession"][0].request_id == "k-first"


async def test_sessions_are_listed_shown_changed_cancelled_and_closed(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        "ListAcpSessions": gateway_pb.ListAcpSessionsResponse(
            sessions=[session(open_questions=1)], next_page_token="next"
        ),
        "GetAcpSession": gateway_pb.GetAcpSessionResponse(session=session(models=["opus"])),
        "ConfigureAcpSession": gateway_pb.ConfigureAcpSessionResponse(session=session()),
        "CancelAcpTurn": gateway_pb.CancelAcpTurnResponse(run_id="R"),
        "CloseAcpSession": gateway_pb.CloseAcpSessionResponse(session=session()),
    }
    for method, answer in answers.items():
        gateway.script.always(method, answer)

    async def say(*verb: str, code: int = 0) -> str:
        assert await conveyor("--address", gateway.address, "acp", *verb) == code
        return capsys.readouterr().out

    table = await say("sessions", "--state", "ready", "--session", "chat")
    assert table.splitlines()[0].split()[:3] == ["SESSION", "HARNESS", "STATE"]
    assert "ready (1 question)" in table
    assert table.endswith("more: --page next\n")
    wanted = gateway.script.calls["ListAcpSessions"][0].filter
    assert (wanted.parent_session_key, list(wanted.states)) == (
        "chat",
        [acp_pb.ACP_SESSION_STATE_READY],
    )
    assert "models:        opus" in await say("show", "S")
    await say("set", "S", "--permissions", "deny-all", "--option", "effort=high", "--fresh")
    settings = gateway.script.calls["ConfigureAcpSession"][0].settings
    assert settings.permission_mode == acp_pb.PERMISSION_MODE_DENY_ALL
    assert (dict(settings.options), settings.fresh) == ({"effort": "high"}, True)
    assert not settings.HasField("model")
    await say("set", "S", code=2)
    assert await say("cancel", "S", "--reason", "enough") == "stopping run R\n"
    await say("close", "S")
    for verb in (("sessions",), ("show", "S"), ("cancel", "S"), ("close", "S")):
        assert isinstance(json.loads(await say(*verb, "--json")), dict)


async def test_a_session_that_is_not_ready_is_said_in_one_line(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.always(
        "PromptAcpSession", AcpSessionInitFailed("wait", metadata={"cause": "not_ready"})
    )
    assert await conveyor("--address", gateway.address, "acp", "prompt", "S", "x") == 1
    assert capsys.readouterr().err == "error: wait (ACP_SESSION_INIT_FAILED)\n"


async def test_the_last_words_of_a_harness_are_shown_wherever_its_failure_is(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = AcpBackendUnavailable("it ended", metadata={"lastWords": "no\x1b[2J key\nbye\n"})
    gateway.script.always("SpawnAcpSession", failed)
    assert await conveyor("--address", gateway.address, "acp", "spawn", "claude") == 1
    said = capsys.readouterr().err
    assert said == "error: it ended (ACP_BACKEND_UNAVAILABLE)\n  › no[2J key\n  › bye\n"
    one = session(error=to_proto(failed))
    gateway.script.always("GetAcpSession", gateway_pb.GetAcpSessionResponse(session=one))
    assert await conveyor("--address", gateway.address, "acp", "show", "S") == 0
    assert capsys.readouterr().out.endswith(f"  {'':15}› bye\n")


async def test_a_bound_conversation_says_who_answers(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = session_pb2.Session(session_key="chat", agent_id="main", bound_acp_session_id="S")
    gateway.script.always("ListSessions", gateway_pb.ListSessionsResponse(sessions=[bound]))
    assert await conveyor("--address", gateway.address, "sessions") == 0
    assert "acp S" in capsys.readouterr().out


class Shown:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def show(self, utterance: Utterance) -> None:
        self.lines.append(utterance.text)


async def test_what_is_typed_answers_the_oldest_question(gateway: Gateway) -> None:
    shown, lines = Shown(), asyncio.Queue[str | None]()
    gateway.script.queue(
        "AnswerQuestion",
        gateway_pb.AnswerQuestionResponse(question=question()),
        QuestionClosed("that question is closed"),
    )
    async with ConveyorClient(gateway.address) as client:
        typed = Typed(client, shown)
        asked = event_pb2.Event(question_asked=event_pb2.QuestionAsked(question=question()))
        answering = asyncio.create_task(typed.answer(lines))
        lines.put_nowait("2\n")
        await eventually(lambda: shown.lines == ["nothing is asked; the harness works on"])
        typed.note(asked)
        lines.put_nowait("maybe\n")
        lines.put_nowait("2\n")
        await eventually(lambda: gateway.script.calls["AnswerQuestion"])
        assert gateway.script.calls["AnswerQuestion"][0].option_id == "opt-2"
        assert "type a number" in shown.lines[-1]
        # Somebody was quicker.
        typed.note(asked)
        lines.put_nowait("reject\n")
        lines.put_nowait(None)
        await answering
        assert shown.lines[-1] == "that question is closed"
