"""Coding agents in the console: started, watched, asked for permission, prompted and closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.acp.v1 import session_pb2, task_pb2
from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.events.v1 import event_pb2
from svckit.worker import Outcome
from tests.browser.conftest import Browser
from tests.browser.test_browser_console import address, seen, write
from tests.service.gateway.harnesses import Harnesses
from tests.service.gateway.suite import Turn, suite

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

DIFF = "--- src/a.py\n+++ src/a.py\n@@ -1,2 +1,2 @@\n keep\n-old <b>line</b>\n+new line"
NARROWEST_OF_MANY = """() => {
  const list = document.querySelector("#agent-list");
  const [entry] = list.children;
  const more = Array.from({ length: 8 }, () => entry.cloneNode(true));
  list.append(...more);
  const widths = more.map((one) => one.querySelector(".title").getBoundingClientRect().width);
  more.forEach((one) => one.remove());
  return Math.min(...widths);
}"""
"""The width of a name in the list when there are many coding agents."""
OWN_NAME = "constructor"
"""What a harness calls a tool call: also what every object has in the language of the console."""
PENDING, NOW, DONE = (
    event_pb2.HARNESS_ITEM_STATUS_PENDING,
    event_pb2.HARNESS_ITEM_STATUS_IN_PROGRESS,
    event_pb2.HARNESS_ITEM_STATUS_COMPLETED,
)


class Coder(Harnesses):
    """Plans, reads, asks whether it may edit, and says what came of it."""

    async def _turn(self, turn: Turn) -> Outcome:
        task = task_pb2.AcpTask()
        assert turn.run.spec.task.Unpack(task)
        session = self.sessions[task.acp_session_id]
        if turn.text != "fix it":
            return await super()._turn(turn)
        if turn.first:
            session.state = session_pb2.ACP_SESSION_STATE_ASKING
            session.run_id = turn.run.run_id
            read = event_pb2.HarnessToolCall(
                tool_call_id="c1", title="Read src/a.py", tool_kind="read", status=DONE
            )
            read.output.add(text="keep\nold <b>line</b>")
            edit = event_pb2.HarnessToolCall(
                tool_call_id=OWN_NAME, title="Edit src/a.py", tool_kind="edit", status=PENDING
            )
            allowed = event_pb2.PermissionDecided(
                acp_session_id=task.acp_session_id,
                tool_call_id="c1",
                title="Read src/a.py",
                allowed=True,
                rule="approve-reads",
            )
            question = question_pb2.Question(
                question_id=f"{turn.run.run_id}/c2",
                acp_session_id=task.acp_session_id,
                title="Edit src/a.py",
                tool_kind="edit",
                locations=["/srv/site/src/a.py"],
                default_option_id="deny",
            )
            question.options.add(option_id="allow", name="Allow once", kind=1)
            question.options.add(option_id="deny", name="Deny", kind=3)
            question.arguments.update({"diff": DIFF, "reason": "as you asked"})
            await self._tell(
                turn,
                self._update(
                    session, plan=_plan((DONE, "read"), (NOW, "write"), (PENDING, "test"))
                ),
                self._update(session, tool_call=read),
                event_pb2.Event(event_id="p1", permission_decided=allowed),
                self._update(session, tool_call=edit),
                event_pb2.Event(
                    event_id="q1", question_asked=event_pb2.QuestionAsked(question=question)
                ),
            )
            return turn.wait_for_answers([question.question_id])
        session.state = session_pb2.ACP_SESSION_STATE_READY
        [answer] = turn.leased.leased.resumption.answers
        return turn.reply(f"{answer.responder} said {answer.option_id}")

    def _update(self, session: session_pb2.AcpSession, **what: object) -> event_pb2.Event:
        updated = event_pb2.HarnessUpdated(
            acp_session_id=session.acp_session_id,
            **what,  # type: ignore[arg-type]
        )
        kind = updated.WhichOneof("update")
        event_id = f"{kind}-{updated.tool_call.tool_call_id}"
        return event_pb2.Event(event_id=event_id, harness_updated=updated)

    async def _tell(self, turn: Turn, *events: event_pb2.Event) -> None:
        request = ev.AppendEventsRequest(lease_id=turn.leased.lease_id, events=events)
        await self.log.AppendEvents(request)

    log: object = None


def _plan(*entries: tuple[int, str]) -> event_pb2.HarnessPlan:
    plan = event_pb2.HarnessPlan()
    for status, content in entries:
        plan.entries.add(status=status, content=content)  # type: ignore[arg-type]
    return plan


BESIDE = """async () => {
  const { SessionModel } = await import("/js/model.js");
  const model = new SessionModel("agent:main:http:direct:ann");
  const message = { message_id: "m", parts: [{ text: "done" }] };
  const reply = { kind: "MESSAGE_KIND_REPLY", message };
  const failed = { state: "RUN_STATE_FAILED", error: { message: "it crashed" } };
  [{ run_id: "r", message_completed: reply }, { run_id: "s", run_state_changed: failed }].forEach(
    (what, index) => model.take({ event: {
      session_key: "agent:claude:acp:01X", flow_id: what.run_id, sequence: index + 1, ...what } }));
  return [...model.items.values()].map((item) => item.text);
}"""


async def test_a_coding_agent_is_started_asked_prompted_and_closed(
    tmp_path: Path, browser: Browser
) -> None:
    coder = Coder()
    async with suite(tmp_path) as around:
        coder.log = around.agent.log
        coder.serve(around.acp)
        harnesses = [
            acp.Harness(harness_id="codex", display_name="Codex", allowed=True),
            acp.Harness(
                harness_id="claude", display_name="Claude Code", allowed=True, installed=True
            ),
            acp.Harness(harness_id="vibe", display_name="Vibe"),
        ]
        around.acp.always("ListHarnesses", acp.ListHarnessesResponse(harnesses=harnesses))
        async with coder.working(around), around.serve():
            page = await browser.open(address(around))
            await seen(page, "#no-agents", "None is open")
            await page.click("#new-agent")
            await page.locator("#agent-form option", has_text="not installed").wait_for(
                state="attached"
            )
            form = page.locator("#agent-form")
            options = await form.locator("select[name=harness] option").all_inner_texts()
            assert options == ["Claude Code", "Codex (not installed)"]
            await form.locator("[name=cwd]").fill("/srv/site")
            await form.locator("[name=label]").fill("site")
            await form.locator("[name=permissions]").select_option("ask")
            await form.locator("[name=task]").fill("fix it")
            await form.locator("button[type=submit]").click()

            # It opens by itself: its work, and what it asks with the change that it would make.
            await seen(page, "#chat-title", "site")
            await seen(page, ".row.agent .bubble", "claude is ready")
            assert "1 of 3 done" in await (await seen(page, ".work", "Plan")).inner_text()
            assert await page.locator(".plan li.run").inner_text() == "write"
            read = await seen(page, ".call.good", "Read src/a.py")
            assert "allowed: approve-reads" in await read.inner_text()
            await read.locator("summary").click()
            assert "<b>" in await read.locator("pre").inner_text()
            edit = await seen(page, ".call.wait", "Edit src/a.py")
            assert "denied" not in await edit.inner_text(), "nobody has decided yet"
            card = await seen(page, ".card.question", "Question 1: Edit src/a.py")
            assert await card.locator(".diff .plus").inner_text() == "+new line\n"
            assert await card.locator(".diff b").count() == 0
            assert "as you asked" in await card.inner_text()
            await seen(page, "#agent-facts", "/srv/site · permissions ask")
            await seen(page, "#agent-state", "asks you something")
            entry = await seen(page, "#agent-list .session", "site")
            assert "site · ask" in await entry.inner_text()
            assert await page.locator("#agent-cancel").is_visible()
            await page.screenshot(path=str(tmp_path / "agent.png"))
            await card.locator("button", has_text="Allow once").click()
            await seen(page, ".row.agent .bubble", "local said allow")
            await seen(page, ".card summary", "what it was")
            await seen(page, "#agent-state", "ready")

            # A prompt from the message box goes to it, and closing takes it from the list.
            await write(page, "and the tests")
            await seen(page, ".row.agent .bubble", "claude: and the tests")
            await page.set_viewport_size({"width": 400, "height": 800})
            overflow = await page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert overflow <= 0
            assert await page.evaluate(NARROWEST_OF_MANY) > 15, "states leave room for names"
            await page.screenshot(path=str(tmp_path / "agent-small.png"))
            await page.click("#agent-close")
            await seen(page, "#no-agents", "None is open")
            assert await page.locator("#agent-bar").is_hidden()
            [session] = coder.sessions.values()
            assert session.spec.permission_mode == session_pb2.PERMISSION_MODE_ASK
            # What one says that was started from a conversation is said in that conversation.
            assert await page.evaluate(BESIDE) == ["claude: done", "Failed: it crashed"]
