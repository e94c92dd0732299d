"""Messages for a busy conversation, and limits set by hand, through the whole suite."""

from __future__ import annotations

from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor_client import ConveyorClient
from tests.system.harness import (
    RUNNING,
    SUCCEEDED,
    Suite,
    chat,
    flow_where,
    replies,
    run_where,
    text_of,
)

COLLECTED = lane_pb2.ENQUEUE_OUTCOME_COLLECTED
INTERRUPTED = lane_pb2.ENQUEUE_OUTCOME_INTERRUPTED


async def test_what_is_said_while_the_agent_works_gets_one_answer(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    said = await client.send("/queue collect", session_key=session)
    assert text_of(said.accepted.run.result.reply).startswith("Queue mode collect")
    await client.send("[[sleep: 1s]] [[reply: before]]", session_key=session)
    sent = [
        (await client.send(f"[[reply: {text}]]", session_key=session)).accepted
        for text in ("one", "two", "three")
    ]
    # The first may have joined the one before, which waited for more when it came.
    assert [accepted.outcome for accepted in sent[1:]] == [COLLECTED, COLLECTED]
    ended = await run_where(client, sent[0].run.run_id, SUCCEEDED)
    assert {accepted.run.run_id for accepted in sent} == {ended.run_id}
    assert replies(await suite.events(session), ended.run_id)[-1].endswith("one\n\ntwo\n\nthree")
    history = [text_of(message) for message in (await client.messages(session)).messages]
    assert [text for text in history if "[[" in text][-3:] == [
        "[[reply: one]]",
        "[[reply: two]]",
        "[[reply: three]]",
    ]


async def test_an_interrupt_stops_the_work_that_goes_on_and_its_sub_agents(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    text = "[[spawn: [[sleep: 60s]]]] [[spawn: [[sleep: 60s]]]]"
    running = (await client.send(text, session_key=session)).accepted.run
    await flow_where(client, running.run_id, suspended=1, running=2)
    told = await chat(
        client,
        "[[reply: at once]]",
        session_key=session,
        queue_mode=lane_pb2.QUEUE_MODE_INTERRUPT,
    )
    assert told.items[0].accepted.outcome == INTERRUPTED
    assert told.answer == "at once"
    await flow_where(client, running.run_id, cancelled=3)

    # And one that executes, which its worker stops.
    sent = await client.send("[[sleep: 60s]]", session_key=session)
    await run_where(client, sent.accepted.run.run_id, RUNNING)
    done = suite.cli(
        "send", "[[reply: now]]", "--wait", "--session", session, "--queue-mode", "interrupt"
    )
    assert "now" in done.stdout
    stopped = await run_where(client, sent.accepted.run.run_id, run_pb2.RUN_STATE_CANCELLED)
    assert stopped.cancel_reason == "a newer message interrupted it"


async def test_the_limit_of_a_lane_is_set_and_reset_by_hand(
    suite: Suite, client: ConveyorClient
) -> None:
    done = suite.cli("lanes", "set", "main", "--limit", "8")
    assert done.stdout == "lane main: limit 8 (configured 4)\n"
    [main] = [lane for lane in (await client.lanes()).lanes if lane.name == "main"]
    assert (main.limit, main.configured_limit) == (8, 4)
    assert suite.cli("lanes", "set", "main", "--reset").stdout == "lane main: limit 4\n"
