"""Turns of a harness: a real scheduler, a real service, real processes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from conveyor.acp.v1 import session_pb2 as s
from conveyor.acp.v1 import task_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from svckit.grpc import client
from svckit.testing import eventually
from tests.service.acp.turn_bench import (
    TurnBench,
    failure_of,
    reply_of,
    result_of,
    turn_bench,
)

QUICK = "handshake_seconds = 10\nquiet_seconds = 3\ncancel_seconds = 0.5"
"""Deadlines that pass while a test waits. What people have to answer is ten seconds at least."""


async def test_a_session_is_opened_prompted_asked_about_and_keeps_its_context(
    tmp_path: Path,
) -> None:
    async with turn_bench(tmp_path) as b:
        session_id = await b.spawn()
        opened = await b.ended(await b.send(session_id, "open", open_only=True))
        assert reply_of(opened) == f"scripted is ready in {b.root}; permissions: ask."
        assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_READY

        assert await b.prompt(session_id, "count") == "prompts: 1"
        # Reading needs nobody; the rest does, in this mode.
        (b.root / "a.txt").write_text("hello")
        run_id = await b.send(session_id, "say:I look. ;; read a.txt ;; write b.txt new ;; count")
        [write] = await b.questions()
        assert (write.title, write.tool_kind) == ("Write b.txt", "edit")
        assert write.acp_session_id == session_id
        assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_ASKING
        assert (await b.session(session_id)).open_questions == 1
        waits = await b.run(run_id)
        assert waits.state == run_pb2.RUN_STATE_SUSPENDED
        assert waits.suspension.lease_worker == "acp-0"
        assert write.locations == [f"{b.root}/b.txt"]
        assert "+new" in dict(write.arguments)["diff"]
        assert [o.option_id for o in write.options] == ["allow", "allow-always", "deny"]
        await b.answer(write, "deny")
        run = await b.ended(run_id)
        assert reply_of(run) == "denied b.txtprompts: 2"
        assert result_of(run) == task_pb2.AcpResult(
            stop_reason=task_pb2.ACP_STOP_REASON_END_TURN,
            acp_session_id=session_id,
            rejected_permissions=1,
        )
        assert not (b.root / "b.txt").exists()
        assert await b.decisions(run_id) == [(True, "approve-reads", ""), (False, "asked", "ann")]
        # Said once for the rest of the session, also after the process was another.
        run_id = await b.send(session_id, "write b.txt new")
        await b.answer((await b.questions())[0], "allow-always")
        await b.ended(run_id)
        assert (b.root / "b.txt").read_text() == "new"
        again = await b.ended(await b.send(session_id, "write b.txt newer"))
        assert reply_of(again) == "wrote b.txt"
        assert await b.decisions(again.run_id) == [(True, "remembered", "")]


async def test_what_a_harness_tells_becomes_events_and_its_usage_counts(tmp_path: Path) -> None:
    async with turn_bench(tmp_path) as b:
        session_id = await b.spawn(mode="approve-reads")
        (b.root / "a.txt").write_text("hello")
        text = "think:Hm. ;; plan ;; say:First. ;; read a.txt ;; write b.txt x ;; usage ;; say:End."
        run = await b.ended(await b.send(session_id, text))
        assert reply_of(run) == "denied b.txtEnd."
        key = run.spec.session_key
        updates = [e.harness_updated for e in await b.events(key, "harness_updated")]
        assert {u.acp_session_id for u in updates} == {session_id}
        assert [u.thought for u in updates if u.thought] == ["Hm."]
        plans = [[e.content for e in u.plan.entries] for u in updates if u.HasField("plan")]
        assert plans[-1] == ["Look", "Think", "Act"]
        last = {u.tool_call.title: u.tool_call for u in updates if u.HasField("tool_call")}
        assert last["Read a.txt"].status == event_pb2.HARNESS_ITEM_STATUS_COMPLETED
        assert last["Read a.txt"].output[0].text == "read a.txt: hello"
        assert last["Write b.txt"].status == event_pb2.HARNESS_ITEM_STATUS_FAILED
        between = [
            e.message_completed.message.parts[0].text
            for e in await b.events(key, "message_completed")
            if e.message_completed.kind == event_pb2.MESSAGE_KIND_INTERNAL
        ]
        assert between[0] == "First."
        assert await b.decisions(run.run_id) == [
            (True, "approve-reads", ""),
            (False, "approve-reads", ""),
        ]
        usage = (await b.run(run.run_id)).usage
        assert (usage.input_tokens, usage.output_tokens) == (1200, 200)
        assert (usage.cost_micros_usd, usage.model_calls) == (250_000, 1)
        # The cost of a session is told as a total: the second time nothing is new.
        run = await b.ended(await b.send(session_id, "usage"))
        assert (await b.run(run.run_id)).usage.cost_micros_usd == 0

        # The first report over the budget stops the turn.
        budget = run_pb2.Budget(max_cost_micros_usd=100)
        poor = await b.spawn()
        run = await b.ended(await b.send(poor, "usage ;; hang", budget=budget))
        assert failure_of(run)[0] == "BUDGET_EXCEEDED"
        assert await b.prompt(poor, "count") == "prompts: 2"
        # What was said is kept beside the failure, whenever the report came.
        run = await b.ended(
            await b.send(poor, "say:Paid. ;; usage", budget=run_pb2.Budget(max_tokens=100))
        )
        assert failure_of(run)[0] == "BUDGET_EXCEEDED"
        said = await b.events(run.spec.session_key, "message_completed")
        assert "Paid." in [e.message_completed.message.parts[0].text for e in said]


async def test_several_questions_are_open_at_a_time_and_any_may_be_answered_first(
    tmp_path: Path,
) -> None:
    async with turn_bench(tmp_path) as b:
        session_id = await b.spawn()
        run_id = await b.send(session_id, "asks 3 ;; asks 1 ;; ask-empty")
        first, second, third = await b.questions(3)
        await b.answer(third, "deny")
        await b.answer(first, "allow")
        [left] = await b.questions()
        assert left.question_id == second.question_id
        await b.answer(second, "allow")
        [one_more] = await b.questions()
        await b.answer(one_more, "allow")
        run = await b.ended(run_id)
        assert reply_of(run) == "cancelled"  # without options there is nothing to choose
        internal = await b.events(run.spec.session_key, "message_completed")
        texts = [e.message_completed.message.parts[0].text for e in internal]
        assert "answered: yes-once, yes-once, no-once" in texts


async def test_what_is_steered_is_the_next_prompt(tmp_path: Path) -> None:
    async with turn_bench(tmp_path) as b:
        session_id = await b.spawn()
        run_id = await b.send(session_id, "write a.txt x ;; count")
        [question] = await b.questions()
        steered = await b.send(
            session_id, "say:And then. ;; count", queue_mode=lane_pb2.QUEUE_MODE_STEER
        )
        assert steered == run_id
        await b.answer(question, "allow")
        run = await b.ended(run_id)
        assert reply_of(run) == "And then.prompts: 2"
        replies = [
            e.message_completed.message.parts[0].text
            for e in await b.events(run.spec.session_key, "message_completed")
            if e.message_completed.kind == event_pb2.MESSAGE_KIND_REPLY
        ]
        assert replies == ["wrote a.txtprompts: 1", "And then.prompts: 2"]


async def test_a_session_for_one_turn_stays_for_what_its_run_was_told_meanwhile(
    tmp_path: Path,
) -> None:
    async with turn_bench(tmp_path) as b:
        spec = s.AcpSessionSpec(
            harness_id="scripted",
            mode=s.ACP_SESSION_MODE_ONESHOT,
            permission_mode=s.PERMISSION_MODE_ASK,
        )
        run_id = await b.send("", "write a.txt x ;; count", new=spec, key="one")
        [question] = await b.questions()
        steered = await b.send(
            "", "say:And then. ;; count", key="one", queue_mode=lane_pb2.QUEUE_MODE_STEER
        )
        assert steered == run_id
        await b.answer(question, "allow")
        run = await b.ended(run_id)
        assert reply_of(run) == "And then.prompts: 2", "the same session, with its memory"
        session_id = result_of(run).acp_session_id

        async def closed() -> bool:
            return (await b.session(session_id)).state == s.ACP_SESSION_STATE_CLOSED

        await eventually(closed)


async def test_a_hopeless_prompt_is_refused_before_any_process_starts(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with turn_bench(tmp_path, {"told": ["--pids", str(pids)]}) as b:
        session_id = await b.spawn("told")
        run = await b.ended(await b.send(session_id, "count", route=""))
        assert run.attempt == 1
        reason, metadata = failure_of(run)
        assert (reason, metadata["cause"]) == ("ACP_SESSION_INIT_FAILED", "permission_mode")
        assert "choose another mode" in run.error.message
        assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_FAILED
        for spec, expected in (
            (s.AcpSessionSpec(harness_id="nobody"), "ACP_HARNESS_NOT_FOUND"),
            (s.AcpSessionSpec(harness_id="told", cwd="/"), "ACP_CWD_NOT_ALLOWED"),
            (s.AcpSessionSpec(harness_id="claude"), "ACP_BACKEND_MISSING"),
        ):
            run = await b.ended(await b.send("", "count", new=spec))
            assert failure_of(run)[0] == expected
            assert run.attempt == 1
        assert not pids.exists()
        run = await b.ended(await b.send("gone", "count", key="s"))
        assert failure_of(run)[0] == "ACP_SESSION_NOT_FOUND"


async def test_a_session_for_one_turn_is_made_by_its_run_and_closed_after_it(
    tmp_path: Path,
) -> None:
    async with turn_bench(tmp_path) as b:
        spec = s.AcpSessionSpec(
            harness_id="scripted",
            mode=s.ACP_SESSION_MODE_ONESHOT,
            permission_mode=s.PERMISSION_MODE_DENY_ALL,
        )
        run = await b.ended(await b.send("", "ask execute rm ;; count", new=spec))
        assert reply_of(run) == "denied no-onceprompts: 1"
        session_id = result_of(run).acp_session_id

        async def closed() -> bool:
            return (await b.session(session_id)).state == s.ACP_SESSION_STATE_CLOSED

        await eventually(closed)
        session = await b.session(session_id)
        assert session.spec.session_key == run.spec.session_key
        assert session.spec.customer_key == "ann"
        late = await b.ended(await b.send(session_id, "count"))
        assert failure_of(late)[0] == "ACP_SESSION_NOT_FOUND"


# What can go wrong


async def crashes(b: TurnBench) -> None:
    """The session is opened again at once, as the harness can, and says how."""
    for harness_id, reopened, count in (("scripted", "new", 1), ("resumes", "resumed", 3)):
        session_id = await b.spawn(harness_id)
        await b.prompt(session_id, "count")
        run = await b.ended(await b.send(session_id, "say:I begin. ;; crash"))
        reason, metadata = failure_of(run)
        assert reason == "ACP_TURN_FAILED"
        assert metadata["cause"] == "crashed"
        assert metadata["reopened"] == reopened
        assert metadata["exitCode"] == "-9"
        assert "told to crash" in metadata["lastWords"]
        assert metadata["acpSessionId"] == session_id
        assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_READY
        assert await b.prompt(session_id, "count") == f"prompts: {count}"


async def crashes_while_people_are_asked(b: TurnBench) -> None:
    session_id = await b.spawn("told")
    run_id = await b.send(session_id, "write a.txt x")

    async def asks() -> bool:
        return (await b.run(run_id)).state == run_pb2.RUN_STATE_SUSPENDED

    await eventually(asks, timeout=20)
    words = (b.root.parent / "pids").read_text().split()
    os.kill(int(words[words.index("self") + 1]), 9)
    reason, metadata = failure_of(await b.ended(run_id))
    assert (reason, metadata["cause"]) == ("ACP_TURN_FAILED", "crashed")
    assert await b.decisions(run_id) == [(False, "cancelled", "")]
    assert await b.prompt(session_id, "count") == "prompts: 1"


async def hangs_at_the_handshake(b: TurnBench) -> None:
    session_id = await b.spawn("hangs")
    reason, metadata = failure_of(await b.ended(await b.send(session_id, "x", open_only=True)))
    assert reason in ("ACP_BACKEND_UNAVAILABLE", "ACP_SESSION_INIT_FAILED")
    assert "hanging at initialize" in metadata["lastWords"]
    assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_FAILED


async def exits_at_once(b: TurnBench) -> None:
    session_id = await b.spawn("exits")
    reason, metadata = failure_of(await b.ended(await b.send(session_id, "count")))
    assert reason == "ACP_BACKEND_UNAVAILABLE"
    assert "gave up at start" in metadata["lastWords"]
    assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_FAILED


async def needs_a_login(b: TurnBench) -> None:
    session_id = await b.spawn("login-new")
    reason, metadata = failure_of(await b.ended(await b.send(session_id, "count")))
    assert (reason, metadata["cause"]) == ("ACP_SESSION_INIT_FAILED", "auth_required")
    session_id = await b.spawn("login-prompt")
    reason, metadata = failure_of(await b.ended(await b.send(session_id, "count")))
    assert (reason, metadata["cause"]) == ("ACP_TURN_FAILED", "auth_required")
    assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_READY
    assert (await b.session(session_id)).error.message


async def says_garbage(b: TurnBench) -> None:
    session_id = await b.spawn()
    text = "garbage ;; unknown-update ;; unknown-request ;; fs-write a b ;; say: ok"
    assert (await b.prompt(session_id, text)).endswith(" ok")
    reason, metadata = failure_of(await b.ended(await b.send(session_id, "error -32603 boom")))
    assert (reason, metadata["cause"]) == ("ACP_TURN_FAILED", "protocol")
    assert (await b.prompt(session_id, "say:again")) == "again"


async def sends_ten_megabytes(b: TurnBench) -> None:
    session_id = await b.spawn()
    run = await b.ended(await b.send(session_id, "big 10000000"))
    assert 800_000 < len(reply_of(run)) < 1_048_576
    assert await b.prompt(session_id, "say:small") == "small"


async def is_silent_for_too_long(b: TurnBench) -> None:
    session_id = await b.spawn("resumes")
    reason, metadata = failure_of(await b.ended(await b.send(session_id, "silent 600")))
    assert (reason, metadata["cause"]) == ("ACP_TURN_FAILED", "timeout")
    assert await b.prompt(session_id, "count") == "prompts: 2"


async def ignores_a_cancel(b: TurnBench) -> None:
    session_id = await b.spawn("stubborn")
    run_id = await b.send(session_id, "slow 600")
    await b.said(run_id, ".")
    began = time.monotonic()
    await b.cancel(run_id)
    run = await b.ended(run_id)
    assert run.state == run_pb2.RUN_STATE_CANCELLED
    assert time.monotonic() - began < 40
    assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_PARKED
    assert await b.prompt(session_id, "say:back") == "back"


async def is_cancelled_while_people_are_asked(b: TurnBench) -> None:
    session_id = await b.spawn("quiet-cancel")
    run_id = await b.send(session_id, "say:Soon. ;; write c.txt x")

    async def asks() -> bool:
        return (await b.run(run_id)).state == run_pb2.RUN_STATE_SUSPENDED

    await eventually(asks, timeout=20)
    await b.cancel(run_id)
    run = await b.ended(run_id)
    assert run.state == run_pb2.RUN_STATE_CANCELLED
    assert await b.decisions(run_id) == [(False, "cancelled", "")]
    assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_READY
    assert await b.prompt(session_id, "count") == "prompts: 2"
    assert not (b.root / "c.txt").exists()


async def never_works_on_two_prompts(b: TurnBench) -> None:
    """Whatever lane they come from: the harness would end itself."""
    session_id = await b.spawn()
    runs = [await b.send(session_id, "slow 0.2 ;; count", key=f"lane-{n}") for n in range(3)]
    replies = [reply_of(await b.ended(run_id)) for run_id in runs]
    assert sorted(reply.strip(".") for reply in replies) == [
        f"prompts: {number}" for number in (1, 2, 3)
    ]


async def test_whatever_a_harness_does_the_run_ends_typed_and_the_session_is_usable_or_ended(
    tmp_path: Path,
) -> None:
    harnesses = {
        "resumes": ["--resume"],
        "hangs": ["--hang-at", "initialize"],
        "exits": ["--exit-at", "start:3"],
        "login-new": ["--auth-at", "new"],
        "login-prompt": ["--auth-at", "prompt"],
        "stubborn": ["--ignore-cancel", "--deaf"],
        "quiet-cancel": ["--quiet-cancel"],
        "told": ["--pids", str(tmp_path / "pids")],
    }
    lanes = "[lanes.acp]\nlimit = 16\n"
    async with turn_bench(tmp_path, harnesses, f"max_sessions = 20\n{QUICK}", lanes) as b:
        async with asyncio.TaskGroup() as all_at_once:
            for fault in (
                crashes,
                crashes_while_people_are_asked,
                hangs_at_the_handshake,
                exits_at_once,
                needs_a_login,
                says_garbage,
                sends_ten_megabytes,
                is_silent_for_too_long,
                ignores_a_cancel,
                is_cancelled_while_people_are_asked,
                never_works_on_two_prompts,
            ):
                all_at_once.create_task(fault(b), name=fault.__name__)
        lanes_now = await client.call(b.scheduler.ListLanes(pb.ListLanesRequest()))
        assert {lane.name: lane.running for lane in lanes_now.lanes}["acp"] == 0


async def test_more_sessions_than_allowed_wait_without_a_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acp_svc.processes.ROOM_AGAIN_SECONDS", 0.3)
    async with turn_bench(tmp_path, {"resumes": ["--resume"]}, "max_sessions = 1") as b:
        first, second = await b.spawn("resumes"), await b.spawn("resumes")
        assert await b.prompt(first, "count") == "prompts: 1"
        # The idle one makes room, and comes back as it was.
        assert await b.prompt(second, "count") == "prompts: 1"
        assert (await b.session(first)).state == s.ACP_SESSION_STATE_PARKED
        busy = await b.send(second, "write a.txt x")
        [question] = await b.questions()
        waits = await b.send(first, "count")

        async def suspended() -> bool:
            run = await b.run(waits)
            return run.suspension.condition.limit.name == "acp.max_sessions"

        await eventually(suspended)
        await b.answer(question, "deny")
        await b.ended(busy)
        run = await b.ended(waits)
        assert reply_of(run) == "prompts: 2"
        assert result_of(run).reopened == s.ACP_OPENING_RESUMED


async def test_a_harness_that_ends_its_turn_while_people_are_asked_is_not_waited_for(
    tmp_path: Path,
) -> None:
    async with turn_bench(tmp_path) as b:
        session = await b.spawn()
        run_id = await b.send(session, "ask-and-go Edit it ;; slow 1 ;; say:done without you")
        await b.questions()
        assert reply_of(await b.ended(run_id)).endswith("done without you")
        await b.questions(0)
        assert await b.decisions(run_id) == [(False, "cancelled", "")]
        assert await b.prompt(session, "count") == "prompts: 2"


async def test_a_permission_that_nobody_answers_is_denied(tmp_path: Path) -> None:
    async with turn_bench(tmp_path, {"bare": ["--bare"]}) as b:
        session_id = await b.spawn("bare", ask_timeout={"seconds": 10})
        run_id = await b.send(session_id, "write d.txt x")
        [question] = await b.questions()
        assert question.title == "Write d.txt"  # as told before the request, which names nothing
        b.clock.skip(10)
        assert reply_of(await b.ended(run_id)) == "denied d.txt"
        assert await b.decisions(run_id) == [(False, "expired", "")]
        assert not (b.root / "d.txt").exists()
        assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_READY


async def test_a_harness_that_asks_without_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acp_svc.following.MOST_REQUESTS", 5)
    async with turn_bench(tmp_path) as b:
        session_id = await b.spawn(mode="deny-all")
        run = await b.ended(await b.send(session_id, "asks 5 ;; asks 3 ;; hang"))
        reason, metadata = failure_of(run)
        assert (reason, metadata["cause"]) == ("ACP_TURN_FAILED", "protocol")
        assert len(await b.decisions(run.run_id)) == 5
        assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_READY
        assert await b.prompt(session_id, "count") == "prompts: 2"
