"""`/acp` in words: which coding agent is meant, and what is said of it on a telephone."""

from __future__ import annotations

import difflib

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from conveyor.acp.v1 import acp_service_pb2 as service
from conveyor.acp.v1 import doctor_pb2 as doctor
from conveyor.acp.v1 import session_pb2 as acp
from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import lane_pb2
from gateway_svc.auth import Principal, Scope
from gateway_svc.domain.asking import asked_text
from gateway_svc.domain.binding import AcpRules
from gateway_svc.domain.commands.acp_forms import ACP_FORMS, ACP_TOPICS
from gateway_svc.domain.commands.acp_health import doctor_text, install_text
from gateway_svc.domain.commands.acp_settings import setting_text, settings_of
from gateway_svc.domain.commands.acp_targets import pick, pick_and_tell
from gateway_svc.domain.commands.acp_texts import (
    Work,
    cancelled_text,
    sessions_text,
    spawned_text,
    status_text,
    steered_text,
    thread_problem,
    work_of,
)
from gateway_svc.domain.commands.guide import help_text
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.queueing import queue_answer
from gateway_svc.domain.commands.standing import Standing
from gateway_svc.domain.commands.standing import status_text as standing_text
from gateway_svc.domain.commands.words import SECOND
from gateway_svc.harness_spawning import check_permissions
from svckit.contract_words import PERMISSION_MODES, asked_for
from svckit.errors import ScopeMissing

NOW = 1_800_000_000 * SECOND
SCREEN = 12
READY, BUSY = acp.ACP_SESSION_STATE_READY, acp.ACP_SESSION_STATE_BUSY
STATES = [value for name, value in acp.AcpSessionState.items() if value]
DOCS, SITE, PLAIN = "01AAAADOCS01", "01AAAASITE02", "01AAAAPLAIN3"


def session(
    session_id: str = DOCS, label: str = "docs", state: int = READY, **spec: object
) -> acp.AcpSession:
    made = acp.AcpSession(acp_session_id=session_id, state=state)  # type: ignore[arg-type]
    given_spec = {"harness_id": "claude", "cwd": "/srv/site", "permission_mode": 4, "mode": 1}
    made.spec.MergeFrom(
        acp.AcpSessionSpec(label=label, **{**given_spec, **spec})  # type: ignore[arg-type]
    )
    return made


ALL = [session(), session(SITE, "site"), session(PLAIN, "", harness_id="codex")]
IDS = [one.acp_session_id for one in ALL]


def meant(
    typed: str, sessions: list[acp.AcpSession], bound: str = "", shown: list[str] | None = None
) -> str:
    found = pick(typed, sessions, IDS if shown is None else shown, bound, "/acp close 1")
    return found.text if isinstance(found, Problem) else found.acp_session_id


def told(message: str, sessions: list[acp.AcpSession], bound: str = "") -> tuple[str, str]:
    found = pick_and_tell(message, sessions, IDS, bound, "/acp steer 1 go on")
    return (found.text, "") if isinstance(found, Problem) else (found[0].acp_session_id, found[1])


@pytest.mark.parametrize(
    ("typed", "bound", "who"),
    [
        ("", SITE, SITE),
        ("docs", SITE, DOCS),
        ("Docs", "", DOCS),
        ("codex", "", PLAIN),
        ("#2", "", SITE),
        ("3", "", PLAIN),
        ("PLAIN3", "", PLAIN),
        ("01aaaas", "", SITE),
        ("si", "", SITE),
    ],
)
def test_which_one_is_meant(typed: str, bound: str, who: str) -> None:
    assert meant(typed, ALL, bound) == who


def test_the_only_one_that_is_open_is_meant_and_several_are_listed() -> None:
    ended = session(SITE, "site", acp.ACP_SESSION_STATE_CLOSED)
    assert meant("", [ALL[0], ended]) == DOCS
    said = meant("", ALL, shown=IDS[:2])
    assert said.startswith(
        "which one? There is #1 docs (claude), #2 site (claude) and …PLAIN3 codex"
    )
    assert "`/acp close 1`" in said
    assert "start one" in meant("", [ended])
    twins = [session(DOCS, "one thing"), session(SITE, "one theme")]
    assert "may be #1 one thing or #2 one theme" in meant("one", twins)


