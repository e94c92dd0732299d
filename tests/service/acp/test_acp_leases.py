"""A lease that comes again: what was sent is not sent twice, what ended is told again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from acp_svc.app import build
from conveyor.acp.v1 import session_pb2 as s
from conveyor.acp.v1 import task_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.grpc.status import from_proto
from svckit.settings import load
from svckit.testing import eventually, in_process, scripted_server
from tests.service.acp.turn_bench import harness
from tests.service.agent.fake_scheduler import FakeScheduler, reply_text, said

TASK = task_pb2.AcpTask(
    new_session=s.AcpSessionSpec(
        harness_id="scripted", permission_mode=s.PERMISSION_MODE_APPROVE_ALL
    )
)


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    fake = FakeScheduler()
    async with scripted_server(*fake.servicers) as (address, _):
        fake.address = address
        yield fake


@asynccontextmanager
async def service(
    scheduler: FakeScheduler, tmp_path: Path, *flags: str, acp: str = ""
) -> AsyncIterator[None]:
    (tmp_path / "work").mkdir(exist_ok=True)
    config = tmp_path / "conveyor.toml"
    config.write_text(
        f"""
        [services]
        scheduler = "{scheduler.address}"
        [store]
        url = "sqlite:///{tmp_path}/data"
        [acp]
        workspace_roots = ["{tmp_path}/work"]
        sandbox = "off"
        cancel_seconds = 1
        {acp}
        [acp.harness.scripted]
        command = {harness(*flags)}
        env = {{HOME = "{tmp_path}"}}
        """
    )
    async with in_process(build, load(config, {})):
        yield


def leased(scheduler: FakeScheduler, text: str, **more: Any) -> ws.LeasedRun:
    return scheduler.leased(text, task=TASK, session="s", **more)


async def test_a_prompt_whose_end_got_lost_is_told_again_and_not_sent_again(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with service(scheduler, tmp_path):
        first = await scheduler.answer(leased(scheduler, "say:Done. ;; count"))
        again = await scheduler.answer(leased(scheduler, "say:Done. ;; count", attempt=2))
        assert reply_text(first) == reply_text(again) == "Done.prompts: 1"
        assert again.steered_is_next_prompt
        assert again.result == first.result
        # The scheduler heard of it: what was steered is the next prompt.
        steered = [said("q-2", "count")]
        following = await scheduler.answer(leased(scheduler, "x", turn=2, steered=steered))
        assert reply_text(following) == "prompts: 2"
        assert list(following.taken_request_ids) == ["q-2"]


async def test_a_failure_that_got_lost_is_told_again(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with service(scheduler, tmp_path):
        first = await scheduler.answer(leased(scheduler, "error -32603 boom"))
        again = await scheduler.answer(leased(scheduler, "error -32603 boom", attempt=2))
        assert first.error == again.error
        assert from_proto(first.error).metadata["cause"] == "protocol"


async def test_a_prompt_that_was_cut_off_fails_and_is_not_sent_again(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with service(scheduler, tmp_path):
        await cut_off(scheduler)
        # The harness was told to stop, and its session stays.
        again = await scheduler.answer(leased(scheduler, "say:I begin. ;; hang", attempt=2))
        error = from_proto(again.error)
        assert (error.reason, error.metadata["cause"]) == ("ACP_TURN_FAILED", "crashed")
        assert error.metadata["reopened"] == "no"
        assert "still open" in error.message
        assert not again.retryable


@pytest.mark.parametrize(("flag", "how"), [("--resume", "resumed"), ("--noise", "new")])
async def test_after_a_restart_the_session_of_a_cut_off_prompt_is_opened_as_the_harness_can(
    scheduler: FakeScheduler, tmp_path: Path, flag: str, how: str
) -> None:
    async with service(scheduler, tmp_path, flag):
        await cut_off(scheduler)
    async with service(scheduler, tmp_path, flag):
        again = await scheduler.answer(leased(scheduler, "say:I begin. ;; hang", attempt=2))
        error = from_proto(again.error)
        assert (error.reason, error.metadata["cause"]) == ("ACP_TURN_FAILED", "crashed")
        assert error.metadata["reopened"] == how
        task = task_pb2.AcpTask(acp_session_id=error.metadata["acpSessionId"])
        following = scheduler.leased("count", run_id="R2", task=task, session="s")
        count = 1 if how == "new" else 2
        assert reply_text(await scheduler.answer(following)) == f"prompts: {count}"


async def cut_off(scheduler: FakeScheduler) -> None:
    """A harness works, and the lease of its run gets lost."""
    lease = scheduler.lease(leased(scheduler, "say:I begin. ;; hang"))
    await eventually(lambda: any("begin" in delta.text for delta in scheduler.deltas), timeout=20)
    scheduler.lost.add(lease)


async def test_a_lease_lost_before_the_prompt_was_sent_is_worked_on(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with service(scheduler, tmp_path):
        done = await scheduler.answer(leased(scheduler, "count", attempt=2))
        assert reply_text(done) == "prompts: 1"


@pytest.mark.parametrize(("route", "heard"), [("here", True), ("", False)])
async def test_a_child_asks_only_where_the_root_of_its_tree_is_heard(
    scheduler: FakeScheduler, tmp_path: Path, route: str, heard: bool
) -> None:
    task = task_pb2.AcpTask()
    task.CopyFrom(TASK)
    task.new_session.permission_mode = s.PERMISSION_MODE_ASK
    scheduler.leased("root", run_id="ROOT")
    scheduler.runs["ROOT"].spec.reply_route.address = route
    child = scheduler.leased("count", task=task, session="s", depth=1, parent="ROOT")
    child.run.spawn.flow_id = "ROOT"
    async with service(scheduler, tmp_path):
        end = await scheduler.answer(child)
        if heard:
            assert reply_text(end) == "prompts: 1"
        else:
            assert from_proto(end.error).metadata["cause"] == "permission_mode"


async def test_where_spawns_do_not_wait_a_prompt_that_finds_no_room_is_refused(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    full = 'max_sessions = 1\nwhen_full = "reject"'
    async with service(scheduler, tmp_path, "--resume", acp=full):
        result = task_pb2.AcpResult()
        (await scheduler.answer(leased(scheduler, "count"))).result.details.Unpack(result)
        parked = task_pb2.AcpTask(acp_session_id=result.acp_session_id)
        at_work = scheduler.lease(leased(scheduler, "say:I begin. ;; hang", run_id="R2"))
        await eventually(lambda: any("begin" in d.text for d in scheduler.deltas), timeout=20)
        end = await scheduler.answer(scheduler.leased("count", run_id="R3", task=parked))
        assert from_proto(end.error).reason == "ACP_LIMIT_REACHED"
        assert not end.retryable
        scheduler.cancelled.add(at_work)
        cancelled = await scheduler.ended(at_work)
        assert from_proto(cancelled.error).reason == "RUN_CANCELLED"
