"""Commands from the chat and from programs, over a real scheduler."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import aio

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.agent.v1 import probe_pb2, task_pb2
from conveyor.common.v1 import question_pb2, usage_pb2
from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import limit_service_pb2 as ls
from conveyor.scheduler.v1 import limit_service_pb2_grpc as ls_grpc
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from gateway_svc.auth import LOCAL, Principal, Scope
from gateway_svc.operations import Operations
from svckit.errors import ServiceError, Unreachable
from svckit.grpc.status import from_rpc_error
from svckit.ids import new_ulid
from svckit.testing import eventually
from svckit.turn import Outcome, Suspend
from tests.service.gateway.suite import Suite, Turn, delegating, text_of

PLAN = "plan the launch"
TREND, RIVALS = "market trend", "market rivals"
SUCCEEDED, CANCELLED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_CANCELLED


async def say(gateway: Suite, text: str, session: str = "alice", request_id: str = "") -> str:
    """Send a command as a chat message; returns what was answered."""
    sent = await gateway.send(session, text, request_id=request_id or new_ulid())
    assert not sent.accepted.run.run_id, "no run answers a command"
    return text_of(sent.accepted.run.result.reply)


async def execute(
    gateway: Suite, text: str, session: str = "alice", request_id: str = ""
) -> gw.ExecuteCommandResponse:
    return await gateway.stub.ExecuteCommand(
        gw.ExecuteCommandRequest(
            session_key=session, text=text, request_id=request_id or new_ulid()
        )
    )


async def refused(gateway: Suite, text: str, session: str = "alice", **more: str) -> ServiceError:
    with pytest.raises(aio.AioRpcError) as failed:
        await execute(gateway, text, session, **more)
    return from_rpc_error(failed.value)


def unpacked(answer: gw.ExecuteCommandResponse, kind: type[Message]) -> Any:
    message = kind()
    assert answer.data.Unpack(message)
    return message


async def at_work(gateway: Suite, session: str = "alice", *, text: str = PLAN) -> str:
    """A conversation whose run waits for two sub-agents that work; returns the run's id."""
    for task in (TREND, RIVALS):
        gateway.agent.hold(task)
    gateway.agent.on(text, delegating(TREND, RIVALS))
    sent = await gateway.send(session, text)
    await eventually(lambda: {TREND, RIVALS} <= set(gateway.agent.started))
    return str(sent.accepted.run.run_id)


async def child(gateway: Suite, flow_id: str, label: str) -> run_pb2.Run:
    answer = await gateway.stub.GetFlow(fs.GetFlowRequest(flow_id=flow_id))
    return next(node for node in answer.nodes if node.spec.label == label)


async def spend(gateway: Suite, run_id: str, tokens: int, cost: int) -> None:
    """A model call of a run is reported while it works."""
    limits = ls_grpc.LimitServiceStub(gateway.scheduler.channel)
    await limits.Report(
        ls.ReportRequest(
            request_id=new_ulid(),
            call=ls.ModelCall(provider_id="lab", model="small", run_id=run_id),
            requested_model="lab:large",
            outcome=ls.CALL_OUTCOME_ANSWERED,
            usage=usage_pb2.Usage(model_calls=1, input_tokens=tokens, cost_micros_usd=cost),
        )
    )