@pytest.mark.parametrize(
    ("message", "sessions", "bound", "who", "text"),
    [
        ("docs are missing", ALL, DOCS, DOCS, "docs are missing"),
        ("site is down", ALL, DOCS, DOCS, "site is down"),
        ("#2 go on", ALL, DOCS, SITE, "go on"),
        ("site go on", ALL, "", SITE, "go on"),
        ('"site" go on', ALL, "", SITE, "go on"),
        ("2 go  on", ALL, "", SITE, "go  on"),
        ("site\ngo on", ALL, "", SITE, "go on"),
        ("fix the site", ALL[:1], "", DOCS, "fix the site"),
        ("docs fix it", ALL[:1], "", DOCS, "fix it"),
        ("1 more test", ALL[:1], "", DOCS, "1 more test"),
        ("document it", ALL[:1], "", DOCS, "document it"),
    ],
)
def test_who_is_told_what(
    message: str, sessions: list[acp.AcpSession], bound: str, who: str, text: str
) -> None:
    assert told(message, sessions, bound) == (who, text)


def test_a_message_for_nobody_in_particular_is_not_given_to_somebody() -> None:
    assert "which one? There is #1 docs" in told("run the tests", ALL)[0]
    assert "start one" in told("run the tests", [])[0]
    assert "what shall site be told?" in told("site", ALL)[0]
    assert "no coding agent is called “#9”" in told("#9 go on", ALL, DOCS)[0]


@given(st.text(min_size=1, max_size=40), st.sampled_from(["", DOCS]), st.integers(0, 3))
def test_what_is_told_is_never_changed_but_for_its_target(
    message: str, bound: str, many: int
) -> None:
    text = message.strip()
    if not text:
        return
    found = pick_and_tell(text, ALL[:many], IDS, bound, "/acp steer 1 go on")
    if isinstance(found, Problem):
        assert found.text.splitlines() == [found.text]
    else:
        assert found[1]
        assert text.endswith(found[1])
        if bound and many and not text.startswith("#"):
            assert found == (ALL[0], text)


def update(run_id: str = "r1", **what: object) -> event_pb2.Event:
    updated = event_pb2.HarnessUpdated(acp_session_id=DOCS, **what)  # type: ignore[arg-type]
    return event_pb2.Event(run_id=run_id, harness_updated=updated)


def call(call_id: str, title: str, status: int) -> event_pb2.HarnessToolCall:
    made = event_pb2.HarnessToolCall(tool_call_id=call_id, title=title)
    made.status = status  # type: ignore[assignment]
    return made


def plan(*entries: tuple[str, int]) -> event_pb2.HarnessPlan:
    made = event_pb2.HarnessPlan()
    for content, status in entries:
        made.entries.add(content=content, status=status)  # type: ignore[arg-type]
    return made


def test_what_it_does_now_is_its_plan_and_its_last_tool_call() -> None:
    events = [
        update(plan=plan(("read", 2), ("write", 1), ("test", 1))),
        update(tool_call=call("a", "Read a.py", 2)),
        update(tool_call=call("b", "Edit a.py", 2)),
        update(tool_call=call("a", "Read a.py", 3)),
        update(run_id="another", tool_call=call("z", "Delete it", 2)),
        update(thought="hm"),
        update(plan=plan(("read", 3), ("write", 2), ("test", 1))),
    ]
    work = work_of(events, "r1", NOW)
    assert (work.plan, work.doing) == ("Plan: 1 of 3 done, now: write", "Now: Edit a.py")
    later = work_of([*events, update(tool_call=call("b", "Edit a.py", 4))], "r1", NOW)
    assert later.doing == "Failed: Edit a.py"
    assert work_of([], "r1", 0) == Work()
    done = work_of([update(plan=plan(("read", 3)))], "r1", NOW)
    assert done.plan == "Plan: 1 of 1 done"


def failed_session() -> acp.AcpSession:
    made = session(state=acp.ACP_SESSION_STATE_FAILED)
    made.error.message = "the harness ended while it worked"
    info = error_details_pb2.ErrorInfo(reason="ACP_TURN_FAILED")
    info.metadata["lastWords"] = "one\n\n  two  \nthree\nfour"
    made.error.details.add().Pack(info)
    made.end_time.FromMicroseconds(NOW - 60 * SECOND)
    return made


