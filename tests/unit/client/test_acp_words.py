"""What the command line says about the work of harnesses."""

from __future__ import annotations

from conveyor.events.v1 import event_pb2 as ev
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor_client.cli.acp_words import HarnessTeller, decided_line, plan_line
from conveyor_client.cli.narrate import Narrator

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
