"""Turns of a harness: a real scheduler, a real service, real processes."""

from __future__ import annotations

from pathlib import Path

from conveyor.acp.v1 import session_pb2 as s
from conveyor.acp.v1 import task_pb2
from conveyor.scheduler.v1 import run_pb2
from tests.service.acp.turn_bench import failure_of, reply_of, result_of, turn_bench


async def test_a_session_is_opened_prompted_asked_about_and_keeps_its_context(
    tmp_path: Path,
) -> None:
    async with turn_bench(tmp_path) as b:
        session_id = await b.spawn()
        opened = await b.ended(await b.send(session_id, "open", open_only=True))
        assert reply_of(opened) == f"scripted is ready in {b.root}; permissions: ask."
        assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_READY

        assert await b.prompt(session_id, "count") == "prompts: 1"
        # A reading is asked about too, in this mode.
        (b.root / "a.txt").write_text("hello")
        run_id = await b.send(session_id, "say:I look. ;; read a.txt ;; write b.txt new\ntext")
        [read] = await b.questions()
        assert (read.title, read.tool_kind) == ("Read a.txt", "read")
        assert read.acp_session_id == session_id
        assert (await b.session(session_id)).state == s.ACP_SESSION_STATE_ASKING
        assert (await b.session(session_id)).open_questions == 1
        waits = await b.run(run_id)
        assert waits.state == run_pb2.RUN_STATE_SUSPENDED
        assert waits.suspension.lease_worker == "acp-0"
        await b.answer(read, "allow")
        [write] = await b.questions()
        assert write.title == "Write b.txt"
        assert write.locations == [f"{b.root}/b.txt"]
        assert "+new" in dict(write.arguments)["diff"]
        assert [o.option_id for o in write.options] == ["allow", "allow-always", "deny"]
        await b.answer(write, "deny")
        run = await b.ended(run_id)
        assert reply_of(run) == "denied b.txtheard: text"
        assert result_of(run) == task_pb2.AcpResult(
            stop_reason=task_pb2.ACP_STOP_REASON_END_TURN,
            acp_session_id=session_id,
            rejected_permissions=1,
        )
        assert not (b.root / "b.txt").exists()
        assert await b.decisions(run_id) == [(True, "asked", "ann"), (False, "asked", "ann")]
        assert await b.prompt(session_id, "count") == "prompts: 3"
        assert failure_of is not None
