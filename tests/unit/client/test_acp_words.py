"""What the command line says about the work of harnesses."""

from __future__ import annotations

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_pb2 as ev
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor_client.cli.acp_words import HarnessTeller, decided_line, plan_line
from conveyor_client.cli.narrate import Narrator
from conveyor_client.cli.tree import worker_words

PENDING, AT_WORK, DONE, FAILED = (
    ev.HARNESS_ITEM_STATUS_PENDING,
    ev.HARNESS_ITEM_STATUS_IN_PROGRESS,
    ev.HARNESS_ITEM_STATUS_COMPLETED,
    ev.HARNESS_ITEM_STATUS_FAILED,
)


def called(title: str, status: ev.HarnessItemStatus.ValueType, *where: str) -> ev.HarnessUpdated:
    call = ev.HarnessToolCall(tool_call_id="1", title=title, status=status, locations=where)
    return ev.HarnessUpdated(acp_session_id="S", tool_call=call)


def test_a_tool_call_is_told_once_when_it_begins_and_once_when_it_fails() -> None:
    teller = HarnessTeller()
    updates = [
        called("Edit", PENDING, "/repo/a.py"),
        called("Edit", AT_WORK, "/repo/a.py"),
        called("Edit a.py", AT_WORK, "/repo/a.py"),
        called("Edit a.py", FAILED, "/repo/a.py"),
        called("Edit a.py", FAILED, "/repo/a.py"),
    ]
    told = [teller.tell(update, thoughts=False) for update in updates]
    assert told == [
        ("Edit (/repo/a.py)", True),
        None,
        ("Edit a.py", True),
        ("Edit a.py: failed", False),
        None,
    ]
    # Of one that nobody heard of before, its end alone says what it was.
    assert HarnessTeller().tell(called("Run ls", DONE), thoughts=False) == ("Run ls", True)


def test_a_plan_is_one_line_and_told_when_it_changes() -> None:
    def plan(*statuses: ev.HarnessItemStatus.ValueType) -> ev.HarnessPlan:
        entries = [
            ev.HarnessPlanEntry(content=f"step {n}", status=status)
            for n, status in enumerate(statuses, 1)
        ]
        return ev.HarnessPlan(entries=entries)

    assert plan_line(plan()) == ""
    assert plan_line(plan(PENDING, PENDING)) == "plan: 0 of 2 done, next: step 1"
    assert plan_line(plan(DONE, AT_WORK)) == "plan: 1 of 2 done, now: step 2"
    assert plan_line(plan(DONE, DONE)) == "plan: 2 of 2 done"
    teller = HarnessTeller()
    update = ev.HarnessUpdated(acp_session_id="S", plan=plan(DONE, AT_WORK))
    assert teller.tell(update, thoughts=False) is not None
    assert teller.tell(update, thoughts=False) is None


def test_a_decision_names_its_rule_and_who_took_it() -> None:
    decided = ev.PermissionDecided(title="Run rm", rule="asked", responder="ann")
    assert decided_line(decided) == "denied: Run rm (by ann, asked)"
    decided = ev.PermissionDecided(tool_kind="edit", allowed=True, rule="approve-all")
    assert decided_line(decided) == "allowed: edit (approve-all)"


def test_who_converses_hears_of_what_a_rule_denied_and_not_of_every_step() -> None:
    def items(**payload: object) -> gateway_pb.ChatResponse:
        return gateway_pb.ChatResponse(event=ev.Event(run_id="R", **payload))  # type: ignore[arg-type]

    denied = items(permission_decided=ev.PermissionDecided(title="Run rm", rule="deny-all"))
    asked = items(permission_decided=ev.PermissionDecided(title="Run rm", rule="asked"))
    allowed = items(
        permission_decided=ev.PermissionDecided(title="Read", rule="approve-reads", allowed=True)
    )
    step = items(harness_updated=called("Edit", PENDING))
    thought = items(harness_updated=ev.HarnessUpdated(thought="hm"))
    every = (denied, asked, allowed, step, thought)

    def heard(narrator: Narrator) -> int:
        return sum(len(list(narrator.tell(item))) for item in every)

    assert heard(Narrator()) == 1
    assert heard(Narrator(work=True)) == 4
    assert heard(Narrator(thorough=True)) == 5


def test_what_a_harness_says_between_its_tool_calls_is_said_once() -> None:
    said = ev.MessageCompleted(
        message=content_pb2.Message(
            message_id="event", parts=[content_pb2.ContentPart(text="First I look.")]
        ),
        kind=ev.MESSAGE_KIND_INTERNAL,
    )
    internal = gateway_pb.ChatResponse(event=ev.Event(run_id="R", message_completed=said))
    piece = ev.MessageDelta(message_id="R-1", text="First I look.", run_id="R")
    delta = gateway_pb.ChatResponse(delta=piece)

    def heard(narrator: Narrator, *items: gateway_pb.ChatResponse) -> str:
        return " ".join(told.text for item in items for told in narrator.tell(item)).strip()

    assert heard(Narrator(work=True), delta, internal) == "First I look."
    assert heard(Narrator(work=True, live=True), delta, internal) == "First I look."
    assert heard(Narrator(), delta, internal) == ""
    assert heard(Narrator(thorough=True), delta, internal) == "thinks: First I look."


def test_a_reply_that_is_all_there_is_not_said_again_below_the_news() -> None:
    reply = ev.MessageCompleted(
        message=content_pb2.Message(
            message_id="R-1", parts=[content_pb2.ContentPart(text="Done.")]
        ),
        kind=ev.MESSAGE_KIND_REPLY,
    )
    news = ev.PermissionDecided(title="Edit", allowed=True, rule="asked")
    narrator = Narrator(work=True, live=True)
    items = (
        gateway_pb.ChatResponse(delta=ev.MessageDelta(message_id="R-1", text="Done.")),
        gateway_pb.ChatResponse(event=ev.Event(run_id="R", permission_decided=news)),
        gateway_pb.ChatResponse(event=ev.Event(run_id="R", message_completed=reply)),
    )
    told = [said.text for item in items for said in narrator.tell(item) if said.text]
    assert told == ["Done.", "allowed: Edit (asked)"]


def test_a_tree_says_which_harness_did_a_run() -> None:
    def words(queue: str, key: str) -> str:
        return worker_words(run_pb2.RunSpec(queue=queue, estimate_key=key))

    assert words("acp", "acp/claude") == "acp claude"
    assert words("acp", "acp/claude/open") == "acp claude (opening)"
    # Of a child that an agent spawned: harness and model.
    assert words("acp", "claude/") == "acp claude"
    assert words("acp", "") == "acp"
    assert words("other", "main/demo") == "other"
