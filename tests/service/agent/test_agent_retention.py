"""What the agent service forgets, and what it keeps."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agent_svc import retention as module
from agent_svc.retention import Retention
from agent_svc.standing import StandingReader
from agent_svc.store.transcripts import Transcripts
from conveyor.agent.v1 import agent_service_pb2 as pb
from conveyor.agent.v1 import agent_service_pb2_grpc as agent_grpc
from conveyor.scheduler.v1 import run_pb2
from svckit.settings_model import RetentionSettings
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import SESSION, FakeScheduler

CHILD = f"{SESSION}:subagent:R2"
DAY = 86_400 * 1_000_000
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED


class Caught:
    """The retention of a running service."""

    def __init__(self) -> None:
        self.made: list[Retention] = []


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    caught, made = Caught(), module.Retention.__init__

    def remember(
        self: Retention, store: Transcripts, standing: StandingReader, keep: RetentionSettings
    ) -> None:
        made(self, store, standing, keep)
        caught.made.append(self)

    monkeypatch.setattr(module.Retention, "__init__", remember)
    return caught


def rows(tmp_path: Path) -> dict[str, int]:
    with sqlite3.connect(tmp_path / "data" / "agent.db") as db:
        counts = {
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("sessions", "runs", "steps", "exchanges", "resets")
        }
    db.close()
    return counts


async def test_runs_that_nobody_asked_about_do_not_pile_up(
    scheduler: FakeScheduler, start_agent: StartAgent, tmp_path: Path, caught: Caught
) -> None:
    async with start_agent() as agent:
        stub = agent_grpc.AgentServiceStub(agent.channel)
        await scheduler.answer(scheduler.leased("[[reply: one]]"))
        child = scheduler.leased("[[reply: two]]", run_id="R2", session=CHILD, depth=1, parent="R1")
        await scheduler.answer(child)
        await scheduler.answer(scheduler.leased("[[reply: three]]", run_id="R3", session="other"))
        for run_id in ("R1", "R2"):
            scheduler.runs[run_id].state = SUCCEEDED
        await stub.ResetSession(pb.ResetSessionRequest(session_key=SESSION, request_id="new"))
        (retention,) = caught.made
        now = agent.context.clock.now_us()

        # The ends are learnt while the scheduler knows them; nothing is old yet.
        assert await retention.remove_old(now + 7200 * 1_000_000) == 0
        scheduler.runs.clear()

        assert await retention.remove_old(now + 31 * DAY) > 0
        listed = await stub.ListMessages(pb.ListMessagesRequest(session_key=SESSION))
        assert [m.parts[0].text for m in listed.messages] == ["[[reply: one]]", "one"]
        assert await retention.remove_old(now + 31 * DAY) == 0
    # The conversation with its exchange, and the run whose end is not known.
    assert rows(tmp_path) == {"sessions": 2, "runs": 1, "steps": 2, "exchanges": 1, "resets": 0}