def test_status_tells_everything_on_one_screen() -> None:
    busy = session(state=acp.ACP_SESSION_STATE_ASKING, model="opus")
    busy.harness_mode, busy.run_id, busy.sandboxed = "default", "r1", True
    question = question_pb2.Question(number=3, title="Write src/a.py")
    for kind in (1, 2, 3):
        question.options.add(option_id=f"o{kind}", kind=kind)  # type: ignore[arg-type]
    work = Work(NOW - 125 * SECOND, "Plan: 1 of 3 done, now: write", "Now: Edit a.py")
    assert status_text(busy, work, [question], NOW, bound=True).splitlines() == [
        "docs (claude): waits for an answer, 2 min 5 s so far",
        "persistent · permissions ask · mode default · model opus",
        "In /srv/site · reading only, also by a sandbox",
        "Plan: 1 of 3 done, now: write",
        "Now: Edit a.py",
        "Asks #3: Write src/a.py: `/approve 3` or `/deny 3`",
        "It answers this conversation",
        f"Session {DOCS}",
    ]
    assert status_text(failed_session(), Work(), [], NOW, bound=False).splitlines() == [
        "docs (claude): failed 1 min 0 s ago",
        "persistent · permissions ask",
        "In /srv/site",
        "Last error: the harness ended while it worked",
        *("› two", "› three", "› four"),
        f"Session {DOCS}",
    ]


@given(
    st.lists(st.sampled_from(STATES), max_size=30),
    st.text("ab \n\t", max_size=80),
    st.sampled_from(list(PERMISSION_MODES.values())),
)
def test_every_answer_fits_a_screen(states: list[int], label: str, permissions: int) -> None:
    made = [
        session(f"01S{n:03}", label, state, permission_mode=permissions)
        for n, state in enumerate(states)
    ]
    assert len(sessions_text(made, "01S001").splitlines()) <= SCREEN
    for one in made[:1]:
        one.error.MergeFrom(failed_session().error)
        questions = [question_pb2.Question(number=n, title=label) for n in range(5)]
        work = Work(NOW, "Plan", "Now: it")
        text = status_text(one, work, questions, NOW, bound=True)
        assert len(text.splitlines()) <= SCREEN + 2
        for form in ACP_FORMS:
            if form.sets:
                for changed in (True, False):
                    said = setting_text(form.name, one, changed=changed)
                    assert said.strip()
                    assert len(said.splitlines()) <= SCREEN


def test_a_list_numbers_them_and_says_which_one_answers_here() -> None:
    assert sessions_text(ALL, SITE).splitlines() == [
        "3 coding agents:",
        "#1 docs (claude) · ready · ask · …/site",
        "#2 site (claude) · ready · ask · …/site · answers here",
        "#3 codex · ready · ask · …/site",
        "`/acp status 1` says more; `/acp close 1` ends it",
    ]
    assert f"{DOCS} docs" in sessions_text(ALL, "", numbered=False)
    assert "`/acp spawn claude" in sessions_text([], "")


def test_what_is_said_of_a_spawn() -> None:
    starting = session(state=acp.ACP_SESSION_STATE_STARTING)
    assert spawned_text(starting, bound=True, task=True, thread="").splitlines() == [
        "Starting docs (claude) in /srv/site.",
        "Permissions ask: it may read; you are asked about the rest.",
        "Your task comes next; docs says here when it is ready.",
        "What you write here goes to it, until `/acp close`.",
    ]
    beside = spawned_text(starting, bound=False, task=False, thread="auto").splitlines()
    assert beside[-2:] == [
        "`/acp steer docs …` tells it something.",
        "This channel has no threads, so it works beside this conversation; `--bind here` lets "
        "it answer here.",
    ]
    starting.spec.mode = acp.ACP_SESSION_MODE_ONESHOT
    once = spawned_text(starting, bound=True, task=False, thread="")
    assert once.endswith("\nIt does one thing, what you tell it first; then it closes by itself.")
    once = spawned_text(starting, bound=False, task=True, thread="")
    assert once.endswith("\nWhen that is done it closes by itself.")
    assert "no threads: say `--bind here`" in thread_problem("here", bound=False)
    assert "exclude each other" in thread_problem("auto", bound=True)
    assert not thread_problem("auto", bound=False)
    assert not thread_problem("off", bound=True)


def test_a_message_to_one_that_works_says_that_it_waits() -> None:
    assert steered_text(session(), 1) == "Handed to docs."
    assert "when its present turn has ended" in steered_text(session(state=BUSY), 1)
    assert "when its present turn has ended" in steered_text(session(), 2)
    assert cancelled_text(session(), "") == "docs is doing nothing now (ready)."
    assert cancelled_text(session(state=BUSY), "r1").startswith("Stopping what docs does")


def report(
    *checks: tuple[str, int, int, str, str, str], healthy: bool = False
) -> doctor.DoctorReport:
    made = doctor.DoctorReport(healthy=healthy)
    for harness_id, kind, status, code, message, hint in checks:
        made.checks.add(
            harness_id=harness_id,
            kind=kind,  # type: ignore[arg-type]
            status=status,  # type: ignore[arg-type]
            code=code,
            message=message,
            hint=hint,
        )
    return made


