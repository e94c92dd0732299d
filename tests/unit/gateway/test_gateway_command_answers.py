"""What commands answer: which run is meant, in which words, and never more than a screen."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.common.v1 import question_pb2, usage_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from gateway_svc.commands.asked import Shown
from gateway_svc.commands.subagents import STEER_SECONDS
from gateway_svc.domain.commands import words
from gateway_svc.domain.commands.approvals import choose_option, choose_question
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.requests import Request, board_order, board_text, flow_text
from gateway_svc.domain.commands.standing import (
    Standing,
    check_model,
    status_text,
    stopped_text,
    to_stop,
)
from gateway_svc.domain.commands.subagents import (
    PAGE,
    children_of,
    info_text,
    list_text,
    log_text,
)
from gateway_svc.domain.commands.targets import Candidate, find
from svckit.grpc import methods

QUEUED, RUNNING = run_pb2.RUN_STATE_QUEUED, run_pb2.RUN_STATE_RUNNING
SUSPENDED, DONE = run_pb2.RUN_STATE_SUSPENDED, run_pb2.RUN_STATE_SUCCEEDED
CANCELLING = run_pb2.RUN_STATE_CANCELLING
NOW = 1_800_000_000 * words.SECOND
SCREEN = 12
STATES = [value for name, value in run_pb2.RunState.items() if value]


def run(run_id: str, state: int = RUNNING, *, parent: str = "root", **more: object) -> run_pb2.Run:
    made = run_pb2.Run(run_id=run_id, state=state, turn=1)  # type: ignore[arg-type]
    made.spec.label = str(more.get("label", f"label of {run_id}"))
    made.spec.queue = "agent"
    made.spec.estimate_key = "main/demo"
    made.spawn.parent_run_id = parent
    made.spawn.depth = 1 if parent else 0
    made.timing.create_time.FromMicroseconds(NOW - 90 * words.SECOND)
    if state in (DONE, run_pb2.RUN_STATE_CANCELLED):
        ago = int(str(more.get("ended_ago", 60)))
        made.timing.end_time.FromMicroseconds(NOW - ago * words.SECOND)
    return made


def flow(flow_id: str, state: int = RUNNING, *, begun: bool = True) -> fs.Flow:
    made = fs.Flow(flow_id=flow_id, state=state)  # type: ignore[arg-type]
    made.timing.create_time.FromMicroseconds(NOW - 30 * words.SECOND)
    if begun:
        made.timing.start_time.FromMicroseconds(NOW - 20 * words.SECOND)
    return made


def target(typed: str, candidates: Sequence[Candidate], shown: Sequence[str] = ()) -> str:
    found = find(typed, candidates, shown, what="sub-agent", see="/list", example="/kill 1")
    return found.text if isinstance(found, Problem) else found.run_id


TREND = Candidate("01AAAATREND1", "market trend", live=True)
RIVALS = Candidate("01AAAARIVAL2", "market rivals", live=True)
OLD = Candidate("01AAAAOLDEN3", "market trend", live=False)
ALL = [TREND, RIVALS, OLD]
SHOWN = [RIVALS.run_id, TREND.run_id]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("1", RIVALS),
        ("#2", TREND),
        ("01aaaatrend1", TREND),
        ("TREND1", TREND),
        ("01AAAAR", RIVALS),
        ("Market  Trend", TREND),  # the one that is live
        ("market r", RIVALS),
    ],
)
def test_what_a_target_means(typed: str, meant: Candidate) -> None:
    assert target(typed, ALL, SHOWN) == meant.run_id


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("market", ("“market” may be #2 market trend or #1 market rivals", "`/kill 1`")),
        ("01AAAA", ("may be", "market rivals")),
        ("weather", ("no sub-agent is called “weather”", "`/list`", "`/kill 1`")),
        ("3", ("no sub-agent is called “3”",)),
        ("AND", ("no sub-agent is called",)),  # too short for a piece of an id
    ],
)
def test_what_is_unclear_is_said_in_one_line(typed: str, parts: tuple[str, ...]) -> None:
    said = target(typed, ALL, SHOWN)
    assert "\n" not in said
    for part in parts:
        assert part in said


def test_a_number_whose_run_is_gone_does_not_become_another_run() -> None:
    assert "1 is gone" in target("1", [TREND], ["01AAAAGONE99", TREND.run_id])


@given(st.text(max_size=30), st.lists(st.sampled_from(ALL), unique=True), st.permutations(SHOWN))
def test_a_target_is_one_of_the_candidates_or_a_line(
    typed: str, candidates: list[Candidate], shown: list[str]
) -> None:
    found = target(typed, candidates, shown)
    assert found in {candidate.run_id for candidate in candidates} or found.count("\n") == 0


def test_the_lists_that_were_shown_are_kept_apart() -> None:
    shown = Shown({"flows": ["f"], "subagents": ["a", "b"]}, "subagents")
    again = Shown.read(shown.write())
    assert (again.of("flows"), again.of()) == (["f"], ["a", "b"])
    assert Shown.read("").of() == ()


def test_those_at_work_come_first_and_those_that_ended_long_ago_not_at_all() -> None:
    nodes = [
        run("root", SUSPENDED, parent=""),
        run("b", RUNNING),
        run("a", SUSPENDED),
        run("c", DONE, ended_ago=60),
        run("d", DONE, ended_ago=10),
        run("e", DONE, ended_ago=31 * 60),
        run("f", QUEUED, parent="a"),
    ]
    children = children_of(nodes, NOW)
    assert [child.run.run_id for child in children] == ["a", "b", "f", "d", "c"]
    assert children[0].live_children == 1


@pytest.mark.parametrize(
    ("made", "live", "position", "said"),
    [
        (run("r", RUNNING), 0, 0, "working"),
        (run("r", QUEUED), 0, 3, "queued (3rd)"),
        (run("r", QUEUED), 0, 0, "queued"),
        (run("r", CANCELLING), 0, 0, "stopping"),
        (run("r", DONE), 0, 0, "done"),
        (run("r", run_pb2.RUN_STATE_EXPIRED), 0, 0, "out of time"),
        (run("r", SUSPENDED), 2, 0, "waits for 2"),
    ],
)
def test_states_in_words(made: run_pb2.Run, live: int, position: int, said: str) -> None:
    assert words.state_words(made, live, position) == said


def test_other_waits_in_words() -> None:
    made = run("r", SUSPENDED)
    made.suspension.condition.approval.question_ids.append("q")
    assert words.state_words(made) == "waits for your answer"
    made.suspension.condition.limit.reservation_id = "x"
    assert words.state_words(made) == "waits for a limit"
    again = run("r", QUEUED)
    again.attempt = 2
    assert words.state_words(again, 0, 1) == "tries again"


def test_figures_in_words() -> None:
    def used(tokens: int = 0, cost: int = 0, unpriced: int = 0) -> usage_pb2.Usage:
        return usage_pb2.Usage(input_tokens=tokens, cost_micros_usd=cost, unpriced_calls=unpriced)

    said = [words.tokens(used(n)) for n in (0, 999, 1000, 1234, 999_949, 999_950, 3_400_000)]
    assert [text.removesuffix(" tokens") for text in said] == [
        *("0", "999", "1.0k", "1.2k", "999.9k", "1.0M", "3.4M")
    ]
    assert words.cost(used()) == "$0"
    assert words.cost(used(cost=3100)) == "$0.0031"
    assert words.cost(used(cost=12_345_678)) == "$12.35"
    assert words.cost(used(cost=20_000, unpriced=1)) == "≥ $0.0200"
    assert words.cost(used(unpriced=1)) == "no price known"
    assert [words.ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th")
    ]


def test_the_model_that_answered_is_named_when_it_is_another_one() -> None:
    made = run("r")
    assert words.model_words(made) == "demo"
    made.requested_model = made.effective_model = "lab:large"
    assert words.model_words(made) == "lab:large"
    made.effective_model = "lab:small"
    assert words.model_words(made) == "lab:large → lab:small"


def test_a_coding_agent_is_not_said_to_stand_in_for_itself() -> None:
    made = run("r")
    made.spec.queue, made.spec.estimate_key = "acp", "acp/claude"
    made.effective_model = "acp:claude"
    assert words.model_words(made) == "claude"


@given(
    st.lists(st.sampled_from(STATES), max_size=60),
    st.integers(1, 12),
    st.text("ab \n\t", min_size=1, max_size=80),
)
def test_lists_fit_a_screen_and_pages_hold_everything_once(
    states: list[int], page: int, label: str
) -> None:
    runs = [run(f"r{n:03}", state, label=label) for n, state in enumerate(states)]
    children = children_of([run("root", SUSPENDED, parent=""), *runs], NOW)
    text = list_text(children[(page - 1) * PAGE : page * PAGE], page, len(children), NOW)
    assert len(text.splitlines()) <= SCREEN
    numbers = [line.split()[0] for line in text.splitlines() if line.startswith("#")]
    assert numbers == [f"#{n}" for n in range(1, len(children) + 1)][(page - 1) * PAGE :][:PAGE]
    root = Request(flow("root"), label)
    assert len(flow_text(root, [*runs], len(runs) + 1, NOW).splitlines()) <= SCREEN
    flows = board_order([flow(f"f{n}", state) for n, state in enumerate(states)])
    board = board_text([Request(item, label) for item in flows[:8]], flows, NOW)
    assert len(board.splitlines()) <= SCREEN
    for child in children[:1]:
        assert len(info_text(child, label, NOW).splitlines()) <= SCREEN


def test_a_log_tells_the_newest_and_skips_what_says_nothing() -> None:
    def event(**payload: object) -> event_pb2.Event:
        return event_pb2.Event(**payload)  # type: ignore[arg-type]

    said = event_pb2.MessageCompleted(kind=event_pb2.MESSAGE_KIND_REPLY)
    said.message.parts.add(text="I  found\nit")
    started = event_pb2.ToolCallStarted(tool_name="time__now")
    events = [
        event(run_state_changed=event_pb2.RunStateChanged()),
        event(tool_call_started=started),
        event(tool_call_ended=event_pb2.ToolCallEnded()),
        event(steer_missed=event_pb2.SteerMissed()),
        event(message_completed=said),
    ]
    assert log_text(run("r", label="dig"), events, 2).splitlines() == [
        *("dig:", "missed a message", "says: I found it")
    ]
    assert log_text(run("r", label="dig"), [], 5) == "dig has said and done nothing yet."


def test_stop_is_about_what_keeps_the_conversation_busy() -> None:
    def root(flow_id: str, state: int, *, holds: bool = False) -> run_pb2.Run:
        made = run(flow_id, state, parent="")
        made.suspension.holds_session_lane = holds
        return made

    yielded, holder, waits = flow("f1", SUSPENDED), flow("f2"), flow("f3", QUEUED, begun=False)
    roots = [root("f1", SUSPENDED), root("f2", RUNNING)]
    assert to_stop([yielded, holder, waits], roots) is holder
    # Nobody holds the lane: what works in the background, then what is next.
    assert to_stop([yielded, waits], [roots[0]]) is yielded
    assert to_stop([waits, flow("f4", QUEUED, begun=False)], []) is waits
    assert to_stop([flow("f0", DONE)], []) is None
    # Who is impatient does not mean the next one.
    assert to_stop([flow("f2", CANCELLING), waits], []) is None
    assert stopped_text([], 0, 1, stopping=1) == "It is being stopped already."


def test_status_tells_everything_on_one_screen() -> None:
    holder = run("f1", SUSPENDED, parent="")
    holder.timing.start_time.FromMicroseconds(NOW - 12 * words.SECOND)
    newest = flow("f1", SUSPENDED)
    newest.usage.input_tokens, newest.usage.cost_micros_usd = 1500, 2000
    for state, count in ((SUSPENDED, 1), (RUNNING, 1), (QUEUED, 1), (DONE, 2)):
        newest.state_counts.add(state=state, runs=count)
    estimate = lane_pb2.QueueEstimate(position=2)
    estimate.start_time.FromMicroseconds(NOW + 10 * words.SECOND)
    standing = Standing(
        agent_id="main",
        requested_model="lab:large",
        effective_model="lab:small",
        verdict="leaf-only",
        queue_mode=lane_pb2.QUEUE_MODE_COLLECT,
        newest=newest,
        title="plan the launch",
        holder=holder,
        background=1,
        waiting=3,
        estimate=estimate,
        questions=(2, 5),
    )
    assert status_text(standing, NOW).splitlines() == [
        "Agent main · model lab:large → lab:small (probe: leaf-only)",
        "Queue mode collect",
        "“plan the launch”: waits for 2 sub-agents, 12.0 s so far",
        "1 request in the background",
        "3 messages waiting, the next 2nd in line, starts in about 10.0 s",
        "2 questions for you (#2 and #5): `/approve` or `/deny`",
        "Newest request: 1.5k tokens · $0.0020",
    ]


def test_a_model_has_to_be_one_that_can_be_asked() -> None:
    models = [ag.Model(model="demo"), ag.Model(model="lab:large")]
    assert check_model("demo", models, ()) is None
    assert check_model("lab:other", models, ("lab",)) is None
    for name in ("lab:other", "other", "lab:", ":x", "nobody:x"):
        wrong = check_model(name, models, ())
        assert wrong is not None
        assert "`demo` or `lab:large`, for example `/model demo`" in wrong.text
    for name in ("lab:\0", "lab:" + "x" * 300):
        assert check_model(name, models, ("lab",)) is not None
    none = check_model("x", [], ())
    assert none is not None
    assert "there is none" in none.text


def test_an_answer_is_for_the_question_that_is_named() -> None:
    kinds = question_pb2.QuestionOptionKind
    options = [
        question_pb2.QuestionOption(option_id=name, name=name, kind=kinds.Value(kind))
        for name, kind in (
            ("yes", "QUESTION_OPTION_KIND_ALLOW_ONCE"),
            ("no", "QUESTION_OPTION_KIND_REJECT_ONCE"),
        )
    ]
    questions = [
        question_pb2.Question(question_id=f"run/{n}", number=n, title=f"t{n}", options=options)
        for n in (2, 4)
    ]
    for typed, number in (("", 2), ("4", 4), ("#4", 4), ("run/2", 2)):
        found = choose_question(typed, questions, "approve")
        assert isinstance(found, question_pb2.Question)
        assert found.number == number
    # Not by place: the first of the list is number 2.
    wrong = choose_question("1", questions, "deny")
    assert isinstance(wrong, Problem)
    assert "there is #2 t2 and #4 t4, for example `/deny 2`" in wrong.text
    assert isinstance(choose_question("", [], "deny"), Problem)
    option = choose_option(questions[0], allow=False, always=False)
    assert isinstance(option, question_pb2.QuestionOption)
    assert option.option_id == "no"
    assert isinstance(choose_option(questions[0], allow=True, always=True), Problem)


def test_a_steering_command_is_answered_before_its_caller_gives_up() -> None:
    longest = min(
        methods.default_timeout(f"/x/{name}") for name in ("SendMessage", "ExecuteCommand")
    )
    assert longest >= STEER_SECONDS + 1