async def test_sub_agents_are_listed_with_what_they_use_while_they_work(gateway: Suite) -> None:
    flow_id = await at_work(gateway)
    await spend(gateway, (await child(gateway, flow_id, TREND)).run_id, 1234, 3100)
    said = await say(gateway, "/subagents list")
    head, first, second, _ = said.splitlines()
    assert head == "2 sub-agents:"
    assert first.startswith("#1 market trend · working, ")
    assert first.endswith(" · subagent lab:large → lab:small · 1.2k tokens · $0.0031")
    assert second.endswith("0 tokens · $0")
    answer = await execute(gateway, "/subagents list")
    assert answer.command == "subagents list"
    runs = unpacked(answer, ss.ListRunsResponse).runs
    assert [run.spec.label for run in runs] == [TREND, RIVALS]

    assert "It has been executing" in await say(gateway, f"/why {runs[0].run_id}")
    assert "plan the launch" in await say(gateway, f"/flow show {runs[0].run_id}")
    info = await say(gateway, "/subagents info market t")
    assert "Task: market trend" in info
    assert "1.2k tokens, $0.0031" in info
    log = await execute(gateway, "/subagents log 1")
    assert log.text.splitlines() == ["market trend:", "told: market trend"]
    events = unpacked(log, ev.ListEventsResponse).events
    assert all(not event.position for event in events)

    gateway.agent.let_go(TREND)
    await eventually(lambda: _state(gateway, flow_id, TREND, SUCCEEDED))
    # Who works comes first now; a number still means what its reader saw.
    assert "rivals" in await say(gateway, "/subagents info 2")
    told = await say(gateway, "/subagents")
    assert [line.split(" · ")[0] for line in told.splitlines()[1:3]] == [
        "#1 market rivals",
        "#2 market trend",
    ]
    assert "#2 market trend · done, " in told
    gateway.agent.let_go(RIVALS)


async def _state(gateway: Suite, flow_id: str, label: str, state: int) -> bool:
    return (await child(gateway, flow_id, label)).state == state


async def _ended(gateway: Suite, flow_id: str) -> bool:
    flow = (await gateway.stub.GetFlow(fs.GetFlowRequest(flow_id=flow_id))).flow
    return bool(flow.state == CANCELLED)


async def test_a_sub_agent_is_stopped_by_label_and_only_once(gateway: Suite) -> None:
    flow_id = await at_work(gateway)
    unsure = await say(gateway, "/kill market")
    assert unsure.startswith("“market” may be ")
    assert "for example `/kill 1`" in unsure
    assert await say(gateway, "/kill market trend", request_id="kill-1") == "Stopped market trend."
    await eventually(lambda: _state(gateway, flow_id, TREND, CANCELLED))
    # Repeated it says the same; as a new command it finds nothing to stop.
    assert await say(gateway, "/kill market trend", request_id="kill-1") == "Stopped market trend."
    assert "has ended" in await say(gateway, "/kill market trend")
    assert (await refused(gateway, "/kill all", request_id="kill-1")).reason == "REQUEST_ID_REUSED"

    assert await say(gateway, "/kill all") == "Stopped market rivals."
    assert await say(gateway, "/kill all") == "No sub-agent is at work."
    await eventually(lambda: _state(gateway, flow_id, RIVALS, CANCELLED))
    assert (await say(gateway, "/subagents")).count(" · stopped, ") == 2


async def test_a_conversation_sees_and_touches_its_own_trees_only(gateway: Suite) -> None:
    flow_id = await at_work(gateway)
    run_id = (await child(gateway, flow_id, TREND)).run_id
    await gateway.send("mallory", "hello")
    assert (await say(gateway, "/subagents", "mallory")).startswith("No sub-agents")
    for text in (
        "/kill market trend",
        f"/kill {run_id}",
        f"/subagents log {run_id}",
        f"/steer {run_id} stop it",
        f"/flow show {flow_id}",
        f"/flow cancel {flow_id}",
        f"/why {run_id}",
    ):
        assert "alice" not in await say(gateway, text, "mallory")
        assert (await refused(gateway, text, "mallory")).reason == "INVALID_FIELD"
    assert (await say(gateway, "/stop all", "mallory")) == "Nothing is under way here."
    assert "plan the launch" not in await say(gateway, "/tasks", "mallory")
    assert not (await child(gateway, flow_id, TREND)).cancel_reason