OK, WARNING, FAILED, SKIPPED = 1, 2, 3, 4


def test_the_doctor_names_each_missing_one_with_its_code_and_command() -> None:
    missing = "ACP_BACKEND_MISSING"
    found = report(
        ("", 1, OK, "", "ACP is switched on", ""),
        ("claude", 2, OK, "", "/usr/bin/claude-agent-acp", ""),
        ("claude", 3, OK, "", "0.49.0", ""),
        ("codex", 2, FAILED, missing, "not found", "npm install -g codex-acp"),
        ("codex", 3, SKIPPED, "", "not checked, because ...", ""),
        ("goose", 2, FAILED, missing, "not found", "open https://example.com"),
        ("vibe", 2, OK, "", "/usr/bin/vibe-acp", ""),
        ("vibe", 6, FAILED, "ACP_BACKEND_UNAVAILABLE", "it is not logged in", "run `vibe`"),
        ("qwen", 2, OK, "", "/usr/bin/qwen", ""),
        ("qwen", 7, WARNING, "", "it asks for little", ""),
        ("", 8, FAILED, "ACP_CWD_NOT_ALLOWED", "no directory is allowed", "set roots"),
    )
    assert doctor_text(found).splitlines() == [
        "healthy: no",
        "claude: works, 0.49.0",
        "qwen: works",
        "qwen: look at permissions: it asks for little",
        "directories failed (ACP_CWD_NOT_ALLOWED): no directory is allowed. set roots",
        "codex: not installed (ACP_BACKEND_MISSING): `npm install -g codex-acp`",
        "goose: not installed (ACP_BACKEND_MISSING): open https://example.com",
        "vibe: opens no session (ACP_BACKEND_UNAVAILABLE): it is not logged in. run `vibe`",
    ]
    good = report(("claude", 2, OK, "", "/bin/claude", ""), healthy=True)
    assert doctor_text(good) == "healthy: yes\nclaude: works"


def test_install_says_the_command_and_installs_nothing() -> None:
    harnesses = [
        service.Harness(
            harness_id="claude", display_name="Claude Code", installed=True, allowed=True
        ),
        service.Harness(
            harness_id="codex",
            display_name="Codex",
            allowed=True,
            install_hint="npm install -g codex-acp",
            notes="Resumes sessions.",
        ),
        service.Harness(harness_id="goose", display_name="Goose", install_hint="open x"),
    ]
    assert install_text(harnesses, "codex") == (
        "Codex is not installed. Where Conveyor runs:\n`npm install -g codex-acp`\n"
        "Then `/acp doctor codex`.\nResumes sessions."
    )
    assert str(install_text(harnesses, "Claude")).startswith("Claude Code is installed.")
    assert install_text(harnesses, "") == (
        "Installed: claude\ncodex: `npm install -g codex-acp`\n"
        "Run it where Conveyor runs, then `/acp doctor`."
    )
    unknown = install_text(harnesses, "goose")
    assert isinstance(unknown, Problem), "it may not be spawned here"
    assert "`claude` or `codex`" in unknown.text


def test_settings_are_what_was_typed() -> None:
    assert settings_of("acp permissions", {"mode": "ask"}).permission_mode == 4
    assert settings_of("acp model", {"name": "opus"}).model == "opus"
    assert settings_of("acp model", {"name": "Reset"}).HasField("model")
    assert settings_of("acp set-mode", {"mode": "plan"}).harness_mode == "plan"
    assert dict(settings_of("acp set", {"key": "a", "value": "b c"}).options) == {"a": "b c"}
    assert settings_of("acp cwd", {"directory": "/srv"}).cwd == "/srv"
    assert settings_of("acp timeout", {"time": "90"}).turn_timeout.seconds == 90


def test_settings_are_shown_with_what_there_is() -> None:
    one = session(model="opus")
    one.models.extend(["opus", "haiku"])
    one.harness_mode = "default"
    one.harness_modes.extend(["default", "plan"])
    one.options["effort"] = "high"
    one.spec.turn_timeout.FromSeconds(1200)

    def shown(name: str, *, changed: bool = False) -> str:
        return setting_text(f"acp {name}", one, changed=changed)

    assert shown("model") == (
        "docs uses the model opus.\nThere is `opus` and `haiku`, for example `/acp model haiku`"
    )
    assert shown("model", changed=True) == "From its next turn on docs uses the model opus."
    assert "is in mode default.\nThere is `default` and `plan`" in shown("set-mode")
    assert shown("set").splitlines()[1] == "`effort` high"
    assert "begins afresh there" in shown("cwd", changed=True)
    assert shown("timeout") == "docs may work 20 min in one turn; waiting for you does not count."
    assert "`approve-reads`" in shown("permissions")
    assert "docs does not say which there are" in setting_text("acp model", ALL[0], changed=False)


