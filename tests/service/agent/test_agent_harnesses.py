"""External coding agents as sub-agents: what is asked for, what is refused, what is listed."""

from __future__ import annotations

import pytest

from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import session_pb2
from conveyor.acp.v1 import task_pb2 as acp_task_pb
from svckit.errors import AcpDisabled
from svckit.grpc.status import from_proto
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import FakeScheduler, reply_text

LIST = "[[tool agents_list: {}]]"


def there_are(scheduler: FakeScheduler, *harnesses: acp_pb.Harness) -> None:
    scheduler.acp.always("ListHarnesses", acp_pb.ListHarnessesResponse(harnesses=harnesses))


def harness(harness_id: str, **more: object) -> acp_pb.Harness:
    given = {"display_name": harness_id.title(), "installed": True, "allowed": True, **more}
    return acp_pb.Harness(harness_id=harness_id, **given)  # type: ignore[arg-type]


async def test_a_coding_agent_gets_its_own_queue_directory_and_time(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    there_are(scheduler, harness("claude"))
    async with start_agent("[acp]\nturn_seconds = 100\nhandshake_seconds = 20\n"):
        await scheduler.answer(scheduler.leased("[[acp claude: fix the bug]]"))
        (item,) = scheduler.children.values()
    assert (item.spec.queue, item.spec.estimate_key) == ("acp", "acp/claude")
    # It says itself that it took too long, before the scheduler does.
    assert item.spec.run_timeout.ToSeconds() == 180
    task = acp_task_pb.AcpTask()
    assert item.spec.task.Unpack(task)
    assert task.new_session.harness_id == "claude"
    assert task.new_session.mode == session_pb2.ACP_SESSION_MODE_ONESHOT
    assert task.new_session.session_key == ""
    assert item.message.parts[0].text == "fix the bug"
    assert len(scheduler.acp.calls["ListHarnesses"]) == 1


async def test_the_time_that_an_agent_gives_its_children_holds_for_coding_agents_too(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    there_are(scheduler, harness("claude"))
    async with start_agent("[agents.defaults.subagents]\nrun_timeout_seconds = 7\n"):
        await scheduler.answer(scheduler.leased("[[acp claude: fix the bug]]"))
    (item,) = scheduler.children.values()
    assert item.spec.run_timeout.ToSeconds() == 7


@pytest.mark.parametrize(
    ("wanted", "reason", "says"),
    [
        ("codex", "ACP_BACKEND_MISSING", "Codex is not installed on this machine"),
        ("secret", "ACP_HARNESS_NOT_FOUND", "Use one of: claude."),
        ("nobody", "ACP_HARNESS_NOT_FOUND", "no coding agent 'nobody'"),
    ],
)
async def test_a_coding_agent_that_cannot_be_started_is_refused_before_a_run_is_made(
    scheduler: FakeScheduler, start_agent: StartAgent, wanted: str, reason: str, says: str
) -> None:
    missing = harness("codex", installed=False, install_hint="npm i -g codex-acp")
    there_are(scheduler, harness("claude"), missing, harness("secret", allowed=False))
    async with start_agent():
        end = await scheduler.answer(scheduler.leased(f"[[acp {wanted}: fix the bug]]"))
    assert "I could not delegate this" in reply_text(end)
    assert says in reply_text(end)
    assert not scheduler.children
    error = from_proto(scheduler.events["R1-1.2.1-ended"].tool_call_ended.error)
    assert (error.reason, error.metadata["harnessId"]) == (reason, wanted)


async def test_agents_are_listed_with_the_coding_agents(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    there_are(scheduler, harness("claude"), harness("codex", installed=False))
    async with start_agent('[acp]\ndefault_harness = "claude"\n'):
        text = reply_text(await scheduler.answer(scheduler.leased(LIST)))
    assert "main (model demo)" in text
    assert "External coding agents, for `runtime` acp:\nclaude: Claude (default)" in text
    assert "Not installed: codex" in text


@pytest.mark.parametrize("where", ["here", "there"])
async def test_where_coding_agents_are_switched_off_none_is_offered(
    scheduler: FakeScheduler, start_agent: StartAgent, where: str
) -> None:
    scheduler.acp.always("ListHarnesses", AcpDisabled("off"))
    async with start_agent(f"[acp]\nenabled = {'false' if where == 'here' else 'true'}\n"):
        end = await scheduler.answer(scheduler.leased("[[acp claude: fix the bug]]"))
        listed = await scheduler.answer(scheduler.leased(LIST, run_id="R2"))
    assert "external coding agents are switched off here" in reply_text(end)
    assert "External" not in reply_text(listed)
    assert not scheduler.children


async def test_without_the_harness_service_the_configuration_decides(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    async with start_agent('[acp]\nallowed_harnesses = ["claude", "codex"]\n'):
        end = await scheduler.answer(scheduler.leased("[[acp gemini: fix the bug]]"))
        assert "Use one of: claude, codex." in reply_text(end)
        await scheduler.answer(scheduler.leased("[[acp codex: fix the bug]]", run_id="R2"))
    (item,) = scheduler.children.values()
    assert item.spec.estimate_key == "acp/codex"