async def test_what_the_caller_may_not_do_a_command_does_not_do_either(
    gateway: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_id = await at_work(gateway)
    caller = [Principal("ann", Scope.READ, "http:alice")]
    monkeypatch.setattr("gateway_svc.rpc.gateway.caller", lambda: caller[0])
    assert "market trend" in (await execute(gateway, "/subagents")).text
    for text in ("/kill 1", "/stop", "/model demo", "/queue collect", "/new"):
        assert (await refused(gateway, text)).reason == "SCOPE_MISSING", text
    caller[0] = Principal("eve", Scope.CONTROL, "http:eve")
    assert (await refused(gateway, "/subagents")).reason == "SESSION_NOT_FOUND"
    assert (await refused(gateway, f"/flow cancel {flow_id}", "")).reason == "INVALID_FIELD"
    caller[0] = Principal("alice", Scope.CONTROL, "http:alice")
    run = unpacked(await execute(gateway, "/kill 1"), ss.CancelRunResponse).run
    assert not run.spec.HasField("task"), "only an admin sees that"
    caller[0] = LOCAL
    # Without a conversation an operator reaches every tree by its id.
    assert (await execute(gateway, f"/flow cancel {flow_id}", "")).text.startswith("Stopped “plan")


async def test_a_request_id_never_brings_what_another_customer_was_answered(
    gateway: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_id = await at_work(gateway)
    caller = [Principal("alice", Scope.CONTROL, "http:alice")]
    monkeypatch.setattr("gateway_svc.rpc.gateway.caller", lambda: caller[0])
    text = f"/flow cancel {flow_id}"
    assert "plan the launch" in (await execute(gateway, text, "", request_id="1")).text
    caller[0] = Principal("eve", Scope.CONTROL, "http:eve")
    # Hers is another request, of which nothing is known; and the flow is none of hers.
    assert (await refused(gateway, text, "", request_id="1")).reason == "INVALID_FIELD"


async def test_without_a_conversation_a_number_names_no_request(gateway: Suite) -> None:
    """Nobody remembers what was listed, so the number could be of any customer's request."""
    flow_id = await at_work(gateway)
    listed = (await execute(gateway, "/flow list", "")).text
    assert f"{flow_id} plan the launch" in listed
    assert "#1" not in listed
    for text in ("/flow cancel 1", "/flow show plan"):
        assert "needs the id of a run" in (await refused(gateway, text, "")).message
    assert (await execute(gateway, f"/flow show {flow_id}", "")).text.startswith(PLAN)


async def test_a_steered_message_lands_or_is_reported_missed(gateway: Suite) -> None:
    got: list[str] = []
    reached = asyncio.Event()

    async def listening(turn: Turn) -> Outcome:
        reached.set()
        items = await turn.leased.wait_steered()
        got.extend(text_of(item.message) for item in items)
        done = turn.reply("noted")
        return type(done)(done.result, taken=[item.request_id for item in items])

    async def deaf(turn: Turn) -> Outcome:
        reached.set()
        await turn.leased.wait_steered()
        return turn.reply("never heard")

    gateway.agent.on("listen", listening)
    gateway.agent.on("be deaf", deaf)
    for task, said in (
        ("listen", "listen took it."),
        ("be deaf", "be deaf missed it: it came to its end before it could take it."),
    ):
        reached.clear()
        gateway.agent.on(f"do {task}", delegating(task))
        await gateway.send("alice", f"do {task}")
        await reached.wait()
        assert await say(gateway, f'/steer "{task}" look at  Europe') == said
        assert "has ended" in await say(gateway, f'/tell "{task}" again')
    assert got == ["look at  Europe"]


async def test_stop_ends_what_keeps_the_conversation_busy_and_keeps_what_waits(
    gateway: Suite,
) -> None:
    flow_id = await at_work(gateway)
    gateway.agent.hold("next")
    waiting = (await gateway.send("alice", "next")).accepted.run.run_id
    status = (await say(gateway, "/status")).splitlines()
    assert status[0].startswith("Agent main · model ")
    assert status[2].startswith("“plan the launch”: waits for 2 sub-agents, ")
    assert any(line.startswith("1 message waiting") for line in status)
    stopped = await say(gateway, "/stop", request_id="stop-1")
    assert stopped == (
        "Stopped “plan the launch” with 2 sub-agents. "
        "1 other under way or waiting: `/stop all` stops those too."
    )
    await eventually(lambda: "next" in gateway.agent.started)
    # The same message again, after an answer that got lost, does not stop the next one.
    assert await say(gateway, "/stop", request_id="stop-1") == stopped
    run = (await gateway.stub.GetRun(ss.GetRunRequest(run_id=waiting))).run
    assert run.state == run_pb2.RUN_STATE_RUNNING
    assert (await gateway.stub.GetRun(ss.GetRunRequest(run_id=flow_id))).run.cancel_reason
    await eventually(lambda: _ended(gateway, flow_id))
    board = await say(gateway, "/tasks")
    assert "1 working" in board
    assert "#1 next · working · " in board
    assert "#2 plan the launch · stopped, 2 of 2 sub-agents ended · " in board
    assert "↳ market trend · stopped" in await say(gateway, "/flow show 2")
    assert "It has been executing" in await say(gateway, "/why")
    answer = await execute(gateway, "/stop all")
    assert answer.text == "Stopped “next”."

    async def idle() -> bool:
        # Until its worker has confirmed: "It is being stopped already."
        return await say(gateway, "/stop") == "Nothing is under way here."

    await eventually(idle)


async def test_a_command_whose_answer_got_lost_is_about_the_same_run_when_it_comes_again(
    gateway: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_id = await at_work(gateway)
    gateway.agent.hold("next")
    waiting = (await gateway.send("alice", "next")).accepted.run.run_id
    done = Operations.cancel_flow

    async def lost(*arguments: Any) -> fs.CancelFlowResponse:
        await done(*arguments)
        raise Unreachable("the scheduler did not answer")

    monkeypatch.setattr(Operations, "cancel_flow", lost)
    assert (await refused(gateway, "/stop", request_id="stop-2")).reason == "SERVICE_UNREACHABLE"
    await eventually(lambda: "next" in gateway.agent.started)
    monkeypatch.setattr(Operations, "cancel_flow", done)
    answer = await execute(gateway, "/stop", request_id="stop-2")
    assert unpacked(answer, fs.CancelFlowResponse).flow.flow_id == flow_id
    run = (await gateway.stub.GetRun(ss.GetRunRequest(run_id=waiting))).run
    assert run.state == run_pb2.RUN_STATE_RUNNING
    gateway.agent.let_go("next")


async def test_a_model_for_one_conversation(tmp_path: Path) -> None:
    from tests.service.gateway.suite import suite

    env = {
        "CONVEYOR_PROVIDERS__LAB__KIND": "openai",
        "CONVEYOR_PROVIDERS__LAB__BASE_URL": "http://127.0.0.1:1/v1",
    }
    report = probe_pb2.ProbeReport(verdict=probe_pb2.PROBE_VERDICT_NEEDS_INSISTING)
    models = [ag.Model(model="demo"), ag.Model(model="lab:large", probe=report)]
    async with suite(tmp_path, **env) as around:
        around.agents.always("ListModels", ag.ListModelsResponse(models=models))
        async with around.serve():
            said = await say(around, "/model lab:large")
            assert said.startswith("From the next message on: model lab:large (probe: needs-insist")
            for unknown in ("large", "other:large", "lab:"):
                told = await say(around, f"/model {unknown}")
                assert "there is `demo`, `lab:large` or any of lab as `lab:name`" in told
            sent = await around.send("alice", "hello")
            run = (await around.stub.GetRun(ss.GetRunRequest(run_id=sent.accepted.run.run_id))).run
            task = task_pb2.AgentTask()
            assert run.spec.task.Unpack(task)
            assert (task.model, run.spec.estimate_key) == ("lab:large", "main/lab:large")
        async with around.serve():
            answer = unpacked(await execute(around, "/model"), gw.GetSessionResponse)
            assert answer.session.model == "lab:large"
            await spend(around, run.run_id, 10, 0)
            assert "asks for model lab:large → lab:small, chosen here" in await say(
                around, "/model"
            )
            assert "model lab:large → lab:small" in await say(around, "/status")
            assert await say(around, "/model reset") == "From the next message on: model demo."
            session = await around.stub.GetSession(gw.GetSessionRequest(session_key="alice"))
            assert not session.session.model


async def test_a_model_that_another_choice_brought_is_not_shown_as_a_fallback(
    gateway: Suite,
) -> None:
    gateway.agents.always("ListModels", ag.ListModelsResponse(models=[ag.Model(model="demo")]))
    sent = await gateway.send("alice", "hello")
    await spend(gateway, sent.accepted.run.run_id, 10, 0)  # it asked for lab:large
    assert "asks for model demo, " in await say(gateway, "/model")
    assert "Agent main · model demo\n" in await say(gateway, "/status")


async def test_a_sub_agent_that_a_person_orders_is_a_run_of_the_conversation(
    gateway: Suite,
) -> None:
    main = ag.Agent(agent_id="main", model="demo", spawnable_agent_ids=["main", "helper"])
    gateway.agents.always("ListAgents", ag.ListAgentsResponse(agents=[main]))
    gateway.agents.always("ListModels", ag.ListModelsResponse(models=[ag.Model(model="demo")]))
    text = "/subagents spawn helper compare three  hotels --model demo"
    answer = await execute(gateway, text, request_id="order-1")
    assert answer.text.startswith("Ordered from helper: “compare three hotels”.")
    sent = unpacked(answer, gw.SendMessageResponse)
    again = await execute(gateway, text, request_id="order-1")
    assert unpacked(again, gw.SendMessageResponse) == sent
    run = (await gateway.stub.GetRun(ss.GetRunRequest(run_id=sent.accepted.run.run_id))).run
    task = task_pb2.AgentTask()
    assert run.spec.task.Unpack(task)
    assert task.agent_id == "main"
    assert task.spawn == task_pb2.SpawnOrder(agent_id="helper", model="demo")
    assert text_of(run.inputs[0].message) == "compare three  hotels"
    assert run.spec.reply_route.delivers_later
    told = await say(gateway, "/subagents spawn stranger dig")
    assert "there is main, helper, for example `/subagents spawn main" in told
    assert "odel is called “big”: there is `demo`, for example `/subagents spawn" in await say(
        gateway, "/subagents spawn helper dig --model big"
    )


async def test_an_order_is_a_run_of_its_own_in_every_queue_mode(gateway: Suite) -> None:
    """`steer` gave it to the run at work as talk, `collect` made two one, `interrupt` stopped."""
    main = ag.Agent(agent_id="main", model="demo", spawnable_agent_ids=["helper"])
    gateway.agents.always("ListAgents", ag.ListAgentsResponse(agents=[main]))
    gateway.agent.hold("busy")
    busy = (await gateway.send("alice", "busy")).accepted.run.run_id
    await eventually(lambda: "busy" in gateway.agent.started)
    ordered = []
    for mode in ("steer", "collect", "collect", "interrupt"):
        await execute(gateway, f"/queue {mode}")
        answer = await execute(gateway, "/subagents spawn helper dig")
        ordered.append(unpacked(answer, gw.SendMessageResponse).accepted.run.run_id)
    assert len({busy, *ordered}) == 5
    run = (await gateway.stub.GetRun(ss.GetRunRequest(run_id=busy))).run
    assert (run.state, len(run.inputs)) == (run_pb2.RUN_STATE_RUNNING, 1)
    gateway.agent.let_go("busy")


async def test_questions_are_answered_by_number(gateway: Suite) -> None:
    options = [
        question_pb2.QuestionOption(option_id=name, name=name, kind=kind)
        for name, kind in (
            ("yes", question_pb2.QUESTION_OPTION_KIND_ALLOW_ONCE),
            ("always", question_pb2.QUESTION_OPTION_KIND_ALLOW_ALWAYS),
            ("no", question_pb2.QUESTION_OPTION_KIND_REJECT_ONCE),
        )
    ]

    async def asking(turn: Turn) -> Outcome:
        if not turn.first:
            answers = turn.leased.leased.resumption.answers
            return turn.reply(", ".join(answer.option_id for answer in answers))
        ids = [f"{turn.run.run_id}/1.1.{index}" for index in (1, 2, 3)]
        asked = [
            question_pb2.Question(question_id=id_, title=f"tool {id_[-1]}", options=options)
            for id_ in ids
        ]
        await gateway.agent.log.AppendEvents(
            ev.AppendEventsRequest(
                lease_id=turn.leased.lease_id,
                events=[
                    event_pb2.Event(
                        event_id=f"ask-{index}",
                        question_asked=event_pb2.QuestionAsked(question=question),
                    )
                    for index, question in enumerate(asked)
                ],
            )
        )
        wait = run_pb2.WaitCondition(approval=run_pb2.ApprovalWait(question_ids=ids[-1:]))
        return Suspend(ws.SuspendRunRequest(condition=wait, hold_session_lane=True))

    assert "nothing waits" in (await say(gateway, "/approve")).lower()
    gateway.agent.on("ask me", asking)
    sent = await gateway.send("alice", "ask me")
    run_id = sent.accepted.run.run_id

    async def waits() -> bool:
        run = (await gateway.stub.GetRun(ss.GetRunRequest(run_id=run_id))).run
        return bool(run.state == run_pb2.RUN_STATE_SUSPENDED)

    await eventually(waits)
    assert "3 questions for you (#1, #2 and #3): `/approve` or `/deny`" in await say(
        gateway, "/status"
    )
    first = await say(gateway, "/approve", request_id="approve-1")
    assert first == "Allowed #1 tool 1. 2 more to answer."
    assert await say(gateway, "/approve", request_id="approve-1") == first
    assert "cannot be refused always: it offers “yes”, “always” or “no”" in await say(
        gateway, "/deny 2 always"
    )
    assert "open question is “9”: there is #2 tool 2 and #3 tool 3" in await say(gateway, "/deny 9")
    assert "nothing waits" in (await say(gateway, "/approve 1", "mallory")).lower()
    answer = await execute(gateway, "/approve 3 always")
    assert answer.text == "Allowed #3 tool 3, from now on. 1 more to answer."
    assert unpacked(answer, gw.AnswerQuestionResponse).question.answer.responder == "local"


async def test_a_slip_is_answered_and_a_path_goes_to_the_agent(gateway: Suite) -> None:
    assert await say(gateway, "/stauts") == (
        "“/stauts” is no command: did you mean `/status`? For example `/help`."
    )
    for text in ("/etc/hosts is broken", "//status", "/summarize this"):
        sent = await gateway.send("alice", text)
        await eventually(lambda text=text: text in gateway.agent.started)
        assert sent.accepted.run.run_id
    error = await refused(gateway, "/summarize this")
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "text")
    assert len((await say(gateway, "/help")).splitlines()) <= 12
    gateway.agents.always(
        "ListAgents", ag.ListAgentsResponse(agents=[ag.Agent(agent_id="main", model="demo")])
    )
    assert (await execute(gateway, "/agents", "")).text == "main · demo"
    lanes = await execute(gateway, "/lanes", "")
    assert "main: " in lanes.text
    assert unpacked(lanes, ss.ListLanesResponse).lanes
    # A command that needs a conversation is about the caller's own.
    await execute(gateway, "/queue collect", "")
    own = await execute(gateway, "/queue", "agent:main:http:direct:local")
    assert own.text.startswith("Queue mode collect")


async def test_new_forgets_and_says_that_work_goes_on(gateway: Suite) -> None:
    assert await say(gateway, "/new", "fresh") == "There is nothing to forget yet."
    gateway.agents.always("ResetSession", ag.ResetSessionResponse(epoch=4, forgotten_messages=2))
    gateway.agent.hold("long")
    await gateway.send("alice", "long")
    assert await say(gateway, "/new", request_id="new-1") == (
        "Forgotten, 2 messages: what you say next begins afresh. "
        "What is under way goes on and is answered; `/stop` stops it."
    )
    assert "Forgotten" in await say(gateway, "/new", request_id="new-1")
    [call] = gateway.agents.calls["ResetSession"]
    assert (call.session_key, call.request_id) == ("alice", "new-1")
    session = await gateway.stub.GetSession(gw.GetSessionRequest(session_key="alice"))
    assert session.session.epoch == 4
    gateway.agent.let_go("long")
