"""`/acp` in chats and over the API, with a service that keeps sessions and no harness."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.acp.v1 import doctor_pb2, session_pb2
from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from svckit.errors import AcpTurnFailed
from svckit.ids import new_ulid
from svckit.testing import eventually
from tests.service.gateway.access import bearer, token_of
from tests.service.gateway.harnesses import CLOSED, READY, Harnesses
from tests.service.gateway.suite import Suite, reason_of
from tests.service.gateway.test_gateway_acp import answered, serving
from tests.service.gateway.test_gateway_commands import execute, refused, say, unpacked

ANN, BOB = "agent:main:http:direct:ann", "agent:main:http:direct:bob"
STEP = f"{ANN}:subagent:01STEP"


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Suite, Harnesses]]:
    async with serving(tmp_path) as (around, harnesses):
        yield around, harnesses


def only(harnesses: Harnesses) -> session_pb2.AcpSession:
    [session] = harnesses.sessions.values()
    return session


async def ready(harnesses: Harnesses, count: int = 1) -> None:
    await eventually(lambda: [s.state for s in harnesses.sessions.values()] == [READY] * count)


async def test_a_conversation_spawns_steers_looks_cancels_and_closes(
    both: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = both
    words = "/acp spawn claude --bind here --label docs --permissions ask --cwd /srv fix it"
    spawned = await say(around, words, ANN, request_id="spawn-1")
    assert spawned.startswith("Starting docs (claude) in /srv.\nPermissions ask")
    # The same message again, after an answer that got lost, opens no second one.
    assert await say(around, words, ANN, request_id="spawn-1") == spawned
    session = only(harnesses)
    assert session.spec.permission_mode == session_pb2.PERMISSION_MODE_ASK
    assert session.spec.session_key == ANN
    await eventually(lambda: harnesses.prompts == [(session.acp_session_id, "fix it")])

    assert await say(around, "/acp steer docs are missing", ANN) == "Handed to docs."
    await eventually(lambda: len(harnesses.prompts) == 2)
    assert harnesses.prompts[1][1] == "docs are missing"
    # The conversation itself says who answers it.
    assert (await say(around, "/status", ANN)).startswith("Coding agent docs (claude) answers here")
    assert "say `/acp model opus`" in await say(around, "/model opus", ANN)
    assert "docs answers here" in await say(around, "/help", ANN)
    assert "told to docs as soon as" in await say(around, "/queue steer", ANN)
    await say(around, "/queue reset", ANN)
    around.agents.always("ResetSession", ag.ResetSessionResponse(epoch=1))
    assert "docs forgets" in await say(around, "/new", ANN)
    assert harnesses.changes[-1].fresh

    status = await execute(around, "/acp status", ANN)
    assert status.text.splitlines()[0] == "docs (claude): ready"
    assert "It answers this conversation" in status.text
    found = unpacked(status, gw.GetAcpSessionResponse)
    assert found.session.acp_session_id == session.acp_session_id
    listed = await execute(around, "/acp sessions", ANN)
    assert "#1 docs (claude) · ready · ask · /srv · answers here" in listed.text
    assert len(unpacked(listed, gw.ListAcpSessionsResponse).sessions) == 1

    # What it asks is answered here, and its status names the question.
    await around.send(ANN, "ask delete it")
    await eventually(lambda: len(harnesses.prompts) == 3)

    async def asks() -> bool:
        return "1 question for you (#1)" in await say(around, "/status", ANN)

    await eventually(asks)
    assert await say(around, "/deny", ANN) == "Refused #1 delete it."

    cancelled = await execute(around, "/acp cancel", ANN)
    assert unpacked(cancelled, gw.CancelAcpTurnResponse).run_id == "R"
    assert "keeps what it knows" in cancelled.text
    closed = await execute(around, "/acp close", ANN, request_id="close-1")
    assert closed.text == "docs is closed. From here on main answers you again."
    assert unpacked(closed, gw.CloseAcpSessionResponse).session.state == CLOSED
    assert (await execute(around, "/acp close", ANN, request_id="close-1")).text == closed.text
    assert await answered(around, ANN, "hello") == "echo: hello"
    assert "coding agent is open here" in await say(around, "/acp steer go on", ANN)
    assert (await say(around, "/acp status", ANN)).startswith("docs (claude): closed")


async def test_several_are_told_apart_and_those_of_others_do_not_exist(
    both: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = both
    for label in ("one", "two"):
        assert "`/acp steer" in await say(around, f"/acp spawn claude --label {label}", ANN)
    await say(around, "/acp spawn codex --label hers", BOB)
    await ready(harnesses, 3)
    wrong = await refused(around, "/acp steer run the tests", ANN)
    assert "There is #1 one (claude) and #2 two (claude): say for example" in wrong.message
    assert await say(around, "/acp steer #2 run the tests", ANN) == "Handed to two."
    assert await say(around, "/acp steer on go", ANN) == "Handed to one."
    await eventually(lambda: len(harnesses.prompts) == 2)
    assert [text for _, text in harnesses.prompts] == ["run the tests", "go"]
    assert (
        "no coding agent is called “hers”"
        in (await refused(around, "/acp close hers", ANN)).message
    )
    assert await say(around, "/acp permissions deny-all --session 1", ANN) == (
        "From its next turn on one has permissions deny-all: everything it asks for is refused."
    )
    shown = await say(around, "/acp permissions --session one", ANN)
    assert shown.startswith("one has permissions deny-all")
    around.acp.queue("ConfigureSession", AcpTurnFailed("it does not start"))
    assert await say(around, "/acp model opus --session 1", ANN) == "It does not start."
    for session in harnesses.sessions.values():
        session.state = session_pb2.ACP_SESSION_STATE_BUSY
    assert (await say(around, "/stop", ANN)) == (
        "Nothing is under way here. two and one at work beside it: `/acp cancel` stops that."
    )
    await say(around, "/acp close 1", ANN)
    assert await say(around, "/acp close", ANN) == "two is closed."
    # Without a conversation everything is there that the caller may see, by its id.
    everything = await around.stub.ExecuteCommand(
        gw.ExecuteCommandRequest(text="/acp sessions", request_id=new_ulid())
    )
    assert "hers (codex)" in everything.text


async def test_steering_before_it_is_ready_says_to_wait(both: tuple[Suite, Harnesses]) -> None:
    around, harnesses = both
    await say(around, "/acp spawn claude --bind here", ANN)
    await ready(harnesses)
    only(harnesses).state = session_pb2.ACP_SESSION_STATE_STARTING
    early = await refused(around, "/acp steer go on", ANN)
    assert early.reason == "ACP_SESSION_INIT_FAILED"
    assert early.metadata["cause"] == "not_ready"
    assert "wait for the message that says it is ready" in early.message
    # A chat is told in words.
    assert "wait for the message" in await say(around, "/acp steer go on", ANN)


async def test_threads_and_unknown_harnesses_are_explained(
    both: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = both
    assert "no threads: say `--bind here`" in await say(
        around, "/acp spawn claude --thread here", ANN
    )
    assert "exclude each other" in await say(
        around, "/acp spawn claude --thread auto --bind here", ANN
    )
    assert (await refused(around, "/acp spawn nobody", ANN)).reason == "ACP_HARNESS_NOT_FOUND"
    assert not harnesses.sessions


async def test_doctor_and_install_over_the_api(both: tuple[Suite, Harnesses]) -> None:
    around, _ = both
    report = doctor_pb2.DoctorReport(healthy=False)
    report.checks.add(
        kind=doctor_pb2.DOCTOR_CHECK_KIND_COMMAND_FOUND,
        harness_id="claude",
        status=doctor_pb2.DOCTOR_STATUS_FAILED,
        code="ACP_BACKEND_MISSING",
        hint="npm install -g x",
    )
    around.acp.always("Doctor", acp.DoctorResponse(report=report))
    found = await execute(around, "/acp doctor Claude", ANN)
    assert (
        found.text == "healthy: no\nclaude: not installed (ACP_BACKEND_MISSING): `npm install -g x`"
    )
    assert unpacked(found, gw.AcpDoctorResponse).report == report
    assert around.acp.calls["Doctor"][-1].harness_id == "claude"
    one = acp.Harness(harness_id="claude", display_name="Claude Code", allowed=True)
    around.acp.always("ListHarnesses", acp.ListHarnessesResponse(harnesses=[one]))
    assert "Claude Code is not installed" in (await execute(around, "/acp install claude")).text
    assert "`claude`" in (await refused(around, "/acp install nobody")).message
    forms = unpacked(await execute(around, "/acp help"), gw.CommandForms)
    assert "acp spawn" in [form.name for form in forms.forms]


CALLERS = {
    "ann-read": ("read", "http:ann"),
    "ann-send": ("send", "http:ann"),
    "ann-control": ("control", "http:ann"),
    "root": ("admin", ""),
}


async def test_each_command_needs_the_scope_of_its_call_and_approve_all_an_operator(
    tmp_path: Path,
) -> None:
    env = {}
    for name, (scope, customer) in CALLERS.items():
        file = tmp_path / f"{name}.token"
        file.write_text(token_of(name))
        base = f"CONVEYOR_GATEWAY__TOKENS__{name.upper()}__"
        env |= {f"{base}TOKEN_FILE": str(file), f"{base}SCOPES": scope}
        if customer:
            env[f"{base}CUSTOMER_KEY"] = customer
    async with serving(tmp_path, **env) as (around, harnesses):

        async def command(who: str, text: str) -> str:
            request = gw.ExecuteCommandRequest(session_key=ANN, text=text, request_id=new_ulid())
            try:
                answer = await around.stub.ExecuteCommand(request, metadata=bearer(who))
            except grpc.aio.AioRpcError as error:
                return reason_of(error)
            return str(answer.text)

        spawn = "/acp spawn claude --bind here"
        assert await command("ann-send", spawn) == "SCOPE_MISSING"
        assert await command("ann-control", f"{spawn} --permissions approve-all") == "SCOPE_MISSING"
        assert not harnesses.sessions
        assert (await command("ann-control", f"{spawn} --permissions ask")).startswith("Starting")
        await ready(harnesses)
        # What everybody may do who may talk, and look.
        assert await command("ann-send", "/acp steer go on") == "Handed to claude."
        assert (await command("ann-read", "/acp status")).startswith("claude: ")
        assert await command("ann-read", "/acp steer go on") == "SCOPE_MISSING"
        for text in ("cancel", "close", "permissions ask", "timeout 5m", "doctor"):
            assert await command("ann-send", f"/acp {text}") == "SCOPE_MISSING", text
        assert "approve-reads" in await command("ann-read", "/acp permissions")
        assert await command("ann-control", "/acp permissions approve-all") == "SCOPE_MISSING"
        assert "nobody is asked" in await command("root", "/acp permissions approve-all")
        assert only(harnesses).spec.permission_mode == session_pb2.PERMISSION_MODE_APPROVE_ALL