def test_a_bound_conversation_says_who_answers() -> None:
    standing = Standing("main", "demo", "", "", lane_pb2.QUEUE_MODE_STEER, answering=ALL[0])
    assert standing_text(standing, NOW).splitlines()[:2] == [
        "Coding agent docs (claude) answers here: ready, permissions ask",
        "`/acp status` says more, `/acp close` gives back to main",
    ]
    steer = lane_pb2.QUEUE_MODE_STEER
    assert "is told to docs as soon as its present turn has ended" in queue_answer(
        steer, steer, "docs"
    )
    assert "docs answers here: `/acp status`" in str(help_text("", "docs"))
    assert len(str(help_text("", "docs")).splitlines()) <= SCREEN


def test_help_names_every_command_once() -> None:
    named = [second for _, seconds in ACP_TOPICS for second in seconds]
    assert sorted(named) == sorted(
        form.name.split()[1] for form in ACP_FORMS if "help" not in form.name
    )
    for second in named:
        assert f"`/acp {second}`" in str(help_text("acp"))


def asks(**arguments: str) -> question_pb2.Question:
    made = question_pb2.Question(acp_session_id=DOCS, number=1, title="Edit src/a.py")
    made.options.add(option_id="allow", name="Allow once", kind=1)
    made.options.add(option_id="deny", name="Deny", kind=3)
    made.default_option_id = "deny"
    made.timeout.FromSeconds(300)
    made.arguments.update(arguments)
    return made


def test_a_question_shows_the_command_or_the_change_that_it_is_about() -> None:
    diff = "--- a.py\n+++ a.py\n@@ -1 +1 @@\n-old\n+``` new"
    assert asked_text(asks(diff=diff)).splitlines() == [
        "Question 1: Edit src/a.py",
        *("```", "-old", "+ʼʼʼ new", "```"),
        "Allow once · Deny",
        "Answer within 5 min: /approve 1 or /deny 1",
        "No answer in time means: Deny",
    ]
    assert asked_for(asks(command="make test\nmake lint")) == ["$ make test", "$ make lint"]
    long = asked_for(asks(diff="\n".join(f"+{n}{'x' * 300}" for n in range(40))))
    assert len(long) == 13
    assert max(map(len, long)) == 100
    assert long[-1] == "… 28 more lines"
    assert asked_for(asks(input="else")) == []
    other = asks(command="rm")
    other.acp_session_id = ""
    assert asked_for(other) == [], "tools of agents say everything in their title"


def test_permissions_that_ask_nobody_are_an_operators_to_choose() -> None:
    everything, ask = acp.PERMISSION_MODE_APPROVE_ALL, acp.PERMISSION_MODE_ASK
    usual, free = AcpRules(), AcpRules(approves_all=True)
    customer = Principal("ann", Scope.CONTROL, "acme")
    for allowed in (
        (ask, customer, usual),
        (acp.PERMISSION_MODE_UNSPECIFIED, customer, usual),
        (everything, customer, free),
        (everything, Principal("root", Scope.ADMIN), usual),
        (everything, Principal("hook", Scope.CONTROL, "acme", is_hook=True), usual),
    ):
        check_permissions(*allowed)
    with pytest.raises(ScopeMissing, match="choose ask") as refused:
        check_permissions(everything, customer, usual)
    assert refused.value.metadata == {"scope": "admin"}


def test_no_line_of_a_change_is_left_out_because_it_looks_like_a_head() -> None:
    old = ["-- keep this", "select 1", "@@ x"]
    new = ["select 1", '++ system("rm -rf /")', "@@ y", "-- more"]
    diff = "\n".join(difflib.unified_diff(old, new, "a.sql", "a.sql", lineterm=""))
    shown = asked_for(asks(diff=diff))
    assert sorted(line[1:] for line in shown if line[0] == "-") == ["-- keep this", "@@ x"]
    assert sorted(line[1:] for line in shown if line[0] == "+") == sorted(new[1:])
    assert not any("a.sql" in line for line in shown)
    large = "--- a.sql\n+++ a.sql\n@@ too large to compare, begins with @@\n+++ system()"
    assert asked_for(asks(diff=large))[1:] == ["+++ system()"]
